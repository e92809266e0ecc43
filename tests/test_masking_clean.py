"""A network's continuous output made one solid piece."""

from __future__ import annotations

import numpy as np
import pytest

from qsm_edge import masking
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.types import Geometry


def cube():
    geometry = Geometry.from_axes((40, 40, 40))
    soft = np.zeros((40, 40, 40), np.float32)
    soft[5:30, 5:30, 5:30] = 1
    return geometry, soft


def test_clean_keeps_one_solid_piece():
    geometry, soft = cube()
    soft[15:20, 15:20, 15:20] = 0
    soft[34:38, 34:38, 34:38] = 1
    mask = masking.clean(soft, geometry)
    assert mask[15:20, 15:20, 15:20].all()
    assert not mask[33:, 33:, 33:].any()


def test_smoothing_moves_no_flat_surface_and_takes_single_voxels_off():
    geometry, soft = cube()
    soft[30, 12, 12] = soft[31, 12, 12] = 1
    mask = masking.clean(soft, geometry, smooth_mm=1.2)
    assert np.array_equal(mask[10:25, 10:25, :].any(axis=(0, 1)), soft[12, 12] > 0)
    assert not mask[30:].any()


def test_the_edge_is_trimmed_where_signal_is_gone_but_no_bleed():
    geometry, soft = cube()
    magnitude = np.random.default_rng(0).rayleigh(5, soft.shape).astype(np.float32)
    magnitude[5:28, 5:30, 5:30] = 300  # the last two slices of the mask hold noise
    magnitude[10:14, 10:14, 10:14] = 0  # a bleed, deep
    magnitude[8:18, 8:18, 27:30] = 60  # dark tissue at the surface, above the noise
    mask = masking.clean(soft, geometry, magnitude=magnitude)
    assert mask[28:, 9:26, 9:26].mean() < 0.02
    assert mask[10:14, 10:14, 10:14].all()
    assert mask[8:18, 8:18, 27:29].all()
    hollow = np.where(np.indices(soft.shape)[0] > 14, 0, magnitude)  # a large dropout is not followed inside
    assert masking.clean(soft, geometry, magnitude=hollow)[20:26, 10:25, 10:25].all()


def test_an_output_without_a_brain_is_an_empty_mask():
    geometry, soft = cube()
    for nothing in (np.zeros_like(soft), np.full_like(soft, np.nan)):
        with pytest.raises(InputRefused) as caught:
            masking.clean(nothing, geometry)
        assert caught.value.code == "mask_empty"


def test_clean_refuses_what_does_not_fit():
    geometry, soft = cube()
    for action, code in (
        (lambda: masking.clean(soft[1:], geometry), "bad_call"),
        (lambda: masking.clean(soft, geometry, magnitude=soft[1:]), "bad_call"),
        (lambda: masking.clean(soft, geometry, smooth_mm=-1.0), "bad_value"),
    ):
        with pytest.raises(UsageError) as caught:
            action()
        assert caught.value.code == code
