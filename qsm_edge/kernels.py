"""Layer 2: dipole, Laplacian and spherical-mean kernels as pure functions of a grid, in the half spectrum.

Every kernel is float32, real, shaped (z, y, x // 2 + 1), DC at index 0. Triples are (z, y, x). `reference` is any array;
the kernel is made where it lives.
"""

from __future__ import annotations

import math

import numpy as np

from qsm_edge.backend import namespace
from qsm_edge.fft import Triple, rfftn, wavenumbers
from qsm_edge.types import Array

Vector = tuple[float, float, float]


def dipole(shape: Triple, voxel_mm: Vector, b0_dir: Vector, reference: Array) -> Array:
    """Unit dipole response D(k) = 1/3 - (k . b)^2 / k^2, with D(0) = 0 [1].

    Multiplied with the spectrum of chi [ppm] it gives the relative field [ppm], Lorentz-corrected. On an even axis the
    Nyquist plane stands for both signs of its wavenumber, so that the cross terms have no sign there: they are dropped,
    or the kernel would not be that of a real field and permuting the axes would change the result.

    Source: Salomir et al., Concepts Magn Reson B 2003, doi:10.1002/cmr.b.10083; Marques & Bowtell, Concepts Magn Reson B
    2005, doi:10.1002/cmr.b.20034.
    """
    xp = namespace(reference)
    k = wavenumbers(shape, voxel_mm, reference)
    norm = math.sqrt(sum(b * b for b in b0_dir))
    b = [float(component) / norm for component in b0_dir]
    k2 = k[0] * k[0] + k[1] * k[1] + k[2] * k[2]
    at_zero = k2 == 0
    signed = []
    for axis in range(3):
        nyquist = 0.5 / voxel_mm[axis]
        edge = xp.abs(k[axis]) >= nyquist * (1 - 1e-6)
        signed.append(xp.where(edge, xp.zeros_like(k[axis]), k[axis]) * b[axis])
    along2 = sum((k[axis] * b[axis]) ** 2 for axis in range(3))
    along2 = along2 + 2 * (signed[0] * signed[1] + signed[0] * signed[2] + signed[1] * signed[2])
    d = 1.0 / 3.0 - along2 / xp.where(at_zero, xp.ones_like(k2), k2)
    return xp.where(at_zero, xp.zeros_like(d), d)


def laplacian(shape: Triple, voxel_mm: Vector, reference: Array) -> Array:
    """Eigenvalues [1/mm^2] of the 7-point Laplacian under periodic boundaries; negative but for DC."""
    xp = namespace(reference)
    k = wavenumbers(shape, voxel_mm, reference)
    parts = [(2 * xp.cos(2 * math.pi * k[axis] * voxel_mm[axis]) - 2) / voxel_mm[axis] ** 2 for axis in range(3)]
    return parts[0] + parts[1] + parts[2]


def gradient_power(shape: Triple, voxel_mm: Vector, reference: Array) -> Array:
    """|G(k)|^2 [1/mm^2] of the forward-difference gradient under periodic boundaries: minus the Laplacian."""
    return -laplacian(shape, voxel_mm, reference)


def sphere(shape: Triple, voxel_mm: Vector, radius_mm: float, reference: Array) -> Array:
    """Spectrum of the mean over a ball of `radius_mm` (never below a voxel), 1 at DC.

    The ball is sampled with 3 x 3 x 3 points a voxel, and two things make its mean value property hold on the grid: it
    covers no voxel whose centre is farther than the radius, so that a ball about a voxel that lies deeper than that
    never reads what is outside the mask; and its second moments along the axes are made equal, so that the mean of any
    harmonic polynomial up to the third degree is its value at the centre, on anisotropic voxels and small radii too.
    It is symmetric, so the spectrum is real.
    """
    xp = namespace(reference)
    radius = max(float(radius_mm), *(float(v) for v in voxel_mm))
    limit = radius**2 * (1 + 1e-6)  # a centre exactly on the sphere counts, whatever its rounding
    inside = xp.zeros(shape, dtype=xp.float32, device=reference.device)
    offsets = (-1 / 3, 0.0, 1 / 3)
    axes = []
    for n, v in zip(shape, voxel_mm, strict=True):
        index = xp.astype(xp.arange(n, device=reference.device), xp.float32)
        axes.append((xp.where(index > n // 2, index - n, index), float(v)))
    for dz in offsets:
        z2 = xp.reshape(((axes[0][0] + dz) * axes[0][1]) ** 2, (-1, 1, 1))
        for dy in offsets:
            y2 = xp.reshape(((axes[1][0] + dy) * axes[1][1]) ** 2, (1, -1, 1))
            for dx in offsets:
                x2 = xp.reshape(((axes[2][0] + dx) * axes[2][1]) ** 2, (1, 1, -1))
                inside = inside + xp.astype(z2 + y2 + x2 <= limit, xp.float32)
    squares = [
        xp.reshape((at * v) ** 2, tuple(-1 if a == axis else 1 for a in range(3))) for axis, (at, v) in enumerate(axes)
    ]
    inside = inside * xp.astype(squares[0] + squares[1] + squares[2] <= limit, xp.float32)
    inside = _isotropic(inside / xp.sum(inside), squares)
    return xp.real(rfftn(inside / xp.sum(inside)))


def _isotropic(ball: Array, squares: list[Array]) -> Array:
    """`ball` with weights 1 + sum c_i o_i^2 on its offsets o, such that its three second moments are equal."""
    xp = namespace(ball)
    parts = [ball * square for square in squares]
    second = np.array([float(xp.sum(part)) for part in parts])
    fourth = np.array([[float(xp.sum(part * square)) for square in squares] for part in parts])
    factors = np.linalg.solve(fourth, second.mean() - second)
    return ball + sum(float(c) * part for c, part in zip(factors, parts, strict=True))
