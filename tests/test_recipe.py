"""Recipes: what the file says is what runs, and a typo is an error."""

from __future__ import annotations

import pytest

from qsm_edge.errors import UsageError
from qsm_edge.recipe import Recipe
from qsm_edge.stages import STAGES, dois_of, options_of, sentence_of

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
    assert Recipe.load("default", ["invert.regularisation=0.0002"]).digest != plain.digest
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
