"""Shapes in millimetres; `step_mm` is a voxel's size, one number or three.

Beyond the border of the volume the border repeats itself: a slab often cuts the brain, and so eroding or closing a mask
does not eat into it from there.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndi

FAR_MM = 1000.0
Step = float | tuple[float, float, float]


def otsu(values: np.ndarray) -> float:
    """The threshold that separates two classes best (Otsu 1979, doi:10.1109/TSMC.1979.4310076), on square roots.

    Square roots make a weak signal's class as narrow as noise's; the brightest 0.5 % count as one value.
    """
    roots = np.sqrt(np.maximum(np.asarray(values, dtype=np.float64).ravel(), 0.0))
    top = float(np.percentile(roots, 99.5)) or float(roots.max(initial=0.0))
    if top <= 0:
        return 0.0
    counts, edges = np.histogram(np.minimum(roots, top), 256, (0.0, top))
    centres = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above = counts.sum() - below
    good = (below > 0) & (above > 0)
    if not good.any():
        return float(centres[0] ** 2)
    between = np.zeros(len(below))
    total = float((counts * centres).sum())
    between[good] = (total * below[good] / counts.sum() - mass[good]) ** 2 / (below[good] * above[good])
    return float(edges[1:][np.argmax(between)] ** 2)


def depth_mm(mask: np.ndarray, step_mm: Step) -> np.ndarray:
    """Distance of every voxel in the mask from the nearest voxel outside, FAR_MM where there is none outside."""
    if mask.all():
        return np.full(mask.shape, FAR_MM, np.float32)
    if isinstance(step_mm, tuple):
        return np.asarray(ndi.distance_transform_edt(mask, sampling=step_mm), dtype=np.float32)
    return np.asarray(ndi.distance_transform_edt(mask) * step_mm, dtype=np.float32)


def away_mm(mask: np.ndarray, step_mm: Step) -> np.ndarray:
    """Distance of every voxel outside the mask from the nearest voxel in it."""
    return depth_mm(~mask, step_mm)


def grown(mask: np.ndarray, radius_mm: float, step_mm: Step) -> np.ndarray:
    """Every voxel whose centre is at most `radius_mm` from the centre of one in the mask: dilation by a ball.

    The same as `away_mm(mask) <= radius_mm`, by rows: a ball is a stack of row pieces, of few different lengths. For balls of
    some voxels this takes a tenth of the time of a distance transform.
    """
    steps = step_mm if isinstance(step_mm, tuple) else (step_mm,) * 3
    square = radius_mm * radius_mm * (1 + 1e-6)
    slices, rows = (int(radius_mm * (1 + 1e-6) / step) for step in steps[:2])
    lengths = {}  # (slice, row) offset -> half a row piece's length
    for z in range(slices + 1):
        for y in range(rows + 1):
            left = square - (z * steps[0]) ** 2 - (y * steps[1]) ** 2
            if left >= 0:
                lengths[z, y] = int(left**0.5 / steps[2])
    pieces, piece = {}, np.array(mask, dtype=bool)
    for length in range(max(lengths.values()) + 1):
        if length:
            piece = piece.copy()
            _join(piece, mask, 2, length)
        if length in lengths.values():
            pieces[length] = piece
    out = np.zeros(mask.shape, bool)
    for z in range(slices + 1):
        disc = pieces[lengths[z, 0]].copy()
        for y in range(1, rows + 1):
            if (z, y) in lengths:
                _join(disc, pieces[lengths[z, y]], 1, y)
        if z == 0:
            out |= disc
        else:
            _join(out, disc, 0, z)
    return out


def _join(out: np.ndarray, mask: np.ndarray, axis: int, shift: int) -> None:
    """`out` |= `mask` moved by `shift` voxels along the axis, either way; nothing comes in from beyond the border."""
    if shift < mask.shape[axis]:
        low = tuple(slice(None, -shift) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(shift, None) if a == axis else slice(None) for a in range(3))
        out[low] |= mask[high]
        out[high] |= mask[low]


def closed(mask: np.ndarray, radius_mm: float, step_mm: Step) -> np.ndarray:
    """Morphological closing by a ball: gaps that a ball of that radius does not fit into are filled."""
    steps = step_mm if isinstance(step_mm, tuple) else (step_mm,) * 3
    margins = [int(np.ceil(radius_mm / step)) + 2 for step in steps]
    wide = grown(np.pad(mask, [(m, m) for m in margins], mode="edge"), radius_mm, step_mm)
    gaps = grown(
        ~wide, radius_mm, step_mm
    )  # beyond the border, the border repeats itself, so nothing comes in from there
    return np.asarray(~gaps[tuple(slice(m, -m) for m in margins)] | mask)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask (faces touching); the first one where several are equal."""
    pieces, count = ndi.label(mask)
    if count <= 1:
        return np.array(mask, dtype=bool)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax())


def filled(mask: np.ndarray) -> np.ndarray:
    """Without holes: inside is what cannot be reached from beyond the border, where every face repeats, itself filled.

    So a bleed or a ventricle that the end of the slab cuts open is a hole as well.
    """
    wide = np.pad(mask, 1)
    for axis in range(3):
        for side in (0, -1):
            face = np.take(mask, side, axis=axis)
            if face.any():
                at: list[slice | int] = [slice(1, -1)] * 3
                at[axis] = side
                wide[tuple(at)] = ndi.binary_fill_holes(face)
    outside, _ = ndi.label(
        ~wide
    )  # the twelve edges of what was added are never filled: one piece, which has the number 1
    return np.asarray(outside[1:-1, 1:-1, 1:-1] != 1)
