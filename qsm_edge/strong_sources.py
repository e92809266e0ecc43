"""Layer 3: strong sources, told before the rest. `METHODS[name](local_ppm, mask, geometry, weight, **options) -> chi, field`.

A bleed or a calcification loses its own signal, and its field is many times that of all the tissue about it. Left to the
regularised inversion, it is shrunk and streaks; at the surface its field is doubted with the background's errors
(`weights.robust_rim`). What is told here has its field taken off before those stages and is added to their map.

chi: (z, y, x) [ppm], zero where there is no source; field: what it gives rise to [ppm], in the whole volume.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage as ndi

from qsm_edge import kernels
from qsm_edge.backend import namespace, on_host
from qsm_edge.distance import shallow_mm, within_mm
from qsm_edge.fft import Triple, covering, crop, fast_shape, irfftn, pad, rfftn
from qsm_edge.solvers import cg, dot, neighbours
from qsm_edge.types import Array, Geometry

#: Room against wrap-around [mm]: of the whole volume; of a void's own grid its length, up to the second, and the third.
_MARGIN_MM, _LONGEST_MM, _BESIDE_MM = 48.0, 48.0, 16.0
#: At most so many voids, the largest, whose own grids hold together no more than so many times the volume, or so many voxels.
_MOST, _LARGEST_SHARE, _ALWAYS = 40, 4.0, 2_000_000
_SWEEPS, _JUDGED_IN = 3, 1
#: Of the susceptibility next to it, what a voxel of the outermost layer has: the rest of it is bone.
_OUTERMOST = 0.5

Box = tuple[slice, ...]


class _Place(NamedTuple):
    """The box of a void, that of its surroundings, and whether the surface is near."""

    core: Box
    around: Box
    near_surface: bool

    def grid(self, geometry: Geometry) -> Triple:
        """The shape of its own grid, with room against wrap-around."""
        pairs = list(zip(self.core, geometry.voxel_mm, strict=True))
        room = tuple(covering(min((c.stop - c.start) * v, _LONGEST_MM) + _BESIDE_MM, (v,))[0] for c, v in pairs)
        return fast_shape(tuple(b.stop - b.start for b in self.around), room)


def tell_none(local_ppm: Array, mask: Array, geometry: Geometry, weight: Array) -> tuple[Array, Array]:
    """No source is separated beforehand: the inversion finds all of them."""
    del mask, geometry, weight
    zero = namespace(local_ppm).zeros_like(local_ppm)
    return zero, zero


def superposed(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    weight_limit: float = 0.3,
    least_ml: float = 0.05,
    least_depth_mm: float = 3.0,
    near_mm: float = 8.0,
    least_explained: float = 0.75,
    least_explained_deep: float = 0.5,
    noise_ppm: float = 0.02,
    spread_ppm: float = 1.0,
    doubt_ppm: float = 0.1,
    iterations: int = 15,
) -> tuple[Array, Array]:
    """Voids of the signal whose own susceptibility explains the field about them are inverted first, by weighted least squares.

    local_ppm, weight (z, y, x) float32 and mask bool, the weight relative to 1 in ordinary tissue; chi [ppm] and its field [ppm]
    come back, float32, zero where nothing is told. A void is what hangs together with a weight below `weight_limit`, at least
    `least_ml` large and `least_depth_mm` deep below the surface somewhere, and the voxels next to it; voxels of the outermost
    layer, shared with bone, follow at half where they lost their signal. The forty largest are fitted one after the other to the
    field that the others leave, by conjugate gradients whose end after `iterations` regularises, with `noise_ppm` for the
    deviation of a voxel of weight one and `spread_ppm` for that of the susceptibility; after every sweep a voxel has half of
    its weight where `doubt_ppm` is left unexplained. A void is a source where a single susceptibility throughout, of the voxels
    that lost their signal alone, explains `least_explained` (above 1: never) or more of the weighted power of the field
    within `near_mm`, or, with no surface as near as that, `least_explained_deep`. In simulated heads bleeds at the surface
    have 0.82 and more, voids above the nose and the ears, whose sources lie outside, 0.67 at most (bench/NOTES.md): these are
    left alone.
    Source: Sun et al., MRM 2016, doi:10.1002/mrm.25919 (superposed dipole inversion); what counts as a source is ours.
    """
    xp = namespace(local_ppm)
    labels, lost, places = _voids(weight, mask, geometry, weight_limit, least_ml, least_depth_mm, near_mm)
    chi, field = xp.zeros_like(local_ppm), xp.zeros_like(local_ppm)
    known = weight * xp.astype(mask, weight.dtype)
    power = known**2
    whole = float(xp.sum(power))
    if not places or whole <= 0:
        return chi, field
    centred = xp.where(mask, local_ppm - float(xp.sum(local_ppm * power)) / whole, field)
    ridge = (noise_ppm / spread_ppm) ** 2

    def doubted(left: Array) -> Array:
        return (known / (1 + (left / doubt_ppm) ** 2)) ** 2

    found = [_Void(labels, lost, k, place, geometry, near_mm) for k, place in enumerate(places, start=1)]
    for sweep in range(_SWEEPS):
        for void in found:
            before = void.own
            void.fit(centred[void.box] - field[void.box], power[void.box], ridge, iterations)
            field[void.box] += void.own - before  # the next one is fitted to what this one leaves
        chi, field = _together(found, chi, geometry)
        power = doubted(centred - field)
        if sweep == _JUDGED_IN:  # in the first sweep, each was fitted to some of the others' fields as well
            left, least = centred - field, {True: least_explained, False: least_explained_deep}
            true = [void for void in found if void.explained(left, power) >= least[void.near_surface]]
            if len(true) < len(found):
                found = true
                chi, field = _together(found, chi, geometry)
                power = doubted(centred - field)
    return chi, field


@on_host
def _voids(
    weight: Array, mask: Array, geometry: Geometry, limit: float, least_ml: float, least_depth_mm: float, near_mm: float
) -> tuple[np.ndarray, np.ndarray, list[_Place]]:
    """Voids, numbered from 1, and of each its own box and that of its surroundings."""
    below = ndi.binary_erosion(mask)  # left free, the outermost voxels would explain the bone's field
    lost = mask & (weight < limit)
    voxel_ml = math.prod(geometry.voxel_mm) / 1000
    # Sizes are asked before the neighbours join, or a noisy scan's single dark voxels would hang together.
    pieces, _ = ndi.label(lost & below)
    large = np.bincount(pieces.ravel()) * voxel_ml >= least_ml
    large[0] = False
    dark = large[pieces]
    labels, count = ndi.label(_filled(ndi.binary_dilation(dark) & below, dark))
    volume = np.bincount(labels[dark], minlength=count + 1)
    depth = shallow_mm(mask, geometry, max(least_depth_mm, near_mm))
    deep = np.bincount(labels[dark & (depth >= least_depth_mm)], minlength=count + 1) > 0
    near_surface = np.bincount(labels[depth <= near_mm], minlength=count + 1) > 0
    kept = np.flatnonzero((volume > 0) & deep)
    kept = kept[np.argsort(-volume[kept], kind="stable")][:_MOST]
    cores, room, places = ndi.find_objects(labels), covering(near_mm, geometry.voxel_mm), list[_Place]()
    renumbered, left = np.zeros(count + 1, labels.dtype), max(_LARGEST_SHARE * mask.size, _ALWAYS)
    for k in kept:
        ends = zip(cores[k - 1], room, mask.shape, strict=True)
        around = tuple(slice(max(c.start - r, 0), min(c.stop + r, n)) for c, r, n in ends)
        place = _Place(cores[k - 1], around, bool(near_surface[k]))
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


class _Void:
    """A place where the signal is lost, and its surroundings, on a small grid of their own."""

    def __init__(
        self, labels: Array, lost: Array, number: int, place: _Place, geometry: Geometry, near_mm: float
    ) -> None:
        xp = namespace(labels)
        self.box, self.near_surface = place.around, place.near_surface
        inside = labels[self.box] == number
        self._free = xp.astype(inside, xp.float32)
        touching = _around(self._free)
        tied = lost[self.box] & ~inside & (touching > 0)
        self._lost = xp.astype(lost[self.box] & (inside | tied), xp.float32)
        self._tie = _OUTERMOST * xp.astype(tied, xp.float32) / xp.maximum(touching, xp.ones_like(touching))
        self._near = within_mm(inside, geometry, near_mm)
        self._shape = place.grid(geometry)
        self._response = kernels.dipole(self._shape, geometry.voxel_mm, geometry.b0_dir, self._free)
        self.chi = xp.zeros_like(self._free)
        self.own = xp.zeros_like(self._free)

    def fit(self, left_ppm: Array, weight: Array, ridge: float, iterations: int) -> None:
        """Susceptibility here that explains the field which the others leave, `left_ppm` in `box` plus its own of before."""
        target = left_ppm + self.own
        free = cg(
            lambda chi: self._gathered(self._spread(weight * self._spread(self._tied(chi)))) + ridge * chi,
            self._gathered(self._spread(weight * target)),
            iterations=iterations,
        )
        self.chi = self._tied(free)
        self.own = self._spread(self.chi)

    def _spread(self, x: Array) -> Array:
        """The field of a susceptibility on the small grid, an operator that is its own adjoint."""
        return crop(irfftn(self._response * rfftn(pad(x, self._shape)), self._shape), self._free.shape)

    def _tied(self, chi: Array) -> Array:
        """What is free, and in voxels of the outermost layer half of the mean of those next to them that are."""
        return chi + self._tie * _around(chi)

    def _gathered(self, x: Array) -> Array:
        """The adjoint of `_tied`."""
        return self._free * (x + _around(self._tie * x))

    def explained(self, left_ppm: Array, power: Array) -> float:
        """Share of the weighted power nearby, of the field that the others leave, that one susceptibility throughout explains."""
        xp = namespace(power)
        field = left_ppm[self.box] + self.own
        weight = xp.where(self._near, power[self.box], xp.zeros_like(field))
        unit = self._spread(self._lost)
        whole = dot(weight * field, field) * dot(weight * unit, unit)
        return dot(weight * unit, field) ** 2 / whole if whole > 0 else 0.0


def _around(x: Array) -> Array:
    """Sum over the six neighbours, zero beyond the border."""
    total = namespace(x).zeros_like(x)
    for axis in range(3):
        first, second = neighbours(axis)
        total[first] += x[second]
        total[second] += x[first]
    return total


def _together(voids: list[_Void], like: Array, geometry: Geometry) -> tuple[Array, Array]:
    """The susceptibility of all and its field, on the whole grid."""
    xp = namespace(like)
    chi = xp.zeros_like(like)
    if not voids:
        return chi, chi
    for void in voids:
        chi[void.box] += void.chi
    shape = fast_shape(chi.shape, covering(_MARGIN_MM, geometry.voxel_mm))
    response = kernels.dipole(shape, geometry.voxel_mm, geometry.b0_dir, chi)
    return chi, crop(irfftn(response * rfftn(pad(chi, shape)), shape), chi.shape)


METHODS = {"superposed": superposed, "none": tell_none}
