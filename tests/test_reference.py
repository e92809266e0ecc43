"""References: what zero means, and when it cannot be had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import reference
from qsm_edge.errors import InputRefused
from tests import laws, phantoms
from tests.conftest import Flavour

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
CSF_OPTIONS = dict(depth_limit_mm=5.0, smallest_ml=0.3)
VENTRICLE = np.zeros(GEOMETRY.shape, bool)
VENTRICLE[8:14, 12:18, 10:17] = True


def r2star() -> np.ndarray:
    """Slow in the ventricle, in a single voxel deep in tissue, and in CSF over the surface; fast elsewhere."""
    rate = np.full(GEOMETRY.shape, 22, np.float32)
    rate[VENTRICLE] = 2
    rate[15, 20, 13] = 2
    rate[HEAD.depth_mm() < 4] = 3
    return rate


def chi() -> np.ndarray:
    values = HEAD.chi_ppm + 0.3 * HEAD.mask
    values[VENTRICLE] = 0.25 + 0.01 * np.random.default_rng(1).standard_normal(int(VENTRICLE.sum()))
    return values.astype(np.float32)


def stage(name: str) -> laws.Stage:
    options: dict[str, Any] = CSF_OPTIONS if name == "csf" else {}

    def run(arrays: tuple[Any, ...], geometry: phantoms.Geometry) -> tuple[Any, ...]:
        values, mask, rate = arrays
        return laws.parts(reference.METHODS[name](values, mask, geometry, rate, **options))

    return run


INPUTS = (chi(), HEAD.mask, r2star())


@pytest.mark.parametrize("name", reference.METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    laws.devices(stage(name), INPUTS, GEOMETRY, xp, 1e-5)


@pytest.mark.parametrize("name", reference.METHODS)
def test_storage_order_place_and_sign_of_b0_do_not_matter(name: str) -> None:
    laws.orientation(stage(name), INPUTS, GEOMETRY, 1e-5)
    laws.translation(stage(name), INPUTS, GEOMETRY, 1e-5)
    laws.b0_sign(stage(name), INPUTS, GEOMETRY)


def test_unknown_options_are_refused() -> None:
    laws.refuses_unknown_options(reference.METHODS.values(), positional=4)


@pytest.mark.parametrize("name", reference.METHODS)
def test_a_reference_moves_all_voxels_alike_and_leaves_the_outside_at_zero(name: str) -> None:
    (got,) = stage(name)(INPUTS, GEOMETRY)
    moved = (INPUTS[0] - got)[HEAD.mask]
    assert np.ptp(moved) < 1e-6
    assert not got[~HEAD.mask].any()


@pytest.mark.parametrize("name", ["mean", "csf"])
def test_the_constant_that_came_in_is_forgotten(name: str) -> None:
    raised = np.where(HEAD.mask, INPUTS[0] + np.float32(4.0), 0).astype(np.float32)
    laws.assert_close(stage(name)((raised, *INPUTS[1:]), GEOMETRY)[0], stage(name)(INPUTS, GEOMETRY)[0], 1e-5)


def test_the_mean_is_zero_without_needing_decay_rates() -> None:
    got = reference.mean(chi(), HEAD.mask, GEOMETRY, None)
    assert got[HEAD.mask].mean() == pytest.approx(0, abs=1e-6)


def test_csf_is_the_ventricle_and_neither_specks_nor_the_surface() -> None:
    got = reference.csf(chi(), HEAD.mask, GEOMETRY, r2star(), depth_limit_mm=5.0, smallest_ml=0.3)
    assert (chi() - got)[HEAD.mask] == pytest.approx(0.25, abs=1e-3)


def test_a_thread_of_slow_voxels_is_noise_however_long() -> None:
    rate, values = r2star(), chi()
    rate[6, 10:21, 13], values[6, 10:21, 13] = 2, 9.0  # larger than the smallest piece that counts
    got = reference.csf(values, HEAD.mask, GEOMETRY, rate, depth_limit_mm=5.0, smallest_ml=0.03)
    assert (values - got)[HEAD.mask] == pytest.approx(0.25, abs=1e-3)


def test_none_is_none() -> None:
    assert np.array_equal(reference.none(chi(), HEAD.mask, GEOMETRY, None), chi())


def test_csf_is_refused_with_one_echo_and_without_a_ventricle() -> None:
    with pytest.raises(InputRefused) as refused:
        reference.csf(chi(), HEAD.mask, GEOMETRY, None)
    assert refused.value.code == "bad_call"
    solid = np.full(GEOMETRY.shape, 22, np.float32)
    for rate, smallest in ((solid, 0.3), (r2star(), 5.0)):
        with pytest.raises(InputRefused) as refused:
            reference.csf(chi(), HEAD.mask, GEOMETRY, rate, depth_limit_mm=5.0, smallest_ml=smallest)
        assert refused.value.code == "mask_invalid"
