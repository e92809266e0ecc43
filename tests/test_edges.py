"""Where susceptibility may step: edges of the anatomy, none where the images are noise, and what an inversion gains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import edges, invert
from qsm_edge.distance import depth_mm
from tests import laws, phantoms
from tests.conftest import Flavour
from tests.test_kernels import full_dipole

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
EVEN = HEAD.mask.astype(np.float32)
DEEP = depth_mm(HEAD.mask, GEOMETRY) >= 4.0
#: A block of another tissue: first and last voxel along every axis.
BLOCK = (slice(8, 14), slice(10, 19), slice(9, 17))


def images(noise: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Two echoes and R2* of a block in a ball, under a smooth coil."""
    draw = np.random.default_rng(3)
    decay = np.full(GEOMETRY.shape, 15.0)
    decay[BLOCK] = 40.0
    coil = 1 + 0.4 * np.linspace(-1, 1, GEOMETRY.shape[2])
    echoes = np.stack([100 * coil * np.exp(-t * decay) for t in (0.005, 0.02)])
    echoes = echoes * (1 + noise * draw.standard_normal(echoes.shape))
    r2star = np.where(HEAD.mask, np.log(echoes[0] / echoes[1]) / 0.015, 0)
    return echoes.astype(np.float32), r2star.astype(np.float32)


def inputs() -> tuple[np.ndarray, ...]:
    weight = np.where(HEAD.mask, np.random.default_rng(2).uniform(0.1, 2, GEOMETRY.shape), 0).astype(np.float32)
    return (*images(), HEAD.mask, weight)


def stage(name: str) -> laws.Stage:
    def run(arrays: tuple[Any, ...], geometry: phantoms.Geometry) -> tuple[Any, ...]:
        magnitude, r2star, mask, weight = arrays
        found = edges.METHODS[name](magnitude, r2star, mask, geometry, weight)
        return (found[0, ...], found[1, ...], found[2, ...])

    return run


@pytest.mark.parametrize("name", edges.METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    # 1 / (1 + excess) amplifies the last digit of a logarithm and of a median; a GPU's log was 6e-5 off on these.
    laws.devices(stage(name), inputs(), GEOMETRY, xp, 2e-4 if name == "anatomy" else 0.0)


@pytest.mark.parametrize("name", edges.METHODS)
def test_place_and_storage_order_do_not_matter(name: str) -> None:
    laws.translation(stage(name), inputs(), GEOMETRY, 1e-5)
    order, flip = (2, 0, 1), (False, False, False)
    expected = stage(name)(inputs(), GEOMETRY)
    arrays = tuple(laws.turned(a, (order, flip)) for a in inputs())
    got = stage(name)(arrays, laws.turned_geometry(GEOMETRY, (order, flip)))
    for axis in range(3):
        laws.assert_close(
            got[axis], laws.turned(expected[order[axis]], (order, flip)), 1e-3
        )  # differences of logarithms


@pytest.mark.parametrize("name", edges.METHODS)
def test_a_step_out_of_the_mask_is_free_and_any_other_pays_its_share(name: str) -> None:
    found = edges.METHODS[name](*images(), HEAD.mask, GEOMETRY, EVEN)
    for axis in range(3):
        both = HEAD.mask & np.roll(HEAD.mask, -1, axis)
        assert not found[axis][~both].any()
        assert (found[axis][both] > 0).all()
        assert found[axis].max() == 1


def test_steps_of_the_anatomy_are_cheap_and_those_of_the_coil_are_not() -> None:
    found = edges.anatomy(*images(), HEAD.mask, GEOMETRY, EVEN)
    for axis, last in enumerate(part.stop - 1 for part in BLOCK):
        face = [slice(part.start + 1, part.stop - 1) for part in BLOCK]
        face[axis] = slice(last, last + 1)
        assert found[axis][tuple(face)].max() < 0.05
        face[axis] = slice(last - 3, last - 2)
        assert np.median(found[axis][tuple(face)]) > 0.25


def test_a_louder_image_has_the_same_edges() -> None:
    magnitude, r2star = images()
    louder = edges.anatomy(1000 * magnitude, r2star, HEAD.mask, GEOMETRY, EVEN)
    laws.assert_close(louder, edges.anatomy(magnitude, r2star, HEAD.mask, GEOMETRY, EVEN), 1e-3)


def test_one_echo_has_edges_too() -> None:
    magnitude, _ = images()
    found = edges.anatomy(magnitude[1:], None, HEAD.mask, GEOMETRY, EVEN)
    assert found[2][10, 14, BLOCK[2].stop - 1] < 0.05


def test_noise_in_voids_and_the_rim_make_no_edges() -> None:
    magnitude, r2star = images()
    void = np.zeros_like(HEAD.mask)
    void[9:13, 12:17, 11:15] = True
    draw = np.random.default_rng(4)
    magnitude = np.where(void, draw.uniform(0.1, 100, magnitude.shape), magnitude).astype(np.float32)
    weight = np.where(void, np.float32(0.05), EVEN)
    found = edges.anatomy(magnitude, r2star, HEAD.mask, GEOMETRY, weight)
    assert (found[2][void & np.roll(void, -1, 2)] == 1).all()
    assert np.median(edges.anatomy(magnitude, r2star, HEAD.mask, GEOMETRY, EVEN)[2][void]) < 0.2
    both = HEAD.mask & np.roll(HEAD.mask, -1, 2)
    assert (found[2][both & ~DEEP] == 1).all()


def test_options_and_arguments() -> None:
    laws.refuses_unknown_options(edges.METHODS.values(), positional=5)


def stepped() -> tuple[np.ndarray, np.ndarray]:
    """A block of 0.1 ppm in the ball, and its noisy field."""
    chi = np.zeros(GEOMETRY.shape)
    chi[BLOCK] = 0.1
    shape = tuple(2 * n for n in GEOMETRY.shape)
    padded = np.zeros(shape)
    padded[tuple(slice(n) for n in GEOMETRY.shape)] = chi
    field = np.fft.ifftn(full_dipole(shape, GEOMETRY.voxel_mm, GEOMETRY.b0_dir) * np.fft.fftn(padded)).real
    field = field[tuple(slice(n) for n in GEOMETRY.shape)] + 0.004 * np.random.default_rng(8).standard_normal(chi.shape)
    return chi, np.where(HEAD.mask, field, 0).astype(np.float32)


def error(chi: np.ndarray, truth: np.ndarray) -> float:
    got, wanted = (v[HEAD.mask] - v[HEAD.mask].mean() for v in (chi, truth))
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", ["tv", "hdqsm"])
def test_an_inversion_that_knows_the_edges_is_nearer_the_truth(name: str) -> None:
    truth, field = stepped()
    inverse = invert.METHODS[name]
    errors = []
    for method in (edges.anatomy, edges.none):
        steps = method(*images(), HEAD.mask, GEOMETRY, EVEN)
        errors.append(error(inverse(field, HEAD.mask, GEOMETRY, EVEN, steps, regularisation=5e-4), truth))
    assert errors[0] < 0.8 * errors[1]


def test_what_the_background_left_is_explained_outside() -> None:
    """A harmonic remainder bends chi less when steps beyond the mask cost nothing."""
    spoilt = np.where(HEAD.mask, HEAD.local_ppm + 0.3 * HEAD.background_ppm, 0).astype(np.float32)
    free = edges.none(EVEN[None], None, HEAD.mask, GEOMETRY, EVEN)
    errors = [
        error(invert.tv(spoilt, HEAD.mask, GEOMETRY, EVEN, steps), HEAD.chi_ppm) for steps in (free, np.ones_like(free))
    ]
    assert errors[0] < 0.8 * errors[1]
