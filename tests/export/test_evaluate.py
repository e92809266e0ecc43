"""The measures of a mask, against cases that can be counted by hand, and the road of `evaluate` from end to end."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from network_factory import installed, series

from export import evaluate
from export.pictures import cut, middle


def truth(shape=(20, 20, 20)):
    mask = np.zeros(shape, bool)
    mask[5:15, 5:15, 5:15] = True
    labels = np.where(mask, 2, 24)
    labels[:, :, :3] = 515
    lesions = np.zeros(shape, np.int16)
    lesions[5:7, 5:7, 5:7] = 1
    lesions[10:12, 10:12, 10:12] = 2
    return {"mask": mask, "labels": labels, "lesions": lesions, "voxel": np.array([1.0, 1.0, 1.0])}


def test_the_truth_scores_full_marks():
    found = evaluate.scores(truth()["mask"], truth())
    assert (found["dice"], found["hd95_mm"], found["surface_dice_1mm"], found["pieces"]) == (1, 0, 1, 1)
    assert found["outside_ml"] == found["missed_ml"] == found["holes_ml"] == found["foreign_ml"] == 0
    assert found["lesion_kept_min"] == 1


def test_every_fault_shows_in_its_own_measure():
    reference = truth()
    mask = reference["mask"].copy()
    mask[5:7, 5:7, 5:6] = False  # half of a lesion
    mask[8, 8, 8] = False  # a hole
    mask[0:10, 0:10, 0:2] = True  # bone, apart
    found = evaluate.scores(mask, reference)
    assert found["lesion_kept_min"] == 0.5
    assert found["holes_ml"] == pytest.approx(0.001, abs=0.006)
    assert found["foreign_ml"] == pytest.approx(0.2)
    assert found["pieces"] == 2
    assert found["hd95_mm"] > 3


def test_volumes_are_masked_and_drawn(tmp_path, capsys):
    magnitude, _, _, geometry = series()
    echoes = np.concatenate([magnitude, magnitude / 2])
    for stored in (echoes[0].transpose(2, 1, 0), echoes.transpose(3, 2, 1, 0)):
        nib.save(nib.Nifti1Image(stored, geometry.affine_ras_xyz), tmp_path / "mag.nii.gz")
        volumes, read = evaluate.loaded(tmp_path / "mag.nii.gz")
        assert np.array_equal(volumes, echoes[: stored.shape[3] if stored.ndim == 4 else 1])
        assert np.allclose(read.affine_lps, geometry.affine_lps)
    sheet, table = tmp_path / "sheet.png", tmp_path / "rows.csv"
    model = str(installed(tmp_path))
    evaluate.main(
        ["--model", model, "--sheet", str(sheet), "--table", str(table), "volumes", str(tmp_path / "mag.nii.gz")]
    )
    assert "| mag.nii.gz |" in capsys.readouterr().out
    assert sheet.stat().st_size > 1000
    assert "pieces" in table.read_text(encoding="utf-8")


def test_slices_are_shown_feet_down():
    volume = np.zeros((4, 5, 6))
    volume[3, 0, 1] = 1
    image, aspect = cut(volume, "coronal", (0, 0, 0), (2.0, 1.0, 1.0))
    assert np.argwhere(image > 0).tolist() == [[0, 1]]
    assert aspect == 2
    assert middle(volume > 0) == (3, 0, 1)
