"""The XML header of a stream -> the few facts that a reconstruction needs; what it says of a patient is not looked at.

Read by name and leniently: scanners add elements to their headers, and none that is needed may be lost for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from qsm_edge.errors import InputRefused
from qsm_edge.openrecon.mrd import refuse_entities


@dataclass(frozen=True)
class Header:
    """vendor, model, protocol: '' where not told. echo_times_ms: by contrast. contrasts, slices: how many, 0: not told."""

    vendor: str = ""
    model: str = ""
    protocol: str = ""
    field_tesla: float | None = None
    frequency_mhz: float | None = None
    echo_times_ms: tuple[float, ...] = ()
    contrasts: int = 0
    slices: int = 0


def read_header(text: str) -> Header:
    """The header out of its XML. Raises InputRefused corrupt_header, bad_message."""
    refuse_entities(text)
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise InputRefused("corrupt_header", "the MRD header is no XML") from None
    if _name(root) != "ismrmrdHeader":
        raise InputRefused("corrupt_header", "the XML is no MRD header")
    hertz = _number(root, "experimentalConditions", "H1resonanceFrequency_Hz")
    counts = [_number(root, "encoding", "encodingLimits", axis, "maximum") for axis in ("contrast", "slice")]
    contrasts, slices = (0 if last is None else int(last) + 1 for last in counts)
    slab = _number(root, "encoding", "reconSpace", "matrixSize", "z")
    return Header(
        vendor=_text(root, "acquisitionSystemInformation", "systemVendor"),
        model=_text(root, "acquisitionSystemInformation", "systemModel"),
        protocol=_text(root, "measurementInformation", "protocolName"),
        field_tesla=_number(root, "acquisitionSystemInformation", "systemFieldStrength_T"),
        frequency_mhz=None if hertz is None else hertz / 1e6,
        echo_times_ms=tuple(_finite(one.text) for one in _below(root, ("sequenceParameters", "TE"))),
        contrasts=contrasts,
        slices=max(slices, 0 if slab is None else int(slab)) if slices <= 1 else slices,
    )


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _below(element: ElementTree.Element, path: tuple[str, ...]) -> Iterator[ElementTree.Element]:
    """The elements at a path of names, whatever their namespace."""
    if not path:
        yield element
        return
    for child in element:
        if _name(child) == path[0]:
            yield from _below(child, path[1:])


def _text(root: ElementTree.Element, *path: str) -> str:
    return next(((one.text or "").strip() for one in _below(root, path)), "")


def _number(root: ElementTree.Element, *path: str) -> float | None:
    """The first number at a path, None where there is none."""
    text = _text(root, *path)
    return _finite(text) if text else None


def _finite(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputRefused("corrupt_header", "a number of the MRD header is none")
    return value
