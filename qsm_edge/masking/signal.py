"""What a brain mask looks at: the signal that magnitude and phase agree on, the head in it, and the receive bias taken off.

Everything here is on one isotropic grid with axes (superior, posterior, left), steps in mm.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.masking import grid as grids
from qsm_edge.masking.morphology import FAR_MM, away_mm, depth_mm, otsu

Offsets = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Air lies in front of the skin: its dark region is wider than this everywhere, that of a bleed or of a sinus seldom is.
_AIR_MM = 6.0
_SLAB_MM = 110.0  # of the head below its top that is looked at for the middle: the neck and the jaw lie lower
_FIT_MM = 100.0  # from the middle, within which the receive bias is fitted


def coherent(magnitude: np.ndarray, phase_rad: np.ndarray, lay: grids.Grid) -> np.ndarray:
    """Signal without its noise floor: the root of the local mean of s(x) conj(s(x + 1)), one voxel further along one axis.

    In tissue neighbouring products point the same way, whatever the field and the wraps; in air and bone they cancel.

    Parameters: magnitude, phase_rad (z, y, x); `lay` says how they turn and what the grid is. Where the phase holds no
    information at all (noise in the head as in the air), the magnitude alone is taken.
    """
    size = lay.native_mm
    axis = 2 - int(np.argmin(size[::-1]))  # the finest: the field changes least from voxel to voxel
    strength, angle = (np.ascontiguousarray(grids.turn(v, lay.axes, lay.flips)) for v in (magnitude, phase_rad))
    weights = grids.down_weights(lay)
    plain = grids.apply(strength, weights)
    if strength.shape[axis] < 2:
        return plain
    near = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
    far = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    product, step = strength[near] * strength[far], angle[far] - angle[near]
    whole = weights[axis]
    between = whole[:, :-1] + whole[:, 1:]  # products lie between two voxels
    weights[axis] = between / np.maximum(between.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    weights[axis] *= whole.sum(axis=1, keepdims=True)
    real = grids.apply(product * np.cos(step), weights)
    imaginary = grids.apply(product * np.sin(step), weights)
    signal = np.asarray(np.sqrt(np.hypot(real, imaginary)), dtype=np.float32)
    head = plain > otsu(plain)
    agree = float(np.median(signal[head] / np.maximum(plain[head], 1e-30))) if head.any() else 1.0
    return signal if agree > 0.75 else plain


def head_in(signal: np.ndarray, step_mm: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Air around the head (bool), depth of every voxel below it [mm, FAR_MM without air], and the level of tissue.

    Air is what is dark, wide and open to the border of the volume; noise is measured, so that it counts as dark.
    """
    split = otsu(signal)
    bright = signal > split
    level = float(np.median(signal[bright])) if bright.any() else 0.0
    if level <= 0:
        return np.ones(signal.shape, bool), np.zeros(signal.shape, np.float32), 0.0
    weak = signal[~bright]
    noise = float(np.median(weak)) if weak.size else 0.0
    darkness = signal < max(0.2 * level, min(2.5 * noise, 0.5 * level))
    margin = int(np.ceil(_AIR_MM / step_mm)) + 2
    deep = depth_mm(np.pad(darkness, margin, mode="edge"), step_mm)[(slice(margin, -margin),) * 3] > _AIR_MM
    pieces, count = ndi.label(deep)
    keep = np.zeros(count + 1, bool)
    for axis in range(3):
        for side in (0, -1):
            keep[np.unique(np.take(pieces, side, axis=axis))] = True
    keep &= np.bincount(pieces.ravel(), minlength=count + 1) * step_mm**3 > 2e4  # mm^3
    keep[0] = False
    air = keep[pieces]
    if not air.any():
        return air, np.full(signal.shape, FAR_MM, np.float32), level
    air = (away_mm(air, step_mm) <= _AIR_MM + step_mm) & darkness
    return air, away_mm(air, step_mm), level


def middle(depth: np.ndarray, step_mm: float) -> tuple[Offsets, float]:
    """Offsets [mm] along each axis from the middle of the cranium, and its inner radius: the deepest part of the head."""
    rows = np.flatnonzero((depth > 0).sum(axis=(1, 2)) * step_mm**2 > 2000)
    top = int(rows.max()) if len(rows) else depth.shape[0] - 1
    within = np.minimum(depth, 90.0).astype(np.float64)
    within[: max(0, top - round(_SLAB_MM / step_mm))] = 0
    within[top + 1 :] = 0
    radius = float(within.max())
    weight = np.where(within > 0.7 * radius, within, 0.0) ** 4
    z, y, x = np.ogrid[tuple(slice(n) for n in depth.shape)]
    total = max(float(weight.sum()), np.finfo(np.float64).tiny)
    zyx = [((i - float((weight * i).sum()) / total) * step_mm).astype(np.float32) for i in (z, y, x)]
    return (zyx[0], zyx[1], zyx[2]), radius


def bias(signal: np.ndarray, depth: np.ndarray, at: Offsets, level: float, step_mm: float) -> np.ndarray:
    """The level of the darkest main tissue everywhere: a quadratic and then a smooth remainder, fitted to log signal.

    Fitted robustly, and in the depth of the head only, so that scalp and skull have no say.
    """
    logs = np.log(np.maximum(signal, 0.05 * level))
    radius = np.sqrt(at[0] ** 2 + at[1] ** 2 + at[2] ** 2)
    coarse = (slice(None, None, 2),) * 3
    terms = _quadratic(at, signal.shape, coarse)
    seen, allowed = logs[coarse], ((depth > 10) & (radius < _FIT_MM))[coarse]
    use = allowed & (signal > 0.3 * level)[coarse] & (depth > 12)[coarse]
    factors, spread = np.concatenate([[np.log(level)], np.zeros(9)]), 1.0
    for _ in range(4):
        if use.sum() < 50:
            break
        factors, *_ = np.linalg.lstsq(terms[use], seen[use], rcond=None)
        off = seen - terms @ factors
        spread = 1.48 * float(np.median(np.abs(off[use] - np.median(off[use])))) + 1e-3
        use = allowed & (np.abs(off) < 2.5 * spread)
    trend = (_quadratic(at, signal.shape, (slice(None),) * 3) @ factors).astype(np.float32)
    off = logs - trend
    weight = ((np.abs(off) < 2.5 * spread) & (depth > 10) & (radius < _FIT_MM)).astype(np.float32)
    sigma = 20.0 / step_mm
    rest = ndi.gaussian_filter(off * weight, sigma, mode="constant")
    rest /= ndi.gaussian_filter(weight, sigma, mode="constant") + np.float32(1e-2)
    typical = np.exp(np.clip(trend + rest, np.log(level) - 3, np.log(level) + 3))
    relative = signal / typical
    deep = (depth > 20) & (radius < 60) & (relative > 0.4)
    darkest = float(np.clip(np.percentile(relative[deep], 20), 0.6, 1.0)) if deep.any() else 1.0
    return np.asarray(typical * np.float32(darkest), dtype=np.float32)


def _quadratic(at: Offsets, shape: tuple[int, ...], where: tuple[slice, ...]) -> np.ndarray:
    """The ten monomials up to second order of the offsets over 70 mm, last axis."""
    a = [np.broadcast_to(v / np.float32(70), shape)[where] for v in at]
    pairs = [a[i] * a[j] for i in range(3) for j in range(i, 3)]
    return np.stack([np.ones_like(a[0]), *a, *pairs], axis=-1)
