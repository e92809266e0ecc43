"""A plan's files -> stored values, 16 bits each, in (echo, z, y, x) order.

Uncompressed values are read straight from where they lie; compressed frames are decoded by pydicom and its plugins.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from qsm_edge.dicom.header import BIG_ENDIAN, DEFLATED, NATIVE, inflated
from qsm_edge.dicom.records import Image, StoredFile
from qsm_edge.errors import InputRefused

#: Enough to keep a disk busy.
_THREADS = min(4, os.cpu_count() or 1)
#: Files that a thread reads at a go.
_BATCH = 16

#: The number of a frame in its file from 0, its echo and its slice.
Frame = tuple[int, int, int]
Take = Callable[[int, int, np.ndarray], None]


def read_stored(echoes: Sequence[Sequence[Image]]) -> np.ndarray:
    """The stored values of one component as uint16 (echo, z, y, x); signed values keep their bit pattern.

    Raises
    ------
    InputRefused
        What `read_planes` raises.
    """
    first = echoes[0][0].file
    out = np.empty((len(echoes), len(echoes[0]), first.rows, first.columns), dtype=np.uint16)

    def take(e: int, z: int, plane: np.ndarray) -> None:
        out[e, z] = plane

    read_planes(echoes, take)
    return out


def read_planes(echoes: Sequence[Sequence[Image]], take: Take) -> None:
    """Give `take` the echo, the slice and the stored values (y, x) of every image of one component, in no order.

    It is called from several threads at once, and the values are gone when it returns.

    Raises
    ------
    InputRefused
        truncated_file, unreadable_file (a disk or a share fails), pixel_data_invalid, codec_missing, and what
        `header.inflated` raises.
    """
    first = echoes[0][0].file
    shape = first.rows, first.columns
    wanted: dict[StoredFile, list[Frame]] = defaultdict(list)
    for e, images in enumerate(echoes):
        for z, image in enumerate(images):
            wanted[image.file].append((max(image.frame, 1) - 1, e, z))
    native = [(file, frames) for file, frames in wanted.items() if file.transfer_syntax in NATIVE]

    def fill(jobs: Sequence[tuple[StoredFile, list[Frame]]]) -> None:
        plane = np.empty(shape, dtype=np.uint16)
        for file, frames in jobs:
            try:
                _read_native(file, frames, plane, take)
            except OSError as error:
                raise _unreadable(file, error) from None

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(fill, (native[start : start + _BATCH] for start in range(0, len(native), _BATCH))):
            pass
    for file, frames in wanted.items():  # decoders promise nothing about threads
        if file.transfer_syntax not in NATIVE:
            _read_decoded(file, frames, shape, take)


def _read_decoded(file: StoredFile, frames: list[Frame], shape: tuple[int, int], take: Take) -> None:
    for (_, e, z), values in zip(frames, _decoded(file, [index for index, _, _ in frames]), strict=True):
        if values.shape != shape or values.dtype.itemsize != 2:
            raise InputRefused("pixel_data_invalid", where=file.shown, got=f"{values.shape} {values.dtype}")
        take(e, z, values.view(np.uint16))


def _unreadable(file: StoredFile, error: OSError) -> InputRefused:
    """A failing disk, a share that went away, a file that was removed: of the input, and no fault of ours."""
    return InputRefused("unreadable_file", "the file cannot be read", where=file.shown, got=error.strerror or "")


def _read_native(file: StoredFile, frames: list[Frame], plane: np.ndarray, take: Take) -> None:
    size = file.rows * file.columns * 2
    with file.path.open("rb") as handle:
        content: bytes | None = None
        if file.transfer_syntax == DEFLATED:
            content = inflated(file.path, file.shown)
        for index, e, z in frames:
            start = file.offset + index * size
            if content is None:
                handle.seek(start)
                held = handle.readinto(memoryview(plane).cast("B"))  # type: ignore[arg-type]
            else:
                part = content[start : start + size]
                held = len(part)
                if held == size:
                    plane[...] = np.frombuffer(part, "<u2").reshape(plane.shape)
            if held != size:
                raise InputRefused("truncated_file", where=file.shown)
            if file.transfer_syntax == BIG_ENDIAN:
                plane.byteswap(inplace=True)
            take(e, z, plane)


def _decoded(file: StoredFile, indices: list[int]) -> Iterator[np.ndarray]:
    """The frames of a compressed object, as stored (no colour, no rescale)."""
    import pydicom
    from pydicom.pixels import get_decoder

    name = pydicom.uid.UID(file.transfer_syntax).name
    decoder = get_decoder(file.transfer_syntax)
    if not decoder.is_available:
        what = f'the images are compressed ({name}); install the decoders with: pip install "qsm-edge[codecs]"'
        raise InputRefused("codec_missing", what, where=file.shown)
    plugins: tuple[str, ...] = decoder.available_plugins
    plugin = "gdcm" if "gdcm" in plugins else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset: Any = pydicom.dcmread(file.path)
            for index in indices:
                yield decoder.as_array(dataset, index=index, raw=True, decoding_plugin=plugin)[0]
    except InputRefused:
        raise
    except Exception as error:  # a decoder fails on broken input in any way it likes
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreadable(file, error) from None
        raise InputRefused("pixel_data_invalid", where=file.shown, got=type(error).__name__) from None
