"""What is said of the mask is what was done: which network, whose voxels, with which options."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from qsm_edge import masking, network
from qsm_edge.errors import ModelRefused, UsageError
from qsm_edge.pipeline import reconstruct
from qsm_edge.recipe import Recipe
from qsm_edge.stages import options_of
from qsm_edge.types import GreSeries, Result
from tests.network_factory import installed, series


def volume() -> GreSeries:
    magnitude, _, times, geometry = series()
    phase = np.random.default_rng(1).uniform(-3, 3, magnitude.shape).astype(np.float32)
    return GreSeries(magnitude, phase, times, 3.0, geometry)


def made(recipe="fast", **options) -> Result:
    return reconstruct(volume(), recipe, device="cpu", **options)


def mask_stage(result: Result):
    (record,) = [record for record in result.provenance.stages if record.stage == "mask"]
    return record


@pytest.fixture
def drawn(monkeypatch):
    """The classical mask stood in for by a box, as a ball is no head; gives the options of each call."""
    calls = []

    def threshold(magnitude, phase, times, geometry, *, dark: float = 0.45, grid_mm: float = 2.0):
        """A box. Source: nowhere."""
        calls.append(dict(dark=dark, grid_mm=grid_mm))
        box = np.zeros(geometry.shape, bool)
        box[5:-5, 5:-5, 5:-5] = True
        return box

    monkeypatch.setitem(masking.METHODS, "threshold", threshold)
    monkeypatch.setattr(network, "default_model", lambda: None)
    return calls


def test_auto_is_recorded_as_what_it_took_with_every_option(drawn):
    result = made()
    assert drawn == [dict(dark=0.45, grid_mm=2.0)]
    assert mask_stage(result).method == "threshold"
    assert mask_stage(result).options == dict(dark=0.45, grid_mm=2.0)
    assert result.provenance.recipe["mask"] == {"method": "threshold", "dark": 0.45, "grid_mm": 2.0}
    assert "mask threshold" in result.provenance.derivation
    assert made(mask="threshold").provenance.digest == result.provenance.digest
    assert made().provenance.digest == result.provenance.digest != Recipe.load("fast").digest


def test_a_recipes_mask_options_stay_when_the_call_names_the_same_method(drawn):
    recipe = Recipe.load("fast", ["mask=threshold", "mask.dark=0.3"])
    for mask in ("auto", "threshold"):
        result = made(recipe, mask=mask)
        assert drawn[-1]["dark"] == mask_stage(result).options["dark"] == 0.3
    assert made(Recipe.load("fast"), mask="threshold").provenance.digest != result.provenance.digest


def test_a_network_is_named_by_its_card_and_checksum(tmp_path, monkeypatch):
    path = installed(tmp_path, name="skull-free", version="7")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    results = [made(mask="network", model=str(path)), made(model=str(path))]
    monkeypatch.setattr(network, "default_model", lambda: path)
    results.append(made())
    for result in results:
        options = mask_stage(result).options
        assert (options["model"], options["model_version"], options["model_sha256"]) == ("skull-free", "7", content)
        assert options_of(masking.METHODS["network"]).items() <= options.items()
        assert result.provenance.recipe["mask"] == {"method": "network", **options}
        assert result.provenance.digest == results[0].provenance.digest
        for text in (result.provenance.derivation, result.provenance.methods_text):
            assert f"network skull-free 7 sha256:{content[:12]}" in text
        assert str(tmp_path) not in str(result.provenance)


def test_another_network_or_card_is_another_digest(tmp_path):
    digests = set()
    for number, changes in enumerate(({}, {"version": "2"}, {"output__threshold": 0.4})):
        (tmp_path / str(number)).mkdir()
        digests.add(made(model=str(installed(tmp_path / str(number), **changes))).provenance.digest)
    assert len(digests) == 3


def test_a_given_mask_is_told_by_its_voxels():
    mask = np.zeros(volume().geometry.shape, bool)
    mask[5:-5, 8:-8, 8:-8] = True
    result = made(mask=mask)
    sha = mask_stage(result).options["mask_sha256"]
    assert mask_stage(result).method == "given"
    assert result.provenance.recipe["mask"] == {"method": "given", "mask_sha256": sha}
    assert f"mask given sha256:{sha[:12]}" in result.provenance.derivation
    assert f"given sha256:{sha[:12]}" in result.provenance.methods_text
    again = made(mask=mask.astype(np.uint8))
    assert again.provenance.digest == result.provenance.digest
    mask[6, 9, 9] = False
    assert made(mask=mask).provenance.digest != result.provenance.digest


def test_a_network_that_would_not_be_used_is_a_mistake(tmp_path):
    path = str(installed(tmp_path))
    mask = np.ones(volume().geometry.shape, bool)
    for recipe, given in (("fast", "threshold"), ("fast", mask), (Recipe.load("fast", ["mask=threshold"]), "auto")):
        with pytest.raises(UsageError) as caught:
            made(recipe, mask=given, model=path)
        assert caught.value.code == "bad_call"


def test_a_network_that_is_not_there_is_refused_as_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "default_model", lambda: None)
    for options in (dict(mask="network"), dict(model=str(tmp_path / "absent.onnx"))):
        with pytest.raises(ModelRefused) as caught:
            made(**options)
        assert caught.value.code == "no_model"
