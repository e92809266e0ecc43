"""Real exports, where the shared data are: a volunteer's head twice, against dcm2niix; the traps beside it by name."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from qsm_edge.dicom import find, read_series

pytestmark = pytest.mark.shared

CLASSIC, ENHANCED, REFERENCE = "philips_classic", "philips_enhanced", "philips_classic_reference"


@pytest.fixture(scope="module")
def head(shared):
    return read_series(shared / "data" / "dicom" / CLASSIC)


def test_the_head_is_understood(head):
    assert head.magnitude.shape == (2, 53, 80, 80)
    assert head.echo_times_s == pytest.approx((0.0023, 0.0046))
    assert head.b0_tesla == pytest.approx(127.748512 / 42.577478518)
    assert head.geometry.voxel_mm == pytest.approx((3, 3, 3), abs=1e-5)
    assert head.source.vendor == "philips"


def test_classic_and_enhanced_files_are_the_same_to_the_last_bit(shared, head):
    other = read_series(shared / "data" / "dicom" / ENHANCED)
    np.testing.assert_array_equal(head.magnitude, other.magnitude)
    np.testing.assert_array_equal(head.phase_rad, other.phase_rad)
    np.testing.assert_array_equal(head.geometry.affine_lps, other.geometry.affine_lps)
    assert head.echo_times_s == other.echo_times_s
    assert head.b0_tesla == other.b0_tesla


@pytest.mark.parametrize("echo", [0, 1])
@pytest.mark.parametrize("part", ["magnitude", "phase"])
def test_every_voxel_is_where_and_what_dcm2niix_says(shared, head, echo, part):
    """In world space. dcm2niix gives magnitudes in another unit, and -pi where the scanner says -3142 mrad."""
    tail = f"e{echo + 1}" + "_ph" * (part == "phase")
    (path,) = (shared / "data" / "dicom" / REFERENCE).glob(f"*_{tail}.nii.gz")
    image = nibabel.load(path)
    ours = (head.magnitude if part == "magnitude" else head.phase_rad)[echo].transpose(2, 1, 0)
    to_theirs = np.linalg.inv(image.affine) @ head.geometry.affine_ras_xyz
    index = to_theirs[:3, :3] @ np.indices(ours.shape).reshape(3, -1) + to_theirs[:3, 3:]
    nearest = np.rint(index).astype(int)
    assert np.abs(index - nearest).max() < 1e-4
    theirs = np.asarray(image.dataobj)[tuple(nearest)].reshape(ours.shape)
    if part == "magnitude":
        scale = float((theirs * ours).sum() / (ours.astype(float) ** 2).sum())
        np.testing.assert_allclose(ours * scale, theirs, rtol=1e-5, atol=1e-6 * theirs.max())
    else:
        assert np.abs(np.angle(np.exp(1j * (ours - theirs)))).max() < 5e-4


def test_phase_grows_with_the_field(head):
    """Near the top of the head's air cavities the field is stronger; below the brain's base it varies most."""
    rate = np.angle(np.exp(1j * (head.phase_rad[1] - head.phase_rad[0]))) / np.diff(head.echo_times_s)[0]
    bright = head.magnitude[0] > 0.3 * np.percentile(head.magnitude[0], 99)
    smooth = np.abs(np.diff(rate, axis=0))[bright[1:] & bright[:-1]]
    assert np.median(smooth) < 2 * np.pi * 25  # Hz from slice to slice: a field, not noise


@pytest.mark.parametrize(
    ("folder", "code", "files"),
    [
        ("ge_b0map", "field_map", 32),
        ("philips_fieldmap_enhanced", "field_map", 1),
        ("siemens_e11_phasediff", "phase_difference", 144),
        ("siemens_xa30_enhanced", "phase_difference", 3),
    ],
)
def test_maps_and_differences_are_refused_by_name(shared, folder, code, files):
    with find(shared / "data" / "dicom" / folder) as inventory:
        assert not inventory.acquisitions
        (refusal,) = inventory.refused
        assert (refusal.code, len(refusal.files)) == (code, files)
        assert [ignored.files for ignored in inventory.ignored] == [("LICENSE",)]


@pytest.mark.parametrize(("folder", "strays"), [(CLASSIC, {"not_dicom"}), (ENHANCED, {"not_dicom", "not_mr"})])
def test_strays_beside_the_head_are_ignored(shared, folder, strays):
    with find(shared / "data" / "dicom" / folder) as inventory:
        assert len(inventory.acquisitions) == 1
        assert not inventory.refused
        assert {ignored.code for ignored in inventory.ignored} == strays


def test_everything_at_once(shared):
    """All the folders as one input: two acquisitions, four refusals, and nothing taken from one for another."""
    with find(shared / "data" / "dicom") as inventory:
        refused = sorted(refusal.code for refusal in inventory.refused)
        assert [a.source.encoding for a in inventory.acquisitions] in (
            ["philips_classic", "philips_enhanced"],
            ["philips_enhanced", "philips_classic"],
        )
    assert refused == ["field_map", "field_map", "phase_difference", "phase_difference"]
