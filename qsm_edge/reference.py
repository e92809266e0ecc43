"""Layer 3: what zero means. `METHODS[name](chi_ppm, mask, geometry, r2star_per_s, **options) -> chi_ppm`.

A field says nothing about a constant, so that every map needs a reference, and the output states it.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.backend import namespace, on_host
from qsm_edge.distance import depth_mm
from qsm_edge.errors import InputRefused
from qsm_edge.types import Array, Geometry


def mean(chi_ppm: Array, mask: Array, geometry: Geometry, r2star_per_s: Array | None) -> Array:
    """Zero is the mean over the mask, the reference that needs no segmentation."""
    del geometry, r2star_per_s
    xp = namespace(chi_ppm)
    inside = xp.astype(mask, chi_ppm.dtype)
    return (chi_ppm - xp.sum(chi_ppm * inside) / xp.sum(inside)) * inside


def csf(
    chi_ppm: Array,
    mask: Array,
    geometry: Geometry,
    r2star_per_s: Array | None,
    *,
    r2star_limit_per_s: float = 6.0,
    depth_limit_mm: float = 15.0,
    smallest_ml: float = 0.5,
) -> Array:
    """Zero is the mean of the ventricles' CSF: slowly decaying voxels deep in the mask, in pieces of `smallest_ml` or more.

    Needs R2*, that is two echoes or more; raises bad_call without it and mask_invalid where no ventricle is found.
    Source: Liu et al., MRM 2018, doi:10.1002/mrm.26946 (MEDI+0).
    """
    if r2star_per_s is None:
        raise InputRefused(
            "bad_call", "the CSF reference needs R2*", got="one echo", wanted="two or more, or reference=mean"
        )
    depth = depth_mm(mask, geometry)
    slow = mask & (r2star_per_s < r2star_limit_per_s) & (depth > depth_limit_mm)
    ventricles = _large_pieces(slow, geometry, smallest_ml)
    xp = namespace(chi_ppm)
    count = int(xp.sum(xp.astype(ventricles, xp.int64)))
    if count == 0:
        raise InputRefused(
            "mask_invalid", "no ventricle was found for the CSF reference", got="0 mL", wanted=f"{smallest_ml} mL"
        )
    inside = xp.astype(ventricles, chi_ppm.dtype)
    zero = xp.sum(chi_ppm * inside) / xp.sum(inside)
    return (chi_ppm - zero) * xp.astype(mask, chi_ppm.dtype)


@on_host
def _large_pieces(found: Array, geometry: Geometry, smallest_ml: float) -> Array:
    """The connected pieces of at least `smallest_ml`, single-voxel noise opened away."""
    label, count = ndi.label(ndi.binary_opening(np.asarray(found)))
    if count == 0:
        return np.zeros(label.shape, bool)
    sizes = np.bincount(label.ravel()) * geometry.voxel_ml
    sizes[0] = 0
    return np.asarray((sizes >= smallest_ml)[label])


def none(chi_ppm: Array, mask: Array, geometry: Geometry, r2star_per_s: Array | None) -> Array:
    """No reference: the constant that the inversion left, which means nothing."""
    del mask, geometry, r2star_per_s
    return chi_ppm


METHODS = {"mean": mean, "csf": csf, "none": none}
