"""`qsm-edge mask`, with nothing stood in for: a tiny network finds a ball, in every encoding and orientation."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from network_factory import ball, installed, installed_pair, passing

from dicom_samples.encode import encode, save
from qsm_edge import cli, publish
from qsm_edge.dicom.maskfile import read_seg_mask
from qsm_edge.types import Geometry

sys.path.append(str(Path(__file__).parent / "dicom"))
import judges

SAMPLES = ("siemens_classic", "siemens_xa_enhanced", "philips_classic", "philips_enhanced", "ge_real_imaginary")
ECHO_TIMES_S, B0_TESLA = (0.006, 0.013), 3.0
PATIENT = ("Quagga", "Zebediah")


def geometry() -> Geometry:
    """A slab turned about one axis, of other steps along each."""
    a = np.deg2rad(12.0)
    axes = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])[:, ::-1]
    affine = np.eye(4)
    affine[:3, :3] = axes * (2.5, 1.5, 1.2)
    affine[:3, 3] = (-21.5, 3.25, -17.125)
    return Geometry((17, 29, 36), affine)


def lopsided() -> np.ndarray:
    """A ball without an eighth: no flip or turn leaves its mask as it is."""
    magnitude = ball(geometry(), 17.0)
    magnitude[9:, 15:, 19:] = 0
    return magnitude


def encoded(name: str) -> list[pydicom.Dataset]:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in geometry().shape), indexing="ij")
    noise = np.random.default_rng(0).uniform(0, 0.005, (2, *geometry().shape))
    times = np.reshape(ECHO_TIMES_S, (-1, 1, 1, 1))
    signal = (lopsided() + noise) * np.exp(150j * times * (z + 0.5 * y * y - 0.3 * x))
    datasets = encode(signal, geometry(), ECHO_TIMES_S, B0_TESLA, name, seed_name=name)
    for dataset in datasets:
        dataset.PatientName = "^".join(PATIENT)
    return datasets


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return installed(tmp_path_factory.mktemp("model"), output__mirror=True)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for name in SAMPLES:
        save(encoded(name), folder / name)
    return folder


def mask(capsys, *words: object) -> tuple[int, dict[str, Any]]:
    status = cli.main(["mask", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert not any(name in said.out + said.err for name in PATIENT)
    return status, json.loads(said.out)


def voxels(path: Path) -> np.ndarray:
    """(z, y, x) bool of a NIfTI file that has the axes of the images."""
    return np.asarray(nibabel.load(path).dataobj).T > 0


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


def nifti(path: Path, volume: np.ndarray, affine: np.ndarray, codes: tuple[int, int] = (2, 1)) -> Path:
    """A NIfTI file of a (z, y, x) or (echo, z, y, x) volume, with codes of sform and qform."""
    values = np.asarray(1000 * volume, np.float32)
    image = nibabel.Nifti1Image(values.T if values.ndim == 3 else values.transpose(3, 2, 1, 0), None)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    nibabel.save(image, path)
    return path


TURNS = [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, 1, 1)), ((2, 0, 1), (1, -1, 1)), ((1, 0, 2), (-1, -1, -1))]


def test_the_axes_of_a_nifti_do_not_matter_and_are_kept(model, tmp_path, capsys):
    plain = nibabel.load(nifti(tmp_path / "plain.nii.gz", lopsided(), geometry().affine_ras_xyz))
    masks = []
    for number, (order, signs) in enumerate(TURNS):
        turned = plain.as_reoriented(np.stack([order, signs], axis=1).astype(float))
        path = tmp_path / f"{number}.nii.gz"
        nibabel.save(turned, path)
        source = nibabel.load(path)
        status, facts = mask(capsys, path, tmp_path / f"out{number}", "--model", model)
        assert status == 0, facts
        folder = tmp_path / f"out{number}"
        assert {p.name for p in folder.iterdir()} == {"mask.nii.gz", "mask.json", ".qsm-edge.json"}
        made = nibabel.load(folder / "mask.nii.gz")
        assert made.shape == source.shape
        assert made.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(made.affine, source.affine)
        for form in ("get_sform", "get_qform"):
            for mine, theirs in zip(*(getattr(i, form)(coded=True) for i in (made, source)), strict=True):
                np.testing.assert_array_equal(mine, theirs)
        assert made.header.get_zooms() == source.header.get_zooms()
        back = nibabel.as_closest_canonical(made)
        masks.append(np.asarray(back.dataobj))
    assert masks[0].sum() > 1000
    for other in masks[1:]:
        assert (masks[0] != other).mean() < 1e-4, "rounding of the affine may move single voxels of the edge"


def test_a_nifti_gives_the_mask_of_its_dicom(studies, model, tmp_path, capsys):
    _, facts = mask(capsys, studies / "siemens_classic", tmp_path / "dicom", "--model", model)
    folder = Path(facts["done"][0]["folder"])
    image = nifti(tmp_path / "magnitude.nii.gz", lopsided(), geometry().affine_ras_xyz)
    assert mask(capsys, image, tmp_path / "nifti", "--model", model)[0] == 0
    one, other = voxels(folder / "mask.nii.gz"), voxels(tmp_path / "nifti" / "mask.nii.gz")
    assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.98


def test_the_volumes_of_a_nifti_are_its_echoes_and_the_second_network_sees_a_late_one(tmp_path, capsys):
    (tmp_path / "pair").mkdir()
    model = installed_pair(tmp_path / "pair", passing(decay=-9.0))
    late = 0.8 * lopsided()
    late[:, :, :16] *= 0.4  # decays five times as fast there, in less than half of the head
    counts = {}
    for name, volumes in (
        ("first", lopsided()),
        ("both", [lopsided(), late]),
        ("later", [lopsided(), lopsided(), late]),
    ):
        image = nifti(tmp_path / f"{name}.nii", np.asarray(volumes, np.float32), geometry().affine_ras_xyz)
        status, facts = mask(capsys, image, tmp_path / name, "--model", model)
        assert status == 0, facts
        assert facts["done"][0]["echoes"] == {"first": 1, "both": 2, "later": 3}[name]
        counts[name] = voxels(tmp_path / name / "mask.nii.gz")
    fast, slow = (counts["first"][:, :, part].sum() for part in (np.s_[:17], np.s_[19:]))
    assert fast > 1000
    assert counts["both"][:, :, :17].sum() < 0.2 * fast
    assert counts["both"][:, :, 19:].sum() > 2 * counts["both"][:, :, :17].sum() + 0.5 * slow
    np.testing.assert_array_equal(counts["both"], counts["later"])


def test_of_a_series_that_is_longer_than_any_train_of_echoes_the_first_volume_counts(model, tmp_path, capsys):
    others = np.random.default_rng(0).uniform(0, 1, (30, *geometry().shape))
    for name, volumes in (("one", lopsided()), ("many", [lopsided(), *others])):
        image = nifti(tmp_path / f"{name}.nii", np.asarray(volumes, np.float32), geometry().affine_ras_xyz)
        status, facts = mask(capsys, image, tmp_path / name, "--model", model)
        assert status == 0
        assert facts["done"][0]["echoes"] == 1
    np.testing.assert_array_equal(*(voxels(tmp_path / name / "mask.nii.gz") for name in ("one", "many")))


def test_the_classical_mask_says_that_a_nifti_has_no_phase(tmp_path, capsys):
    grid = Geometry.from_axes((40, 48, 44), (5.0, 5.0, 5.0))
    head = ball(grid, 90.0) - 0.9 * (ball(grid, 82.0) - ball(grid, 74.0))
    head += np.random.default_rng(0).uniform(0, 0.02, grid.shape).astype(np.float32)
    image = nifti(tmp_path / "head.nii.gz", head, grid.affine_ras_xyz)
    status, facts = mask(capsys, image, tmp_path / "out", "--mask", "threshold")
    assert status == 0, facts
    (done,) = facts["done"]
    assert {"no_phase", "mask_by_threshold"} <= {note["code"] for note in done["notes"]}
    assert done["volume_ml"] == pytest.approx(4 / 3 * np.pi * 7.4**3, rel=0.15)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"no image at all", "corrupt_header"),
        ("cut", "truncated_file"),
        ("complex", "pixel_data_invalid"),
        ("nowhere", "bad_geometry"),
        ("plane", "bad_geometry"),
        ("negative", "unknown_component"),
        ("nothing", "no_magnitude"),
        ("thin", "too_small"),
    ],
)
def test_a_nifti_that_cannot_be_used_is_refused_with_its_reason(model, tmp_path, capsys, content, code):
    path = tmp_path / "Quagga.nii"
    affine = geometry().affine_ras_xyz
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "complex":
        nibabel.save(nibabel.Nifti1Image(lopsided().T.astype(np.complex64), affine), path)
    else:
        volume = {
            "negative": lopsided() - 0.5,
            "nothing": 0 * lopsided(),
            "thin": lopsided()[:3],
            "plane": lopsided()[:1],
        }.get(content, lopsided())
        nifti(path, volume, affine, (0, 0) if content == "nowhere" else (1, 1))
        if content == "cut":
            path.write_bytes(path.read_bytes()[:-5000])
        if content == "plane":
            nibabel.save(nibabel.Nifti1Image(lopsided()[0].T, affine), path)
    status, facts = mask(capsys, path, tmp_path / "out", "--model", model)
    assert (status, [problem["code"] for problem in facts["refused"]]) == (3, [code])
    assert os.listdir(tmp_path / "out") == []


def test_a_folder_of_the_users_loses_nothing(model, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    one = nifti(tmp_path / "one.nii", lopsided(), geometry().affine_ras_xyz)
    two = nifti(tmp_path / "two.nii", lopsided()[:, ::-1], geometry().affine_ras_xyz)
    stale = folder / ".files.partial-99999"  # of a run that was killed
    stale.mkdir()
    (stale / ".qsm-edge.json").write_text('{"software": "qsm-edge", "acquisition": "1"}')
    for _ in range(2):
        assert mask(capsys, one, folder, "--model", model)[0] == 0
    before = (folder / "mask.nii.gz").read_bytes()
    assert mask(capsys, two, folder, "--model", model)[0] == 2
    assert (folder / "mask.nii.gz").read_bytes() == before
    assert (folder / "notes.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    nifti(other / "mask.nii.gz", lopsided(), geometry().affine_ras_xyz)
    before = (other / "mask.nii.gz").read_bytes()
    for image in (one, other / "mask.nii.gz"):
        assert mask(capsys, image, other, "--model", model)[0] == 2
        assert (other / "mask.nii.gz").read_bytes() == before
    assert list(itertools.chain(folder.glob(".*partial*"), other.glob(".*partial*"))) == []
    assert publish.recover(folder) == []
