"""The commands: exit statuses, what they say and to whom, and what is on the disk afterwards, whatever goes wrong.

Reader, chain and writers are stood in for by small ones here; test_cli_real.py runs the real ones.
"""

from __future__ import annotations

import errno
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from cli_world import PATIENT, Acquisition, Ignored, Refusal, World, document, fails_on, fixture_world, said  # noqa: F401

import qsm_edge
from qsm_edge import cli, nifti
from qsm_edge.errors import InputRefused
from qsm_edge.recipe import Recipe
from qsm_edge.types import Geometry, Source


def test_all_done_is_0_and_says_where_to_look(world, capsys):
    assert world.run() == 0
    out, err = said(capsys)
    assert str(world.output / "gre_one" / "report.html") in out
    assert "verdict review" in out
    assert "[single_echo]" in out
    assert "invert (tkd)" in err
    assert world.results() == ["gre_one"]


def test_json_is_one_document_with_all_facts(world, capsys):
    world.refused = [Refusal("phase_difference", "a phase difference", "series 5", ("a", "b", "c"))]
    world.ignored = [Ignored("not_dicom", "no DICOM", (Path("x") / PATIENT / "LICENSE",))]
    assert world.run("--json") == 3
    facts = document(capsys)
    assert facts["software"] == "qsm-edge"
    assert facts["version"] == qsm_edge.__version__
    assert facts["exit_status"] == 3
    (done,) = facts["done"]
    assert done["folder"] == str(world.output / "gre_one")
    assert done["verdict"] == "review"
    assert done["figures"]["volume_ml"] == {"value": 1300.5, "unit": "mL", "meaning": "volume"}
    assert done["figures"]["snr"]["value"] is None
    assert done["notes"] == [{"code": "single_echo", "text": "one echo"}]
    assert set(done["seconds"]) == {"read", "reconstruct", "write"}
    (refused,) = facts["refused"]
    assert (refused["code"], refused["what"], refused["files"]) == ("phase_difference", "series 5", 3)
    (ignored,) = facts["ignored"]
    assert (ignored["code"], ignored["files"], ignored["names"]) == ("not_dicom", 1, ["*/*/LICENSE"])
    assert facts["failed"] == []


def test_quiet_says_nothing_when_all_is_well(world, capsys):
    assert world.run("--quiet") == 0
    assert said(capsys) == ("", "")


def test_quiet_still_says_what_went_wrong(world, capsys):
    world.refused = [Refusal("no_phase", "no phase images", "series 3", ("a",))]
    assert world.run("--quiet") == 3
    out, err = said(capsys)
    assert out == ""
    assert err == "refused  [no_phase] series 3: no phase images (1 file: a)\n"


def test_one_refused_acquisition_does_not_stop_the_others(world, capsys):
    trouble = InputRefused("phase_constant", where="series 4")
    world.acquisitions = [Acquisition("gre_bad", trouble=trouble), Acquisition("gre_one"), Acquisition("gre_two")]
    assert world.run("--json") == 3
    facts = document(capsys)
    assert [done["acquisition"] for done in facts["done"]] == ["gre_one", "gre_two"]
    assert [(r["code"], r["what"]) for r in facts["refused"]] == [("phase_constant", "gre_bad")]
    assert world.results() == ["gre_one", "gre_two"]


def test_an_unexpected_error_is_our_fault_and_quotes_nothing(world, capsys):
    world.acquisitions = [Acquisition("gre_bad"), Acquisition("gre_one")]
    world.reconstruct = fails_on("gre_bad", ZeroDivisionError(f"could not divide {PATIENT}"))
    assert world.run("--json") == 1
    facts = document(capsys)
    (failed,) = facts["failed"]
    assert failed["code"] == "internal"
    assert "ZeroDivisionError" in failed["text"]
    assert "cli_world.py" in failed["text"]
    assert world.results() == ["gre_one"]


def test_debug_shows_the_traceback(world, capsys):
    world.reconstruct = fails_on("gre_one", ZeroDivisionError("by zero"))
    assert world.run("--debug") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (np._core._exceptions._ArrayMemoryError((9, 9), np.dtype(float)), "out_of_memory"),
    ],
)
def test_memory_that_runs_out_is_a_refusal(world, capsys, error, code):
    world.reconstruct = fails_on("gre_one", error)
    assert world.run("--json") == 3
    assert [r["code"] for r in document(capsys)["refused"]] == [code]


def test_a_disk_that_fills_up_is_a_refusal_and_leaves_nothing(world, capsys):
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    world.write = full
    assert world.run("--json") == 3
    assert [r["code"] for r in document(capsys)["refused"]] == ["out_of_disk"]
    assert world.results() == []


def test_a_disk_that_is_full_is_refused_before_anything_is_computed(world, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert world.run("--json") == 3
    (refused,) = document(capsys)["refused"]
    assert refused["code"] == "out_of_disk"
    assert "wanted" in refused["text"]
    assert world.acquisitions[0].loads == 0
    assert world.calls == []


@pytest.mark.parametrize(("interrupt", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_keeps_what_is_finished_and_removes_the_rest(world, capsys, interrupt, status):
    world.acquisitions = [Acquisition("gre_one"), Acquisition("gre_two"), Acquisition("gre_three")]

    def stop_in_the_second(folder: Path) -> None:
        if "gre_two" in folder.name:
            signal.raise_signal(interrupt)

    before = signal.getsignal(signal.SIGTERM)
    world.write = stop_in_the_second
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts with '&'
    try:
        assert world.run("--json") == status
    finally:
        signal.signal(signal.SIGINT, ours)
    assert [done["acquisition"] for done in document(capsys)["done"]] == ["gre_one"]
    assert world.results() == ["gre_one"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_options_reach_the_chain(world, tmp_path):
    model = tmp_path / "net.onnx"
    model.touch()
    assert world.run("--mask", "network", "--device", "cpu", "--model", str(model), "--recipe", "fast") == 0
    (call,) = world.calls
    assert (call["mask"], call["device"], call["model"]) == ("network", "cpu", str(model))
    assert call["recipe"].digest == Recipe.load("fast").digest


def test_a_users_mask_must_fit_each_grid(world, tmp_path, capsys):
    geometry = Geometry.from_axes((4, 6, 8))
    own_mask(tmp_path / "mask.nii.gz")
    world.acquisitions = [Acquisition("gre_other", shape=(5, 6, 8)), Acquisition("gre_one")]
    assert world.run("--mask", str(tmp_path / "mask.nii.gz"), "--json") == 3
    facts = document(capsys)
    assert [(r["code"], r["what"]) for r in facts["refused"]] == [("mask_grid", "gre_other")]
    assert [done["acquisition"] for done in facts["done"]] == ["gre_one"]
    (call,) = world.calls
    np.testing.assert_array_equal(call["mask"], nifti.read_mask(tmp_path / "mask.nii.gz", geometry))
    assert call["mask"].sum() == 18


def test_a_second_run_replaces_its_own_result_only(world):
    world.output.mkdir()
    (world.output / "thesis").mkdir()
    assert world.run() == 0
    assert world.run() == 0
    assert world.results() == ["gre_one", "thesis"]


def test_other_images_of_the_same_name_get_a_folder_of_their_own(world):
    assert world.run() == 0
    world.acquisitions = [Acquisition("gre_one")]
    world.acquisitions[0].__class__ = type(
        "Other", (Acquisition,), {"source": property(lambda self: Source("S", "c", (), None, "gre_one"))}
    )
    assert world.run() == 0
    assert world.results() == ["gre_one", "gre_one-2"]


@pytest.mark.parametrize("place", [".", "in", "in/results"])
def test_input_and_output_may_lie_in_one_another(world, tmp_path, place):
    world.output = tmp_path / place
    assert world.run() == 0
    assert (world.output / "gre_one" / "report.html").exists()
    assert world.input.exists()


def own_mask(path: Path, first: int = 2) -> Path:
    """A mask on the grid of the stand-ins."""
    voxels = np.zeros((8, 6, 4), np.uint8)
    voxels[first:5, 2:5, 1:3] = 1
    nibabel.save(nibabel.Nifti1Image(voxels, Geometry.from_axes((4, 6, 8)).affine_ras_xyz), path)
    return path


def test_a_run_never_replaces_the_folder_that_holds_its_own_mask(world, capsys, tmp_path):
    first = own_mask(tmp_path / "mask.nii")
    assert world.run("--mask", str(first)) == 0
    (result,) = world.results()
    mask = world.output / result / "mine.nii"
    mask.write_bytes(first.read_bytes())
    capsys.readouterr()
    assert world.run("--mask", str(mask), "--json") == 2
    assert [f["code"] for f in document(capsys)["failed"]] == ["bad_call"]
    assert mask.read_bytes() == first.read_bytes()
    assert len(world.calls) == 1


def test_results_of_other_settings_live_side_by_side_and_each_replaces_its_own(world, tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(Recipe.load("fast", ["invert.regularisation=0.02"]).to_toml())
    model = tmp_path / "net.onnx"
    model.write_bytes(b"layers")
    settings = {
        "default": ("gre_one", []),
        "fast": ("gre_one_fast", ["--recipe", "fast"]),
        "option": ("gre_one_default-", ["--set", "invert.regularisation=0.0004"]),
        "another option": ("gre_one_default-", ["--set", "invert.regularisation=0.0003"]),
        "file": ("gre_one_fast-", ["--recipe", str(mine)]),
        "mask method": ("gre_one_default-", ["--mask", "threshold"]),
        "mask": ("gre_one_default-", ["--mask", str(own_mask(tmp_path / "a.nii"))]),
        "another mask": ("gre_one_default-", ["--mask", str(own_mask(tmp_path / "b.nii", 3))]),
        "mask and recipe": ("gre_one_fast-", ["--recipe", "fast", "--mask", str(tmp_path / "a.nii")]),
        "network": ("gre_one_default-", ["--model", str(model)]),
    }
    folders = {}
    for name, (start, words) in settings.items():
        before = set(world.results()) if world.output.exists() else set()
        assert world.run(*words) == 0
        (folders[name],) = set(world.results()) - before
        assert folders[name].startswith(start), name
        (world.output / folders[name] / "report.html").write_text("old")
    for name, (_, words) in settings.items():
        assert world.run(*words) == 0
        assert (world.output / folders[name] / "report.html").read_text() == "report", name
    assert set(world.results()) == set(folders.values())
    assert len(set(folders.values())) == len(settings)


def test_what_changes_nothing_sets_nothing_apart(world, tmp_path):
    same = tmp_path / "same.toml"
    same.write_text(Recipe.load("default").to_toml())
    regularisation = Recipe.load("default").choices["invert"].options["regularisation"]
    assert world.run() == 0
    assert world.run("--recipe", str(same)) == 0
    assert world.run("--set", f"invert.regularisation={regularisation}", "--mask", "auto", "--nifti") == 0
    own_mask(tmp_path / "a.nii")
    (tmp_path / "copy.nii").write_bytes((tmp_path / "a.nii").read_bytes())
    for name in ("a.nii", "copy.nii"):
        assert world.run("--mask", str(tmp_path / name)) == 0
    assert len(world.results()) == 2


def test_a_long_name_keeps_what_sets_it_apart(world):
    world.acquisitions = [Acquisition("gre_" + 90 * "x")]
    assert world.run() == 0
    assert world.run("--recipe", "fast") == 0
    first, second = world.results()
    assert first != second
    assert any(name.endswith("_fast") for name in (first, second))


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(world, capsys, monkeypatch):
    monkeypatch.setattr("qsm_edge.backend.available_bytes", lambda device: 10**6)
    assert world.run("--json") == 3
    (refused,) = document(capsys)["refused"]
    assert (refused["code"], refused["what"]) == ("out_of_memory", "gre_one")
    assert cli.main(["inspect", str(world.input), "--json"]) == 3
    assert [r["code"] for r in document(capsys)["refused"]] == ["out_of_memory"]
    assert world.acquisitions[0].loads == 0


def test_names_of_folders_that_may_be_a_patients_are_not_shown(world, capsys):
    patient = f"{PATIENT}_19600101"
    world.refused = [
        Refusal("truncated_file", "cut", "", (f"{patient}/DICOM/SE000002/IM4", "MR_7/x", f"a/{patient}/c"))
    ]
    world.ignored = [Ignored("not_mr", "no MR image", (f"{patient}/19600101/ST1/IM1", f"{patient}/b"))]
    assert world.run("--json") == 3
    facts = document(capsys)
    assert facts["refused"][0]["names"] == ["*/*/c", "*/DICOM/*/IM4"]
    assert facts["ignored"][0]["names"] == ["*/*/ST1/IM1", "*/b"]
    assert facts["refused"][0]["files"] == 3
    world.run()
    out, _ = said(capsys)
    assert "(3 files: */*/c, */DICOM/*/IM4, ...)" in out
    assert "19600101" not in out


@pytest.mark.parametrize("words", [[], ["--json"], ["--quiet"]])
def test_the_name_of_the_input_is_not_repeated(world, capsys, monkeypatch, words):
    """Folders and archives are often called after the patient, and whoever named the input knows its name."""
    world.input = world.input.rename(world.input.with_name(PATIENT))
    world.refused = [Refusal("no_phase", "no phase images", "series 3", ("a",))]
    assert world.run(*words) == 3
    assert cli.main(["inspect", str(world.input), *words]) == 3

    def find(path, *, progress=None):
        raise InputRefused("unsafe_archive")

    monkeypatch.setattr("qsm_edge.dicom.find", find)
    assert world.run(*words) == 3
    said(capsys)


def test_a_run_clears_up_after_one_that_was_killed(world):
    stale = world.output / ".gre_one.partial-99999"
    stale.mkdir(parents=True)
    (stale / ".qsm-edge.json").write_text('{"software": "qsm-edge", "acquisition": "1"}')
    assert world.run() == 0
    assert world.results() == ["gre_one"]


def test_files_that_are_no_acquisition_are_no_failure(world, capsys):
    world.acquisitions = []
    world.ignored = [Ignored("not_mr", "no MR image", tuple(f"IM{n}" for n in range(9)))]
    assert world.run() == 0
    out, _ = said(capsys)
    assert "ignored  [not_mr] no MR image (9 files: IM0, IM1, ...)" in out
    assert "no gradient-echo acquisition" in out
