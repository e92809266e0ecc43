"""Small synthetic scans in every vendor's encoding, and the ways in which an export goes wrong.

A mutation takes the datasets of an acquisition and returns those of the spoilt one; `write` puts them into a folder.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.multival import MultiValue

from dicom_samples.encode import ENCODINGS, encode
from qsm_edge.types import Geometry

SHAPE = (5, 12, 10)  # an odd number of slices: no FFT shift undoes their negation
ECHO_TIMES_S = (0.004, 0.0115, 0.02)
VOXEL_MM = (2.5, 1.25, 0.9)

#: Encodings of scanners whose phase is known to grow, or to fall, with the field.
READABLE = tuple(encoding for encoding in ENCODINGS if encoding not in ("uih", "canon"))

#: Columns of (z, y, x) in LPS; right-handed, as DICOM slices are stacked along their normal.
PLANES = {
    "transverse": [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    "sagittal": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
    "coronal": [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
}


def geometry(plane: str = "transverse", degrees: Sequence[float] = (12.0, -7.0, 4.0), shape=SHAPE) -> Geometry:
    """An oblique grid near one of the patient's planes."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = step @ turn
    axes = np.array(PLANES[plane], dtype=float)  # rows are patient axes, columns array axes
    axes[:, 0] = np.cross(axes[:, 2], axes[:, 1])
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * VOXEL_MM
    affine[:3, 3] = (-31.5, -20.25, 14.125)
    return Geometry(shape, affine)


def signal(shape=SHAPE, echo_times_s: Sequence[float] = ECHO_TIMES_S) -> np.ndarray:
    """Complex (echo, z, y, x): a bright box whose phase grows with the field, in a noise of all phases."""
    rng = np.random.default_rng(7)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = (abs(y) < 0.8) & (abs(x) < 0.8)
    hertz = 60 * y - 25 * x + 12 * z
    out = []
    for time in echo_times_s:
        tissue = np.exp(-time / 0.03) * (1 + 0.3 * x) * np.exp(1j * (0.6 + 0.4 * x + 2 * np.pi * hertz * time))
        out.append(np.where(inside, tissue, 0.03 * np.exp(1j * rng.uniform(-np.pi, np.pi, shape))))
    return np.stack(out)


def encoded(values: np.ndarray, encoding: str) -> list[FileDataset]:
    """The datasets of a signal of one's own."""
    times = ECHO_TIMES_S[: len(values)]
    return encode(values, geometry(shape=values.shape[1:]), times, 3.0, encoding, seed_name="own")


def rewritten(datasets: Iterable[FileDataset], syntax: str, folder_: Path) -> Path:
    """Write datasets into a folder in another uncompressed transfer syntax of the same byte order."""
    for number, dataset in enumerate(datasets):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(folder(folder_) / f"{number}", enforce_file_format=True)
    return folder_


def folder(path: Path) -> Path:
    """A folder, made where it is not there."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def scan(
    encoding: str = "siemens_classic",
    *,
    name: str = "one",
    plane: str = "transverse",
    degrees: Sequence[float] = (12.0, -7.0, 4.0),
    shape=SHAPE,
    echo_times_s: Sequence[float] = ECHO_TIMES_S,
    b0_tesla: float = 3.0,
) -> list[FileDataset]:
    """The datasets of one small acquisition, fresh ones at every call."""
    contents = _encoded(encoding, name, (plane, tuple(degrees), tuple(shape)), tuple(echo_times_s), b0_tesla)
    datasets = []
    for content in contents:
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.encoded, dataset.held = content, len(dataset)
        datasets.append(dataset)
    return datasets


@lru_cache(maxsize=64)
def _encoded(encoding, name, grid, echo_times_s, b0_tesla) -> tuple[bytes, ...]:
    where, contents = geometry(*grid), []
    for dataset in encode(signal(where.shape, echo_times_s), where, echo_times_s, b0_tesla, encoding, seed_name=name):
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        contents.append(buffer.getvalue())
    return tuple(contents)


def write(datasets: Iterable[FileDataset], folder: Path, name: Callable[[int], str] = "IM{:05d}".format) -> Path:
    """Write datasets into `folder`, under ``name(number)``, with meta headers that name what the files hold."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets, start=len(list(folder.iterdir())) + 1):
        if _untouched(dataset):
            (folder / name(number)).write_bytes(dataset.encoded)
        else:
            dataset.save_as(folder / name(number), enforce_file_format=True)
    return folder


def _untouched(dataset: FileDataset) -> bool:
    """Whether nothing was changed, deleted or even looked at since `scan`: most images of a spoilt acquisition."""
    encoded = getattr(dataset, "encoded", b"")
    raw = all(isinstance(element, RawDataElement) for element in dataset.values())
    return raw and bool(encoded) and len(dataset) == dataset.held


# -------------------------------------------------------------------------------------------- what an image is


def _texts(dataset: FileDataset, keyword: str) -> list[str]:
    """The values of a text element, left as they were read."""
    value = dataset.get_item(keyword).value
    if isinstance(value, bytes):
        return value.decode("ascii").strip(" \0").split("\\")
    return [str(v) for v in value] if isinstance(value, (list, MultiValue)) else [str(value)]


def component(dataset: FileDataset) -> str:
    """M, P, R or I of a classic dataset."""
    if (0x0043, 0x102F) in dataset:
        value = dataset.get_item((0x0043, 0x102F)).value
        return "MPRI"[int.from_bytes(value, "little") if isinstance(value, bytes) else value]
    types = [text.strip() for text in _texts(dataset, "ImageType")]
    return next(c for c in "MPRI" if c in types[2:])


def echo_time_ms(dataset: FileDataset) -> float:
    """The echo time of a classic dataset."""
    return float(_texts(dataset, "EchoTime")[0])


def place(dataset: FileDataset) -> float:
    """Where a classic dataset's slice lies along its normal."""
    orientation = np.array(_texts(dataset, "ImageOrientationPatient"), float)
    return float(np.array(_texts(dataset, "ImagePositionPatient"), float) @ np.cross(orientation[:3], orientation[3:]))


def slice_of(datasets: Sequence[FileDataset], index: int) -> float:
    """The place of slice `index` of an acquisition."""
    return sorted({round(place(d), 3) for d in datasets})[index]


def matching(
    datasets: Sequence[FileDataset], *, parts: str = "MPRI", echo: int | None = None, slice_: int | None = None
) -> list[FileDataset]:
    """The classic datasets of some components, one echo (from 0), one slice (from 0)."""
    times = sorted({echo_time_ms(d) for d in datasets})
    where = None if slice_ is None else slice_of(datasets, slice_)
    return [
        d
        for d in datasets
        if component(d) in parts
        and (echo is None or echo_time_ms(d) == times[echo])
        and (where is None or abs(place(d) - where) < 0.01)
    ]


# -------------------------------------------------------------------------------------------- how it goes wrong


def without(datasets: Sequence[FileDataset], **which) -> list[FileDataset]:
    """All but the datasets that `matching` finds."""
    gone = {id(d) for d in matching(datasets, **which)}
    assert gone
    return [d for d in datasets if id(d) not in gone]


def with_copy(datasets: Sequence[FileDataset], **which) -> list[FileDataset]:
    """One more image like those that `matching` finds, of its own UID."""
    copies = [copy.deepcopy(d) for d in matching(datasets, **which)]
    for d in copies:
        d.SOPInstanceUID = d.SOPInstanceUID + ".1"
    return [*datasets, *copies]


def changed(datasets: Sequence[FileDataset], change: Callable[[FileDataset], None], **which) -> list[FileDataset]:
    """`change` applied to the datasets that `matching` finds."""
    chosen = matching(datasets, **which)
    assert chosen
    for d in chosen:
        change(d)
    return list(datasets)


def repeated(datasets: Sequence[FileDataset], change: Callable[[FileDataset], None]) -> list[FileDataset]:
    """The acquisition and a second one like it in the same study, `change` applied to the second one."""
    again = [copy.deepcopy(d) for d in datasets]
    for d in again:
        d.SOPInstanceUID = d.SOPInstanceUID + ".2"
        change(d)
    return [*datasets, *again]
