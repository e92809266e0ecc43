"""A folder, a file or an archive -> the acquisitions in it, what is refused and why, and what is no acquisition.

Nothing is dropped without a word: every file belongs to an acquisition, or is listed as refused (it looks like a
gradient-echo acquisition, or like DICOM, and cannot be used) or as ignored (anything else). `sort` says which is which.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from qsm_edge.dicom.acquisition import Acquisition
from qsm_edge.dicom.archive import extract
from qsm_edge.dicom.duplicates import drop_duplicates
from qsm_edge.dicom.instances import read_images
from qsm_edge.dicom.privacy import without_patient
from qsm_edge.dicom.records import Ignored, Image, Refusal, StoredFile
from qsm_edge.dicom.sort import sort_study
from qsm_edge.dicom.temporary import Folder, sweep
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.types import GreSeries

Progress = Callable[[int, int], None]

#: Names by which a file claims to be DICOM; what claims it and is not is pointed out.
_DICOM_NAMES = (".dcm", ".dicom", ".dic", ".ima")
#: Ignored beside something usable or refused; where there is nothing else, they are why nothing was done.
_REASONS_FOR_NOTHING = ("no_phase", "unknown_component", "derived_image")


@dataclass(frozen=True)
class Inventory:
    """What was found. Close it (or use it in a ``with``) when the acquisitions are loaded: an archive's files go."""

    acquisitions: tuple[Acquisition, ...]
    refused: tuple[Refusal, ...]
    ignored: tuple[Ignored, ...]
    folder: Folder | None = field(default=None, repr=False)

    def close(self) -> None:
        """Remove what was extracted."""
        if self.folder is not None:
            self.folder.cleanup()

    def __enter__(self) -> Inventory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find(path: Path, *, progress: Progress | None = None) -> Inventory:
    """Look through a file, a folder at any depth, a DICOMDIR's folder or a .zip; reads headers, no pixels.

    Parameters
    ----------
    progress
        Called as ``progress(files looked at, files there are)``.

    Raises
    ------
    UsageError
        bad_call where there is no such file or folder.
    InputRefused, ResourceError
        What `archive.extract` raises.
    """
    path = Path(path)
    sweep()
    if not path.exists():
        raise UsageError("bad_call", "there is no such file or folder")
    if path.is_file() and path.suffix.lower() == ".zip":
        folder = Folder()
        try:
            return _look_through(extract(path, Path(folder.name)), [], progress, folder)
        except BaseException:
            folder.cleanup()
            raise
    files, ignored = _files_below(path)
    return _look_through(files, ignored, progress, None)


def read_series(path: Path | str) -> GreSeries:
    """Read the one acquisition that there is below `path`.

    Raises
    ------
    InputRefused
        Why it cannot be used; two_acquisitions where there are several, no_phase or not_gre where there is none.
    UsageError
        bad_call where there is no such file or folder.
    """
    with find(Path(path)) as inventory:
        if len(inventory.acquisitions) == 1:
            return inventory.acquisitions[0].load()
        if inventory.acquisitions:
            got = f"{len(inventory.acquisitions)} acquisitions"
            raise InputRefused("two_acquisitions", "there is more than one acquisition", got=got, wanted="one")
        for refusal in inventory.refused:
            raise InputRefused(refusal.code, refusal.text, where=refusal.series)
        raise InputRefused("not_gre", "there is no gradient-echo acquisition")


def _files_below(path: Path) -> tuple[list[tuple[Path, str]], list[Ignored]]:
    """The regular files below a folder (or beside a DICOMDIR, or the file itself) with their names below it."""
    if path.is_file() and path.name.upper() != "DICOMDIR":
        return [(path, path.name)], []
    root = path.parent if path.is_file() else path
    inside, files, outside = root.resolve(), [], []
    for folder, folders, names in os.walk(root):
        folders.sort()
        linked = (Path(folder) / name for name in folders)
        outside += [str(link.relative_to(root)) for link in linked if link.is_symlink()]
        for name in sorted(names):
            file = Path(folder) / name
            shown = str(file.relative_to(root))
            try:
                regular = stat.S_ISREG(file.stat().st_mode)
            except OSError:  # a dangling link, a file that went away
                regular = False
            if regular and (not file.is_symlink() or file.resolve().is_relative_to(inside)):
                files.append((file, shown))
            else:
                outside.append(shown)
    links = [Ignored("not_dicom", "links that lead outside, and what is no file", tuple(outside))] if outside else []
    return files, links


def _look_through(
    files: list[tuple[Path, str]],
    ignored: list[Ignored],
    progress: Progress | None,
    folder: Folder | None,
) -> Inventory:
    images: list[Image] = []
    patients: set[str] = set()
    spoilt: dict[tuple[str, str], list[str]] = defaultdict(list)
    strays: dict[tuple[str, str], list[str]] = defaultdict(list)
    for number, (path, shown) in enumerate(files, start=1):
        try:
            found = read_images(path, shown, patients)
        except Exception as error:  # whatever a hostile file does to the parser, the others go on
            code, text = "corrupt_header", f"the file cannot be understood ({type(error).__name__})"
            if isinstance(error, OSError):
                code, text = "unreadable_file", "the file cannot be read"
            if isinstance(error, InputRefused):
                code, text = error.code, error.what
            if code in ("not_dicom", "empty_file") and not shown.lower().endswith(_DICOM_NAMES):
                strays[code, text].append(shown)
            else:
                spoilt[code, text].append(shown)
        else:
            if isinstance(found, list):
                images += found
            else:
                strays[found.code, found.text].append(shown)
        if progress is not None:
            progress(number, len(files))
    refused = [Refusal(code, text, "", _hidden(shown, patients)) for (code, text), shown in spoilt.items()]
    ignored = [replace(links, files=_hidden(links.files, patients)) for links in ignored]
    ignored += [Ignored(code, text, _hidden(shown, patients)) for (code, text), shown in strays.items()]
    kept, dropped = drop_duplicates(_without_names(images, patients))
    acquisitions: list[Acquisition] = []
    for study in _by_study(kept):
        sorted_ = sort_study(study, dropped)
        acquisitions += sorted_.acquisitions
        refused += sorted_.refused
        ignored += sorted_.ignored
    if not acquisitions and not refused:
        refused = [Refusal(i.code, i.text, "", i.files) for i in ignored if i.code in _REASONS_FOR_NOTHING]
        ignored = [i for i in ignored if i.code not in _REASONS_FOR_NOTHING]
    return Inventory(tuple(acquisitions), tuple(refused), tuple(ignored), folder)


def _hidden(names: Iterable[str], patients: Set[str]) -> tuple[str, ...]:
    return tuple(without_patient(name, patients) for name in names)


def _without_names(images: Iterable[Image], patients: Set[str]) -> Iterator[Image]:
    """The images, their files shown under names without a patient's."""
    files: dict[Path, StoredFile] = {}
    for image in images:
        file = files.get(image.file.path)
        if file is None:
            shown = without_patient(image.file.shown, patients)
            file = image.file if shown == image.file.shown else replace(image.file, shown=shown)
            files[image.file.path] = file
        yield image if file is image.file else replace(image, file=file)


def _by_study(images: Iterable[Image]) -> Iterator[list[Image]]:
    """Images by study; a series that names two studies stays together, to be refused as one."""
    home: dict[str, str] = {}
    studies: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        studies[home.setdefault(image.series_uid, image.study_uid)].append(image)
    yield from studies.values()
