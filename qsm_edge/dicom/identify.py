"""Whose file is this? The identities in a header, without reading more of a file that nobody vouches for than needed.

For the moment of arrival: it runs in the process that listens, so that memory and time are bounded by `WINDOWS`
whatever the file claims, and nothing is decoded or converted. What the images mean is the reader's question, later.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qsm_edge.dicom.elements import UNDEFINED, Absurd, Content, Elements, Short, read_elements
from qsm_edge.dicom.header import BIG_ENDIAN, DEFLATED, IMPLICIT, Header, fragments_end, start_of_dataset
from qsm_edge.dicom.instances import ENHANCED_MR, LEGACY_ENHANCED_MR, MR
from qsm_edge.dicom.uids import is_uid
from qsm_edge.dicom.vendors import OWN_MANUFACTURER
from qsm_edge.errors import InputRefused

#: How much of a file is looked at: at first, and at most.
WINDOWS = (256 << 10, 16 << 20)
#: Digits of a SHA-256 that stand for a UID.
DIGITS = 32

_SOP_CLASS, _SOP_UID, _STUDY, _SERIES, _MANUFACTURER = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00080070


@dataclass(frozen=True)
class Identity:
    """Hashes of the UIDs, the SOP class and transfer syntax; `mr`: an MR image; `ours`: our own output."""

    sop: str
    series: str
    study: str
    sop_class: str
    transfer_syntax: str
    mr: bool
    ours: bool


def hashed(uid: str) -> str:
    """What stands for a UID in names, logs and the ledger."""
    return hashlib.sha256(uid.encode()).hexdigest()[:DIGITS]


def identify(path: Path, *, max_bytes: int) -> Identity:
    """The identities of a DICOM file.

    Raises
    ------
    InputRefused
        empty_file, not_dicom, too_large (beyond `max_bytes`, or a header beyond the last window), truncated_file (also
        where pixel data are cut short or, in an MR image, absent), corrupt_header, unsafe_uid.
    """
    with path.open("rb") as handle:
        size = handle.seek(0, 2)
        if size == 0:
            raise InputRefused("empty_file")
        if size > max_bytes:
            raise InputRefused("too_large", got=f"{size / 1e6:.0f} MB", wanted=f"at most {max_bytes / 1e6:.0f} MB")
        for window in WINDOWS:
            found = _look(handle, size, window, last=window == WINDOWS[-1])
            if found is not None:
                return found
    raise InputRefused("too_large", "the header is larger than any honest one")


def _look(handle: BinaryIO, size: int, window: int, *, last: bool) -> Identity | None:
    """What the first `window` bytes tell; None where they do not tell enough and there are more."""
    handle.seek(0)
    beginning = handle.read(window)
    whole = len(beginning) == size
    stream = io.BytesIO(beginning)
    try:
        syntax, _ = start_of_dataset(stream, len(beginning), "")
    except InputRefused as refusal:
        if refusal.code == "truncated_file" and not whole:  # a group 2 beyond the window
            raise InputRefused("corrupt_header", "the meta header is larger than any honest one") from None
        raise
    begin = stream.tell()
    body = beginning[begin:]
    if syntax == DEFLATED:
        body, whole = _inflated(body, window, whole)
    content = Content(body, syntax == IMPLICIT, syntax != BIG_ENDIAN)
    elements, short = Elements(content, content.implicit), False
    try:
        read_elements(content, 0, len(body), content.implicit, into=elements)
    except Short:
        short = True
    except Absurd:
        raise InputRefused("corrupt_header", "the header is no sequence of elements") from None
    if short and whole:
        raise InputRefused("truncated_file")
    if elements.pixels is None and not whole and not last:
        return None
    identity = _identity(Header([elements]), syntax)
    if identity is not None and syntax != DEFLATED:
        _check_pixels(handle, elements, begin, size, absent=whole and identity.mr)
    elif identity is None and whole:
        raise InputRefused("corrupt_header", "the header does not say what the file is")
    return identity


def _inflated(body: bytes, window: int, whole: bool) -> tuple[bytes, bool]:
    """The beginning of a deflated dataset, at most `window` bytes, and whether that is all of it."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, window)
    except zlib.error:
        raise InputRefused("corrupt_header", "the deflated contents cannot be inflated") from None
    if whole and not inflater.eof and not inflater.unconsumed_tail and len(plain) < window:
        raise InputRefused("truncated_file")
    return plain, inflater.eof


def _identity(header: Header, syntax: str) -> Identity | None:
    """None where the header says neither what the file is nor whose."""
    sop_class, uids = header.text(_SOP_CLASS), [header.text(tag) for tag in (_SOP_UID, _SERIES, _STUDY)]
    if not sop_class:
        return None
    for uid in (sop_class, *uids):
        if not is_uid(uid):
            raise InputRefused("unsafe_uid")
    sop, series, study = map(hashed, uids)
    mr = sop_class in (MR, ENHANCED_MR, LEGACY_ENHANCED_MR)
    ours = header.text(_MANUFACTURER).lower() == OWN_MANUFACTURER
    return Identity(sop, series, study, sop_class, syntax, mr, ours)


def _check_pixels(handle: BinaryIO, elements: Elements, begin: int, size: int, *, absent: bool) -> None:
    """An acknowledged image is a whole one: a sender that is told so forgets it."""
    if elements.pixels is None:
        if absent:
            raise InputRefused("truncated_file", "the file ends before its pixel data")
        return
    offset, length = begin + elements.pixels[0], elements.pixels[1]
    cut = not fragments_end(handle, offset, size) if length == UNDEFINED else offset + length > size
    if cut:
        raise InputRefused("truncated_file", "the file ends inside its pixel data")
