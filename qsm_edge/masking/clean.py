"""The mask by a network: its input, its output brought back to the native grid, and made one solid piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.errors import InputRefused, ModelRefused, UsageError
from qsm_edge.masking.classical import first_echo
from qsm_edge.masking.grid import prepare, restore
from qsm_edge.masking.morphology import filled, largest, otsu
from qsm_edge.types import Array, Geometry, Note, OnIteration

_TRIM_MM = 3.0  # how far from its surface a mask is trimmed where there is no signal
_REACH = 12.0  # logits or mm from the edge: what is further tells nothing more about where the edge is


def network(
    magnitude: Array,
    phase_rad: Array,
    echo_times_s: Sequence[float],
    geometry: Geometry,
    *,
    model: Path | str | None = None,
    providers: str = "auto",
    threads: int | None = None,
    smooth_mm: float = 0.7,
    on_note: Callable[[Note], None] | None = None,
    on_iteration: OnIteration | None = None,
) -> np.ndarray:
    """Brain mask by an ONNX network from the first echo's magnitude, cleaned to one piece without holes.

    `model`: ONNX file with its card beside it; None takes the one that ships. `providers`, `threads`: see `network.load`.
    `smooth_mm`: see `clean`. `on_note` gets a Note for every provider that was wanted and did not run. The output is
    interpolated to the native grid before it is squashed and cut, so that the edge is finer than the network's grid.
    Raises ModelRefused (no_model, model_checksum, model_card, model_foreign), InputRefused mask_empty, UsageError bad_call
    for shapes that do not fit.
    Source: Lee et al., NMR Biomed 2025, doi:10.1002/nbm.70057.
    """
    from qsm_edge import network as door

    first, _ = first_echo(magnitude, phase_rad, echo_times_s, geometry)
    path = Path(model) if model else door.default_model()
    if path is None:
        raise ModelRefused("no_model", wanted="a model file with its card (--model FILE.onnx), or --mask threshold")
    loaded = door.load(path, providers=providers, threads=threads)
    tensor, grid = prepare(first, geometry, loaded.card)
    level = loaded.segment(tensor)
    if on_note:
        for note in loaded.notes:
            on_note(note)
    if on_iteration:
        on_iteration(1, 0.0)
    if loaded.card.output == "probability":
        soft = restore(level, grid, geometry, beyond=0.0)
    else:  # logits, or mm inside the surface: both are squashed by the same function, 0 is the edge at a probability of 0.5
        native = restore(np.clip(level, -_REACH, _REACH), grid, geometry, beyond=-_REACH)
        soft = np.asarray(1 / (1 + np.exp(-native)), dtype=np.float32)
    return clean(soft, geometry, threshold=loaded.card.threshold, smooth_mm=smooth_mm, magnitude=first)


def clean(
    soft: np.ndarray,
    geometry: Geometry,
    *,
    threshold: float = 0.5,
    smooth_mm: float = 0.7,
    magnitude: np.ndarray | None = None,
) -> np.ndarray:
    """A continuous output (z, y, x) as a solid mask: smoothed, cut at `threshold`, largest piece, holes filled.

    The surface is smoothed by a Gaussian of `smooth_mm` before the cut, which moves no flat surface. With `magnitude`
    (z, y, x), the edge is taken back, 3 mm at most, where the signal is lost in noise and this is open to the outside; no
    voxel deeper inside leaves for being dark: a bleed stays. Raises InputRefused mask_empty where nothing exceeds the
    threshold, UsageError bad_call for another shape, bad_value for a negative width.
    """
    values = np.asarray(soft, dtype=np.float32)
    if values.shape != geometry.shape or (magnitude is not None and magnitude.shape != geometry.shape):
        raise UsageError("bad_call", "the arrays do not lie on the grid", got=values.shape, wanted=geometry.shape)
    if not 0 <= smooth_mm <= 20:
        raise UsageError("bad_value", "smooth_mm", got=smooth_mm, wanted="0 to 20")
    low = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    values = np.nan_to_num(values, nan=low)
    sigma = [smooth_mm / v for v in geometry.voxel_mm]
    mask = np.asarray(ndi.gaussian_filter(values, sigma, mode="nearest") > threshold)
    if mask.any():
        mask = filled(largest(mask))
        if magnitude is not None:
            mask = filled(largest(_trimmed(mask, np.asarray(magnitude), geometry.voxel_mm)))
    if not mask.any():
        raise InputRefused(
            "mask_empty", "the network found no brain", got=f"maximum {float(values.max()):.3g}", wanted=threshold
        )
    return mask


def _trimmed(mask: np.ndarray, magnitude: np.ndarray, voxel_mm: tuple[float, float, float]) -> np.ndarray:
    """Without what is below three standard deviations of the noise, near the surface and connected to the outside by the like.

    The noise is measured in the air: the median of a Rayleigh distribution is 1.1774 standard deviations.
    """
    if mask.all():
        return mask
    air = magnitude[~mask]
    air = air[air < otsu(magnitude)]
    noise = float(np.median(air)) / 1.1774 if air.size > 100 else 0.0
    faint = magnitude < min(3 * noise, 0.2 * float(np.median(magnitude[mask])))
    depth = ndi.distance_transform_edt(mask, sampling=voxel_mm)
    loose = ~mask | (faint & (depth <= _TRIM_MM))
    return np.asarray(mask & ~ndi.binary_propagation(~mask, mask=loose))
