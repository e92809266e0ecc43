"""Group 2 of a DICOM file, for the network: what a file says of itself, and the head that a received dataset gets.

Nothing of the dataset is read or changed here: what comes in as bytes goes out as the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from qsm_edge.dicom.elements import LONG_VRS
from qsm_edge.dicom.header import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT
from qsm_edge.dicom.instances import LOSSLESS
from qsm_edge.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_uid
from qsm_edge.errors import InputRefused

#: Group 2 of an honest file is some hundred bytes.
MAX_META_BYTES = 64 << 10

_SOP_CLASS, _SOP_UID, _SYNTAX = 0x0002, 0x0003, 0x0010


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What group 2 says; `offset`: where the dataset starts, `size`: of the file, both in bytes."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int
    size: int


def readable_syntaxes() -> tuple[str, ...]:
    """Transfer syntaxes whose pixels can be decoded here, the plainest first."""
    from pydicom.pixels import get_decoder

    packed = tuple(syntax for syntax in LOSSLESS if _decoder_is_there(get_decoder, syntax))
    return (EXPLICIT, IMPLICIT, DEFLATED, *packed, BIG_ENDIAN)


def _decoder_is_there(get_decoder: object, syntax: str) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)  # type: ignore[operator]
    except NotImplementedError:
        return False


def read_file_meta(path: Path) -> FileMeta:
    """Read group 2 of a file.

    Raises
    ------
    InputRefused
        empty_file, not_dicom (also a dataset without group 2: nothing vouches for its encoding), truncated_file,
        corrupt_header, unsafe_uid.
    """
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(0)
        start = handle.read(132 + MAX_META_BYTES)
    if not start:
        raise InputRefused("empty_file")
    if start[128:132] != b"DICM":
        raise InputRefused("not_dicom")
    found, offset = _group_2(start)
    sop_class, sop_instance, syntax = (found.get(element, "") for element in (_SOP_CLASS, _SOP_UID, _SYNTAX))
    if not all(map(is_uid, (sop_class, sop_instance, syntax))):
        raise InputRefused("unsafe_uid", "the file does not say what it is")
    return FileMeta(sop_class, sop_instance, syntax, offset, size)


def _group_2(start: bytes) -> tuple[dict[int, str], int]:
    found: dict[int, str] = {}
    whole = len(start) < 132 + MAX_META_BYTES
    at = 132
    while at + 8 <= len(start):
        group, element, vr, length = struct.unpack_from("<HH2sH", start, at)
        if group != 2:
            return found, at
        value = at + 8
        if vr in LONG_VRS:
            length, value = int.from_bytes(start[value : value + 4], "little"), value + 4
        if vr.isalpha() and value + length > len(start) and whole:
            raise InputRefused("truncated_file", "the file ends inside its meta header")
        if not vr.isalpha() or value + length > len(start):
            raise InputRefused("corrupt_header", "the meta header is no sequence of elements")
        found[element] = start[value : value + length].decode("latin-1").strip(" \0")
        at = value + length
    if whole:
        raise InputRefused("truncated_file", "the file ends with its meta header")
    raise InputRefused("corrupt_header", "the meta header is larger than any honest one")


def file_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source: str = "") -> bytes:
    """Preamble, DICM and group 2 of a received object; `source`: the AE title that sent it."""
    elements = [
        _element(0x0001, b"OB", b"\x00\x01"),
        _element(_SOP_CLASS, b"UI", sop_class_uid.encode("ascii")),
        _element(_SOP_UID, b"UI", sop_instance_uid.encode("ascii")),
        _element(_SYNTAX, b"UI", transfer_syntax_uid.encode("ascii")),
        _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
        *([_element(0x0016, b"AE", source.encode("ascii", "replace"))] if source else []),
    ]
    body = b"".join(elements)
    return b"\0" * 128 + b"DICM" + _element(0x0000, b"UL", struct.pack("<L", len(body))) + body


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr in (b"SH", b"AE") else b"\0"
    length = struct.pack("<HL", 0, len(value)) if vr in LONG_VRS else struct.pack("<H", len(value))
    return struct.pack("<HH2s", 2, element, vr) + length + value
