"""Who gets which result, and whether they have it. The ledger decides; the sender only sends.

A try is entered before it is made: whatever happens in between, the file counts as perhaps sent and is sent again, with
the same UIDs and the same bytes (checked against the ledger), until the destination says that it has it.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from qsm_edge.errors import QsmEdgeError
from qsm_edge.spool.config import Delivery
from qsm_edge.spool.folders import Spool
from qsm_edge.spool.log import Log, silent

#: How often the time between tries is doubled at most; more makes numbers that mean nothing.
_DOUBLINGS = 30
#: What was tried is not due at the same moment again.
_SHORTEST_WAIT_S = 0.001


class Sent(Protocol):
    """What a sender says of one file: outcome `stored`, `committed`, `refused` or `failed`; `retry`: try again later."""

    @property
    def path(self) -> Path: ...
    @property
    def outcome(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def retry(self) -> bool: ...


#: Sends files to one destination. It may raise: then nothing is known of any of them.
Sender = Callable[[Sequence[Path]], Sequence[Sent]]


def due(spool: Spool, destination: str, now: float, longest_s: float) -> list[tuple[str, str, str]]:
    """Job, path and SHA-256 of what is due at a destination: the files of one job, the oldest."""
    rows = spool.ledger.rows(
        "SELECT d.job, d.path, r.sha256 FROM deliveries d JOIN results r USING (job, path) JOIN jobs j USING (job) "
        "WHERE d.destination = ? AND d.state = 'pending' AND (d.not_before_s <= ? OR d.not_before_s > ?) "
        "ORDER BY j.changed_s, d.job, d.path",
        (destination, now, now + longest_s + 1.0),  # a clock that was set back must not hold results for ever
    )
    return [(row["job"], row["path"], row["sha256"]) for row in rows if row["job"] == rows[0]["job"]]


def deliver(
    spool: Spool, destination: str, sender: Sender, settings: Delivery, *, now: float | None = None, log: Log = silent
) -> bool:
    """Try to deliver the files of one job that are due at a destination; False where nothing is due."""
    started = time.time() if now is None else now
    files = due(spool, destination, started, settings.longest_retry_s)
    if not files:
        return False
    job, paths = files[0][0], [path for _, path, _ in files]
    with spool.ledger.transaction() as db:
        tries = db.execute(
            "SELECT MAX(attempts) FROM deliveries WHERE job = ? AND destination = ? AND state = 'pending'",
            (job, destination),
        ).fetchone()[0]
        wait = min(settings.first_retry_s * 2 ** min(tries, _DOUBLINGS), settings.longest_retry_s)
        wait = max(wait, _SHORTEST_WAIT_S)
        db.executemany(
            "UPDATE deliveries SET attempts = attempts + 1, not_before_s = ? WHERE job = ? AND path = ? "
            "AND destination = ?",
            [(started + wait, job, path, destination) for path in paths],
        )
    folder = spool.job("done", job)
    whole = {path: _is_whole(folder / path, digest) for _, path, digest in files}
    outcomes = {path: ("refused", "pixel_data_invalid", False) for path in paths if not whole[path]}
    outcomes.update(_sent(folder, [path for path in paths if whole[path]], sender))
    _enter(spool, job, destination, outcomes, log)
    return True


def _is_whole(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _sent(folder: Path, paths: Sequence[str], sender: Sender) -> dict[str, tuple[str, str, bool]]:
    """Outcome, detail and whether to try again, for every path; what the sender does not speak of has failed."""
    outcomes = dict.fromkeys(paths, ("failed", "no_answer", True))
    if not paths:
        return outcomes
    name_of = {folder / path: path for path in paths}
    try:
        for sent in sender(list(name_of)):
            if sent.path in name_of:
                outcomes[name_of[sent.path]] = (sent.outcome, sent.detail, sent.retry)
    except QsmEdgeError as error:
        outcomes = dict.fromkeys(paths, ("failed", error.code, True))
    except Exception as error:  # the type alone: a message may quote what a peer said
        outcomes = {path: ("failed", type(error).__name__, True) for path in paths}
    return outcomes


def _enter(spool: Spool, job: str, destination: str, outcomes: Mapping[str, tuple[str, str, bool]], log: Log) -> None:
    now = time.time()
    with spool.ledger.transaction() as db:
        for path, (outcome, detail, retry) in outcomes.items():
            state = "pending" if retry else "done" if outcome in ("stored", "committed") else "refused"
            db.execute(
                "UPDATE deliveries SET state = ?, outcome = ?, detail = ?, changed_s = ? "
                "WHERE job = ? AND path = ? AND destination = ? AND state = 'pending'",
                (state, outcome, detail, now, job, path, destination),
            )
    counts = Counter(outcome for outcome, _, _ in outcomes.values())
    details = sorted({detail for _, detail, _ in outcomes.values() if detail})
    facts = {"job": job, "destination": destination, **dict(sorted(counts.items()))}
    log("delivery", {**facts, "detail": ",".join(details)} if details else facts)


def drop_unknown_destinations(spool: Spool, names: Sequence[str], *, log: Log = silent) -> None:
    """Cancel what is due at destinations that the configuration does not name any more."""
    with spool.ledger.transaction() as db:
        for row in list(
            db.execute("SELECT DISTINCT destination FROM deliveries WHERE state IN ('pending', 'refused')")
        ):
            name = row["destination"]
            if name not in names:
                db.execute(
                    "UPDATE deliveries SET state = 'cancelled', changed_s = ? "
                    "WHERE destination = ? AND state IN ('pending', 'refused')",
                    (time.time(), name),
                )
                log("cancelled", {"destination": name, "why": "no longer in the configuration"})
