"""A tiny mask network made by hand, with its card, and a ball for it to find."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from onnx import TensorProto, helper

from qsm_edge.errors import ModelRefused
from qsm_edge.types import Geometry

SHAPE = (24, 20, 28)
OPSET = helper.make_opsetid("", 17)


def model(shape=SHAPE, *, element=TensorProto.FLOAT, outputs=1, opset=17, batch=1, domain="", squash=False, channels=1):
    """A network that says 'brain' where the smoothed input is above 0.4: logits = 20 (mean3(x) - 0.4), or their sigmoid.

    `channels` of the output: all say the same.
    """
    weights = np.full(27 * channels, 20 / 27, np.float32)
    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, (channels, 1, 3, 3, 3), weights)
    bias = helper.make_tensor("bias", TensorProto.FLOAT, (channels,), [-8.0] * channels)
    grid, out = (batch, 1, *shape), (batch, channels, *shape)
    names = [f"soft{i}" for i in range(outputs)]
    first = [f"{name}_logit" for name in names] if squash else names
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], [name], pads=[1] * 6, domain=domain) for name in first
    ]
    nodes += [helper.make_node("Sigmoid", [a], [b]) for a, b in zip(first, names, strict=True) if squash]
    inputs = [helper.make_tensor_value_info("image", element, grid)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, out) for name in names]
    graph = helper.make_graph(nodes, "tiny", inputs, made, [kernel, bias])
    sets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=sets, ir_version=8).SerializeToString()


def passing(*, inputs=4, outputs=2, gain=4.0, shift=0.0, decay=0.0):
    """A second network, of any shape, that says what the first said: its last inputs times `gain`, plus `shift`, plus
    `decay` times its second input."""
    numbers = [("first", [inputs - outputs]), ("last", [inputs]), ("axis", [1]), ("one", [1]), ("two", [2])]
    factors = (("gain", gain), ("shift", shift), ("decay", decay))
    constants = [helper.make_tensor(name, TensorProto.INT64, (1,), values) for name, values in numbers]
    constants += [helper.make_tensor(name, TensorProto.FLOAT, (), [value]) for name, value in factors]
    nodes = [
        helper.make_node("Slice", ["image", "first", "last", "axis"], ["said"]),
        helper.make_node("Slice", ["image", "one", "two", "axis"], ["fall"]),
        helper.make_node("Mul", ["said", "gain"], ["scaled"]),
        helper.make_node("Mul", ["fall", "decay"], ["share"]),
        helper.make_node("Add", ["scaled", "share"], ["moved"]),
        helper.make_node("Add", ["moved", "shift"], ["soft"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, "z", "y", "x"))
        for name, channels in (("image", inputs), ("soft", outputs))
    ]
    graph = helper.make_graph(nodes, "passing", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[OPSET], ir_version=8).SerializeToString()


def installed_pair(folder, fine=None, **changes):
    """A first network of two outputs with a second one beside it, both named in its card; see `installed`."""
    fine = passing() if fine is None else fine
    (folder / "tiny-fine.onnx").write_bytes(fine)
    card = {
        "output__closing_mm": 4.0, "output__guard": 0.1, "fine__file": "tiny-fine.onnx",
        "fine__sha256": hashlib.sha256(fine).hexdigest(), "fine__threshold": 0.5, "fine__guard": 0.1,
    }  # fmt: skip
    return installed(folder, model(channels=2), **(card | changes))


def unary(*operators):
    """A network that applies ONNX operators of one input one after the other."""
    names = ["image", *(f"step{i}" for i in range(len(operators)))]
    nodes = [helper.make_node(op, [a], [b]) for op, a, b in zip(operators, names, names[1:], strict=False)]
    grid = (1, 1, *SHAPE)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, grid) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "unary", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[OPSET], ir_version=8).SerializeToString()


def toml(value):
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def installed(folder, content=None, **changes):
    """A model file with its card; `changes` replace or add lines of the card as `key` or `table__key`, None leaves one out."""
    content = model() if content is None else content
    path = folder / "tiny.onnx"
    path.write_bytes(content)
    card = {
        "name": "tiny", "version": "1", "sha256": hashlib.sha256(content).hexdigest(), "opset": 17, "licence": "Apache-2.0",
        "input__shape": list(SHAPE), "input__spacing_mm": [2.0, 2.0, 2.0], "input__axes": "SPL",
        "input__normalisation": "p99", "output__kind": "logit", "output__threshold": 0.5,
    }  # fmt: skip
    card |= changes
    lines = [f"{key} = {toml(value)}" for key, value in card.items() if value is not None and "__" not in key]
    for table in ("input", "output", "fine"):
        if table != "fine" or any(key.startswith("fine__") for key in card):
            lines.append(f"[{table}]")
        for key, value in card.items():
            if value is not None and key.startswith(f"{table}__"):
                lines.append(f"{key.split('__')[1]} = {toml(value)}")
    path.with_suffix(".toml").write_text("\n".join(lines), encoding="utf-8")
    return path


def ball(geometry, radius_mm=16.0):
    middle = [(n - 1) / 2 for n in geometry.shape]
    lines = [(np.arange(n) - c) * v for n, c, v in zip(geometry.shape, middle, geometry.voxel_mm, strict=True)]
    far = np.sqrt(sum(a**2 for a in np.meshgrid(*lines, indexing="ij")))
    return np.clip((radius_mm - far) / 2 + 0.5, 0, 1).astype(np.float32)


GEOMETRY = Geometry.from_axes((30, 41, 37), (1.5, 1.0, 1.2))


def series(geometry=GEOMETRY):
    magnitude = 1000 * ball(geometry)[None]
    return magnitude, np.zeros_like(magnitude), (0.01,), geometry


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def refused(action):
    with pytest.raises(ModelRefused) as caught:
        action()
    return caught.value.code
