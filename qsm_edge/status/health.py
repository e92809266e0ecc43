"""Is the service well? Its parts are alive, the ledger can be written to, there is room on the disk; else reason codes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsm_edge import __version__
from qsm_edge.errors import REASONS
from qsm_edge.spool.folders import LEDGER, free_bytes
from qsm_edge.status.board import LOOP, Seen
from qsm_edge.status.remedies import REMEDIES


@dataclass(frozen=True)
class Problem:
    """What is wrong with which part of the service: `code` is one of `errors.REASONS`."""

    code: str
    part: str
    detail: str = ""


@dataclass(frozen=True)
class Health:
    """The parts of the service, each alive, stopped or stalled, what is wrong, and the room on the spool's disk."""

    parts: dict[str, str]
    problems: tuple[Problem, ...]
    uptime_s: float
    free_bytes: int
    floor_bytes: int

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "software": "qsm-edge",
            "version": __version__,
            "healthy": self.is_well,
            "uptime_s": round(self.uptime_s, 1),
            "parts": self.parts,
            "free_bytes": self.free_bytes,
            "floor_bytes": self.floor_bytes,
            "problems": [
                {
                    "code": p.code,
                    "part": p.part,
                    "means": REASONS[p.code],
                    "detail": p.detail,
                    "helps": REMEDIES[p.code],
                }
                for p in self.problems
            ],
        }


def examine(seen: Seen, root: Path, floor_bytes: int, written: Callable[[], str]) -> Health:
    """Judge. written: tries to write to the ledger, and says what spoke against it, or nothing; see `prove_written`."""
    parts = dict.fromkeys(sorted(set(LOOP.values()) - {"purge"}), "stalled" if seen.stalled else "alive")
    parts |= {part: "alive" if alive else "stopped" for part, alive in sorted(seen.alive.items())}
    problems = [Problem("part_stopped", seen.stalled, "does not come back")] if seen.stalled else []
    problems += [Problem("part_stopped", part, "has ended") for part, is_ in parts.items() if is_ == "stopped"]
    problems += [Problem(code, part) for part, code in sorted(seen.trouble.items())]
    if against := written():
        problems.append(Problem("ledger_unwritable", "ledger", against))
    free = free_bytes(root)
    if free < floor_bytes:
        figures = f"{free / 1e9:.1f} GB free, {floor_bytes / 1e9:.1f} GB wanted"
        problems.append(Problem("out_of_disk", "disk", figures))
    return Health(parts, tuple(problems), seen.uptime_s, free, floor_bytes)


def prove_written(root: Path, patience_s: float = 2.0) -> str:
    """Write the ledger's version number over itself, to the disk; '' where that went well, else SQLite's name of the error.

    Nothing but a write that reached the disk tells that the next one will.
    """
    try:
        where = f"{(root / LEDGER).absolute().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(where, uri=True, timeout=patience_s, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute(f"PRAGMA user_version = {int(version)}")
            db.execute("COMMIT")
    except sqlite3.Error as error:
        return str(getattr(error, "sqlite_errorname", type(error).__name__))
    return ""


def resident_bytes(process: int | str = "self") -> int | None:
    """The memory that a process has in use, None where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
