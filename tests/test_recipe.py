"""Recipes: what the file says is what runs, and a typo is an error."""

from __future__ import annotations

import inspect
import json
from dataclasses import is_dataclass

import numpy as np
import pytest

from qsm_edge.errors import UsageError
from qsm_edge.recipe import ZERO_MEANS_OFF, Recipe
from qsm_edge.stages import STAGES, dois_of, options_of, sentence_of
from tests import phantoms

METHODS = [(stage, name) for stage, methods in STAGES.items() for name in methods]


@pytest.mark.parametrize("name", Recipe.names())
def test_a_shipped_recipe_resolves_every_stage_and_survives_its_own_toml(name, tmp_path):
    recipe = Recipe.load(name)
    assert set(recipe.choices) == set(STAGES)
    path = tmp_path / "again.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    again = Recipe.load(path)
    assert again.as_dict() == recipe.as_dict()
    assert again.digest == recipe.digest
    assert all(choice.why for stage, choice in recipe.choices.items() if name == "default"), "every choice has a reason"


def test_the_digest_follows_what_moves_a_voxel_and_nothing_else(tmp_path):
    plain = Recipe.load("default")
    assert Recipe.load("default", ["invert.regularisation=0.0003"]).digest != plain.digest
    path = tmp_path / "renamed.toml"
    path.write_text(plain.to_toml().replace('about = "', 'about = "other words; '), encoding="utf-8")
    assert Recipe.load(path).digest == plain.digest


@pytest.mark.parametrize(
    ("override", "code", "mentions"),
    [
        ("invert.treshold=0.2", "unknown_name", "regularisation"),
        ("invert=magic", "unknown_name", "tkd"),
        ("inversion=tkd", "unknown_name", "invert"),
        ("invert.iterations=many", "bad_value", "iterations"),
        ("invert.iterations=2.5", "bad_value", "iterations"),
        ("invert.iterations=-1", "bad_value", "iterations"),
        ("invert.regularisation=nan", "bad_value", "regularisation"),
        ("invert.regularisation=inf", "bad_value", "regularisation"),
        ("invert.regularisation=1e12", "bad_value", "regularisation"),
        ("invert.penalty=0", "bad_value", "above 0"),
        ("invert.penalty=1e-300", "bad_value", "above 0"),
        ("invert.iterations=0", "bad_value", "above 0"),
        ("invert.iterations=true", "bad_value", "iterations"),
        ("invert.margin_mm=1e5", "bad_value", "200"),
        ("background.noise_ppm=0.0", "bad_value", "above 0"),
        ("background.noise_ppm=-0.0", "bad_value", "above 0"),
        ("invert", "bad_call", "stage"),
        ("invert.=3", "unknown_name", "stage"),
    ],
)
def test_a_typo_is_an_error_that_lists_what_is_known(override, code, mentions):
    with pytest.raises(UsageError) as caught:
        Recipe.load("default", [override])
    assert caught.value.code == code
    assert mentions in str(caught.value)


def test_overrides_apply_in_order_and_another_method_brings_its_own_options():
    recipe = Recipe.load("default", ["invert=tkd", "invert.threshold=0.2"])
    assert recipe.choices["invert"].method == "tkd"
    assert recipe.choices["invert"].options["threshold"] == 0.2
    assert "regularisation" not in recipe.choices["invert"].options


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UsageError, match="default, fast, reference"):
        Recipe.load("defualt")


@pytest.mark.parametrize("text", ["[invert\n", "[inverse]\nmethod = 'tkd'\n", "invert = 'tkd'\n"])
def test_a_broken_recipe_file_is_refused(tmp_path, text):
    path = tmp_path / "broken.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        Recipe.load(path)


@pytest.mark.parametrize(("stage", "name"), METHODS)
def test_every_method_has_a_sentence_and_plain_options(stage, name):
    function = STAGES[stage][name]
    assert sentence_of(function).endswith((".", ":", "]"))
    assert all(isinstance(value, (int, float, str, bool)) for value in options_of(function).values())


@pytest.mark.parametrize(
    ("stage", "name"), [m for m in METHODS if m[0] in ("unwrap", "echoes", "background", "invert")]
)
def test_every_published_method_cites_its_source(stage, name):
    assert dois_of(STAGES[stage][name])


NUMBERS = [
    (stage, name, option)
    for stage, name in METHODS
    for option, default in options_of(STAGES[stage][name]).items()
    if type(default) in (int, float) and default > 0
]
HEAD = phantoms.head(phantoms.oblique())
#: What the stages are called with before their options, by the names of their arguments.
ARGUMENTS = dict(
    field_ppm=HEAD.field_ppm,
    local_ppm=HEAD.local_ppm,
    chi_ppm=HEAD.chi_ppm,
    background=lambda field_ppm, left_out: (field_ppm - HEAD.background_ppm, HEAD.mask & ~left_out),
    mask=HEAD.mask,
    weight=HEAD.mask.astype(np.float32),
    geometry=HEAD.geometry,
    b0_tesla=3.0,
    echo_times_s=(0.004, 0.009, 0.013),
    precision=HEAD.mask.astype(np.float32),
    residual=0.1 * HEAD.mask.astype(np.float32),
    edges=np.stack([HEAD.mask.astype(np.float32)] * 3),
    r2star_per_s=np.where(HEAD.depth_mm() > 12, 2, 20).astype(np.float32),
)


def call(stage, name, **options):
    """One method on a small head, quickly."""
    function = STAGES[stage][name]
    phase, magnitude = phantoms.echoes(HEAD.field_ppm, ARGUMENTS["echo_times_s"], 3.0)
    known = ARGUMENTS | dict(phase_rad=phase, magnitude=magnitude, seed_rad=phase[0] * HEAD.mask)
    parameters = inspect.signature(function).parameters.values()
    positional = [known[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY]
    quick = {"iterations": 5, "first_iterations": 5, "smallest_ml": 0.1}
    out = function(*positional, **({k: v for k, v in quick.items() if k in options_of(function)} | options))
    return [out] if isinstance(out, np.ndarray) else list(vars(out).values()) if is_dataclass(out) else list(out)


@pytest.mark.parametrize(("stage", "name", "option"), NUMBERS)
def test_zero_is_refused_or_gives_a_finite_answer(stage, name, option):
    """No option is a trap: what divides, scales or counts is above 0, and where 0 is taken it means something."""
    override = [f"{stage}={name}", f"{stage}.{option}=0"]
    if {option, f"{name}.{option}"} & ZERO_MEANS_OFF:
        assert Recipe.load("default", override).choices[stage].options[option] == 0
        if stage != "mask":  # tests of their own; a ball is no head
            assert all(np.isfinite(array).all() for array in call(stage, name, **{option: 0}))
        return
    with pytest.raises(UsageError) as caught:
        Recipe.load("default", override)
    assert caught.value.code == "bad_value"
    assert f"{stage}.{option}" in caught.value.where


def test_the_options_that_zero_switches_off_exist():
    known = {option for _, _, option in NUMBERS} | {f"{name}.{option}" for _, name, option in NUMBERS}
    assert known >= ZERO_MEANS_OFF


def test_a_calls_mask_method_keeps_the_options_of_a_recipe_that_agrees():
    recipe = Recipe.load("default", ["mask=threshold", "mask.dark=0.3"])
    for method in ("auto", "threshold"):
        assert recipe.with_mask(method).as_dict() == recipe.as_dict()
    assert recipe.with_mask("network").choices["mask"].options == options_of(STAGES["mask"]["network"])
    assert Recipe.load("default").with_mask("threshold").choices["mask"].options["dark"] == 0.45
    with pytest.raises(UsageError) as caught:
        recipe.with_mask("magic")
    assert caught.value.code == "unknown_name"
    assert "auto, threshold, network" in caught.value.wanted


def test_a_network_that_the_mask_method_would_not_take_is_a_mistake():
    assert Recipe.load("default").with_mask("auto", model=True).choices["mask"].method == "auto"
    assert Recipe.load("default").with_mask("network", model=True).choices["mask"].method == "network"
    for recipe, method in ((Recipe.load("default"), "threshold"), (Recipe.load("fast", ["mask=threshold"]), "auto")):
        with pytest.raises(UsageError) as caught:
            recipe.with_mask(method, model=True)
        assert caught.value.code == "bad_call"


@pytest.mark.parametrize("name", Recipe.names())
def test_what_a_provenance_keeps_is_the_recipe_again(name):
    recipe = Recipe.load(name, ["invert.margin_mm=7.5"] if name == "default" else [])
    again = Recipe.resolved(recipe.name, json.loads(json.dumps(recipe.as_dict())))
    assert (again.name, again.digest, again.as_dict()) == (recipe.name, recipe.digest, recipe.as_dict())
