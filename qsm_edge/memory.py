"""Layer 4: how much memory a reconstruction will take, before it starts.

The figures are bytes a voxel of the padded grid that a method works on, at its peak beyond its inputs, measured with
`bench/` (peak resident size, NumPy) and rounded up.
"""

from __future__ import annotations

from qsm_edge import backend
from qsm_edge.errors import ResourceError
from qsm_edge.recipe import Recipe
from qsm_edge.types import GreSeries

#: method: bytes a voxel of its mask's box at the peak, grids padded as the method pads them.
PEAK_BYTES = {"tv": 220, "hdqsm": 240, "rts": 200, "tkd": 60, "tikhonov": 60, "vsharp": 80, "resharp": 110}
PEAK_BYTES |= {"ismv": 80, "lbv": 60, "pdf": 180, "tfi": 70, "romeo": 110, "laplacian": 90}
_OTHER_BYTES = 120
_INTERPRETER = 200_000_000


def estimate_bytes(series: GreSeries, box: tuple[int, int, int], recipe: Recipe) -> int:
    """Expected peak memory [bytes] of a reconstruction whose mask fills `box` (z, y, x): inputs, results, worst stage."""
    voxels = 1
    for n in series.geometry.shape:
        voxels *= n
    inside = box[0] * box[1] * box[2]
    count = len(series.echo_times_s)
    stage = max(PEAK_BYTES.get(choice.method, _OTHER_BYTES) for choice in recipe.choices.values())
    echo_fit = 8 * count + 60  # the box's echoes again, and the fit's running sums
    inputs = 8 * count * voxels + 8 * voxels
    return _INTERPRETER + inputs + inside * (8 * count + 24 + max(stage, echo_fit))


def require_for_mask(series: GreSeries, device: str) -> None:
    """Refuse a series whose inputs alone cannot be held twice; raises out_of_memory with the figures."""
    voxels = 1
    for n in series.geometry.shape:
        voxels *= n
    del device  # masks are made on the host
    _require(8 * len(series.echo_times_s) * voxels + 40 * voxels, "cpu")


def require(needed: int, device: str) -> None:
    """Refuse what does not fit; raises out_of_memory with the figures."""
    _require(needed, device)


def _require(needed: int, device: str) -> None:
    available = backend.available_bytes(device)
    if needed > available:
        raise ResourceError(
            "out_of_memory",
            where=device,
            got=f"{available / 1e9:.2f} GB available",
            wanted=f"{needed / 1e9:.2f} GB; the recipe 'fast' needs least",
        )
