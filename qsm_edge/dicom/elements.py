"""A DICOM dataset as a table of where its elements lie: a parser for files that nobody vouches for.

pydicom parses well-formed files well, but trusts their lengths, says nothing when they end too soon, inflates and
nests without end, and takes a hundred times as long as finding the two dozen elements that decide where an image
belongs. Every element is checked against the end of the file here; nothing is converted before it is asked for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})

#: An honest enhanced object of 20 000 frames stays below these by far.
MAX_ELEMENTS, MAX_IN_ONE, MAX_DEPTH = 4_000_000, 100_000, 16

#: An element's head, a long length, an item's head; in both byte orders.
_LITTLE, _BIG = ([struct.Struct(order + form) for form in ("HH2sH", "L", "HHL")] for order in "<>")


class Short(Exception):
    """The content ends inside an element."""


class Absurd(Exception):
    """Nested or filled beyond anything honest, or not a dataset at all."""


@dataclass
class Content:
    """The bytes of a file as far as they were read, and how its dataset is encoded."""

    data: bytes
    implicit: bool
    little: bool
    elements: int = 0

    def count(self) -> None:
        self.elements += 1
        if self.elements > MAX_ELEMENTS:
            raise Absurd


@dataclass
class Elements:
    """One dataset: tag -> (VR, start, length). `pixels`: start and declared length of PixelData, if any."""

    content: Content
    implicit: bool
    table: dict[int, tuple[bytes, int, int]] = field(default_factory=dict)
    pixels: tuple[int, int] | None = None
    end: int = 0

    def value(self, tag: int) -> bytes | None:
        found = self.table.get(tag)
        return None if found is None else self.content.data[found[1] : found[1] + found[2]]

    def items(self, tag: int) -> list[Elements]:
        """The items of a sequence, [] where there is none. Raises Short and Absurd like `read_elements`."""
        found = self.table.get(tag)
        if found is None:
            return []
        vr, position, length = found
        implicit, end, out = self.implicit or vr == b"UN", position + length, []
        while position + 8 <= end:
            mark, size = _item_header(self.content, position)
            if mark != _ITEM:
                break
            start = position + 8
            stop = end if size == UNDEFINED else start + size
            if stop > end:  # its elements would be looked for beyond the sequence, and beyond the file
                raise Short
            item = read_elements(self.content, start, stop, implicit, depth=1)
            position = item.end if size == UNDEFINED else stop
            out.append(item)
        return out


def read_elements(
    content: Content, start: int, end: int, implicit: bool, *, depth: int = 0, into: Elements | None = None
) -> Elements:
    """The elements from `start` up to `end`, an item's delimiter or (at depth 0) the pixel data.

    They are added to `into`, which keeps what there was when the content ends too soon.

    Raises
    ------
    Short
        An element or its value reaches beyond `end`.
    Absurd
        Deeper or fuller than `MAX_DEPTH`, `MAX_ELEMENTS`, `MAX_IN_ONE`.
    """
    found = into or Elements(content, implicit)
    position = start
    while position < end:
        tag, vr, value, length = _element_header(content, position, end, implicit)
        if tag in (_ITEM_END, _SEQUENCE_END):
            position = value
            break
        if depth == 0 and tag in _PIXEL_TAGS:
            found.pixels = (value, length)
            break
        if length == UNDEFINED:
            position = _skip_sequence(content, value, end, implicit or vr == b"UN", depth + 1)
            length = position - value
        else:
            position = value + length
            if position > end:
                raise Short
        found.table[tag] = (vr, value, length)
        if len(found.table) > MAX_IN_ONE:
            raise Absurd
    found.end = position
    return found


def _element_header(content: Content, position: int, end: int, implicit: bool) -> tuple[int, bytes, int, int]:
    """Tag, VR (b'' where the file does not say), start of the value, length."""
    content.count()
    if position + 8 > end:
        raise Short
    short, long, _ = _LITTLE if content.little else _BIG
    group, element, vr, length = short.unpack_from(content.data, position)
    if implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
        (length,) = long.unpack_from(content.data, position + 4)
        return (group << 16) | element, b"", position + 8, length
    if vr in LONG_VRS:
        if position + 12 > end:
            raise Short
        (length,) = long.unpack_from(content.data, position + 8)
        return (group << 16) | element, vr, position + 12, length
    return (group << 16) | element, vr, position + 8, length


def _item_header(content: Content, position: int) -> tuple[int, int]:
    group, element, length = (_LITTLE if content.little else _BIG)[2].unpack_from(content.data, position)
    return (group << 16) | element, length


def _skip_sequence(content: Content, position: int, end: int, implicit: bool, depth: int) -> int:
    """The position after a sequence of undefined length."""
    if depth > MAX_DEPTH:
        raise Absurd
    while True:
        content.count()
        if position + 8 > end:
            raise Short
        mark, size = _item_header(content, position)
        position += 8
        if mark == _SEQUENCE_END:
            return position
        if mark != _ITEM:
            raise Absurd
        if size == UNDEFINED:
            position = _skip_item(content, position, end, implicit, depth)
        else:
            position += size
        if position > end:
            raise Short


def _skip_item(content: Content, position: int, end: int, implicit: bool, depth: int) -> int:
    while True:
        tag, vr, value, length = _element_header(content, position, end, implicit)
        if tag == _ITEM_END:
            return value
        if length == UNDEFINED:
            position = _skip_sequence(content, value, end, implicit or vr == b"UN", depth + 1)
        else:
            position = value + length
        if position > end:
            raise Short
