"""`qsm-edge mask` on a NIfTI magnitude: its axes, its echoes, and what cannot be used."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from mask_world import encoded, geometry, lopsided, mask, nifti, voxels
from network_factory import ball, installed, installed_pair, passing

from dicom_samples.encode import save
from qsm_edge import publish
from qsm_edge.nifti import open_magnitude
from qsm_edge.types import Geometry


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return installed(tmp_path_factory.mktemp("model"), output__mirror=True)


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


def test_a_nifti_gives_the_mask_of_its_dicom(model, tmp_path, capsys):
    save(encoded("siemens_classic"), tmp_path / "study")
    _, facts = mask(capsys, tmp_path / "study", tmp_path / "dicom", "--model", model)
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


@pytest.mark.parametrize(
    ("further", "echoes"), [((), 1), ((1,), 1), ((24,), 24), ((25,), 1), ((3, 1), 3), ((2, 1, 1), 2)]
)
def test_how_many_volumes_are_echoes(tmp_path, further, echoes):
    values = np.ones((4, 5, 6, *further), np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "m.nii.gz")
    found = open_magnitude(tmp_path / "m.nii.gz")
    assert found.echoes == echoes
    assert found.load(echoes).shape == (echoes, 6, 5, 4)


def test_the_classical_mask_reads_the_first_volume_alone_and_the_network_refuses_an_empty_one(model, tmp_path, capsys):
    grid = Geometry.from_axes((40, 48, 44), (5.0, 5.0, 5.0))
    head = ball(grid, 90.0) - 0.9 * (ball(grid, 82.0) - ball(grid, 74.0))
    image = nifti(tmp_path / "spoilt.nii.gz", np.stack([head, -head]), grid.affine_ras_xyz)
    status, facts = mask(capsys, image, tmp_path / "classical", "--mask", "threshold")
    assert status == 0, facts
    assert facts["done"][0]["echoes"] == 1
    for name, volumes, code in (
        ("negative", [head, -head], "unknown_component"),
        ("empty", [0 * head, head], "no_magnitude"),
    ):
        image = nifti(tmp_path / f"{name}.nii.gz", np.stack(volumes), grid.affine_ras_xyz)
        status, facts = mask(capsys, image, tmp_path / name, "--model", model)
        assert (status, [p["code"] for p in facts["refused"]]) == (3, [code])


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
