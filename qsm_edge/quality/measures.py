"""What `quality` measures, each a pure function of host arrays: noise, sign, streaks."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi
from scipy.special import gammaincinv

from qsm_edge.fft import Triple, fast_shape, rfftn, wavenumbers
from qsm_edge.kernels import dipole
from qsm_edge.types import Geometry

_BLOCK_MM = 2.0
_SIGN_CORE_MM, _SIGN_LOCAL_MM, _SIGN_MIN_ML = 6.0, 20.0, 100.0


def sign_index(
    chi_ppm: np.ndarray,
    mask: np.ndarray,
    r2star_per_s: np.ndarray | None,
    late_magnitude: np.ndarray,
    geometry: Geometry,
) -> float | None:
    """From -1 (surely inverted) to +1 (surely right), or None where too little of the mask is left to tell.

    Two facts hold in every head: iron and deoxygenated blood are paramagnetic and decay fast, and the far tail of the
    susceptibilities about their surroundings is positive (veins, deep grey matter, bleeds), while myelin, the
    diamagnetic bulk, has no tail. The index is a mean of two parts, each from -1 to 1, over voxels at least 6 mm inside
    the mask, in blocks of 2 mm, relative to the surroundings within 20 mm:

    * dark: mean over mean modulus of the (clipped) chi of the fastest decaying 2 % of the voxels; with one echo of the
      darkest 1.5 %, whose meaning is weaker, as they may be dark for their proton density.
    * tail: asymmetry of what lies beyond 2.5 robust standard deviations, clipped, so that one bleed does not decide.

    A few mL of calcification, dark and diamagnetic, do not outweigh the rest.
    """
    blocks = _Blocks.of(mask, geometry)
    core = blocks.depth_mm > _SIGN_CORE_MM
    if core.sum() * math.prod(blocks.voxel_mm) / 1000 < _SIGN_MIN_ML:
        return None
    chi = blocks.mean(chi_ppm)
    x = (chi - blocks.around(chi, _SIGN_LOCAL_MM))[core]
    x -= np.median(x)
    spread = robust_sd(x)
    if spread == 0:
        return None
    z = x / spread
    above, below = (float(np.clip(side - 2.5, 0, 8).sum()) for side in (z, -z))
    tail = (above - below) / (above + below) if above + below else 0.0
    signal = blocks.mean(late_magnitude if r2star_per_s is None else r2star_per_s)
    surroundings = blocks.around(signal, _SIGN_LOCAL_MM)
    if r2star_per_s is None:
        decay, percentile, share_of_dark = (-signal / np.maximum(surroundings, 1e-6))[core], 98.5, 1 / 2
    else:
        decay, percentile, share_of_dark = (signal - surroundings)[core], 98.0, 2 / 3
    fastest = np.clip(z[decay > np.percentile(decay, percentile)], -4, 4)
    dark = float(fastest.mean() / max(np.abs(fastest).mean(), 1e-6)) if fastest.size else 0.0
    return share_of_dark * dark + (1 - share_of_dark) * tail


def cone_balance(chi_ppm: np.ndarray, mask: np.ndarray, geometry: Geometry) -> float:
    """Power of chi near the dipole's zero cone over its power off it, geometric mean over spatial frequencies [1].

    Anatomy prefers no direction (1); streaks lie on the cone (> 1), a regularised inversion leaves it empty (< 1).
    In blocks of 2 mm, relative to the surroundings within 10 mm, faded out over 8 mm at the edge; nan for a thin mask.
    """
    blocks = _Blocks.of(mask, geometry)
    fade = np.clip(blocks.depth_mm / 8, 0, 1)
    if fade.max(initial=0) < 1:
        return math.nan
    chi = blocks.mean(chi_ppm)
    limit = 6 * robust_sd(chi[blocks.solid])  # one bleed is not the map
    chi = np.clip(chi - np.median(chi[blocks.solid]), -limit, limit) * blocks.solid
    chi = (chi - blocks.around(chi, 10.0)) * (fade * fade * (3 - 2 * fade))
    shape = fast_shape(chi.shape)
    chi = chi.astype(np.float32)
    power = np.abs(rfftn(chi, shape)) ** 2
    response = np.abs(dipole(shape, blocks.voxel_mm, geometry.b0_dir, chi))
    k = wavenumbers(shape, blocks.voxel_mm, chi)
    radius = np.sqrt(k[0] ** 2 + k[1] ** 2 + k[2] ** 2)
    edges = np.linspace(0.15, 0.8, 9) * 0.5 / max(blocks.voxel_mm)
    logs = []
    for low, high in itertools.pairwise(edges):
        shell = (radius >= low) & (radius < high)
        on, off = power[shell & (response < 0.07)], power[shell & (response > 0.15)]
        if on.size and off.size and on.mean() > 0 and off.mean() > 0:
            logs.append(math.log(on.mean() / off.mean()))
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def noise_sd(magnitude: np.ndarray, mask: np.ndarray, echo_times_s: tuple[float, ...]) -> float:
    """Standard deviation of the noise in `magnitude` (echo, z, y, x), in its unit; nan where it cannot be told.

    Three echoes or more: from what a mono-exponential decay leaves over in each voxel of the mask, so that anatomy,
    interpolation and a blanked background do not matter. Fewer: from the finest diagonal Haar wavelet coefficients of
    the first echo inside the mask, in which edges nearly cancel; images interpolated on the scanner read too quiet.

    Source: Donoho & Johnstone, Biometrika 1994, doi:10.1093/biomet/81.3.425; Coupe et al., Med Image Anal 2010,
    doi:10.1016/j.media.2010.03.001.
    """
    if len(echo_times_s) < 3:
        detail, whole = magnitude[0].astype(np.float32), mask
        for axis in range(3):
            detail, whole = np.diff(detail, axis=axis), np.logical_and(*_neighbours(whole, axis))
        inner = detail[whole] / math.sqrt(8)
        return float(np.median(np.abs(inner)) / 0.6745) if inner.size else math.nan
    signal = magnitude[:, mask]
    signal = signal[:, :: max(1, signal.shape[1] // 200_000)].astype(np.float64)
    signal = signal[:, (signal > 0).all(axis=0)]
    if not signal.shape[1]:
        return math.nan
    times, log, power = np.asarray(echo_times_s)[:, None], np.log(signal), signal**2
    total = power.sum(0)
    dt = times - (power * times).sum(0) / total
    dlog = log - (power * log).sum(0) / total
    rate = (power * dt * dlog).sum(0) / (power * dt * dt).sum(0)
    left = ((signal * (dlog - rate * dt)) ** 2).sum(0)
    return float(np.sqrt(np.median(left) / (2 * gammaincinv((len(echo_times_s) - 2) / 2, 0.5))))


@dataclass(frozen=True)
class _Blocks:
    """A mask averaged to blocks of about 2 mm: less noise, and an eighth of the work at 1 mm."""

    mask: np.ndarray
    factors: Triple
    voxel_mm: tuple[float, float, float]
    count: np.ndarray  # voxels of the mask in each block
    solid: np.ndarray  # blocks that lie inside
    depth_mm: np.ndarray  # below the mask's surface

    @staticmethod
    def of(mask: np.ndarray, geometry: Geometry) -> _Blocks:
        z, y, x = (max(1, round(_BLOCK_MM / v)) for v in geometry.voxel_mm)
        dz, dy, dx = geometry.voxel_mm
        voxel = (z * dz, y * dy, x * dx)
        count = _block_sum(mask.astype(np.float32), (z, y, x))
        solid = count > 0.6 * z * y * x
        depth = ndi.distance_transform_edt(np.pad(solid, 1), sampling=voxel)[1:-1, 1:-1, 1:-1]
        return _Blocks(mask, (z, y, x), voxel, count, solid, depth)

    def mean(self, volume: np.ndarray) -> np.ndarray:
        """Mean of `volume` over the mask in each block, zero outside."""
        total = _block_sum(np.where(self.mask, volume, 0).astype(np.float32), self.factors)
        return np.where(self.solid, total / np.maximum(self.count, 1), 0)

    def around(self, means: np.ndarray, sigma_mm: float) -> np.ndarray:
        """Gaussian mean of the surroundings inside the mask."""
        sigma = [sigma_mm / v for v in self.voxel_mm]
        share = ndi.gaussian_filter(self.solid.astype(np.float32), sigma, truncate=3)
        smooth: np.ndarray = ndi.gaussian_filter(means, sigma, truncate=3) / np.maximum(share, 1e-3)
        return smooth


def _block_sum(volume: np.ndarray, factors: Triple) -> np.ndarray:
    whole = np.pad(volume, [(0, -n % f) for n, f in zip(volume.shape, factors, strict=True)])
    for axis, factor in enumerate(factors):
        whole = np.add.reduceat(whole, np.arange(0, whole.shape[axis], factor), axis=axis)
    return whole


def _neighbours(volume: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    moved = np.moveaxis(volume, axis, 0)
    return np.moveaxis(moved[1:], 0, axis), np.moveaxis(moved[:-1], 0, axis)


def robust_sd(values: np.ndarray) -> float:
    """Standard deviation of a normal distribution with the same median absolute deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else 0.0
