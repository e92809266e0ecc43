"""Volumes turned to anatomical axes and resampled to a regular grid, and back: what every automatic mask works on.

Axes are permuted and flipped to the closest anatomical directions, never rotated: a slab that was planned obliquely stays
oblique. So a volume that is stored in another orientation, with its affine, gives the same arrays and the same mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qsm_edge.errors import UsageError
from qsm_edge.modelcard import CENTRES, NORMALISATIONS
from qsm_edge.types import Geometry

_NOTHING = 1e-9  # of a weight

Axes = tuple[int, int, int]
Flips = tuple[bool, bool, bool]
Triple = tuple[float, float, float]

#: Letter -> (axis of LPS coordinates, sign): the patient direction in which an array axis runs.
DIRECTIONS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


class Card(Protocol):
    """What `prepare` has to know of a network: the grid of its input and how its values are scaled.

    shape (3 voxels) and spacing_mm (3), both None for the volume's own voxels; axes (three letters, the patient direction in
    which each tensor axis runs, such as 'SPL' or 'PRS'), normalisation (out of NORMALISATIONS), centre (out of CENTRES).
    """

    @property
    def shape(self) -> tuple[int, int, int] | None: ...
    @property
    def spacing_mm(self) -> Triple | None: ...
    @property
    def axes(self) -> str: ...
    @property
    def normalisation(self) -> str: ...
    @property
    def centre(self) -> str: ...


@dataclass(frozen=True)
class Grid:
    """A regular grid beside a native volume, both with axes along `letters`.

    native_shape and native_mm are those of the volume once it is turned by `axes` and `flips`. `centre_mm` is where the
    middle of the grid lies from the middle of the volume.
    """

    letters: str
    axes: Axes
    flips: Flips
    native_shape: tuple[int, int, int]
    native_mm: Triple
    shape: tuple[int, int, int]
    spacing_mm: Triple
    centre_mm: Triple = (0.0, 0.0, 0.0)


def closest_axes(geometry: Geometry, letters: str = "SPL") -> tuple[Axes, Flips]:
    """Which array axis runs along each of `letters` best, and whether it has to be flipped for that."""
    if len(letters) != 3 or sorted(DIRECTIONS[c][0] if c in DIRECTIONS else -1 for c in letters) != [0, 1, 2]:
        raise UsageError(
            "bad_value", "axes name three patient directions", got=letters, wanted="such as SPL, LPS or PRS"
        )
    direction = geometry.affine_lps[:3, :3] / np.linalg.norm(geometry.affine_lps[:3, :3], axis=0)
    along = np.stack([DIRECTIONS[c][1] * direction[DIRECTIONS[c][0]] for c in letters])  # (letter, array axis)
    a, b, c = max(itertools.permutations(range(3)), key=lambda p: sum(abs(along[i, p[i]]) for i in range(3)))
    return (a, b, c), (bool(along[0, a] < 0), bool(along[1, b] < 0), bool(along[2, c] < 0))


def turn(volume: np.ndarray, axes: Axes, flips: Flips) -> np.ndarray:
    """A view of `volume` with its axes permuted, then flipped."""
    return volume.transpose(axes)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]


def turn_back(volume: np.ndarray, axes: Axes, flips: Flips) -> np.ndarray:
    """The inverse of `turn`, contiguous."""
    flipped = volume[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return np.ascontiguousarray(flipped.transpose(np.argsort(axes)))


def layout(
    geometry: Geometry,
    letters: str,
    spacing_mm: Triple,
    shape: tuple[int, int, int] | None = None,
    centre_mm: Triple = (0.0, 0.0, 0.0),
) -> Grid:
    """A grid of `spacing_mm` along `letters`; without `shape` it covers the volume."""
    axes, flips = closest_axes(geometry, letters)
    native_shape = tuple(geometry.shape[a] for a in axes)
    native_mm = tuple(geometry.voxel_mm[a] for a in axes)
    if shape is None:
        extent = zip(native_shape, native_mm, spacing_mm, strict=True)
        shape = tuple(max(1, round(n * v / h)) for n, v, h in extent)  # type: ignore[assignment]
    assert shape is not None
    return Grid(letters, axes, flips, native_shape, native_mm, shape, spacing_mm, centre_mm)  # type: ignore[arg-type]


def _points(count: int, spacing: float, centre: float = 0.0) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * spacing + centre


def _hat(at: np.ndarray, of: np.ndarray, width: float) -> np.ndarray:
    """Rows of weights that average samples at the points `of` into values at the points `at`, linearly within `width`."""
    reach = np.clip(at, of[0], of[-1])  # within half a voxel of the border the last sample holds
    weights = np.maximum(0.0, 1.0 - np.abs(reach[:, None] - of[None]) / width)
    weights[weights < _NOTHING] = 0.0  # last digits of where a sample lies
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def down_weights(grid: Grid) -> list[np.ndarray]:
    """For each axis the matrix (grid, native) that averages over a grid step, or interpolates where that is finer."""
    out = []
    for n, v, m, h, c in zip(
        grid.native_shape, grid.native_mm, grid.shape, grid.spacing_mm, grid.centre_mm, strict=True
    ):
        at, of = _points(m, h, c), _points(n, v)
        weights = _hat(at, of, max(v, h))
        weights[(at < of[0] - v / 2 - h / 2) | (at > of[-1] + v / 2 + h / 2)] = (
            0.0  # beyond the volume there is nothing
        )
        out.append(weights.astype(np.float32))
    return out


def up_weights(grid: Grid) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each axis the matrix (native, grid) that interpolates, and which native samples lie within the grid."""
    out, covered = [], []
    for n, v, m, h, c in zip(
        grid.native_shape, grid.native_mm, grid.shape, grid.spacing_mm, grid.centre_mm, strict=True
    ):
        at, of = _points(n, v), _points(m, h, c)
        out.append(_hat(at, of, h).astype(np.float32))
        covered.append((at >= of[0] - h / 2 - 1e-6) & (at <= of[-1] + h / 2 + 1e-6))
    return out, covered


def nearest(grid: Grid) -> list[np.ndarray]:
    """For each axis which native sample lies nearest to each of the grid's."""
    out = []
    for n, v, m, h, c in zip(
        grid.native_shape, grid.native_mm, grid.shape, grid.spacing_mm, grid.centre_mm, strict=True
    ):
        out.append(np.clip(np.rint(_points(m, h, c) / v + (n - 1) / 2).astype(int), 0, n - 1))
    return out


def between(grid: Grid, other: Grid, box: Sequence[slice]) -> list[np.ndarray]:
    """For each axis the matrix (part of `other`, grid) that interpolates from one grid of a volume to a box of another."""
    out = []
    for n, h, c, m, g, d, part in zip(
        grid.shape, grid.spacing_mm, grid.centre_mm, other.shape, other.spacing_mm, other.centre_mm, box, strict=True
    ):
        out.append(_hat(_points(m, g, d)[part], _points(n, h, c), h).astype(np.float32))
    return out


def apply(volume: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Resample each axis by its matrix, the most reducing first; float32, contiguous. What has no weight is not touched."""
    used = [np.flatnonzero(rows.any(axis=0)) for rows in weights]
    part = tuple(slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0, 0) for at in used)
    rows = [matrix[:, columns] for matrix, columns in zip(weights, part, strict=True)]
    out = np.asarray(volume[part], dtype=np.float32)
    for axis in sorted(range(3), key=lambda a: weights[a].shape[0] / weights[a].shape[1]):
        if _is_identity(rows[axis]):  # the grid's samples are the volume's own
            continue
        out = np.moveaxis(np.tensordot(rows[axis], out, axes=(1, axis)), 0, axis)
    return np.array(out, order="C") if np.may_share_memory(out, volume) else np.ascontiguousarray(out)


def _is_identity(matrix: np.ndarray) -> bool:
    return matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix), dtype=matrix.dtype))


def prepare(magnitude_first_echo: np.ndarray, geometry: Geometry, card: Card) -> tuple[np.ndarray, Grid]:
    """The first echo's magnitude as a network's input, and the grid that leads back from it.

    Parameters
    ----------
    magnitude_first_echo : (z, y, x), >= 0, any scale; what is not finite counts as 0.
    card : see `Card`. The middle of the tensor is put on the middle of the volume, or on the head's centre of mass.

    Returns
    -------
    tensor (1, 1, *card.shape) float32, and its `Grid`. Beyond the volume the tensor is 0 before normalisation.
    """
    from qsm_edge.masking.morphology import otsu

    if card.normalisation not in NORMALISATIONS or card.centre not in CENTRES:
        got = f"normalisation {card.normalisation!r}, centre {card.centre!r}"
        raise UsageError("bad_value", got=got, wanted=f"one of {NORMALISATIONS} and of {CENTRES}")
    volume = np.nan_to_num(np.asarray(magnitude_first_echo, dtype=np.float32), posinf=0.0, neginf=0.0)
    axes, _ = closest_axes(geometry, card.axes)
    own = (geometry.voxel_mm[axes[0]], geometry.voxel_mm[axes[1]], geometry.voxel_mm[axes[2]])
    spacing = card.spacing_mm or own
    grid = layout(geometry, card.axes, spacing, card.shape)
    turned = np.ascontiguousarray(turn(volume, grid.axes, grid.flips))
    if card.centre == "head" and card.shape:
        coarse = layout(geometry, card.axes, (4.0, 4.0, 4.0))
        small = apply(turned, down_weights(coarse))
        head = small > otsu(small)
        if head.any():
            middle = [float(index.mean()) for index in np.nonzero(head)]
            offsets = [(i - (m - 1) / 2) * 4.0 for i, m in zip(middle, coarse.shape, strict=True)]
            grid = layout(geometry, card.axes, spacing, card.shape, tuple(offsets))  # type: ignore[arg-type]
    tensor = apply(turned, down_weights(grid))
    return _normalised(tensor, card.normalisation)[None, None], grid


def _normalised(tensor: np.ndarray, how: str) -> np.ndarray:
    if how == "minmax":
        low, high = float(tensor.min()), float(tensor.max())
    elif how == "p99":
        # Where there are few slices, nearly all of the tensor is beyond the volume.
        low, high = 0.0, float(np.percentile(tensor, 99)) or float(tensor.max())
    elif how == "zscore":
        low = float(tensor.mean())
        high = low + float(tensor.std())
    else:
        return tensor
    span = max(high - low, float(np.finfo(np.float32).tiny))
    return np.asarray((tensor - low) / span, dtype=np.float32)


def restore(
    soft: np.ndarray, grid: Grid, geometry: Geometry, *, beyond: float = 0.0, least: float = -np.inf
) -> np.ndarray:
    """A network's continuous output on the native grid (z, y, x), float32, interpolated linearly.

    Parameters
    ----------
    soft : as `grid.shape`, leading axes of length 1 allowed: a probability, logit or distance; interpolate first, cut after.
    beyond : the value where the grid does not reach.
    least : what does not exceed it is of no interest: outside the box around what does, with two grid voxels more, the
        answer is `beyond` too. Most of a head's volume is air.
    """
    values = np.asarray(soft, dtype=np.float32).reshape(soft.shape[-3:])
    if tuple(values.shape) != tuple(grid.shape) or tuple(geometry.shape[a] for a in grid.axes) != grid.native_shape:
        raise UsageError(
            "bad_call", got=f"{values.shape}, {geometry.shape}", wanted=f"{grid.shape}, {grid.native_shape}"
        )
    weights, covered = up_weights(grid)
    wanted = reach(values > least, [2, 2, 2])
    rows = []
    for weight, inside, part in zip(weights, covered, wanted, strict=True):
        near = inside & (weight[:, part].sum(axis=1) > 0)
        rows.append(np.flatnonzero(near))
    native = np.full(grid.native_shape, beyond, np.float32)
    if all(row.size for row in rows):
        box = tuple(slice(int(row[0]), int(row[-1]) + 1) for row in rows)
        native[box] = apply(values, [weight[part] for weight, part in zip(weights, box, strict=True)])
    return turn_back(native, grid.axes, grid.flips)


def reach(where: np.ndarray, margin: Sequence[float]) -> tuple[slice, slice, slice]:
    """The box around what is true with a margin [voxels]; everything where nothing is true."""
    out = []
    for axis, (n, extra) in enumerate(zip(where.shape, margin, strict=True)):
        found = np.flatnonzero(where.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(found[0]), int(found[-1])) if found.size else (0, n - 1)
        out.append(slice(max(0, first - math.ceil(extra)), min(n, last + 1 + math.ceil(extra))))
    return out[0], out[1], out[2]
