"""The second look at the neighbourhood of the brain: what the second network sees, and what becomes of what it says."""

from __future__ import annotations

import array_api_strict
import numpy as np
import onnxruntime
import pytest

from qsm_edge import masking, network
from qsm_edge.errors import InputRefused
from qsm_edge.masking import fine
from qsm_edge.masking.grid import layout, restore
from qsm_edge.types import Geometry
from tests.network_factory import ball, dice, installed, installed_pair, model, passing, refused, series

SHAPE = (30, 34, 28)
RATE = 18.0


def geometry(voxel=(1.0, 1.0, 1.0), shape=SHAPE):
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, voxel[2]], [0, voxel[1], 0], [voxel[0], 0, 0]])
    return Geometry(shape, affine)


def echo(where, time_s=0.0, rate=RATE):
    """A brain of 1 that decays, in air of 0."""
    return (ball(where, 12.0) * np.exp(-rate * time_s)).astype(np.float32)


def logits(where, spacing=2.0, shape=(20, 20, 20)):
    """What a first network says of a ball of 12 mm, on a grid of its own."""
    coarse = layout(where, "SPL", (spacing,) * 3, shape)
    lines = [(np.arange(n) - (n - 1) / 2) * spacing for n in shape]
    far = np.sqrt(sum(a**2 for a in np.meshgrid(*lines, indexing="ij")))
    return (12.0 - far).astype(np.float32), coarse


def seen(where, late=None, first=None):
    brain, coarse = logits(where)
    first = echo(where) if first is None else first
    return fine.fine_input(first, late, where, brain, brain - 1, coarse)


def test_voxels_of_about_a_millimetre_are_seen_as_they_are():
    where = geometry()
    first = echo(where) * np.random.default_rng(0).uniform(0.5, 1.5, SHAPE).astype(np.float32)
    found = seen(where, first=first)
    part = first[found.box]
    ours = found.tensor[0, 0][tuple(slice(n) for n in part.shape)]
    level = part[found.tensor[0, 2][tuple(slice(n) for n in part.shape)] > 0]
    assert found.grid.shape == SHAPE
    assert np.allclose(ours * np.median(level), part, atol=1e-5)


@pytest.mark.parametrize(("voxel", "spacing"), [((0.5, 0.5, 2.0), (1.0, 1.0, 1.0)), ((1.2, 0.6, 1.0), (1.2, 1.0, 1.0))])
def test_other_voxels_are_brought_to_a_millimetre(voxel, spacing):
    shape = tuple(round(n / v) for n, v in zip(SHAPE, voxel, strict=True))
    found = seen(geometry(voxel, shape))
    assert found.grid.spacing_mm == spacing
    assert all(n % 2 == 0 for n in found.tensor.shape[2:])


def test_the_box_holds_the_brain_and_what_is_around_it():
    where = geometry(shape=(60, 64, 58))
    found = seen(where)
    around = 2 * (12 + fine._MARGIN_MM)
    assert all(around - 4 <= n <= around + 6 for n in found.tensor.shape[2:])
    assert (found.tensor[0, 2] > 0).sum() == pytest.approx((ball(where, 12.0) > 0.5).sum(), rel=0.05)


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_of_a_thin_slab_all_slices_are_seen(slices):
    where = geometry(shape=(slices, 34, 28))
    first = echo(where)
    found = seen(where, late=echo(where, 0.02), first=first)
    assert found.tensor.shape[2] == slices + slices % 2
    assert found.box[0] == slice(0, slices)
    assert fine.placed(found.tensor[0, 0], found, -9.0).shape == where.shape


@pytest.mark.parametrize("bound", fine.OWN_MM)
@pytest.mark.parametrize("other", [0.0, 2.0])
def test_the_last_digits_of_a_voxels_size_decide_nothing(bound, other):
    voxel = float(np.nextafter(bound, other))
    assert seen(geometry((voxel, 1.0, 1.0))).grid.spacing_mm[0] == pytest.approx(bound)
    assert seen(geometry(tuple(float(np.nextafter(v, 9.0)) for v in (3.2, 1.6, 1.0)), (9, 21, 28))) is not None


def test_an_island_far_away_does_not_make_the_box_larger():
    where = geometry(shape=(70, 70, 70))
    brain, _ = logits(where)
    coarse = layout(where, "SPL", (2.0,) * 3, (34, 34, 34))
    wide = np.pad(brain, 7, constant_values=-9.0)
    one = fine.fine_input(echo(where), None, where, wide, wide, coarse)
    wide[1:3, 1:3, 1:3] = 3.0
    two = fine.fine_input(echo(where), None, where, wide, wide, coarse)
    assert one.box == two.box
    wide[1:9, 1:9, 1:9] = 3.0  # a hemisphere of its own, say
    assert fine.fine_input(echo(where), None, where, wide, wide, coarse).box != one.box


def test_stored_in_another_orientation_it_is_the_same():
    where = geometry((1.0, 1.1, 1.2))
    first, late = echo(where), echo(where, 0.02)
    first[3:9, 5:9, 4:8] += 0.3
    brain, coarse = logits(where)
    turned = where.affine_lps[:, [2, 0, 1, 3]].copy()
    turned[:3, 3] += turned[:3, 0] * (SHAPE[2] - 1)
    turned[:3, 0] *= -1
    other = Geometry((SHAPE[2], SHAPE[0], SHAPE[1]), turned)
    stored = [np.ascontiguousarray(v.transpose(2, 0, 1)[::-1]) for v in (first, late)]
    one = fine.fine_input(first, late, where, brain, brain, coarse)
    two = fine.fine_input(*stored, other, brain, brain, layout(other, "SPL", (2.0,) * 3, coarse.shape))
    assert np.allclose(one.tensor, two.tensor, atol=1e-5)


@pytest.mark.parametrize("gap_s", [0.004, 0.012, 0.03])
@pytest.mark.parametrize("gain", [1.0, 300.0])
def test_decay_tells_tissue_by_its_rate_whatever_the_gap_and_the_gain(gap_s, gain):
    where = geometry()
    slow = np.s_[13:17, 15:19, 12:16]
    rates = np.full(SHAPE, RATE)
    rates[slow] = 3.0
    first = gain * echo(where)
    found = seen(where, late=first * np.exp(-rates * gap_s).astype(np.float32), first=first)
    fall = np.zeros(SHAPE, np.float32)
    fall[found.box] = found.tensor[0, 1][tuple(slice(b.stop - b.start) for b in found.box)]
    assert fall[slow] == pytest.approx(np.tanh(3.0 / RATE / 2), abs=0.01)
    assert fall[10, 17, 14] == pytest.approx(np.tanh(0.5), abs=0.01)
    assert fall[0, 0, 0] == 0


def test_without_a_late_echo_or_with_one_that_is_too_early_there_is_no_decay():
    where = geometry()
    assert not seen(where).tensor[0, 1].any()
    assert not seen(where, late=echo(where, 0.001)).tensor[0, 1].any()


def test_the_late_echo_is_the_darkest_that_has_enough_signal_left():
    where = geometry((1.0, 1.3, 0.8))
    brain, coarse = logits(where)
    echoes = np.stack([echo(where, t) for t in (0.0, 0.02, 0.04, 0.08)])
    assert np.array_equal(fine.late_echo(echoes, echoes[0], brain, coarse), echoes[2])
    assert fine.late_echo(echoes[:1], echoes[0], brain, coarse) is None
    assert fine.late_echo(echoes[[0, 3]], echoes[0], brain, coarse) is None
    assert fine.late_echo(echoes, echoes[0], np.full_like(brain, -1.0), coarse) is None


def test_the_late_echo_is_found_where_a_voxel_is_not_finite_and_on_another_device():
    where = geometry()
    brain, coarse = logits(where)
    echoes = np.stack([echo(where, t) for t in (0.0, 0.02)])
    spoilt = echoes.copy()
    spoilt[1, 14:16, 16:18, 13:15] = np.nan
    assert np.array_equal(fine.late_echo(spoilt, echoes[0], brain, coarse), spoilt[1], equal_nan=True)
    device = array_api_strict.Device("device1")
    elsewhere = array_api_strict.asarray(echoes, device=device)
    assert np.array_equal(fine.late_echo(elsewhere, echoes[0], brain, coarse), echoes[1])


def test_the_late_echo_is_chosen_in_the_brain_wherever_that_lies():
    where = geometry(shape=(60, 34, 28))
    brain, _ = logits(where)
    coarse = layout(where, "SPL", (2.0,) * 3, brain.shape, (14.0, 0.0, 0.0))
    far = np.sqrt(
        sum(a**2 for a in np.meshgrid(np.arange(60) - 43.5, np.arange(34) - 16.5, np.arange(28) - 13.5, indexing="ij"))
    )
    echoes = np.stack([np.where(far < 12, level, 0.9).astype(np.float32) for level in (1.0, 0.5)])
    assert np.array_equal(fine.late_echo(echoes, echoes[0], brain, coarse), echoes[1])


def test_no_brain_or_no_signal_is_nothing_to_look_at():
    where = geometry()
    brain, coarse = logits(where)
    assert fine.fine_input(echo(where), None, where, np.full_like(brain, -5), brain, coarse) is None
    assert fine.fine_input(np.zeros(SHAPE, np.float32), None, where, brain, brain, coarse) is None


@pytest.mark.parametrize(
    ("voxel", "looks"),
    [((3.0, 1.0, 1.0), True), ((3.0, 1.5, 1.0), True), ((3.0, 1.7, 1.7), False), ((4.0, 1.0, 1.0), False)],
)
def test_coarse_voxels_are_not_looked_at_again(voxel, looks):
    shape = tuple(round(n / v) for n, v in zip(SHAPE, voxel, strict=True))
    assert (seen(geometry(voxel, shape)) is not None) == looks


def test_what_is_placed_lies_where_it_was_seen():
    where = geometry(shape=(50, 52, 46))
    found = seen(where)
    back = fine.placed(found.tensor[0, 2], found, -9.0)
    assert back.shape == where.shape
    brain, coarse = logits(where)
    assert np.array_equal(back > 0, restore(brain, coarse, where, beyond=-9.0) > 0)
    assert back[0, 0, 0] == -9.0


# ---- two networks ----------------------------------------------------------------------------------------------------


def test_a_second_network_that_agrees_changes_nothing(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = installed(tmp_path / "one", model(channels=2), output__closing_mm=4.0, output__guard=0.1)
    pair = installed_pair(tmp_path / "two")
    masks = [masking.network(*series(), model=path) for path in (alone, pair)]
    assert dice(*masks) > 0.985


def test_the_second_network_has_the_last_word(tmp_path):
    sizes = []
    for shift in (-3.0, 0.0, 3.0):
        folder = tmp_path / str(shift)
        folder.mkdir()
        path = installed_pair(folder, passing(shift=shift))
        sizes.append(int(masking.network(*series(), model=path).sum()))
    assert sizes[0] < sizes[1] < sizes[2]


def test_later_echoes_reach_the_second_network_alone(tmp_path):
    magnitude, phase, _, where = series()
    late = magnitude * np.float32(0.6)
    late[:, : late.shape[1] * 2 // 5] *= 0.5
    both = (np.concatenate([magnitude, late]), np.concatenate([phase, phase]), (0.005, 0.02), where)
    (tmp_path / "decay").mkdir()
    (tmp_path / "plain").mkdir()
    plain = installed(tmp_path / "plain", model(channels=2), output__closing_mm=4.0)
    decay = installed_pair(tmp_path / "decay", passing(decay=-10.0))
    assert np.array_equal(*(masking.network(*given, model=plain) for given in (both, series())))
    one, two = (masking.network(*given, model=decay) for given in (both, series()))
    assert dice(one, two) < 0.9


def test_tissue_may_be_cut_lower_where_it_is_dark(tmp_path):
    magnitude, phase, times, where = series()
    dark = np.zeros(where.shape, bool)
    dark[:, :, :14] = True
    magnitude = np.where(dark, 0.8 * magnitude, magnitude).astype(np.float32)
    even = installed_pair(tmp_path, fine__threshold=0.9999)  # no logit is that far from the edge
    with pytest.raises(InputRefused) as caught:
        masking.network(magnitude, phase, times, where, model=even)
    assert caught.value.code == "mask_empty"
    lower = installed_pair(tmp_path, fine__threshold=0.9999, fine__dark=0.9, fine__dark_threshold=0.3)
    found = masking.network(magnitude, phase, times, where, model=lower)
    inside = ball(where) > 0.5
    assert found[dark & inside].mean() > 0.8
    assert found[~dark & inside].mean() < 0.2


class FailingOnTwo:
    """A session that says that it runs on CUDA; that of a second network, of four inputs, fails when it does."""

    real = onnxruntime.InferenceSession

    def __init__(self, content, options, providers):
        self.first = providers[0]
        self.session = FailingOnTwo.real(content, options, providers=[network.CPU])

    def __getattr__(self, name):
        return getattr(self.session, name)

    def get_providers(self):
        return [self.first, network.CPU]

    def run(self, *given):
        if self.first != network.CPU and self.session.get_inputs()[0].shape[1] == 4:
            raise RuntimeError("CUDA out of memory")
        return self.session.run(*given)


def test_a_note_tells_where_the_second_network_alone_had_to_leave_the_accelerator(tmp_path, monkeypatch):
    path = installed_pair(tmp_path)
    expected = masking.network(*series(), model=path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", network.CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FailingOnTwo)
    notes = []
    assert np.array_equal(masking.network(*series(), model=path, on_note=notes.append), expected)
    assert [note.code for note in notes] == ["network_fallback"]


def test_its_figures_stand_in_the_card(tmp_path):
    loaded = network.load(installed_pair(tmp_path, fine__threshold=0.4, fine__guard=0.2, fine__dark=0.5))
    card = loaded.fine.card
    assert (card.threshold, card.guard, card.shape, card.inputs, card.channels) == (0.4, 0.2, None, 4, 2)
    assert (card.dark, card.dark_threshold) == (0.5, 0.4)
    assert network.load(installed(tmp_path)).fine is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fine__file": "elsewhere.onnx"}, "no_model"),
        ({"fine__sha256": "0" * 64}, "model_checksum"),
        ({"fine__file": "../tiny-fine.onnx"}, "model_card"),
        ({"fine__file": "tiny-fine.bin"}, "model_card"),
        ({"fine__sha256": "short"}, "model_card"),
        ({"fine__threshold": 1.0}, "model_card"),
        ({"fine__guard": -0.1}, "model_card"),
        ({"fine__dark": 1.5}, "model_card"),
        ({"fine__dark": 0.5, "fine__dark_threshold": 0.6}, "model_card"),
        ({"fine__spacing": 1.0}, "model_card"),
        ({"fine__file": None}, "model_card"),
        ({"output__closing_mm": None, "output__guard": None}, "model_card"),
        ({"output__kind": "probability"}, "model_card"),
    ],
)
def test_a_second_network_that_is_not_what_the_card_says_is_refused(tmp_path, changes, code):
    assert refused(lambda: network.load(installed_pair(tmp_path, **changes))) == code


@pytest.mark.parametrize("content", [passing(inputs=3), passing(outputs=1), model(channels=2), b"no network"])
def test_a_second_network_of_another_shape_is_refused(tmp_path, content):
    assert refused(lambda: network.load(installed_pair(tmp_path, content))) == "model_foreign"
