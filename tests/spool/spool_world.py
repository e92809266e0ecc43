"""A spool, a stand-in for the chain, and a destination that fails on demand. Quick to import: no DICOM library."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qsm_edge.serve import Parts, serve
from qsm_edge.spool import Origin, Spool, logger
from qsm_edge.spool.config import Delivery, Destination, Site, SpoolSettings, Work
from qsm_edge.spool.intake import intake, part_path
from qsm_edge.spool.look import look_at

FAKE_RUN = Path(__file__).with_name("fake_run.py")
NETWORK = Origin("c-store", "SCANNER", "192.0.2.7")
DAY_S = 86400.0
PATIENCE_S = 120.0


def until(condition: Callable[[], object]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def lives(number: int) -> bool:
    """Whether a process is there and at work (not on Windows). One that nobody has waited for yet is not."""
    try:
        os.kill(number, 0)
        status = Path(f"/proc/{number}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def hand_in(spool: Spool, files: Iterable[bytes], **options: object) -> list[str]:
    """Hand files to the spool as a door does; returns what became of each."""
    outcomes = []
    for file in files:
        part = part_path(spool)
        part.write_bytes(file)
        outcomes.append(intake(spool, part, NETWORK, min_free_bytes=0, **options))
        assert not part.exists()
    return outcomes


@dataclass(frozen=True)
class Sent:
    path: Path
    outcome: str = "stored"
    detail: str = ""
    retry: bool = False


@dataclass
class Archive:
    """A destination. `behave` may raise, or say what becomes of a file; else the file is stored."""

    behave: Callable[[Path], Sent | None] = lambda path: None
    received: dict[str, list[bytes]] = field(default_factory=dict)
    calls: int = 0

    def __call__(self, files: Sequence[Path]) -> list[Sent]:
        self.calls += 1
        answers = []
        for path in files:
            said = self.behave(path)
            if said is None or said.outcome == "stored":
                key = "/".join(path.parts[-5:])
                self.received.setdefault(key, []).append(path.read_bytes())
            answers.append(said or Sent(path))
        return answers


def site(folder: Path, *names: str, **changes: object) -> Site:
    """A configuration that waits for nothing."""
    made = Site(
        SpoolSettings(folder / "spool", quiet_s=0.0, min_free_mb=0),
        work=Work(workers=2, retry_s=0.0, wall_s=60.0, memory_mb=8000),
        delivery=Delivery(0.0, 0.0),
        destinations=tuple(Destination(name) for name in names),
    )
    return replace(made, **changes)


def fake_run(*options: str) -> Callable[[Path, Path], list[str]]:
    """The command line of the stand-in."""
    return lambda source, output: [sys.executable, "-I", "-S", str(FAKE_RUN), str(source), str(output), *options]


def parts(made: Site, run: Callable[[Path, Path], Sequence[str]] | None = None, **senders: Archive) -> Parts:
    """The reader (in this process: a child takes longer to start than to look), the stand-in, and destinations."""
    return Parts(lambda folder: look_at(folder, lambda acquisition: 1), run or fake_run(), senders)


def work_off(made: Site, its_parts: Parts, log: io.StringIO | None = None) -> int:
    """One pass of the service over whatever there is."""
    told = logger(log, "json") if log is not None else logger(io.StringIO())
    return serve(made, its_parts, once=True, stop=threading.Event(), log=told)


def states(spool: Spool, table: str = "jobs") -> list[str]:
    return sorted(row["state"] for row in spool.ledger.rows(f"SELECT state FROM {table}"))


def check_agreement(spool: Spool) -> None:
    """Folders and ledger say the same: every held instance is there, whole, and there is nothing else."""
    rows = spool.ledger.rows
    held = {f"{r['study']}/{r['name']}.dcm" for r in rows("SELECT * FROM instances WHERE state = 'held'")}
    there = {str(p.relative_to(spool.folder("held"))) for p in spool.folder("held").rglob("*") if p.is_file()}
    assert there == held
    for name in there:
        digest = hashlib.sha256((spool.folder("held") / name).read_bytes()).hexdigest()
        assert Path(name).stem.endswith(f"-{digest[:16]}")
    assert list(spool.folder("incoming").iterdir()) == []
    jobs = {row["job"]: row["state"] for row in rows("SELECT job, state FROM jobs")}
    for state in ("ready", "working", "done", "refused", "failed"):
        kept = {path.name for path in spool.folder(state).iterdir()}
        wanted = {job for job, is_ in jobs.items() if is_ == state}
        if state == "done":
            wanted |= {r["job"] for r in rows("SELECT job FROM results") if jobs[r["job"]] == "superseded"}
        assert kept == wanted or (state == "ready" and kept <= wanted), state  # made when the job starts
    for row in rows("SELECT * FROM results JOIN jobs USING (job) WHERE jobs.state != 'purged'"):
        path = spool.job("done", row["job"]) / row["path"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
