"""The second door: a folder that others write into. What stays the same for a while is copied in; nothing is deleted.

A file is taken once: the ledger remembers a hash of its path with size and time of change, so that originals may stay.
Where they are to be moved, they go into a folder ``taken`` beside the first level, under the path that they had.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from qsm_edge.errors import InputRefused, ResourceError
from qsm_edge.publish import FULL, sync_file
from qsm_edge.spool.config import Watch
from qsm_edge.spool.folders import Spool, free_bytes, sync_folder
from qsm_edge.spool.intake import MAX_INSTANCE_BYTES, MIN_FREE_BYTES, intake, part_path, require_room
from qsm_edge.spool.log import Log, Origin, silent

TAKEN = "taken"
#: How long one look takes files in.
FOR_S = 5.0
#: The clock of a file that was taken in: it is still for ever.
_TAKEN_S = math.inf

#: What a file looked like, and since when it has been like that: path -> (size, time of change in ns, clock in s).
Seen = dict[Path, tuple[int, int, float]]


def scan(
    spool: Spool,
    watch: Watch,
    seen: Seen,
    clock: float,
    *,
    max_bytes: int = MAX_INSTANCE_BYTES,
    min_free_bytes: int = MIN_FREE_BYTES,
    for_s: float = FOR_S,
    log: Log = silent,
) -> int:
    """Take in what has been the same for ``watch.still_s``; returns how many files are left, or 1 for a look cut short.

    seen : kept by the caller between calls. clock : seconds, monotonic. for_s : after this the rest waits for the next
    call, so that a full folder does not hold up the service.

    Raises
    ------
    ResourceError : out_of_disk; the file stays and is tried again at the next call.
    """
    if not watch.folder.is_dir():
        log("watch_missing", {"code": "unreadable_file"})
        return 0
    there, moving, begun = set(), 0, time.monotonic()
    for path, size, changed_ns in _files(watch.folder):
        there.add(path)
        before = seen.get(path)
        if before == (size, changed_ns, _TAKEN_S):
            continue
        if before is None and _known(spool, path, size, changed_ns):
            seen[path] = (size, changed_ns, _TAKEN_S)
            continue
        if before is None or before[:2] != (size, changed_ns):
            before = seen[path] = (size, changed_ns, clock)
        if clock - before[2] < watch.still_s:
            moving += 1
            continue
        require_room(spool.root, size, min_free_bytes)
        if _take(spool, watch, path, size, changed_ns, max_bytes, min_free_bytes, log):
            seen[path] = (size, changed_ns, _TAKEN_S)
        if time.monotonic() - begun > for_s:
            return moving + 1
    for path in seen.keys() - there:
        del seen[path]
    return moving


def _files(root: Path) -> Iterator[tuple[Path, int, int]]:
    """Regular files below a folder with size and time of change; links are not followed."""
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name != TAKEN]
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield path, status.st_size, status.st_mtime_ns


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()


def _known(spool: Spool, path: Path, size: int, changed_ns: int) -> bool:
    question = "SELECT 1 FROM watched WHERE file = ? AND size = ? AND changed_ns = ?"
    return bool(spool.ledger.rows(question, (_key(path), size, changed_ns)))


def _take(
    spool: Spool, watch: Watch, path: Path, size: int, changed_ns: int, max_bytes: int, min_free_bytes: int, log: Log
) -> bool:
    """Take a file in and remember it; False where it could not be read whole and is to be looked at again."""
    part = part_path(spool)
    try:
        try:
            with path.open("rb") as source, part.open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
            sync_file(part)
        except OSError as error:
            if error.errno in FULL:
                raise ResourceError("out_of_disk", got=f"{free_bytes(spool.root) / 1e6:.0f} MB free") from error
            return False  # gone again, or closed to us: the next look will tell
        if part.stat().st_size != size:  # it grew after all
            return False
        outcome = intake(spool, part, Origin("folder"), max_bytes=max_bytes, min_free_bytes=min_free_bytes, log=log)
    except InputRefused as refusal:
        outcome = refusal.code
    finally:
        part.unlink(missing_ok=True)
    if watch.originals == "move" and outcome in ("held", "duplicate", "ignored") and _set_aside(watch.folder, path):
        return True
    with spool.ledger.transaction() as db:
        db.execute("INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?)", (_key(path), size, changed_ns, outcome))
    return True


def _set_aside(root: Path, path: Path) -> bool:
    """Move a file that was taken in; another one of its name there is kept. False where that cannot be done."""
    target = root / TAKEN / path.relative_to(root)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{path.name}-{number}")
        os.rename(path, target)
        sync_folder(target.parent)
    except OSError:
        return False
    return True
