"""What cannot be built or run here, read: image recipes, MAP manifests, the Windows script, and the index of it all."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import sandbox

import qsm_edge
from qsm_edge import cli, contracts

DOCKERFILES = (
    "docker/Dockerfile.cpu",
    "docker/Dockerfile.cuda",
    "mercure/Dockerfile",
    "monai/Dockerfile",
    "openrecon/Dockerfile",
)
INSTALLED = "/opt/qsm-edge/bin/qsm-edge"


def read(name: str) -> str:
    return (sandbox.DEPLOY / name).read_text(encoding="utf-8")


def test_the_reader_of_these_tests_finds_what_they_look_for():
    made = sandbox.instructions("# no\nFROM a\nRUN one \\\n  two\nUSER root\n")
    assert made == [("FROM", "a"), ("RUN", "one two"), ("USER", "root")]
    for line in ("RUN apt-get update", "RUN curl x", "ADD https://x /y", "RUN pip install --index-url x y"):
        assert sandbox.fetches(line) == [line]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_built_without_a_network_and_runs_without_root(name):
    made = sandbox.instructions(read(name))
    assert sandbox.fetches(read(name)) == []
    assert [what for what, _ in made if what == "ADD"] == []
    assert {rest for what, rest in made if what == "RUN"} == {"sh /wheelhouse/install.sh /opt/qsm-edge"}
    assert len([what for what, _ in made if what == "FROM"]) == 2, "the wheels would stay in the image"
    assert made.index(("COPY", "--from=installed /opt/qsm-edge /opt/qsm-edge")) > made.index(("FROM", "${BASE}"))
    users = [rest for what, rest in made if what == "USER"]
    assert users[-1:] == ["65534:65534"], "the last user is nobody, by number"
    assert "Not built here" in read(name)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_an_image_copies_and_starts_exists(name):
    made = sandbox.instructions(read(name))
    for source, *_ in (rest.split() for what, rest in made if what == "COPY"):
        if not source.startswith(("dist/", "--from=installed")):
            assert (sandbox.ROOT / source).is_dir()
    (start,) = [json.loads(rest) for what, rest in made if what == "ENTRYPOINT"]
    assert start[0] == INSTALLED
    if start[1:]:
        command = "_mrd" if name.startswith("openrecon") else "_module"
        assert cli.parser().parse_args(start[1:]).command.__name__ == command
    assert "/etc/monai" not in (read(name) if name.startswith("mercure") else "")


#: Fields that the specification marks as required, or says MUST of (1.0.0), by manifest.
REQUIRED = {
    "holoscan/app.json": {"command", "type", "input", "input.formats", "output", "output.format"},
    "holoscan/pkg.json": {"applicationRoot"},
    "monai/app.json": {"command", "input", "input.formats", "output", "output.format"},
    "monai/pkg.json": {"application-root"},
}
KINDS = {
    **dict.fromkeys(("apiVersion", "api-version", "version"), r"\d+\.\d+\.\d+"),
    **dict.fromkeys(("workingDirectory", "working-directory", "applicationRoot", "application-root"), r"/.*"),
    "resources.memory": r"\d+(\.\d)?(Mi|Gi)",
    "type": r"application|service",
}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_manifest_has_what_the_specification_requires(name):
    manifest = json.loads(read(f"monai/{name}"))
    inner = {
        f"{key}.{sub}": value for key, part in manifest.items() if isinstance(part, dict) for sub, value in part.items()
    }
    flat = {**manifest, **inner}
    assert REQUIRED[name] <= set(flat)
    for key, pattern in KINDS.items():
        if key in flat:
            assert re.fullmatch(pattern, flat[key]), f"{key}: {flat[key]}"
    assert flat["version"] == qsm_edge.__version__
    if "command" in flat:
        program, *arguments = shlex.split(flat["command"])
        assert program == INSTALLED
        assert cli.parser().parse_args(arguments).command.__name__ == "_module"
        home = flat.get("workingDirectory") or flat["working-directory"]
        names = next(pair for pair in contracts.FOLDERS if pair[0] in flat["environment"])
        for side, variable in zip(("input", "output"), names, strict=True):
            assert Path(flat["environment"][variable]) == Path(home, flat[f"{side}.path"])
        assert isinstance(flat["input.formats"], list)
        assert isinstance(flat["output.format"], dict)
    else:
        assert isinstance(flat["resources.cpu"], int)
        assert flat["models"] == []


def test_the_windows_script_installs_offline_and_starts_a_command_that_exists():
    script = read("windows/install.ps1")
    assert sandbox.fetches(script) == []
    for option in ('"--no-index"', '"--require-hashes"', '"--only-binary", ":all:"'):
        assert option in script
    started = re.search(r'-Argument "(.*?)" -WorkingDirectory', script)
    assert started is not None
    args = cli.parser().parse_args(shlex.split(started[1].replace('`"', '"').replace("$Site", "site.toml")))
    assert args.command.__name__ == "_serve"
    assert script.count("{") == script.count("}")
    assert script.count("(") == script.count(")")
    assert "Not run here" in script


def test_the_index_lists_every_folder_and_each_says_where_its_test_is():
    folders = {path.name for path in sandbox.DEPLOY.iterdir() if path.is_dir() and any(path.iterdir())}
    assert set(re.findall(r"^\| \[(\w+)\]", read("README.md"), re.MULTILINE)) == folders
    for name in folders:
        for test in re.findall(r"`(tests/deploy/\w+\.py)`", read(f"{name}/README.md")) or [f"{name} names no test"]:
            assert (sandbox.ROOT / test).is_file(), test
