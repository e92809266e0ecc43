"""The door to onnxruntime: what a card promises is checked, and a made-up network goes from series to mask."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qsm_edge import masking, network
from qsm_edge.errors import InputRefused, ModelRefused
from qsm_edge.types import Geometry

SHAPE = (24, 20, 28)


def model(shape=SHAPE, *, element=TensorProto.FLOAT, outputs=1):
    """A network that says 'brain' where the smoothed input is above 0.4: logits = 20 (mean3(x) - 0.4)."""
    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, (1, 1, 3, 3, 3), np.full(27, 20 / 27, np.float32))
    bias = helper.make_tensor("bias", TensorProto.FLOAT, (1,), [-8.0])
    grid = (1, 1, *shape)
    names = [f"soft{i}" for i in range(outputs)]
    nodes = [helper.make_node("Conv", ["image", "kernel", "bias"], [name], pads=[1] * 6) for name in names]
    inputs = [helper.make_tensor_value_info("image", element, grid)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, grid) for name in names]
    graph = helper.make_graph(nodes, "tiny", inputs, made, [kernel, bias])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def installed(folder, content=None, **changes):
    """A model file with its card; `changes` replace lines of the card, None leaves one out."""
    content = model() if content is None else content
    path = folder / "tiny.onnx"
    path.write_bytes(content)
    card = {
        "name": '"tiny"', "version": '"1"', "sha256": f'"{hashlib.sha256(content).hexdigest()}"', "licence": '"Apache-2.0"',
        "opset": 17,
        "shape": list(SHAPE), "spacing_mm": [2.0, 2.0, 2.0], "axes": '"SPL"', "normalisation": '"p99"',
        "kind": '"logit"', "threshold": 0.5,
    }  # fmt: skip
    card |= changes
    lines = [f"{k} = {card[k]}" for k in ("name", "version", "sha256", "opset", "licence") if card[k] is not None]
    lines += [
        "[input]",
        *(f"{k} = {card[k]}" for k in ("shape", "spacing_mm", "axes", "normalisation") if card[k] is not None),
    ]
    lines += ["[output]", *(f"{k} = {card[k]}" for k in ("kind", "threshold") if card[k] is not None)]
    path.with_suffix(".toml").write_text("\n".join(lines), encoding="utf-8")
    return path


def ball(geometry, radius_mm=16.0):
    middle = [(n - 1) / 2 for n in geometry.shape]
    grids = np.meshgrid(
        *[(np.arange(n) - c) * v for n, c, v in zip(geometry.shape, middle, geometry.voxel_mm, strict=True)],
        indexing="ij",
    )
    far = np.sqrt(sum(g**2 for g in grids))
    return np.clip((radius_mm - far) / 2 + 0.5, 0, 1).astype(np.float32)


def series(geometry):
    magnitude = 1000 * ball(geometry)[None]
    return magnitude, np.zeros_like(magnitude), (0.01,), geometry


def test_a_network_finds_the_ball_whatever_the_orientation_of_the_slices(tmp_path):
    path = installed(tmp_path)
    geometry = Geometry.from_axes((30, 41, 37), (1.5, 1.0, 1.2))
    magnitude, phase, times, _ = series(geometry)
    mask = masking.network(magnitude, phase, times, geometry, model=str(path))
    truth = ball(geometry) > 0.4
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.96
    affine = geometry.affine_lps[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (geometry.shape[2] - 1)
    affine[:3, 0] *= -1
    turned = Geometry((geometry.shape[2], geometry.shape[0], geometry.shape[1]), affine)
    moved = np.ascontiguousarray(magnitude.transpose(0, 3, 1, 2)[:, ::-1])
    other = masking.network(moved, np.zeros_like(moved), times, turned, model=str(path))
    assert np.array_equal(other[::-1].transpose(1, 2, 0), mask)


def test_a_dark_hole_inside_stays_brain(tmp_path):
    path = installed(tmp_path)
    geometry = Geometry.from_axes((30, 41, 37), (1.5, 1.0, 1.2))
    magnitude, phase, times, _ = series(geometry)
    magnitude[:, 12:18, 17:24, 15:22] = 0
    mask = masking.network(magnitude, phase, times, geometry, model=str(path))
    assert mask[12:18, 17:24, 15:22].all()


def test_segment_is_the_formula_of_the_model_and_repeats_to_the_bit(tmp_path):
    loaded = network.load(installed(tmp_path))
    tensor = np.random.default_rng(0).random((1, 1, *SHAPE), dtype=np.float32)
    out = loaded.segment(tensor)
    padded = np.pad(tensor[0, 0], 1)
    inner = tensor[0, 0, 5, 6, 7]
    assert inner == padded[6, 7, 8]
    assert out[0, 0, 5, 6, 7] == pytest.approx(20 * (padded[5:8, 6:9, 7:10].mean() - 0.4), abs=1e-4)
    assert np.array_equal(out, loaded.segment(tensor))
    assert loaded.provider == "CPUExecutionProvider"
    assert not loaded.notes


def test_an_absent_provider_is_replaced_and_the_note_says_so(tmp_path):
    loaded = network.load(installed(tmp_path), providers="TensorrtExecutionProvider,CPUExecutionProvider")
    assert loaded.provider == "CPUExecutionProvider"
    assert [note.code for note in loaded.notes] == ["network_fallback"]


def refused(action):
    with pytest.raises(ModelRefused) as caught:
        action()
    return caught.value.code


def test_a_changed_byte_is_a_wrong_checksum(tmp_path):
    path = installed(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert refused(lambda: network.load(path)) == "model_checksum"


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": None},
        {"shape": None},
        {"shape": [24, 20]},
        {"shape": '"large"'},
        {"shape": [24, 20, 100000000]},
        {"axes": '"SPP"'},
        {"axes": '"XYZ"'},
        {"kind": '"magic"'},
        {"threshold": None},
        {"name": None},
    ],
)
def test_a_card_that_does_not_say_what_it_must_is_refused(tmp_path, changes):
    path = installed(tmp_path, **changes)
    assert refused(lambda: network.load(path)) == "model_card"


def test_no_card_no_file_no_model(tmp_path, monkeypatch):
    path = installed(tmp_path)
    path.with_suffix(".toml").unlink()
    assert refused(lambda: network.load(path)) == "model_card"
    assert refused(lambda: network.load(tmp_path / "absent.onnx")) == "no_model"
    monkeypatch.setattr(network, "default_model", lambda: None)
    assert refused(lambda: masking.network(*series(Geometry.from_axes((30, 41, 37))))) == "no_model"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a network at all",
        model()[:200],
        model((24, 20, 30)),
        model(element=TensorProto.DOUBLE),
        model(outputs=2),
    ],
    ids=["empty", "text", "truncated", "other grid", "double", "two outputs"],
)
def test_a_foreign_file_is_refused_even_with_a_card_of_its_own(tmp_path, content):
    path = installed(tmp_path, content)
    assert refused(lambda: network.load(path)) == "model_foreign"


def test_weights_kept_in_another_file_are_out_of_reach(tmp_path):
    content = onnx.load_from_string(model())
    tensor = content.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.raw_data = b""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../etc/hostname"), ("offset", "0"), ("length", "108")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    assert refused(lambda: network.load(installed(tmp_path, content.SerializeToString()))) == "model_foreign"


def test_the_wrong_input_is_refused_by_the_network_itself(tmp_path):
    loaded = network.load(installed(tmp_path))
    assert refused(lambda: loaded.segment(np.zeros((1, 1, 3, 3, 3), np.float32))) == "model_foreign"
    assert refused(lambda: loaded.segment(np.zeros((1, 1, *SHAPE), np.float64))) == "model_foreign"


def test_an_output_without_a_brain_is_an_empty_mask():
    geometry = Geometry.from_axes((12, 12, 12))
    with pytest.raises(InputRefused) as caught:
        masking.clean(np.zeros((12, 12, 12), np.float32), geometry)
    assert caught.value.code == "mask_empty"


def test_clean_keeps_one_solid_piece():
    geometry = Geometry.from_axes((40, 40, 40))
    soft = np.zeros((40, 40, 40), np.float32)
    soft[5:30, 5:30, 5:30] = 1
    soft[15:20, 15:20, 15:20] = 0
    soft[34:38, 34:38, 34:38] = 1
    mask = masking.clean(soft, geometry)
    assert mask[15:20, 15:20, 15:20].all()
    assert not mask[33:, 33:, 33:].any()


def test_the_doctor_sees_the_installed_runtime():
    found = network.installed_runtimes()
    assert found
    assert set(found) <= set(network.RUNTIMES)
    assert "CPUExecutionProvider" in network.available_providers()
