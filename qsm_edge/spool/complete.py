"""Is a study complete? Quiet for T seconds, and by what is in it: the reader's verdict makes jobs, or findings.

The quiet time is measured by the clock that nobody sets (monotonic), from when this process noticed the last arrival.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsm_edge.errors import REASONS, ResourceError
from qsm_edge.spool import child
from qsm_edge.spool.folders import NOTHING_FREE, Spool, build, free_bytes, present, remove
from qsm_edge.spool.log import Log, silent

#: What the reader misses of an acquisition that may still be on its way.
MAY_STILL_COME = (
    *("missing_slice", "missing_echo", "no_phase", "no_magnitude", "no_imaginary", "uneven_gaps", "too_small"),
    *("phase_difference", "geometry_mismatch"),
)

#: Says what is in a folder of instances, as `qsm_edge.spool.look` describes it.
Reader = Callable[[Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """A complete acquisition, or several that share a series: its name, its input files, what it may need."""

    job: str
    names: tuple[str, ...]
    memory_bytes: int


def reader(limits: child.Limits, recipe: str, overrides: Sequence[str]) -> Reader:
    """The reader in a child, which also estimates the memory that `recipe` takes.

    One that does not come to an end, or crashes at its last try, has refused all of the study, until the next arrival.
    """
    return lambda folder: _read(child.command(limits, "look", str(folder), recipe, *overrides), limits)


def waiting(spool: Spool) -> list[tuple[str, int, bool]]:
    """Studies to be looked at, with their arrivals and whether a person asked not to wait for quiet."""
    rows = spool.ledger.rows("SELECT * FROM studies WHERE arrivals != looked OR hurry ORDER BY received_s")
    return [(row["study"], row["arrivals"], bool(row["hurry"])) for row in rows]


def quiet(spool: Spool, seen: dict[str, tuple[int, float]], quiet_s: float, clock: float) -> list[str]:
    """The waiting studies to which nothing came for `quiet_s`. seen: kept by the caller between calls."""
    due, now = [], waiting(spool)
    for study, arrivals, hurry in now:
        if study not in seen or seen[study][0] != arrivals:
            seen[study] = (arrivals, clock)
        if hurry or clock - seen[study][1] >= quiet_s:
            due.append(study)
    for study in seen.keys() - {study for study, _, _ in now}:
        del seen[study]
    return due


def look(spool: Spool, study: str, read: Reader, *, last_try: bool = True, log: Log = silent) -> bool:
    """Have the reader look at a study and enter what it says; False where nothing was entered: more arrived meanwhile.

    last_try : without it, nothing is entered of a reader that crashed, either. It may have been killed for the memory of
    its neighbours, and what it would have said is not known.
    """
    (row,) = spool.ledger.rows("SELECT arrivals FROM studies WHERE study = ?", (study,))
    found = read(spool.folder("held") / study)
    if free_bytes(spool.root) < NOTHING_FREE:
        raise ResourceError("out_of_disk", "there is no room to look at a study")
    if found.get("crashed") and not last_try:
        log("looked", {"study": study, "jobs": 0, "superseded": 0, "refused": "crashed"})
        return False
    held = spool.ledger.rows("SELECT name, sop, series FROM instances WHERE study = ? AND state = 'held'", (study,))
    series_of = {one["name"]: str(one["series"]) for one in held}
    jobs = jobs_of(found["acquisitions"], series_of)
    known = {one["job"]: one for one in spool.ledger.rows("SELECT job, state FROM jobs WHERE study = ?", (study,))}
    made = [job for job in jobs if job.job not in known or known[job.job]["state"] == "superseded"]
    for job in made:
        build(spool.job("ready", job.job), present(spool.instance(study, name) for name in job.names))
    with spool.ledger.transaction() as db:
        now = time.time()
        marked = db.execute(
            "UPDATE studies SET looked = arrivals, hurry = 0 WHERE study = ? AND arrivals = ?", (study, row["arrivals"])
        )
        gone = _enter(db, study, jobs, found, series_of, now) if marked.rowcount == 1 else None
    if gone is None:
        for job in made:
            remove(spool.job("ready", job.job))
        return False
    for name in gone:
        for state in ("ready", "refused", "failed"):
            remove(spool.job(state, name))
    facts = {"study": study, "jobs": len(jobs), "superseded": len(gone)}
    codes = sorted({str(refusal["code"]) for refusal in found["refused"]})
    log("looked", {**facts, "refused": ",".join(codes) or "nothing"})
    return True


def _read(words: Sequence[str], limits: child.Limits) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory(prefix="qsm-edge-look-") as folder:
        running = child.start(words, Path(folder) / "said.json", limits)
        status = child.wait(running)
        try:
            if status == 0:
                found: dict[str, Any] = json.loads(running.said.read_text(encoding="utf-8"))
                return found
            code = "timed_out" if status is None else "internal"
        except ValueError:
            code = "internal"
    text = f"the reader could not look at the study: {REASONS[code]}"
    refused = {"code": code, "text": text, "series": "", "names": []}
    return {"acquisitions": [], "refused": [refused], "ignored": [], "crashed": code == "internal", "unknown": True}


def jobs_of(acquisitions: Iterable[Mapping[str, Any]], series_of: Mapping[str, str]) -> list[Job]:
    """Acquisitions that share a series are one job: what one says of a series' completeness hangs on all of its images.

    Its input is all that is held of its series; its name tells the images that the acquisitions are made of.
    """
    groups: list[tuple[set[str], set[str], int]] = []  # series, images, memory
    for acquisition in acquisitions:
        images = set(acquisition["names"])
        series = {series_of[name] for name in images if name in series_of}
        memory = int(acquisition["memory_bytes"])
        for other in [group for group in groups if group[0] & series]:
            groups.remove(other)
            series, images, memory = series | other[0], images | other[1], max(memory, other[2])
        groups.append((series, images, memory))
    jobs = []
    for series, images, memory in groups:
        sops = sorted({name.partition("-")[0] for name in images})
        names = tuple(sorted(name for name, of in series_of.items() if of in series))
        jobs.append(Job(hashlib.sha256("\n".join(sops).encode()).hexdigest()[:32], names, memory))
    return sorted(jobs, key=lambda job: job.job)


def _enter(
    db: Any,
    study: str,
    jobs: Sequence[Job],
    found: Mapping[str, Any],
    series_of: Mapping[str, str],
    now: float,
) -> list[str]:
    """Enter findings and jobs; returns the jobs that are superseded."""
    _enter_findings(db, study, found["refused"], series_of, now)
    for job in jobs:
        _enter_job(db, study, job, now)
    return [] if found.get("unknown") else _supersede(db, study, jobs, now)


def _enter_findings(
    db: Any, study: str, refused: Sequence[Mapping[str, Any]], series_of: Mapping[str, str], now: float
) -> None:
    before = {
        (row["code"], row["series"]): row for row in db.execute("SELECT * FROM findings WHERE study = ?", (study,))
    }
    db.execute("DELETE FROM findings WHERE study = ?", (study,))
    for number, refusal in enumerate(refused):
        series = ",".join(sorted({series_of[name] for name in refusal["names"] if name in series_of}))
        same = before.get((refusal["code"], series))
        state = "held" if refusal["code"] in MAY_STILL_COME else "refused"
        since = now if same is None else same["since_s"]
        row = (study, number, state, refusal["code"], refusal["text"], series, len(refusal["names"]), since)
        db.execute("INSERT INTO findings VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


def _enter_job(db: Any, study: str, job: Job, now: float) -> None:
    db.execute(
        "INSERT OR IGNORE INTO jobs (job, study, state, memory_bytes, created_s, changed_s) "
        "VALUES (?, ?, 'ready', ?, ?, ?)",
        (job.job, study, job.memory_bytes, now, now),
    )
    db.execute(  # it was superseded, and the images that spoke against it are gone
        "UPDATE jobs SET changed_s = ?, "
        "state = CASE WHEN EXISTS (SELECT 1 FROM results r WHERE r.job = jobs.job) THEN 'done' ELSE 'ready' END "
        "WHERE job = ? AND state = 'superseded'",
        (now, job.job),
    )
    inputs = [(job.job, name) for name in job.names]
    db.execute("DELETE FROM job_instances WHERE job = ?", (job.job,))
    db.executemany("INSERT INTO job_instances VALUES (?, ?)", inputs)


def _supersede(db: Any, study: str, jobs: Sequence[Job], now: float) -> list[str]:
    """Take back the study's jobs that the look did not confirm; returns those whose folders go.

    What has not begun is taken back; what has ended only where another job uses its images now. Of its results those
    stay due whose delivery was tried: half a series must not stay at a destination.
    """
    current, gone = {job.job for job in jobs}, []
    users: dict[str, set[str]] = defaultdict(set)
    for job in jobs:
        for name in job.names:
            users[name].add(job.job)
    for row in list(db.execute("SELECT job, state FROM jobs WHERE study = ?", (study,))):
        name, state = row["job"], row["state"]
        if name in current or state in ("superseded", "purged"):
            continue
        inputs = [one["name"] for one in db.execute("SELECT name FROM job_instances WHERE job = ?", (name,))]
        if state in ("ready", "working") or any(users.get(one) for one in inputs):
            db.execute("UPDATE jobs SET state = 'superseded', changed_s = ? WHERE job = ?", (now, name))
            db.execute(
                "UPDATE deliveries SET state = 'cancelled', changed_s = ? WHERE job = ? AND state = 'pending' "
                "AND destination NOT IN (SELECT destination FROM deliveries WHERE job = ? AND attempts > 0)",
                (now, name, name),
            )
            gone.append(name)
    return gone
