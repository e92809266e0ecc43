"""Layer 3: dipole inversion. `METHODS[name](local_ppm, mask, geometry, weight, edges, **options) -> chi_ppm`.

local_ppm: field of the sources inside the mask, (z, y, x) float32. weight: relative reliability, about 1, 0 for none.
edges: (3, z, y, x), what share of the total-variation penalty a step along each axis pays (see edges.py). chi_ppm:
susceptibility up to a constant, zero outside the mask. Every method pads by `margin_mm`, so that the dipole responses of
opposite faces do not meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from qsm_edge.backend import namespace
from qsm_edge.fft import crop, irfftn, rfftn
from qsm_edge.solvers import shrink
from qsm_edge.totalvariation import Problem, SplitGradient, admm, grid, moved_by, problem_of
from qsm_edge.types import Array, Geometry, OnIteration

#: A closed form has no weights: what is trusted less than this share of ordinary tissue fades out of the field instead.
_TRUSTED = 0.3


def _filtered(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    margin_mm: float,
    inverse: Callable[[Array], Array],
) -> Array:
    """Closed-form inversions: one multiplication in k-space."""
    xp = namespace(local_ppm)
    shape, response = grid(local_ppm, geometry, margin_mm)
    inside = xp.astype(mask, xp.float32)
    faded = local_ppm * inside * xp.clip(weight / _TRUSTED, 0.0, 1.0)
    chi = irfftn(inverse(response) * rfftn(faded, shape), shape)
    return crop(chi, local_ppm.shape) * inside


def tkd(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    edges: Array,
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
    del edges
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
    edges: Array,
    *,
    regularisation: float = 0.01,
    margin_mm: float = 24.0,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Closed-form Tikhonov inversion, D / (D^2 + regularisation). Voxels of weight below 0.3 fade out
    of the field.

    Source: Bilgic et al., JMRI 2014, doi:10.1002/jmri.24365.
    """
    del edges
    chi = _filtered(
        local_ppm, mask, geometry, weight, margin_mm, lambda response: response / (response**2 + regularisation)
    )
    if on_iteration:
        on_iteration(1, 0.0)
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
    """How much more regularisation the noise asks for: 1 up to the reference noise, then its power 1.5, 50 at most.

    The power lies between the minimax choice (1) and the most probable answer (2); measured, bench/NOTES.md.
    """
    excess = max(1.0, noise_ppm(local_ppm, mask) / max(reference_noise_ppm, 1e-9))
    return min(excess * math.sqrt(excess), 50.0)


def _weighted_tv(
    problem: Problem,
    power: Array,
    regularisation: float,
    penalty: float,
    data_penalty: float,
    iterations: int,
    tolerance: float,
    on_iteration: OnIteration | None,
) -> Array:
    """Total variation with the least-squares data term of squared weights `power`."""

    def quadratic(x: Array, at: slice) -> Array:
        strength = power[at, ...]
        return (strength * problem.field[at, ...] + data_penalty * x) / (strength + data_penalty)

    start = power * problem.field / (power + data_penalty)
    return admm(problem, regularisation, penalty, data_penalty, quadratic, start, iterations, tolerance, on_iteration)


def tv(
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    edges: Array,
    *,
    regularisation: float = 1.5e-4,
    reference_noise_ppm: float = 0.0014,
    penalty: float = 1e-2,
    data_penalty: float = 0.03,
    iterations: int = 50,
    tolerance: float = 0.01,
    margin_mm: float = 12.0,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Weighted total variation: min 1/2 |W (D chi - f)|^2 + regularisation |grad chi|_1, by ADMM.

    `regularisation` in ppm mm holds up to a field noise of `reference_noise_ppm` and grows in proportion beyond it (as
    `noise_ppm` measures it), `penalty` with it. The penalties are ADMM's and change the speed, not the answer, once
    converged: a small `data_penalty` lets strong sources (bleeds) reach their value in tens of passes, not hundreds.
    Source: Bilgic et al., MRM 2014, doi:10.1002/mrm.25029; Milovic et al., MRM 2018, doi:10.1002/mrm.27073.
    """
    problem = problem_of(local_ppm, mask, geometry, weight, margin_mm, edges)
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
    edges: Array,
    *,
    regularisation: float = 1.5e-4,
    reference_noise_ppm: float = 0.0014,
    penalty: float = 1e-2,
    data_penalty: float = 0.03,
    first_regularisation: float = 4e-3,
    first_iterations: int = 20,
    outlier_ppm: float = 0.02,
    iterations: int = 50,
    tolerance: float = 0.01,
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
    problem = problem_of(local_ppm, mask, geometry, weight, margin_mm, edges)
    strength = xp.sqrt(problem.power)
    factor = _noise_factor(local_ppm, mask, reference_noise_ppm)

    def absolute(x: Array, at: slice) -> Array:
        return problem.field[at, ...] + shrink(x - problem.field[at, ...], strength[at, ...] * (1 / 20.0))

    trusted = problem.field * xp.astype(strength > 0, xp.float32)
    first = admm(
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
    edges: Array,
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
    problem = problem_of(local_ppm, mask, geometry, weight, margin_mm)
    usable = xp.abs(problem.response) > threshold
    held = xp.astype(usable, xp.float32)
    division = xp.where(usable, 1 / xp.where(usable, problem.response, xp.ones_like(problem.response)), 0 * held)
    target = division * rfftn(problem.field * xp.clip(xp.sqrt(problem.power) / _TRUSTED, 0.0, 1.0))
    total = held + penalty * problem.gradient_power
    total = xp.where(total == 0, xp.ones_like(total), total)
    slopes = SplitGradient(problem, regularisation / penalty)
    chi = xp.zeros_like(problem.field)
    for number in range(1, iterations + 1):
        before, chi = chi, irfftn((target + penalty * rfftn(slopes.divergence())) / total, problem.shape)
        slopes.follow(chi)
        moved = moved_by(before, chi, problem.power)
        if on_iteration:
            on_iteration(number, moved)
        if moved < tolerance:
            break
    return crop(chi, local_ppm.shape) * xp.astype(mask, local_ppm.dtype)


METHODS: dict[str, Callable[..., Array]] = {"tv": tv, "hdqsm": hdqsm, "rts": rts, "tikhonov": tikhonov, "tkd": tkd}
