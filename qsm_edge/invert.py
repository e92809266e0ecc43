"""Layer 3: dipole inversion. `METHODS[name](local_ppm, mask, geometry, weight, **options) -> chi_ppm`.

local_ppm: field of the sources inside the mask, (z, y, x) float32. weight: relative reliability, about 1, 0 for none.
chi_ppm: susceptibility up to a constant, zero outside the mask. Every method pads by `margin_mm`, so that the dipole
responses of opposite faces do not meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from qsm_edge import kernels
from qsm_edge.backend import namespace
from qsm_edge.fft import Triple, crop, fast_shape, irfftn, pad, rfftn
from qsm_edge.solvers import adjoint_difference, dot, forward_difference, shrink
from qsm_edge.types import Array, Geometry, OnIteration

Proximal = Callable[[Array], Array]


def _grid(local_ppm: Array, geometry: Geometry, margin_mm: float) -> tuple[Triple, Array]:
    shape = fast_shape(local_ppm.shape, tuple(int(margin_mm / v) + 1 for v in geometry.voxel_mm))
    return shape, kernels.dipole(shape, geometry.voxel_mm, geometry.b0_dir, local_ppm)


#: A closed form has no weights: what is trusted less than this share of ordinary tissue fades out of the field instead.
_TRUSTED = 0.3


def _filtered(
    local_ppm: Array, mask: Array, geometry: Geometry, weight: Array, margin_mm: float, inverse: Proximal
) -> Array:
    """Closed-form inversions: one multiplication in k-space."""
    xp = namespace(local_ppm)
    shape, response = _grid(local_ppm, geometry, margin_mm)
    inside = xp.astype(mask, xp.float32)
    faded = local_ppm * inside * xp.clip(weight / _TRUSTED, 0.0, 1.0)
    chi = irfftn(inverse(response) * rfftn(faded, shape), shape)
    return crop(chi, local_ppm.shape) * inside


def tkd(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    threshold: float = 0.15,
    margin_mm: float = 24.0,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Thresholded k-space division: 1 / D where |D| > threshold, sign(D) / threshold elsewhere (0 < threshold < 2/3).

    Fast and linear, with streaks and an underestimation that grows with the threshold. Voxels of weight
    below 0.3 fade out of the field.
    Source: Shmueli et al., MRM 2009, doi:10.1002/mrm.22135.
    """
    xp = namespace(local_ppm)

    def inverse(response: Array) -> Array:
        usable = xp.abs(response) > threshold
        return xp.where(usable, 1 / xp.where(usable, response, xp.ones_like(response)), xp.sign(response) / threshold)

    chi = _filtered(local_ppm, mask, geometry, weight, margin_mm, inverse)
    if on_iteration:
        on_iteration(1, 0.0)
    return chi


def tikhonov(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    regularisation: float = 0.01,
    margin_mm: float = 24.0,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Closed-form Tikhonov inversion, D / (D^2 + regularisation). Voxels of weight below 0.3 fade out
    of the field.

    Source: Bilgic et al., JMRI 2014, doi:10.1002/jmri.24365.
    """
    chi = _filtered(
        local_ppm, mask, geometry, weight, margin_mm, lambda response: response / (response**2 + regularisation)
    )
    if on_iteration:
        on_iteration(1, 0.0)
    return chi


@dataclass(frozen=True)
class _Problem:
    """Total-variation inversion on its padded grid."""

    shape: Triple
    voxel_mm: tuple[float, float, float]
    response: Array
    gradient_power: Array
    field: Array
    power: Array
    inside: Array


def _problem(local_ppm: Array, mask: Array, geometry: Geometry, weight: Array, margin_mm: float) -> _Problem:
    xp = namespace(local_ppm)
    shape, response = _grid(local_ppm, geometry, margin_mm)
    inside = xp.astype(mask, xp.float32)
    power = (weight * inside) ** 2
    centre = xp.sum(local_ppm * power) / xp.maximum(
        xp.sum(power), xp.asarray(1e-12, dtype=power.dtype, device=power.device)
    )
    power_grad = kernels.gradient_power(shape, geometry.voxel_mm, local_ppm)
    return _Problem(
        shape,
        geometry.voxel_mm,
        response,
        power_grad,
        pad((local_ppm - centre) * inside, shape),
        pad(power, shape),
        pad(inside, shape),
    )


#: Over-relaxation of ADMM (Boyd et al., Found Trends Mach Learn 2010, doi:10.1561/2200000016): the same answer, sooner.
_RELAXATION = 1.7

#: How much a slope outside the mask counts. Little, so that sources there take up what background removal left, instead of
#: the brain; with none, a phantom without any background loses another 2 % of its slope (bench/NOTES.md).
_OUTSIDE = 0.01


class _SplitGradient:
    """The gradient of chi as ADMM splits it off: along each axis the shrunk slope and its scaled dual.

    inside: 1 where slopes count in full, 0 where they count by `_OUTSIDE`; a slope is inside when both its voxels are.
    """

    def __init__(self, problem: _Problem, inside: Array | None = None) -> None:
        self._inside = inside
        self._voxel_mm = problem.voxel_mm
        self._splits = [namespace(problem.field).zeros_like(problem.field) for _ in range(3)]
        self._duals = list(self._splits)

    def divergence(self) -> Array:
        """Adjoint of the gradient, applied to what chi's slopes are to follow."""
        total = namespace(self._splits[0]).zeros_like(self._splits[0])
        for axis in range(3):
            total = total + adjoint_difference(self._splits[axis] - self._duals[axis], axis, self._voxel_mm[axis])
        return total

    def follow(self, chi: Array, threshold: float, relaxation: float = 1.0) -> None:
        """Shrink the slopes of a new chi by `threshold` and carry what that took off into the duals."""
        for axis in range(3):
            slope = relaxation * forward_difference(chi, axis, self._voxel_mm[axis])
            slope = slope + (1 - relaxation) * self._splits[axis] + self._duals[axis]
            limit: Array | float = threshold
            if self._inside is not None:
                both = self._inside * namespace(chi).roll(self._inside, -1, axis=axis)
                limit = threshold * (_OUTSIDE + (1 - _OUTSIDE) * both)
            self._splits[axis] = shrink(slope, limit)
            self._duals[axis] = slope - self._splits[axis]


def _moved(before: Array, after: Array) -> float:
    """How far an iteration moved the solution, relative to its norm."""
    change = after - before
    return math.sqrt(dot(change, change) / max(dot(after, after), 1e-30))


def _admm_tv(
    problem: _Problem,
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

    The gradient outside the mask hardly counts (after weak-harmonic QSM: Milovic et al., MRM 2019, doi:10.1002/mrm.27483).
    `fidelity` is the proximal map of the data term at strength `data_penalty`. Ends when chi changes by less than
    `tolerance` of itself.
    """
    xp = namespace(problem.field)
    spectrum_weight = penalty * problem.gradient_power + data_penalty * problem.response**2
    spectrum_weight = xp.where(spectrum_weight == 0, xp.ones_like(spectrum_weight), spectrum_weight)
    response = problem.response
    slopes = _SplitGradient(problem, problem.inside)
    predicted, data_dual = start, xp.zeros_like(problem.field)
    chi = xp.zeros_like(problem.field)
    for number in range(1, iterations + 1):
        spectrum = penalty * rfftn(slopes.divergence())
        spectrum = (spectrum + data_penalty * response * rfftn(predicted - data_dual)) / spectrum_weight
        field = irfftn(response * spectrum, problem.shape)
        before, chi = chi, irfftn(spectrum, problem.shape)
        slopes.follow(chi, regularisation / penalty, _RELAXATION)
        shifted = _RELAXATION * field + (1 - _RELAXATION) * predicted + data_dual
        predicted = fidelity(shifted)
        data_dual = shifted - predicted
        moved = _moved(before, chi)
        if on_iteration:
            on_iteration(number, moved)
        if moved < tolerance:
            break
    return chi


def noise_ppm(local_ppm: Array, mask: Array) -> float:
    """Standard deviation [ppm] of the noise of a field, from its finest diagonal differences inside the mask.

    The robust spread (median absolute value) of the Haar wavelet that differs along all three axes: anatomy has next to
    none of it. Too small where the scanner interpolated. Source: Donoho & Johnstone, Biometrika 1994,
    doi:10.1093/biomet/81.3.425.
    """
    xp = namespace(local_ppm)
    fine, inside = local_ppm, mask
    for axis in range(3):
        near, far = [slice(None)] * 3, [slice(None)] * 3
        near[axis], far[axis] = slice(None, -1), slice(1, None)
        fine = fine[tuple(far)] - fine[tuple(near)]
        inside = inside[tuple(far)] & inside[tuple(near)]
    values = xp.sort(xp.abs(fine[inside]))
    count = values.shape[0]
    return float(values[count // 2]) / (0.6745 * math.sqrt(8.0)) if count else 0.0


def _noise_factor(local_ppm: Array, mask: Array, reference_noise_ppm: float) -> float:
    """How much more regularisation the noise asks for: 1 up to the reference noise, then in proportion, 20 at most."""
    return min(max(1.0, noise_ppm(local_ppm, mask) / max(reference_noise_ppm, 1e-9)), 20.0)


def _weighted_tv(
    problem: _Problem,
    power: Array,
    regularisation: float,
    penalty: float,
    data_penalty: float,
    iterations: int,
    tolerance: float,
    on_iteration: OnIteration | None,
) -> Array:
    """Total variation with the least-squares data term of squared weights `power`."""
    weighted, total = power * problem.field, power + data_penalty

    def quadratic(x: Array) -> Array:
        return (weighted + data_penalty * x) / total

    start = weighted / total
    return _admm_tv(
        problem, regularisation, penalty, data_penalty, quadratic, start, iterations, tolerance, on_iteration
    )


def tv(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    regularisation: float = 1e-4,
    reference_noise_ppm: float = 0.0014,
    penalty: float = 1e-2,
    data_penalty: float = 0.1,
    iterations: int = 40,
    tolerance: float = 0.001,
    margin_mm: float = 12.0,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Weighted total variation: min 1/2 |W (D chi - f)|^2 + regularisation |grad chi|_1, by ADMM.

    `regularisation` in ppm mm holds up to a field noise of `reference_noise_ppm` and grows in proportion beyond it (as
    `noise_ppm` measures it), `penalty` with it. The penalties are ADMM's and change the speed, not the answer, once
    converged: a small `data_penalty` lets strong sources (bleeds) reach their value in tens of passes, not hundreds.
    Source: Bilgic et al., MRM 2014, doi:10.1002/mrm.25029; Milovic et al., MRM 2018, doi:10.1002/mrm.27073.
    """
    problem = _problem(local_ppm, mask, geometry, weight, margin_mm)
    factor = _noise_factor(local_ppm, mask, reference_noise_ppm)
    chi = _weighted_tv(
        problem,
        problem.power,
        factor * regularisation,
        factor * penalty,
        data_penalty,
        iterations,
        tolerance,
        on_iteration,
    )
    return crop(chi, local_ppm.shape) * namespace(local_ppm).astype(mask, local_ppm.dtype)


def hdqsm(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    regularisation: float = 1e-4,
    reference_noise_ppm: float = 0.0014,
    penalty: float = 1e-2,
    data_penalty: float = 0.1,
    first_regularisation: float = 4e-3,
    first_iterations: int = 20,
    outlier_ppm: float = 0.02,
    iterations: int = 40,
    tolerance: float = 0.02,
    margin_mm: float = 12.0,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Hybrid data fidelity: an L1 data term finds the voxels whose field no susceptibility explains, then weighted TV.

    First min |W (D chi - f)|_1 + first_regularisation |grad chi|_1, which no few wrong voxels can bend; where its
    residual exceeds `outlier_ppm`, the weights of the least-squares pass fall with its square. Streaks from the rim of
    bleeds and calcifications then stay out, without a hole in the mask.
    Source: Lambert et al., MRM 2022, doi:10.1002/mrm.29218; Milovic et al., MRM 2022, doi:10.1002/mrm.28957.
    """
    xp = namespace(local_ppm)
    problem = _problem(local_ppm, mask, geometry, weight, margin_mm)
    strength = xp.sqrt(problem.power)
    factor = _noise_factor(local_ppm, mask, reference_noise_ppm)

    def absolute(x: Array) -> Array:
        return problem.field + shrink(x - problem.field, strength * (1 / 20.0))

    trusted = problem.field * xp.astype(strength > 0, xp.float32)
    first = _admm_tv(
        problem, first_regularisation, 10 * first_regularisation, 20.0, absolute, trusted,
        first_iterations, tolerance, on_iteration,
    )  # fmt: skip
    miss = (irfftn(problem.response * rfftn(first), problem.shape) - problem.field) / outlier_ppm
    power = problem.power / (1 + miss**2) ** 2
    chi = _weighted_tv(
        problem, power, factor * regularisation, factor * penalty, data_penalty, iterations, tolerance, on_iteration
    )
    return crop(chi, local_ppm.shape) * xp.astype(mask, local_ppm.dtype)


def rts(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    threshold: float = 0.15,
    regularisation: float = 1e-3,
    penalty: float = 1e-1,
    iterations: int = 30,
    tolerance: float = 0.01,
    margin_mm: float = 24.0,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Rapid two-step: k-space is divided where that is well conditioned, and total variation fills in the rest.

    Well conditioned is |D| > threshold; there chi stays at the division's value up to a quadratic penalty of one.
    Voxels of weight below 0.3 fade out of the field. Source: Kames et al., NeuroImage 2018,
    doi:10.1016/j.neuroimage.2017.11.018.
    """
    xp = namespace(local_ppm)
    problem = _problem(local_ppm, mask, geometry, weight, margin_mm)
    usable = xp.abs(problem.response) > threshold
    held = xp.astype(usable, xp.float32)
    division = xp.where(usable, 1 / xp.where(usable, problem.response, xp.ones_like(problem.response)), 0 * held)
    target = division * rfftn(problem.field * xp.clip(xp.sqrt(problem.power) / _TRUSTED, 0.0, 1.0))
    total = held + penalty * problem.gradient_power
    total = xp.where(total == 0, xp.ones_like(total), total)
    slopes = _SplitGradient(problem)
    chi = xp.zeros_like(problem.field)
    for number in range(1, iterations + 1):
        before, chi = chi, irfftn((target + penalty * rfftn(slopes.divergence())) / total, problem.shape)
        slopes.follow(chi, regularisation / penalty)
        moved = _moved(before, chi)
        if on_iteration:
            on_iteration(number, moved)
        if moved < tolerance:
            break
    return crop(chi, local_ppm.shape) * xp.astype(mask, local_ppm.dtype)


METHODS: dict[str, Callable[..., Array]] = {"tv": tv, "hdqsm": hdqsm, "rts": rts, "tikhonov": tikhonov, "tkd": tkd}
