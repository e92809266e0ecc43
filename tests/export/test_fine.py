"""A few steps of the second network on procedural heads, exported beside a first one and run by the runtime."""

from __future__ import annotations

import csv
from argparse import Namespace

import numpy as np
import onnx
import pytest
import torch

from export import fine, to_onnx, train
from export.model import INPUTS, UNIT, FineNet
from export.procedural import procedural
from qsm_edge.network import default_model, load
from tests.network_factory import model

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 8
FEW = ["--steps", str(STEPS), "--samples", "2", "--pool", "1", "--develop", "1", "--window", "24", "--log-every", "1e9"]
FEW += ["--width", "8", "--blocks", "1"]


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Heads that are made quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine, "SECOND_MM", 1.5)
        yield


@pytest.fixture(scope="module")
def work(coarse, tmp_path_factory):
    """A run, and one of the first network to export with it."""
    folder = tmp_path_factory.mktemp("work")
    quick = ["--steps", "1", "--crop", "48", "48", "48", "--workers", "0", "--develop", "1", "--size", "small"]
    train.main(["--name", "first", "--work", str(folder), *quick])
    fine.main(["--name", "second", "--work", str(folder), *FEW])
    return folder


def test_a_run_leaves_its_curve_and_its_weights(work):
    with (work / "runs" / "second" / "curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    state = torch.load(work / "runs" / "second" / "last.pt", weights_only=True)
    assert rows[-1]["step"] == str(STEPS) == str(state["step"])
    assert 0 < float(rows[-1]["dice"]) < 1
    FineNet(state["width"], state["blocks"]).load_state_dict(state["average"])


def test_before_the_first_step_it_says_what_the_first_network_says():
    x = torch.rand(1, INPUTS, 12, 8, 10)
    assert torch.equal(FineNet()(x), UNIT * x[:, 2:4])


def test_any_box_gives_the_same(work):
    """Of a box cut smaller, what is further from its ends than the network sees is what it was."""
    state = torch.load(work / "runs" / "second" / "last.pt", weights_only=True)
    network = FineNet(state["width"], state["blocks"]).eval()
    network.load_state_dict(state["average"])
    torch.nn.init.normal_(network.out.weight)
    x = torch.rand(1, INPUTS, 40, 44, 36)
    with torch.no_grad():
        whole, part = network(x), network(x[..., 4:, 2:, 6:])
    assert torch.allclose(whole[..., 20:32, 20:36, 20:28], part[..., 16:28, 18:34, 14:22], atol=1e-4)


def test_a_window_is_what_a_head_of_another_day_gives(work):
    volumes = fine.read(fine.place(work, "train", 0))
    drawn = [fine.window(volumes, 24, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    for one, other in zip(drawn[0], drawn[1], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(drawn[0][0], drawn[2][0])
    for x, target, weight in drawn:
        assert (x.shape, target.shape, weight.shape) == ((4, 24, 24, 24), (2, 24, 24, 24), (1, 24, 24, 24))
        assert 0 <= target.min() <= target.max() <= 1
        assert weight.min() >= 0


def test_a_slab_thinner_than_the_window_is_filled_up_and_does_not_count():
    volumes = [torch.rand(INPUTS, 30, 30, 10), *(torch.randint(0, 255, (30, 30, 10), dtype=torch.uint8),) * 4]
    x, _, weight = fine.window(volumes, 24, np.random.default_rng(0))
    assert x.shape == (4, 24, 24, 24)
    assert not weight[..., 10:].any()
    assert (weight[..., :10] >= 1).all()


def test_samples_follow_from_their_number():
    heads = [procedural(1)]
    first = load(default_model())
    one, two = (fine.made(heads, 5_000_001, first) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_where_there_is_nothing_to_compare_the_runtimes_do_not_agree(tmp_path):
    path = tmp_path / "tiny.onnx"
    path.write_bytes(model())
    assert not to_onnx.difference(torch.nn.Identity(), path, []) <= to_onnx.TOLERANCE


def test_exported_it_runs_beside_the_first_network(work, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "WORK", work)
    out = tmp_path / "mask.onnx"
    second = work / "runs" / "second" / "last.pt"
    cuts = ["--fine-threshold", "0.45", "--fine-guard", "0.25", "--fine-dark", "0.6", "0.4"]
    first = work / "runs" / "first" / "best.pt"
    to_onnx.main([str(first), str(out), "--samples", "1", "--fine", str(second), *cuts])
    loaded = load(out).fine
    assert (loaded.card.threshold, loaded.card.guard) == (0.45, 0.25)
    assert (loaded.card.dark, loaded.card.dark_threshold) == (0.6, 0.4)
    for shape in ((20, 24, 28), (10, 12, 14)):
        tensor = np.random.default_rng(0).random((1, INPUTS, *shape), dtype=np.float32)
        assert loaded.segment(tensor).shape == (1, 2, *shape)
    stripped = onnx.load(tmp_path / "mask-fine.onnx")
    del stripped.graph.initializer[:]
    assert b".py" not in stripped.SerializeToString(), "no trace of the machine that exported"
    monkeypatch.setattr(to_onnx, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="differ"):
        to_onnx.second(Namespace(out=out, fine=second, samples=1), to_onnx.Source(None, "develop", work))
    assert not (tmp_path / "mask-fine.onnx").exists()
