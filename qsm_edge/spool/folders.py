"""The folders of the spool: names, moves and what reaches the disk when. All of it is private to the user."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qsm_edge.errors import ResourceError, UsageError
from qsm_edge.publish import FULL, sync_file
from qsm_edge.spool.ledger import Ledger

STATES = ("incoming", "held", "ready", "working", "done", "refused", "failed")
#: Where a job's folder lies in each of its states; the other states have none.
JOB_FOLDERS = ("ready", "working", "done", "refused", "failed")
PART = ".part"
LEDGER, _LOCK = "ledger.sqlite", "service.lock"
#: Where less than this is free, what a child could not write was lost to the full disk.
NOTHING_FREE = 1 << 20
_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EXDEV, errno.ENOSYS, errno.EACCES}


@dataclass(frozen=True)
class Spool:
    """An open spool: its folders and its ledger."""

    root: Path
    ledger: Ledger

    def folder(self, state: str) -> Path:
        """The folder of one of `STATES`."""
        return self.root / state

    def instance(self, study: str, name: str) -> Path:
        """Where a held instance lies."""
        return self.root / "held" / study / f"{name}.dcm"

    def job(self, state: str, job: str) -> Path:
        """Where a job lies in one of `JOB_FOLDERS`."""
        return self.root / state / job


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Spool]:
    """Open a spool, made where it is not there. Raises UsageError bad_call where it cannot be, ResourceError."""
    with speaking_of_disk(root):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name != "nt":
            root.chmod(0o700)
        for state in STATES:
            (root / state).mkdir(exist_ok=True, mode=0o700)
        sync_folder(root)
        ledger = Ledger(root / LEDGER)
    try:
        yield Spool(root, ledger)
    finally:
        ledger.close()


@contextlib.contextmanager
def serving(root: Path) -> Iterator[None]:
    """Be the only service on a spool; UsageError bad_call where there is another one. The lock ends with the process."""
    with speaking_of_disk(root):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (root / _LOCK).open("ab")
    with lock:
        try:
            _lock(lock.fileno())
        except OSError as error:
            raise UsageError("bad_call", "another service is working on this spool", where=str(root)) from error
        yield


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def speaking_of_disk(where: Path) -> Iterator[None]:
    """Turn the system's errors about a full or closed disk into ours; no path is named, because files have owners."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise ResourceError("out_of_disk", got=f"{free_bytes(where) / 1e6:.0f} MB free") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            what = "the spool cannot be written to"
            raise UsageError("bad_call", what, where=str(where), got=error.strerror) from error
        raise


def free_bytes(where: Path) -> int:
    """What is free on the disk of `where`, or of the nearest folder above it that is there."""
    there = next(path for path in (where, *where.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def sync_folder(path: Path) -> None:
    """The names in a folder reach the disk, where the system can do that."""
    if os.name == "nt":
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        sync_file(path)


def move(source: Path, target: Path) -> None:
    """Rename so that the new name is on the disk when this returns; replaces a file of that name."""
    sync_folder(place(source, target))


def place(source: Path, target: Path) -> Path:
    """Rename; the new name is on the disk when the folder that is returned has been flushed."""
    if not target.parent.is_dir():
        target.parent.mkdir(mode=0o700, exist_ok=True)
        sync_folder(target.parent.parent)
    os.replace(source, target)
    return target.parent


def build(folder: Path, sources: Iterable[Path]) -> None:
    """Make `folder` with a folder ``in`` of links to `sources` (copies where there are no links), whole or not at all."""
    hidden = folder.with_name(f".{folder.name}")
    remove(hidden)
    (hidden / "in").mkdir(parents=True, mode=0o700)
    for source in sources:
        _link(source, hidden / "in" / source.name)
    sync_folder(hidden / "in")
    sync_folder(hidden)
    remove(folder)
    move(hidden, folder)


def present(files: Iterable[Path]) -> Iterator[Path]:
    """Those that are there: one that somebody took away (`recover` tells of it) must not hold up the others."""
    return (file for file in files if file.is_file())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        sync_file(target)


def clear(path: Path) -> None:
    """Delete what attempts left. What an orphan of theirs has open (Windows) stays for the next start, in nobody's way."""
    with contextlib.suppress(PermissionError):
        remove(path)


def remove(path: Path) -> None:
    """Delete a file or folder if it is there. A folder is first hidden, so that half of one never bears its name."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(f".gone-{path.name.lstrip('.')}")
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
