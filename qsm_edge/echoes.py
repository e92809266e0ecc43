"""Layer 3: from the phases of all echoes to one field. `METHODS[name](series arrays, ..., **options) -> FieldFit`.

The spatial unwrapping is done once, on the phase difference of two neighbouring echoes: the coil's phase offset has left
it, and its echo spacing is usually the shortest time there is. Every other echo is unwrapped in time, each by what the
echoes before it predict.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from qsm_edge.backend import namespace
from qsm_edge.types import Array, Geometry, OnIteration
from qsm_edge.units import rad_per_ppm

_TWO_PI = 2.0 * math.pi


@dataclass(frozen=True)
class FieldFit:
    """What the echoes say, (z, y, x) float32, zero outside the mask.

    field_ppm: relative field. offset_rad: phase at TE 0, wrapped. residual: root of the signal-weighted mean of
    |s - fit|^2 / |s|^2, 0 (perfect) to 2; zero for one or two echoes, which always fit. precision: 1 / standard deviation
    of field_ppm, in units of the signal over its noise, i.e. up to one common factor.
    """

    field_ppm: Array
    offset_rad: Array
    residual: Array
    precision: Array


def wrap(x: Array) -> Array:
    """`x` [rad] brought to (-pi, pi] by multiples of 2 pi."""
    xp = namespace(x)
    return x - _TWO_PI * xp.round(x / _TWO_PI)


def seed_pair(echo_times_s: tuple[float, ...]) -> tuple[int, int]:
    """The neighbouring echoes whose difference is unwrapped in space: the closest pair, the earlier on a draw."""
    gaps = [round(b - a, 9) for a, b in itertools.pairwise(echo_times_s)]
    first = min(range(len(gaps)), key=lambda i: gaps[i])
    return first, first + 1


def seed_phase(phase_rad: Array, magnitude: Array, echo_times_s: tuple[float, ...]) -> tuple[Array, Array]:
    """Wrapped phase (z, y, x) [rad] that has to be unwrapped in space, and the strength of its signal.

    One echo: that echo's phase. Several: the phase difference of the closest neighbouring pair.
    """
    if len(echo_times_s) == 1:
        return phase_rad[0, ...], magnitude[0, ...]
    xp = namespace(phase_rad)
    i, j = seed_pair(echo_times_s)
    return wrap(phase_rad[j, ...] - phase_rad[i, ...]), xp.minimum(magnitude[i, ...], magnitude[j, ...])


def linear_fit(
    phase_rad: Array,
    magnitude: Array,
    seed_rad: Array,
    mask: Array,
    echo_times_s: tuple[float, ...],
    b0_tesla: float,
    geometry: Geometry,
    *,
    on_iteration: OnIteration | None = None,
) -> FieldFit:
    """Weighted linear fit of phase against echo time, with an intercept; weights magnitude^2.

    `seed_rad` is the unwrapped phase of `seed_phase`. Echoes are unwrapped in time one after another, each from the fit
    of those before it, so that noise does not add up over the echo train and spacings may differ. One echo: the phase
    over the echo time, its offset left in (a smooth one leaves with the background field).

    Source: Bilgic et al., MRM 2024, doi:10.1002/mrm.30006; Robinson et al., NMR Biomed 2017, doi:10.1002/nbm.3601.
    """
    del geometry
    fit = _fit(phase_rad, magnitude, seed_rad, mask, echo_times_s, b0_tesla, 0)
    if on_iteration:
        on_iteration(1, 0.0)
    return fit


def nonlinear_fit(
    phase_rad: Array,
    magnitude: Array,
    seed_rad: Array,
    mask: Array,
    echo_times_s: tuple[float, ...],
    b0_tesla: float,
    geometry: Geometry,
    *,
    iterations: int = 3,
    on_iteration: OnIteration | None = None,
) -> FieldFit:
    """Fit of offset and frequency to the complex signal of all echoes, by Gauss-Newton from the linear fit.

    Minimises sum_e |s_e - |s_e| exp(i (phi0 + 2 pi f TE_e))|^2: the noise is Gaussian in the complex plane, and a wrong
    wrap of a late echo does no harm. `iterations` >= 0; each costs a pass over the echoes.

    Source: Liu et al., MRM 2013, doi:10.1002/mrm.24272; de Rochefort et al., MRM 2008, doi:10.1002/mrm.21710.
    """
    del geometry
    fit = _fit(phase_rad, magnitude, seed_rad, mask, echo_times_s, b0_tesla, iterations)
    if on_iteration:
        on_iteration(iterations, 0.0)
    return fit


def _fit(
    phase_rad: Array,
    magnitude: Array,
    seed_rad: Array,
    mask: Array,
    echo_times_s: tuple[float, ...],
    b0_tesla: float,
    iterations: int,
) -> FieldFit:
    """Both fits, on the voxels of the mask alone; time in units of the seed's echo spacing, for float32's sake."""
    xp = namespace(phase_rad)
    count = len(echo_times_s)

    def back(values: Array) -> Array:
        return _scattered(values, mask)

    if count == 1:
        field = seed_rad / rad_per_ppm(b0_tesla, echo_times_s[0])
        strength = magnitude[0, ...][mask] * rad_per_ppm(b0_tesla, echo_times_s[0])
        return FieldFit(back(field[mask]), back(0 * strength), back(0 * strength), back(strength))
    i, j = seed_pair(echo_times_s)
    unit_s = echo_times_s[j] - echo_times_s[i]
    times = [(t - echo_times_s[i]) / unit_s for t in echo_times_s]
    phases = [phase_rad[e, ...][mask] for e in range(count)]
    levels, scale = _levels(magnitude, mask)
    powers = [level**2 for level in levels]
    offset, slope = _unwrap_in_time(phases, powers, times, seed_rad[mask], i, j)
    total, mean_t, spread = _moments(powers, times)
    for _ in range(iterations):
        shift, turn = 0, 0
        for phase, power, t in zip(phases, powers, times, strict=True):
            miss = power * xp.sin(phase - offset - slope * t)
            shift, turn = shift + miss, turn + miss * (t - mean_t)
        change = turn / spread
        slope = slope + xp.clip(change, -1.0, 1.0)
        offset = offset + xp.clip(shift / total - change * mean_t, -1.0, 1.0)
    misfit = 0
    for phase, power, t in zip(phases, powers, times, strict=True):
        misfit = misfit + power * (2 - 2 * xp.cos(phase - offset - slope * t))
    residual = xp.sqrt(misfit / total) if count > 2 else 0 * total
    per_ppm = rad_per_ppm(b0_tesla, unit_s)
    at_zero = wrap(offset - slope * (echo_times_s[i] / unit_s))
    return FieldFit(back(slope / per_ppm), back(at_zero), back(residual), back(xp.sqrt(spread) * per_ppm * scale))


def _levels(magnitude: Array, mask: Array) -> tuple[list[Array], float]:
    """Each echo's magnitudes in the mask, over the largest of them all, and that; what is outside may be far brighter."""
    inside = [magnitude[e, ...][mask] for e in range(magnitude.shape[0])]
    scale = max(float(namespace(level).max(level)) for level in inside) or 1.0
    return [level / scale for level in inside], scale


def _scattered(values: Array, mask: Array) -> Array:
    """The voxels of the mask put back into their volume, float32, zero outside."""
    xp = namespace(values)
    out = xp.zeros(mask.shape, dtype=xp.float32, device=mask.device)
    out[mask] = xp.astype(values, xp.float32)
    return out


def _moments(powers: list[Array], times: list[float]) -> tuple[Array, Array, Array]:
    """Sum of the weights, their mean time, and the weighted spread of the times about it; never zero."""
    tiny = 1e-12
    total = sum(powers) + tiny
    mean_t = sum(p * t for p, t in zip(powers, times, strict=True)) / total
    spread = sum(p * (t - mean_t) ** 2 for p, t in zip(powers, times, strict=True)) + tiny
    return total, mean_t, spread


def _unwrap_in_time(
    phases: list[Array], powers: list[Array], times: list[float], seed: Array, i: int, j: int
) -> tuple[Array, Array]:
    """Offset and slope [rad, rad per unit] of the weighted fit, echoes added by their distance in time from echo i."""
    offset, slope = phases[i], seed
    used = {i: phases[i], j: phases[i] + seed}
    for e in sorted((e for e in range(len(times)) if e not in (i, j)), key=lambda e: abs(times[e])):
        guess = offset + slope * times[e]
        used[e] = guess + wrap(phases[e] - guess)
        known = sorted(used)
        weights, at = [powers[k] for k in known], [times[k] for k in known]
        total, mean_t, spread = _moments(weights, at)
        mean = sum(w * used[k] for w, k in zip(weights, known, strict=True)) / total
        slope = sum(w * (t - mean_t) * (used[k] - mean) for w, t, k in zip(weights, at, known, strict=True)) / spread
        offset = mean - slope * mean_t
    return offset, slope


def r2star(
    magnitude: Array, mask: Array, echo_times_s: tuple[float, ...], *, largest_per_s: float = 500.0
) -> Array | None:
    """Transverse decay rate R2* [1/s] by log-linear least squares over the echoes, weighted by magnitude^2.

    (z, y, x), 0 to `largest_per_s`; None for one echo. The weights undo the logarithm's distortion of the noise.
    Source: Pei et al., MRM 2015, doi:10.1002/mrm.25137 (comparison of R2* estimators).
    """
    if len(echo_times_s) < 2:
        return None
    xp = namespace(magnitude)
    floor = xp.asarray(1e-6, dtype=xp.float32, device=mask.device)
    levels = [xp.maximum(level, floor) for level in _levels(magnitude, mask)[0]]
    times = [1000.0 * (t - echo_times_s[0]) for t in echo_times_s]  # ms keep the sums near one
    powers = [level * level for level in levels]
    _total, mean_t, spread = _moments(powers, times)
    turn = sum(p * (t - mean_t) * xp.log(level) for p, t, level in zip(powers, times, levels, strict=True))
    return _scattered(xp.clip(-1000.0 * turn / spread, 0.0, largest_per_s), mask)


METHODS = {"nonlinear_fit": nonlinear_fit, "linear_fit": linear_fit}
