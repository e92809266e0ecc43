"""The same object twice: an identical copy is dropped, anything else is a fault of the acquisition."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from qsm_edge.dicom.pixels import read_stored
from qsm_edge.dicom.records import Image, StoredFile, Verdict
from qsm_edge.errors import InputRefused

_CHUNK = 1 << 20


def drop_duplicates(images: Iterable[Image]) -> tuple[list[Image], dict[str, int]]:
    """The images without identical copies, and how many copies were dropped of each series.

    Of two files with one SOP instance UID that differ, one image is kept and bears the fault.
    """
    files: dict[str, dict[str, list[Image]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        files[image.file.sop_instance_uid][str(image.file.path)].append(image)
    kept: list[Image] = []
    dropped: dict[str, int] = defaultdict(int)
    for copies in files.values():
        first, *others = copies.values()
        fault = next((f for f in (_difference(first, other) for other in others) if f is not None), None)
        kept += [replace(image, fault=image.fault or fault) for image in first] if fault else first
        dropped[first[0].series_uid] += len(others)
    return kept, {series: count for series, count in dropped.items() if count}


def _difference(first: list[Image], other: list[Image]) -> Verdict | None:
    if first[0].patient != other[0].patient:
        return Verdict("two_patients", "two files with one UID name two patients", refuse=True)
    if first != other:
        return Verdict("same_uid_other_pixels", "two files share a UID and differ in their headers", refuse=True)
    if first[0].fault is not None:
        return None
    try:
        if _digest(first[0].file) == _digest(other[0].file) or _same_values(first, other):
            return None
    except InputRefused as refusal:
        return Verdict(refusal.code, refusal.what, refuse=True)
    except OSError:
        return Verdict("unreadable_file", "the file cannot be read", refuse=True)
    return Verdict("same_uid_other_pixels", "two files share a UID and differ in their pixels", refuse=True)


def _same_values(first: Sequence[Image], other: Sequence[Image]) -> bool:
    """Whether two files hold the same pixels, however they are compressed and whatever follows them."""
    one, two = first[0].file, other[0].file
    if (one.rows, one.columns, one.frames, one.bits_stored) != (two.rows, two.columns, two.frames, two.bits_stored):
        return False
    used = np.uint16((1 << one.bits_stored) - 1)
    return bool(np.array_equal(read_stored([first]) & used, read_stored([other]) & used))


def _digest(file: StoredFile) -> bytes:
    """A digest of everything from the start of the pixel data on: equal files need no decoding."""
    digest = hashlib.sha256(f"{file.transfer_syntax} {file.rows} {file.columns} {file.frames}".encode())
    with file.path.open("rb") as handle:
        handle.seek(0 if file.transfer_syntax.endswith(".99") else max(file.offset, 0))
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
