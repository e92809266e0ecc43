"""The mask by a network: its input, its output brought back to the native grid, and made one solid piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.errors import InputRefused, ModelRefused, UsageError
from qsm_edge.masking.classical import first_echo
from qsm_edge.masking.confidence import Confidence, agreement, edge_mm
from qsm_edge.masking.fine import fine_input, late_echo, placed
from qsm_edge.masking.grid import Grid, prepare, reach, restore
from qsm_edge.masking.morphology import closed, filled, grown, largest, otsu
from qsm_edge.modelcard import Card
from qsm_edge.types import Array, Geometry, Note, OnIteration

if TYPE_CHECKING:
    from qsm_edge.network import Network

_TRIM_MM = 3.0  # how far from its surface a mask is trimmed where there is no signal
_FIRM = 0.9  # probability of brain at which a voxel stays, however dark: a bleed at the surface
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
    on_confidence: Callable[[Confidence], None] | None = None,
    on_iteration: OnIteration | None = None,
) -> np.ndarray:
    """Brain mask by an ONNX network from the magnitude, cleaned to one piece without holes.

    The first echo is what the network sees; where its card has a second network, that sees how the signal decays as well.

    `model`: ONNX file with its card beside it; None takes the one that ships. `providers`, `threads`: see `network.load`.
    `smooth_mm`: see `clean`. `on_note` gets a Note for every provider that was wanted and did not run, and one where the
    network is unsure; `on_confidence` gets its `Confidence`. The output is interpolated to the native grid before it is
    squashed and cut, so that the edge is finer than the network's grid. A card that says so has the network look at the
    mirrored head too and the two outputs averaged.
    Raises ModelRefused (no_model, model_checksum, model_card, model_foreign), InputRefused mask_empty, UsageError bad_call
    for shapes that do not fit.
    Source: Lee et al., NMR Biomed 2025, doi:10.1002/nbm.70057.
    """
    from qsm_edge import network as door

    first = first_echo(magnitude, phase_rad, echo_times_s, geometry)[0]
    path = Path(model) if model else door.default_model()
    if path is None:
        raise ModelRefused("no_model", wanted="a model file with its card (--model FILE.onnx), or --mask threshold")
    loaded = door.load(path, providers=providers, threads=threads)
    card = loaded.card
    tensor, grid = prepare(first, geometry, card)
    levels = [loaded.segment(tensor)]
    if card.mirror:
        across = 2 + next(i for i, letter in enumerate(card.axes) if letter in "LR")
        levels.append(np.flip(loaded.segment(np.ascontiguousarray(np.flip(tensor, across))), across))
    told = loaded.notes
    if on_note:
        for note in told:
            on_note(note)
    if on_iteration:
        on_iteration(1, 0.0)
    level = np.mean(levels, axis=0)
    # Where there are two outputs, the mask's tells of the mask: tissue has an edge in every sulcus.
    shares = [_probability(one[0, 0], card.output) for one in levels]
    cut = card.threshold if card.closing_mm is None else 0.5
    sure = Confidence(
        edge_mm(np.mean(shares, axis=0), grid.spacing_mm),
        agreement(shares[0], shares[1], cut) if card.mirror else None,
    )
    if on_confidence:
        on_confidence(sure)
    if on_note and sure.is_low:
        twice = "" if sure.agreement is None else f", Dice {sure.agreement:.3f} with the mirrored head"
        on_note(Note("mask_uncertain", f"The mask network is unsure of the edge: {sure.edge_mm:.1f} mm wide{twice}."))
    if card.closing_mm is None:
        soft = _native(level[0, -1], grid, geometry, card)
        return clean(soft, geometry, threshold=card.threshold, smooth_mm=smooth_mm, magnitude=first)
    solid, firm = _solid(level, grid, magnitude, first, geometry, loaded)
    if on_note:
        for note in loaded.notes[len(told) :]:  # of the second network, which ran only now
            on_note(note)
    return clean(solid, geometry, smooth_mm=smooth_mm, magnitude=first, firm=firm)


def _solid(
    level: np.ndarray, grid: Grid, magnitude: Array, first: np.ndarray, geometry: Geometry, loaded: Network
) -> tuple[np.ndarray, np.ndarray]:
    """Tissue closed, float32 0 or 1, and where the mask is firm, bool; on the native grid."""
    brain, tissue, card = _outputs(level, grid, magnitude, first, geometry, loaded)
    solid = tissue > card.threshold
    if card.dark:
        inside = first[brain > 0.5]
        if inside.size:
            solid |= (first < card.dark * float(np.median(inside))) & (tissue > card.dark_threshold)
    return _closed(solid, brain, card, geometry), brain > _FIRM


def _outputs(
    level: np.ndarray, grid: Grid, magnitude: Array, first: np.ndarray, geometry: Geometry, loaded: Network
) -> tuple[np.ndarray, np.ndarray, Card]:
    """Probabilities of the mask and of tissue on the native grid, with the card that says where they are cut.

    By the second network where there is one and the first has found a brain for it to look at.
    """
    if loaded.fine is not None:
        late = late_echo(magnitude, first, level[0, 0], grid)
        seen = fine_input(first, late, geometry, level[0, 0], level[0, 1], grid)
        if seen is not None:
            found = loaded.fine.segment(seen.tensor)[0]
            finer = [_native(placed(one, seen, -_REACH), seen.grid, geometry, loaded.fine.card) for one in found]
            return finer[0], finer[1], loaded.fine.card
    brain, tissue = (_native(one, grid, geometry, loaded.card) for one in level[0])
    return brain, tissue, loaded.card


def _closed(tissue: np.ndarray, brain: np.ndarray, card: Card, geometry: Geometry) -> np.ndarray:
    """Tissue closed by the card's ball where the mask is not unlikely; float32 0 or 1."""
    assert card.closing_mm is not None
    box = reach(tissue, [card.closing_mm / v + 2 for v in geometry.voxel_mm])
    solid = np.zeros(geometry.shape, np.float32)
    solid[box] = closed(tissue[box], card.closing_mm, geometry.voxel_mm)
    if card.guard:
        solid[box] *= brain[box] > card.guard
    return solid


def _native(volume: np.ndarray, grid: Grid, geometry: Geometry, card: Card) -> np.ndarray:
    """A volume of the network's output as a probability on the native grid, 0 where it is far from the edge."""
    far = min(card.threshold, card.guard or 1.0) / 2
    if card.output == "probability":
        return restore(volume, grid, geometry, beyond=0.0, least=far)
    least = math.log(far / (1 - far))
    native = restore(np.clip(volume, -_REACH, _REACH), grid, geometry, beyond=-_REACH, least=least)
    return _probability(native, card.output)


def _probability(level: np.ndarray, output: str) -> np.ndarray:
    """Of a network's output: logits and mm inside the surface are squashed by the same function, 0 is the edge at 0.5."""
    if output == "probability":
        return level
    out = np.clip(level, -_REACH, _REACH)
    for step in (np.negative, np.exp):  # in place: on the native grid this is as large as the magnitude
        step(out, out=out)
    out += 1
    return np.asarray(np.divide(1, out, out=out), dtype=np.float32)


def clean(
    soft: np.ndarray,
    geometry: Geometry,
    *,
    threshold: float = 0.5,
    smooth_mm: float = 0.7,
    magnitude: np.ndarray | None = None,
    firm: np.ndarray | None = None,
) -> np.ndarray:
    """A continuous output (z, y, x) as a solid mask: smoothed, cut at `threshold`, largest piece, holes filled.

    The surface is smoothed by a Gaussian of `smooth_mm` before the cut, which moves no flat surface. With `magnitude`
    (z, y, x), the edge is taken back, 3 mm at most, where the signal is lost in noise and this is open to the outside; no
    voxel deeper inside leaves for being dark, nor one that is `firm` (bool, z, y, x): a bleed stays. Raises InputRefused
    mask_empty where nothing exceeds the threshold, UsageError bad_call for another shape, bad_value for a negative width.
    """
    values = np.asarray(soft, dtype=np.float32)
    for other in (values, magnitude, firm):
        if other is not None and other.shape != geometry.shape:
            raise UsageError("bad_call", "the arrays do not lie on the grid", got=other.shape, wanted=geometry.shape)
    if not 0 <= smooth_mm <= 20:
        raise UsageError("bad_value", "smooth_mm", got=smooth_mm, wanted="0 to 20")
    values = np.where(np.isfinite(values), values, 0)
    box = reach(values > threshold / 2, [smooth_mm * 5 / v + 3 for v in geometry.voxel_mm])
    sigma = [smooth_mm / v for v in geometry.voxel_mm]
    part = np.asarray(ndi.gaussian_filter(values[box], sigma, mode="nearest") > threshold)
    if part.any():
        part = filled(largest(part))
        if magnitude is not None and not part.all():
            faint = _faint(np.asarray(magnitude), box, part)
            if firm is not None:
                faint &= ~firm[box]
            part = filled(largest(_trimmed(part, faint, geometry.voxel_mm)))
    if not part.any():
        raise InputRefused(
            "mask_empty", "the network found no brain", got=f"maximum {float(values.max()):.3g}", wanted=threshold
        )
    mask = np.zeros(geometry.shape, bool)
    mask[box] = part
    return mask


def _faint(magnitude: np.ndarray, box: tuple[slice, ...], part: np.ndarray) -> np.ndarray:
    """Where in the box the signal is below three standard deviations of the noise.

    The noise is measured in the air: the median of a Rayleigh distribution is 1.1774 standard deviations. Every second voxel
    along each axis tells it as well as all.
    """
    outside = np.ones(magnitude.shape, bool)
    outside[box] = ~part
    few = magnitude[::2, ::2, ::2]
    air = few[outside[::2, ::2, ::2] & (few < otsu(few))]
    noise = float(np.median(air)) / 1.1774 if air.size > 100 else 0.0
    inside = magnitude[box]
    return np.asarray(inside < min(3 * noise, 0.2 * float(np.median(inside[part]))))


def _trimmed(mask: np.ndarray, faint: np.ndarray, voxel_mm: tuple[float, float, float]) -> np.ndarray:
    """Without what is `faint`, near the surface and connected to the outside by the like."""
    loose, _ = ndi.label(mask & faint & grown(~mask, _TRIM_MM, voxel_mm))
    open_ = np.unique(loose[ndi.binary_dilation(~mask) & (loose > 0)])
    return np.asarray(mask & ~np.isin(loose, open_))
