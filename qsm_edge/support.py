"""Layer 3: where the field is known, which is more than the brain. `METHODS[name](magnitude, mask, geometry, **options)`.

Field, background and inversion are computed on the support, and the maps are cropped to the brain mask at the end: the
errors that every background removal leaves at the surface of its mask then lie outside the brain, and a mask that is drawn
a voxel narrower or wider moves the maps less.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.backend import namespace, on_host
from qsm_edge.distance import shallow_mm, within_mm
from qsm_edge.types import Array, Geometry


def brain_alone(magnitude: Array, mask: Array, geometry: Geometry) -> Array:
    """The brain mask itself."""
    del magnitude, geometry
    return mask


def bright_rim(
    magnitude: Array,
    mask: Array,
    geometry: Geometry,
    *,
    reach_mm: float = 6.0,
    least_signal: float = 0.5,
    shell_mm: float = 3.0,
    dark: float = 0.35,
) -> Array:
    """The brain mask less the bone at its surface, and the fluid about it, which stays bright to the last echo.

    A mask drawn a voxel or two too wide holds a shell of bone, whose susceptibility is background: what is below `dark` times
    the brain's median in every echo leaves, unless it hangs together with the like deeper than `shell_mm`, as a bleed at the
    surface does. Bright is a magnitude above `least_signal` times the brain's median in every echo, so that bone, air, marrow
    and the voxels that they share with fluid stay out: they decay fast. The layer reaches `reach_mm` and is peeled by a voxel,
    which breaks bridges through the skull, and only what hangs together with the mask counts. magnitude (echo, z, y, x); bool
    (z, y, x) comes back. NOT checked: that it is water; fat which keeps its signal would have to touch the fluid.
    """
    xp = namespace(magnitude)
    ends = xp.min(magnitude, axis=0), xp.max(magnitude, axis=0)
    return _grown(*ends, mask, geometry, reach_mm, least_signal, shell_mm, dark)


@on_host
def _grown(
    weakest: Array,
    strongest: Array,
    mask: Array,
    geometry: Geometry,
    reach_mm: float,
    least_signal: float,
    shell_mm: float,
    dark: float,
) -> Array:
    level = float(np.median(weakest[mask])) if mask.any() else 0.0
    if level <= 0:
        return mask
    box = _box(mask, geometry, reach_mm)
    brain = _without_shell(strongest[box], mask[box], geometry, shell_mm, dark)
    bright = brain | (weakest[box] > least_signal * level)
    # Beyond the volume nothing is known, and the peeling treats it so.
    peeled = ndi.binary_erosion(bright)
    near = within_mm(brain, geometry, reach_mm)
    out = np.zeros_like(mask)
    out[box] = ndi.binary_propagation(brain, mask=brain | (peeled & near))
    return out


def _without_shell(
    strongest: np.ndarray, brain: np.ndarray, geometry: Geometry, shell_mm: float, dark: float
) -> np.ndarray:
    """Less what is dark at the surface and no deeper than `shell_mm`; where the volume ends is no surface."""
    faint = brain & (strongest < dark * float(np.median(strongest[brain])))
    room = [margin(shell_mm, voxel) for voxel in geometry.voxel_mm]
    beyond = np.pad(brain, [(n, n) for n in room], mode="edge")
    inner = tuple(slice(n, -n) for n in room)
    deep = faint & np.isinf(shallow_mm(beyond, geometry, shell_mm)[inner])
    # A bleed that touches the shell keeps what is near it, not the shell all around the head.
    kept = ndi.binary_propagation(deep, mask=faint & within_mm(deep, geometry, 2 * shell_mm))
    return np.asarray(brain & ~(faint & ~kept))


def _box(mask: np.ndarray, geometry: Geometry, reach_mm: float) -> tuple[slice, ...]:
    """The mask's bounding box with room for the reach and a voxel to peel."""
    bounds = []
    for axis, voxel in enumerate(geometry.voxel_mm):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        room = margin(reach_mm, voxel)
        bounds.append(slice(max(int(filled[0]) - room, 0), int(filled[-1]) + 1 + room))
    return tuple(bounds)


def margin(reach_mm: float, voxel_mm: float) -> int:
    """Voxels that the support can reach beyond the mask along an axis, and two more."""
    return math.ceil(reach_mm / voxel_mm) + 2


METHODS = {"brain": brain_alone, "bright_rim": bright_rim}
