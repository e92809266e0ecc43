"""Weights: relative to the middle of the mask, falling where the fit or the rim is bad, zero outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import weights
from qsm_edge.distance import depth_mm
from tests import laws, phantoms
from tests.conftest import Flavour

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
EVEN = np.where(HEAD.mask, 1, 0).astype(np.float32)
DEPTH = depth_mm(HEAD.mask, GEOMETRY)


def fit_stage(name: str) -> laws.Stage:
    return lambda arrays, geometry: laws.parts(weights.METHODS[name](*arrays, geometry))


def rim_stage(name: str) -> laws.Stage:
    def run(arrays: tuple[Any, ...], geometry: phantoms.Geometry) -> tuple[Any, ...]:
        field, local, mask, weight = arrays
        return laws.parts(weights.RIM_METHODS[name](field, local, mask, geometry, weight))

    return run


def fit_inputs() -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(1)
    precision = (50 + 20 * draw.random(GEOMETRY.shape)).astype(np.float32)
    residual = (0.3 * draw.random(GEOMETRY.shape) ** 2).astype(np.float32)
    return precision, residual, HEAD.mask


def rim_inputs() -> tuple[np.ndarray, ...]:
    weight = np.where(HEAD.mask, np.random.default_rng(2).uniform(0.2, 2, GEOMETRY.shape), 0).astype(np.float32)
    return HEAD.field_ppm, HEAD.local_ppm, HEAD.mask, weight


@pytest.mark.parametrize("name", weights.METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    laws.devices(fit_stage(name), fit_inputs(), GEOMETRY, xp, 1e-6)


@pytest.mark.parametrize("name", weights.RIM_METHODS)
def test_any_array_any_device_at_the_rim(xp: Flavour, name: str) -> None:
    laws.devices(rim_stage(name), rim_inputs(), GEOMETRY, xp, 1e-6)


def test_storage_order_place_and_sign_of_b0_do_not_matter() -> None:
    cases = [(fit_stage(name), fit_inputs()) for name in weights.METHODS]
    cases += [(rim_stage(name), rim_inputs()) for name in weights.RIM_METHODS]
    for stage, arrays in cases:
        laws.orientation(stage, arrays, GEOMETRY, 1e-5)
        laws.translation(stage, arrays, GEOMETRY, 1e-5)
        laws.b0_sign(stage, arrays, GEOMETRY)


def test_unknown_options_are_refused() -> None:
    laws.refuses_unknown_options(weights.METHODS.values(), positional=4)
    laws.refuses_unknown_options(weights.RIM_METHODS.values(), positional=5)


@pytest.mark.parametrize("name", weights.METHODS)
def test_ordinary_voxels_weigh_about_one_whatever_the_scanners_scale(name: str) -> None:
    precision, residual, mask = fit_inputs()
    weight = weights.METHODS[name](precision, 0 * residual, mask, GEOMETRY)
    assert np.median(weight[mask]) == pytest.approx(1, abs=0.01)
    laws.assert_close(weights.METHODS[name](4096 * precision, 0 * residual, mask, GEOMETRY), weight, 1e-6)
    assert not weight[~mask].any()
    assert weight.min() >= 0


def test_reliability_follows_precision_up_to_a_limit_and_falls_with_the_residual() -> None:
    precision, residual = np.full(GEOMETRY.shape, 40, np.float32), np.zeros(GEOMETRY.shape, np.float32)
    half, bright, misfit, dark = (11, 14, 13), (12, 14, 13), (13, 14, 13), (9, 14, 13)
    precision[half], precision[bright], precision[dark] = 20, 4000, 0
    residual[misfit] = 0.15
    weight = weights.reliability(precision, residual, HEAD.mask, GEOMETRY, residual_limit=0.15, largest=2.0)
    assert weight[half] == pytest.approx(0.5)
    assert weight[bright] == pytest.approx(2.0)
    assert weight[misfit] == pytest.approx(0.5)
    assert weight[dark] == 0
    assert weight[11, 15, 13] == pytest.approx(1.0)


def test_no_precision_anywhere_is_no_weight_anywhere() -> None:
    weight = weights.reliability(0 * EVEN, 0 * EVEN, HEAD.mask, GEOMETRY)
    assert not weight.any()


def test_the_rim_only_takes_weight_and_only_near_the_surface() -> None:
    field, local, mask, weight = rim_inputs()
    got = weights.robust_rim(field, local, mask, GEOMETRY, weight)
    assert (got <= weight * (1 + 1e-6)).all()
    deep = mask & (max(4.0, 2.01 * max(GEOMETRY.voxel_mm)) < DEPTH)
    assert deep.sum() > 1000
    assert np.array_equal(got[deep], weight[deep])
    outermost = mask & (1.01 * max(GEOMETRY.voxel_mm) >= DEPTH)
    assert (got[outermost] <= 0.1001 * weight[outermost]).all()


def test_without_field_the_rim_loses_by_depth_alone() -> None:
    """No field, no doubt: a local field whose median is zero must not count as far from it."""
    got = weights.robust_rim(0 * EVEN, 0 * EVEN, HEAD.mask, GEOMETRY, EVEN)
    layer = max(GEOMETRY.voxel_mm)
    assert got[HEAD.mask & (1.01 * layer >= DEPTH)] == pytest.approx(0.1)
    assert got[HEAD.mask & (1.01 * layer < DEPTH) & (2.01 * layer >= DEPTH)] == pytest.approx(0.5)
    assert got[HEAD.mask & (2.01 * layer < DEPTH)] == pytest.approx(1.0)


def test_steep_and_implausible_voxels_at_the_rim_lose_their_weight() -> None:
    rim = HEAD.mask & (DEPTH <= 3.0)
    one = tuple(int(i) for i in np.argwhere(rim)[len(np.argwhere(rim)) // 2])
    spike = 0 * EVEN
    spike[one] = 0.5
    calm = weights.robust_rim(0 * EVEN, 0 * EVEN, HEAD.mask, GEOMETRY, EVEN)
    large = weights.robust_rim(0 * EVEN, spike, HEAD.mask, GEOMETRY, EVEN)
    steep = weights.robust_rim(spike, 0 * EVEN, HEAD.mask, GEOMETRY, EVEN)
    assert large[one] < 0.01 * calm[one]
    assert steep[one] < 0.2 * calm[one]
    assert np.count_nonzero(large != calm) == 1
    assert 1 < np.count_nonzero(steep != calm) <= 7  # it and its neighbours


def test_a_wrapped_around_neighbour_is_no_slope() -> None:
    """Opposite faces of the volume are no neighbours."""
    mask = np.ones(GEOMETRY.shape, bool)
    ramp = (phantoms.offsets(GEOMETRY, (0, 0, 0))[1] * 0.01).astype(np.float32)
    weight = np.ones(GEOMETRY.shape, np.float32)
    got = weights.robust_rim(ramp, 0 * ramp, mask, GEOMETRY, weight, local_limit_ppm=1e9)
    expected = np.where(depth_mm(mask, GEOMETRY) <= 2.02, 0.1, np.where(depth_mm(mask, GEOMETRY) <= 4.02, 0.5, 1.0))
    near = depth_mm(mask, GEOMETRY) < 4.0
    expected = expected / np.where(near, 1 + (0.01 / 0.05) ** 2, 1)
    assert got == pytest.approx(expected, rel=1e-3)


def test_trusting_all_changes_nothing() -> None:
    field, local, mask, weight = rim_inputs()
    assert np.array_equal(weights.RIM_METHODS["none"](field, local, mask, GEOMETRY, weight), weight)
