"""A spoilt acquisition is refused with its reason code, and the good one beside it is still read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import dicom_factory as factory
import numpy as np
import pytest

from qsm_edge.dicom import find, read_series
from qsm_edge.errors import REASONS, InputRefused


@dataclass(frozen=True)
class Seen:
    """What was found in a folder: slugs of the acquisitions, codes of what was refused and what was ignored."""

    acquisitions: int
    refused: tuple[str, ...]
    ignored: tuple[str, ...]


def look(folder: Path) -> Seen:
    """Look through a folder, and load what can be used: some reasons are in the pixels only."""
    with find(folder) as inventory:
        refused = [refusal.code for refusal in inventory.refused]
        loaded = 0
        for acquisition in inventory.acquisitions:
            try:
                acquisition.load()
                loaded += 1
            except InputRefused as refusal:
                refused.append(refusal.code)
        assert set(refused) <= set(REASONS)
        return Seen(loaded, tuple(sorted(refused)), tuple(sorted(i.code for i in inventory.ignored)))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with one good acquisition; copied by linking, so that it costs nothing."""
    return factory.write(factory.scan("siemens_classic", name="good"), tmp_path_factory.mktemp("good"))


def beside(good: Path, datasets, folder: Path) -> Path:
    """A folder with the good acquisition and the datasets."""
    (folder / "good").mkdir(parents=True)
    for file in good.iterdir():
        (folder / "good" / file.name).hardlink_to(file)
    factory.write(datasets, folder / "bad")
    return folder


def value(keyword: str, value):
    return lambda dataset: setattr(dataset, keyword, value)


def delete(keyword: str):
    return lambda dataset: delattr(dataset, keyword)


def shifted(millimetres: float):
    """Move an image along its slice normal."""

    def change(dataset):
        orientation = np.array(dataset.ImageOrientationPatient, float)
        normal = np.cross(orientation[:3], orientation[3:])
        position = np.array(dataset.ImagePositionPatient, float) + millimetres * normal
        dataset.ImagePositionPatient = [f"{v:.8f}"[:16] for v in position]

    return change


def beside_its_place(dataset):
    dataset.ImagePositionPatient = [float(dataset.ImagePositionPatient[0]) + 1.5, *dataset.ImagePositionPatient[1:]]


def tilted(dataset):
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def two_distortions(datasets):
    return factory.changed(datasets, value("ImageType", ["ORIGINAL", "PRIMARY", "P", "DIS2D"]), parts="P")


def one_more_of_another_number(datasets):
    """Acquisition numbers tell repetitions apart; one image more is none."""
    spoilt = factory.with_copy(datasets, parts="P", echo=2, slice_=4)
    spoilt[-1].AcquisitionNumber = 2
    return spoilt


def unwrapped(datasets):
    """Phase beyond one turn, in the scale that a turn has."""
    for dataset in factory.matching(datasets, parts="P"):
        dataset.BitsStored, dataset.HighBit = 16, 15
        pixels(lambda stored: stored * 3)(dataset)
    return datasets


def other_patient(dataset):
    dataset.PatientID, dataset.PatientName = "SYN02", "ANOTHER^HEAD"


def pixels(function):
    """Replace the stored values by a function of them."""

    def change(dataset):
        stored = dataset.pixel_array
        dataset.PixelData = function(stored).astype(stored.dtype).tobytes()

    return change


CHANGES = {
    # what is missing or too much
    "missing slice in one echo": ("missing_slice", lambda d: factory.without(d, parts="P", echo=1, slice_=2)),
    "missing slice everywhere": ("missing_slice", lambda d: factory.without(d, slice_=2)),
    "missing first slice everywhere": ("missing_slice", lambda d: factory.without(d, slice_=0)),
    "missing last slice in the phase": ("missing_slice", lambda d: factory.without(d, parts="P", slice_=4)),
    "doubled slice": ("doubled_slice", lambda d: factory.with_copy(d, parts="M", echo=0, slice_=1)),
    "doubled slice in every image": ("doubled_slice", lambda d: factory.with_copy(d, slice_=1)),
    "doubled slice with another number": ("doubled_slice", one_more_of_another_number),
    "everything twice": ("two_acquisitions", factory.with_copy),
    "missing first echo": ("missing_echo", lambda d: factory.without(d, echo=0)),
    "missing middle echo": ("missing_echo", lambda d: factory.without(d, echo=1)),
    "missing last echo": ("missing_echo", lambda d: factory.without(d, echo=2)),
    "missing echo in the phase": ("missing_echo", lambda d: factory.without(d, parts="P", echo=1)),
    "missing echo in the magnitude": ("missing_echo", lambda d: factory.without(d, parts="M", echo=2)),
    "no phase": ("no_phase", lambda d: factory.matching(d, parts="M")),
    "no magnitude": ("no_magnitude", lambda d: factory.matching(d, parts="P")),
    "two magnitudes, one phase": (
        "phase_difference",
        lambda d: (
            factory.matching(d, parts="M", echo=0)
            + factory.matching(d, parts="M", echo=1)
            + factory.matching(d, parts="P", echo=1)
        ),
    ),
    # whose, and what
    "two patients in a series": ("two_patients", lambda d: factory.changed(d, other_patient, echo=1)),
    "two patients, one a series": ("two_patients", lambda d: factory.changed(d, other_patient, parts="P")),
    "one image of another patient": ("two_patients", lambda d: factory.changed(d, other_patient, echo=0, slice_=0)),
    "phase from field mapping": (
        "phase_difference",
        lambda d: factory.changed(d, value("SequenceName", "*fm2d2r")),
    ),
    "phase called a difference": (
        "phase_difference",
        lambda d: factory.changed(d, value("SeriesDescription", "fmap_phasediff"), parts="P"),
    ),
    "filtered phase": (
        "filtered_phase",
        lambda d: factory.changed(d, value("ImageType", ["ORIGINAL", "PRIMARY", "P", "FIL", "ND"]), parts="P"),
    ),
    "phase of susceptibility weighting": (
        "filtered_phase",
        lambda d: factory.changed(d, value("SeriesDescription", "Pha_Images"), parts="P"),
    ),
    "mosaic": (
        "mosaic",
        lambda d: factory.changed(d, value("ImageType", ["ORIGINAL", "PRIMARY", "P", "MOSAIC"]), parts="P"),
    ),
    "map in hertz": ("field_map", lambda d: factory.changed(d, value("RescaleType", "Hz"), parts="P")),
    # echo times
    "no echo time": ("bad_echo_time", lambda d: factory.changed(d, delete("EchoTime"), parts="P", echo=1)),
    "echo time zero": ("bad_echo_time", lambda d: factory.changed(d, value("EchoTime", "0"), echo=0)),
    "echo time negative": ("bad_echo_time", lambda d: factory.changed(d, value("EchoTime", "-4"), echo=0)),
    "one echo time for all": ("bad_echo_time", lambda d: factory.changed(d, value("EchoTime", "4"))),
    "seconds for milliseconds": ("bad_echo_time", lambda d: factory.changed(d, value("EchoTime", "0.004"), echo=0)),
    # geometry
    "uneven gaps": ("uneven_gaps", lambda d: factory.changed(d, shifted(0.6), slice_=2)),
    "no position": ("bad_geometry", lambda d: factory.changed(d, delete("ImagePositionPatient"), echo=1, slice_=1)),
    "no orientation": ("bad_geometry", lambda d: factory.changed(d, delete("ImageOrientationPatient"))),
    "degenerate orientation": (
        "bad_geometry",
        lambda d: factory.changed(d, value("ImageOrientationPatient", [1, 0, 0, 1, 0, 0])),
    ),
    "no spacing": ("bad_geometry", lambda d: factory.changed(d, delete("PixelSpacing"))),
    "zero spacing": ("bad_geometry", lambda d: factory.changed(d, value("PixelSpacing", [0, 1]))),
    "phase between the slices": (
        "geometry_mismatch",
        lambda d: factory.changed(d, shifted(factory.VOXEL_MM[0] / 2), parts="P"),
    ),
    "phase beside the slices": ("geometry_mismatch", lambda d: factory.changed(d, beside_its_place, parts="P")),
    "phase of another voxel": (
        "geometry_mismatch",
        lambda d: factory.changed(d, value("PixelSpacing", [1.3, 0.9]), parts="P"),
    ),
    "phase of another orientation": ("geometry_mismatch", lambda d: factory.changed(d, tilted, parts="P")),
    "phase in another frame of reference": (
        "geometry_mismatch",
        lambda d: factory.changed(d, value("FrameOfReferenceUID", "2.25.9"), parts="P"),
    ),
    "one slice of another orientation": (
        "localizer",
        lambda d: factory.changed(d, tilted, echo=0, parts="M", slice_=1),
    ),
    "corrected phase, uncorrected magnitude": ("mixed_distortion_correction", two_distortions),
    # numbers
    "slope zero": ("bad_rescale", lambda d: factory.changed(d, value("RescaleSlope", "0"), parts="P")),
    "another slope in one slice": (
        "unknown_phase_scale",
        lambda d: factory.changed(d, value("RescaleIntercept", "-500"), parts="P", echo=1, slice_=1),
    ),
    "no phase scale": (
        "unknown_phase_scale",
        lambda d: factory.changed(d, value("RescaleIntercept", "-500"), parts="P"),
    ),
    "no field strength": (
        "bad_field_strength",
        lambda d: factory.changed(factory.changed(d, delete("MagneticFieldStrength")), delete("ImagingFrequency")),
    ),
    "another nucleus": ("bad_field_strength", lambda d: factory.changed(d, value("ImagingFrequency", "33.8"))),
    "absurd field strength": (
        "bad_field_strength",
        lambda d: factory.changed(factory.changed(d, value("MagneticFieldStrength", "70")), delete("ImagingFrequency")),
    ),
    "constant phase": (
        "phase_constant",
        lambda d: factory.changed(d, pixels(lambda v: 0 * v + 2048), parts="P", echo=1),
    ),
    "empty magnitude": ("no_magnitude", lambda d: factory.changed(d, pixels(lambda v: 0 * v), parts="M")),
    "phase unwrapped before": ("phase_unwrapped", unwrapped),
    "lossy once": ("lossy_compression", lambda d: factory.changed(d, value("LossyImageCompression", "01"), parts="P")),
    "eight bits": ("pixel_data_invalid", lambda d: factory.changed(d, value("BitsAllocated", 8), echo=0)),
    "pixels too short": (
        "pixel_data_invalid",
        lambda d: factory.changed(d, lambda s: setattr(s, "PixelData", s.PixelData[:-8]), echo=0, slice_=0),
    ),
    "pixels too long": (
        "pixel_data_invalid",
        lambda d: factory.changed(d, lambda s: setattr(s, "PixelData", s.PixelData + b"12"), echo=0, slice_=0),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refused_with_its_reason(tmp_path, good, name):
    code, change = CHANGES[name]
    folder = beside(good, change(factory.scan("siemens_classic", name="bad")), tmp_path)
    assert look(folder) == Seen(1, (code,), ())


@pytest.mark.parametrize("name", ["one slice of another orientation", "phase beside the slices", "uneven gaps"])
def test_the_reason_does_not_hang_on_which_file_comes_first(tmp_path, name):
    code, change = CHANGES[name]
    datasets = change(factory.scan("siemens_classic", name="bad"))
    for first in range(len(datasets)):
        folder = factory.write(datasets[first:] + datasets[:first], tmp_path / f"{first}")
        assert look(folder) == Seen(0, (code,), ())


def test_a_single_series_is_asked_for_and_refused(tmp_path):
    folder = factory.write(factory.without(factory.scan("siemens_classic"), echo=1), tmp_path / "in")
    with pytest.raises(InputRefused) as refusal:
        read_series(folder)
    assert refusal.value.code == "missing_echo"
    assert "gre_qsm" in str(refusal.value)


def test_meta_headers_that_name_other_objects(tmp_path):
    """All of them: de-identification left them behind. Some of them: the files are not what they were."""
    datasets = factory.scan("siemens_classic")
    for number, dataset in enumerate(datasets):
        dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number + 1}"
        dataset.save_as(factory.folder(tmp_path / "all") / f"{number}")
        if number % 2:
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(factory.folder(tmp_path / "some") / f"{number}")
    assert [note.code for note in read_series(tmp_path / "all").source.notes] == ["corrupt_header"]
    assert look(tmp_path / "some") == Seen(0, ("corrupt_header",), ())


@pytest.mark.parametrize("encoding", ["philips_classic", "ge_real_imaginary", "siemens_xa_classic", "ge_phase"])
@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("missing_slice", lambda d, part: factory.without(d, parts=part, echo=1, slice_=2)),
        ("missing_slice", lambda d, part: factory.without(d, slice_=3)),
        ("doubled_slice", lambda d, part: factory.with_copy(d, parts=part, echo=1, slice_=2)),
        ("missing_echo", lambda d, part: factory.without(d, echo=1)),
        ("missing_echo", lambda d, part: factory.without(d, echo=2)),
        ("two_patients", lambda d, part: factory.changed(d, other_patient, parts=part)),
    ],
)
def test_the_same_of_other_vendors(tmp_path, encoding, code, change):
    part = "I" if encoding == "ge_real_imaginary" else "P"
    folder = factory.write(change(factory.scan(encoding), part), tmp_path / "in")
    assert look(folder) == Seen(0, (code,), ())


def test_real_without_imaginary(tmp_path):
    folder = factory.write(factory.matching(factory.scan("ge_real_imaginary"), parts="R"), tmp_path / "in")
    assert look(folder).refused == ("no_imaginary",)


def test_ge_without_its_private_groups_cannot_be_told_apart(tmp_path):
    datasets = factory.scan("ge_real_imaginary")
    for dataset in datasets:
        dataset.remove_private_tags()
    assert look(factory.write(datasets, tmp_path / "in")).refused == ("unknown_component",)


def test_ge_phase_of_no_clear_range(tmp_path):
    datasets = factory.changed(factory.scan("ge_phase"), pixels(lambda v: v // 2), parts="P")
    assert look(factory.write(datasets, tmp_path / "in")).refused == ("unknown_phase_scale",)


def test_slices_neither_smooth_nor_alternating(tmp_path):
    """A quarter of a turn from slice to slice can not be told from its negation."""
    shape = factory.SHAPE
    quarter = np.exp(0.5j * np.pi * np.arange(shape[0]))[:, None, None]
    datasets = factory.encoded(factory.signal() * quarter, "ge_real_imaginary")
    assert look(factory.write(datasets, tmp_path / "in")).refused == ("chop_undecided",)


def test_single_coils(tmp_path):
    datasets = factory.repeated(factory.scan("philips_classic"), value("ReceiveCoilName", "second"))
    assert look(factory.write(datasets, tmp_path / "in")).refused == ("coil_uncombined",)


def test_a_missing_echo_of_an_enhanced_series(tmp_path):
    datasets = factory.scan("siemens_xa_enhanced")  # an object for every echo and component
    assert look(factory.write(datasets[:3] + datasets[4:], tmp_path / "phase")).refused == ("missing_echo",)
    assert look(factory.write([datasets[i] for i in (0, 2, 3, 5)], tmp_path / "both")).refused == ("missing_echo",)
    assert look(factory.write(datasets[:3], tmp_path / "magnitude")).refused == ("no_phase",)


def test_frames_that_are_not_there(tmp_path):
    (dataset,) = factory.scan("philips_enhanced")
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-1]
    assert look(factory.write([dataset], tmp_path / "in")).refused == ("corrupt_header",)


def test_a_frame_short_in_both(tmp_path):
    (dataset,) = factory.scan("philips_enhanced")
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-1]
    dataset.NumberOfFrames = dataset.NumberOfFrames - 1
    dataset.PixelData = dataset.PixelData[: -2 * dataset.Rows * dataset.Columns]
    assert look(factory.write([dataset], tmp_path / "in")).refused == ("missing_slice",)


def test_no_patient_in_what_is_said(tmp_path):
    datasets = factory.without(factory.scan("siemens_classic"), parts="P", echo=1)
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID, dataset.SeriesDescription = "DOE^JOHN", "4711-x", "gre Doe 4711-X"
    with find(factory.write(datasets, tmp_path / "in")) as inventory:
        said = " ".join(f"{refusal.text} {refusal.series}" for refusal in inventory.refused).lower()
    assert "echo" in said
    for part in ("doe", "john", "4711"):
        assert part not in said
