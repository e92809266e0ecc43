"""Cases whose answers are formulas: balls and smooth blobs with their analytic dipole fields, on oblique uneven grids.

For a susceptibility that depends on the distance r from a centre alone, the Lorentz-corrected field along B0 is

    (cos^2 - 1/3) (mean of chi within r  -  chi at r)

with the angle between r and B0: zero inside a homogeneous ball, a dipole outside it. Nothing here uses the kernels, the
transforms or the geometry code under test but for `Geometry`'s own construction, so that the two can disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import erf, pi

import numpy as np

from qsm_edge.types import Geometry

Triple = tuple[float, float, float]

#: Odd and even lengths, all different; uneven voxels; B0 along no axis and no diagonal (z, y, x).
SHAPE = (23, 30, 27)
VOXEL_MM = (2.0, 1.5, 1.7)
B0_DIR = (0.84, 0.40, -0.366)
GAMMA_RAD_PER_PPM_TESLA_S = 2 * pi * 42.577478518

_erf = np.vectorize(erf, otypes=[float])


def oblique(shape: tuple[int, int, int] = SHAPE, voxel_mm: Triple = VOXEL_MM, b0_dir: Triple = B0_DIR) -> Geometry:
    """A geometry with B0 along none of its axes."""
    return Geometry.from_axes(shape, voxel_mm, b0_dir)


def offsets(geometry: Geometry, centre_mm: Triple) -> np.ndarray:
    """(3, z, y, x) float64 [mm] from a point that is given in mm from the middle of the grid."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * v - c
        for n, v, c in zip(geometry.shape, geometry.voxel_mm, centre_mm, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _angle(at: np.ndarray, b0_dir: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    """r [mm] and cos^2 - 1/3 at the points `at` (3, ...)."""
    r = np.sqrt((at**2).sum(axis=0))
    b0 = np.array(tuple(b0_dir))
    along = np.tensordot(b0 / np.linalg.norm(b0), at, axes=1)
    return r, (along / np.maximum(r, 1e-9)) ** 2 - 1 / 3


def ball(geometry: Geometry, centre_mm: Triple, radius_mm: float, samples: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Share of each voxel inside a ball and the ball's field per ppm, each the mean over samples^3 points a voxel."""
    at = offsets(geometry, centre_mm)
    share, field = np.zeros(geometry.shape), np.zeros(geometry.shape)
    steps = (np.arange(samples) + 0.5) / samples - 0.5
    for step in np.stack(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1).T:
        r, angle = _angle(at + (step * geometry.voxel_mm)[:, None, None, None], geometry.b0_dir)
        share += r <= radius_mm
        field += np.where(r > radius_mm, angle * (radius_mm / np.maximum(r, radius_mm)) ** 3, 0)
    return share / samples**3, field / samples**3


def blob(geometry: Geometry, centre_mm: Triple, width_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian of standard deviation `width_mm` and peak 1 ppm, and its exact field [ppm]."""
    r, angle = _angle(offsets(geometry, centre_mm), geometry.b0_dir)
    t = np.maximum(r / width_mm, 1e-3)
    within = 3 / t**3 * (np.sqrt(pi / 2) * _erf(t / np.sqrt(2)) - t * np.exp(-(t**2) / 2))
    at_r = np.exp(-(t**2) / 2)
    return at_r, angle * (within - at_r)


@dataclass(frozen=True)
class Head:
    """A ball-shaped head, (z, y, x) float32: sources inside it, sources outside it, and the field of either."""

    geometry: Geometry
    mask: np.ndarray
    chi_ppm: np.ndarray
    local_ppm: np.ndarray
    background_ppm: np.ndarray

    @property
    def field_ppm(self) -> np.ndarray:
        """The field of everything, inside the mask."""
        return np.where(self.mask, self.local_ppm + self.background_ppm, 0).astype(np.float32)

    def depth_mm(self) -> np.ndarray:
        """Distance of every voxel from the head's surface, in mm, positive inside."""
        return self._radius_mm - np.sqrt((offsets(self.geometry, (0, 0, 0)) ** 2).sum(axis=0))

    @property
    def _radius_mm(self) -> float:
        return head_radius_mm(self.geometry)


def head_radius_mm(geometry: Geometry) -> float:
    """The largest ball that stays two voxels away from every face."""
    return min((n / 2 - 2) * v for n, v in zip(geometry.shape, geometry.voxel_mm, strict=True))


def head(geometry: Geometry) -> Head:
    """Two smooth sources inside; an air-filled ball just outside and a large one far off, which nothing but leaves."""
    radius = head_radius_mm(geometry)
    mask = np.sqrt((offsets(geometry, (0, 0, 0)) ** 2).sum(axis=0)) <= radius
    chi, local = np.zeros(geometry.shape), np.zeros(geometry.shape)
    for centre, width, ppm in (((2, -5, 3), 3.0, 0.20), ((-5, 4, -4), 3.5, -0.15)):
        peak, its_field = blob(geometry, tuple(radius / 18 * c for c in centre), width)  # type: ignore[arg-type]
        chi, local = chi + ppm * peak, local + ppm * its_field
    near = ball(geometry, (-0.4 * radius, -1.35 * radius, 0.5 * radius), 0.25 * radius, 3)[1]
    far = ball(geometry, (3 * radius, 1.5 * radius, -2 * radius), radius, 1)[1]
    fields = (local, 9.4 * near + 9.4 * far)
    return Head(geometry, mask, *(np.where(mask, v, 0).astype(np.float32) for v in (chi, *fields)))


def echoes(
    field_ppm: np.ndarray,
    echo_times_s: tuple[float, ...],
    b0_tesla: float,
    *,
    offset_rad: np.ndarray | float = 0.7,
    r2star_per_s: float = 25.0,
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Wrapped phase [rad] and magnitude (echo, z, y, x) float32 of a signal of 1 at TE 0 with complex Gaussian noise."""
    draw = np.random.default_rng(seed)
    te = np.array(echo_times_s).reshape(-1, 1, 1, 1)
    signal = np.exp(-te * r2star_per_s + 1j * (offset_rad + GAMMA_RAD_PER_PPM_TESLA_S * b0_tesla * te * field_ppm))
    signal = signal + noise * (draw.standard_normal(signal.shape) + 1j * draw.standard_normal(signal.shape))
    return np.angle(signal).astype(np.float32), np.abs(signal).astype(np.float32)


def smooth_noise(shape: tuple[int, int, int], seed: int, keep: Callable[[float], float] | float = 0.12) -> np.ndarray:
    """Band-limited random volume of standard deviation 1: frequencies below `keep` cycles per voxel."""
    white = np.fft.fftn(np.random.default_rng(seed).standard_normal(shape))
    k2 = sum(np.meshgrid(*[np.fft.fftfreq(n) ** 2 for n in shape], indexing="ij"))
    smooth = np.fft.ifftn(white * np.exp(-k2 / (2 * float(keep) ** 2))).real  # type: ignore[arg-type]
    return (smooth / smooth.std()).astype(np.float32)


def turned(geometry: Geometry, order: tuple[int, int, int], flip: tuple[bool, bool, bool]) -> Geometry:
    """The grid of the same voxels once the array's axes are permuted by `order`, then flipped."""
    affine = np.array(geometry.affine_lps)
    affine[:, :3] = geometry.affine_lps[:, list(order)]
    for axis, (backwards, source) in enumerate(zip(flip, order, strict=True)):
        if backwards:
            affine[:3, 3] += affine[:3, axis] * (geometry.shape[source] - 1)
            affine[:3, axis] *= -1
    a, b, c = (geometry.shape[source] for source in order)
    return Geometry((a, b, c), affine)
