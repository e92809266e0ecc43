"""Retention: studies that nothing is due of are forgotten by age, and the oldest of them when the disk runs short.

Never purged is a study with a job that is ready or working, or with a result that a destination does not have yet or
refused: a person decides about the latter (`qsm-edge queue retry`, or take the destination out of the configuration).
What is purged leaves its entries behind, so that the same images coming again are not reconstructed a second time.
"""

from __future__ import annotations

import time

from qsm_edge.spool.config import SpoolSettings
from qsm_edge.spool.folders import JOB_FOLDERS, Spool, clear, free_bytes, remove
from qsm_edge.spool.log import Log, silent

_DAY_S = 86400.0
#: A study in use: something is to be looked at, computed or delivered.
_IN_USE = """
    EXISTS (SELECT 1 FROM jobs j WHERE j.study = s.study AND j.state IN ('ready', 'working'))
    OR EXISTS (SELECT 1 FROM jobs j JOIN deliveries d USING (job)
               WHERE j.study = s.study AND d.state IN ('pending', 'refused'))
    OR s.arrivals != s.looked OR s.hurry
"""
_WAITS = "EXISTS (SELECT 1 FROM findings f WHERE f.study = s.study AND f.state = 'held')"


def purgeable(spool: Spool, *, now: float, keep_done_s: float, keep_held_s: float) -> list[str]:
    """Studies that may go, the oldest first. A study that waits for images is kept for `keep_held_s` since the last one."""
    rows = spool.ledger.rows(
        f"SELECT s.study FROM studies s WHERE NOT ({_IN_USE}) "
        "AND EXISTS (SELECT 1 FROM instances i WHERE i.study = s.study AND i.state = 'held') "
        f"AND MAX(s.received_s, COALESCE((SELECT MAX(d.changed_s) FROM jobs j JOIN deliveries d USING (job) "
        "WHERE j.study = s.study), 0), COALESCE((SELECT MAX(j.changed_s) FROM jobs j WHERE j.study = s.study), 0)) "
        f"<= ? - CASE WHEN {_WAITS} THEN ? ELSE ? END ORDER BY s.received_s",
        (now, keep_held_s, keep_done_s),
    )
    return [row["study"] for row in rows]


def purge(spool: Spool, settings: SpoolSettings, *, now: float | None = None, log: Log = silent) -> list[str]:
    """Purge by age, then, while less than `purge_below_free_mb` is free, finished studies of any age; returns the studies.

    A study that waits for images never goes for its room, only for its age.
    """
    when = time.time() if now is None else now
    done, held = settings.keep_done_days * _DAY_S, settings.keep_held_days * _DAY_S
    gone = [study for study in purgeable(spool, now=when, keep_done_s=done, keep_held_s=held) if drop(spool, study)]
    if settings.purge_below_free_mb:
        for study in purgeable(spool, now=when, keep_done_s=0.0, keep_held_s=held):
            if free_bytes(spool.root) >= settings.purge_below_free_mb * 1_000_000:
                break
            gone += [study] if drop(spool, study) else []
    for study in gone:
        log("purged", {"study": study})
    return gone


def drop(spool: Spool, study: str) -> bool:
    """Forget the files of a study; False where something of it came into use meanwhile.

    The ledger says so first: a crash in between leaves files that `recover` deletes, never an entry without its file.
    """
    with spool.ledger.transaction() as db:
        used = db.execute(f"SELECT 1 FROM studies s WHERE s.study = ? AND ({_IN_USE})", (study,)).fetchone()
        if used is not None:
            return False
        names = [
            row["name"] for row in db.execute("SELECT name FROM instances WHERE study = ? AND state = 'held'", (study,))
        ]
        jobs = [row["job"] for row in db.execute("SELECT job FROM jobs WHERE study = ?", (study,))]
        db.execute("UPDATE instances SET state = 'purged' WHERE study = ? AND state = 'held'", (study,))
        db.execute("UPDATE jobs SET state = 'purged', changed_s = ? WHERE study = ?", (time.time(), study))
        db.execute("DELETE FROM findings WHERE study = ?", (study,))
    for name in names:
        with spool.ledger.transaction() as db:  # an identical copy may be coming in at this moment
            row = db.execute("SELECT state FROM instances WHERE name = ?", (name,)).fetchone()
            if row["state"] == "purged":
                spool.instance(study, name).unlink(missing_ok=True)
    for job in jobs:
        for state in JOB_FOLDERS:
            (clear if state == "working" else remove)(spool.job(state, job))
    return True
