"""Layer 2: distances inside a mask, computed on the host."""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.backend import on_host
from qsm_edge.types import Array, Geometry


@on_host
def depth_mm(mask: Array, geometry: Geometry) -> Array:
    """Distance [mm] of every voxel of the mask to the nearest voxel outside it; the volume's border counts as outside."""
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    depth = ndi.distance_transform_edt(padded, sampling=geometry.voxel_mm)
    return np.ascontiguousarray(depth[1:-1, 1:-1, 1:-1]).astype(np.float32)
