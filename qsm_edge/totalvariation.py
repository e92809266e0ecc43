"""Layer 3: total variation by ADMM, the machinery of the inversions that use it (a member of `invert`).

The work on voxels is done slab by slab (`backend.by_slabs`): a pass over a volume is bound by memory, and what a slab needs
stays in the processor's cache. Of each split variable and its scaled dual only their sum is kept, from which both follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from qsm_edge import kernels
from qsm_edge.backend import by_slabs, namespace
from qsm_edge.fft import Triple, covering, fast_shape, irfftn, pad, rfftn
from qsm_edge.solvers import dot
from qsm_edge.types import Array, Geometry, OnIteration

#: (values of a slab, the slab) -> the proximal map of the data term there.
Proximal = Callable[[Array, slice], Array]

#: Over-relaxation of ADMM (Boyd et al., Found Trends Mach Learn 2010, doi:10.1561/2200000016): the same answer, sooner.
RELAXATION = 1.7


@dataclass(frozen=True)
class Problem:
    """Total-variation inversion on its padded grid: field, squared weights, the penalty's share of a step along each axis, and
    of the half spectrum the dipole response and the gradient's power."""

    shape: Triple
    voxel_mm: tuple[float, float, float]
    response: Array
    gradient_power: Array
    field: Array
    power: Array
    edges: tuple[Array, ...]


def grid(local_ppm: Array, geometry: Geometry, margin_mm: float) -> tuple[Triple, Array]:
    """Padded shape and dipole response there."""
    shape = fast_shape(local_ppm.shape, covering(margin_mm, geometry.voxel_mm))
    return shape, kernels.dipole(shape, geometry.voxel_mm, geometry.b0_dir, local_ppm)


def problem_of(
    local_ppm: Array, mask: Array, geometry: Geometry, weight: Array, margin_mm: float, edges: Array | None = None
) -> Problem:
    """The problem of a field without its weighted mean; without `edges` every step pays alike."""
    xp = namespace(local_ppm)
    shape, response = grid(local_ppm, geometry, margin_mm)
    inside = xp.astype(mask, xp.float32)
    power = (weight * inside) ** 2
    centre = xp.sum(local_ppm * power) / xp.maximum(
        xp.sum(power), xp.asarray(1e-12, dtype=power.dtype, device=power.device)
    )
    power_grad = kernels.gradient_power(shape, geometry.voxel_mm, local_ppm)
    field = pad((local_ppm - centre) * inside, shape)
    shares = tuple(xp.ones_like(field) if edges is None else pad(edges[axis, ...], shape) for axis in range(3))
    return Problem(shape, geometry.voxel_mm, response, power_grad, field, pad(power, shape), shares)


class SplitGradient:
    """The gradient of chi as ADMM splits it off: along each axis the sum v of the shrunk slope and its scaled dual.

    The dual is v clipped at the threshold, the shrunk slope what is left of v.
    """

    def __init__(self, problem: Problem, threshold: float, relaxation: float = 1.0) -> None:
        xp = namespace(problem.field)
        self._voxel_mm, self._relaxation = problem.voxel_mm, relaxation
        self._limits = tuple(share * threshold for share in problem.edges)
        self._sums = tuple(xp.zeros_like(problem.field) for _ in range(3))

    def divergence(self) -> Array:
        """Adjoint of the gradient, applied to what chi's slopes are to follow: shrunk slope less dual."""
        xp = namespace(self._sums[0])
        total = xp.empty_like(self._sums[0])
        count = total.shape[0]

        def work(at: slice) -> None:
            last = (at.start - 1) % count
            part = None
            for axis, (sums, limits) in enumerate(zip(self._sums, self._limits, strict=True)):
                pull = sums[at, ...] - 2 * _clipped(sums[at, ...], limits[at, ...])
                if axis == 0:
                    first = sums[last : last + 1, ...]
                    first = first - 2 * _clipped(first, limits[last : last + 1, ...])
                    back = xp.concat([first, pull[:-1, ...]], axis=0)
                else:
                    back = xp.roll(pull, 1, axis=axis)
                step = (back - pull) * (1.0 / self._voxel_mm[axis])
                part = step if part is None else part + step
            total[at, ...] = part

        by_slabs(work, total)
        return total

    def follow(self, chi: Array) -> None:
        """Shrink the slopes of a new chi by the threshold and carry what that took off into the duals."""
        xp = namespace(chi)
        count, relaxation = chi.shape[0], self._relaxation

        def work(at: slice) -> None:
            here = chi[at, ...]
            after = at.stop % count
            for axis, (sums, limits) in enumerate(zip(self._sums, self._limits, strict=True)):
                if axis == 0:
                    ahead = xp.concat([here[1:, ...], chi[after : after + 1, ...]], axis=0)
                else:
                    ahead = xp.roll(here, -1, axis=axis)
                slope = (ahead - here) * (1.0 / self._voxel_mm[axis])
                kept = sums[at, ...]
                moved = relaxation * (slope + _clipped(kept, limits[at, ...]))
                sums[at, ...] = moved if relaxation == 1 else moved + (1 - relaxation) * kept

        by_slabs(work, chi)


def _clipped(x: Array, limit: Array) -> Array:
    xp = namespace(x)
    return xp.minimum(xp.maximum(x, -limit), limit)


def moved_by(before: Array, after: Array, power: Array) -> float:
    """How far an iteration moved the solution, relative to its norm, both where the data have a weight.

    Beyond the mask sources are free and go on moving for long; nobody looks at them.
    """
    xp = namespace(after)

    def work(at: slice) -> tuple[float, float]:
        inside = xp.astype(power[at, ...] > 0, after.dtype)
        value = after[at, ...] * inside
        change = value - before[at, ...] * inside
        return dot(change, change), dot(value, value)

    sums = by_slabs(work, after)
    return math.sqrt(sum(s[0] for s in sums) / max(sum(s[1] for s in sums), 1e-30))


def admm(
    problem: Problem,
    regularisation: float,
    penalty: float,
    data_penalty: float,
    fidelity: Proximal,
    start: Array,
    iterations: int,
    tolerance: float,
    on_iteration: OnIteration | None,
) -> Array:
    """min over chi of fidelity(D chi) + regularisation |grad chi|_1 by ADMM with both terms split; 4 real FFTs a pass.

    `fidelity` is the proximal map of the data term at strength `data_penalty`, `start` the field that the first pass
    follows. Ends when chi changes by less than `tolerance` of itself. chi comes back on the padded grid.
    """
    xp = namespace(problem.field)
    response = problem.response
    total = penalty * problem.gradient_power + data_penalty * response**2
    inverse = 1 / xp.where(total == 0, xp.ones_like(total), total)
    slopes = SplitGradient(problem, regularisation / penalty, RELAXATION)
    chi = xp.zeros_like(problem.field)
    wanted, sums = start, None  # what D chi is to follow; the split field and its scaled dual
    for number in range(1, iterations + 1):
        spectrum, pulled = rfftn(slopes.divergence()), rfftn(wanted)

        def solve(at: slice, spectrum: Array = spectrum, pulled: Array = pulled) -> None:
            weighted = response[at, ...] * pulled[at, ...] * data_penalty
            spectrum[at, ...] = (penalty * spectrum[at, ...] + weighted) * inverse[at, ...]
            pulled[at, ...] = response[at, ...] * spectrum[at, ...]

        by_slabs(solve, spectrum)
        field = irfftn(pulled, problem.shape)
        before, chi = chi, irfftn(spectrum, problem.shape)
        slopes.follow(chi)
        if sums is None:
            sums = RELAXATION * field + (1 - RELAXATION) * start
            wanted = xp.empty_like(sums)

        def follow(
            at: slice, field: Array = field, sums: Array = sums, wanted: Array = wanted, first: bool = number == 1
        ) -> None:
            if not first:
                sums[at, ...] = sums[at, ...] + RELAXATION * (field[at, ...] - fidelity(sums[at, ...], at))
            wanted[at, ...] = 2 * fidelity(sums[at, ...], at) - sums[at, ...]

        by_slabs(follow, sums)
        moved = moved_by(before, chi, problem.power)
        if on_iteration:
            on_iteration(number, moved)
        if moved < tolerance:
            break
    return chi
