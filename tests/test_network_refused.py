"""What a network file and its card must not be: each is refused with its reason, and never run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qsm_edge import network
from tests.network_factory import installed, model, refused, unary


def test_a_changed_byte_is_a_wrong_checksum(tmp_path):
    path = installed(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert refused(lambda: network.load(path)) == "model_checksum"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None}, {"version": None}, {"sha256": None}, {"opset": None}, {"licence": None}, {"licence": " "},
        {"sha256": "abc"}, {"name": 7}, {"opset": "new"}, {"extra": 1}, {"input__axis": "SPL"}, {"output__cut": 0.5},
        {"input__shape": None}, {"input__shape": [24, 20]}, {"input__shape": "large"}, {"input__shape": [24, 20, 10**6]},
        {"input__shape": [0, 20, 28]}, {"input__spacing_mm": None}, {"input__spacing_mm": [2, 2, 0]},
        {"input__axes": None}, {"input__axes": "SPP"}, {"input__axes": "XYZ"}, {"input__axes": "SP"}, {"input__axes": 3},
        {"input__normalisation": None}, {"input__normalisation": "max"}, {"input__centre": "nose"},
        {"output__kind": None}, {"output__kind": "magic"}, {"output__threshold": None}, {"output__threshold": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_card_that_does_not_say_what_it_must_is_refused(tmp_path, changes):
    path = installed(tmp_path, **changes)
    assert refused(lambda: network.load(path)) == "model_card"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"name = ", b"input = 3\noutput = 4"])
def test_a_card_that_is_no_card_is_refused(tmp_path, text):
    path = installed(tmp_path)
    path.with_suffix(".toml").write_bytes(text)
    assert refused(lambda: network.load(path)) == "model_card"


def test_no_card_and_no_file(tmp_path):
    path = installed(tmp_path)
    path.with_suffix(".toml").unlink()
    assert refused(lambda: network.load(path)) == "model_card"
    assert refused(lambda: network.load(tmp_path / "absent.onnx")) == "no_model"


FOREIGN = {
    "empty": b"",
    "text": b"not a network at all",
    "truncated": model()[:-7],
    "half": model()[:200],
    "other grid": model((24, 20, 30)),
    "batch of two": model(batch=2),
    "any batch": model(batch="n"),
    "double": model(element=TensorProto.DOUBLE),
    "two outputs": model(outputs=2),
    "other opset": model(opset=16),
    "operators of its own": model(domain="com.example"),
    "another rank": unary("Flatten"),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused_even_with_a_card_of_its_own(tmp_path, content):
    assert refused(lambda: network.load(installed(tmp_path, content))) == "model_foreign"


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = model()
    for length in range(0, len(whole), 5):
        assert refused(lambda n=length: network.load(installed(tmp_path, whole[:n]))) == "model_foreign"


@pytest.mark.parametrize("where", ["initializer", "constant", "branch"])
@pytest.mark.parametrize("location", ["../../etc/hostname", "weights.bin"])
def test_weights_kept_in_another_file_are_refused_wherever_they_hide(tmp_path, where, location):
    (tmp_path / "weights.bin").write_bytes(np.zeros(27, np.float32).tobytes())
    outside = TensorProto(name="kernel", data_type=TensorProto.FLOAT, dims=(1, 1, 3, 3, 3))
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "108")):
        outside.external_data.add(key=key, value=value)
    content = onnx.load_from_string(model())
    constant = helper.make_node("Constant", [], ["unused"], value=outside)
    if where == "initializer":
        content.graph.initializer[0].CopyFrom(outside)
    elif where == "constant":
        content.graph.node.insert(0, constant)
    else:
        made = helper.make_tensor_value_info("unused", TensorProto.FLOAT, (1, 1, 3, 3, 3))
        inner = helper.make_graph([constant], "inner", [], [made])
        yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, (), [True]))
        content.graph.node.insert(0, helper.make_node("If", ["yes"], ["picked"], then_branch=inner, else_branch=inner))
        content.graph.node.insert(0, yes)
    assert refused(lambda: network.load(installed(tmp_path, content.SerializeToString()))) == "model_foreign"
