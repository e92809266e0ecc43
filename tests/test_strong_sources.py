"""Strong sources: what lost its signal and explains the field about it is told, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from qsm_edge import kernels, strong_sources
from qsm_edge.fft import crop, fast_shape, irfftn, pad, rfftn
from qsm_edge.types import Geometry
from tests import laws, phantoms
from tests.conftest import Flavour

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
RADIUS_MM = 5.0
CENTRE = (2.0, 3.0, -4.0)
SHARE, FIELD = phantoms.ball(GEOMETRY, CENTRE, RADIUS_MM)
#: What lies within the bleed and a voxel about it has lost its signal.
DARK = phantoms.ball(GEOMETRY, CENTRE, RADIUS_MM + 1.5)[0] > 0.3
METHODS = strong_sources.METHODS


def bleed(chi_ppm: float = 1.0, dark: np.ndarray = DARK, field: np.ndarray = FIELD) -> tuple[np.ndarray, ...]:
    """Local field, mask and weight of the tests' head with a bleed in it; where it is dark, the field is another one."""
    local = HEAD.local_ppm + chi_ppm * field
    local = np.where(dark, 0.3 * np.random.default_rng(3).standard_normal(GEOMETRY.shape), local)
    weight = np.where(HEAD.mask, np.where(dark, 0.02, 1.0), 0)
    return np.where(HEAD.mask, local, 0).astype(np.float32), HEAD.mask, weight.astype(np.float32)


def stage(name: str) -> laws.Stage:
    def run(arrays: tuple[Any, ...], geometry: Geometry) -> tuple[Any, ...]:
        local, mask, weight = arrays
        return METHODS[name](local, mask, geometry, weight)

    return run


def moment(chi: np.ndarray) -> float:
    """Susceptibility times volume [ppm mm^3]: what the far field tells."""
    return float(chi.sum()) * float(np.prod(GEOMETRY.voxel_mm))


@pytest.mark.parametrize("name", METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    laws.devices(stage(name), bleed(), GEOMETRY, xp, 1e-3)


def test_storage_order_place_and_sign_of_b0_do_not_matter() -> None:
    laws.orientation(stage("superposed"), bleed(), GEOMETRY, 2e-2)
    laws.translation(stage("superposed"), bleed(), GEOMETRY, 2e-2)
    laws.b0_sign(stage("superposed"), bleed(), GEOMETRY)
    laws.b0_matters(stage("superposed"), bleed(), GEOMETRY)


def test_unknown_options_are_refused() -> None:
    laws.refuses_unknown_options(METHODS.values(), positional=4)


@pytest.mark.parametrize("chi_ppm", [1.0, -0.8, 0.5])
def test_a_source_without_signal_of_its_own_has_the_moment_that_its_field_tells(chi_ppm: float) -> None:
    """Paramagnetic, as a bleed, or diamagnetic, as a calcification."""
    chi, field = strong_sources.superposed(*place(bleed(chi_ppm)))
    assert moment(chi) == pytest.approx(chi_ppm * moment(SHARE), rel=0.15)
    seen = HEAD.mask & ~DARK
    assert np.std((field - chi_ppm * FIELD)[seen]) < 0.15 * np.std(chi_ppm * FIELD[seen]) + 0.004


def place(arrays: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    local, mask, weight = arrays
    return local, mask, GEOMETRY, weight


def test_the_field_is_that_of_the_susceptibility() -> None:
    chi, field = strong_sources.superposed(*place(bleed()))
    shape = fast_shape(GEOMETRY.shape, 30)
    response = kernels.dipole(shape, GEOMETRY.voxel_mm, GEOMETRY.b0_dir, chi)
    laws.assert_close(field, crop(irfftn(response * rfftn(pad(chi, shape)), shape), GEOMETRY.shape), 0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_two_sources_are_told_apart(sign: int) -> None:
    """Of one sign, each explains a part of the other's field, which must not be counted twice."""
    other = (-6.0, -5.0, 5.0)
    share, field = phantoms.ball(GEOMETRY, other, 4.5)
    dark = phantoms.ball(GEOMETRY, other, 4.6)[0] > 0.3
    assert not (binary_dilation(dark) & binary_dilation(DARK)).any()
    chi, _ = strong_sources.superposed(*place(bleed(1.0, DARK | dark, FIELD + sign * field)))
    grown = phantoms.ball(GEOMETRY, CENTRE, RADIUS_MM + 4)[0] > 0
    assert moment(np.where(grown, chi, 0)) == pytest.approx(moment(SHARE), rel=0.15)
    assert moment(np.where(grown, 0, chi)) == pytest.approx(sign * moment(share), rel=0.15)


def test_the_largest_voids_come_first_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan full of holes does not take hours."""
    monkeypatch.setattr(strong_sources, "_MOST", 1)
    other = (-6.0, -5.0, 5.0)
    small, field = phantoms.ball(GEOMETRY, other, 3.0)[0] > 0.3, phantoms.ball(GEOMETRY, other, 2.5)[1]
    chi, _ = strong_sources.superposed(*place(bleed(1.0, small | DARK, FIELD + field)))
    assert moment(chi) == pytest.approx(moment(SHARE), rel=0.15)
    assert not chi[small].any()


@pytest.mark.parametrize("share", [0.03, 0.08])
def test_single_dark_voxels_of_a_noisy_scan_do_not_swallow_a_bleed(share: float) -> None:
    speckle = np.random.default_rng(4).random(DARK.shape) < share
    local, mask, weight = bleed()
    weight = np.where(mask & speckle, 0.02, weight).astype(np.float32)
    chi, _ = strong_sources.superposed(local, mask, GEOMETRY, weight)
    assert moment(chi) == pytest.approx(moment(SHARE), rel=0.15)


def test_a_dark_shell_does_not_make_all_within_it_a_source() -> None:
    """A mask that holds the skull."""
    depth = HEAD.depth_mm()
    shell = (depth > 3.5) & (depth < 6.5)
    chi, _ = strong_sources.superposed(*place(bleed(0.0, shell & HEAD.mask)))
    assert not chi[HEAD.mask & (depth > 9)].any()


def test_deep_inside_less_of_the_field_needs_to_be_explained_than_near_the_surface() -> None:
    near, deep = (
        strong_sources.superposed(*place(bleed(1.0)), near_mm=reach, least_explained=1.5, least_explained_deep=0.5)[0]
        for reach in (8.0, 2.0)
    )
    assert not near.any()
    assert deep.any()


def test_what_follows_at_half_has_its_adjoint() -> None:
    labels, lost, places = strong_sources._voids(bleed()[2], HEAD.mask, GEOMETRY, 0.3, 0.05, 3.0, 8.0)
    void = strong_sources._Void(labels, HEAD.mask & ~(labels > 0), 1, places[0], GEOMETRY, 8.0)
    assert lost.any()
    assert void._tie.any()
    draw = np.random.default_rng(6)
    x, y = (draw.standard_normal(void._free.shape).astype(np.float32) for _ in range(2))
    x = x * void._free
    assert np.vdot(void._tied(x), y) == pytest.approx(np.vdot(x, void._gathered(y)), rel=1e-4)


@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param(bleed(0.0), id="a void in an ordinary field"),
        pytest.param(bleed(1.0, field=HEAD.background_ppm), id="a void in a field from outside the head"),
        pytest.param(bleed(1.0, dark=np.zeros_like(DARK)), id="a source that kept its signal"),
        pytest.param(bleed(0.0, dark=np.random.default_rng(5).random(DARK.shape) < 0.01), id="single dark voxels"),
        pytest.param((HEAD.local_ppm, HEAD.mask, np.zeros(GEOMETRY.shape, np.float32)), id="no weight anywhere"),
    ],
)
def test_what_does_not_explain_the_field_about_it_is_no_source(arrays: tuple[np.ndarray, ...]) -> None:
    chi, field = strong_sources.superposed(*place(arrays))
    assert not chi.any()
    assert not field.any()


def test_the_outermost_layer_follows_what_is_below_it_at_half_and_nothing_outside_the_mask_is_a_source() -> None:
    """A void that reaches the surface, as a bleed under the skull does."""
    centre = (0.0, 0.0, phantoms.head_radius_mm(GEOMETRY) - 4.0)
    _, field = phantoms.ball(GEOMETRY, centre, RADIUS_MM)
    dark = phantoms.ball(GEOMETRY, centre, RADIUS_MM + 1.5)[0] > 0.3
    chi, _ = strong_sources.superposed(*place(bleed(1.0, dark & HEAD.mask, field)))
    below = binary_erosion(HEAD.mask)
    outermost = HEAD.mask & ~below & dark
    assert not chi[~HEAD.mask].any()
    assert chi[outermost].any()
    assert np.abs(chi[outermost]).max() <= 0.5 * np.abs(chi[below]).max() + 1e-6
    assert not chi[HEAD.mask & ~below & ~dark].any()


def test_none_tells_nothing() -> None:
    chi, field = strong_sources.tell_none(*place(bleed()))
    assert not chi.any()
    assert not field.any()
