"""Laws of the weighted images: the published masks, whom they darken, T2* as the inverse of the decay, the sliding slab."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi

from qsm_edge import echoes, weighted
from qsm_edge.types import Geometry
from tests import laws, phantoms
from tests.conftest import Flavour
from tests.phantoms import GAMMA_RAD_PER_PPM_TESLA_S

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
TIMES_S = (0.006, 0.013, 0.021, 0.030)
B0_TESLA = 3.0

Run = Callable[[tuple[Any, ...], Geometry], tuple[Any, ...]]


def magnitudes(seed: int = 0) -> np.ndarray:
    """Four echoes of uneven tissue and uneven decay, (echo, z, y, x)."""
    draw = np.random.default_rng(seed)
    first, rate = draw.uniform(200, 900, GEOMETRY.shape), draw.uniform(2, 90, GEOMETRY.shape)
    return np.stack([first * np.exp(-t * rate) for t in TIMES_S]).astype(np.float32)


STAGES: dict[str, tuple[Run, tuple[np.ndarray, ...]]] = {
    "t2star": (
        lambda a, g: (weighted.t2star_ms(*a),),
        (np.random.default_rng(3).uniform(0, 200, GEOMETRY.shape).astype(np.float32), HEAD.mask),
    ),
    "swi": (
        lambda a, g: (weighted.swi(*a, TIMES_S, B0_TESLA),),
        (magnitudes(), HEAD.local_ppm, HEAD.mask),
    ),
    "smwi": (lambda a, g: (weighted.smwi(*a),), (magnitudes(), HEAD.chi_ppm, HEAD.mask)),
    "scaled": (lambda a, g: (weighted.scaled(*a),), (magnitudes()[0], HEAD.mask)),
    "projection": (lambda a, g: (weighted.minimum_projection(*a, g),), (magnitudes()[0], HEAD.mask)),
}


@pytest.mark.parametrize("name", STAGES)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    stage, arrays = STAGES[name]
    laws.devices(stage, arrays, GEOMETRY, xp, 1e-6)


@pytest.mark.parametrize("name", [name for name in STAGES if name != "projection"])
def test_storage_order_does_not_matter(name: str) -> None:
    stage, arrays = STAGES[name]
    laws.orientation(stage, arrays, GEOMETRY, 1e-6)


def turns(radians: float, echo: int, b0_tesla: float = B0_TESLA) -> np.ndarray:
    """A local field [ppm] that gathers a phase until an echo, everywhere."""
    per_ppm = GAMMA_RAD_PER_PPM_TESLA_S * b0_tesla * TIMES_S[echo]
    return np.full(GEOMETRY.shape, radians / per_ppm, np.float32)


@pytest.mark.parametrize(
    ("radians", "left"),
    [(-1.0, 1.0), (0.0, 1.0), (math.pi / 4, 0.75**4), (math.pi / 2, 0.5**4), (3.2, 0.0), (9.9, 0.0)],
)
def test_the_phase_mask_is_the_fourth_power_of_a_line_from_no_phase_to_half_a_turn(radians: float, left: float) -> None:
    image = weighted.swi(magnitudes(), turns(radians, 2), HEAD.mask, TIMES_S, B0_TESLA)
    np.testing.assert_allclose(image[HEAD.mask], left * magnitudes()[2][HEAD.mask], rtol=2e-5)
    np.testing.assert_array_equal(image[~HEAD.mask], magnitudes()[2][~HEAD.mask])


@pytest.mark.parametrize(
    ("ppm", "left"), [(-0.4, 1.0), (0.0, 1.0), (0.25, 0.75**4), (0.5, 0.5**4), (1.0, 0.0), (1.4, 0.0)]
)
def test_the_susceptibility_mask_is_the_fourth_power_of_a_line_from_none_to_one_ppm(ppm: float, left: float) -> None:
    strength = np.sqrt((magnitudes().astype(np.float64) ** 2).sum(axis=0))
    image = weighted.smwi(magnitudes(), np.full(GEOMETRY.shape, ppm, np.float32), HEAD.mask)
    np.testing.assert_allclose(image[HEAD.mask], left * strength[HEAD.mask], rtol=1e-5)
    np.testing.assert_allclose(image[~HEAD.mask], strength[~HEAD.mask], rtol=1e-5)


@pytest.mark.parametrize(
    ("times_s", "b0_tesla", "echo"),
    [
        ((0.005, 0.010, 0.015, 0.020, 0.025), 3.0, 3),
        ((0.005, 0.010, 0.015, 0.020, 0.025), 1.5, 4),  # 40 ms are beyond them all
        ((0.004, 0.008, 0.012), 7.0, 1),
        ((0.018, 0.022), 3.0, 0),  # a draw: the earlier has more signal
        ((0.035,), 3.0, 0),
    ],
)
def test_the_echo_is_the_one_nearest_to_60_ms_at_1_tesla(times_s: Any, b0_tesla: float, echo: int) -> None:
    assert weighted.swi_echo(times_s, b0_tesla) == echo


def vein(chi_ppm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A vein along B0: where it lies, its susceptibility, and its field, a third of that inside and none beside it."""
    inside = np.zeros(GEOMETRY.shape, bool)
    inside[:, 13:17, 12:15] = True
    inside &= HEAD.mask
    chi = np.where(inside, chi_ppm, 0).astype(np.float32)
    return inside, chi, (chi / 3).astype(np.float32)


@pytest.mark.parametrize(("chi_ppm", "dark"), [(0.3, True), (-0.3, False)])
def test_veins_are_dark_and_calcium_is_not(chi_ppm: float, dark: bool) -> None:
    flat = np.full((len(TIMES_S), *GEOMETRY.shape), 500, np.float32)
    inside, chi, local = vein(chi_ppm)
    for image in (weighted.swi(flat, local, HEAD.mask, TIMES_S, B0_TESLA), weighted.smwi(flat, chi, HEAD.mask)):
        tissue = np.median(image[HEAD.mask & ~inside])
        assert (image[inside] < 0.35 * tissue).all() == dark
        assert (image[inside] == tissue).all() != dark


def test_t2star_is_the_decay_of_the_signal_and_long_in_csf() -> None:
    t2star = np.where(np.arange(GEOMETRY.shape[0])[:, None, None] % 2, 20.0, 150.0) * np.ones(GEOMETRY.shape)
    signal = np.stack([700 * np.exp(-1000 * t / t2star) for t in TIMES_S]).astype(np.float32)
    rate = echoes.r2star(signal, HEAD.mask, TIMES_S)
    found = weighted.t2star_ms(rate, HEAD.mask)
    np.testing.assert_allclose(found[HEAD.mask], t2star[HEAD.mask], rtol=1e-3)
    assert not found[~HEAD.mask].any()


def test_no_decay_is_the_longest_time_and_never_infinite() -> None:
    rate = np.zeros(GEOMETRY.shape, np.float32)
    assert set(np.unique(weighted.t2star_ms(rate, HEAD.mask))) == {0.0, 1000.0}
    assert set(np.unique(weighted.t2star_ms(rate, HEAD.mask, longest_ms=250.0))) == {0.0, 250.0}


def test_a_scanners_scale_is_lost_and_the_median_fixed() -> None:
    image = magnitudes()[0]
    once, again = weighted.scaled(image, HEAD.mask), weighted.scaled(7e-4 * image, HEAD.mask)
    np.testing.assert_allclose(once, again, rtol=1e-5)
    assert np.median(once[HEAD.mask]) == pytest.approx(1000, rel=1e-2)
    silent = np.zeros(GEOMETRY.shape, np.float32)
    np.testing.assert_array_equal(weighted.scaled(silent, HEAD.mask), silent)
    np.testing.assert_array_equal(weighted.scaled(image, np.zeros_like(HEAD.mask)), image)


@pytest.mark.parametrize("thickness_mm", [0.0, 2.0, 7.0, 10.0, 500.0])
def test_the_projection_is_the_minimum_over_the_slab_within_the_mask(thickness_mm: float) -> None:
    image = magnitudes()[0]
    slab = weighted.slab_slices(GEOMETRY, thickness_mm=thickness_mm)
    counted = np.where(HEAD.mask, image, np.inf)
    expected = ndi.minimum_filter(counted, (slab, 1, 1), mode="constant", cval=np.inf)
    found = weighted.minimum_projection(image, HEAD.mask, GEOMETRY, thickness_mm=thickness_mm)
    np.testing.assert_array_equal(found, np.where(np.isfinite(expected), expected, 0))
    assert (found[HEAD.mask] <= image[HEAD.mask]).all()


@pytest.mark.parametrize("flip", [(True, False, False), (False, True, True)])
def test_the_projection_knows_no_top_and_bottom(flip: tuple[bool, bool, bool]) -> None:
    stage, arrays = STAGES["projection"]
    turn = ((0, 1, 2), flip)
    (expected,) = stage(arrays, GEOMETRY)
    (found,) = stage(tuple(laws.turned(a, turn) for a in arrays), laws.turned_geometry(GEOMETRY, turn))
    np.testing.assert_array_equal(found, laws.turned(expected, turn))


def test_a_dark_voxel_shows_in_as_many_slices_as_the_slab_has() -> None:
    image = np.full(GEOMETRY.shape, 100, np.float32)
    image[11, 15, 13] = 3
    found = weighted.minimum_projection(image, np.ones_like(HEAD.mask), GEOMETRY, thickness_mm=10.0)
    assert np.flatnonzero(found[:, 15, 13] == 3).tolist() == list(range(9, 14))
    assert (found == 3).sum() == weighted.slab_slices(GEOMETRY, thickness_mm=10.0) == 5


@pytest.mark.parametrize("spacing_mm", [0.6, 1.0, 1.7, 2.0, 3.2, 12.0])
def test_the_slab_is_the_odd_number_of_slices_that_comes_closest(spacing_mm: float) -> None:
    geometry = Geometry.from_axes((40, 8, 8), (spacing_mm, 1.0, 1.0))
    slab = weighted.slab_slices(geometry, thickness_mm=10.0)
    odd = range(1, 41, 2)
    assert slab in odd
    assert abs(slab * spacing_mm - 10.0) == pytest.approx(min(abs(n * spacing_mm - 10.0) for n in odd))
