"""Layer 3: where susceptibility may step. `METHODS[name](magnitude, r2star_per_s, mask, geometry, weight, **options) -> edges`.

edges: (3, z, y, x) float32, the share (0 to 1) of the total-variation penalty that the step from a voxel to the next one
along each axis pays: small where the anatomy has an edge, 0 where either voxel is outside the mask, because of what is
there nothing is known, and what the background removal left over may be explained there.
"""

from __future__ import annotations

from collections.abc import Callable

from qsm_edge.backend import median, namespace
from qsm_edge.distance import shallow_mm
from qsm_edge.solvers import neighbours
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
    total = magnitude[0, ...] ** 2
    for echo in range(1, magnitude.shape[0]):
        total += magnitude[echo, ...] ** 2
    images = [0.5 * xp.log(xp.maximum(total, xp.full_like(total, 1e-12)))]
    if r2star_per_s is not None:
        images.append(r2star_per_s)
    # A voxel inside keeps a third of its own along each axis at least; outside, what the share is does not matter.
    share = xp.maximum(_blurred(inside, geometry, smooth_mm), xp.full_like(inside, 0.01))
    images = [_blurred(image * inside, geometry, smooth_mm) / share * inside for image in images]
    known = mask & (weight >= weight_limit)
    deep = shallow_mm(mask, geometry, depth_limit_mm) >= depth_limit_mm
    shares = xp.zeros((3, *mask.shape), dtype=xp.float32, device=mask.device)
    for axis in range(3):
        first, second = neighbours(axis)
        both = mask[first] & mask[second]
        tissue = both & deep[first] & (known[first] | known[second])
        excess = xp.ones_like(inside[first])
        for image in images:
            step = xp.abs(image[second] - image[first])
            step *= 1 / max(step_limit * median(step[tissue]), 1e-12)
            excess += step * step
        share = xp.maximum(1 / excess, xp.full_like(excess, smallest))
        shares[(axis, *first)] = xp.where(tissue, share, xp.astype(both, xp.float32))
    return shares


def none(magnitude: Array, r2star_per_s: Array | None, mask: Array, geometry: Geometry, weight: Array) -> Array:
    """Every step inside the mask pays alike: the anatomy is not looked at."""
    del magnitude, r2star_per_s, geometry, weight
    xp = namespace(mask)
    shares = xp.zeros((3, *mask.shape), dtype=xp.float32, device=mask.device)
    for axis in range(3):
        first, second = neighbours(axis)
        shares[(axis, *first)] = xp.astype(mask[first] & mask[second], xp.float32)
    return shares


def _blurred(x: Array, geometry: Geometry, width_mm: float) -> Array:
    """Mean with weights of standard deviation `width_mm` along each axis, three taps at most, zero beyond the border."""
    for axis, spacing in enumerate(geometry.voxel_mm):
        tap = min(width_mm**2 / (2 * spacing**2), 1 / 3)
        first, second = neighbours(axis)
        out = (1 - 2 * tap) * x
        moved = tap * x
        out[first] += moved[second]
        out[second] += moved[first]
        x = out
    return x


METHODS: dict[str, Callable[..., Array]] = {"anatomy": anatomy, "none": none}
