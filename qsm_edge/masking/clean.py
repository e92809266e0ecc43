"""The mask by a network: its input, its output brought back to the native grid, and made one solid piece."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.errors import InputRefused
from qsm_edge.masking.grid import prepare, restore
from qsm_edge.masking.morphology import filled, largest
from qsm_edge.types import Array, Geometry


def network(
    magnitude: Array,
    phase_rad: Array,
    echo_times_s: Sequence[float],
    geometry: Geometry,
    *,
    model: str | None = None,
    providers: str = "auto",
    smooth_mm: float = 0.7,
) -> np.ndarray:
    """Brain mask by an ONNX network from the first echo's magnitude, cleaned to one piece without holes.

    `model`: ONNX file with its card beside it; None takes the installed one. `providers`: 'auto' or names of onnxruntime's
    execution providers, separated by commas. `smooth_mm`: see `clean`.
    Raises ModelRefused (no_model, model_checksum, model_card, model_foreign), InputRefused mask_empty.
    Source: Lee et al., NMR Biomed 2025, doi:10.1002/nbm.70057.
    """
    from qsm_edge import network as door

    del phase_rad
    loaded = door.load(Path(model) if model else door.require_default(), providers=providers)
    first = min(range(len(echo_times_s)), key=lambda e: echo_times_s[e])
    tensor, grid = prepare(magnitude[first, ...], geometry, loaded.card)
    soft = loaded.segment(tensor)
    native = restore(soft, grid, geometry, beyond=float(soft.min()))
    return clean(native, geometry, threshold=loaded.card.threshold, smooth_mm=smooth_mm)


def clean(soft: np.ndarray, geometry: Geometry, *, threshold: float = 0.5, smooth_mm: float = 0.7) -> np.ndarray:
    """A continuous output (z, y, x) as a solid mask: smoothed, cut at `threshold`, largest piece, holes filled.

    The surface is smoothed by a Gaussian of `smooth_mm` before the cut, which moves no flat surface. No voxel leaves for
    being dark: a bleed inside stays. Raises InputRefused mask_empty where nothing exceeds the threshold.
    """
    sigma = [smooth_mm / v for v in geometry.voxel_mm]
    mask = ndi.gaussian_filter(np.asarray(soft, dtype=np.float32), sigma) > threshold
    if not mask.any():
        raise InputRefused(
            "mask_empty", "the network found no brain", got=f"maximum {float(np.max(soft)):.3g}", wanted=threshold
        )
    return filled(largest(mask))
