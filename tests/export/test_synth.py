"""Synthetic heads: the definition of the mask, physics, determinism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage as ndi

from export.anatomy import BRAIN, CODE, FIRST_LESION, OUTSIDE, closed, codes, describe
from export.data import CARD, Source, made
from export.procedural import procedural
from export.synth import sample
from export.world import Protocol, random_protocol

QUICK = Protocol((0.005,), 3.0, (3.0, 3.0, 3.0), 0.01, (8.0, 0.0, 0.0), None)


@pytest.fixture(scope="module")
def head():
    return procedural(1)


def test_the_mask_is_solid_one_piece_and_holds_no_foreign_tissue(head):
    assert ndi.label(head.hull)[1] == 1
    assert np.array_equal(ndi.binary_fill_holes(head.hull), head.hull)
    assert not (head.hull & codes(*OUTSIDE)[head.index]).any()
    brain = codes(*BRAIN)[head.index]
    assert (head.hull & brain).sum() > 0.995 * brain.sum()
    assert 1.0 < head.hull.sum() / brain.sum() < 1.2, "the sulci are in, the CSF around the brain is not"


def test_closing_bridges_what_is_narrower_than_the_ball_and_nothing_else():
    block = np.zeros((40, 40, 40), bool)
    block[8:32, 8:32, 8:32] = True
    block[8:20, 19:23, 8:32] = False  # a cleft of 4 voxels
    block[8:20, 8:32, 30:32] = False
    assert closed(block, 1.0)[12:20, 19:23, 12:28].all()
    assert not closed(block, 1.0)[:7].any()
    wide = block.copy()
    wide[8:20, 14:26, 8:32] = False  # one of 12
    assert not closed(wide, 1.0)[8:12, 18:22, 12:28].any()


def test_dural_sinuses_are_out_near_the_skull_alone():
    index = np.full((60, 60, 60), CODE["soft"], np.uint8)
    index[6:54, 6:54, 6:54] = CODE["bone"]
    index[10:50, 10:50, 10:50] = CODE["grey"]
    index[10:13, 28:32, 10:50] = CODE["sinus"]
    index[28:32, 28:32, 10:50] = CODE["sinus"]
    found = describe("block", index, 1.0)
    assert not found.hull[10:12, 29:31, 20:40].any()
    assert found.hull[29:31, 29:31, 20:40].all()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(head):
    one, same, other = (sample([head], seed, QUICK) for seed in (5, 5, 6))
    assert np.array_equal(one.magnitude, same.magnitude)
    assert np.array_equal(one.mask, same.mask)
    assert one.magnitude.shape != other.magnitude.shape or not np.array_equal(one.magnitude, other.magnitude)


def test_lesions_stay_brain_and_some_touch_the_surface(head):
    held, touching = 0, 0
    for seed in range(14):
        one = sample([head], seed, QUICK)
        core = one.lesion > 0.9
        if core.sum() < 30:
            continue
        held += 1
        inside = one.mask > 0.5
        assert (inside & core).sum() > 0.9 * core.sum(), f"seed {seed}"
        touching += bool((ndi.binary_dilation(core) & ~inside).any())
    assert held >= 5
    assert touching >= 2


def test_later_echoes_and_thicker_voxels_lose_signal_where_the_field_varies(head):
    te = (0.004, 0.02)
    thin = sample([head], 3, replace(QUICK, te_s=te, noise=1e-4), plain=True)
    thick = sample([head], 3, replace(QUICK, te_s=te, noise=1e-4, voxel_mm=(5.0, 3.0, 3.0)), plain=True)
    assert thin.magnitude.shape[0] == 2
    inside = thin.mask > 0.99
    assert (thin.magnitude[1][inside].mean() / thin.magnitude[0][inside].mean()) < 0.85
    dropped = [float((s.magnitude[1] < 0.3 * s.magnitude[0])[s.mask > 0.99].mean()) for s in (thin, thick)]
    assert 0 < dropped[0] < dropped[1]


def test_noise_has_the_deviation_that_the_protocol_says(head):
    one = sample([head], 4, replace(QUICK, noise=0.05), plain=True)
    corner = one.magnitude[0][-4:, :6, :6]  # above the head: air
    assert corner.mean() / 0.05 == pytest.approx(np.sqrt(np.pi / 2), rel=0.15)


def test_protocols_are_as_wide_as_they_are_meant_to_be():
    rng = np.random.default_rng(0)
    many = [random_protocol(rng) for _ in range(400)]
    assert {p.b0_tesla for p in many} == {1.5, 3.0, 7.0}
    assert min(p.te_s[0] for p in many) < 0.004
    assert max(p.te_s[0] for p in many) > 0.035
    assert min(min(p.voxel_mm) for p in many) < 0.7
    assert max(max(p.voxel_mm) for p in many) > 2.9
    assert 0.1 < np.mean([p.slab_mm is not None and p.slab_mm[1] - p.slab_mm[0] < 120 for p in many]) < 0.3


def test_a_sample_on_the_networks_grid_is_what_the_runtime_prepares(head):
    one = sample([head], 7, QUICK)
    pair = made(one)
    assert pair.tensor.shape == pair.mask.shape == CARD.shape
    assert abs(pair.mask.sum() / 255 * 0.008 - one.mask.sum() * 0.027) < 0.03 * one.mask.sum() * 0.027
    inside = pair.mask > 250
    assert pair.tensor[inside].mean() > 3 * pair.tensor[pair.mask == 0].mean()


def test_samples_are_kept_and_heads_15_and_16_never_train(tmp_path):
    source = Source(None, "train", tmp_path)
    first, again = source.pair(0), Source(None, "train", tmp_path).pair(0)
    assert np.array_equal(first.tensor, again.tensor)
    for name in ("head_01.nii.gz", "head_15.nii.gz", "head_16.nii.gz"):
        (tmp_path / name).touch()
    assert len(Source(tmp_path, "train", tmp_path)._load) == 1
    assert len(Source(tmp_path, "develop", tmp_path)._load) == 2
    with pytest.raises(FileNotFoundError, match="no label maps"):
        Source(tmp_path / "empty", "train", tmp_path)


def test_lesion_codes_do_not_collide():
    assert max(CODE.values()) == FIRST_LESION - 1
