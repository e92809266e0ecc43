"""Layer 3: strong sources, told before the rest.

`METHODS[name](field_ppm, local_ppm, mask, geometry, weight, background, **options) -> Sources`.

A bleed or a calcification loses its own signal, and its field is many times that of all the tissue about it. Left to the
regularised inversion, it is shrunk and streaks; at the surface, the background removal takes a part of its field, and the rest is
doubted with the background's errors (`weights.robust_rim`). What is told here has its field taken off before those stages and
is added to their map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from qsm_edge import kernels, voids
from qsm_edge.backend import namespace
from qsm_edge.distance import within_mm
from qsm_edge.fft import Triple, covering, crop, fast_shape, irfftn, rfftn
from qsm_edge.solvers import cg, dot, neighbours
from qsm_edge.types import Array, Geometry, OnIteration

#: Room against wrap-around of the whole volume [mm].
_MARGIN_MM = 48.0
#: Sweeps over all voids: before they are judged, before the background is removed again, and after it.
_BEFORE, _BETWEEN, _AFTER = 2, 1, 2

#: `background(field_ppm, left_out)`: removes the background from another total field (z, y, x) without the voxels of `left_out`,
#: bool; gives back the local field [ppm], zero where it is not known, and where it is, bool.
Background = Callable[[Array, Array], tuple[Array, Array]]


class Sources(NamedTuple):
    """What is told, on the chain's grid (z, y, x).

    chi_ppm: zero where there is no source; a hole of the mask in a source is a part of it. field_ppm: what it gives rise to, in
    the whole volume. local_ppm: the local field, sources and all, which may be a better one than before, zero outside `known`,
    where it has a value.
    """

    chi_ppm: Array
    field_ppm: Array
    local_ppm: Array
    known: Array


def tell_none(
    field_ppm: Array, local_ppm: Array, mask: Array, geometry: Geometry, weight: Array, background: Background
) -> Sources:
    """No source is separated beforehand: the inversion finds all of them."""
    del field_ppm, geometry, weight, background
    zero = namespace(local_ppm).zeros_like(local_ppm)
    return Sources(zero, zero, local_ppm, mask)


def superposed(
    field_ppm: Array,
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    background: Background,
    *,
    weight_limit: float = 0.3,
    least_ml: float = 0.05,
    least_depth_mm: float = 3.0,
    near_mm: float = 8.0,
    least_explained: float = 0.75,
    least_explained_deep: float = 0.5,
    bright_weight: float = 0.6,
    noise_ppm: float = 0.02,
    spread_ppm: float = 1.0,
    evenness: float = 4.0,
    doubt_ppm: float = 0.1,
    cg_iterations: int = 15,
    backgrounds: int = 1,
    on_iteration: OnIteration | None = None,
) -> Sources:
    """Voids of the signal whose own susceptibility explains the field about them are inverted first, by weighted least squares,
    and where there are any the background is removed again without their field.

    Fields and weight (z, y, x) float32 and mask bool, the weight relative to 1 in ordinary tissue. A void is what hangs together
    with a weight below `weight_limit`, at least `least_ml` large and `least_depth_mm` deep below the surface somewhere, and the
    voxels next to it. The forty largest are fitted one after the other to the field that the others leave: by conjugate
    gradients that start from the best single susceptibility and whose end after `cg_iterations` regularises, with `noise_ppm` for
    the deviation of a voxel of weight one, `spread_ppm` for that of a voxel's susceptibility from that start, and `evenness`
    times as much weight on steps between voxels 1 mm apart; sources outside the mask within `near_mm` are fitted along and take
    what the background removal left there. After every sweep a voxel has half of its weight where `doubt_ppm` is unexplained, and
    `on_iteration` hears the sweep's number and the weighted root mean square of all that is unexplained [ppm]. `background` is
    called `backgrounds` times, each time after a sweep, with the field without the sources'; two more sweeps follow.

    A void is a source where a single susceptibility throughout, of the voxels that lost their signal alone, explains
    `least_explained` (above 1: never) or more of the weighted power of the field within `near_mm`, or, with no surface as near as
    that, `least_explained_deep`. In simulated heads bleeds at the surface have 0.83 and more, voids above the nose and the
    ears, whose sources lie outside, 0.66 at most (bench/NOTES.md): these are left alone. Of a source near the surface, what rises
    above the bright tissue about it is bone (`voids.under_the_skull`, `bright_weight`), not known and fitted like what is
    outside the mask. A background method that loses a rim of its mask loses it around that bone as well.
    Source: Sun et al., MRM 2016, doi:10.1002/mrm.25919 (superposed dipole inversion); what counts as a source, where it ends and
    the second removal of the background are ours.
    """
    xp = namespace(local_ppm)
    labels, lost, places = voids.find(weight, mask, geometry, weight_limit, least_ml, least_depth_mm, near_mm)
    nothing = tell_none(field_ppm, local_ppm, mask, geometry, weight, background)
    if not places or not bool(xp.any(mask & (weight > 0))):
        return nothing
    ridge = (noise_ppm / spread_ppm) ** 2
    found = [_Void(labels, lost, mask, k, place, geometry, near_mm) for k, place in enumerate(places, start=1)]
    whole = _Whole(local_ppm, mask, geometry, weight, doubt_ppm)
    number = 0

    def sweep(times: int) -> None:
        nonlocal number
        for _ in range(times):
            for void in found:
                before = void.own
                void.fit(whole.left(void.box), whole.power[void.box], ridge, evenness, cg_iterations)
                whole.field[void.box] += void.own - before  # the next one is fitted to what this one leaves
            whole.take(found)
            number += 1
            if on_iteration:
                on_iteration(number, whole.unexplained())

    sweep(_BEFORE)  # in the first one, each was fitted to some of the others' fields as well
    least = {True: least_explained, False: least_explained_deep}
    found = [void for void in found if void.explained(whole) >= least[void.near_surface]]
    if not found:
        return nothing
    bone = xp.zeros_like(mask)
    for void in found:
        if void.near_surface:
            bone[void.box] |= void.confine(weight[void.box], mask[void.box], geometry, bright_weight)
    known = mask & ~bone
    local = local_ppm * xp.astype(known, local_ppm.dtype)
    whole.look(local, known)
    whole.take(found)
    for _ in range(backgrounds):
        sweep(_BETWEEN)
        rest, known = background(field_ppm - whole.field, bone)
        local = rest + whole.field * xp.astype(known, rest.dtype)
        whole.look(local, known)
    sweep(_AFTER)
    return Sources(whole.chi, whole.field, local, known)


class _Whole:
    """The whole volume: what is known of the field, and what the voids make of it."""

    def __init__(self, local_ppm: Array, mask: Array, geometry: Geometry, weight: Array, doubt_ppm: float) -> None:
        self._weight, self._doubt_ppm = weight, doubt_ppm
        self._shape = fast_shape(local_ppm.shape, covering(_MARGIN_MM, geometry.voxel_mm))
        self._response = kernels.dipole(self._shape, geometry.voxel_mm, geometry.b0_dir, local_ppm)
        self.chi, self.field = (namespace(local_ppm).zeros_like(local_ppm) for _ in range(2))
        self.look(local_ppm, mask)

    def look(self, local_ppm: Array, mask: Array) -> None:
        """Take this for the local field, which is known in this mask."""
        xp = namespace(local_ppm)
        self._known = self._weight * xp.astype(mask, self._weight.dtype)
        power = self._known**2
        mean = float(xp.sum(local_ppm * power)) / max(float(xp.sum(power)), 1e-30)
        self._centred = xp.where(mask, local_ppm - mean, xp.zeros_like(local_ppm))
        self._doubt()

    def take(self, found: list[_Void]) -> None:
        """The susceptibility of these voids, its field on the whole grid, and less weight where that does not explain it."""
        xp = namespace(self.field)
        self.chi = xp.zeros_like(self.field)
        for void in found:
            self.chi[void.box] += void.chi
        self.field = _field(self.chi, self._response, self._shape)
        self._doubt()

    def _doubt(self) -> None:
        self.power = (self._known / (1 + ((self._centred - self.field) / self._doubt_ppm) ** 2)) ** 2

    def left(self, box: voids.Box) -> Array:
        """What is unexplained [ppm] in a box."""
        return self._centred[box] - self.field[box]

    def unexplained(self) -> float:
        """Weighted root mean square of what is left [ppm]."""
        xp = namespace(self.field)
        squares = float(xp.sum(self.power * (self._centred - self.field) ** 2))
        return math.sqrt(squares / max(float(xp.sum(self.power)), 1e-30))


class _Void:
    """A place where the signal is lost, and its surroundings, on a small grid of their own."""

    def __init__(
        self,
        labels: Array,
        lost: Array,
        mask: Array,
        number: int,
        place: voids.Place,
        geometry: Geometry,
        near_mm: float,
    ) -> None:
        self.box, self.near_surface = place.around, place.near_surface
        xp = namespace(labels)
        inside = labels[self.box] == number
        self._free = xp.astype(inside, xp.float32)
        self._lost = xp.astype(inside & lost[self.box], xp.float32)
        self._near = within_mm(inside, geometry, near_mm)
        self._beside = xp.astype(self._near & ~mask[self.box] & ~inside, xp.float32)
        self._shape = place.grid(geometry)
        self._response = kernels.dipole(self._shape, geometry.voxel_mm, geometry.b0_dir, self._free)
        self._steps = [1 / v**2 for v in geometry.voxel_mm]
        self._unit = self._spread(self._lost)
        self.chi = xp.zeros_like(self._free)
        self.own = xp.zeros_like(self._free)

    def confine(self, weight: Array, mask: Array, geometry: Geometry, bright_weight: float) -> Array:
        """Leave what lost its signal above the brain (`voids.under_the_skull`) to the surroundings; gives it back, bool.

        `weight` and `mask` are those of `box`.
        """
        xp = namespace(mask)
        lost = self._lost > 0
        bone = lost & ~voids.under_the_skull(weight, mask, lost, geometry, bright_weight)
        self._free = self._free * xp.astype(~bone, xp.float32)
        self._lost = self._lost * self._free
        self._unit = self._spread(self._lost)
        self._beside = self._beside + xp.astype(bone, xp.float32)
        self.chi = self.chi * self._free
        self.own = self._spread(self.chi)
        return bone

    def fit(self, left_ppm: Array, power: Array, ridge: float, evenness: float, iterations: int) -> None:
        """Susceptibility here that explains the field which the others leave, `left_ppm` in `box` plus its own of before."""
        target, unit = left_ppm + self.own, self._unit
        amount = dot(power * unit, target) / max(dot(power * unit, unit), 1e-30)
        start = amount * self._lost
        sources = self._free + self._beside
        found = cg(
            lambda x: (
                sources * self._spread(power * self._spread(sources * x)) + ridge * (x + evenness * self._uneven(x))
            ),
            sources * self._spread(power * target) + ridge * start,
            start=start,
            iterations=iterations,
        )
        self.chi = self._free * found
        self.own = self._spread(self.chi)

    def _spread(self, x: Array) -> Array:
        """The field of a susceptibility on the small grid, an operator that is its own adjoint."""
        return _field(x, self._response, self._shape)

    def _uneven(self, x: Array) -> Array:
        """Half the gradient of the sum of squared steps between neighbours that are both free, in units of 1 mm."""
        out = namespace(x).zeros_like(x)
        for axis, weight in enumerate(self._steps):
            first, second = neighbours(axis)
            step = weight * self._free[first] * self._free[second] * (x[second] - x[first])
            out[first] -= step
            out[second] += step
        return out

    def explained(self, whole: _Whole) -> float:
        """Share of the weighted power nearby, of the field that the others leave, that one susceptibility throughout explains."""
        xp = namespace(self.own)
        field, unit = whole.left(self.box) + self.own, self._unit
        weight = xp.where(self._near, whole.power[self.box], xp.zeros_like(field))
        total = dot(weight * field, field) * dot(weight * unit, unit)
        amount = dot(weight * unit, field)
        return amount * amount / total if total > 0 else 0.0


def _field(chi: Array, response: Array, shape: Triple) -> Array:
    """The field of a susceptibility, by the dipole's response on a grid of `shape` with room against wrap-around."""
    return crop(irfftn(response * rfftn(chi, shape), shape), chi.shape)


METHODS = {"superposed": superposed, "none": tell_none}
