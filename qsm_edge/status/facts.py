"""What the ledger and the result folders say, for the page and the metrics: through a read-only connection of its own.

One short read transaction, so that all of it is of one moment; readers of a WAL ledger hold up nobody. Nothing is read
that names a patient: of the ledger names that are hashes, of a result its `report.json` and its `preview.png`.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsm_edge.spool.folders import LEDGER

#: Of each list that the page shows, and of results.
MOST_ROWS, MOST_RESULTS = 25, 12
#: A question to the ledger that takes longer is given up.
_PATIENCE_S = 5.0
_PREVIEW_BYTES, _REPORT_BYTES = 300_000, 4_000_000
_PNG = b"\x89PNG\r\n\x1a\n"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """One acquisition of a result: its preview (PNG or empty), its verdict, its notes' codes, and how it was acquired."""

    png: bytes = b""
    verdict: str = ""
    codes: tuple[str, ...] = ()
    vendor: str = ""
    b0_tesla: float | None = None
    echoes: int = 0
    voxel_mm: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """A job that is done, what became of its results, and its acquisitions."""

    job: str
    verdict: str
    code: str
    changed_s: float
    seconds: float
    deliveries: tuple[Row, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Facts:
    """The ledger at one moment. Lists have at most `MOST_ROWS` entries, `totals` their whole lengths.

    jobs, verdicts: counts by state and verdict; destinations: what is due or refused, by destination, state, outcome;
    oldest_s: since when the oldest result waits for each destination; usual_s: the median of the last reconstructions.
    """

    now_s: float
    jobs: Mapping[str, int]
    verdicts: Mapping[str, int]
    totals: Mapping[str, int]
    arriving: tuple[Row, ...]
    held: tuple[Row, ...]
    refused: tuple[Row, ...]
    working: tuple[Row, ...]
    ready: tuple[Row, ...]
    failed: tuple[Row, ...]
    destinations: Mapping[str, tuple[Row, ...]]
    oldest_s: Mapping[str, float]
    results: tuple[Result, ...]
    done_today: int
    usual_s: float | None


_WITH_IMAGES = "EXISTS (SELECT 1 FROM instances i WHERE i.study = s.study AND i.state = 'held')"
_ARRIVING = f"FROM studies s WHERE (s.arrivals != s.looked OR s.hurry) AND {_WITH_IMAGES}"
_HELD = f"FROM findings f JOIN studies s USING (study) WHERE f.state = 'held' AND {_WITH_IMAGES}"
_REFUSED = f"FROM findings f JOIN studies s USING (study) WHERE f.state = 'refused' AND {_WITH_IMAGES}"
_INSTANCES = "(SELECT COUNT(*) FROM instances i WHERE i.study = s.study AND i.state = 'held') AS instances"


def look(root: Path, destinations: Sequence[str], *, with_results: bool = True, now: float | None = None) -> Facts:
    """Read a spool's ledger, and the last results' reports and pictures if asked. Raises sqlite3.Error, OSError."""
    when = time.time() if now is None else now
    with _reading(root) as db:

        def rows(question: str, *values: object) -> tuple[Row, ...]:
            return tuple(dict(row) for row in db.execute(question, values))

        def some(name: str, columns: str, source: str, order: str) -> tuple[Row, ...]:
            totals[name] = rows(f"SELECT COUNT(*) AS n {source}")[0]["n"]
            return rows(f"SELECT {columns} {source} ORDER BY {order} LIMIT {MOST_ROWS}")

        totals: dict[str, int] = {}
        finding = f"f.study, f.code, f.text, f.files, f.since_s, s.received_s, {_INSTANCES}"
        jobs = {row["state"]: row["n"] for row in rows("SELECT state, COUNT(*) AS n FROM jobs GROUP BY state")}
        verdicts = rows("SELECT verdict, COUNT(*) AS n FROM jobs WHERE state = 'done' GROUP BY verdict")
        times = rows("SELECT seconds FROM jobs WHERE state = 'done' ORDER BY changed_s DESC LIMIT 20")
        return Facts(
            now_s=when,
            jobs=jobs,
            verdicts={row["verdict"]: row["n"] for row in verdicts},
            totals=totals,
            arriving=some("arriving", f"s.study, s.received_s, {_INSTANCES}", _ARRIVING, "s.received_s DESC"),
            held=some("held", finding, _HELD, "f.since_s DESC"),
            refused=some("refused", finding, _REFUSED, "f.since_s DESC"),
            working=some("working", "job, changed_s, attempts", "FROM jobs WHERE state = 'working'", "changed_s"),
            ready=some("ready", "job, created_s, code, not_before_s", "FROM jobs WHERE state = 'ready'", "created_s"),
            failed=some(
                "failed",
                "job, state, code, text, changed_s",
                "FROM jobs WHERE state IN ('failed', 'refused')",
                "changed_s DESC",
            ),
            destinations={name: rows(_DUE, name) for name in destinations},
            oldest_s={name: since for name in destinations for since in _oldest(rows(_OLDEST, name))},
            results=tuple(_result(root, rows, job) for job in rows(_DONE)) if with_results else (),
            done_today=rows("SELECT COUNT(*) AS n FROM jobs WHERE state = 'done' AND changed_s > ?", when - 86400)[0][
                "n"
            ],
            usual_s=sorted(row["seconds"] for row in times)[len(times) // 2] if times else None,
        )


_DUE = (
    "SELECT state, outcome, detail, COUNT(*) AS files, MAX(attempts) AS attempts, MIN(not_before_s) AS not_before_s, "
    "MAX(changed_s) AS changed_s FROM deliveries WHERE destination = ? AND state IN ('pending', 'refused') "
    "GROUP BY state, outcome, detail"
)
_OLDEST = (
    "SELECT MIN(j.changed_s) AS since FROM deliveries d JOIN jobs j USING (job) "
    "WHERE d.destination = ? AND d.state IN ('pending', 'refused')"
)
_DONE = (
    "SELECT job, verdict, code, changed_s, seconds FROM jobs WHERE state = 'done' "
    f"ORDER BY changed_s DESC, job LIMIT {MOST_RESULTS}"
)
_OF_JOB = (
    "SELECT destination, state, COUNT(*) AS files FROM deliveries WHERE job = ? AND state != 'cancelled' "
    "GROUP BY destination, state ORDER BY destination, state"
)
_SHOWN = (
    "SELECT path FROM results WHERE job = ? AND (path LIKE 'out/%/preview.png' OR path LIKE 'out/%/report.json') "
    "ORDER BY path"
)


def _oldest(found: Sequence[Row]) -> list[float]:
    return [row["since"] for row in found if row["since"] is not None]


@contextlib.contextmanager
def _reading(root: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(f"{(root / LEDGER).absolute().as_uri()}?mode=ro", uri=True, timeout=1.0, isolation_level=None)
    try:
        db.row_factory = sqlite3.Row
        end = time.monotonic() + _PATIENCE_S
        db.set_progress_handler(lambda: int(time.monotonic() > end), 100_000)
        db.execute("BEGIN")
        yield db
    finally:
        db.close()


def _result(root: Path, rows: Any, job: Row) -> Result:
    folders: dict[str, dict[str, Path]] = {}
    for row in rows(_SHOWN, job["job"]):
        path = Path(row["path"])
        folders.setdefault(path.parent.name, {})[path.name] = root / "done" / job["job"] / path
    pictures = [_picture(found.get("preview.png"), found.get("report.json")) for found in folders.values()]
    return Result(**job, deliveries=rows(_OF_JOB, job["job"]), pictures=tuple(pictures))


def _picture(preview: Path | None, report: Path | None) -> Picture:
    """What is there of it; a file that was purged, or is not as we wrote it, is left out."""
    png = _content(preview, _PREVIEW_BYTES)
    png = png if png.startswith(_PNG) else b""
    try:
        said = json.loads(_content(report, _REPORT_BYTES))
        acquisition, voxel = said["acquisition"], said["geometry"]["voxel_mm_zyx"]
        return Picture(
            png=png,
            verdict=str(said["verdict"]),
            codes=tuple(str(note["code"]) for note in said["notes"]),
            vendor=str(acquisition["vendor"]),
            b0_tesla=float(acquisition["b0_tesla"]),
            echoes=len(acquisition["echo_times_ms"]),
            voxel_mm=tuple(float(side) for side in reversed(voxel)),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Picture(png)


def _content(path: Path | None, most: int) -> bytes:
    try:
        if path is not None and path.stat().st_size <= most:
            return path.read_bytes()
    except OSError:
        pass
    return b""
