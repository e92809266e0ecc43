"""Laws of NIfTI in and out: world space decides, nothing is resampled, the same array gives the same bytes."""

from __future__ import annotations

import gzip
import itertools

import nibabel
import numpy as np
import pytest

from qsm_edge.errors import InputRefused
from qsm_edge.nifti import read_mask, write_nifti, write_result
from qsm_edge.types import Geometry
from tests.dicom import results as made_by_hand

SHAPE = (5, 8, 7)


def oblique(shape=SHAPE, voxel_mm=(2.2, 1.1, 0.9), degrees=12.0) -> Geometry:
    """A grid turned about two axes, left-handed in (z, y, x) as in DICOM."""
    a = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(a / 2), -np.sin(a / 2), 0], [np.sin(a / 2), np.cos(a / 2), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (about_x @ about_z)[:, ::-1] * np.asarray(voxel_mm)
    affine[:3, 3] = (-13.25, 40.75, -7.125)
    return Geometry(shape, affine)


def lopsided(shape=SHAPE) -> np.ndarray:
    """A mask that no flip or turn leaves as it is."""
    mask = np.zeros(shape, bool)
    mask[1:, 2:-1, 1:] = True
    mask[1, 2, 1:4] = False
    mask[-1, -2, -1] = False
    return mask


def moved(axis: int, voxels: float) -> Geometry:
    """The grid, shifted along one of its own axes."""
    affine = oblique().affine_lps.copy()
    affine[:3, 3] += voxels * affine[:3, axis]
    return Geometry(SHAPE, affine)


def save(path, values, affine, codes=(1, 1)):
    """A NIfTI file of an (x, y, z) array with its RAS affine."""
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    nibabel.save(image, path)
    return path


def refused(path, code, geometry=None):
    with pytest.raises(InputRefused) as caught:
        read_mask(path, geometry or oblique())
    assert caught.value.code == code
    assert path.name in caught.value.where
    return caught.value


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_what_is_written_lies_where_the_geometry_says(tmp_path, suffix, dtype):
    grid = oblique()
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    image = nibabel.load(write_nifti(array, grid, tmp_path / f"map{suffix}"))
    values = np.asarray(image.dataobj)
    assert values.dtype == (np.float32 if dtype is np.float32 else np.uint8)
    for z, y, x in ((0, 0, 0), (4, 7, 6), (2, 5, 1)):
        left_posterior_superior = (grid.affine_lps @ [z, y, x, 1])[:3]
        world = (image.affine @ [x, y, z, 1])[:3] * (-1, -1, 1)
        np.testing.assert_allclose(world, left_posterior_superior, atol=1e-4)
        assert values[x, y, z] == array[z, y, x]
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_the_same_array_gives_the_same_bytes(tmp_path):
    array = np.random.default_rng(0).normal(size=SHAPE)
    one = write_nifti(array, oblique(), tmp_path / "one.nii.gz").read_bytes()
    two = write_nifti(array, oblique(), tmp_path / "two.nii.gz").read_bytes()
    assert one == two
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.nii.gz", "two.nii.gz"]


def test_an_array_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        write_nifti(np.zeros((5, 8, 8)), oblique(), tmp_path / "map.nii")
    assert not list(tmp_path.iterdir())


def test_a_mask_goes_out_and_comes_back(tmp_path):
    np.testing.assert_array_equal(
        read_mask(write_nifti(lopsided(), oblique(), tmp_path / "m.nii.gz"), oblique()), lopsided()
    )


ORIENTATIONS = [(o, f) for o in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_the_order_and_direction_of_the_axes_in_the_file_do_not_matter(tmp_path, order, signs):
    grid = oblique()
    plain = nibabel.Nifti1Image(lopsided().transpose(2, 1, 0).astype(np.uint8), grid.affine_ras_xyz)
    orientation = np.stack([order, signs], axis=1).astype(float)
    turned = plain.as_reoriented(orientation)
    path = save(tmp_path / "m.nii", np.asarray(turned.dataobj), turned.affine)
    np.testing.assert_array_equal(read_mask(path, grid), lopsided())


def test_a_soft_mask_is_cut_at_one_half_and_nan_is_outside(tmp_path):
    levels = np.random.default_rng(1).uniform(0, 1, SHAPE).astype(np.float32)
    levels[2, 2, 2], levels[2, 2, 3] = np.nan, np.inf
    path = write_nifti(levels, oblique(), tmp_path / "soft.nii.gz")
    wanted = np.nan_to_num(levels, nan=0.0, posinf=1.0) > 0.5
    np.testing.assert_array_equal(read_mask(path, oblique()), wanted)


def test_scaled_integers_are_cut_after_scaling(tmp_path):
    values = lopsided().transpose(2, 1, 0).astype(np.uint8) * 200
    image = nibabel.Nifti1Image(values, oblique().affine_ras_xyz)
    image.header.set_slope_inter(0.0025, 0.1)
    nibabel.save(image, tmp_path / "scaled.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "scaled.nii", oblique()), lopsided())


def test_trailing_axes_of_one_are_dropped_and_others_refused(tmp_path):
    values = lopsided().transpose(2, 1, 0).astype(np.uint8)
    path = save(tmp_path / "one.nii", values[..., None, None], oblique().affine_ras_xyz)
    np.testing.assert_array_equal(read_mask(path, oblique()), lopsided())
    two = save(tmp_path / "two.nii", np.stack([values, values], -1), oblique().affine_ras_xyz)
    assert "(7, 8, 5, 2)" in refused(two, "mask_invalid").got
    refused(save(tmp_path / "flat.nii", values[..., 0], oblique().affine_ras_xyz), "mask_invalid")


@pytest.mark.parametrize(
    "other",
    [
        oblique(shape=(5, 8, 6)),
        oblique(shape=(6, 8, 7)),
        oblique(voxel_mm=(2.2, 1.1, 0.95)),
        oblique(voxel_mm=(1.1, 0.55, 0.45)),
        oblique(degrees=12.5),
        moved(2, 1.0),
        moved(0, -1.0),
        moved(1, 0.12),
        Geometry((5, 7, 8), oblique().affine_lps),
    ],
    ids=["narrower", "taller", "coarser", "finer", "turned", "by a column", "by a slice", "by a bit", "turned shape"],
)
def test_another_grid_is_refused_with_numbers(tmp_path, other):
    path = write_nifti(np.ones(other.shape, np.uint8), other, tmp_path / "m.nii.gz")
    error = refused(path, "mask_grid")
    assert "(7, 8, 5)" in error.got or "mm" in error.got
    assert "(5, 8, 7)" in error.wanted


def test_rounding_of_the_affine_is_forgiven(tmp_path):
    affine = oblique().affine_ras_xyz + 0.001
    affine[3] = (0, 0, 0, 1)
    path = save(tmp_path / "m.nii", lopsided().transpose(2, 1, 0).astype(np.uint8), affine)
    np.testing.assert_array_equal(read_mask(path, oblique()), lopsided())


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (4, 2)])
def test_either_form_is_enough(tmp_path, codes):
    path = save(tmp_path / "m.nii", lopsided().transpose(2, 1, 0).astype(np.uint8), oblique().affine_ras_xyz, codes)
    np.testing.assert_array_equal(read_mask(path, oblique()), lopsided())


def test_a_file_without_world_coordinates_is_refused(tmp_path):
    values = lopsided().transpose(2, 1, 0).astype(np.uint8)
    path = save(tmp_path / "m.nii", values, oblique().affine_ras_xyz, codes=(0, 0))
    assert "code" in refused(path, "mask_grid").what


def test_an_empty_mask_is_refused(tmp_path):
    refused(write_nifti(np.zeros(SHAPE, np.uint8), oblique(), tmp_path / "m.nii"), "mask_empty")
    refused(write_nifti(np.full(SHAPE, np.nan), oblique(), tmp_path / "n.nii"), "mask_empty")


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.txt"])
@pytest.mark.parametrize("content", [b"", b"no image at all", bytes(400)])
def test_what_is_no_nifti_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "mask_invalid")


def test_an_absent_file_is_refused(tmp_path):
    refused(tmp_path / "absent.nii.gz", "mask_invalid")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = write_nifti(np.random.default_rng(2).normal(size=SHAPE), oblique(), tmp_path / f"m{suffix}")
    path.write_bytes(path.read_bytes()[:-60])
    refused(path, "mask_invalid")


def test_colours_and_complex_numbers_are_no_mask(tmp_path):
    values = lopsided().transpose(2, 1, 0).astype(np.complex64)
    refused(save(tmp_path / "c.nii", values, oblique().affine_ras_xyz), "mask_invalid")
    colours = np.zeros((7, 8, 5), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refused(save(tmp_path / "rgb.nii", colours, oblique().affine_ras_xyz), "mask_invalid")


def test_an_affine_that_is_no_number_is_refused(tmp_path):
    path = save(tmp_path / "m.nii", lopsided().transpose(2, 1, 0).astype(np.uint8), oblique().affine_ras_xyz, (1, 0))
    content = bytearray(path.read_bytes())
    content[280:284] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(content))
    refused(path, "mask_grid")


def test_the_bytes_do_not_tell_the_time(tmp_path):
    content = write_nifti(lopsided(), oblique(), tmp_path / "m.nii.gz").read_bytes()
    assert content[4:8] == bytes(4)
    assert gzip.decompress(content)[344:348] == b"n+1\0"


def test_a_result_becomes_its_maps_and_r2star_only_where_there_is_one(tmp_path):
    full, single = made_by_hand.result(), made_by_hand.result(r2star_per_s=None)
    paths = write_result(full, tmp_path / "nifti")
    assert [p.name for p in paths] == [f"{n}.nii.gz" for n in ("chi_ppm", "mask", "field_ppm", "local_ppm", "r2star")]
    arrays = (full.chi_ppm, full.brain, full.field_ppm, full.local_ppm, full.r2star_per_s)
    for path, array in zip(paths, arrays, strict=True):
        image = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), array)
        np.testing.assert_allclose(image.affine, full.series.geometry.affine_ras_xyz, atol=1e-4)
    assert "r2star.nii.gz" not in [p.name for p in write_result(single, tmp_path / "one")]
    np.testing.assert_array_equal(read_mask(tmp_path / "nifti" / "mask.nii.gz", full.series.geometry), full.brain)
