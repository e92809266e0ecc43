"""Layer 3: brain masks. `METHODS[name](magnitude, phase_rad, echo_times_s, geometry, **options) -> bool mask (z, y, x)`.

Everything here runs on the host; the pipeline hands in and takes back NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qsm_edge.masking.classical import threshold
from qsm_edge.masking.clean import clean, network
from qsm_edge.masking.grid import prepare, restore

METHODS: Mapping[str, Callable[..., Any]] = {"threshold": threshold, "network": network}

__all__ = ["METHODS", "clean", "network", "prepare", "restore", "threshold"]
