"""DICOM in, DICOM out: files -> GreSeries, Result -> objects that a PACS takes. Names are loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Acquisition": "acquisition",
    "Ignored": "records",
    "Inventory": "inventory",
    "Refusal": "records",
    "find": "inventory",
    "read_series": "inventory",
    "write_series": "write",
}

__all__ = ["Acquisition", "Ignored", "Inventory", "Refusal", "find", "read_series", "write_series"]

if TYPE_CHECKING:
    from qsm_edge.dicom.acquisition import Acquisition
    from qsm_edge.dicom.inventory import Inventory, find, read_series
    from qsm_edge.dicom.records import Ignored, Refusal
    from qsm_edge.dicom.write import write_series


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"qsm_edge.dicom.{_HOMES[name]}"), name)
