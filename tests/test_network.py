"""The door to onnxruntime: a made-up network goes from series to mask, on whatever runs."""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
import onnxruntime
import pytest

from qsm_edge import doctor, masking, network
from qsm_edge.errors import ModelRefused, UsageError
from qsm_edge.types import Geometry
from tests.network_factory import SHAPE, ball, dice, installed, model, refused, series, unary

CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(("axes", "shape"), [("SPL", SHAPE), ("PRS", (20, 28, 24)), ("LIA", (28, 24, 20))])
def test_a_network_finds_the_ball_whatever_the_orientation_of_the_slices_and_of_the_tensor(tmp_path, axes, shape):
    path = installed(tmp_path, model(shape), input__axes=axes, input__shape=list(shape))
    magnitude, phase, times, geometry = series()
    mask = masking.network(magnitude, phase, times, geometry, model=path)
    truth = ball(geometry) > 0.4
    assert dice(mask, truth) > 0.96
    affine = geometry.affine_lps[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (geometry.shape[2] - 1)
    affine[:3, 0] *= -1
    turned = Geometry((geometry.shape[2], geometry.shape[0], geometry.shape[1]), affine)
    stored = np.ascontiguousarray(magnitude.transpose(0, 3, 1, 2)[:, ::-1])
    other = masking.network(stored, np.zeros_like(stored), times, turned, model=path)
    assert np.array_equal(other[::-1].transpose(1, 2, 0), mask)


def test_logit_probability_and_distance_of_the_same_network_give_the_same_mask(tmp_path):
    masks = []
    for name, kind, squash in (("a", "logit", False), ("b", "probability", True), ("c", "signed_distance", False)):
        (tmp_path / name).mkdir()
        path = installed(tmp_path / name, model(squash=squash), output__kind=kind)
        masks.append(masking.network(*series(), model=path))
    assert np.array_equal(masks[0], masks[2])
    assert dice(masks[0], masks[1]) > 0.98


def test_a_higher_threshold_on_the_probability_gives_a_smaller_mask(tmp_path):
    sizes = []
    for threshold in (0.1, 0.5, 0.99):
        sizes.append(masking.network(*series(), model=installed(tmp_path, output__threshold=threshold)).sum())
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_the_first_echo_is_used_whatever_the_order(tmp_path):
    path = installed(tmp_path)
    magnitude, phase, _, geometry = series()
    late = np.zeros_like(magnitude)
    expected = masking.network(magnitude, phase, (0.01,), geometry, model=path)
    both = np.concatenate([late, magnitude]), np.concatenate([phase, phase])
    assert np.array_equal(masking.network(*both, (0.02, 0.01), geometry, model=path), expected)


def test_a_dark_hole_inside_stays_brain(tmp_path):
    magnitude, phase, times, geometry = series()
    magnitude[:, 12:18, 17:24, 15:22] = 0
    mask = masking.network(magnitude, phase, times, geometry, model=installed(tmp_path))
    assert mask[12:18, 17:24, 15:22].all()


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    magnitude, phase, _, geometry = series()
    with pytest.raises(UsageError) as caught:
        masking.network(magnitude, phase, (0.01, 0.02), geometry, model=installed(tmp_path))
    assert caught.value.code == "bad_call"


def test_without_a_model_the_reason_is_no_model(monkeypatch):
    monkeypatch.setattr(network, "default_model", lambda: None)
    assert refused(lambda: masking.network(*series())) == "no_model"


def test_the_default_model_is_the_one_that_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "default_model", lambda: installed(tmp_path))
    assert masking.network(*series()).any()
    monkeypatch.undo()
    found = network.default_model()
    assert found is None or (found.name == "qsmmask.onnx" and network.load(found).card.name)


# ---- the session -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_segment_is_the_formula_of_the_model_and_repeats_to_the_bit(tmp_path, threads):
    loaded = network.load(installed(tmp_path), threads=threads)
    tensor = np.random.default_rng(0).random((1, 1, *SHAPE), dtype=np.float32)
    out = loaded.segment(tensor)
    padded = np.pad(tensor[0, 0].astype(np.float64), 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    assert out.dtype == np.float32
    assert np.abs(out[0, 0] - 20 * (windows.mean(axis=(3, 4, 5)) - 0.4)).max() < 1e-4
    assert np.array_equal(out, loaded.segment(tensor))
    assert np.array_equal(out, network.load(installed(tmp_path), threads=threads).segment(tensor))
    assert loaded.provider == CPU
    assert loaded.notes == ()


def test_every_provider_that_is_here_says_what_the_cpu_says(tmp_path):
    path = installed(tmp_path)
    tensor = np.random.default_rng(1).random((1, 1, *SHAPE), dtype=np.float32)
    expected = network.load(path, providers="cpu").segment(tensor)
    usable = [name for name, spelled in network.PROVIDERS.items() if spelled in network.available_providers()]
    assert "cpu" in usable
    for name in usable:
        assert np.allclose(network.load(path, providers=name).segment(tensor), expected, atol=1e-2)


@pytest.mark.parametrize("wanted", ["tensorrt", "TensorrtExecutionProvider,CPUExecutionProvider", "tensorrt, cpu"])
def test_an_absent_provider_is_replaced_and_the_note_says_so(tmp_path, monkeypatch, wanted):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    loaded = network.load(installed(tmp_path), providers=wanted)
    assert loaded.provider == CPU
    assert [note.code for note in loaded.notes] == ["network_fallback"]
    assert "Tensorrt" in loaded.notes[0].text


class Pretender:
    """A session that says that it runs on CUDA, and fails when it does; a real one for the CPU."""

    real = onnxruntime.InferenceSession

    def __init__(self, content, options, providers):
        self.first = providers[0]
        self.session = Pretender.real(content, options, providers=[CPU])

    def __getattr__(self, name):
        return getattr(self.session, name)

    def get_providers(self):
        return [self.first, CPU]

    def run(self, *args):
        if self.first != CPU:
            raise RuntimeError("CUDA out of memory")
        return self.session.run(*args)


class Quiet(Pretender):
    """onnxruntime's own way: no CUDA libraries, no exception, a session on the CPU."""

    def get_providers(self):
        return [CPU]


class Broken(Pretender):
    def __init__(self, content, options, providers):
        if providers[0] != CPU:
            raise RuntimeError("no driver")
        super().__init__(content, options, providers)


@pytest.mark.parametrize("pretender", [Pretender, Quiet, Broken])
@pytest.mark.parametrize("providers", ["auto", "cuda"])
def test_an_accelerator_that_fails_is_replaced_by_the_cpu_and_the_note_reaches_the_caller(
    tmp_path, monkeypatch, pretender, providers
):
    path = installed(tmp_path)
    expected = masking.network(*series(), model=path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", pretender)
    notes = []
    mask = masking.network(*series(), model=path, providers=providers, on_note=notes.append)
    assert np.array_equal(mask, expected)
    assert [note.code for note in notes] == ["network_fallback"]
    assert "CUDA" in notes[0].text


@pytest.mark.parametrize("providers", ["warp", "", "cpu,warp", "auto,cpu"])
def test_a_provider_that_does_not_exist_is_a_mistake(tmp_path, providers):
    with pytest.raises(UsageError) as caught:
        network.load(installed(tmp_path), providers=providers)
    assert caught.value.code == "unknown_name"


def test_threads_below_one_are_a_mistake(tmp_path):
    with pytest.raises(UsageError) as caught:
        network.load(installed(tmp_path), threads=0)
    assert caught.value.code == "bad_value"


def test_the_wrong_input_is_refused_by_the_network_itself(tmp_path):
    loaded = network.load(installed(tmp_path))
    assert refused(lambda: loaded.segment(np.zeros((1, 1, 3, 3, 3), np.float32))) == "model_foreign"
    assert refused(lambda: loaded.segment(np.zeros((1, 1, *SHAPE), np.float64))) == "model_foreign"


def test_an_output_that_is_not_finite_is_refused(tmp_path):
    loaded = network.load(installed(tmp_path, unary("Log")))
    assert refused(lambda: loaded.segment(np.zeros((1, 1, *SHAPE), np.float32))) == "model_foreign"


def test_without_the_runtime_the_reason_names_the_extra(tmp_path, monkeypatch):
    path = installed(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelRefused) as caught:
        network.load(path)
    assert caught.value.code == "no_model"
    assert "qsm-edge[cpu]" in str(caught.value)
    assert network.available_providers() == ()


def test_the_doctor_sees_the_installed_wheels_and_rivals(monkeypatch):
    found = network.installed_runtimes()
    assert found
    assert all(metadata.version(name) == version for name, version in found.items())
    assert CPU in network.available_providers()
    errors, warnings = [], []
    doctor._runtimes(errors, warnings)
    assert (len(errors) > 0) == (len(found) > 1), "one wheel is no rival of itself"
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name.startswith("onnxruntime") else real(name))
    assert {"onnxruntime", "onnxruntime-gpu"} <= set(network.installed_runtimes())
    doctor._runtimes(errors, warnings)
    assert "overwrite each other" in errors[-1]
