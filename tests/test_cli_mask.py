"""`qsm-edge mask`, with nothing stood in for: a tiny network finds a ball, in every encoding and orientation."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from mask_world import ECHO_TIMES_S, PATIENT, SAMPLES, encoded, geometry, lopsided, mask, nifti, voxels
from network_factory import installed

from dicom_samples.encode import save
from qsm_edge import cli
from qsm_edge.dicom.maskfile import read_seg_mask

sys.path.append(str(Path(__file__).parent / "dicom"))
import judges


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return installed(tmp_path_factory.mktemp("model"), output__mirror=True)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for name in SAMPLES:
        save(encoded(name), folder / name)
    return folder


@pytest.mark.parametrize("name", SAMPLES)
def test_every_encoding_gives_the_same_mask_and_a_segmentation_of_the_first_echo(
    studies, model, tmp_path, capsys, name
):
    status, facts = mask(capsys, studies / name, tmp_path / "out", "--model", model)
    assert status == 0, facts
    (done,) = facts["done"]
    folder = Path(done["folder"])
    assert folder == tmp_path / "out" / done["acquisition"]
    assert {path.name for path in folder.iterdir()} == {".qsm-edge.json", "mask.nii.gz", "mask.dcm", "mask.json"}
    brain = voxels(folder / "mask.nii.gz")
    np.testing.assert_allclose(nibabel.load(folder / "mask.nii.gz").affine, geometry().affine_ras_xyz, atol=1e-4)
    truth = lopsided() > 0.4
    assert 2 * (brain & truth).sum() / (brain.sum() + truth.sum()) > 0.93
    np.testing.assert_array_equal(read_seg_mask(folder / "mask.dcm", geometry()), brain)

    files = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (studies / name).iterdir())}
    segmentation = highdicom.seg.segread(folder / "mask.dcm")
    for number, groups in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        (item,) = groups.DerivationImageSequence[0].SourceImageSequence
        image = files[item.ReferencedSOPInstanceUID]
        assert item.ReferencedSOPClassUID == image.SOPClassUID
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        frame = int(item.ReferencedFrameNumber) if "ReferencedFrameNumber" in item else 0
        assert first_echo_position(image, frame) == pytest.approx(list(position), abs=1e-4)
        z = round(float((np.linalg.inv(geometry().affine_lps) @ [*position, 1])[0]))
        np.testing.assert_array_equal(segmentation.pixel_array[number] > 0, brain[z])
    (series,) = segmentation.ReferencedSeriesSequence
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert {files[uid].SeriesInstanceUID for uid in referenced} == {series.SeriesInstanceUID}
    assert len(referenced) == (1 if "enhanced" in name else geometry().shape[0])
    some = files[next(iter(referenced))]
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID"):
        assert segmentation[keyword].value == some[keyword].value
    assert segmentation.SeriesInstanceUID != series.SeriesInstanceUID


def first_echo_position(image: pydicom.Dataset, frame: int) -> list[float]:
    """Where an image lies, after making sure that it is the magnitude (or real) image of the first echo."""
    if not frame:
        raw = image.get((0x0043, 0x102F))
        assert (raw.value == 2) if raw is not None else ("M" in image.ImageType[2:])
        assert float(image.EchoTime) == pytest.approx(1000 * ECHO_TIMES_S[0])
        return [float(v) for v in image.ImagePositionPatient]
    groups = image.PerFrameFunctionalGroupsSequence[frame - 1]
    assert groups.MRImageFrameTypeSequence[0].ComplexImageComponent == "MAGNITUDE"
    assert groups.MREchoSequence[0].EffectiveEchoTime == pytest.approx(1000 * ECHO_TIMES_S[0])
    return [float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient]


def test_nothing_can_be_said_against_the_segmentations(studies, model, tmp_path, capsys):
    status, facts = mask(capsys, studies, tmp_path / "out", "--model", model)
    assert (status, len(facts["done"])) == (0, len(SAMPLES))
    for done in facts["done"]:
        assert judges.verdict(Path(done["folder"]) / "mask.dcm") == [], done["acquisition"]


def test_the_facts_name_the_network_and_how_sure_it_is_but_no_patient(studies, model, tmp_path, capsys):
    _, facts = mask(capsys, studies / "philips_enhanced", tmp_path / "out", "--model", model)
    (done,) = facts["done"]
    text = (Path(done["folder"]) / "mask.json").read_text(encoding="utf-8")
    assert not any(name in text for name in PATIENT)
    said = json.loads(text)
    assert {key: done[key] for key in said} == said
    assert said["method"] == "network"
    assert (said["model"]["name"], said["model"]["version"]) == ("tiny", "1")
    assert f'sha256 = "{said["model"]["sha256"]}"' in model.with_suffix(".toml").read_text()
    assert said["volume_ml"] == pytest.approx(voxels(Path(done["folder"]) / "mask.nii.gz").sum() * 0.0045, abs=0.001)
    assert set(said["figures"]) >= {"mask_edge", "mask_agreement"}
    assert "mask_implausible" in {note["code"] for note in said["notes"]}, "a ball of 20 mL is no brain"


def test_the_same_input_gives_the_same_bytes_and_replaces_itself(studies, model, tmp_path, capsys):
    written = []
    for _ in range(2):
        _, facts = mask(capsys, studies / "siemens_classic", tmp_path / "out", "--model", model)
        (done,) = facts["done"]
        dataset = pydicom.dcmread(Path(done["folder"]) / "mask.dcm")
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = "20260105", "000000"
        dataset.save_as(tmp_path / "mask.dcm")
        others = [(Path(done["folder"]) / name).read_bytes() for name in ("mask.nii.gz", "mask.json")]
        written.append([(tmp_path / "mask.dcm").read_bytes(), *others])
    assert written[0] == written[1]
    assert os.listdir(tmp_path / "out") == [done["acquisition"]]


def test_masks_made_otherwise_live_side_by_side(studies, model, tmp_path, capsys):
    names = []
    for smooth in ("0.7", "1.5", "0.7"):
        words = ("--mask", "network", "--model", model, "--set", f"mask.smooth_mm={smooth}")
        status, facts = mask(capsys, studies / "siemens_classic", tmp_path / "out", *words)
        assert status == 0
        names.append(Path(facts["done"][0]["folder"]).name)
        assert facts["done"][0]["options"]["smooth_mm"] == float(smooth)
    assert names[0] == names[2] != names[1]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(set(names))


def test_our_own_output_fed_back_is_recognised_and_ignored(studies, model, tmp_path, capsys):
    both = tmp_path / "both"
    save(encoded("siemens_classic"), both / "raw")
    first = mask(capsys, both, both, "--model", model)[1]["done"][0]
    status, facts = mask(capsys, both, both, "--model", model)
    assert (status, len(facts["done"]), facts["refused"]) == (0, 1, [])
    assert "own_output" in {problem["code"] for problem in facts["ignored"]}
    assert sorted(os.listdir(both)) == sorted(["raw", first["acquisition"]])
    status, facts = mask(capsys, first["folder"], tmp_path / "again", "--model", model)
    assert (status, facts["done"], facts["refused"]) == (0, [], [])
    status, facts = mask(capsys, Path(first["folder"]) / "mask.nii.gz", tmp_path / "again", "--model", model)
    assert (status, facts["done"], [p["code"] for p in facts["ignored"]]) == (0, [], ["own_output"])
    assert os.listdir(tmp_path / "again") == []


def test_a_network_that_is_not_what_its_card_says_is_refused(studies, tmp_path, capsys):
    wrong = installed(tmp_path, sha256="0" * 64)
    status, facts = mask(capsys, studies / "siemens_classic", tmp_path / "out", "--model", wrong)
    assert (status, facts["done"]) == (3, [])
    assert [problem["code"] for problem in facts["refused"]] == ["model_checksum"]
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mask", "threshold", "--model", "MODEL"], "would not be used"),
        (["--set", "invert=tkd"], "would not be used"),
        (["--set", "mask.smoth_mm=1", "--mask", "network"], "smoth_mm"),
        (["--set", "mask=threshold", "--mask", "network"], "contradict"),
        (["--model", "absent.onnx"], "absent.onnx"),
        (["--mask", "mine.nii"], "threshold"),
        (["--nifti"], "--nifti"),
    ],
)
def test_wrong_usage_is_2_and_helps(studies, model, tmp_path, capsys, words, says):
    words = [str(model) if word == "MODEL" else word for word in words]
    assert cli.main(["mask", str(studies), str(tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_refused_and_the_rest_is_done(studies, model, tmp_path, capsys):
    save(encoded("siemens_classic"), tmp_path / "in" / "whole")
    half = [d for d in encoded("ge_real_imaginary") if d[0x0043, 0x102F].value == 2]
    save(half, tmp_path / "in" / "half")
    assert cli.main(["mask", str(tmp_path / "in"), str(tmp_path / "out"), "--model", str(model), "--quiet"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "[no_imaginary]" in said.err
    assert len(os.listdir(tmp_path / "out")) == 1


def test_memory_and_disk_are_looked_at_first(studies, model, tmp_path, capsys, monkeypatch):
    image = nifti(tmp_path / "m.nii", lopsided(), geometry().affine_ras_xyz)
    monkeypatch.setattr("qsm_edge.backend.available_bytes", lambda device: 10**6)
    for source in (studies / "siemens_classic", image):
        status, facts = mask(capsys, source, tmp_path / "out", "--model", model)
        assert (status, [p["code"] for p in facts["refused"]]) == (3, ["out_of_memory"])


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_what_goes_wrong_while_writing_leaves_nothing(studies, model, tmp_path, capsys, monkeypatch, kind):
    def full(facts, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qsm_edge.maskonly._write_facts", full)
    image = nifti(tmp_path / "m.nii", lopsided(), geometry().affine_ras_xyz)
    source = image if kind == "nifti" else studies / "siemens_classic"
    status, facts = mask(capsys, source, tmp_path / "out", "--model", model)
    assert (status, [p["code"] for p in facts["refused"]]) == (3, ["out_of_disk"])
    assert os.listdir(tmp_path / "out") == []


def test_the_text_says_where_to_look(studies, model, tmp_path, capsys):
    assert cli.main(["mask", str(studies / "siemens_classic"), str(tmp_path / "out"), "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert "mL by network tiny 1" in out
    assert "mask.nii.gz" in out
    assert "1 masked, 0 refused" in out
    assert cli.main(["mask", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("mask.dcm", "mask.json", "first echo", "--model", "auto|network|threshold"[:4]))
