"""Wrong usage, and the commands that only look: inspect, recipe, --version."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_world import PATIENT, Acquisition, Ignored, Refusal, World, document, fails_on, fixture_world, said  # noqa: F401

import qsm_edge
from qsm_edge import cli
from qsm_edge.errors import InputRefused, UsageError


def usage(world: World, arguments: list[str], capsys) -> str:
    places = {"IN": str(world.input), "OUT": str(world.output)}
    assert cli.main([places.get(word, word) for word in arguments]) == 2
    assert world.calls == []
    return "".join(said(capsys))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["run"], "INPUT"),
        (["run", "IN"], "OUTPUT"),
        (["cook", "IN", "OUT"], "inspect"),
        (["run", "IN", "OUT", "--device", "tpu"], "cuda"),
        (["run", "IN", "OUT", "--reci", "fast"], "--reci"),
        (["run", "IN", "OUT", "--recipe", "fats"], "fast"),
        (["run", "IN", "OUT", "--set", "invert.treshold=1"], "treshold"),
        (["run", "IN", "OUT", "--set", "nonsense"], "nonsense"),
        (["run", "absent", "OUT"], "absent"),
        (["run", "IN", "OUT", "--mask", "absent.nii"], "absent.nii"),
        (["run", "IN", "OUT", "--model", "absent.onnx"], "absent.onnx"),
        (["recipe", "fats"], "fast"),
        (["inspect", "absent"], "absent"),
        (["doctor", "everything"], "everything"),
    ],
)
def test_wrong_usage_is_2_and_helps(world, capsys, arguments, says):
    assert says in usage(world, arguments, capsys)
    assert not world.output.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mask", "threshold", "--model", "FILE"], "would not be used"),
        (["--mask", "FILE", "--model", "FILE"], "would not be used"),
        (["--set", "mask=threshold", "--model", "FILE"], "would not be used"),
        (["--set", "mask=threshold", "--mask", "network"], "contradict"),
        (["--set", "mask=threshold", "--set", "mask.dark=0.3", "--mask", "FILE"], "contradict"),
        (["--mask", "OUT/folder"], "no such file"),
    ],
)
def test_nothing_is_parsed_and_ignored(world, capsys, tmp_path, words, says):
    (tmp_path / "given").touch()
    words = [str(tmp_path / "given") if word == "FILE" else word for word in words]
    assert says in usage(world, ["run", "IN", "OUT", *words], capsys)


def test_the_options_of_a_mask_method_that_is_named_twice_are_kept(world):
    assert world.run("--set", "mask=threshold", "--set", "mask.dark=0.3", "--mask", "threshold") == 0
    (call,) = world.calls
    assert call["mask"] == "threshold"
    assert call["recipe"].with_mask("threshold").choices["mask"].options["dark"] == 0.3


def test_an_output_that_is_a_file_is_wrong_usage(world, capsys):
    world.output.write_text("mine")
    assert "not a folder" in usage(world, ["run", "IN", "OUT"], capsys)
    assert world.output.read_text() == "mine"


def test_an_input_without_files_is_wrong_usage(world, capsys):
    world.acquisitions = []
    assert "no file" in usage(world, ["run", "IN", "OUT"], capsys)
    assert "no file" in usage(world, ["inspect", "IN"], capsys)


def test_wrong_usage_in_json_is_a_document_too(world, capsys):
    assert cli.main(["run", "absent", str(world.output), "--json"]) == 2
    facts = document(capsys)
    assert (facts["exit_status"], facts["error"]["code"]) == (2, "bad_call")


def test_a_wrong_option_value_found_late_is_still_wrong_usage(world, capsys):
    world.reconstruct = fails_on("gre_one", UsageError("bad_value", "the threshold", got="-1", wanted="0..1"))
    assert world.run("--json") == 2
    assert [f["code"] for f in document(capsys)["failed"]] == ["bad_value"]


def test_an_error_of_ours_outside_an_acquisition_is_1_and_quotes_nothing(world, capsys, monkeypatch):
    def broken(path, *, progress=None):
        raise RuntimeError(PATIENT)

    monkeypatch.setattr("qsm_edge.dicom.find", broken)
    assert world.run("--json") == 1
    facts = document(capsys)
    assert facts["error"]["code"] == "internal"
    assert "RuntimeError" in facts["error"]["what"]


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert said(capsys)[0] == f"qsm-edge {qsm_edge.__version__}\n"


def test_the_module_is_the_command():
    out = subprocess.run([sys.executable, "-m", "qsm_edge", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout == f"qsm-edge {qsm_edge.__version__}\n"


def test_inspect_says_what_was_understood_and_what_would_be_refused(world, capsys):
    world.acquisitions = [Acquisition("gre_one"), Acquisition("gre_bad", trouble=InputRefused("phase_constant"))]
    world.refused = [Refusal("no_phase", "no phase images", "series 3", ("a",))]
    assert cli.main(["inspect", str(world.input)]) == 3
    out, _ = said(capsys)
    assert "echo times ms  5, 10" in out
    assert "[no_phase] series 3" in out
    assert "[phase_constant] gre_bad" in out
    assert "1 usable, 2 refused, 0 other files ignored" in out
    assert world.calls == []


def test_inspect_says_what_only_the_pixels_tell(world, capsys):
    assert cli.main(["inspect", str(world.input)]) == 0
    assert "phase scale    12 bits for a turn" in said(capsys)[0]
    assert cli.main(["inspect", str(world.input), "--headers-only"]) == 0
    assert "phase scale" not in said(capsys)[0]


def test_inspect_of_headers_only_does_not_read_pixels(world, capsys):
    world.acquisitions = [Acquisition("gre_one", trouble=InputRefused("phase_constant"))]
    assert cli.main(["inspect", str(world.input), "--headers-only", "--json"]) == 0
    (usable,) = document(capsys)["usable"]
    assert usable["slug"] == "gre_one"
    assert usable["vendor"] == "SIEMENS"


@pytest.mark.parametrize("name", ["default", "fast", "reference"])
def test_a_printed_recipe_is_the_same_recipe(name, tmp_path, capsys):
    from qsm_edge.recipe import Recipe

    assert cli.main(["recipe", name]) == 0
    printed, _ = said(capsys)
    file = tmp_path / "mine.toml"
    file.write_text(printed)
    assert Recipe.load(str(file)).digest == Recipe.load(name).digest
    assert all(known in printed.splitlines()[0] for known in Recipe.names())


def test_a_recipe_in_json(capsys):
    assert cli.main(["recipe", "--json"]) == 0
    facts = document(capsys)
    assert set(facts["names"]) >= {"default", "fast", "reference"}


def test_a_reader_of_our_output_that_goes_away_is_no_crash(world):
    code = "import sys; from qsm_edge.cli import main; sys.exit(main(['recipe']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) in (0, 1)
        assert b"Traceback" not in process.stderr.read()
