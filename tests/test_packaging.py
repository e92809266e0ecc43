"""What is shipped and what is said about it: metadata, licence, the gate, documents that cannot drift from the code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import qsm_edge
from qsm_edge import cli
from qsm_edge.errors import REASONS
from qsm_edge.status.remedies import REMEDIES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md", "export/README.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in requirements}


def test_the_runtime_needs_no_more_than_was_agreed():
    agreed = {"numpy", "scipy", "pydicom", "pynetdicom", "highdicom", "nibabel", "array-api-compat"}
    assert names(PROJECT["project"]["dependencies"]) == agreed
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"cpu", "gpu", "codecs", "openrecon"}
    assert names(extras["cpu"]) & names(extras["gpu"]) == set(), "the two onnxruntime wheels overwrite each other"
    assert {"dev", "export"} <= set(PROJECT["dependency-groups"])
    assert not names([line for extra in extras.values() for line in extra]) & {"torch", "monai", "pylibjpeg-libjpeg"}


def test_the_version_is_the_same_everywhere():
    version = qsm_edge.__version__
    assert importlib.metadata.version("qsm-edge") == version
    assert re.search(rf"^version: {re.escape(version)}$", read("CITATION.cff"), re.MULTILINE)
    section = read("CHANGELOG.md").split(f"## [{version}]")[1].split("\n## [")[0]
    assert "### Numerics" in section


def test_the_command_is_installed():
    script = next(e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == "qsm-edge")
    assert script.load() is cli.main


def test_the_licence_is_the_apache_licence_word_for_word():
    canonical = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == canonical
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert set(PROJECT["project"]["license-files"]) == {"LICENSE", "NOTICE"}


def test_the_gate_runs_the_command_that_the_readme_gives():
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    assert read(".ci/run").rstrip().endswith("make test")
    assert "set -euo pipefail" in read(".ci/run")
    assert "make test" in read("CONTRIBUTING.md")
    assert "make demo" in read("README.md")


@pytest.mark.parametrize("target", ["demo", "test", "bench", "clean"])
def test_make_knows_its_targets(target):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    subprocess.run([make, "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_every_reason_code_is_documented_with_its_meaning():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", read("docs/reason-codes.md"), re.MULTILINE)
    assert {code: meaning for code, meaning, _ in rows} == REASONS
    assert {code: helps for code, _, helps in rows} == REMEDIES, "the status page says what the document says"
    assert all(helps.strip() for _, _, helps in rows)


def commands_in(document: str) -> list[list[str]]:
    """Every `qsm-edge ...` of a document's code, as arguments; comments and what follows them are left out."""
    code = re.findall(r"^ {4}(qsm-edge .+)$", document, re.MULTILINE) + re.findall(r"`(qsm-edge [^`]+)`", document)
    return [shlex.split(line.split(" > ")[0], comments=True)[1:] for line in code]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_in_the_documents_is_one_that_the_program_takes(name):
    (known,) = (action.choices for action in cli.parser()._actions if isinstance(action.choices, dict))
    for arguments in commands_in(read(name)):
        if len(arguments) > 1:
            cli.parser().parse_args(arguments)
        else:
            assert arguments[0] in {*known, "--version"}


def test_the_readme_has_commands_to_check():
    assert {arguments[0] for arguments in commands_in(read("README.md"))} >= {"run", "inspect", "doctor", "recipe"}


def test_the_readme_lists_the_recipes_that_ship():
    from qsm_edge.recipe import Recipe

    table = read("README.md").split("| recipe | for |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(Recipe.names())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", read(name)):
        assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_the_citation_file_has_what_the_format_demands():
    said = dict(re.findall(r"^([a-z-]+): *(.*)$", read("CITATION.cff"), re.MULTILINE))
    assert {"cff-version", "message", "title", "authors"} <= set(said)
    assert said["license"] == "Apache-2.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built offline from a copy of the files that it is made of."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for folder in ("qsm_edge", "tests", "export"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "out"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w"]
    subprocess.run([*command, str(target), "."], cwd=source, check=True, timeout=300)
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_the_wheel_holds_the_runtime_and_nothing_else(wheel):
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "qsm_edge").rglob("*.py")}
    recipes = {p.relative_to(ROOT).as_posix() for p in (ROOT / "qsm_edge" / "recipes").glob("*.toml")}
    assert sources | recipes <= shipped
    assert {Path(name).stem for name in recipes} >= {"default", "fast", "reference"}
    assert {name.split("/")[0] for name in shipped} == {"qsm_edge"}
    said = {Path(name).name for name in wheel.namelist() if ".dist-info/" in name}
    assert {"LICENSE", "NOTICE"} <= said


def test_the_wheel_is_light(wheel):
    assert sum(info.compress_size for info in wheel.infolist()) < 12e6
