"""Layer 3: how far each voxel's field is to be trusted. Unreliable voxels leave through weights, never as holes.

`METHODS` of the stage `weight` rate the echo fit; those of the stage `rim` rate the local field near the mask's surface.
A weight is about 1 in ordinary tissue and falls to 0 where the field says nothing; it multiplies residuals, so that its
square is an inverse variance.
"""

from __future__ import annotations

from qsm_edge.backend import median, namespace
from qsm_edge.distance import shallow_mm
from qsm_edge.solvers import neighbours
from qsm_edge.types import Array, Geometry


def reliability(
    precision: Array,
    residual: Array,
    mask: Array,
    geometry: Geometry,
    *,
    residual_limit: float = 0.15,
    largest: float = 2.0,
) -> Array:
    """Precision of the echo fit relative to its median, cut at `largest`, divided by 1 + (residual / residual_limit)^2.

    A voxel whose echoes do not fit one frequency (dephasing, flow, fat, motion) is biased rather than noisy, so that its
    weight falls with the residual beyond what its signal says. Source: consensus recommendation, Bilgic et al., MRM 2024,
    doi:10.1002/mrm.30006.
    """
    del geometry
    xp = namespace(precision)
    typical = _median(precision, mask) or 1.0
    relative = xp.minimum(precision / typical, xp.full_like(precision, largest))
    return xp.where(mask, relative / (1 + (residual / residual_limit) ** 2), xp.zeros_like(precision))


def uniform(precision: Array, residual: Array, mask: Array, geometry: Geometry) -> Array:
    """Weight one in the whole mask: every voxel is trusted alike."""
    del residual, geometry
    return namespace(precision).astype(mask, precision.dtype)


def robust_rim(
    field_ppm: Array,
    local_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    depth_limit_mm: float = 4.0,
    slope_limit_ppm_mm: float = 0.05,
    local_limit_ppm: float = 0.02,
) -> Array:
    """Take weight from rim voxels where the field is steep or what is left of it is implausibly large.

    Within `depth_limit_mm` of the surface, voxels share their volume with bone and air and lie next to sources that no
    grid resolves: there a steep total field or a large local field is the background's error (measured: 5 to 40 times
    the true local field's size, bench/NOTES.md), not susceptibility. The outermost voxels also lose weight by depth.
    """
    xp = namespace(field_ppm)
    layer = max(geometry.voxel_mm)
    near_mm = max(depth_limit_mm, 2 * layer)
    depth = shallow_mm(mask, geometry, max(near_mm, 2.01 * layer))
    slope = _steepest(field_ppm, mask, geometry)
    whole = xp.ones_like(weight)
    shell = xp.where(depth <= 1.01 * layer, 0.1 * whole, xp.where(depth <= 2.01 * layer, 0.5 * whole, whole))
    doubt = (1 + (slope / slope_limit_ppm_mm) ** 2) * (
        1 + ((local_ppm - _median(local_ppm, mask)) / local_limit_ppm) ** 2
    )
    near = depth < near_mm
    return weight * xp.astype(shell, weight.dtype) / xp.where(near, doubt, xp.ones_like(doubt))


def trust_all(field_ppm: Array, local_ppm: Array, mask: Array, geometry: Geometry, weight: Array) -> Array:
    """The weights as they are: the rim is treated like the inside."""
    del field_ppm, local_ppm, mask, geometry
    return weight


def _median(x: Array, mask: Array) -> float:
    """Median of x inside the mask, 0 where that is empty."""
    return median(x[mask])


def _steepest(field_ppm: Array, mask: Array, geometry: Geometry) -> Array:
    """Root of the summed squares of the larger one-sided difference along each axis [ppm/mm], inside the mask."""
    xp = namespace(field_ppm)
    total = xp.zeros_like(field_ppm)
    for axis, spacing in enumerate(geometry.voxel_mm):
        first, second = neighbours(axis)
        step = xp.abs(field_ppm[second] - field_ppm[first]) * (1 / spacing)
        step = xp.where(mask[second] & mask[first], step, xp.zeros_like(step))
        larger = xp.zeros_like(field_ppm)
        larger[first] = step
        larger[second] = xp.maximum(larger[second], step)
        total += larger * larger
    return xp.sqrt(total)


METHODS = {"reliability": reliability, "uniform": uniform}
RIM_METHODS = {"robust": robust_rim, "none": trust_all}
