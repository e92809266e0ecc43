"""The cheapest closed surface between what is surely inside and what is surely outside: a convex problem, no start matters.

With a cost g on every voxel that the surface runs through and a force f on every voxel inside it, the minimiser over
0 <= u <= 1 of  sum g |grad u| + sum f u  is (almost everywhere) 0 or 1 and the best of all surfaces: a minimal cut, solved on the
continuum so that no direction of the grid is preferred. Where nothing separates (a gap in the dark line of the skull), it
spans the gap by the shortest way; a dark pit in the border (a bleed at the surface of the brain) it passes over.
"""

from __future__ import annotations

import numpy as np

from qsm_edge.types import OnIteration

_RATE = np.float32(1 / 12.0)  # primal step times dual step; the bound is 1 / |grad|^2 = 1 / 12
_STEP = np.float32(_RATE**0.5)


def cheapest_surface(
    cost: np.ndarray,
    force: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    *,
    steps: tuple[int, ...] = (600, 150, 40),
    on_iteration: OnIteration | None = None,
) -> np.ndarray:
    """The share (0..1; cut it at 0.5) of every voxel that lies inside the cheapest surface.

    Parameters
    ----------
    cost : float32 (z, y, x), > 0; of surface, per voxel face.
    force : float32; per voxel, negative where inside is wanted. The border of the volume costs nothing.
    inside, outside : bool, the constraints.
    steps : iterations on each level, the coarsest first; a level has twice the resolution of the one before.

    Chambolle & Pock, J Math Imaging Vis 2011, doi:10.1007/s10851-010-0251-1; for cuts: Chan, Esedoglu & Nikolova,
    SIAM J Appl Math 2006, doi:10.1137/040615286. NOT checked: that it has converged.
    """
    u = np.zeros((0, 0, 0), np.float32)
    dual = np.zeros((3, 0, 0, 0), np.float32)
    done = 0
    for level, count in enumerate(steps):
        size = 2 ** (len(steps) - 1 - level)
        g = 1 / _blocks(1 / cost, size)  # a surface takes the cheapest way through a block
        f = _blocks(force, size) * np.float32(size)
        low = (_blocks(inside, size) > 0.5).astype(np.float32)
        high = np.maximum((_blocks(outside, size) < 0.5).astype(np.float32), low)
        if level == 0:
            u, dual = np.float32(0.5) * (low + high), np.zeros((3, *g.shape), np.float32)
        else:
            u, dual = _doubled(u, g.shape), np.stack([_doubled(part, g.shape) for part in dual])
        u = np.clip(u, low, high)
        u = _iterate(u, dual, g, f, low, high, count)
        done += count
        if on_iteration:
            on_iteration(done, float(((u > 0.1) & (u < 0.9)).mean()))
    return u


def _iterate(
    u: np.ndarray, dual: np.ndarray, g: np.ndarray, f: np.ndarray, low: np.ndarray, high: np.ndarray, count: int
) -> np.ndarray:
    """Primal-dual steps; `dual` (scaled by the primal step) is updated in place, the new u returned."""
    ahead, before, length, square = u * _RATE, np.empty_like(u), np.empty_like(u), np.empty_like(u)
    bound, pull = g * _STEP, f * _STEP
    lower = [tuple(slice(None, -1) if b == a else slice(None) for b in range(3)) for a in range(3)]
    upper = [tuple(slice(1, None) if b == a else slice(None) for b in range(3)) for a in range(3)]
    for _ in range(count):
        for axis in range(3):
            dual[axis][lower[axis]] += ahead[upper[axis]]
            dual[axis][lower[axis]] -= ahead[lower[axis]]
        np.multiply(dual[0], dual[0], out=length)
        for axis in (1, 2):
            length += np.multiply(dual[axis], dual[axis], out=square)
        np.divide(bound, np.maximum(np.sqrt(length, out=length), bound, out=length), out=length)
        u, before = before, u
        np.subtract(before, pull, out=u)
        for axis in range(3):
            dual[axis] *= length
            u += dual[axis]
            u[upper[axis]] -= dual[axis][lower[axis]]
        np.clip(u, low, high, out=u)
        np.subtract(u, before, out=ahead)
        ahead += u
        ahead *= _RATE
    return u


def _blocks(volume: np.ndarray, size: int) -> np.ndarray:
    """Means over blocks of `size` voxels; the border repeats to fill the last ones."""
    values = np.asarray(volume, dtype=np.float32)
    if size == 1:
        return values
    values = np.pad(values, [(0, -n % size) for n in values.shape], mode="edge")
    z, y, x = (n // size for n in values.shape)
    return np.asarray(values.reshape(z, size, y, size, x, size).mean(axis=(1, 3, 5)), dtype=np.float32)


def _doubled(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis in range(3):
        volume = np.repeat(volume, 2, axis=axis)
    return np.ascontiguousarray(volume[: shape[0], : shape[1], : shape[2]])
