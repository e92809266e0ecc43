"""Layer 5: the spool, the one road that both doors (network, watched folder) lead into. Nothing acknowledged is lost.

Two things are kept in step: **folders**, in which files move by atomic renames after they were flushed to the disk, and
a **ledger** (SQLite, WAL, synchronous=FULL), which says what is known of each instance, job, result and delivery. A file
is always durable before the ledger speaks of it, so that after a crash the ledger is right and `recover` makes the
folders agree with it: what the ledger does not know is adopted (an instance) or deleted (unfinished work).

::

    door: part file, flushed                                    late instance: the study is looked at again
         |  intake                                              .--------------------------------------------.
         v                                                      v                                            |
    incoming/*.part --> held/<study>/<instance>.dcm --look--> ready/<job>/ --> working/<job>/ --> done/<job>/ --> delivered
         |                    |   quiet for T seconds,          ^     ^          |      |              |
         v refused,           |   full grid                     |     '-crashed,-'      |              v retention
         not acknowledged     v                                 |       stopped         v            purged
                        finding: held | refused | given_up      '----retry--- refused/<job>/, failed/<job>/

What the words mean

instance
    One SOP instance as one file, `held` in its study's folder until it is purged; or `ignored` and not kept: our own
    output coming back, and what is no MR image. Its name is ``<SHA-256 of the SOP instance UID>-<SHA-256 of the file>``
    (32 and 16 digits), so that an identical copy is the same name, and another version stands beside the first one for
    the reader to judge.
study
    What shares a study instance UID. `arrivals` counts instances; where that is not what it was at the last look and
    nothing came for T seconds, the study is looked at by the reader in a child process.
finding
    What the reader would not use: `held` where more images could complete it (a missing slice or echo, no phase),
    `refused` otherwise, `given_up` when a person stopped waiting. Each look replaces the findings of the study.
job
    A complete acquisition, or several that share a series. Its name is a hash of the images that it is made of: the
    same images are the same job however often and in whatever order they come, and a late image makes another job,
    which supersedes the first. Each attempt at it has a folder of its own, ``working/<job>/<attempt>/``, and what an attempt
    made that outlived its service is never part of a later one.

    ::

        ready -> working -> done -> purged        ready, working, done, refused, failed -> superseded
          ^         |-> refused   the input will not do (the reader's or the chain's reason code)
          '---------|-> failed    crashed, or was over its limits, as often as is allowed
                    '-> ready     stopped, interrupted, no disk space, or to be tried again later
result
    A file of a job that is done, with its SHA-256. Entered together with the job's state and its deliveries in one
    transaction, once; never made again and never replaced, because a second run gives the same UIDs and pixels with
    another time of creation.
delivery
    A result file that is due at a destination: `pending -> done`, or `refused` for good by the destination, or
    `cancelled` (superseded before the first try; its destination is no longer in the configuration).

Laws that the tests hold: an instance is acknowledged only when file and ledger have it; a job ends once; a result's bytes
never change; nothing is purged that is pending or refused at a destination.
"""

from __future__ import annotations

from qsm_edge.spool.folders import Spool, opened
from qsm_edge.spool.intake import intake
from qsm_edge.spool.log import Log, Origin, logger, silent

__all__ = ["Log", "Origin", "Spool", "intake", "logger", "opened", "silent"]
