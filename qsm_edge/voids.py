"""Layer 3: voids of the signal in a brain, and how far each may reach under the skull. Morphology, on the host."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage as ndi
from scipy.spatial import ConvexHull, QhullError

from qsm_edge.backend import on_host
from qsm_edge.distance import shallow_mm
from qsm_edge.fft import Triple, covering, fast_shape
from qsm_edge.types import Array, Geometry

#: Room against wrap-around of a void's own grid [mm]: its length, up to the first, and the second.
_LONGEST_MM, _BESIDE_MM = 48.0, 16.0
#: At most so many voids, the largest, whose own grids hold together no more than so many times the volume, or so many voxels.
_MOST, _LARGEST_SHARE, _ALWAYS = 40, 4.0, 2_000_000
#: What is lost may lie so far above the bright tissue about it, or half a voxel, and what a head of such a radius is curved [mm].
_ABOVE_MM, _HEAD_RADIUS_MM = 1.0, 70.0
#: Where less of what was lost than this share would stay, the tissue about it does not tell where the skull is.
_LEAST_SHARE = 0.25

Box = tuple[slice, ...]


class Place(NamedTuple):
    """The box of a void, that of its surroundings, and whether the surface is near."""

    core: Box
    around: Box
    near_surface: bool

    def grid(self, geometry: Geometry) -> Triple:
        """The shape of its own grid, with room against wrap-around."""
        pairs = list(zip(self.core, geometry.voxel_mm, strict=True))
        room = tuple(covering(min((c.stop - c.start) * v, _LONGEST_MM) + _BESIDE_MM, (v,))[0] for c, v in pairs)
        return fast_shape(tuple(b.stop - b.start for b in self.around), room)


@on_host
def find(
    weight: Array, mask: Array, geometry: Geometry, limit: float, least_ml: float, least_depth_mm: float, near_mm: float
) -> tuple[np.ndarray, np.ndarray, list[Place]]:
    """Voids, numbered from 1 (z, y, x), the voxels that lost their signal, bool, and of each void its place.

    A void is what hangs together with a weight below `limit`, `least_ml` or more of it below the outermost layer and some of it
    `least_depth_mm` deep, and the voxels next to it, of the outermost layer those alone that lost their signal as well.
    `near_mm` is the room about it, and how near a surface counts as near.
    """
    below = ndi.binary_erosion(mask)
    lost = mask & (weight < limit)
    # Sizes are asked before the neighbours join, or a noisy scan's single dark voxels would hang together.
    pieces, _ = ndi.label(lost & below)
    large = np.bincount(pieces.ravel()) * geometry.voxel_ml >= least_ml
    large[0] = False
    dark = large[pieces]
    labels, count = ndi.label(_filled(ndi.binary_dilation(dark) & (below | lost), dark))
    volume = np.bincount(labels[dark], minlength=count + 1)
    depth = shallow_mm(mask, geometry, max(least_depth_mm, near_mm))
    deep = np.bincount(labels[dark & (depth >= least_depth_mm)], minlength=count + 1) > 0
    near_surface = np.bincount(labels[depth <= near_mm], minlength=count + 1) > 0
    kept = np.flatnonzero((volume > 0) & deep)
    kept = kept[np.argsort(-volume[kept], kind="stable")][:_MOST]
    cores, room, places = ndi.find_objects(labels), covering(near_mm, geometry.voxel_mm), list[Place]()
    renumbered, left = np.zeros(count + 1, labels.dtype), max(_LARGEST_SHARE * mask.size, _ALWAYS)
    for k in kept:
        ends = zip(cores[k - 1], room, mask.shape, strict=True)
        around = tuple(slice(max(c.start - r, 0), min(c.stop + r, n)) for c, r, n in ends)
        place = Place(cores[k - 1], around, bool(near_surface[k]))
        left -= math.prod(place.grid(geometry))
        if left < 0:
            break
        places.append(place)
        renumbered[k] = len(places)
    return renumbered[labels], lost, places


def _filled(wide: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """With holes closed, where the voids around them are larger than they: a shell about the head is no bleed."""
    filled = ndi.binary_fill_holes(wide)
    labels, count = ndi.label(filled)
    holes = filled & ~wide
    hollow = np.bincount(labels[holes], minlength=count + 1) > np.bincount(labels[dark], minlength=count + 1)
    return np.asarray(filled & ~(holes & hollow[labels]))


@on_host
def under_the_skull(weight: Array, mask: Array, lost: Array, geometry: Geometry, bright_weight: float) -> np.ndarray:
    """Of the voxels that lost their signal, those within the convex hull of the bright tissue about them, or just above, bool.

    `weight`, and bool `mask` and `lost`, are of one box (z, y, x) that holds a void and its surroundings, and so is what comes
    back. A bleed under the skull and the skull itself are both dark, and a mask that is drawn too wide there holds both; but the
    inside of the skull bulges outwards no more than a head does, so that what rises further above the tissue at the bleed's edges
    is bone. Bright is a weight of `bright_weight` or more. Where there is too little of it to tell, all of them stay.
    """
    bright = mask & (weight >= bright_weight)
    voxel_mm = np.array(geometry.voxel_mm)
    asked = np.argwhere(lost)
    points = asked * voxel_mm
    try:
        planes = ConvexHull(np.argwhere(bright & ~ndi.binary_erosion(bright)) * voxel_mm).equations
    except (QhullError, ValueError):  # too few, or all in one slice
        return np.asarray(lost)
    above = np.full(len(points), -np.inf)
    for plane in planes:
        np.maximum(above, points @ plane[:3] + plane[3], out=above)
    room = max(_ABOVE_MM, max(geometry.voxel_mm) / 2) + _sagitta_mm(points[above <= 0])  # however wide the bone is
    within = asked[above <= room]
    if len(within) < _LEAST_SHARE * len(asked):
        return np.asarray(lost)
    out = np.zeros(lost.shape, dtype=bool)
    out[tuple(within.T)] = True
    return out


def _sagitta_mm(points_mm: np.ndarray) -> float:
    """How far a head rises above the chord that spans the narrower side of a void, of points (n, 3) [mm]."""
    if len(points_mm) < 4:
        return 0.0
    width = 2 * math.sqrt(5 * max(float(np.linalg.eigvalsh(np.cov(points_mm.T))[1]), 0.0))  # a ball's diameter
    return width**2 / (8 * _HEAD_RADIUS_MM)
