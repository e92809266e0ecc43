"""Laws of a mask that comes as a DICOM Segmentation: placed by position and exactly, or refused with the reason."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import results
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pack_bits

from dicom_samples.encode import encode, save
from qsm_edge.dicom.maskfile import LABEL_MAP, SEGMENTATION, read_seg_mask
from qsm_edge.errors import InputRefused

BRAIN = ("12738006", "SCT", "Brain")
SKULL = ("89546000", "SCT", "Skull")


def item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def segment(number, label, code):
    value, scheme, meaning = code
    kind = item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    return item(SegmentNumber=number, SegmentLabel=label, SegmentedPropertyTypeCodeSequence=[kind])


def write(path, frames, grid, segments=None, *, kind="BINARY", step_mm=None, moved_mm=(0, 0, 0)):
    """A Segmentation. frames: (slice of `grid`, segment, plane); axes and positions are those of `grid`."""
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.SOPClassUID = LABEL_MAP if kind == "LABELMAP" else SEGMENTATION
    d.SOPInstanceUID, d.Modality, d.SegmentationType = "2.25.1", "SEG", kind
    d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, "2.25.1"
    d.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    planes = np.stack([plane for _, _, plane in frames])
    d.NumberOfFrames, (d.Rows, d.Columns) = len(frames), planes.shape[1:]
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
    d.BitsAllocated = d.BitsStored = 1 if kind == "BINARY" else 8
    d.HighBit = d.BitsStored - 1
    if kind == "FRACTIONAL":
        d.MaximumFractionalValue, d.SegmentationFractionalType = 200, "PROBABILITY"
    d.PixelData = pack_bits(planes.astype(np.uint8)) if kind == "BINARY" else planes.astype(np.uint8).tobytes()
    if len(d.PixelData) % 2:
        d.PixelData += b"\0"
    d.SegmentSequence = segments or [segment(1, "Brain", BRAIN)]
    unit = grid.affine_lps[:3, :3] / np.asarray(grid.voxel_mm)
    measures = item(PixelSpacing=[grid.voxel_mm[1], grid.voxel_mm[2]], SliceThickness=grid.voxel_mm[0])
    if step_mm is not None:
        measures.SpacingBetweenSlices = step_mm
    shared = item(PixelMeasuresSequence=[measures])
    shared.PlaneOrientationSequence = [
        item(ImageOrientationPatient=[round(float(v), 10) for v in (*unit[:, 2], *unit[:, 1])])
    ]
    d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence = [shared], []
    for z, number, _ in frames:
        position = (grid.affine_lps @ [z, 0, 0, 1])[:3] + np.asarray(moved_mm)
        groups = item(
            PlanePositionSequence=[item(ImagePositionPatient=[round(float(v), 8) for v in position])],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
        )
        d.PerFrameFunctionalGroupsSequence.append(groups)
    with pydicom.config.disable_value_validation():
        d.save_as(path, enforce_file_format=True)
    return path


def planes(mask, number=1):
    return [(z, number, mask[z]) for z in range(mask.shape[0])]


def refused(path, code, grid=None):
    with pytest.raises(InputRefused) as caught:
        read_seg_mask(path, grid or results.geometry())
    assert caught.value.code == code
    assert caught.value.exit_status == 3
    assert path.name in str(caught.value)
    return caught.value


def test_the_order_of_the_frames_does_not_matter_and_absent_ones_are_empty(tmp_path):
    grid, mask = results.geometry(), results.brain()
    frames = [planes(mask)[z] for z in (3, 1, 4, 2)]
    np.testing.assert_array_equal(read_seg_mask(write(tmp_path / "m.dcm", frames, grid), grid), mask)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("flip", [(False, False, False), (True, False, False), (False, True, True), (True, True, True)])
def test_frames_of_any_orientation_land_on_the_voxels_that_they_cover(tmp_path, order, flip):
    grid, mask = results.geometry(), results.brain()
    turned = mask.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flip)]
    affine = np.eye(4)
    affine[:3, :3] = grid.affine_lps[:3, list(order)] * np.where(flip, -1, 1)
    corner = np.zeros(3)
    for axis, (came_from, flipped) in enumerate(zip(order, flip, strict=True)):
        corner[came_from] = mask.shape[came_from] - 1 if flip[axis] and flipped else 0
    affine[:3, 3] = (grid.affine_lps @ [*corner, 1])[:3]
    own = type(grid)(turned.shape, affine)
    np.testing.assert_array_equal(read_seg_mask(write(tmp_path / "m.dcm", planes(turned), own), grid), mask)


def test_a_smaller_frame_inside_the_images_is_enough(tmp_path):
    grid, mask = results.geometry(), results.brain()
    box = (slice(1, 5), slice(1, 8), slice(2, 7))
    path = write(tmp_path / "m.dcm", planes(mask[box]), grid.crop(box))
    np.testing.assert_array_equal(read_seg_mask(path, grid), mask)


def test_a_larger_frame_may_hang_over_where_it_is_empty(tmp_path):
    grid, mask = results.geometry(), results.brain()
    box = (slice(0, 5), slice(0, 6), slice(2, 7))
    np.testing.assert_array_equal(
        read_seg_mask(write(tmp_path / "m.dcm", planes(mask & (np.indices(mask.shape)[1] < 6)), grid), grid.crop(box)),
        mask[box],
    )
    error = refused(write(tmp_path / "over.dcm", planes(mask), grid), "mask_grid", grid.crop(box))
    assert "beyond" in error.what


def test_a_fraction_above_one_half_is_inside(tmp_path):
    grid = results.geometry()
    levels = np.arange(np.prod(grid.shape)).reshape(grid.shape) % 201
    path = write(tmp_path / "m.dcm", planes(levels), grid, kind="FRACTIONAL")
    np.testing.assert_array_equal(read_seg_mask(path, grid), levels > 100)


def test_in_a_label_map_the_pixels_name_the_segment(tmp_path):
    grid = results.geometry()
    labels = np.arange(np.prod(grid.shape)).reshape(grid.shape) % 4
    segments = [
        segment(n, label, code) for n, label, code in ((1, "Skull", SKULL), (2, "Brain", BRAIN), (3, "x", SKULL))
    ]
    path = write(tmp_path / "m.dcm", planes(labels), grid, segments, kind="LABELMAP")
    np.testing.assert_array_equal(read_seg_mask(path, grid), labels == 2)


def test_of_several_segments_the_brain_counts_or_all_where_none_is(tmp_path):
    grid, brain = results.geometry(), results.brain()
    other = np.roll(brain, 1, axis=2)
    frames = planes(brain, 2) + planes(other, 1)
    by_code = [segment(1, "A", SKULL), segment(2, "B", BRAIN)]
    by_name = [segment(1, "Brain stem", SKULL), segment(2, "whole brain (edited)", SKULL)]
    neither = [segment(1, "A", SKULL), segment(2, "Brainstem", SKULL)]
    for segments, wanted in ((by_code, brain), (by_name, brain), (neither, brain | other)):
        path = write(tmp_path / "m.dcm", frames, grid, segments)
        np.testing.assert_array_equal(read_seg_mask(path, grid), wanted)


def test_rounding_in_the_header_is_forgiven_and_a_shift_is_not(tmp_path):
    grid, mask = results.geometry(), results.brain()
    near = write(tmp_path / "near.dcm", planes(mask), grid, moved_mm=(0.02, -0.02, 0.02))
    np.testing.assert_array_equal(read_seg_mask(near, grid), mask)
    for name, moved in (("x", (0.3, 0, 0)), ("y", (0, 0.1, 0)), ("z", (0, 0, -0.6))):
        error = refused(write(tmp_path / f"{name}.dcm", planes(mask), grid, moved_mm=moved), "mask_grid")
        assert "mm" in error.got
        assert "mm" in error.wanted


@pytest.mark.parametrize("change", ["turned", "finer", "sparser"])
def test_another_grid_is_refused(tmp_path, change):
    grid, mask = results.geometry(), results.brain()
    other = {
        "turned": results.geometry(angles=(15.0, -6.0, 3.0)),
        "finer": results.geometry(voxel_mm=(2.5, 0.65, 0.55)),
        "sparser": results.geometry(),
    }[change]
    path = write(tmp_path / "m.dcm", planes(mask), other, step_mm=5.0 if change == "sparser" else None)
    refused(path, "mask_grid", grid)


def test_an_empty_mask_is_refused(tmp_path):
    grid = results.geometry()
    refused(write(tmp_path / "m.dcm", planes(np.zeros(grid.shape, bool)), grid), "mask_empty")


@pytest.mark.parametrize("content", [b"", b"text, not DICOM", b"\0" * 128 + b"DICM" + b"\xff" * 50])
def test_what_is_no_segmentation_is_refused(tmp_path, content):
    path = tmp_path / "mask.dcm"
    path.write_bytes(content)
    refused(path, "mask_invalid")


def test_an_absent_file_is_refused(tmp_path):
    refused(tmp_path / "absent.dcm", "mask_invalid")


def test_an_image_is_no_mask(tmp_path):
    grid = results.geometry()
    images = encode(np.ones((2, *grid.shape), complex), grid, results.ECHO_TIMES_S, 3.0, "siemens_classic")
    error = refused(save(images[:1], tmp_path)[0], "mask_invalid")
    assert "1.2.840.10008.5.1.4.1.1.4" in error.got


def test_a_truncated_mask_is_refused(tmp_path):
    grid = results.geometry()
    path = write(tmp_path / "m.dcm", planes(results.brain()), grid)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "mask_invalid")


def test_a_mask_that_does_not_say_where_it_lies_is_refused(tmp_path):
    grid = results.geometry()
    path = write(tmp_path / "m.dcm", planes(results.brain()), grid)
    d = pydicom.dcmread(path)
    del d.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    d.save_as(path)
    refused(path, "mask_invalid")
