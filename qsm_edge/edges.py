"""Layer 3: where susceptibility may step. `METHODS[name](magnitude, r2star_per_s, mask, geometry, weight, **options) -> edges`.

edges: (3, z, y, x) float32, the share (0 to 1) of the total-variation penalty that the step from a voxel to the next one
along each axis pays: small where the anatomy has an edge, 0 where either voxel is outside the mask, because of what is
there nothing is known, and what the background removal left over may be explained there.
"""

from __future__ import annotations

from collections.abc import Callable

from qsm_edge.backend import namespace
from qsm_edge.distance import depth_mm
from qsm_edge.solvers import forward_difference
from qsm_edge.types import Array, Geometry


def anatomy(
    magnitude: Array,
    r2star_per_s: Array | None,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    smooth_mm: float = 0.7,
    step_limit: float = 2.0,
    smallest: float = 0.02,
    depth_limit_mm: float = 4.0,
    weight_limit: float = 0.3,
) -> Array:
    """Edges of the magnitude and of R2* need not pay for a step of susceptibility: tissues differ in all three.

    Of the logarithm of the echoes' root-sum-of-squares (whose steps no coil profile makes) and, with two echoes or more,
    of R2*, smoothed by `smooth_mm`, a step pays 1 / (1 + sum of (step / typical step)^2), at least `smallest`. Typical is
    `step_limit` times that image's own median along that axis: noise and texture, so that a noisy image claims few
    edges. Steps pay in full where images say nothing of tissue: within `depth_limit_mm` of the surface, and inside voids
    (both weights below `weight_limit`), where they are noise.
    Source: morphology-enabled dipole inversion, Liu et al., NeuroImage 2012, doi:10.1016/j.neuroimage.2011.08.082; soft
    instead of binary edges, R2* beside the magnitude, and their scale are ours.
    """
    xp = namespace(magnitude)
    inside = xp.astype(mask, xp.float32)
    total = sum(magnitude[e, ...] ** 2 for e in range(magnitude.shape[0]))
    images = [0.5 * xp.log(xp.maximum(total, xp.full_like(total, 1e-12)))]
    if r2star_per_s is not None:
        images.append(r2star_per_s)
    images = [_smoothed(image, inside, geometry, smooth_mm) for image in images]
    known = mask & (weight >= weight_limit)
    deep = depth_mm(mask, geometry) >= depth_limit_mm
    shares = []
    for axis in range(3):
        both = _both(mask, axis)
        tissue = both & deep & (known | xp.roll(known, -1, axis=axis))
        excess = xp.zeros_like(inside)
        for image in images:
            step = xp.abs(forward_difference(image, axis, 1.0))
            excess = excess + (step / max(step_limit * _median(step[tissue]), 1e-12)) ** 2
        share = xp.maximum(1 / (1 + excess), xp.full_like(excess, smallest))
        full = xp.astype(both, xp.float32)
        shares.append(xp.where(tissue, share, full))
    return xp.stack(shares)


def none(magnitude: Array, r2star_per_s: Array | None, mask: Array, geometry: Geometry, weight: Array) -> Array:
    """Every step inside the mask pays alike: the anatomy is not looked at."""
    del magnitude, r2star_per_s, geometry, weight
    xp = namespace(mask)
    return xp.stack([xp.astype(_both(mask, axis), xp.float32) for axis in range(3)])


def _both(mask: Array, axis: int) -> Array:
    """Whether a voxel and the next one along `axis` are inside the mask."""
    xp = namespace(mask)
    size = mask.shape[axis]
    line = [1, 1, 1]
    line[axis] = -1
    has_next = xp.reshape(xp.arange(size, device=mask.device) < size - 1, tuple(line))
    return mask & xp.roll(mask, -1, axis=axis) & has_next


def _smoothed(image: Array, inside: Array, geometry: Geometry, width_mm: float) -> Array:
    """Mean over the inside with weights of standard deviation `width_mm` along each axis, three taps at most."""
    xp = namespace(image)
    value, share = image * inside, inside
    for axis, spacing in enumerate(geometry.voxel_mm):
        tap = min(width_mm**2 / (2 * spacing**2), 1 / 3)

        def blurred(x: Array, axis: int = axis, tap: float = tap) -> Array:
            return (1 - 2 * tap) * x + tap * (_shifted(x, axis, 1) + _shifted(x, axis, -1))

        value, share = blurred(value), blurred(share)
    return xp.where(share > 0, value / xp.where(share > 0, share, xp.ones_like(share)), xp.zeros_like(value)) * inside


def _shifted(x: Array, axis: int, by: int) -> Array:
    """`x` moved by one voxel along `axis`, zero where nothing comes in."""
    xp = namespace(x)
    size = x.shape[axis]
    line = [1, 1, 1]
    line[axis] = -1
    index = xp.reshape(xp.arange(size, device=x.device), tuple(line))
    first = index == (0 if by > 0 else size - 1)
    moved = xp.roll(x, by, axis=axis)
    return xp.where(first, xp.zeros_like(moved), moved)


def _median(values: Array) -> float:
    """The middle value, 0 of none."""
    ordered = namespace(values).sort(values)
    return float(ordered[ordered.shape[0] // 2]) if ordered.shape[0] else 0.0


METHODS: dict[str, Callable[..., Array]] = {"anatomy": anatomy, "none": none}
