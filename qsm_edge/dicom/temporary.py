"""Folders for what is taken out of archives: removed when they are closed, or by the next call after a crash.

Whoever owns a folder holds a lock on a file in it for as long as it lives. The operating system drops the lock with the
process, whatever ends it, so that a folder whose lock is free has no owner; a process number could be somebody else's
by then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed: that is the lock
    fcntl = None  # type: ignore[assignment]

PREFIX = "qsm-edge-"
_LOCK = "owner.lock"


class Folder(tempfile.TemporaryDirectory[str]):
    """A temporary folder that the next `sweep` removes if this process does not come to it."""

    def __init__(self) -> None:
        super().__init__(prefix=PREFIX)
        try:
            self._lock = _locked(Path(self.name))
        except BaseException:
            super().cleanup()
            raise

    def cleanup(self) -> None:
        self._lock.close()
        super().cleanup()


def _locked(folder: Path) -> BinaryIO:
    """The open lock of a new folder. Under its final name it is never seen free, so that no sweep takes the folder."""
    made = folder / (_LOCK if fcntl is None else f"{_LOCK}.new")
    lock = made.open("wb")
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks: nobody else will ever remove the folder
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.rename(folder / _LOCK)
    return lock


def sweep() -> None:
    """Remove the folders of ours, below the temporary folder, whose owners are gone; anything unclear stays."""
    try:
        folders = [Path(entry.path) for entry in os.scandir(tempfile.gettempdir()) if entry.name.startswith(PREFIX)]
    except OSError:
        return
    for folder in folders:
        with contextlib.suppress(OSError):
            if _is_orphan(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(folder: Path) -> bool:
    """Whether it is a folder (no link to one) of this user that nobody holds."""
    lock, status = folder / _LOCK, folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or not stat.S_ISREG(lock.lstat().st_mode):
        return False
    if fcntl is None:
        lock.unlink()  # fails while its owner has it open
        return True
    if status.st_uid != os.getuid():
        return False
    with lock.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
