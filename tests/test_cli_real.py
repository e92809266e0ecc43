"""From files to files with nothing stood in for: reader, chain and writers on a small synthetic head."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from dicom_samples.encode import encode, save
from dicom_samples.head import simulate
from qsm_edge import cli
from qsm_edge.types import Geometry

ECHO_TIMES_S, B0_TESLA = (0.006, 0.013, 0.020), 3.0
PATIENT, PATIENT_ID = ("Quagga", "Zebediah"), "ZQ4711"
SHAPE, VOXEL_MM = (25, 44, 36), (6.0, 4.8, 4.6)


def geometry() -> Geometry:
    """A coarse oblique slab that holds a head."""
    a = np.deg2rad(12.0)
    axes = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])[:, ::-1]
    affine = np.eye(4)
    affine[:3, :3] = axes * np.asarray(VOXEL_MM)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(SHAPE) - 1) / 2)
    return Geometry(SHAPE, affine)


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> tuple[np.ndarray, Path]:
    """The signal, and the true mask as a NIfTI file."""
    complex_signal, _, mask = simulate(geometry(), ECHO_TIMES_S, B0_TESLA)
    path = tmp_path_factory.mktemp("truth") / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(mask.T.astype(np.uint8), geometry().affine_ras_xyz), path)
    return complex_signal, path


@pytest.fixture(scope="module")
def study(head, tmp_path_factory) -> Path:
    """Two usable acquisitions, one without its phase, and files that are none."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("siemens_classic", "philips_enhanced", "ge_real_imaginary"):
        datasets = encode(head[0], geometry(), ECHO_TIMES_S, B0_TESLA, name, seed_name=name)
        if name == "ge_real_imaginary":
            datasets = [d for d in datasets if d[0x0043, 0x102F].value == 2]
        for dataset in datasets:
            dataset.PatientName, dataset.PatientID = "^".join(PATIENT), PATIENT_ID
        save(datasets, folder / "deep" / name)
    (folder / "LICENSE").write_text("terms")
    (folder / "letter.dcm").write_text("Dear colleague, ...")
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(capsys, *arguments: object) -> tuple[int, dict[str, Any], str]:
    status = cli.main(["run", *map(str, arguments), "--json", "--recipe", "fast"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.out + captured.err


@pytest.fixture(scope="module")
def results(study, head, tmp_path_factory) -> tuple[int, dict[str, Any], Path, str]:
    """One run over the study with the true mask: exit status, JSON document, output folder, and all that was said."""
    output = tmp_path_factory.mktemp("results") / "out"
    before = fingerprint(study)
    command = [sys.executable, "-m", "qsm_edge", "run", str(study), str(output), "--json", "--recipe", "fast"]
    done = subprocess.run(
        [*command, "--mask", str(head[1]), "--nifti", "--parametric-map"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert fingerprint(study) == before, "the input was changed"
    return done.returncode, json.loads(done.stdout), output, done.stdout + done.stderr


def test_what_can_be_is_done_and_the_rest_is_refused_by_name(results):
    status, facts, output, _ = results
    assert status == facts["exit_status"] == 3, facts
    assert len(facts["done"]) == 2
    assert [problem["code"] for problem in facts["refused"] if problem["code"] != "not_dicom"] == ["no_imaginary"]
    assert facts["failed"] == []
    names = [name for word in ("refused", "ignored") for problem in facts[word] for name in problem["names"]]
    assert {"LICENSE", "letter.dcm"} <= set(names)
    assert sorted(os.listdir(output)) == sorted(Path(done["folder"]).name for done in facts["done"])
    assert all(
        re.fullmatch(rf"{done['acquisition']}_fast-[0-9a-f]{{8}}", Path(done["folder"]).name) for done in facts["done"]
    )


def test_each_result_folder_is_complete(results):
    for done in results[1]["done"]:
        folder = Path(done["folder"])
        assert len(list((folder / "chi").glob("*.dcm"))) == SHAPE[0]
        maps = {path.name for path in (folder / "nifti").iterdir()}
        assert maps == {f"{name}.nii.gz" for name in ("chi_ppm", "mask", "field_ppm", "local_ppm", "r2star")}
        for name in ("mask.dcm", "parametric_map.dcm", "report.html", "report.json"):
            assert (folder / name).stat().st_size > 0
        assert json.loads((folder / "report.json").read_text())


def chi_of(folder: Path) -> np.ndarray:
    """Stored values (z, y, x), ppb, in the order of the slices' positions along the normal."""
    slices = [pydicom.dcmread(path) for path in (folder / "chi").glob("*.dcm")]
    normal = np.cross(*np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3))
    slices.sort(key=lambda d: float(np.array(d.ImagePositionPatient, float) @ normal))
    return np.stack([d.pixel_array for d in slices]).astype(np.int64)


def test_two_vendors_encodings_of_one_head_give_one_map(results):
    one, other = (chi_of(Path(done["folder"])) for done in results[1]["done"])
    assert np.abs(one).max() > 50
    difference = np.abs(one - other)[(one != 0) | (other != 0)]
    assert np.percentile(difference, 99.9) <= 2
    assert difference.max() <= 5


def test_the_users_mask_is_honoured(results, head):
    given = np.asarray(nibabel.load(head[1]).dataobj) > 0
    for done in results[1]["done"]:
        written = np.asarray(nibabel.load(Path(done["folder"]) / "nifti" / "mask.nii.gz").dataobj) > 0
        assert not (written & ~given).any()
        assert written.sum() > 0.85 * given.sum()


def test_no_patient_is_named_outside_the_dicom_objects(results):
    said = [results[3]]
    for done in results[1]["done"]:
        folder = Path(done["folder"])
        said += [(folder / name).read_text() for name in ("report.html", "report.json", ".qsm-edge.json")]
        said += ["\n".join(str(path) for path in folder.rglob("*"))]
        assert str(pydicom.dcmread(next((folder / "chi").iterdir())).PatientName) == "^".join(PATIENT)
    for text in said:
        assert [word for word in (*PATIENT, PATIENT_ID) if word.lower() in text.lower()] == []


def without_times(path: Path) -> Any:
    dataset = pydicom.dcmread(path)
    for word in ("InstanceCreationDate", "InstanceCreationTime"):
        if word in dataset:
            del dataset[word]
    return dataset


def test_the_same_input_gives_the_same_objects_from_a_zip_too(results, study, head, tmp_path, capsys):
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in (study / "deep" / "siemens_classic").iterdir():
            zipped.write(path, f"DICOM/{path.stem}")
    status, facts, _ = run(capsys, archive, tmp_path / "out", "--mask", head[1])
    assert status == 0
    (done,) = facts["done"]
    earlier = results[2] / Path(done["folder"]).name
    for name in ("chi", "."):
        for path in (earlier / name).glob("*.dcm"):
            if path.name != "parametric_map.dcm":
                again = Path(done["folder"]) / name / path.name
                assert without_times(again) == without_times(path), path.name


def test_our_own_output_fed_back_is_recognised_and_ignored(results, tmp_path, capsys):
    status, facts, _ = run(capsys, results[2], tmp_path / "out")
    assert (status, facts["done"], facts["refused"]) == (0, [], [])
    assert "own_output" in {problem["code"] for problem in facts["ignored"]}
    assert os.listdir(tmp_path / "out") == []


def test_output_into_the_input_folder_is_not_reconstructed_again(study, tmp_path, capsys):
    folder = tmp_path / "both"
    shutil.copytree(study / "deep" / "siemens_classic", folder / "raw")
    assert run(capsys, folder, folder)[0] == 0
    status, facts, _ = run(capsys, folder, folder)
    assert (status, len(facts["done"])) == (0, 1)
    assert "own_output" in {problem["code"] for problem in facts["ignored"]}
    assert sorted(os.listdir(folder)) == sorted(["raw", f"{facts['done'][0]['acquisition']}_fast"])


def test_inspect_agrees_with_run(study, results, capsys):
    assert cli.main(["inspect", str(study), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [u["slug"] for u in found["usable"]] == [d["acquisition"] for d in results[1]["done"]]
    assert [r["code"] for r in found["refused"]] == [r["code"] for r in results[1]["refused"]]
    assert cli.main(["inspect", str(study)]) == 3
    text = capsys.readouterr().out
    assert "[no_imaginary]" in text
    assert text.count("phase scale") == len(found["usable"]), "what only the pixels tell"


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a signal of POSIX systems")
def test_kill_9_leaves_no_result_under_a_final_name(study, tmp_path, capsys):
    source, output = study / "deep" / "siemens_classic", tmp_path / "out"
    command = [sys.executable, "-m", "qsm_edge", "run", str(source), str(output), "--quiet", "--recipe", "fast"]
    with subprocess.Popen(command) as process:
        while process.poll() is None and not (output.is_dir() and list(output.glob(".*.partial-*"))):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(output) if not name.startswith(".")] == []
    status, facts, _ = run(capsys, source, output)
    assert status == 0
    assert os.listdir(output) == [f"{facts['done'][0]['acquisition']}_fast"]
