"""Layer 3: a smooth field solved on blocks of voxels, and brought back: a background needs no finer grid than about 2 mm."""

from __future__ import annotations

import numpy as np

from qsm_edge.backend import namespace
from qsm_edge.fft import pad
from qsm_edge.types import Array, Geometry


def factors_of(coarse_mm: float, geometry: Geometry) -> tuple[int, ...]:
    """Voxels a block along each axis, so that blocks are about `coarse_mm` wide and no smaller than a voxel."""
    return tuple(max(1, int(coarse_mm / v + 0.25)) for v in geometry.voxel_mm)


def block_means(field: Array, weight: Array, inside: Array, factors: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Weighted block means of the field, the blocks' root-mean-square weights and which blocks are inside."""
    xp = namespace(field)
    if max(factors) == 1:
        return field, weight, inside
    shape = tuple(-(-n // f) * f for n, f in zip(field.shape, factors, strict=True))
    split: list[int] = []
    for n, f in zip(shape, factors, strict=True):
        split += [n // f, f]

    def blocks(x: Array) -> Array:
        return xp.mean(xp.reshape(pad(x, shape), tuple(split)), axis=(1, 3, 5))  # type: ignore[arg-type]

    # A block counts as inside when most of it is: the rim between is read off neither side wrongly for long, while
    # demanding whole blocks or taking any costs 2 % and 30 % of accuracy in the core (bench/NOTES.md).
    power = blocks(weight**2)
    within = xp.astype(blocks(inside) >= 0.5, field.dtype)
    tiny = 1e-12
    return blocks(field * weight**2) / (power + tiny), xp.sqrt(power) * within, within


def refined(x: Array, factors: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Block-centred volume brought to the fine grid by cubic (Catmull-Rom) interpolation, one axis at a time."""
    xp = namespace(x)
    for axis, (factor, n) in enumerate(zip(factors, shape, strict=True)):
        if factor == 1:
            x = x[tuple(slice(n) if a == axis else slice(None) for a in range(3))]
            continue
        at = (np.arange(n) + 0.5) / factor - 0.5
        base = np.floor(at).astype(np.int64)
        t = (at - base).astype(np.float32)
        taps = (
            (-t + 2 * t**2 - t**3) / 2,
            (2 - 5 * t**2 + 3 * t**3) / 2,
            (t + 4 * t**2 - 3 * t**3) / 2,
            (-(t**2) + t**3) / 2,
        )
        line = [1, 1, 1]
        line[axis] = -1
        total = 0
        for offset, tap in zip((-1, 0, 1, 2), taps, strict=True):
            index = xp.asarray(np.clip(base + offset, 0, x.shape[axis] - 1), device=x.device)
            total = total + xp.take(x, index, axis=axis) * xp.reshape(xp.asarray(tap, device=x.device), tuple(line))
        x = total
    return x
