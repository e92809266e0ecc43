"""The door to the package `ismrmrd`: images as they came <-> fixed header, attributes and values that can be worked with.

The package gives the layout of the fixed header and the form of the attributes. Its own reader is not used: it allocates
what a header claims, and takes 32-bit integers for 64-bit ones.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.openrecon.wire import RawImage

MAGNITUDE, PHASE, REAL, IMAGINARY, COMPLEX = 1, 2, 3, 4, 5
#: The header's data types, little-endian as on the wire.
_TYPES = {1: "<u2", 2: "<i2", 3: "<u4", 4: "<i4", 5: "<f4", 6: "<f8", 7: "<c8", 8: "<c16"}
_SHORT = 2

#: Attributes: a name, and its values as texts.
Attributes = dict[str, list[str]]


@dataclass(frozen=True)
class MrdImage:
    """An image or a volume. head: the fixed header (`ismrmrd.ImageHeader`). values: (channel, z, y, x) as stored."""

    raw: RawImage
    head: Any
    attributes: Attributes
    values: np.ndarray


def library() -> Any:
    """The package `ismrmrd`. UsageError (bad_call) where it is not installed."""
    with warnings.catch_warnings():  # it changes the filters of the whole process when it is imported
        warnings.simplefilter("ignore")
        try:
            import ismrmrd
        except ImportError:
            what = 'the package ismrmrd is not installed; install it with: pip install "qsm-edge[openrecon]"'
            raise UsageError("bad_call", what) from None
    return ismrmrd


def understood(raw: RawImage) -> MrdImage:
    """An image whose sizes were checked when it came. Raises InputRefused bad_message where its attributes are not XML."""
    head = library().ImageHeader.from_buffer_copy(raw.head)
    x, y, z = head.matrix_size
    values = np.frombuffer(raw.values, dtype=_TYPES[head.data_type]).reshape(head.channels, z, y, x)
    return MrdImage(raw, head, read_attributes(raw.attributes), values)


def read_attributes(content: bytes) -> Attributes:
    """Attributes out of their XML; none of nothing. Raises InputRefused bad_message."""
    try:
        text = content.split(b"\0")[0].decode("utf-8")
        refuse_entities(text)
        said = library().Meta.deserialize(text)
    except (ValueError, AssertionError, SyntaxError, AttributeError):  # as the package and its parser fail
        raise InputRefused("bad_message", "the attributes of an image are not understood") from None
    return {
        str(name): [str(one or "") for one in (value if isinstance(value, list) else [value])]
        for name, value in said.items()
    }


def refuse_entities(text: str) -> None:
    """Raises InputRefused bad_message for XML that declares a document type: that is how a few bytes become many."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputRefused("bad_message", "XML with a document type or entities")


def written_attributes(attributes: Mapping[str, list[str]]) -> bytes:
    """Attributes as XML."""
    content: str = library().Meta({name: list(values) for name, values in attributes.items()}).serialize()
    return content.encode("utf-8")


def written(head: Any, attributes: Mapping[str, list[str]], values: np.ndarray) -> RawImage:
    """A new image of 16-bit values (z, y, x); `head` is copied, and says what is kept of it."""
    copy = library().ImageHeader.from_buffer_copy(head)
    copy.data_type, copy.channels = _SHORT, 1
    copy.matrix_size = (ctypes.c_uint16 * 3)(*values.shape[::-1])
    text = written_attributes(attributes)
    copy.attribute_string_len = len(text)
    return RawImage(bytes(copy), text, np.ascontiguousarray(values, dtype="<i2").tobytes())


def with_attributes(raw: RawImage, attributes: Mapping[str, list[str]]) -> RawImage:
    """The same image with other attributes."""
    head = library().ImageHeader.from_buffer_copy(raw.head)
    text = written_attributes(attributes)
    head.attribute_string_len = len(text)
    return RawImage(bytes(head), text, raw.values)
