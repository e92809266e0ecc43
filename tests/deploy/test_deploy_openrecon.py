"""The image label of OpenRecon: sound as it is, refused for every field that is missing, of another kind, or not known."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sandbox

import qsm_edge
from qsm_edge import cli

PLACE = sandbox.DEPLOY / "openrecon"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("openrecon_label", PLACE / "label.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LABEL = json.loads((PLACE / "label.json").read_text(encoding="utf-8"))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything in a document but the document itself."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths(inner, (*path, key))


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """The label with something else at a place; None takes away what is there."""
    label = copy.deepcopy(LABEL)
    inner = label
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return label


def test_the_label_is_sound_and_says_what_the_program_is(script):
    assert script.problems(LABEL) == []
    assert LABEL["general"]["version"] == qsm_edge.__version__
    assert LABEL["general"]["regulatory_information"]["production_identifier"] == qsm_edge.__version__
    recon = LABEL["reconstruction"]
    assert recon["port"] == cli.parser().parse_args(["mrd"]).port
    assert (recon["emitter"], recon["injector"]) == ("image", "image")
    assert recon["content_qualification_type"] == "RESEARCH"
    assert "esearch use only" in LABEL["general"]["information"]["en"]


@pytest.mark.parametrize("path", [path for path in paths(LABEL) if isinstance(path[-1], str)], ids=str)
def test_every_field_is_looked_at(script, path):
    """Another kind of value is always found; a field that is gone is, unless it may be left out."""
    assert script.problems(changed(path, 1.5))
    optional = {"information", "can_process_adjustment_data", "min_count_required_gpus", "min_required_gpu_memory"}
    optional |= {"content_qualification_type"}
    may = (path[-1] in optional and path[:1] != ("general",)) or path[-2:] == (3, "default")
    assert bool(script.problems(changed(path, None))) != may


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("more",), {}),
        (("general", "more"), "x"),
        (("general", "version"), "1.0"),
        (("general", "version"), "1.0.0-rc1"),
        (("reconstruction", "emitter"), "images"),
        (("reconstruction", "port"), True),
        (("reconstruction", "transfer_protocol", "version"), "2.0"),
        (("parameters", 1, "id"), "the_recipe"),
        (("parameters", 1, "id"), "config"),
        (("parameters", 1, "default"), "none"),
        (("parameters", 1, "type"), "menu"),
        (("parameters",), [LABEL["parameters"][3]] * 15),
    ],
)
def test_what_a_console_would_not_take_is_found(script, path, value):
    assert script.problems(changed(path, value))


@pytest.mark.parametrize("label", [None, [], "x", {"parameters": [3]}])
def test_what_is_no_label_is_found(script, label):
    assert script.problems(label)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PLACE / "label.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_value_is_the_label_in_base64_and_can_be_checked_again(script):
    said = run()
    assert (said.returncode, said.stderr) == (0, "")
    assert script.decoded(said.stdout.strip()) == LABEL
    assert run("--check").returncode == 0
    assert run("--check", said.stdout.strip()).returncode == 0
    wrong = run("--check", script.encoded(changed(("general", "id"), None)))
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "general.id" in wrong.stderr
    assert run("--check", "no base64!").returncode == 1


def test_the_recipe_carries_the_label_and_starts_the_server(script, tmp_path):
    assert run("--dockerfile", str(tmp_path / "Dockerfile")).returncode == 0
    made = sandbox.instructions((tmp_path / "Dockerfile").read_text(encoding="utf-8"))
    assert sandbox.fetches((tmp_path / "Dockerfile").read_text(encoding="utf-8")) == []
    (label,) = [rest for what, rest in made if what == "LABEL"]
    name, value = re.fullmatch(r'"([^"]+)"="([A-Za-z0-9+/=]+)"', label).groups()
    assert name == "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
    assert script.decoded(value) == LABEL
    start = json.loads(next(rest for what, rest in made if what == "ENTRYPOINT"))
    args = cli.parser().parse_args(start[1:])
    assert (args.command.__name__, args.bind, args.port) == ("_mrd", "0.0.0.0", 9002)
    assert ("EXPOSE", "9002") in made
