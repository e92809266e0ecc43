"""Kernels against formulas written out in full complex float64 grids, and against the fields of balls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qsm_edge import fft, kernels
from tests import laws, phantoms
from tests.conftest import Flavour
from tests.laws import assert_close

REFERENCE = np.zeros(1, np.float32)
GRIDS = [(7, 6, 5), (6, 8, 4), (5, 9, 6)]
TILTED = tuple(np.array(phantoms.B0_DIR) / np.linalg.norm(phantoms.B0_DIR))


def full_dipole(shape: tuple[int, int, int], voxel_mm: phantoms.Triple, b0_dir: phantoms.Triple) -> np.ndarray:
    """The whole kernel, float64: at Nyquist, which has no sign, the mean over both signs of its wavenumber."""
    unit = np.array(b0_dir) / np.linalg.norm(b0_dir)
    total = np.zeros(shape)
    for signs in itertools.product((1, -1), repeat=3):
        k = []
        for n, v, sign in zip(shape, voxel_mm, signs, strict=True):
            line = np.fft.fftfreq(n, v)
            k.append(np.where(np.isclose(np.abs(line), 0.5 / v), sign * line, line))
        kz, ky, kx = np.meshgrid(*k, indexing="ij")
        k2 = kz**2 + ky**2 + kx**2
        k2[0, 0, 0] = 1
        total += 1 / 3 - (kz * unit[0] + ky * unit[1] + kx * unit[2]) ** 2 / k2
    total[0, 0, 0] = 0
    return total / 8


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("b0_dir", [(1, 0, 0), (0, 1, 0), (0, 0, 1), phantoms.B0_DIR])
def test_dipole_is_the_half_of_the_full_formula(
    xp: Flavour, shape: tuple[int, int, int], b0_dir: phantoms.Triple
) -> None:
    got = xp.to_numpy(kernels.dipole(shape, phantoms.VOXEL_MM, b0_dir, xp.asarray(REFERENCE)))
    whole = full_dipole(shape, phantoms.VOXEL_MM, b0_dir)
    assert_close(got, whole[..., : shape[2] // 2 + 1].astype(np.float32), 2e-6)


def test_three_orthogonal_fields_cancel() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))
    total = sum(kernels.dipole((6, 7, 8), phantoms.VOXEL_MM, tuple(b), REFERENCE) for b in turn)
    assert np.abs(total).max() < 1e-6


def test_only_the_line_of_b0_counts_not_its_length_or_sign() -> None:
    one = kernels.dipole((6, 7, 8), phantoms.VOXEL_MM, TILTED, REFERENCE)
    other = kernels.dipole((6, 7, 8), phantoms.VOXEL_MM, tuple(-3.0 * b for b in TILTED), REFERENCE)
    assert_close(other, one, 1e-6)
    assert one[0, 0, 0] == 0
    assert one.min() >= -2 / 3 - 1e-6
    assert one.max() <= 1 / 3 + 1e-6


@pytest.mark.parametrize("shape", [(6, 8, 10), (7, 8, 9), (6, 9, 10)])
def test_the_field_does_not_depend_on_the_order_of_the_axes(shape: tuple[int, int, int]) -> None:
    """Fails, by a third of the range, when cross terms are kept at Nyquist."""
    chi = np.random.default_rng(4).standard_normal(shape).astype(np.float32)

    def field(arrays: tuple[np.ndarray, ...], geometry: phantoms.Geometry) -> tuple[np.ndarray, ...]:
        kernel = kernels.dipole(geometry.shape, geometry.voxel_mm, geometry.b0_dir, arrays[0])
        return (fft.irfftn(kernel * fft.rfftn(arrays[0]), geometry.shape),)

    laws.orientation(field, (chi,), phantoms.oblique(shape), 1e-5)
    laws.b0_sign(field, (chi,), phantoms.oblique(shape))
    laws.b0_matters(field, (chi,), phantoms.oblique(shape))


@pytest.mark.parametrize(
    ("shape", "voxel_mm", "b0_dir", "near", "overall"),
    [
        ((31, 40, 36), (2.0, 1.5, 1.7), phantoms.B0_DIR, 0.1, 0.008),  # oblique: the surface rings by some percent
        ((38, 37, 36), (1.6, 1.6, 1.6), (1, 0, 0), 0.008, 0.003),
    ],
)
def test_a_ball_has_the_field_of_a_ball(
    shape: tuple[int, int, int], voxel_mm: phantoms.Triple, b0_dir: phantoms.Triple, near: float, overall: float
) -> None:
    geometry = phantoms.oblique(shape, voxel_mm, b0_dir)
    radius, centre = 9.0, (1.3, -0.8, 2.1)
    share, expected = phantoms.ball(geometry, centre, radius)
    grid = fft.fast_shape(shape, shape)
    kernel = kernels.dipole(grid, voxel_mm, geometry.b0_dir, REFERENCE)
    field = fft.crop(fft.irfftn(kernel * fft.rfftn(share.astype(np.float32), grid), grid), shape)
    r = np.sqrt((phantoms.offsets(geometry, centre) ** 2).sum(axis=0))
    peak = np.abs(expected).max()
    outside, inside = r > radius + 3.5, r < radius - 3.5
    assert inside.sum() > 100
    assert np.abs(field - expected)[outside].max() < near * peak
    assert np.abs(field[inside]).max() < near * peak
    assert np.sqrt(np.mean((field - expected) ** 2)) < overall * peak


def test_a_smooth_blob_has_the_field_of_a_blob_everywhere() -> None:
    geometry = phantoms.oblique((31, 40, 36))
    chi, expected = phantoms.blob(geometry, (1.3, -0.8, 2.1), 4.0)
    grid = fft.fast_shape(geometry.shape, geometry.shape)
    kernel = kernels.dipole(grid, geometry.voxel_mm, geometry.b0_dir, REFERENCE)
    field = fft.crop(fft.irfftn(kernel * fft.rfftn(chi.astype(np.float32), grid), grid), geometry.shape)
    assert np.abs(field - expected).max() < 0.002 * np.abs(expected).max()


def test_laplacian_is_the_stencil(xp: Flavour) -> None:
    volume = np.random.default_rng(5).standard_normal((6, 7, 8)).astype(np.float32)
    stencil = sum(
        (np.roll(volume, 1, a) + np.roll(volume, -1, a) - 2 * volume) / v**2 for a, v in enumerate(phantoms.VOXEL_MM)
    )
    there = xp.asarray(volume)
    kernel = kernels.laplacian(volume.shape, phantoms.VOXEL_MM, there)
    assert_close(xp.to_numpy(fft.irfftn(kernel * fft.rfftn(there), volume.shape)), stencil.astype(np.float32), 2e-6)
    power = kernels.gradient_power(volume.shape, phantoms.VOXEL_MM, there)
    assert np.array_equal(xp.to_numpy(power), -xp.to_numpy(kernel))


def _ball_weights(shape: tuple[int, int, int], voxel_mm: phantoms.Triple, radius_mm: float) -> np.ndarray:
    weights = np.fft.irfftn(
        kernels.sphere(shape, voxel_mm, radius_mm, REFERENCE).astype(complex), s=shape, axes=(0, 1, 2)
    )
    return np.fft.fftshift(weights)


VOXELS_AND_RADII = [
    ((1.0, 1.0, 1.0), 1.0),
    ((1.0, 1.0, 1.0), 5.0),
    ((2.0, 1.5, 1.7), 2.0),
    ((2.0, 1.5, 1.7), 7.3),
    ((2.0, 0.9, 0.9), 2.0),
    ((3.0, 0.8, 1.1), 3.5),
]


@pytest.mark.parametrize(("voxel_mm", "radius_mm"), VOXELS_AND_RADII)
def test_a_ball_reads_nothing_beyond_its_radius(voxel_mm: phantoms.Triple, radius_mm: float) -> None:
    """So that a voxel deeper in the mask than the radius never sees what is outside the mask."""
    shape = (17, 24, 22)
    weights = _ball_weights(shape, voxel_mm, radius_mm)
    at = [(np.arange(n) - n // 2) * v for n, v in zip(shape, voxel_mm, strict=True)]
    z, y, x = np.meshgrid(*at, indexing="ij")
    beyond = np.sqrt(z**2 + y**2 + x**2) > radius_mm * (1 + 1e-5)
    assert np.abs(weights[beyond]).max() < 1e-6
    assert weights[~beyond].min() > -1e-6
    assert abs(weights.sum() - 1) < 1e-5
    for axis in range(3):  # it reaches a neighbour on every axis, or it would be no ball
        assert weights[tuple(n // 2 + (a == axis) for a, n in enumerate(shape))] > 1e-3


@pytest.mark.parametrize(("voxel_mm", "radius_mm"), VOXELS_AND_RADII)
def test_the_mean_over_a_ball_of_a_harmonic_polynomial_is_its_value(
    voxel_mm: phantoms.Triple, radius_mm: float
) -> None:
    shape = (17, 24, 22)
    weights = _ball_weights(shape, voxel_mm, radius_mm)
    at = [(np.arange(n) - n // 2) * v - c for n, v, c in zip(shape, voxel_mm, (1.0, -2.0, 0.5), strict=True)]
    z, y, x = np.meshgrid(*at, indexing="ij")
    for polynomial in (1 + 0 * z, z - 2 * x, z * z - y * y, 2 * x * x - y * y - z * z, x * y, x * y * z):
        value = polynomial[tuple(n // 2 for n in shape)]
        spread = np.abs(polynomial[np.abs(weights) > 1e-7]).max()
        assert abs((weights * polynomial).sum() - value) < 2e-5 * spread
    cubic = x**3 - 3 * x * y * y
    assert abs((weights * cubic).sum() - cubic[tuple(n // 2 for n in shape)]) < 2e-5 * np.abs(cubic).max()


def test_a_ball_is_never_smaller_than_a_voxel(xp: Flavour) -> None:
    there = xp.asarray(REFERENCE)
    tiny, voxel = (xp.to_numpy(kernels.sphere((7, 9, 8), (2.0, 1.5, 1.7), r, there)) for r in (0.1, 2.0))
    assert np.array_equal(tiny, voxel)
    assert tiny.dtype == np.float32
    assert tiny[0, 0, 0] == pytest.approx(1, abs=1e-6)
    assert_close(tiny, kernels.sphere((7, 9, 8), (2.0, 1.5, 1.7), 2.0, REFERENCE), 1e-6)
