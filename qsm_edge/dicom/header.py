"""One file -> its header: opened without trust, the place of its pixels noted, the pixels left where they are.

Elements are read as plain text and numbers when they are asked for, so that one bad value spoils one answer and not
the file.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from qsm_edge.dicom.elements import UNDEFINED, Absurd, Content, Elements, Short, read_elements
from qsm_edge.errors import InputRefused

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)

#: A header is read in windows of these sizes until it is complete; the last is the limit for an honest file.
_WINDOWS = (128 << 10, 8 << 20, 256 << 20)
#: A deflated dataset may grow by this factor, from this size on: images shrink to a half, an empty one to a thousandth.
MAX_INFLATION, INFLATION_COUNTS_FROM, MAX_INFLATED_BYTES = 50, 64 << 20, 1 << 30

_BINARY = {b"US": "H", b"SS": "h", b"UL": "L", b"SL": "l", b"FL": "f", b"FD": "d"}
#: The binary elements that are asked for, for files that do not tell a VR.
_BINARY_TAGS = {
    **dict.fromkeys((0x00189082, 0x00189098), b"FD"),
    **dict.fromkeys((0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103), b"US"),
    **dict.fromkeys((0x00209156,), b"US"),
    **dict.fromkeys((0x00209057, 0x00209128), b"UL"),
}


@dataclass(frozen=True, slots=True)
class PixelPlace:
    """The value of PixelData: `offset` in the (inflated) file, `length` as declared, `room` that there is for it.

    fragments_end: whether encapsulated fragments are followed by their delimiter.
    """

    offset: int
    length: int
    room: int
    fragments_end: bool = False


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file that is DICOM. `place` is None where no PixelData was met; `short`: the file ends inside an element."""

    elements: Elements
    transfer_syntax: str
    meta_sop_uid: str
    place: PixelPlace | None
    short: bool


def parse(path: Path, shown: str) -> Parsed:
    """Parse a file up to its pixel data.

    Raises
    ------
    InputRefused
        empty_file, not_dicom, truncated_file, corrupt_header, too_large; `shown` names the file in the message.
    """
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(0)
        if size == 0:
            raise InputRefused("empty_file", where=shown)
        syntax, meta_uid = start_of_dataset(handle, size, shown)
        stream: BinaryIO = handle
        begin, end = handle.tell(), size
        if syntax == DEFLATED:
            plain = _inflate(handle.read(), shown)
            stream, begin, end = io.BytesIO(plain), 0, len(plain)
        try:
            elements, short = _read(stream, begin, end, syntax, shown)
        except Absurd:
            raise InputRefused("corrupt_header", "the header is no sequence of elements", where=shown) from None
        place = None
        if elements.pixels is not None:
            offset, length = begin + elements.pixels[0], elements.pixels[1]
            closed = length == UNDEFINED and fragments_end(stream, offset, end)
            place = PixelPlace(offset, length, end - offset, closed)
    return Parsed(elements, syntax, meta_uid, place, short)


def start_of_dataset(handle: BinaryIO, size: int, shown: str) -> tuple[str, str]:
    """Transfer syntax and SOP instance UID out of group 2; leaves the file where the dataset starts."""
    start = handle.read(132)
    if start[128:] != b"DICM":
        handle.seek(0)
        if not _looks_like_dataset(start):
            raise InputRefused("not_dicom", where=shown)
    found: dict[int, str] = {}
    while True:
        at = handle.tell()
        mark = handle.read(8)
        if len(mark) < 8:
            raise InputRefused("truncated_file", "the file ends inside its header", where=shown)
        group, element, vr, length = struct.unpack("<HH2sH", mark)
        if group != 2:
            break
        if vr in (b"OB", b"UN"):
            length = int.from_bytes(handle.read(4), "little")
        if length > size - handle.tell():
            raise InputRefused("truncated_file", "the file ends inside its header", where=shown)
        found[element] = handle.read(length).decode("latin-1").strip(" \0")
    handle.seek(at)
    explicit = mark[4:6].isalpha() and mark[4:6].isupper()
    guess = (BIG_ENDIAN if mark[0] == 0 else EXPLICIT) if explicit else IMPLICIT
    syntax = found.get(0x0010, guess)
    if syntax in (IMPLICIT, EXPLICIT):
        syntax = guess if guess != BIG_ENDIAN else syntax  # some writers say one and write the other
    return syntax, found.get(0x0003, "")


def _looks_like_dataset(start: bytes) -> bool:
    """Whether a file without preamble starts with an element of group 2 or 8 of a sensible length."""
    if len(start) < 8 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[3] != 0:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") < 1 << 16


def _read(stream: BinaryIO, begin: int, end: int, syntax: str, shown: str) -> tuple[Elements, bool]:
    """The elements up to the pixel data, and whether the file ended inside one."""
    for window in _WINDOWS:
        stream.seek(begin)
        content = Content(stream.read(min(window, end - begin)), syntax == IMPLICIT, syntax != BIG_ENDIAN)
        whole = len(content.data) == end - begin
        partial = Elements(content, content.implicit)
        try:
            found = read_elements(content, 0, len(content.data), content.implicit, into=partial)
            if whole or found.pixels is not None:
                return found, False
        except Short:
            if whole:
                return partial, True
    raise InputRefused("too_large", "the header is larger than any honest one", where=shown)


def fragments_end(stream: BinaryIO, position: int, end: int) -> bool:
    """Whether encapsulated pixel data are complete: items up to a delimiter, all inside the file."""
    while position + 8 <= end:
        stream.seek(position)
        group, element, length = struct.unpack("<HHL", stream.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000):
            return False
        position += 8 + length
    return False


def inflated(path: Path, shown: str) -> bytes:
    """The dataset of a deflated file. Raises InputRefused too_large, truncated_file, corrupt_header."""
    with path.open("rb") as handle:
        start_of_dataset(handle, path.stat().st_size, shown)
        return _inflate(handle.read(), shown)


def _inflate(content: bytes, shown: str) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        limit = min(max(INFLATION_COUNTS_FROM, MAX_INFLATION * len(content)), MAX_INFLATED_BYTES)
        plain = inflater.decompress(content, limit)
    except zlib.error:
        raise InputRefused("corrupt_header", "the deflated contents cannot be inflated", where=shown) from None
    if inflater.unconsumed_tail:
        raise InputRefused("too_large", "the file inflates without end", where=shown, wanted=f"at most {limit} bytes")
    if not inflater.eof:
        raise InputRefused("truncated_file", where=shown)
    return plain


@dataclass(frozen=True, slots=True)
class Private:
    """A private element, found by its creator. vr: its value representation, which implicit VR does not tell."""

    group: int
    creator: str
    element: int
    vr: bytes = b"LO"


class Header:
    """Reads elements out of a chain of datasets, the nearest first, without raising for a missing one.

    `private` datasets (the vendor's own functional groups) are asked for private elements only: vendors repeat
    standard elements there with other meanings (Philips: the position of another corner).
    """

    def __init__(self, datasets: list[Elements], private: list[Elements] | None = None) -> None:
        self._datasets, self._private = datasets, [*datasets, *(private or ())]

    def texts(self, tag: int) -> list[str]:
        """The values of an element as text, [] where it is absent or empty."""
        for dataset in self._datasets:
            if tag in dataset.table:
                return _strings(dataset, tag, _BINARY_TAGS.get(tag, b""))
        return []

    def text(self, tag: int) -> str:
        """The first value as text, '' where there is none."""
        texts = self.texts(tag)
        return texts[0] if texts else ""

    def decoded(self, tag: int) -> str:
        """The first value as text in the character set that the header declares."""
        text = self.text(tag)
        if text.isascii():
            return text
        from pydicom.charset import convert_encodings, decode_bytes

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                encodings = convert_encodings(self.texts(0x00080005))
                return str(decode_bytes(text.encode("latin-1"), encodings, {"^", "="})).strip(" \0")
        except Exception:  # an exotic or broken character set
            return text.encode("ascii", "ignore").decode()

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The values as numbers; ValueError where one is no finite number."""
        return _floats(self.texts(tag))

    def number(self, tag: int) -> float | None:
        """The first value as a number, None where there is none; ValueError where it is no finite number."""
        texts = self.texts(tag)
        return _floats(texts[:1])[0] if texts else None

    def count(self, tag: int) -> int:
        """A number of things: 0 where it is absent or makes no sense."""
        return _count(self.texts(tag))

    def sequence(self, tag: int) -> list[Elements]:
        """The items of a sequence, [] where there is none or it cannot be parsed."""
        try:
            return next((d.items(tag) for d in self._datasets if tag in d.table), [])
        except (Short, Absurd):
            return []

    def private_texts(self, where: Private) -> list[str]:
        """The values of a private element."""
        found = self._find(where)
        return _strings(*found, where.vr) if found is not None else []

    def private_count(self, where: Private) -> int:
        """A private number of things: 0 where it is absent or makes no sense."""
        return _count(self.private_texts(where))

    def private_bytes(self, where: Private) -> bytes:
        """The value of a private element as it is stored, b'' where there is none."""
        found = self._find(where)
        return found[0].value(found[1]) or b"" if found is not None else b""

    def _find(self, where: Private) -> tuple[Elements, int] | None:
        """The dataset and tag of a private element, by its creator, which need not sit in block 0x10."""
        for dataset in self._private:
            for tag in _private_tags(where.group, where.element):
                mark = (where.group << 16) | ((tag >> 8) & 0xFF)
                if tag in dataset.table and where.creator in _strings(dataset, mark):
                    return dataset, tag
        return None

    def creators(self, groups: tuple[int, ...]) -> set[str]:
        """The private creators of some groups."""
        marks = [(group << 16) | block for group in groups for block in range(0x10, 0x20)]
        return {text for d in self._private for mark in marks if mark in d.table for text in _strings(d, mark)}


@lru_cache
def _private_tags(group: int, element: int) -> tuple[int, ...]:
    return tuple((group << 16) | (block << 8) | element for block in range(0x10, 0x30))


def _strings(dataset: Elements, tag: int, known: bytes = b"") -> list[str]:
    """The values of an element. `known`: its VR, for files that do not tell one (implicit VR, or UN)."""
    value = dataset.value(tag)
    if not value:
        return []
    vr = dataset.table[tag][0]
    if vr in (b"", b"UN"):
        vr = b"" if value.replace(b" ", b"0").isdigit() else known  # a number that somebody wrote as text
    if vr in _BINARY:
        count = len(value) // struct.calcsize(f"={_BINARY[vr]}")
        order = "<" if dataset.content.little else ">"
        return [str(v) for v in struct.unpack_from(f"{order}{count}{_BINARY[vr]}", value)]
    text = value.decode("latin-1").strip(" \0\r\n\t")
    if "\\" not in text:
        return [text] if text else []
    return [part.strip(" \0") for part in text.split("\\")]


def _floats(texts: list[str]) -> tuple[float, ...]:
    values = tuple(float(text.replace("_", "?")) for text in texts)
    if not all(math.isfinite(v) for v in values):
        raise ValueError("not a finite number")
    return values


def _count(texts: list[str]) -> int:
    if not texts:
        return 0
    try:
        value = _floats(texts[:1])[0]
    except ValueError:
        return 0
    return int(value) if 0 <= value < 1e9 else 0
