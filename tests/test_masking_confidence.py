"""Confidence of a network's mask: a sharp edge is thin, a blurred one as thick as it is blurred, and the mirror is asked."""

from __future__ import annotations

import numpy as np
import pytest
from network_factory import installed, series

from qsm_edge import masking, pipeline
from qsm_edge.masking.confidence import WIDEST_EDGE_MM, Confidence, agreement, edge_mm
from qsm_edge.types import GreSeries


def ramp(width_mm, spacing_mm=0.5):
    z = (np.arange(80) - 39.5) * spacing_mm
    return np.broadcast_to(np.clip(0.5 - z / width_mm, 0, 1)[:, None, None], (80, 8, 8))


@pytest.mark.parametrize("width", [4.0, 8.0, 16.0])
def test_the_edge_is_as_wide_as_it_is(width):
    assert edge_mm(ramp(width), (0.5, 1.0, 1.0)) == pytest.approx(width / 2, rel=0.1)


def test_no_surface_has_no_width_and_empty_masks_do_not_agree():
    assert edge_mm(np.zeros((5, 5, 5)), (1, 1, 1)) == 0
    assert agreement(np.zeros((5, 5, 5)), np.zeros((5, 5, 5)), 0.5) == 0


def test_agreement_is_dice():
    a, b = np.zeros((2, 10)), np.zeros((2, 10))
    a[0], b[0, 5:], b[1, 5:] = 1, 1, 1
    assert agreement(a, b, 0.5) == pytest.approx(0.5)


def test_low_confidence_is_told():
    assert Confidence(5.0).is_low
    assert Confidence(0.5, 0.8).is_low
    assert not Confidence(0.5, 0.99).is_low
    assert not Confidence(0.5).is_low


@pytest.mark.parametrize("mirror", [True, False])
def test_the_mirror_is_asked_where_the_card_says_so(tmp_path, mirror):
    path = installed(tmp_path, output__mirror=mirror)
    told, notes = [], []
    mask = masking.network(*series(), model=path, on_confidence=told.append, on_note=notes.append)
    assert mask.any()
    (sure,) = told
    assert (sure.agreement is not None) == mirror
    assert [n.code for n in notes] == (["mask_uncertain"] if sure.is_low else [])


def test_confidence_reaches_the_result_and_an_unsure_mask_asks_for_a_look(tmp_path):
    magnitude, phase, times, geometry = series()
    found = pipeline.reconstruct(
        GreSeries(magnitude, phase, times, 3.0, geometry),
        recipe="fast",
        mask="network",
        model=str(installed(tmp_path, output__mirror=True)),
    )
    assert found.quality.figures["mask_agreement"].value > 0.99
    assert found.quality.figures["mask_edge"].unit == "mm"
    wide = Confidence(WIDEST_EDGE_MM + 1)
    assert wide.is_low
    assert "mask_agreement" not in wide.figures()
