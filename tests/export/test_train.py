"""Twenty steps on procedural heads, stopped and gone on with, then exported and run by the runtime."""

from __future__ import annotations

import csv
import tomllib

import numpy as np
import onnx
import pytest
import torch

from export import to_onnx, train
from export.anatomy import CLOSING_MM
from qsm_edge.errors import ModelRefused
from qsm_edge.network import load

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 20
COMMON = ["--steps", str(STEPS), "--crop", "48", "48", "48", "--workers", "0", "--develop", "2", "--size", "small"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run of twenty steps, and the same run stopped at ten and taken up again."""
    folder = tmp_path_factory.mktemp("work")
    every, warm = train.VALIDATE_EVERY, train.WARM_UP
    train.VALIDATE_EVERY, train.WARM_UP = 10, 2
    try:
        train.main(["--name", "whole", "--work", str(folder), *COMMON])
        train.main(["--name", "halves", "--work", str(folder), *COMMON, "--stop-at", "10"])
        train.main(["--name", "halves", "--work", str(folder), *COMMON])
    finally:
        train.VALIDATE_EVERY, train.WARM_UP = every, warm
    return folder


def curve(folder, name):
    with (folder / "runs" / name / "curve.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_that_was_stopped_goes_on_to_the_same_curve(work):
    whole, halves = curve(work, "whole"), curve(work, "halves")
    assert [row["step"] for row in whole] == [row["step"] for row in halves] == ["10", "20"]
    for one, other in zip(whole, halves, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=2e-3)
    assert (work / "runs" / "whole" / "curve.png").stat().st_size > 1000
    assert tomllib.loads((work / "runs" / "whole" / "config.toml").read_text(encoding="utf-8"))["seed"] == "1"


def test_training_lowers_the_loss(work):
    rows = curve(work, "whole")
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_exported_is_checked_and_runs(work, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(to_onnx, "WORK", work)
    out = tmp_path / "mask.onnx"
    best = work / "runs" / "whole" / "best.pt"
    to_onnx.main(
        [str(best), str(out), "--precision", precision, "--samples", "1", "--about", "training_data=procedural"]
    )
    network = load(out)
    assert network.card.opset == to_onnx.OPSET
    assert network.card.mirror
    tensor = np.random.default_rng(0).random((1, 1, *network.card.shape), dtype=np.float32)
    assert network.card.closing_mm == CLOSING_MM
    assert network.segment(tensor).shape == (1, 2, *network.card.shape)
    content = out.read_bytes()
    stripped = onnx.load(out)
    assert stripped.opset_import[0].version == to_onnx.OPSET
    del stripped.graph.initializer[:]  # among millions of bytes of weights any three letters turn up
    assert b".py" not in stripped.SerializeToString(), "no trace of the machine that exported"
    if precision == "float16":
        state = torch.load(best, weights_only=True)["average"]
        assert out.stat().st_size < 2.6 * sum(v.numel() for v in state.values())
    out.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelRefused) as caught:
        load(out)
    assert caught.value.code == "model_checksum"


def test_training_goes_on_from_what_ships(work, tmp_path, monkeypatch):
    """The weights of an exported file, which are folded and rounded, give a network that computes the same."""
    monkeypatch.setattr(to_onnx, "WORK", work)
    out = tmp_path / "mask.onnx"
    to_onnx.main([str(work / "runs" / "whole" / "best.pt"), str(out), "--samples", "1"])
    network = train.build("small").eval()
    network.load_state_dict(train.started_from(out, network))
    tensor = np.random.default_rng(0).random((1, 1, *load(out).card.shape), dtype=np.float32)
    with torch.no_grad():
        ours = network(torch.from_numpy(tensor)).numpy()
    theirs = load(out).segment(tensor)
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_an_export_that_differs_is_refused(work, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "WORK", work)
    monkeypatch.setattr(to_onnx, "TOLERANCE", -1.0)
    out = tmp_path / "mask.onnx"
    with pytest.raises(SystemExit, match="differ"):
        to_onnx.main([str(work / "runs" / "whole" / "best.pt"), str(out), "--samples", "1"])
    assert not out.exists()
