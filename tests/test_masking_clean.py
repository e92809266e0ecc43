"""A network's continuous output made one solid piece."""

from __future__ import annotations

import numpy as np
import pytest
from network_factory import installed, model, refused

from qsm_edge import masking
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.network import load
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
    firm = np.zeros(soft.shape, bool)
    firm[28:, 12:20, 12:20] = True  # what the network is sure of: a bleed at the surface that is as dark as noise
    kept = masking.clean(soft, geometry, magnitude=magnitude, firm=firm)
    assert kept[28:30, 12:20, 12:20].all()
    assert np.array_equal(kept & ~firm, mask & ~firm)
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


@pytest.mark.parametrize(("gap_mm", "is_closed"), [(5.0, True), (13.0, False)])
def test_tissue_is_closed_by_the_cards_ball_on_the_native_grid(tmp_path, gap_mm, is_closed):
    """A network that says tissue leaves the closing to us: a cleft narrower than the ball is mask, a wider one is not."""
    geometry = Geometry.from_axes((40, 44, 50), (1.0, 1.0, 1.0))
    magnitude = np.zeros((1, 40, 44, 50), np.float32)
    magnitude[0, 6:34, 6:38, 6:44] = 900
    first = 22 - int(gap_mm / 2)
    magnitude[0, 12:34, first : first + int(gap_mm), 6:44] = 0
    content = model(channels=2)
    path = installed(tmp_path, content, output__closing_mm=4.0, output__guard=0.0)
    mask = masking.network(magnitude, np.zeros_like(magnitude), (0.01,), geometry, model=path, smooth_mm=0)
    assert mask[20, 22, 15:35].all() == is_closed
    assert mask[20, 12, 15:35].all()


def test_the_guard_keeps_the_closing_where_the_mask_may_be(tmp_path):
    """Both channels say the same here, so that a guard keeps just what is tissue: no cleft is closed."""
    geometry = Geometry.from_axes((40, 44, 50), (1.0, 1.0, 1.0))
    magnitude = np.zeros((1, 40, 44, 50), np.float32)
    magnitude[0, 6:34, 6:38, 6:44] = 900
    magnitude[0, 12:34, 18:25, 6:44] = 0
    path = installed(tmp_path, model(channels=2), output__closing_mm=4.0, output__guard=0.5)
    mask = masking.network(magnitude, np.zeros_like(magnitude), (0.01,), geometry, model=path, smooth_mm=0)
    assert not mask[25, 21, 15:35].any()


def test_a_card_with_a_closing_takes_two_channels_and_no_other(tmp_path):
    for channels, closing in ((1, 4.0), (2, None)):
        changes = {} if closing is None else {"output__closing_mm": closing}
        assert (
            refused(lambda c=channels, o=changes: load(installed(tmp_path, model(channels=c), **o))) == "model_foreign"
        )
    assert refused(lambda: load(installed(tmp_path, model(channels=2), output__closing_mm=-1.0))) == "model_card"
