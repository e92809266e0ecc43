"""What a start does after any end of the process before it: the ledger is right, and the folders are made to agree.

=====================================  ====================================================================
what a crash may leave                 what becomes of it
=====================================  ====================================================================
a part file in ``incoming``            deleted: it was not acknowledged, and its sender sends it again
a file in ``held`` without an entry    adopted: it was whole before it got its name; deleted where it is no
                                       instance of that name
an entry `purged`, its file there      deleted
a job `working`                        `ready` again, and what it made so far is deleted: nothing of it was
                                       entered, so nothing of it was sent
a child that outlived its service,     what it writes is deleted, here and by the next start: each attempt has
and goes on writing                    a folder of its own, so that it is in nobody's way until then
a job's folder that lies elsewhere     moved or made again, as the job's state says
than its state says
a folder of an unknown job, a hidden   deleted
folder
a delivery under way                   due again: it is repeated with the same UIDs and bytes
=====================================  ====================================================================
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from qsm_edge.spool.folders import JOB_FOLDERS, Spool, build, clear, present, remove
from qsm_edge.spool.intake import MAX_INSTANCE_BYTES, adopt
from qsm_edge.spool.log import Log, silent
from qsm_edge.spool.work import settle

_LONGEST_WAIT_S = 600.0


@dataclass
class Recovered:
    """How many of each were put right; `missing`: instances whose files are gone, which nothing here explains."""

    parts: int = 0
    adopted: int = 0
    deleted: int = 0
    requeued: int = 0
    missing: list[str] = field(default_factory=list)


def recover(spool: Spool, *, max_bytes: int = MAX_INSTANCE_BYTES, retry_s: float = 0.0, log: Log = silent) -> Recovered:
    """Make folders and ledger agree. Only for a process that works on the spool alone.

    retry_s : a job that was interrupted again and again waits for this, doubled each time, so that one which brings the
    machine down does not do so in a loop.
    """
    told = Recovered()
    for path in spool.folder("incoming").iterdir():
        remove(path)
        told.parts += 1
    _instances(spool, max_bytes, told)
    _jobs(spool, retry_s, told)
    facts = {"parts": told.parts, "adopted": told.adopted, "deleted": told.deleted, "requeued": told.requeued}
    log("recovered", {**facts, "missing": len(told.missing)})
    for name in told.missing:
        log("missing", {"instance": name})
    return told


def _instances(spool: Spool, max_bytes: int, told: Recovered) -> None:
    held = {
        row["name"]: row["study"] for row in spool.ledger.rows("SELECT name, study FROM instances WHERE state = 'held'")
    }
    there: set[str] = set()
    for study in spool.folder("held").iterdir():
        if study.name.startswith(".") or not study.is_dir():
            remove(study)
            continue
        for path in study.iterdir():
            if path.suffix == ".dcm" and held.get(path.stem) == study.name:
                there.add(path.stem)
            elif _was_purged(spool, path) or path.suffix != ".dcm" or not adopt(spool, path, max_bytes):
                remove(path)
                told.deleted += 1
            else:
                told.adopted += 1
        if not os.listdir(study):
            remove(study)
    told.missing += sorted(held.keys() - there)


def _was_purged(spool: Spool, path: Path) -> bool:
    return bool(spool.ledger.rows("SELECT 1 FROM instances WHERE name = ? AND state = 'purged'", (path.stem,)))


def _jobs(spool: Spool, retry_s: float, told: Recovered) -> None:
    now = time.time()
    with spool.ledger.transaction() as db:
        for row in list(db.execute("SELECT job, interruptions FROM jobs WHERE state = 'working'")):
            again = row["interruptions"]
            wait = min(retry_s * 2 ** min(again, 16), _LONGEST_WAIT_S) if again else 0.0
            db.execute(
                "UPDATE jobs SET state = 'ready', interruptions = ?, not_before_s = ? WHERE job = ?",
                (again + 1, now + wait, row["job"]),
            )
            told.requeued += 1
    jobs = {row["job"]: row for row in spool.ledger.rows("SELECT * FROM jobs")}
    for state in JOB_FOLDERS:
        for path in spool.folder(state).iterdir():
            if path.name not in jobs:  # hidden ones, too
                (clear if state == "working" else remove)(path)
                told.deleted += 1
    for name, row in jobs.items():
        settle(spool, name, row["state"], row["code"], row["text"])
        if row["state"] == "ready" and not spool.job("ready", name).is_dir():
            inputs = spool.ledger.rows("SELECT name FROM job_instances WHERE job = ?", (name,))
            sources = (spool.instance(row["study"], one["name"]) for one in inputs)
            build(spool.job("ready", name), present(sources))
