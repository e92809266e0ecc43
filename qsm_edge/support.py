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
from qsm_edge.distance import within_mm
from qsm_edge.types import Array, Geometry


def brain_alone(magnitude: Array, mask: Array, geometry: Geometry) -> Array:
    """The brain mask itself."""
    del magnitude, geometry
    return mask


def bright_rim(
    magnitude: Array, mask: Array, geometry: Geometry, *, reach_mm: float = 6.0, least_signal: float = 0.5
) -> Array:
    """The brain mask and the fluid about it: what stays bright to the last echo within `reach_mm` of the mask.

    Bright is a magnitude above `least_signal` times the brain's median in every echo, so that bone, air, marrow and the
    voxels that they share with fluid stay out: they decay fast. The layer is peeled by a voxel, which breaks bridges
    through the skull, and only what hangs together with the mask counts. magnitude (echo, z, y, x); bool (z, y, x) comes
    back, and holds the mask. NOT checked: that it is water; fat which keeps its signal would have to touch the fluid.
    """
    xp = namespace(magnitude)
    return _grown(xp.min(magnitude, axis=0), mask, geometry, reach_mm, least_signal)


@on_host
def _grown(weakest: Array, mask: Array, geometry: Geometry, reach_mm: float, least_signal: float) -> Array:
    level = float(np.median(weakest[mask])) if mask.any() else 0.0
    if level <= 0:
        return mask
    box = _box(mask, geometry, reach_mm)
    brain = mask[box]
    bright = brain | (weakest[box] > least_signal * level)
    # Beyond the volume nothing is known, and the peeling treats it so.
    peeled = ndi.binary_erosion(bright)
    near = within_mm(brain, geometry, reach_mm)
    out = np.zeros_like(mask)
    out[box] = ndi.binary_propagation(brain, mask=brain | (peeled & near))
    return out


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
