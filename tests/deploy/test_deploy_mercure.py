"""The contract of mercure and MONAI Deploy: environment in, flat files and result.json out, as nobody, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
import sandbox

from dicom_samples.encode import save
from qsm_edge import cli, contracts
from qsm_edge.errors import UsageError


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    output.mkdir()
    return source, output


def task(source: Path, settings: object) -> None:
    """A task file as mercure writes it, cut down to what a module may look at."""
    process = {"module_name": "qsm", "settings": settings, "retain_input_images": False}
    whole = {"id": "0", "info": {"action": "process", "uid": "1.2"}, "process": process, "dispatch": {}}
    (source / "task.json").write_text(json.dumps(whole))


def variables(source: Path, output: Path, number: int = 0) -> dict[str, str]:
    return dict(zip(contracts.FOLDERS[number], (str(source), str(output)), strict=True))


@pytest.mark.parametrize("number", range(len(contracts.FOLDERS)))
def test_each_platform_names_the_folders_in_its_own_way(places, number):
    assert contracts.folders(variables(*places, number)) == places


def test_mercure_names_them_in_all_ways_at_once(places):
    every = {name: value for number in range(3) for name, value in variables(*places, number).items()}
    assert contracts.folders({**every, "MONAI_INPUTPATH": f"{places[0]}/"}) == places


def test_folders_that_are_missing_or_contradict_one_another_are_refused(places):
    source, output = places
    half = {"MERCURE_IN_DIR": str(source)}
    other = {**variables(source, output), "MONAI_INPUTPATH": "/elsewhere", "MONAI_OUTPUTPATH": str(output)}
    for environment in ({}, half, other, variables(source, output / "absent")):
        with pytest.raises(UsageError) as refused:
            contracts.folders(environment)
        assert refused.value.code == "bad_call"


def test_settings_are_the_options_of_run(places):
    source, _ = places
    assert contracts.options(source) == []
    settings = {"recipe": "fast", "set": ["invert=tkd"], "maps": ["swi", "mip"], "nifti": True, "parametric_map": False}
    task(source, settings)
    words = contracts.options(source)
    args = cli.parser().parse_args(["run", "in", "out", *words])
    assert (args.recipe, args.set, args.maps) == ("fast", ["invert=tkd"], "swi,mip")
    assert (args.nifti, args.parametric_map, args.mask) == (True, False, "auto")
    for name in contracts.SETTINGS:
        assert hasattr(args, name), f"{name} is no option of run"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"recipy": "fast"}, "unknown_name"),
        ({"nifti": "yes"}, "bad_value"),
        ({"set": "invert=tkd"}, "bad_value"),
        ({"maps": [1]}, "bad_value"),
        ({"recipe": None}, "bad_value"),
        (["fast"], "bad_value"),
        ("fast", "bad_value"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused_in_result_json(places, settings, code):
    source, output = places
    task(source, settings)
    with pytest.raises(UsageError) as refused:
        contracts.module(variables(source, output))
    assert refused.value.code == code
    assert json.loads((output / "result.json").read_text())["error"] == refused.value.as_dict()
    assert [path.name for path in output.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"process": [{}, {}]}', b'{"process": 3}', b"\xff", b" " * 2_000_000]
)
def test_a_task_that_is_none_is_refused(places, content):
    (places[0] / "task.json").write_bytes(content)
    with pytest.raises(UsageError) as refused:
        contracts.options(places[0])
    assert refused.value.code == "bad_value"


def test_an_option_cannot_be_smuggled_in_by_a_value(places):
    task(places[0], {"recipe": "--help"})
    args = cli.parser().parse_args(["run", "in", "out", *contracts.options(places[0])])
    assert args.recipe == "--help"


@pytest.mark.parametrize(
    ("settings", "status", "code"), [({"recipe": "nothing"}, 2, "unknown_name"), ({"device": "abacus"}, 2, "bad_value")]
)
def test_a_value_that_run_refuses_ends_with_its_status_and_code(places, capfd, settings, status, code):
    source, output = places
    (source / "some.dcm").write_bytes(b"")
    task(source, settings)
    found, document = contracts.module(variables(source, output))
    written = json.loads((output / "result.json").read_text())
    assert (found, document["error"]["code"], written) == (status, code, document)
    assert [path.name for path in output.iterdir()] == ["result.json"]


def test_an_input_without_a_result_is_status_3_and_leaves_no_image(places):
    source, output = places
    (source / "text.dcm").write_text("no image")
    status, document = contracts.module(variables(source, output, 1))
    assert (status, document["done"]) == (3, [])
    assert [problem["code"] for problem in document["refused"]] == ["not_dicom"]
    assert [path.name for path in output.iterdir()] == ["result.json"]


def test_as_nobody_without_network_on_a_read_only_tree(places):
    """A small study with a refused file beside it; nobody could write anywhere but into the output folder."""
    source, output = places
    save(sandbox.small_head("mercure"), source)
    (source / "broken.dcm").write_bytes(b"")
    task(source, {"recipe": "fast", "mask": "threshold"})
    source.chmod(0o755)
    every = {
        name: place for pair in contracts.FOLDERS for name, place in zip(pair, ("/mnt/in", "/mnt/out"), strict=True)
    }
    ran = sandbox.as_nobody(["-m", "qsm_edge", "module"], source, output, every)
    assert ran.returncode == 0, ran.stderr
    document = json.loads((output / "result.json").read_text())
    assert json.loads(ran.stdout) == document
    (done,) = document["done"]
    assert [problem["code"] for problem in document["refused"]] == ["empty_file"]
    assert sorted([*done["files"], "result.json"]) == sorted(path.name for path in output.iterdir())
    sent = [pydicom.dcmread(path, stop_before_pixels=True) for path in output.glob("*.dcm")]
    assert sorted(dataset.Modality for dataset in sent) == ["MR"] * sandbox.SLICES + ["SEG"]
    assert len({dataset.SOPInstanceUID for dataset in sent}) == len(sent)


def test_the_sandbox_is_one(places):
    """What the test above claims of its surroundings."""
    code = (
        "import os, socket\n"
        "def fails(what):\n"
        "    try: what()\n"
        "    except OSError: return True\n"
        "print(os.getuid(), [name for _, name in socket.if_nameindex()],\n"
        "  fails(lambda: open('/mnt/tree/x', 'w')), fails(lambda: open('/mnt/in/x', 'w')), fails(lambda: open('/tmp/x', 'w')),\n"
        "  fails(lambda: open('/mnt/out/x', 'w')))\n"
    )
    ran = sandbox.as_nobody(["-c", code], *places, {})
    assert ran.stdout.split("\n")[0] == "65534 ['lo'] True True True None", ran.stderr
