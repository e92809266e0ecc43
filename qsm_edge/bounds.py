"""Numbers of the service's settings that know their range: in the record that holds them, for whoever reads or checks it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from qsm_edge.errors import UsageError


def bounded(default: float | int, low: float, high: float) -> Any:
    """A dataclass's field with the range that `check_bounds`, and the reader of a configuration file, hold it to."""
    return field(default=default, metadata={"low": low, "high": high})


def check_bounds(record: Any) -> None:
    """Raise UsageError bad_value where a `bounded` field of a record is beyond its range."""
    for one in record.__dataclass_fields__.values():
        value = getattr(record, one.name)
        if "low" in one.metadata and not one.metadata["low"] <= value <= one.metadata["high"]:
            wanted = f"from {one.metadata['low']:g} to {one.metadata['high']:g}"
            raise UsageError("bad_value", where=one.name, got=value, wanted=wanted)
