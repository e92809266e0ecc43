"""Layer 4: how much memory a reconstruction will take, before it starts.

The figures are allowances in bytes a voxel of the mask's box, beyond the inputs: set from the number of arrays that a
method holds at once and how far it pads, not measured one by one. As a whole the estimate was checked on one large case
(bench/RESULTS.md, `speed15`), where it lies above the measured peak.
"""

from __future__ import annotations

import math

from qsm_edge import backend
from qsm_edge.errors import ResourceError
from qsm_edge.recipe import Recipe
from qsm_edge.types import GreSeries

#: method: bytes a voxel of the mask's box, padding included.
PEAK_BYTES = {"tv": 220, "hdqsm": 240, "rts": 200, "tkd": 60, "tikhonov": 60, "vsharp": 80, "resharp": 110}
PEAK_BYTES |= {"ismv": 80, "lbv": 60, "pdf": 180, "tfi": 70, "romeo": 110, "laplacian": 90}
_OTHER_BYTES = 120
_INTERPRETER = 200_000_000


def estimate_bytes(series: GreSeries, box: tuple[int, int, int], recipe: Recipe) -> int:
    """Expected peak memory [bytes] of a reconstruction whose mask fills `box` (z, y, x): inputs, results, worst stage."""
    voxels = math.prod(series.geometry.shape)
    count = len(series.echo_times_s)
    stage = max(PEAK_BYTES.get(choice.method, _OTHER_BYTES) for choice in recipe.choices.values())
    echo_fit = 8 * count + 60  # the box's echoes again, and the fit's running sums
    inputs = 8 * count * voxels + 8 * voxels
    return _INTERPRETER + inputs + math.prod(box) * (8 * count + 24 + max(stage, echo_fit))


def require_for_mask(series: GreSeries) -> None:
    """Refuse a series that the host, where masks are made, cannot hold twice; raises out_of_memory with the figures."""
    voxels = math.prod(series.geometry.shape)
    require(8 * len(series.echo_times_s) * voxels + 40 * voxels, "cpu")


def require(needed: int, device: str) -> None:
    """Refuse what does not fit; raises out_of_memory with the figures."""
    available = backend.available_bytes(device)
    if needed > available:
        raise ResourceError(
            "out_of_memory",
            where=device,
            got=f"{available / 1e9:.2f} GB available",
            wanted=f"{needed / 1e9:.2f} GB; the recipe 'fast' needs least",
        )
