"""A job in a child process: claimed in the ledger, run on its own folder, its results entered exactly once.

``done/<job>/out/<n>`` is a result folder for each acquisition, whole, as `publish` leaves it.

Each attempt has a folder of its own, ``working/<job>/<attempt>`` with ``in``, ``out`` and ``said.json``, because a child
may outlive a service that was killed: what such an orphan writes is in nobody's way, and no other attempt is judged by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qsm_edge.errors import REASONS
from qsm_edge.publish import sync_file
from qsm_edge.spool import child
from qsm_edge.spool.config import Destination, Work
from qsm_edge.spool.folders import (
    JOB_FOLDERS,
    NOTHING_FREE,
    Spool,
    build,
    clear,
    free_bytes,
    move,
    present,
    remove,
    sync_folder,
)
from qsm_edge.spool.log import Log, silent

_LONGEST_WAIT_S = 3600.0
#: In an attempt's folder: what becomes the job's folder in ``done``. Children never write there.
_WHOLE = "whole"
#: Reasons of the machine and not of the input: the job waits and is tried again.
_OF_THE_MACHINE = {"out_of_disk", "no_device"}

#: The command line that reconstructs what is in the first folder into the second.
RunCommand = Callable[[Path, Path], Sequence[str]]


@dataclass(frozen=True)
class Started:
    """A job that a child is at work on, in a folder that no other attempt has had or will have."""

    job: str
    study: str
    memory_bytes: int
    folder: Path
    running: child.Running


@dataclass(frozen=True)
class Ended:
    """What became of a job: its new state, and why."""

    state: str
    code: str = ""
    text: str = ""
    verdict: str = ""
    folders: tuple[Path, ...] = ()
    counts: bool = True


def run_command(work: Work, limits: child.Limits) -> RunCommand:
    """`qsm-edge run` with a site's options, under limits."""
    words = ["--json", "--quiet", "--recipe", work.recipe, "--mask", work.mask, "--device", work.device]
    for override in work.set:
        words += ["--set", override]
    words += ["--model", work.model] if work.model else []
    words += ["--nifti"] if work.nifti else []
    words += ["--maps", ",".join(work.maps)] if work.maps else []
    words += ["--parametric-map"] if work.parametric_map else []
    return lambda source, output: child.command(limits, "run", str(source), str(output), *words)


def next_job(spool: Spool, free_bytes: int, *, alone: bool, now: float) -> tuple[str, int] | None:
    """The job to start next and its estimate: the oldest that is due and fits; alone, it may be larger than that."""
    rows = spool.ledger.rows(
        "SELECT job, memory_bytes FROM jobs WHERE state = 'ready' AND (not_before_s <= ? OR not_before_s > ?) "
        "ORDER BY interruptions, created_s, job LIMIT 1",
        (now, now + _LONGEST_WAIT_S),  # a clock that was set back must not make a job wait for ever
    )
    for row in rows:  # a large job is not overtaken for ever by small ones: the first waits until it fits
        if alone or row["memory_bytes"] <= free_bytes:
            return row["job"], row["memory_bytes"]
    return None


def start(spool: Spool, job: str, command: RunCommand, limits: child.Limits, *, log: Log = silent) -> Started | None:
    """Claim a job that is ready and start its child; None where it is not ready any more."""
    with spool.ledger.transaction() as db:
        claimed = db.execute(
            "UPDATE jobs SET state = 'working', changed_s = ? WHERE job = ? AND state = 'ready'", (time.time(), job)
        )
        if claimed.rowcount != 1:
            return None
    (row,) = spool.ledger.rows("SELECT * FROM jobs WHERE job = ?", (job,))
    ready, folder = spool.job("ready", job), spool.job("working", job) / secrets.token_hex(8)
    if not ready.is_dir():
        names = spool.ledger.rows("SELECT name FROM job_instances WHERE job = ?", (job,))
        build(ready, present(spool.instance(row["study"], one["name"]) for one in names))
    clear(folder.parent)
    move(ready, folder)
    log("started", {"job": job, "attempt": row["attempts"] + 1})
    running = child.start(command(folder / "in", folder / "out"), folder / "said.json", limits)
    return Started(job, row["study"], row["memory_bytes"], folder, running)


def finish(
    spool: Spool, started: Started, work: Work, destinations: Sequence[Destination], *, log: Log = silent
) -> str:
    """Enter what became of a job whose child is over; returns the job's new state."""
    ended = _judge(started.folder, started.running)
    return _enter(spool, started, ended, work, destinations, log)


def requeue(spool: Spool, started: Started, *, log: Log = silent) -> None:
    """Stop a job's child and put the job back, as if it had not been started."""
    child.stop(started.running)
    give_back(spool, started.job)
    log("requeued", {"job": started.job})


def give_back(spool: Spool, job: str) -> None:
    """Put a job back whose outcome could not be entered; what it made was never told of, and goes."""
    with spool.ledger.transaction() as db:
        db.execute("UPDATE jobs SET state = 'ready' WHERE job = ? AND state = 'working'", (job,))
    (row,) = spool.ledger.rows("SELECT * FROM jobs WHERE job = ?", (job,))
    settle(spool, job, row["state"], row["code"], row["text"])


def is_wanted(spool: Spool, started: Started) -> bool:
    """Whether a job at work was not superseded meanwhile."""
    return bool(spool.ledger.rows("SELECT 1 FROM jobs WHERE job = ? AND state = 'working'", (started.job,)))


def _judge(folder: Path, running: child.Running) -> Ended:
    """What the child says, checked against what there is."""
    status = running.process.returncode
    if child.timed_out(running):
        return Ended("failed", "timed_out", REASONS["timed_out"])
    try:
        said = json.loads(running.said.read_text(encoding="utf-8"))
        done, refused, failed = ([*said[key]] for key in ("done", "refused", "failed"))
        results = tuple(folder / "out" / Path(one["folder"]).name for one in done)
        verdicts = ",".join(sorted({str(one["verdict"]) for one in done}))
    except (OSError, ValueError, KeyError, TypeError):
        if free_bytes(folder) < NOTHING_FREE:
            return Ended("ready", "out_of_disk", REASONS["out_of_disk"], counts=False)
        what = "was killed, perhaps for its memory" if status < 0 else f"ended with status {status}"
        return Ended("failed", "internal", f"the reconstruction {what}")
    problems = [(str(one["code"]), str(one["text"])) for one in (*failed, *refused)]
    machine = next((problem for problem in problems if problem[0] in _OF_THE_MACHINE), None)
    if machine is not None:  # all or nothing: a result is entered with its job, once
        return Ended("ready", *machine, counts=False)
    if failed:
        return Ended("failed", *problems[0])
    if results and all(path.is_dir() for path in results):
        return Ended("done", *(problems[0] if problems else ("", "")), verdicts, results)
    return Ended("refused", *(problems[0] if problems else ("internal", "the reconstruction told of no result")))


def _enter(
    spool: Spool, started: Started, ended: Ended, work: Work, destinations: Sequence[Destination], log: Log
) -> str:
    found: list[tuple[str, str, int, str]] = []
    if ended.state == "done":
        whole = started.folder / _WHOLE
        (whole / "out").mkdir(parents=True, mode=0o700)
        for number, folder in enumerate(sorted(ended.folders), 1):  # their names tell the series' description
            os.replace(folder, whole / "out" / str(number))
        found = list(_results(whole / "out"))
        sync_folder(whole / "out")
        sync_folder(whole)
        remove(spool.job("done", started.job))
        move(whole, spool.job("done", started.job))
    state, now = ended.state, time.time()
    with spool.ledger.transaction() as db:
        row = db.execute("SELECT * FROM jobs WHERE job = ?", (started.job,)).fetchone()
        if row["state"] != "working":
            state = "superseded"
        else:
            attempts = row["attempts"] + ended.counts
            if state == "failed" and attempts < work.attempts:
                state = "ready"
            wait = min(work.retry_s * 2 ** min(attempts, 16), _LONGEST_WAIT_S) if state == "ready" else 0.0
            values = (state, ended.code, ended.text, ended.verdict, attempts, now + wait, now, started.running.seconds)
            db.execute(
                "UPDATE jobs SET state = ?, code = ?, text = ?, verdict = ?, attempts = ?, not_before_s = ?, "
                "changed_s = ?, seconds = ? WHERE job = ?",
                (*values, started.job),
            )
            for path, kind, size, digest in found:
                db.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?)", (started.job, path, kind, size, digest))
                for destination in destinations:
                    if kind in destination.kinds:
                        db.execute(
                            "INSERT INTO deliveries (job, path, destination, state, changed_s) "
                            "VALUES (?, ?, ?, 'pending', ?)",
                            (started.job, path, destination.name, now),
                        )
    settle(spool, started.job, state, ended.code, ended.text)
    log("ended", {"job": started.job, "state": state, "code": ended.code, "seconds": round(started.running.seconds, 1)})
    return state


def settle(spool: Spool, job: str, state: str, code: str, text: str) -> None:
    """Make a job's folders what its state in the ledger says; may be repeated, and is after a crash."""
    if state == "done" and not spool.job("done", job).is_dir():
        for whole in spool.job("working", job).glob(f"*/{_WHOLE}"):  # one at most: the attempt that was entered
            move(whole, spool.job("done", job))
    elif state in ("refused", "failed"):
        folder = spool.job(state, job)
        if not folder.is_dir():
            hidden = folder.with_name(f".{job}")
            remove(hidden)
            hidden.mkdir(mode=0o700)
            reason = hidden / "reason.json"
            reason.write_text(json.dumps({"job": job, "code": code, "text": text}) + "\n", encoding="utf-8")
            sync_file(reason)
            move(hidden, folder)
    for other in JOB_FOLDERS:
        if other == "working" != state:
            clear(spool.job(other, job))
        elif other != state and not (other == "done" and state == "superseded" and _delivering(spool, job)):
            remove(spool.job(other, job))


def _delivering(spool: Spool, job: str) -> bool:
    """Whether results of a superseded job are still due or were sent: they stay until they are purged."""
    return bool(spool.ledger.rows("SELECT 1 FROM results WHERE job = ? LIMIT 1", (job,)))


def _results(out: Path) -> Iterator[tuple[str, str, int, str]]:
    """Path below the job's folder, kind, size and SHA-256 of every file of the results."""
    for path in sorted(out.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            inside = path.relative_to(out)
            yield f"out/{inside.as_posix()}", _kind(inside), path.stat().st_size, digest


def _kind(inside: Path) -> str:
    """What a result file is: the name of its series' folder or of its own, `other` for what is not DICOM."""
    if inside.suffix != ".dcm":
        return "other"
    return inside.parts[1] if len(inside.parts) > 2 else inside.stem
