"""qsm-edge: quantitative susceptibility mapping on the scanner's own workstation.

The public names are loaded when they are first used (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "reconstruct": "pipeline",
    "Recipe": "recipe",
    "GreSeries": "types",
    "Geometry": "types",
    "Result": "types",
    "read_series": "dicom",
    "write_series": "dicom",
}

__all__ = ["Geometry", "GreSeries", "Recipe", "Result", "__version__", "read_series", "reconstruct", "write_series"]

if TYPE_CHECKING:
    from qsm_edge.dicom import read_series, write_series
    from qsm_edge.pipeline import reconstruct
    from qsm_edge.recipe import Recipe
    from qsm_edge.types import Geometry, GreSeries, Result


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"qsm_edge.{_HOMES[name]}"), name)
