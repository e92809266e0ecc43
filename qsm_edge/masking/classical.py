"""A brain mask without a network: from the signal that magnitude and phase agree on, and the dark line of the skull.

1. coherent signal of the first echo on a 2 mm grid with anatomical axes   2. head, its depth, its middle, receive bias
3. the cheapest closed surface through what is dark   4. down to the tissue, pits and holes filled   5. back.
Nothing is learned, and all lengths are millimetres of an adult's head; a child's is a matter of degree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.backend import to_host
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.masking import grid as grids
from qsm_edge.masking.cut import cheapest_surface
from qsm_edge.masking.morphology import away_mm, closed, depth_mm, filled, largest
from qsm_edge.masking.signal import Offsets, bias, coherent, head_in, middle
from qsm_edge.types import Array, Geometry, OnIteration

_SCALP_MM = 11.0  # below the skin, within which brain is unlikely
_SCALP_FORCE = 0.15  # there, per voxel of 2 mm
_WEAK_SCALP_FORCE = 0.02  # the same for a head without scalp: skull-stripped, or fat suppressed
_COSTLY = 0.45  # mean cost on the surface: it runs through tissue, not along the skull
_BRAIN_FORCE = 0.03
_NECK_FORCE = 0.05  # from 60 to 75 mm below the middle on: the spinal canal goes on where the brain ends
_BASE_MM = -20.0  # below the middle of the cranium the base begins, where the skull is no smooth shell any more,
_BASE_SLOPE = 0.35  # and lower towards the back: the occiput is part of the vault


def threshold(
    magnitude: Array,
    phase_rad: Array,
    echo_times_s: Sequence[float],
    geometry: Geometry,
    *,
    grid_mm: float = 2.0,
    dark: float = 0.45,
    closing_mm: float = 4.0,
    bridge_mm: float = 14.0,
    on_iteration: OnIteration | None = None,
) -> np.ndarray:
    """The inside of the skull as far as it holds signal, as one solid piece: bool (z, y, x) on the host.

    Parameters
    ----------
    magnitude, phase_rad : (echo, z, y, x) float32; the magnitude may have any linear scale. The first echo is used.
    grid_mm : step of the working grid; the edge of the mask is finer than that, since a level is interpolated.
    dark : where, between the skull (0) and the darkest main tissue (1), tissue ends.
    closing_mm : sulci narrower than twice this are inside.
    bridge_mm : pits up to about this radius in the convexity are inside: a bleed that touches the surface.

    Raises
    ------
    UsageError ``bad_call`` for shapes that do not fit, ``bad_value``. InputRefused ``mask_empty`` where there is no brain.

    Cerebrospinal fluid within the skull is inside, since it carries signal. NOT excluded: dural sinuses, and the orbits
    where bone between them and the brain cannot be seen. NOT checked: that it is a head.
    """
    signal, phase = first_echo(magnitude, phase_rad, echo_times_s, geometry)
    if not (0.5 <= grid_mm <= 5 and 0 < dark < 1 and 0 <= closing_mm <= 50 and 0 <= bridge_mm <= 50):
        got = f"grid_mm {grid_mm}, dark {dark}, closing_mm {closing_mm}, bridge_mm {bridge_mm}"
        raise UsageError("bad_value", got=got, wanted="0.5..5, between 0 and 1, 0..50, 0..50")
    lay = grids.layout(geometry, "SPL", (grid_mm, grid_mm, grid_mm))
    seen = coherent(signal, phase, lay)
    air, depth, level = head_in(seen, grid_mm)
    if level <= 0:
        raise InputRefused("mask_empty", "the magnitude images hold no signal")
    air, depth = _again(seen, air, depth, level, grid_mm)
    box = _box(~air)
    seen, air, depth = (np.ascontiguousarray(v[box]) for v in (seen, air, depth))
    at, radius = middle(depth, grid_mm)
    relative = seen / bias(seen, depth, at, level, grid_mm)
    cavity = _cavity(relative, air, depth, at, radius, grid_mm, on_iteration)
    brain = tighten(relative, cavity, depth, at, grid_mm, dark=dark, closing_mm=closing_mm, bridge_mm=bridge_mm)
    level_set = np.zeros(lay.shape, np.float32)
    level_set[box] = ndi.gaussian_filter(brain.astype(np.float32), 0.6)
    mask = filled(largest(grids.restore(level_set, lay, geometry) > 0.5))
    if not mask.any():
        raise InputRefused("mask_empty", "no brain was found in the magnitude images")
    return mask


def first_echo(
    magnitude: Array, phase_rad: Array, echo_times_s: Sequence[float], geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitude and phase of the shortest echo time on the host, finite."""
    wanted = (len(echo_times_s), *geometry.shape)
    if not echo_times_s or tuple(magnitude.shape) != wanted or tuple(phase_rad.shape) != wanted:
        raise UsageError("bad_call", got=f"{tuple(magnitude.shape)}, {tuple(phase_rad.shape)}", wanted=f"{wanted}")
    first = int(np.argmin(echo_times_s))
    pair = (np.asarray(to_host(v[first, ...]), dtype=np.float32) for v in (magnitude, phase_rad))
    m, p = (np.nan_to_num(v, nan=0.0, posinf=0.0, neginf=0.0) for v in pair)
    return np.maximum(m, 0.0), p


def _again(
    seen: np.ndarray, air: np.ndarray, depth: np.ndarray, level: float, h: float
) -> tuple[np.ndarray, np.ndarray]:
    """Air and depth once more with the bias taken off: a surface coil sees the far side of the head darker than air's bound."""
    at, _ = middle(depth, h)
    even = np.minimum(seen / bias(seen, depth, at, level, h), 2.0)
    again, _deeper, _ = head_in(even, h)
    plausible = again.any() and air.any() and float((~again).sum()) < 1.5 * float((~air).sum())
    return (again & air, away_mm(again & air, h)) if plausible and (again & air).any() else (air, depth)


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The bounding box of a mask and four voxels around it, as far as the volume goes."""
    out = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(there[0]), int(there[-1])) if len(there) else (0, mask.shape[axis] - 1)
        out.append(slice(max(0, first - 4), min(mask.shape[axis], last + 5)))
    return out[0], out[1], out[2]


def _cavity(
    relative: np.ndarray,
    air: np.ndarray,
    depth: np.ndarray,
    at: Offsets,
    radius: float,
    h: float,
    on_iteration: OnIteration | None,
) -> np.ndarray:
    """What the cheapest surface encloses; where that runs through tissue, again with little weight on the scalp."""
    line = _without_dark_lines(np.minimum(relative, 1.0), h)
    cost = (0.03 + np.clip(line / 0.8, 0, 1) ** 2).astype(np.float32)
    core = _core(line, depth, at, radius, h)
    away = np.sqrt(at[0] ** 2 + at[1] ** 2 + at[2] ** 2)
    likely = (line > 0.5) * np.clip((depth - 12) / 6, 0, 1) * np.clip((at[0] + 25) / 30, 0, 1) * (away < radius + 25)
    neck = _NECK_FORCE * np.clip((-at[0] - 60) / 15, 0, 1)
    outside = depth_mm(air, h) > 1.5 * h  # not up to the skin: a stripped brain's edge is there
    best, least = core, np.inf
    for scalp in (_SCALP_FORCE, _WEAK_SCALP_FORCE):
        force = scalp * np.clip(1 - depth / _SCALP_MM, 0, None) + 0.01 * (line < 0.3) - _BRAIN_FORCE * likely + neck
        force = (force * (h / 2.0)).astype(np.float32)
        inside = cheapest_surface(cost, force, core, outside, on_iteration=on_iteration) > 0.5
        paid = _paid(inside, cost)
        if paid < least:
            best, least = inside, paid
        if paid <= _COSTLY:
            break
    return best


def _without_dark_lines(relative: np.ndarray, h: float) -> np.ndarray:
    """Dark structures thinner than 14 mm made darker by their depth below the surroundings: thin bone at partial volume."""
    size = round(14.0 / h) | 1
    return np.asarray(np.clip(2 * relative - ndi.grey_closing(relative, size=(size, size, size)), 0, None))


def _core(line: np.ndarray, depth: np.ndarray, at: Offsets, radius: float, h: float) -> np.ndarray:
    """What is surely brain: the piece of deep, thick tissue around the middle of the cranium, and the middle itself."""
    away = np.sqrt(at[0] ** 2 + at[1] ** 2 + at[2] ** 2)
    thick = (depth_mm(line > 0.5, h) > 6.0) & (depth > 15) & (away < 0.8 * min(radius, 80.0)) & (at[0] > -35)
    pieces, count = ndi.label(thick)
    votes = np.bincount(pieces[away < 0.5 * radius], minlength=count + 1)
    votes[0] = 0
    middle_itself = np.asarray(away < 0.25 * radius)
    return middle_itself | (pieces == votes.argmax()) if votes.any() else middle_itself


def _paid(inside: np.ndarray, cost: np.ndarray) -> float:
    """Mean cost over the voxels that the surface runs through; 0 where there is no surface."""
    edge = np.zeros(inside.shape, bool)
    for axis in range(3):
        below = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        edge[below] |= np.diff(inside.astype(np.int8), axis=axis) != 0
    return float(cost[edge].mean()) if edge.any() else 0.0


def tighten(
    relative: np.ndarray,
    cavity: np.ndarray,
    depth: np.ndarray,
    at: Offsets,
    step_mm: float,
    *,
    dark: float,
    closing_mm: float,
    bridge_mm: float,
) -> np.ndarray:
    """From the surface in the skull down to the tissue: the dark is taken off from outside, except where a bleed lies.

    The skull's inner table lies about equally far below the surface everywhere on the convexity. What is dark much deeper than
    that is no skull, and stays; pits down to it are closed. At the base bone has any depth, and all that is dark there goes.
    """
    h = step_mm
    cavity = filled(largest(cavity))
    below = depth_mm(cavity, h)
    signal = np.minimum(relative, 1.5)
    shell = cavity & (below <= 1.01 * h) & (depth > 3)
    skull = float(np.clip(np.percentile(signal[shell], 35), 0, 0.75)) if shell.any() else 0.0
    tissue = cavity & (signal > skull + dark * (1 - skull))
    thick = largest(depth_mm(tissue, h) > 3.0)
    if not thick.any():
        raise InputRefused("mask_empty", "no brain was found in the magnitude images")
    main = largest((away_mm(thick, h) <= 3.0 + 1.01 * h) & tissue)
    above = at[0] + _BASE_SLOPE * at[1] - _BASE_MM  # the base
    gap = _gap(main, shell, above > -10, h)
    too_deep = (below > gap + 1.5) & (above > 0)
    outside = ~cavity | (cavity & ~main & ~too_deep)
    taken = ndi.binary_propagation(~cavity, mask=outside) if not cavity.all() else ~cavity
    brain = filled(largest(cavity & ~taken))
    brain |= closed(brain, closing_mm, h) & cavity
    brain |= closed(brain, bridge_mm, h) & (below > gap + 0.5) & (above > 0)
    return filled(brain)


def _gap(main: np.ndarray, shell: np.ndarray, upper: np.ndarray, h: float) -> np.ndarray:
    """How far tissue lies below the cavity's surface [mm], smoothed over 12 mm; outliers such as bleeds are cut off."""
    if not (shell & upper).any():
        return np.zeros(main.shape, np.float32)
    far = away_mm(main, h)
    usual = float(np.median(far[shell & upper]))
    seen = np.where(shell, np.minimum(far, usual + 1.5), 0).astype(np.float32)
    weight = ndi.gaussian_filter(shell.astype(np.float32), 12.0 / h)
    mean = (ndi.gaussian_filter(seen, 12.0 / h) + np.float32(1e-4 * usual)) / (weight + np.float32(1e-4))
    return np.asarray(mean, dtype=np.float32)
