"""Deterministic UIDs: the same sources, recipe and pixels give the same UID, so that a second run is no new series."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np

from qsm_edge import __version__
from qsm_edge.types import Result

#: Names this program in the file meta information; a number below 2.25 drawn once, for all versions.
IMPLEMENTATION_CLASS_UID = "2.25.294163870554861093547186210931146307013"
IMPLEMENTATION_VERSION_NAME = ("QSM_EDGE_" + __version__.replace(".", "_"))[:16]
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def is_uid(text: str) -> bool:
    """Whether a text is a UID: numbers without leading zeros between dots, at most 64 characters."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def uid(*parts: Any) -> str:
    """``2.25.`` and 128 bits of the SHA-256 over `parts`: text, bytes, or arrays (with their shape and type).

    Each part is preceded by its length, so that ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        content = _bytes(part)
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return f"2.25.{int.from_bytes(digest.digest()[:16], 'big')}"


def _bytes(part: Any) -> bytes:
    if isinstance(part, bytes):
        return part
    if isinstance(part, np.ndarray):
        little = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<"))
        return f"{little.dtype.str}{little.shape}".encode() + little.tobytes()
    return str(part).encode("utf-8", "surrogatepass")


def result_key(result: Result) -> tuple[Any, ...]:
    """What the UIDs of everything written of a result depend on, but for the pixels: sources, recipe, version, grid."""
    source, provenance = result.series.source, result.provenance
    used = [f"{i.sop_instance_uid}/{i.frame}" for images in source.slices for i in images]
    grid = np.asarray(result.series.geometry.affine_lps, dtype=np.float64)
    return (provenance.software, provenance.version, provenance.digest, "\n".join(used), grid)
