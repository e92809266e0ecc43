"""A second, small network's input: the voxels about a millimetre wide near the brain, with what the first network says.

The first network sees the whole head on 2 mm, where a millimetre of CSF beside bone looks like cortex. The second sees the
scanner's own voxels, and how quickly the signal decays between the first echo and a late one: CSF hardly does, a mixture of
CSF and bone does not either, cortex does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.backend import to_host
from qsm_edge.masking.grid import Grid, apply, between, closest_axes, down_weights, layout, nearest, reach, turn
from qsm_edge.modelcard import FINE_INPUTS
from qsm_edge.types import Array, Geometry

#: A voxel between these is taken as it is; others are interpolated to, or averaged over, 1 mm.
OWN_MM = (0.9, 1.35)
#: Where the second smallest and the largest voxel exceed these, a second look has nothing more to see.
COARSEST_MM = (1.6, 3.2)
CHANNELS = FINE_INPUTS  # brightness, decay, and the first network's logits of the mask and of tissue
_ROUNDING_MM = 1e-3  # a voxel's size is the length of an affine's column, and no bound may turn on its last digits
_MARGIN_MM = 6.0
_ISLAND = 0.02  # share of the largest piece below which another is not looked at
_LOGITS = 8.0  # further from the edge than that tells nothing more
UNIT = 4.0  # of the logits that the network sees
_BRIGHTEST = 4.0  # times the brain's median
_LEAST = 0.06  # by which the brain's signal has to fall, of the logarithm: in 3 ms at 3 T; training began at 4 ms
_LEFT = 0.4  # what must be left of it in a late echo
_FAINT = 0.06  # share of the brain's median below which the decay is noise


@dataclass(frozen=True)
class Fine:
    """tensor (1, CHANNELS, z, y, x) float32, lengths even; it is `box` of `grid`, padded at the ends."""

    tensor: np.ndarray
    grid: Grid
    box: tuple[slice, slice, slice]


def fine_input(
    first: np.ndarray,
    late: np.ndarray | None,
    geometry: Geometry,
    brain: np.ndarray,
    tissue: np.ndarray,
    coarse: Grid,
) -> Fine | None:
    """What the second network sees, None where the first sees no brain, or the voxels are too coarse for a second look.

    Parameters
    ----------
    first, late : magnitude (z, y, x) of the first and of a late echo; None: there is no other.
    brain, tissue : the first network's logits on its grid `coarse`.
    """
    axes, _ = closest_axes(geometry, coarse.letters)
    native = [geometry.voxel_mm[a] for a in axes]
    too_coarse = any(v > most + _ROUNDING_MM for v, most in zip(sorted(native)[1:], COARSEST_MM, strict=True))
    if too_coarse or not (brain > 0).any():
        return None
    spacing = tuple(v if OWN_MM[0] - _ROUNDING_MM <= v <= OWN_MM[1] + _ROUNDING_MM else 1.0 for v in native)
    grid = layout(geometry, coarse.letters, spacing)  # type: ignore[arg-type]
    near = reach(_main(brain > 0), [_MARGIN_MM / h for h in coarse.spacing_mm])
    box = _box(near, coarse, grid)
    up = between(coarse, grid, box)
    logits = [apply(np.clip(one, -_LOGITS, _LOGITS), up) for one in (brain, tissue)]
    down = [w[part] for w, part in zip(down_weights(grid), box, strict=True)]
    one = _resampled(first, grid, down)
    inside = logits[0] > 0
    middle = float(np.median(one[inside])) if inside.any() else 0.0
    if not middle > 0:
        return None
    one /= np.float32(middle)
    fall = np.zeros_like(one)
    if late is not None:
        other = _resampled(late, grid, down) / np.float32(middle)
        fall = decay(one, other, inside)
    tensor = np.stack([np.minimum(one, _BRIGHTEST), fall, logits[0] / UNIT, logits[1] / UNIT])
    odd = [(0, n % 2) for n in one.shape]
    return Fine(np.pad(tensor, [(0, 0), *odd], mode="edge")[None].astype(np.float32, copy=False), grid, box)


def _main(brain: np.ndarray) -> np.ndarray:
    """Without islands: one far away would make the box as large as the head."""
    pieces, _ = ndi.label(brain)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= _ISLAND * sizes.max())[pieces] & brain)


def late_echo(magnitude: Array, first: np.ndarray, brain: np.ndarray, coarse: Grid) -> np.ndarray | None:
    """The darkest echo (z, y, x) whose median in the brain is `_LEFT` of the first's or more; None: no other.

    magnitude (echo, z, y, x); `brain` : the first network's logit on its grid `coarse`.
    """
    where = np.nonzero(brain > 0)
    if not where[0].size:
        return None
    spots = [near[i] for near, i in zip(nearest(coarse), where, strict=True)]

    def level(echo: np.ndarray) -> float:
        seen = turn(echo, coarse.axes, coarse.flips)[tuple(spots)]
        return float(np.median(np.nan_to_num(seen, posinf=0.0, neginf=0.0)))

    bright = level(first)
    best, least = None, bright * (1 - _LEAST)
    for number in range(magnitude.shape[0]):
        volume = np.asarray(to_host(magnitude[number, ...]))
        found = level(volume)
        if _LEFT * bright <= found < least:
            best, least = volume, found
    return best


def placed(part: np.ndarray, seen: Fine, beyond: float) -> np.ndarray:
    """A volume of the network's output (z, y, x) where it belongs on `seen.grid`, `beyond` elsewhere; float32."""
    whole = np.full(seen.grid.shape, beyond, np.float32)
    whole[seen.box] = part[tuple(slice(0, b.stop - b.start) for b in seen.box)]
    return whole


def decay(first: np.ndarray, late: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """How much faster than the brain's median the signal decays between two echoes: tanh of half of that, -1..1.

    first, late : magnitudes, 1 = the brain's median; `inside` : bool, the brain. 0 where there is no signal, and everywhere
    where the echoes are too close for the brain's signal to fall by `_LEAST`. A ratio of rates needs no field strength.
    """
    fall = -np.log(np.maximum(late, 1e-3) / np.maximum(first, 1e-3))
    usual = float(np.median(fall[inside]))
    if usual < _LEAST:
        return np.zeros_like(first)
    square = first * first
    return np.asarray(np.tanh(fall / np.float32(2 * usual)) * (square / (square + np.float32(_FAINT**2))), np.float32)


def _resampled(volume: np.ndarray, grid: Grid, weights: Sequence[np.ndarray]) -> np.ndarray:
    values = np.nan_to_num(np.asarray(volume, np.float32), posinf=0.0, neginf=0.0)
    return apply(turn(values, grid.axes, grid.flips), list(weights))


def _box(near: tuple[slice, ...], coarse: Grid, grid: Grid) -> tuple[slice, slice, slice]:
    """The part of `grid` that a box of `coarse` covers."""
    out = []
    for part, m, h, c, n, s, d in zip(
        near,
        coarse.shape,
        coarse.spacing_mm,
        coarse.centre_mm,
        grid.shape,
        grid.spacing_mm,
        grid.centre_mm,
        strict=True,
    ):
        low = ((part.start - m / 2) * h + c - d) / s + n / 2
        high = ((part.stop - m / 2) * h + c - d) / s + n / 2
        start = int(np.clip(np.floor(low), 0, n - 1))
        out.append(slice(start, int(np.clip(np.ceil(high), start + 1, n))))
    return out[0], out[1], out[2]
