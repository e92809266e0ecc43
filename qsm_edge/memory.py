"""Layer 4: how much memory a reconstruction will take, before it starts.

The figures are allowances in bytes a voxel of the mask's box, beyond the inputs: set from the number of arrays that a
method holds at once and how far it pads, not measured one by one. As a whole the estimate was checked on one large case
(bench/RESULTS.md, `speed15`), where it lies above the measured peak.

Each `require_...` asks for what is still to come at its moment, because what is already held is missing from what the
system calls free.
"""

from __future__ import annotations

import math

from qsm_edge import backend
from qsm_edge.errors import ResourceError
from qsm_edge.recipe import Recipe

#: method: bytes a voxel of the mask's box, padding included.
PEAK_BYTES = {"tv": 260, "hdqsm": 280, "rts": 200, "tkd": 60, "tikhonov": 60, "vsharp": 80, "resharp": 110}
PEAK_BYTES |= {"ismv": 80, "lbv": 60, "pdf": 180, "tfi": 70, "superposed": 170, "romeo": 110, "laplacian": 90}
_OTHER_BYTES = 120
#: method: the same of what it holds while it removes the background once more.
_HELD_BYTES = {"superposed": 110}
#: Python and the libraries, most of which are loaded when they are first used.
_INTERPRETER = 200_000_000
#: A voxel of one echo: magnitude and phase; while they are read, real, imaginary and phase.
_HELD, _READ = 8, 12
#: A voxel of the volume: the masks' work, and the results.
_MASK, _RESULTS = 56, 8

Shape = tuple[int, int, int]


def estimate_bytes(shape: Shape, echoes: int, box: Shape, recipe: Recipe) -> int:
    """Peak memory [bytes] to expect of a process that reconstructs `echoes` volumes of `shape` whose mask fills `box`."""
    held = _INTERPRETER + _HELD * echoes * math.prod(shape)
    return held + _RESULTS * math.prod(shape) + _chain_bytes(echoes, box, recipe)


def require_to_read(shape: Shape, echoes: int) -> None:
    """Refuse an acquisition before its pixels are read, where these or the making of a mask would not fit.

    How much the chain takes is known with the mask's box (`require_for_chain`). Raises out_of_memory with the figures.
    """
    voxels = math.prod(shape)
    require(_INTERPRETER + max(_READ * echoes, _HELD * echoes + _MASK) * voxels, "cpu")


def require_for_mask(shape: Shape) -> None:
    """Refuse to make a mask on the host where its work does not fit beside the images that are held there already."""
    require(_MASK * math.prod(shape), "cpu")


def require_for_chain(shape: Shape, echoes: int, box: Shape, recipe: Recipe, device: str) -> None:
    """Refuse what the chain does not fit into, on `device` and, for the results, on the host beside it."""
    results = _RESULTS * math.prod(shape)
    if device == "cpu":
        require(results + _chain_bytes(echoes, box, recipe), device)
    else:
        require(results + _HELD * echoes * math.prod(box), "cpu")
        require(_chain_bytes(echoes, box, recipe), device)


def require(needed: int, device: str) -> None:
    """Refuse what does not fit; raises out_of_memory with the figures. Where nobody can say what is free, all fits."""
    available = backend.available_bytes(device)
    if available is not None and needed > available:
        raise ResourceError(
            "out_of_memory",
            where=device,
            got=f"{available / 1e9:.2f} GB available",
            wanted=f"{needed / 1e9:.2f} GB; the recipe 'fast' needs least",
        )


def _chain_bytes(echoes: int, box: Shape, recipe: Recipe) -> int:
    """The box's echoes once more, its maps, and the worst stage."""
    peak = {stage: PEAK_BYTES.get(choice.method, _OTHER_BYTES) for stage, choice in recipe.choices.items()}
    again = _HELD_BYTES.get(recipe.choices["strong_sources"].method)
    stage = max(*peak.values(), 0 if again is None else again + peak["background"])
    echo_fit = 8 * echoes + 60  # the box's echoes again, and the fit's running sums
    return math.prod(box) * (_HELD * echoes + 24 + max(stage, echo_fit))
