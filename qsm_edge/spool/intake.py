"""A complete part file -> a held instance, on the disk and in the ledger. When this returns, a door may acknowledge."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from pathlib import Path

from qsm_edge.errors import InputRefused, ResourceError
from qsm_edge.spool.folders import PART, Spool, free_bytes, place, speaking_of_disk, sync_folder
from qsm_edge.spool.log import Log, Origin, silent

CONTENT_DIGITS = 16
MAX_INSTANCE_BYTES = 1 << 30
#: The service keeps so much of the disk for the ledger and for what is being sent.
MIN_FREE_BYTES = 200_000_000


def part_path(spool: Spool) -> Path:
    """A new name in the spool's ``incoming`` for a door to write into."""
    return spool.folder("incoming") / f"{secrets.token_hex(16)}{PART}"


def require_room(spool: Path, size: int, min_free_bytes: int) -> None:
    """Raise ResourceError out_of_disk where `size` bytes would leave less than `min_free_bytes`."""
    free = free_bytes(spool)
    if free < size + min_free_bytes:
        got, wanted = f"{free / 1e6:.0f} MB free", f"{(size + min_free_bytes) / 1e6:.0f} MB"
        raise ResourceError("out_of_disk", got=got, wanted=wanted)


def intake(
    spool: Spool,
    part: Path,
    origin: Origin,
    *,
    max_bytes: int = MAX_INSTANCE_BYTES,
    min_free_bytes: int = MIN_FREE_BYTES,
    log: Log = silent,
) -> str:
    """Take one instance in; returns `held`, `duplicate`, or `ignored` (our own output, or no MR image: not kept).

    part : a file below the spool, written and flushed; it is gone when this returns or raises.

    Raises
    ------
    InputRefused : what `identify` raises; the door must not acknowledge.
    ResourceError : out_of_disk.
    """
    facts: dict[str, object] = {"door": origin.door, "caller": origin.caller, "address": origin.address}
    try:
        with speaking_of_disk(spool.root):
            outcome, sop = _taken(spool, part, origin, max_bytes, min_free_bytes)
    except (InputRefused, ResourceError) as refusal:
        log("turned_away", {**facts, "code": refusal.code})
        raise
    finally:
        part.unlink(missing_ok=True)
    log("received", {**facts, "instance": sop, "outcome": outcome})
    return outcome


def _taken(spool: Spool, part: Path, origin: Origin, max_bytes: int, min_free_bytes: int) -> tuple[str, str]:
    from qsm_edge.dicom.identify import identify

    found = identify(part, max_bytes=max_bytes)
    require_room(spool.root, 0, min_free_bytes)
    with part.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:CONTENT_DIGITS]
    name, size, now = f"{found.sop}-{content}", part.stat().st_size, time.time()
    code = "own_output" if found.ours else "" if found.mr else "not_mr"
    row = (name, found.sop, found.series, found.study, size, found.sop_class, found.transfer_syntax)
    origin_row = (origin.door, origin.caller, origin.address, now)
    if code:
        with spool.ledger.transaction() as db:
            values = (*row, "ignored", code, *origin_row)
            db.execute(f"INSERT OR IGNORE INTO instances VALUES ({','.join('?' * 13)})", values)
        return "ignored", found.sop
    return enter(spool, row, origin_row, part), found.sop


def enter(
    spool: Spool,
    row: tuple[str, str, str, str, int, str, str],
    origin: tuple[str, str, str, float],
    part: Path | None,
) -> str:
    """Move `part` to its place and enter it; returns `held`, or `duplicate` where it was there already.

    The move is inside the transaction, so that a purge of an earlier copy cannot come in between. Where the ledger then
    has no room, the file stays without an entry, and `recover` adopts it. Several doors share a transaction: what comes
    over several associations at once is flushed to the disk together.
    """
    outcomes = ["held"]

    def act(db: sqlite3.Connection) -> Path | None:
        folder = None if part is None else place(part, spool.instance(row[3], row[0]))
        known = db.execute("SELECT state FROM instances WHERE name = ?", row[:1]).fetchone()
        if known is not None and known["state"] == "held":
            outcomes[0] = "duplicate"
            return folder
        db.execute(f"INSERT OR REPLACE INTO instances VALUES ({','.join('?' * 13)})", (*row, "held", "", *origin))
        db.execute(
            "INSERT INTO studies (study, arrivals, received_s) VALUES (?, 1, ?) "
            "ON CONFLICT (study) DO UPDATE SET arrivals = arrivals + 1, received_s = excluded.received_s",
            (row[3], origin[3]),
        )
        return folder

    spool.ledger.together(act)
    return outcomes[0]


def adopt(spool: Spool, path: Path, max_bytes: int = MAX_INSTANCE_BYTES) -> bool:
    """Enter a file that lies in ``held`` and that the ledger does not know; False where it is no instance of its name."""
    from qsm_edge.dicom.identify import identify

    try:
        found = identify(path, max_bytes=max_bytes)
    except InputRefused:
        return False
    if path.parent.name != found.study or not path.stem.startswith(f"{found.sop}-"):
        return False
    sync_folder(path.parent)
    row = (path.stem, found.sop, found.series, found.study, path.stat().st_size)
    enter(spool, (*row, found.sop_class, found.transfer_syntax), ("recovered", "", "", time.time()), None)
    return True
