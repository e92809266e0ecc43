"""Where a synthetic head lies in the scanner: the protocol, the slab, the deformation of the label map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi

from export.anatomy import Anatomy

FINEST_MM = 1.5  # finer voxels are averaged to this before anything is computed: the first network sees 2 mm
SECOND_MM = 0.9  # the same for the second network, which sees the scanner's own voxels


@dataclass(frozen=True)
class Protocol:
    """How a sample is acquired. te_s (echoes), b0_tesla, voxel_mm (z, y, x), noise (sd of real and imaginary part, water at
    the coil's middle = 1), tilt_deg (about x, y, z), slab_mm: (lowest, highest) of the slices from the brain's middle along
    the slab's normal, None for the brain and 12 mm more; coil_depth: how much darker the middle is than the rim, for a
    receive coil that nothing corrects (0 none, 0.7 usual), None for a random one; finest_mm: finer voxels are averaged to it."""

    te_s: tuple[float, ...]
    b0_tesla: float
    voxel_mm: tuple[float, float, float]
    noise: float
    tilt_deg: tuple[float, float, float]
    slab_mm: tuple[float, float] | None
    coil_depth: float | None = None
    finest_mm: float = FINEST_MM


def random_protocol(rng: np.random.Generator) -> Protocol:
    """From a single late echo at 7 T to a quick scan of 3 mm at 1.5 T; one in five slabs cuts the brain."""
    b0 = float(rng.choice([1.5, 3.0, 7.0], p=[0.25, 0.6, 0.15]))
    first = float(np.exp(rng.uniform(np.log(0.003), np.log(0.03 if b0 < 5 else 0.015))))
    if rng.random() < 0.12:
        first = float(rng.uniform(0.02, 0.04))
    inplane = float(
        rng.choice([rng.uniform(0.5, 1.2), rng.uniform(1.0, 2.0), rng.uniform(2.0, 3.0)], p=[0.6, 0.25, 0.15])
    )
    slice_mm = float(np.clip(inplane * rng.choice([1.0, rng.uniform(1, 3)]), 0.5, 4.0))
    voxel = [inplane * float(rng.uniform(0.9, 1.1)), inplane, inplane]
    thick = int(rng.choice([0, 1, 2], p=[0.85, 0.05, 0.1]))  # across z, mostly: axial slabs
    voxel[thick] = slice_mm
    tilt = (rng.normal(0, 13), rng.normal(0, 6), rng.normal(0, 6))
    if rng.random() < 0.1:
        tilt = (rng.uniform(-45, 45), rng.uniform(-20, 20), rng.uniform(-25, 25))
    slab = None
    if rng.random() < 0.2:
        middle, half = rng.normal(0, 22), rng.uniform(18, 60)
        slab = (float(middle - half), float(middle + half))
    elif rng.random() < 0.5:  # whole heads, with whatever neck there is
        slab = (-float(rng.uniform(80, 150)), float(rng.uniform(85, 120)))
    noise = float(np.exp(rng.uniform(np.log(0.004), np.log(0.06))))
    a, b, c = (float(t) for t in tilt)
    z, y, x = (float(v) for v in voxel)
    return Protocol((first,), b0, (z, y, x), noise, (a, b, c), slab)


@dataclass(frozen=True)
class World:
    """Where the slab's coordinates [mm from the brain's middle, axes S, P, L] lie in the label map, and what they hold."""

    matrix: np.ndarray  # label mm from slab mm
    centre: np.ndarray  # of the brain, label voxels
    spacing_mm: float
    warp: np.ndarray  # (3, n, n, n) displacement [mm] on a coarse grid over +-WARP_MM
    b0: np.ndarray
    brain_mm: np.ndarray  # (3, 2) extent of the hull along the slab's axes
    head_mm: np.ndarray
    air_scale: float

    WARP_MM = 160.0
    NODES = 11

    @classmethod
    def draw(cls, anatomy: Anatomy, how: Protocol, hull: np.ndarray, rng: np.random.Generator, plain: bool) -> World:
        turn = np.eye(3)
        for axis, angle in enumerate(np.deg2rad(how.tilt_deg)):  # about x, y, z of the patient: array axes 2, 1, 0
            i, j = {0: (0, 1), 1: (0, 2), 2: (1, 2)}[axis]
            step = np.eye(3)
            step[i, i] = step[j, j] = np.cos(angle)
            step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
            turn = turn @ step
        b0 = turn.T @ np.array([1.0, 0.0, 0.0])
        shape = (3, cls.NODES, cls.NODES, cls.NODES)
        if plain:
            stretch, warp = np.eye(3), np.zeros(shape, np.float32)
        else:
            # The mask's definition has a length in it, the closing: most heads keep their size, so that it keeps its own.
            loose = 1.0 if rng.random() < 0.3 else 0.3
            size = rng.normal(1.0, 0.07 * loose, 1) * rng.normal(1.0, 0.06 * loose, 3)
            stretch = np.diag(np.clip(size, 0.75, 1.25)) + rng.normal(0, 0.03 * loose, (3, 3)) * (1 - np.eye(3))
            rough = rng.standard_normal(shape)
            warp = np.stack([ndi.gaussian_filter(w, rng.uniform(0.6, 1.2)) for w in rough])
            warp = (warp / warp.std() * rng.uniform(0.3, 1.0 + 3.5 * loose)).astype(np.float32)
        matrix = np.linalg.inv(stretch) @ turn  # label point from slab point
        ends = []
        for volume in (hull, anatomy.index > 0):
            where = np.argwhere(volume[::6, ::6, ::6]) * 6.0 - anatomy.centre
            seen = (where * anatomy.spacing_mm) @ np.linalg.inv(matrix).T
            ends.append(np.stack([seen.min(0) - 3, seen.max(0) + 3], 1))
        return cls(
            matrix,
            anatomy.centre,
            anatomy.spacing_mm,
            warp,
            b0,
            ends[0],
            ends[1],
            1.0 if plain else float(rng.uniform(0.6, 1.3)),
        )

    def field_of_view(
        self, how: Protocol, rng: np.random.Generator
    ) -> tuple[list[tuple[float, float]], tuple[float, ...], tuple[int, int, int]]:
        """Its edges [mm], the step of the computing grid and its shape."""
        box = []
        for axis in range(3):
            low, high = self.head_mm[axis]
            margin = rng.uniform(0, 25, 2) if rng.random() < 0.5 else np.full(2, 6.0)
            box.append([max(low - margin[0], -150.0), min(high + margin[1], 150.0)])
        if how.slab_mm is None:
            box[0] = [self.brain_mm[0, 0] - 12, self.brain_mm[0, 1] + 12]
        else:
            box[0] = [max(box[0][0], how.slab_mm[0]), min(box[0][1], how.slab_mm[1])]
        steps = [max(v, how.finest_mm) for v in how.voxel_mm]
        shape = [max(8, round((b - a) / s)) for (a, b), s in zip(box, steps, strict=True)]
        a, b, c = shape
        return (
            [(float(lo), float(lo) + n * s) for (lo, _), n, s in zip(box, shape, steps, strict=True)],
            tuple(steps),
            (a, b, c),
        )

    def label_points(self, points: list[np.ndarray]) -> list[np.ndarray]:
        """Label voxels (3 arrays (z, y, x), float32) of the slab's voxel centres."""
        node = 2 * self.WARP_MM / (self.NODES - 1)
        hats = []
        for axis in points:
            reach = np.abs((axis[:, None] + self.WARP_MM) / node - np.arange(self.NODES)[None])
            hats.append(_cubic(reach).astype(np.float32))
        out = []
        for row in range(3):
            moved = np.einsum("abc,za,yb,xc->zyx", self.warp[row], *hats, optimize=True)
            line = [self.matrix[row, axis] * points[axis] for axis in range(3)]
            moved += line[0][:, None, None] + line[1][None, :, None] + line[2][None, None, :]
            out.append((moved / self.spacing_mm + self.centre[row]).astype(np.float32))
        return out

    def flat(self, at: list[np.ndarray], jitter_mm: list[float], shape: tuple[int, ...]) -> np.ndarray:
        """Flat indices of the label voxels closest to points moved by `jitter_mm` along the slab; -1 outside."""
        shift = self.matrix @ np.asarray(jitter_mm) / self.spacing_mm
        rows = [(p + np.float32(s + 0.5)).astype(np.int32) for p, s in zip(at, shift, strict=True)]
        outside = np.zeros(at[0].shape, bool)
        for row, n in zip(rows, shape, strict=True):
            outside |= (row < 0) | (row >= n)
        return np.where(outside, -1, (rows[0] * shape[1] + rows[1]) * shape[2] + rows[2])


def _cubic(reach: np.ndarray) -> np.ndarray:
    """Cubic B-spline weights."""
    near, far = 2 / 3 - reach**2 * (1 - reach / 2), (2 - reach) ** 3 / 6
    return np.where(reach < 1, near, np.where(reach < 2, far, 0))
