"""An analytic head: ellipsoids, sheets and tubes -> susceptibility -> field -> multi-echo gradient-echo signal.

Every shape is a signed distance in mm (exact for spheres and tubes, close for ellipsoids) that is turned into an
occupancy between 0 and 1 over the width of a sub-voxel, so that the phantom is anti-aliased: a hard-edged one misses
the analytic dipole field by a tenth once B0 is oblique. Each voxel is the mean of 2 x 2 x 2 complex sub-voxels, which
gives partial volume and intravoxel dephasing. No person was scanned for any of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.fft
import scipy.ndimage

from qsm_edge.types import Geometry
from qsm_edge.units import hz_per_ppm

#: (chi relative to water [ppm], proton density, R2* at 3 T [1/s])
TISSUE = {
    "air": (9.4, 0.0, 0.0),
    "scalp": (0.10, 0.80, 30.0),
    "muscle": (0.0, 0.65, 32.0),
    "bone": (-2.0, 0.06, 250.0),
    "marrow": (-0.5, 0.40, 80.0),
    "csf": (0.0, 1.0, 4.0),
    "grey": (0.020, 0.82, 16.0),
    "white": (-0.030, 0.70, 21.0),
    "caudate": (0.050, 0.80, 24.0),
    "putamen": (0.060, 0.80, 26.0),
    "pallidum": (0.140, 0.74, 38.0),
    "thalamus": (0.020, 0.78, 20.0),
    "red nucleus": (0.110, 0.75, 34.0),
    "nigra": (0.130, 0.74, 36.0),
    "dentate": (0.090, 0.76, 30.0),
    "blood": (0.300, 0.75, 40.0),
    "bleed": (0.800, 0.45, 190.0),
    "eye": (0.0, 0.95, 6.0),
}


@dataclass(frozen=True)
class Head:
    """The phantom on a grid: chi [ppm re water], rho, r2s [1/s], and the occupancy of the brain with its ventricles."""

    chi_ppm: np.ndarray
    rho: np.ndarray
    r2s_per_s: np.ndarray
    brain: np.ndarray


def ellipsoid(points: Sequence[np.ndarray], centre: Sequence[float], axes: Sequence[float]) -> np.ndarray:
    """Signed distance [mm], first order in the distance from the surface, of an ellipsoid along x, y, z."""
    scaled = [(p - c) / a for p, c, a in zip(points, centre, axes, strict=True)]
    level = np.sqrt(sum(s * s for s in scaled))
    slope = np.sqrt(sum((s / a) ** 2 for s, a in zip(scaled, axes, strict=True))) / np.maximum(level, 1e-3)
    return (level - 1) / np.maximum(slope, 1 / max(axes))


def capsule(points: Sequence[np.ndarray], start: Sequence[float], end: Sequence[float], radius: float) -> np.ndarray:
    """Signed distance [mm] of a straight tube with round ends."""
    along = [float(e - s) for s, e in zip(start, end, strict=True)]
    offsets = [p - s for p, s in zip(points, start, strict=True)]
    length = sum(a * a for a in along)
    t = np.clip(sum(o * (a / length) for o, a in zip(offsets, along, strict=True)), 0, 1)
    return np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offsets, along, strict=True))) - radius


def near(points: Sequence[np.ndarray], low: Sequence[float], high: Sequence[float], step: int = 4) -> tuple[slice, ...]:
    """A box of indices with all points between the corners `low` and `high` [mm]; looks at every `step`-th point."""
    coarse = [p[::step, ::step, ::step] for p in points]
    reach = 3 * step  # further than a point can be from the closest one that is looked at, for voxels below 3 mm
    inside = np.logical_and.reduce(
        [(p > a - reach) & (p < b + reach) for p, a, b in zip(coarse, low, high, strict=True)]
    )
    edges = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(e[0]) * step, int(e[-1] + 1) * step) if e.size else slice(0) for e in edges)


def union(*distances: np.ndarray, blend_mm: float = 6.0) -> np.ndarray:
    """Signed distance of a union whose seams are rounded over `blend_mm`."""
    result = distances[0]
    for other in distances[1:]:
        h = np.maximum(blend_mm - np.abs(result - other), 0) / blend_mm
        result = np.minimum(result, other) - h * h * blend_mm / 4
    return result


def mirrored(points: Sequence[np.ndarray], centre: Sequence[float], axes: Sequence[float]) -> np.ndarray:
    """An ellipsoid and its twin on the other side."""
    return ellipsoid((np.abs(points[0]), *points[1:]), centre, axes)


def folds(points: Sequence[np.ndarray], length_mm: float, turns: Sequence[float]) -> np.ndarray:
    """Distance [mm], roughly, from winding sheets about `length_mm` apart: the floor plan of the sulci."""
    x, y, z = points
    k = 2 * np.pi / length_mm
    bend = 2.2 * np.sin(0.32 * k * x + turns[0]) + 2.2 * np.sin(0.29 * k * y + turns[1])
    bend = bend + 2.0 * np.sin(0.34 * k * z + turns[2])
    wave = np.sin(0.50 * k * x + bend) + np.sin(0.47 * k * y - bend + turns[3]) + np.sin(0.52 * k * z + turns[4])
    return np.abs(wave) / (0.62 * k)


def head(points: Sequence[np.ndarray], width_mm: float) -> Head:
    """The phantom at `points` (x to the left, y to the back, z to the top; mm from the middle of the brain)."""
    x, y, z = points
    shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
    chi, rho, r2s = (np.full(shape, value, np.float32) for value in TISSUE["air"])

    def occupancy(distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 - distance / width_mm, 0, 1).astype(np.float32)

    def paint(name: str, share: np.ndarray, box: tuple[slice, ...] = ()) -> None:
        for volume, value in zip((chi, rho, r2s), TISSUE[name], strict=True):
            volume[box] += share * (np.float32(value) - volume[box])

    def blob(name: str, centre: Sequence[float], axes: Sequence[float]) -> None:
        """Paint an ellipsoid, looking at its surroundings only."""
        low, high = ([c + sign * a for c, a in zip(centre, axes, strict=True)] for sign in (-1, 1))
        box = near(points, low, high)
        paint(name, occupancy(ellipsoid([p[box] for p in points], centre, axes)), box)

    def vessel(path: Sequence[Sequence[float]], radius: float) -> None:
        """Paint a polyline of blood, looking at its surroundings only."""
        for start, end in pairwise(path):
            low, high = ([f(s, e) for s, e in zip(start, end, strict=True)] for f in (min, max))
            box = near(points, low, high)
            paint("blood", occupancy(capsule([p[box] for p in points], start, end, radius)), box)

    sided = (np.abs(x), y, z)
    cerebrum = union(
        ellipsoid(points, (0, 0, 8), (64, 82, 58)), ellipsoid(sided, (38, -8, -22), (24, 40, 22)), blend_mm=14
    )
    cerebellum = ellipsoid(sided, (22, 46, -42), (28, 28, 22))
    stem = union(ellipsoid(points, (0, 18, -34), (15, 14, 20)), capsule(points, (0, 20, -30), (0, 36, -130), 8.5))
    brain = union(cerebrum, cerebellum, stem, blend_mm=5)
    cavity = union(brain, ellipsoid(points, (0, 26, -40), (44, 42, 26)), blend_mm=10) - 3.5
    skull = cavity - 6.0
    face = ellipsoid(points, (0, -52, -58), (46, 36, 46))
    skin = union(
        skull - 6.0,
        face - 7.0,
        ellipsoid(points, (0, -46, -64), (60, 52, 62)),
        capsule(points, (0, 24, -70), (0, 34, -180), 56),
        ellipsoid(points, (0, -102, -56), (13, 14, 20)),
        blend_mm=16,
    )
    paint("scalp", occupancy(skin))
    paint("muscle", occupancy(np.maximum(skin + 7, z + 48)))
    sinuses = [
        mirrored(points, centre, axes)
        for centre, axes in (
            ((8, -84, -6), (14, 5, 9)),
            ((7, -34, -38), (9, 13, 9)),
            ((7, -60, -40), (6, 18, 12)),
            ((9, -62, -70), (5, 24, 14)),
            ((30, -64, -70), (14, 16, 15)),
            ((51, 20, -46), (6, 10, 9)),
        )
    ]
    hollow = np.minimum.reduce(sinuses)
    paint("marrow", occupancy(face))
    paint("bone", occupancy(np.minimum(skull, np.maximum(hollow - 2.5, -(cavity - 1)))))
    paint("marrow", occupancy(np.maximum(skull + 1.9, -(cavity - 1.8))) * occupancy(-z - 5))
    paint("eye", occupancy(mirrored(points, (32, -72, -32), (12, 12, 12))))
    paint("air", occupancy(np.maximum(hollow, 2.0 - cavity)))
    paint("csf", occupancy(cavity))

    # Grey matter covers the surface, the sulci and the cleft between the hemispheres; white matter fills the rest.
    sulcus = np.maximum(folds(points, 15, (0.3, 1.9, 4.0, 0.7, 2.6)), 0)
    depth = -cerebrum
    callosum = ellipsoid(points, (0, 2, 10), (40, 36, 17))
    cleft = np.maximum(np.abs(x) - 1.1, -(callosum - 1.5))
    open_sulcus = np.minimum(np.maximum(sulcus - 0.9, depth - 13), np.maximum(cleft, depth - 70))
    tissue = np.maximum(cerebrum, -open_sulcus)
    paint("grey", occupancy(tissue))
    ribbon = np.minimum(np.maximum(sulcus - 3.6, depth - 16.5), np.maximum(np.abs(x) - 4.6, -(callosum - 1)))
    paint("white", occupancy(np.maximum(tissue, np.maximum(3.2 - depth, -ribbon))))
    folia = np.abs(np.sin((z + 42 + 0.22 * np.abs(x) - 0.1 * y) / 2.1)) * 2.1
    paint("grey", occupancy(np.maximum(cerebellum, -np.maximum(folia - 0.7, -cerebellum - 6))))
    paint("white", occupancy(np.maximum(cerebellum + 9, folia - 40)))
    paint("white", occupancy(stem))

    for side in (1, -1):
        for name, (cx, cy, cz), axes in (
            ("thalamus", (11, 13, 2), (9.5, 15, 9.5)),
            ("caudate", (14, -20, 9), (5.5, 11, 9)),
            ("caudate", (17, 2, 19), (4, 16, 4)),
            ("putamen", (27, -5, 1), (5.5, 15, 9.5)),
            ("pallidum", (19.5, -2, -1), (4.5, 9, 6.5)),
            ("red nucleus", (5.5, 15, -15), (3.6, 4, 4.4)),
            ("nigra", (10, 9, -18), (5.2, 5, 3)),
            ("dentate", (16, 48, -42), (7, 6, 5)),
            ("csf", (9, -14, 13), (5, 20, 5.5)),
            ("csf", (14, 16, 16), (6, 18, 6)),
            ("csf", (24, 32, 8), (6, 14, 6)),
            ("csf", (31, 10, -16), (4, 18, 4)),
        ):
            blob(name, (side * cx, cy, cz), axes)
    blob("csf", (0, 2, -1), (2.4, 15, 9))
    blob("csf", (0, 33, -40), (7, 5, 10))

    vessel([(0, -70, 38), (0, -40, 63.5), (0, 0, 70), (0, 40, 64), (0, 72, 42), (0, 85, 12)], 3.2)
    vessel([(0, 85, 12), (30, 74, -12), (52, 48, -24), (56, 30, -38)], 3.0)
    vessel([(0, 85, 12), (-30, 74, -12), (-52, 48, -24), (-56, 30, -38)], 2.6)
    vessel([(0, 36, 6), (0, 60, 8), (0, 84, 12)], 1.9)
    for side in (1, -1):
        for path, radius in (
            ([(3, -14, 8), (3.5, 8, 11), (2, 26, 9), (0, 36, 6)], 1.3),
            ([(16, -26, 26), (9, -16, 15), (3, -14, 8)], 0.9),
            ([(30, 26, 26), (18, 22, 17), (3.5, 18, 11)], 0.8),
            ([(58, -18, 22), (48, -26, 42), (26, -30, 60), (3, -26, 67)], 1.3),
            ([(60, 20, 20), (48, 26, 44), (24, 30, 60), (3, 24, 68)], 1.2),
            ([(46, -6, 6), (38, -4, 10), (32, 0, 22), (22, 4, 30)], 0.8),
        ):
            vessel([(side * px, py, pz) for px, py, pz in path], radius)
    blob("bleed", (31, 34, 26), (8, 9, 7))
    return Head(chi, rho, r2s, occupancy(brain))


def dipole_field(chi_ppm: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Relative field [ppm] of `chi_ppm` with zero around it. Salomir et al. 2003, doi 10.1002/cmr.b.10083.

    Padded to odd sizes: without a Nyquist frequency the oblique kernel is free of the choice of a sign there.
    """
    shape = [next(n for n in range(int(1.4 * m) | 1, 4 * m, 2) if _is_smooth(n)) for m in chi_ppm.shape]
    voxel, b0 = geometry.voxel_mm, geometry.b0_dir
    axes = [np.fft.fftfreq(n, d) for n, d in zip(shape, voxel, strict=True)]
    axes[2] = np.fft.rfftfreq(shape[2], voxel[2])
    k = np.meshgrid(*axes, indexing="ij", sparse=True)
    squared = sum(component**2 for component in k)
    squared[0, 0, 0] = 1.0
    kernel = 1 / 3 - sum(component * b for component, b in zip(k, b0, strict=True)) ** 2 / squared
    kernel[0, 0, 0] = 0.0
    spectrum = scipy.fft.rfftn(chi_ppm.astype(np.float64), shape) * kernel
    return scipy.fft.irfftn(spectrum, shape)[tuple(slice(n) for n in chi_ppm.shape)]


def _is_smooth(n: int) -> bool:
    for prime in (3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1


def fine_grid(
    geometry: Geometry, below: Sequence[int], above: Sequence[int]
) -> tuple[Geometry, tuple[slice, slice, slice]]:
    """The grid of half the voxel size with margins [voxels] on each axis, and where the inner part lies in it."""
    affine = geometry.affine_lps.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] -= affine[:3, :3] @ (2 * np.asarray(below) + 0.5)
    shape = tuple(2 * (n + a + b) for n, a, b in zip(geometry.shape, below, above, strict=True))
    inner = tuple(slice(2 * a, 2 * (a + n)) for n, a in zip(geometry.shape, below, strict=True))
    return Geometry(shape, affine), inner  # type: ignore[arg-type, return-value]


def block_mean(fine: np.ndarray) -> np.ndarray:
    """The mean over 2 x 2 x 2 sub-voxels."""
    z, y, x = (n // 2 for n in fine.shape)
    return fine.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5))


def simulate(
    geometry: Geometry, echo_times_s: Sequence[float], b0_tesla: float, *, noise: float = 0.006, seed: int = 20260105
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal (echo, z, y, x) complex, chi [ppm re water] and mask, on `geometry` (LPS mm from the middle of the brain).

    noise: standard deviation of the real and of the imaginary part, relative to water at the centre of the coil.
    The mask is the brain with its ventricles and the bleed, without voxels at its surface that have no signal.
    """
    fine, inner = fine_grid(geometry, below=(20, 4, 4), above=(8, 4, 4))  # neck below, the top of the head above
    index = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in fine.shape], indexing="ij", sparse=True)
    points = [sum(fine.affine_lps[i, j] * index[j] for j in range(3)) + fine.affine_lps[i, 3] for i in range(3)]
    phantom = head([p.astype(np.float32) for p in points], float(np.mean(fine.voxel_mm)))

    field = dipole_field(phantom.chi_ppm - np.float32(TISSUE["air"][0]), fine)[inner]
    x, y, z = (np.broadcast_to(p, fine.shape)[inner] for p in points)
    brain = phantom.brain[inner]
    chosen = brain > 0.5
    design = np.stack([np.ones(int(chosen.sum())), x[chosen], y[chosen], z[chosen]], axis=1)
    shim = np.linalg.lstsq(design, field[chosen], rcond=None)[0]
    hertz = (field - (shim[0] + shim[1] * x + shim[2] * y + shim[3] * z)) * hz_per_ppm(b0_tesla)

    coil = 1.5 - 0.75 * np.exp(-((x / 95) ** 2 + (y / 115) ** 2 + (z / 110) ** 2))
    offset = 0.7 + 0.011 * y + 0.9 * np.sin((x + 0.4 * z) / 75)
    slopes = np.gradient(hertz)
    rho, r2s = phantom.rho[inner], phantom.r2s_per_s[inner] * (b0_tesla / 3)
    random = np.random.default_rng(seed)
    echoes = []
    for time in echo_times_s:
        signal = rho * coil * np.exp(-time * r2s) * np.exp(1j * (offset + 2 * np.pi * hertz * time))
        for slope in slopes:
            signal *= np.sinc(slope * time)
        signal = block_mean(signal)
        echoes.append(
            signal + noise * (random.standard_normal(signal.shape) + 1j * random.standard_normal(signal.shape))
        )
    solid = block_mean(brain) > 0.5
    dark = (np.abs(echoes[0]) < 5 * noise) & (block_mean(phantom.chi_ppm[inner]) < 0.2)
    outside = scipy.ndimage.binary_propagation(~solid, mask=~solid | dark)
    return np.stack(echoes), block_mean(phantom.chi_ppm[inner]), ~outside
