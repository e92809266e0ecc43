"""Layer 4: how far noise moves a susceptibility map, voxel by voxel, told by the chain itself.

The chain is asked, not modelled: it runs again on the measured signal with noise added and with the same noise taken
off. Half the difference of the two maps is one draw of the map's noise through all that comes after the unwrapping: the
echo fit, its weights, the background, the inversion as far as it iterates, the reference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import scipy.ndimage as ndi
from scipy.special import gammaincinv

from qsm_edge import backend, echoes, pipeline, polarity
from qsm_edge.distance import depth_mm
from qsm_edge.provenance import Recorder
from qsm_edge.recipe import Choice, Recipe
from qsm_edge.types import Array, Figure, Geometry, GreSeries, Result
from qsm_edge.units import PPB_PER_PPM, rad_per_ppm

COMMENT = (
    "Values are one standard deviation by noise alone, in ppb: errors of the background, the regularisation and the mask "
    "are not in it and are larger in most of a head. 32767: not determined by the data (no reliable phase nearby)."
)
#: Side [mm] of the blocks in which the noise's level is looked for, and the voxels that it takes to find one.
_BLOCK_MM, _BLOCK_VOXELS = 12.0, 30
#: Voxels that a class of like voxels has at least, and the classes a feature is cut into at most.
_CLASS_VOXELS, _CLASSES = 400, 7


def chi_sd(
    result: Result,
    progress: pipeline.Progress | None = None,
    *,
    pairs: int = 1,
    step: float = 0.5,
    smooth_mm: float = 4.0,
    least_weight: float = 0.2,
    around_mm: float = 5.0,
    seed: int = 1,
) -> np.ndarray:
    """Standard deviation of the susceptibility by noise, from the chain's own answer to added noise: complex Gaussian noise
    of the measured level, times `step`, is added to the signal and taken off it, and half the difference of the two maps
    over `step` is squared, averaged over like voxels, and over the surroundings of a voxel.

    [ppm], (z, y, x) float32 on the grid of `result`, 0 outside its mask, infinite where the data do not determine the
    susceptibility (`undetermined`, with `least_weight` and `around_mm`). Like voxels share weight, depth below the
    surface and steepness of the map; within these classes, `smooth_mm` is the standard deviation of the Gaussian mean.

    Each of the `pairs` costs two runs of the chain without mask and unwrapping, which is done once, on the device that
    made the result; the same `seed` gives the same map. Not in it: errors that do not change from scan to scan (background,
    regularisation, partial volume, a wrong mask), motion, noise that the scanner's interpolation correlates.

    Source: Ramani et al., IEEE Trans Image Process 2008, doi:10.1109/TIP.2008.2001404 (answers to added noise in place of
    derivatives); Donoho & Johnstone, Biometrika 1994, doi:10.1093/biomet/81.3.425 (the noise of one or two echoes);
    averaging by classes is ours.
    """
    recipe = Recipe.resolved(result.provenance.recipe_name, result.provenance.recipe)
    box = pipeline.box_of(result.brain, result.series.geometry, recipe)
    brain, mask = result.brain[box], result.mask[box]
    series = _cropped(result.series, brain, box)
    field, power = result.field_ppm[box], np.zeros(brain.shape, np.float32)
    level = step * noise_level(series, field, result.residual[box], brain)
    known, seed_rad = pipeline.unwrapped(series, brain, recipe, _Unrecorded("cpu"), lambda stage, share, text: None)
    for pair in range(pairs):
        maps = []
        for number, sign in enumerate((1.0, -1.0)):
            noisy = _with_noise(series, sign * level, (seed, pair))
            tell = _part_of(progress, 2 * pair + number, 2 * pairs)
            maps.append(_susceptibility(noisy, known, seed_rad, brain, recipe, result.provenance.environment, tell))
        power += ((maps[0] - maps[1]) * (0.5 / step)) ** 2 / pairs
    unknown = undetermined(result.weight[box], mask, series.geometry, least_weight=least_weight, around_mm=around_mm)
    known = mask & ~unknown
    chi, weight = np.where(mask, result.chi_ppm[box], 0), result.weight[box]
    features = (weight, depth_mm(brain, series.geometry), _steepness(chi, series.geometry))
    sd = np.sqrt(_averaged(power, features, known, [smooth_mm / v for v in series.geometry.voxel_mm]))
    whole = np.zeros(result.mask.shape, np.float32)
    whole[box] = np.where(unknown, np.inf, np.where(known, sd, 0))
    return whole


def undetermined(
    weight: np.ndarray, mask: np.ndarray, geometry: Geometry, *, least_weight: float = 0.2, around_mm: float = 5.0
) -> np.ndarray:
    """Voxels of the mask in whose neighbourhood no phase is reliable: the map there is what the regularisation makes of it.

    That is where the root of the mean squared weight over a cube of about `around_mm` (three voxels at least), counting
    those of the mask, is below `least_weight` times the median of the weights above 0. A single dark voxel among good ones is
    determined by them.
    """
    weighty = weight[mask & (weight > 0)]
    if not weighty.size:
        return mask.copy()
    sides = [max(3, 2 * math.floor(around_mm / v / 2) + 1) for v in geometry.voxel_mm]
    inside = mask.astype(np.float32)
    power = ndi.uniform_filter((weight * inside) ** 2, sides, mode="constant")
    share = ndi.uniform_filter(inside, sides, mode="constant")
    limit = least_weight * float(np.median(weighty))
    return np.asarray(mask & (power < limit**2 * share))


def figures(sd_ppm: np.ndarray, mask: np.ndarray) -> Mapping[str, Figure]:
    """What the report says in numbers of a map of `chi_sd`."""
    values = sd_ppm[mask]
    known = values[np.isfinite(values)]
    share = 100 * (1 - known.size / max(values.size, 1))
    out = {"undetermined": Figure(share, "%", "share of the map that the data do not determine, whatever its value")}
    for name, rank, meaning in (("chi_noise", 50, "median"), ("chi_noise_p95", 95, "percentile 95 of the")):
        if known.size:
            value = PPB_PER_PPM * float(np.percentile(known, rank))
            out[name] = Figure(value, "ppb", f"{meaning} standard deviation of the susceptibility by noise alone")
    return out


def _cropped(series: GreSeries, brain: np.ndarray, box: pipeline.Box) -> GreSeries:
    """The series on the mask's box, odd and even echoes aligned, as the chain had it."""
    geometry, times = series.geometry.crop(box), series.echo_times_s
    magnitude, phase = np.asarray(series.magnitude)[(..., *box)], np.asarray(series.phase_rad)[(..., *box)]
    phase, _ = polarity.align_polarity(phase, magnitude, brain, times, geometry)
    return dataclasses.replace(series, magnitude=magnitude, phase_rad=phase, geometry=geometry)


def noise_level(series: GreSeries, field_ppm: np.ndarray, residual: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Standard deviation (z, y, x) of the noise in the real part of the signal, in the magnitude's unit.

    Three echoes or more: from what they leave over beside one frequency. Fewer: from the finest diagonal differences of
    the field, of which anatomy has next to none, and which are too small where the scanner interpolated. Of either the
    median over blocks and that over their neighbours: receivers and acceleration make the noise uneven over centimetres,
    while a misfit (dephasing above the sinuses, flow), which is the same in every scan, is more confined. Source of the
    differences: Donoho & Johnstone, Biometrika 1994, doi:10.1093/biomet/81.3.425.
    """
    if len(series.echo_times_s) < 3:
        squares, there = _finest(series, field_ppm, brain)
        free = 1
    else:
        power = sum(np.square(echo, dtype=np.float32) for echo in series.magnitude)
        squares, there = residual**2 * power, brain
        free = len(series.echo_times_s) - 2
    sides = [max(1, round(_BLOCK_MM / v)) for v in series.geometry.voxel_mm]
    grid = [-(-n // side) for n, side in zip(brain.shape, sides, strict=True)]
    levels = np.full(grid, np.nan, np.float32)
    typical = float(np.median(squares[there])) if there.any() else 0.0
    for at in np.ndindex(*grid):
        block = tuple(slice(i * side, (i + 1) * side) for i, side in zip(at, sides, strict=True))
        values = squares[block][there[block]]
        if values.size >= _BLOCK_VOXELS:
            levels[at] = np.median(values)
    around = np.full(grid, typical, np.float32)
    for at in np.ndindex(*grid):
        near = levels[tuple(slice(max(i - 1, 0), i + 2) for i in at)]
        if np.isfinite(near).any():
            around[at] = np.nanmedian(near)
    around /= 2 * gammaincinv(free / 2, 0.5)  # the median of a sum of `free` squares
    fine = ndi.zoom(np.sqrt(around), sides, order=1, mode="nearest", grid_mode=True)
    return np.asarray(fine[tuple(slice(n) for n in brain.shape)])


def _finest(series: GreSeries, field_ppm: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For one or two echoes: squares that are the noise's variance on average, and where they are known."""
    times = series.echo_times_s
    per_ppm = rad_per_ppm(series.b0_tesla, times[-1] - times[0] if len(times) > 1 else times[0])
    smallest = np.float32(1e-6) * float(np.max(series.magnitude[0][brain], initial=0.0)) + np.float32(1e-30)
    total = sum(np.maximum(echo, smallest) ** -2.0 for echo in series.magnitude) / np.float32(per_ppm**2)
    detail, inside = field_ppm, brain
    for axis in range(3):
        near, far = [slice(None)] * 3, [slice(None)] * 3
        near[axis], far[axis] = slice(None, -1), slice(1, None)
        detail = detail[tuple(far)] - detail[tuple(near)]
        total = total[tuple(far)] + total[tuple(near)]
        inside = inside[tuple(far)] & inside[tuple(near)]
    squares, there = np.zeros_like(field_ppm), np.zeros_like(brain)
    corner = tuple(slice(n) for n in inside.shape)
    squares[corner], there[corner] = detail**2 / total, inside
    return squares, there


def _with_noise(series: GreSeries, level: np.ndarray, key: Sequence[int]) -> GreSeries:
    """The series with complex noise of `level`; the same for the same key, with the other sign for a negative level."""
    magnitude, phase = np.empty_like(series.magnitude), np.empty_like(series.phase_rad)
    for echo in range(magnitude.shape[0]):
        draw = np.random.default_rng((*key, echo)).standard_normal((2, *level.shape), dtype=np.float32)
        signal = series.magnitude[echo] * np.exp(1j * series.phase_rad[echo]) + level * (draw[0] + 1j * draw[1])
        magnitude[echo], phase[echo] = np.abs(signal), np.angle(signal)
    return dataclasses.replace(series, magnitude=magnitude, phase_rad=phase)


def _susceptibility(
    series: GreSeries,
    known: np.ndarray,
    seed_rad: np.ndarray,
    brain: np.ndarray,
    recipe: Recipe,
    environment: Mapping[str, str],
    tell: pipeline.Progress,
) -> np.ndarray:
    """What the chain makes of a series whose unwrapped phase is about `seed_rad` where it is `known`."""

    def on(device: str) -> np.ndarray:
        arrays = (series.magnitude, series.phase_rad, seed_rad, known, brain)
        magnitude, phase, about, support, mask = (backend.to_device(np.ascontiguousarray(a), device) for a in arrays)
        moved = dataclasses.replace(series, magnitude=magnitude, phase_rad=phase)
        seed = _seed(moved, about, support)
        out = pipeline.chain_from_seed(moved, seed, support, mask, recipe, _Unrecorded(device), tell)
        return backend.to_host(out["chi_ppm"])

    if not environment.get("device", "cpu").startswith("cuda"):
        return on("cpu")
    try:
        return on("cuda")
    except Exception as error:
        if not backend.is_device_failure(error):
            raise
    return on("cpu")


class _Unrecorded(Recorder):
    """Lets whoever records the whole map measure its peak memory, which every stage's own record would begin anew."""

    @contextmanager
    def stage(self, name: str, method: str, choice: Choice | None = None) -> Iterator[list[float]]:
        yield []


def _seed(series: GreSeries, about_rad: Array, known: Array) -> Array:
    """The phase of `echoes.seed_phase`, unwrapped to within half a turn of `about_rad`."""
    wrapped, _ = echoes.seed_phase(series.phase_rad, series.magnitude, series.echo_times_s)
    xp = backend.namespace(about_rad)
    return xp.where(known, about_rad + echoes.wrap(wrapped - about_rad), xp.zeros_like(about_rad))


def _steepness(chi_ppm: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Length of the map's gradient [ppm/mm], smoothed over about a voxel: total variation moves most where it is steep."""
    squares = sum(np.gradient(chi_ppm, v, axis=axis) ** 2 for axis, v in enumerate(geometry.voxel_mm))
    smooth: np.ndarray = ndi.gaussian_filter(np.sqrt(squares), 0.7)
    return smooth


def _averaged(power: np.ndarray, features: Sequence[np.ndarray], mask: np.ndarray, sigma: list[float]) -> np.ndarray:
    """`power` averaged over the voxels of the mask that are alike in `features`, then relative to that over a Gaussian."""
    values = power[mask].astype(np.float64)
    if not values.size:
        return np.zeros_like(power)
    parts = int(np.clip((values.size / _CLASS_VOXELS) ** (1 / len(features)), 1, _CLASSES))
    kind = np.zeros(values.size, np.int64)
    for feature in features:
        here = feature[mask]
        edges = np.quantile(here, np.linspace(0, 1, parts + 1)[1:-1])
        kind = kind * parts + np.searchsorted(edges, here)
    counts = np.bincount(kind)
    means = np.bincount(kind, values) / np.maximum(counts, 1)
    typical = np.zeros_like(power)
    typical[mask] = means[kind]
    ratio = np.zeros_like(power)
    np.divide(power, typical, out=ratio, where=mask & (typical > 0))
    share = ndi.gaussian_filter(mask.astype(np.float32), sigma, truncate=3)
    around = ndi.gaussian_filter(ratio, sigma, truncate=3) / np.maximum(share, 1e-6)
    return np.asarray(typical * around)


def _part_of(progress: pipeline.Progress | None, number: int, of: int) -> pipeline.Progress:
    """Progress of one run among `of`, told as progress of the stage 'uncertainty'."""

    def tell(stage: str, fraction: float, text: str) -> None:
        if progress is not None:
            progress("uncertainty", (number + fraction) / of, f"{stage} {text}".strip())

    return tell
