"""Strong sources: what lost its signal and explains the field about it is told, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from qsm_edge import background, kernels, strong_sources, voids
from qsm_edge.backend import namespace
from qsm_edge.fft import crop, fast_shape, irfftn, pad, rfftn
from qsm_edge.types import Geometry
from tests import laws, phantoms
from tests.conftest import Flavour

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
RADIUS_MM = 5.0
CENTRE = (2.0, 3.0, -4.0)
OTHER = (-6.0, -5.0, 5.0)
#: Just under the surface of the tests' head.
SHALLOW = (0.0, 0.0, phantoms.head_radius_mm(GEOMETRY) - 6.0)
METHODS = strong_sources.METHODS


def dark_about(centre: tuple[float, float, float], radius_mm: float = RADIUS_MM) -> np.ndarray:
    """What lies within a bleed and a voxel about it has lost its signal."""
    return phantoms.ball(GEOMETRY, centre, radius_mm + 1.5)[0] > 0.3


SHARE, FIELD = phantoms.ball(GEOMETRY, CENTRE, RADIUS_MM)
DARK = dark_about(CENTRE)


def bleed(
    chi_ppm: float = 1.0, dark: np.ndarray = DARK, field: np.ndarray = FIELD, mask: np.ndarray = HEAD.mask
) -> tuple[np.ndarray, ...]:
    """Field, local field, what is between them, mask and weight of the tests' head with a bleed in it; noise where it is dark."""
    noise = 0.3 * np.random.default_rng(3).standard_normal(GEOMETRY.shape)
    local = np.where(mask, np.where(dark, noise, HEAD.local_ppm + chi_ppm * field), 0).astype(np.float32)
    weight = np.where(mask, np.where(dark, 0.02, 1.0), 0).astype(np.float32)
    outside = np.where(mask, HEAD.background_ppm, 0).astype(np.float32)
    return local + outside, local, outside, mask, weight


def told(arrays: tuple[Any, ...], geometry: Geometry = GEOMETRY, name: str = "superposed", **options: Any) -> Any:
    """A method where the background's removal is exact."""
    field, local, outside, mask, weight = arrays

    def removed(total: Any, taken: Any) -> tuple[Any, Any]:
        known = mask & ~taken
        return (total - outside) * namespace(total).astype(known, total.dtype), known

    return METHODS[name](field, local, mask, geometry, weight, removed, **options)


def stage(name: str = "superposed") -> laws.Stage:
    return lambda arrays, geometry: tuple(told(arrays, geometry, name))


def moment(chi: np.ndarray) -> float:
    """Susceptibility times volume [ppm mm^3]: what the far field tells."""
    return float(chi.sum()) * float(np.prod(GEOMETRY.voxel_mm))


@pytest.mark.parametrize("name", METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    laws.devices(stage(name), bleed(), GEOMETRY, xp, 1e-3)
    laws.devices(stage(name), bulging()[0], GEOMETRY, xp, 1e-3)


def test_storage_order_place_and_sign_of_b0_do_not_matter() -> None:
    laws.orientation(stage(), bleed(), GEOMETRY, 2e-2)
    laws.translation(stage(), bleed(), GEOMETRY, 2e-2)
    laws.b0_sign(stage(), bleed(), GEOMETRY)
    laws.b0_matters(stage(), bleed(), GEOMETRY)


def test_unknown_options_are_refused() -> None:
    laws.refuses_unknown_options(METHODS.values(), positional=6)


def test_it_tells_how_far_it_is_and_can_be_stopped() -> None:
    laws.tells_and_stops(lambda on: told(bleed(), on_iteration=on))


@pytest.mark.parametrize("chi_ppm", [1.0, -0.8, 0.5])
def test_a_source_without_signal_of_its_own_has_the_moment_that_its_field_tells(chi_ppm: float) -> None:
    """Paramagnetic, as a bleed, or diamagnetic, as a calcification."""
    found = told(bleed(chi_ppm))
    assert moment(found.chi_ppm) == pytest.approx(chi_ppm * moment(SHARE), rel=0.15)
    seen = HEAD.mask & ~DARK
    assert np.std((found.field_ppm - chi_ppm * FIELD)[seen]) < 0.15 * np.std(chi_ppm * FIELD[seen]) + 0.004


def test_the_field_is_that_of_the_susceptibility() -> None:
    found = told(bleed())
    shape = fast_shape(GEOMETRY.shape, 30)
    response = kernels.dipole(shape, GEOMETRY.voxel_mm, GEOMETRY.b0_dir, found.chi_ppm)
    expected = crop(irfftn(response * rfftn(pad(found.chi_ppm, shape)), shape), GEOMETRY.shape)
    laws.assert_close(found.field_ppm, expected, 0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_two_sources_are_told_apart(sign: int) -> None:
    """Of one sign, each explains a part of the other's field, which must not be counted twice."""
    share, field = phantoms.ball(GEOMETRY, OTHER, 4.5)
    dark = phantoms.ball(GEOMETRY, OTHER, 4.6)[0] > 0.3
    assert not (binary_dilation(dark) & binary_dilation(DARK)).any()
    chi = told(bleed(1.0, DARK | dark, FIELD + sign * field)).chi_ppm
    grown = phantoms.ball(GEOMETRY, CENTRE, RADIUS_MM + 4)[0] > 0
    assert moment(np.where(grown, chi, 0)) == pytest.approx(moment(SHARE), rel=0.15)
    assert moment(np.where(grown, 0, chi)) == pytest.approx(sign * moment(share), rel=0.15)


def test_the_largest_voids_come_first_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan full of holes does not take hours."""
    monkeypatch.setattr(voids, "_MOST", 1)
    small, field = phantoms.ball(GEOMETRY, OTHER, 3.0)[0] > 0.3, phantoms.ball(GEOMETRY, OTHER, 2.5)[1]
    chi = told(bleed(1.0, small | DARK, FIELD + field)).chi_ppm
    assert moment(chi) == pytest.approx(moment(SHARE), rel=0.15)
    assert not chi[small].any()


@pytest.mark.parametrize("share", [0.03, 0.08])
def test_single_dark_voxels_of_a_noisy_scan_do_not_swallow_a_bleed(share: float) -> None:
    speckle = np.random.default_rng(4).random(DARK.shape) < share
    *fields, mask, weight = bleed()
    weight = np.where(mask & speckle, 0.02, weight).astype(np.float32)
    assert moment(told((*fields, mask, weight)).chi_ppm) == pytest.approx(moment(SHARE), rel=0.15)


def test_a_dark_shell_does_not_make_all_within_it_a_source() -> None:
    """A mask that holds the skull."""
    depth = HEAD.depth_mm()
    shell = (depth > 3.5) & (depth < 6.5)
    chi = told(bleed(0.0, shell & HEAD.mask)).chi_ppm
    assert not chi[HEAD.mask & (depth > 9)].any()


def test_deep_inside_less_of_the_field_needs_to_be_explained_than_near_the_surface() -> None:
    near, deep = (
        told(bleed(), near_mm=reach, least_explained=1.5, least_explained_deep=0.5).chi_ppm for reach in (8.0, 2.0)
    )
    assert not near.any()
    assert deep.any()


def test_a_hole_of_the_mask_in_a_bleed_is_a_part_of_it() -> None:
    """A caller's mask may have one. The chain's map has no value there."""
    middle = phantoms.ball(GEOMETRY, CENTRE, 2.0)[0] > 0.5
    found = told(bleed(mask=HEAD.mask & ~middle))
    assert middle.any()
    assert found.chi_ppm[middle].all()
    assert moment(found.chi_ppm) == pytest.approx(moment(SHARE), rel=0.15)


def uncalled(total: Any, taken: Any) -> tuple[Any, Any]:
    raise AssertionError("the background is removed again only where something was told")


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        pytest.param("superposed", bleed(0.0), id="a void in an ordinary field"),
        pytest.param("superposed", bleed(field=HEAD.background_ppm), id="a void in a field from outside the head"),
        pytest.param("superposed", bleed(dark=np.zeros_like(DARK)), id="a source that kept its signal"),
        pytest.param("superposed", bleed(0.0, np.random.default_rng(5).random(DARK.shape) < 0.01), id="dark voxels"),
        pytest.param("superposed", (*bleed()[:4], np.zeros(GEOMETRY.shape, np.float32)), id="no weight anywhere"),
        pytest.param("none", bleed(), id="the method none"),
    ],
)
def test_what_does_not_explain_the_field_about_it_is_no_source(name: str, arrays: tuple[np.ndarray, ...]) -> None:
    """And without a source everything stays as it was, voxel for voxel."""
    field, local, _, mask, weight = arrays
    found = METHODS[name](field, local, mask, GEOMETRY, weight, uncalled)
    assert not found.chi_ppm.any()
    assert not found.field_ppm.any()
    assert found.local_ppm is local
    assert found.known is mask


@pytest.mark.parametrize("times", [0, 1, 2])
def test_the_background_is_removed_again_as_often_as_asked_from_the_field_that_the_sources_leave(times: int) -> None:
    field, local, outside, mask, weight = bleed()
    asked: list[np.ndarray] = []

    def removed(total: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert not taken.any()  # there is no bone so deep inside
        asked.append(total)
        return (total - outside) * mask, mask

    found = strong_sources.superposed(field, local, mask, GEOMETRY, weight, removed, backgrounds=times)
    assert len(asked) == times
    assert moment(found.chi_ppm) == pytest.approx(moment(SHARE), rel=0.1)
    seen = mask & ~DARK
    for total in asked:
        assert np.std((total - field + FIELD)[seen]) < 0.2 * np.std(FIELD[seen])
    laws.assert_close(found.local_ppm * mask, local, 1e-5)


def shallow(at_mm: tuple[float, float, float] = SHALLOW) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of the voxels, field, and what is dark of a bleed under the surface."""
    share, field = phantoms.ball(GEOMETRY, at_mm, RADIUS_MM)
    return np.where(HEAD.mask, share, 0), field, dark_about(at_mm) & HEAD.mask


def test_where_a_bleed_at_the_surface_lost_a_part_of_its_field_to_the_background_it_comes_back() -> None:
    """A real removal, whose error near a bleed is a part of the bleed's own field."""
    _, field, dark = shallow()
    total, wanted, _, mask, weight = bleed(1.0, dark, field)

    def removed(total: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return background.METHODS["lbv"](total, mask & ~taken, GEOMETRY, weight)

    local, kept = removed(total, np.zeros_like(mask))
    found = strong_sources.superposed(total, local, kept, GEOMETRY, weight, removed, least_explained=0.3)
    near = found.known & ~binary_dilation(dark) & binary_dilation(dark, iterations=4)
    before, after = (float(np.std((got - wanted)[near])) for got in (local, found.local_ppm))
    assert after < 0.5 * before


def bulging() -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, np.ndarray]:
    """A bleed under the surface where the mask bulges and holds bone: the arrays, the bleed's share, it dark, and the bone."""
    share, field, dark = shallow()
    radius = phantoms.head_radius_mm(GEOMETRY)
    about = np.linalg.norm(phantoms.offsets(GEOMETRY, (0.0, 0.0, radius)), axis=0)
    bone = (about < 5.0) & ~HEAD.mask
    return bleed(1.0, dark | bone, field, HEAD.mask | bone), share, dark, bone


def test_what_rises_above_the_tissue_at_a_bleeds_edges_is_bone() -> None:
    arrays, share, _, bone = bulging()
    found = told(arrays)
    assert bone.sum() > 20
    assert np.mean(found.known[bone]) < 0.2
    assert found.known[share > 0].all()
    assert not found.chi_ppm[~found.known].any()
    assert not found.local_ppm[~found.known].any()
    assert moment(found.chi_ppm) == pytest.approx(moment(share), rel=0.15)
    kept = told(arrays, bright_weight=2.0)  # where nothing is bright, nothing can be told from bone
    assert kept.known[bone].all()


@pytest.mark.parametrize(
    ("bone_mm", "radius_mm", "bone_radius_mm"),
    [
        pytest.param(0.0, 22, 0, id="rises 3.5 mm above the chord from edge to edge"),
        pytest.param(5.0, 22, 6, id="bone above its middle"),
        pytest.param(5.0, 7, 25, id="bone that is wider than a bleed"),
    ],
)
def test_a_bleed_may_be_as_curved_as_a_head_of_70_mm_radius(
    bone_mm: float, radius_mm: float, bone_radius_mm: float
) -> None:
    z, y, x = np.meshgrid(np.arange(24.0), np.arange(70.0) - 35, np.arange(70.0) - 35, indexing="ij")
    depth = 70 - np.sqrt((z + 58) ** 2 + y**2 + x**2)
    brain, about = depth > 0, y**2 + x**2 < radius_mm**2
    bone = (depth > -bone_mm) & ~brain & (y**2 + x**2 < bone_radius_mm**2)
    void = about & brain & (depth < 7)
    weight = np.where(void | bone, 0.02, 1.0) * (brain | bone)
    geometry = Geometry.from_axes(z.shape, (1.0, 1.0, 1.0), (1.0, 0.0, 0.0))  # type: ignore[arg-type]
    within = voids.under_the_skull(weight.astype(np.float32), brain | bone, void | bone, geometry, 0.6)
    assert within[void].all()
    assert (within & bone & (depth < -3)).sum() == 0


@pytest.mark.parametrize("bright", ["none", "one slice"])
def test_where_too_little_is_bright_all_of_a_void_stays(bright: str) -> None:
    (*_, mask, weight), _, dark, bone = bulging()
    weight = np.where(mask, 0.02, 0).astype(np.float32)
    if bright == "one slice":
        weight[11] = np.where(mask[11] & ~dark[11] & ~bone[11], 1.0, weight[11])
    within = voids.under_the_skull(weight, mask, dark | bone, GEOMETRY, 0.6)
    assert np.array_equal(within, dark | bone)


def test_of_the_outermost_layer_a_void_holds_what_lost_its_signal_and_no_source_lies_outside_the_mask() -> None:
    """A void that reaches the surface, as a bleed under the skull does."""
    centre = (0.0, 0.0, phantoms.head_radius_mm(GEOMETRY) - 4.0)
    _, field, dark = shallow(centre)
    chi = told(bleed(1.0, dark, field)).chi_ppm
    outermost = HEAD.mask & ~binary_erosion(HEAD.mask)
    assert not chi[~HEAD.mask].any()
    assert chi[outermost & dark].any()
    assert not chi[outermost & ~dark].any()


def test_a_field_from_just_outside_the_mask_does_not_end_in_a_bleed_beside_it() -> None:
    """What a removal left of the background: nobody knows it, and the fit explains it where it comes from."""
    share, field, dark = shallow()
    beside = phantoms.ball(GEOMETRY, (6.0, -4.0, phantoms.head_radius_mm(GEOMETRY) + 2.0), 2.0)[1]
    got, without = (told(bleed(1.0, dark, part)).chi_ppm for part in (field + beside, field))
    assert moment(got) == pytest.approx(moment(without), rel=0.05)
    assert moment(without) == pytest.approx(moment(share), rel=0.15)


def a_void() -> Any:
    *_, mask, weight = bleed()
    labels, lost, places = voids.find(weight, mask, GEOMETRY, 0.3, 0.05, 3.0, 8.0)
    return strong_sources._Void(labels, lost, mask, 1, places[0], GEOMETRY, 8.0)


def test_the_cost_of_steps_is_symmetric_and_none_where_the_susceptibility_is_even() -> None:
    void, draw = a_void(), np.random.default_rng(6)
    x, y = (draw.standard_normal(void.chi.shape).astype(np.float32) for _ in range(2))
    assert np.vdot(void._uneven(x), y) == pytest.approx(np.vdot(x, void._uneven(y)), rel=1e-4)
    assert np.vdot(void._uneven(x), x) > 0
    assert np.abs(void._uneven(np.ones_like(x))).max() == 0


def test_more_weight_on_steps_makes_a_bleed_more_even() -> None:
    def chi(evenness: float) -> np.ndarray:
        return np.asarray(told(bleed(), evenness=evenness).chi_ppm[SHARE > 0.99])

    assert np.std(chi(64.0)) < np.std(chi(0.0))
