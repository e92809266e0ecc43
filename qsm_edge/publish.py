"""Layer 5: a result folder appears whole under its name, or not at all.

Files are written into a hidden folder beside the final one, flushed to the disk, and renamed. A crash at any moment
leaves hidden folders only, and `recover` clears them up at the next run: unfinished work is deleted, and a finished
folder that was on its way out when the crash came is put back. Only folders that this program made of the same
acquisition with the same settings are ever replaced; whatever else bears the name is left alone and the result takes the
next free name.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qsm_edge.errors import ResourceError, UsageError

#: Inside a result folder: which acquisition it was made of.
MARKER = ".qsm-edge.json"

#: The folders of a result, one a DICOM series.
SERIES = ("chi", "t2star", "r2star", "swi", "smwi", "swi_mip", "chi_sd")
#: What the system says when there is no room.
FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_HIDDEN = re.compile(r"^\.(?P<name>.+)\.(?P<kind>partial|old)-\d+(\.\d+)?$")
_DAY_S = 86400.0
#: Files that are flushed to the disk at once.
_SYNCING = 4
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def safe_name(text: str) -> str:
    """A folder name out of `text` that every file system takes: ASCII letters, digits, ``._-``, at most 80."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:80].rstrip("._-") or "acquisition"
    return f"_{name}" if name.split(".")[0].lower() in _RESERVED else name


def publish(parent: Path, name: str, identity: str, write: Callable[[Path], None], keep: Sequence[Path] = ()) -> Path:
    """Let `write` fill a hidden folder, then give that folder its final name; returns the final path.

    Parameters
    ----------
    parent : the folder that holds the results; it exists.
    name : the wished name (made safe); ``-2``, ``-3``, ... is appended where another thing has it.
    identity : says of which acquisition and how the result was made; an earlier result of the same identity is replaced.
    write : fills the folder that it is given.
    keep : files and folders that must survive, such as the input and a mask given by the user.

    Raises
    ------
    UsageError (bad_call) before anything is written, where the replaced folder would take one of `keep` with it, or
    nothing can be written there at all. ResourceError (out_of_disk) when the disk is full. Whatever is raised, by
    `write` too: the hidden folder is gone and an earlier result is where it was.
    """
    name = safe_name(name)
    check_replaceable(parent, name, identity, keep)
    with speaking_of_disk(parent):
        partial, lock = _begin(parent, name)
    try:
        with speaking_of_disk(parent):
            _mark(partial, identity)
            write(partial)
            _flush(partial)
            return _place(partial, parent, name, identity)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def place_in(folder: Path, identity: str, names: Sequence[str], write: Callable[[Path], None]) -> Path:
    """Let `write` make files `names` in a hidden folder, then move them into `folder`, which is the user's own; returns that.

    Each appears whole, in the order of `names`, so that the last of them says that all are there. What is in the way is
    for `check_placeable` to find, before anything is computed. Errors as of `publish`.
    """
    with speaking_of_disk(folder):
        partial, lock = _begin(folder, "files")
    try:
        with speaking_of_disk(folder):
            _mark(partial, identity)
            write(partial)
            _flush(partial)
            for name in (MARKER, *names):
                os.replace(partial / name, folder / name)
            _sync_folder(folder)
            return folder
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def check_placeable(folder: Path, identity: str, names: Sequence[str], keep: Sequence[Path]) -> None:
    """Raise UsageError (bad_call) where `place_in` would replace what is not an earlier result of the same `identity`."""
    there = [folder / name for name in names if (folder / name).exists()]
    if (there and made_of(folder) != identity) or any(path.samefile(mine) for path in keep for mine in there):
        what = "the output folder holds a file of that name, of another image or made with other settings"
        raise UsageError("bad_call", what, where=str(there[0]), wanted="another folder")


def _mark(folder: Path, identity: str) -> None:
    marker = {"software": "qsm-edge", "acquisition": identity}
    (folder / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")


def check_replaceable(parent: Path, name: str, identity: str, keep: Sequence[Path]) -> None:
    """Raise UsageError (bad_call) where the folder that `publish` would replace holds one of the paths `keep`."""
    target = _target(parent, safe_name(name), identity).resolve()
    inside = [path for path in keep if target in (path.resolve(), *path.resolve().parents)]
    if inside and target.exists():
        what = "the output would replace the folder that holds this run's own input or mask; copy it elsewhere first"
        raise UsageError("bad_call", what, where=str(target), got=str(inside[0]))


def recover(parent: Path) -> list[str]:
    """Clear up after runs that were cut off: deletes unfinished folders, returns the names of results put back.

    Folders that a living process is still writing into are recognised by their lock and left alone, and so is
    everything that this program did not make.
    """
    if not parent.is_dir():
        return []
    with speaking_of_disk(parent), _alone(parent):
        return [name for path in sorted(parent.iterdir()) if (name := _recover_one(parent, path))]


def _recover_one(parent: Path, path: Path) -> str | None:
    match, identity = _HIDDEN.match(path.name), made_of(path)
    if match is None or path.is_symlink() or not path.is_dir():
        return None
    # A marker may have been cut off, too.
    if identity is None and any(inside.name != MARKER for inside in path.iterdir()):
        return None
    if match["kind"] == "partial" or identity is None:
        _delete_abandoned(path)
        return None
    final = _target(parent, match["name"], identity)
    if final.exists():  # the new result was in place, and only the old one was not yet deleted
        _discard(path, final)
        return None
    os.rename(path, final)
    return final.name


def made_of(path: Path) -> str | None:
    """The identity of the acquisition that the result folder `path` was made of; None for any other folder or file."""
    try:
        with open(path / MARKER, encoding="utf-8") as marker:
            said = json.loads(marker.read(4096))
        return str(said["acquisition"]) if said["software"] == "qsm-edge" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def speaking_of_disk(where: Path) -> Iterator[None]:
    """Turn the operating system's errors about a full or closed disk at `where` into ours, with numbers."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            free = f"{shutil.disk_usage(where).free / 1e6:.0f} MB free, or the quota used up"
            raise ResourceError("out_of_disk", where=str(where), got=free) from error
        if error.errno in _READ_ONLY:
            what = "the output folder cannot be written to, or a file in it is open in another program"
            raise UsageError("bad_call", what, where=str(where), got=error.strerror) from error
        raise


def _target(parent: Path, name: str, identity: str) -> Path:
    """The folder called name, name-2, ... that holds the same acquisition, else the first of them that is free."""
    taken = {path.name: path for path in parent.iterdir() if re.fullmatch(re.escape(name) + r"(-[1-9]\d*)?", path.name)}
    for path in sorted(taken.values()):
        if made_of(path) == identity:
            return path
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return parent / next(free for free in names if free not in taken)


def _begin(parent: Path, name: str) -> tuple[Path, int | None]:
    """A new hidden folder, and its lock where the file system has locks."""
    with _alone(parent):
        partial = _hidden(parent, name, "partial")
        os.mkdir(partial)
        return partial, _lock(partial)


def _hidden(parent: Path, name: str, kind: str) -> Path:
    """A free hidden path; process numbers repeat between containers that share a folder, hence the counter."""
    tries = (f".{name}.{kind}-{os.getpid()}{f'.{number}' if number else ''}" for number in itertools.count())
    return next(parent / hidden for hidden in tries if not (parent / hidden).exists())


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Hold the lock of the output folder for the short moments in which names are taken, given up or cleared away."""
    descriptor = _lock(parent, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(path: Path, *, wait: bool = False) -> int | None:
    """An open, locked descriptor of the folder, freed by the system when its process ends.

    None where there are no such locks. Raises BlockingIOError when another process holds it and `wait` is False.
    """
    if os.name == "nt":  # an open file inside keeps a folder from being deleted there
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some network file systems cannot lock folders
        os.close(descriptor)
        return None
    return descriptor


def _delete_abandoned(partial: Path) -> None:
    """Delete an unfinished folder whose writer is gone."""
    try:
        descriptor = _lock(partial)
    except BlockingIOError:
        return
    if descriptor is not None or time.time() - partial.stat().st_mtime > _DAY_S:
        shutil.rmtree(partial, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def _flush(root: Path) -> None:
    """Everything below `root` reaches the disk before the name does: a rename may otherwise outrun the contents."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_SYNCING) as pool:  # a disk that is asked for several at once writes them in one go
        for path, _, files in os.walk(root):
            for _ in pool.map(sync_file, [Path(path) / file for file in files]):
                pass
            _sync_folder(Path(path))


def sync_file(path: Path) -> None:
    """The contents of a file reach the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if os.name != "nt":
        with contextlib.suppress(OSError):  # a file system without it has nothing better to offer
            sync_file(path)


def _place(partial: Path, parent: Path, name: str, identity: str) -> Path:
    """Rename `partial` to its final name; an earlier result of the same acquisition steps aside first."""
    with _alone(parent):
        final = _target(parent, name, identity)
        aside = _hidden(parent, final.name, "old")
        replaced = final.exists()
        if replaced:
            os.rename(final, aside)
        try:
            os.rename(partial, final)
        except BaseException:
            if replaced:
                os.rename(aside, final)
            raise
        _sync_folder(parent)
        if replaced:
            _discard(aside, final)
        return final


def _discard(old: Path, new: Path) -> None:
    """Delete an earlier result; what a user put beside our files in it moves on into the new one."""
    ours = {
        MARKER,
        *SERIES,
        "mask.dcm",
        "mask.nii.gz",
        "mask.json",
        "report.html",
        "report.json",
        "preview.png",
        "nifti",
        "parametric_map.dcm",
    }
    for entry in list(old.iterdir()):
        if entry.name not in ours and not (new / entry.name).exists():
            with contextlib.suppress(OSError):
                os.rename(entry, new / entry.name)
    shutil.rmtree(old, ignore_errors=True)
