"""Layer 2: distances inside a mask, computed on the host."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.backend import on_host
from qsm_edge.types import Array, Geometry

#: Voxels of reach beyond which a whole distance transform is quicker.
_FARTHEST = 24


@on_host
def depth_mm(mask: Array, geometry: Geometry) -> Array:
    """Distance [mm] of every voxel of the mask to the nearest voxel outside it; the volume's border counts as outside."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    depth = ndi.distance_transform_edt(padded, sampling=geometry.voxel_mm)
    return np.ascontiguousarray(depth[1:-1, 1:-1, 1:-1]).astype(np.float32)


@on_host
def shallow_mm(mask: Array, geometry: Geometry, limit_mm: float) -> Array:
    """`depth_mm` of voxels that lie at most `limit_mm` deep, infinity of those deeper inside."""
    inside = np.pad(np.asarray(mask, dtype=bool), 1)
    return np.ascontiguousarray(_limited(inside, geometry.voxel_mm, limit_mm)[1:-1, 1:-1, 1:-1])


@on_host
def within_mm(mask: Array, geometry: Geometry, reach_mm: float) -> Array:
    """Every voxel whose centre is at most `reach_mm` from the centre of one in the mask, bool."""
    near: np.ndarray = np.isfinite(_limited(~np.asarray(mask, dtype=bool), geometry.voxel_mm, reach_mm))
    return near


def _limited(inside: np.ndarray, voxel_mm: tuple[float, float, float], limit_mm: float) -> np.ndarray:
    """Distance [mm] of every voxel inside to the nearest one outside, infinity beyond `limit_mm`; float32.

    A reach of a few voxels takes an eighth of a distance transform: steps to the outside along x are counted, then the least
    sums of squares are taken along y and z.
    """
    reach = [math.ceil(limit_mm / voxel) for voxel in voxel_mm]
    if max(reach) > _FARTHEST:
        import scipy.ndimage as ndi

        if inside.all():
            return np.full(inside.shape, np.inf, np.float32)
        squares = ndi.distance_transform_edt(inside, sampling=voxel_mm) ** 2
    else:
        steps, eroded = inside.astype(np.uint8), inside
        for _ in range(reach[2]):
            narrower = eroded.copy()
            narrower[:, :, 1:] &= eroded[:, :, :-1]
            narrower[:, :, :-1] &= eroded[:, :, 1:]
            eroded = narrower
            steps += eroded
        line = (np.arange(reach[2] + 2) * voxel_mm[2]) ** 2
        line[-1] = np.inf
        squares = np.empty(inside.shape, np.float64)
        for z in range(inside.shape[0]):  # a slice at a time, which a core's cache holds
            squares[z] = _least(line[steps[z]], voxel_mm[1], reach[1])
        for y in range(inside.shape[1]):
            squares[:, y] = _least(np.ascontiguousarray(squares[:, y]), voxel_mm[0], reach[0])
    squares[squares > limit_mm**2 * (1 + 1e-6)] = np.inf
    distance: np.ndarray = np.sqrt(squares).astype(np.float32)
    return distance


def _least(squares: np.ndarray, voxel_mm: float, reach: int) -> np.ndarray:
    """For every row the least of the rows within `reach`, each with the square of its distance added."""
    least = squares.copy()
    for shift in range(1, min(reach, squares.shape[0] - 1) + 1):
        further = squares + (shift * voxel_mm) ** 2
        np.minimum(least[shift:], further[:-shift], out=least[shift:])
        np.minimum(least[:-shift], further[shift:], out=least[:-shift])
    return least
