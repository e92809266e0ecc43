"""Which images belong together, and which are no acquisition: repetitions, copies, strays, whole studies."""

from __future__ import annotations

import copy

import dicom_factory as factory
import numpy as np
import pytest
import results

from qsm_edge.dicom import find, read_series, write_series
from qsm_edge.dicom.seg import write_seg
from qsm_edge.errors import InputRefused


def value(keyword: str, value):
    return lambda dataset: setattr(dataset, keyword, value)


def later(seconds: int):
    """The same scan some seconds later."""

    def change(dataset):
        dataset.AcquisitionTime = f"{101510 + seconds:06d}.000000"

    return change


def renumbered(suffix: str, shift: int, *changes):
    """Another series, `shift` further on."""

    def change(dataset):
        dataset.SeriesInstanceUID += suffix
        dataset.SeriesNumber = int(dataset.SeriesNumber) + shift
        for one in changes:
            one(dataset)

    return change


def timeless(datasets):
    for dataset in datasets:
        for keyword in ("AcquisitionTime", "AcquisitionDate", "AcquisitionDateTime"):
            if keyword in dataset:
                delattr(dataset, keyword)
    return datasets


def pairs(folder) -> list[tuple[int, ...]]:
    """The series numbers of every acquisition, and nothing refused."""
    with find(folder) as inventory:
        assert not inventory.refused
        return sorted(tuple(s["number"] for s in a.source.facts["series"]) for a in inventory.acquisitions)


def codes(folder) -> tuple[int, list[str], list[str]]:
    with find(folder) as inventory:
        refused, ignored = [r.code for r in inventory.refused], [i.code for i in inventory.ignored]
        return len(inventory.acquisitions), sorted(refused), sorted(ignored)


# -------------------------------------------------------------------------------------- several acquisitions


@pytest.mark.parametrize("change", [later(100), value("ProtocolName", "gre_qsm")], ids=["later", "same time"])
def test_two_scans_of_one_protocol(tmp_path, change):
    datasets = factory.repeated(factory.scan("siemens_classic"), renumbered(".7", 2, change))
    assert pairs(factory.write(datasets, tmp_path / "in")) == [(11, 12), (13, 14)]


@pytest.mark.parametrize("time", ["known", "unknown"])
def test_magnitudes_first_and_phases_after(tmp_path, time):
    """Series 11 and 12 are magnitudes, 13 and 14 their phases."""
    datasets = factory.repeated(factory.scan("siemens_classic"), renumbered(".7", 0, later(100)))
    for dataset in datasets:
        second = dataset.SeriesInstanceUID.endswith(".7")
        dataset.SeriesNumber = {"M": 11, "P": 13}[factory.component(dataset)] + second
    datasets = timeless(datasets) if time == "unknown" else datasets
    assert pairs(factory.write(datasets, tmp_path / "in")) == [(11, 13), (12, 14)]


def test_a_phase_that_could_belong_to_two_magnitudes(tmp_path):
    """With times it belongs to the later one; without them nobody knows."""
    datasets = factory.repeated(factory.scan("siemens_classic"), renumbered(".7", 2, later(100)))
    datasets = [d for d in datasets if int(d.SeriesNumber) != 12]
    folder = factory.write(datasets, tmp_path / "timed")
    with find(folder) as inventory:
        (acquisition,) = inventory.acquisitions
        assert [series["number"] for series in acquisition.source.facts["series"]] == [13, 14]
        assert [refusal.code for refusal in inventory.refused] == ["no_phase"]
    folder = factory.write(timeless(datasets), tmp_path / "timeless")
    assert codes(folder) == (0, ["two_acquisitions", "two_acquisitions"], [])


def test_magnitude_and_phase_that_were_scanned_one_after_the_other(tmp_path):
    """As a field-mapping protocol leaves them: same grid, same echo times, adjacent series, other data."""
    datasets = factory.changed(factory.scan("siemens_classic"), later(45), parts="P")
    assert codes(factory.write(datasets, tmp_path / "in")) == (0, ["no_magnitude", "no_phase"], [])


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "TemporalPositionIdentifier"])
@pytest.mark.parametrize("encoding", ["siemens_classic", "philips_classic", "ge_real_imaginary"])
def test_two_repetitions_in_a_series(tmp_path, encoding, keyword):
    datasets = factory.scan(encoding)
    for dataset in datasets:
        setattr(dataset, keyword, 1)
    again = factory.repeated(datasets, value(keyword, 2))
    folder = factory.write(again, tmp_path / "in")
    with find(folder) as inventory:
        assert not inventory.refused
        first, second = inventory.acquisitions
        assert first.source.slug != second.source.slug
        uids = [{i.sop_instance_uid for images in a.source.slices for i in images} for a in (first, second)]
        assert uids[0].isdisjoint(uids[1])
        assert {uid.endswith(".2") for uid in uids[0]} in ({True}, {False})
    with pytest.raises(InputRefused) as refusal:
        read_series(folder)
    assert refusal.value.code == "two_acquisitions"


def test_two_patients_each_with_a_study(tmp_path):
    others = factory.scan("siemens_classic", name="two")
    for dataset in others:
        dataset.PatientID, dataset.PatientName = "SYN02", "ANOTHER^HEAD"
    folder = factory.write([*factory.scan("siemens_classic"), *others], tmp_path / "in")
    assert codes(folder) == (2, [], [])


def test_one_image_of_two_patients(tmp_path):
    """The same UIDs with another name on them."""
    others = factory.scan("siemens_classic")
    for dataset in others:
        dataset.PatientID, dataset.PatientName = "SYN02", "ANOTHER^HEAD"
    folder = factory.write([*factory.scan("siemens_classic"), *others], tmp_path / "in")
    assert codes(folder) == (0, ["two_patients"], [])


def test_a_series_for_every_echo_needs_times_or_numbers(tmp_path):
    datasets = factory.scan("siemens_xa_classic")
    assert pairs(factory.write(datasets, tmp_path / "timed")) == [(11, 12, 13, 21, 22, 23)]
    assert pairs(factory.write(timeless(datasets), tmp_path / "numbered")) == [(11, 12, 13, 21, 22, 23)]


def test_single_echoes_scanned_one_after_the_other_are_not_echoes_of_one_scan(tmp_path):
    datasets = []
    for number, time in enumerate((0.005, 0.02)):
        part = factory.scan("siemens_classic", echo_times_s=(time,))
        datasets += factory.changed(part, renumbered(f".{number}", 2 * number, later(30 * number)))
        for dataset in part:
            dataset.SOPInstanceUID += f".{number}"
    assert pairs(factory.write(datasets, tmp_path / "in")) == [(11, 12), (13, 14)]


# -------------------------------------------------------------------------------------- copies


def test_identical_copies_are_dropped_and_noted(tmp_path):
    datasets = factory.scan("siemens_classic")
    factory.write(datasets, tmp_path / "in" / "a")
    factory.write(datasets[:4], tmp_path / "in" / "b")
    with find(tmp_path / "in") as inventory:
        (acquisition,) = inventory.acquisitions
    (note,) = acquisition.source.notes
    assert note.code == "duplicate_dropped"
    assert note.text.startswith("4 ")


@pytest.mark.parametrize("change", ["pixels", "header"])
def test_one_uid_for_two_images(tmp_path, change):
    datasets = factory.scan("siemens_classic")
    other = copy.deepcopy(datasets[3])
    if change == "pixels":
        other.PixelData = bytes(reversed(other.PixelData))
    else:
        other.EchoTime = "9"
    folder = factory.write([*datasets, other], tmp_path / "in")
    assert codes(folder) == (0, ["same_uid_other_pixels"], [])


def test_of_a_normalised_and_a_raw_magnitude_the_raw_one_is_used(tmp_path):
    datasets = factory.scan("siemens_classic")
    raw = [copy.deepcopy(d) for d in factory.matching(datasets, parts="M")]
    for dataset in raw:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        dataset.SOPInstanceUID += ".5"
        renumbered(".5", 5)(dataset)
    folder = factory.write([*datasets, *raw], tmp_path / "in")
    assert pairs(folder) == [(12, 16)]
    assert codes(folder) == (1, [], ["derived_image"])


def test_distortion_corrected_copies_never_mix_with_the_raw_images(tmp_path):
    def corrected(dataset):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", factory.component(dataset), "DIS3D"]

    datasets = factory.repeated(factory.scan("siemens_classic"), renumbered(".3", 2, corrected))
    folder = factory.write(datasets, tmp_path / "both")
    assert pairs(folder) == [(11, 12)]
    assert codes(folder) == (1, [], ["derived_image"])
    only = [d for d in datasets if "DIS3D" in d.ImageType]
    assert pairs(factory.write(only, tmp_path / "corrected")) == [(13, 14)]
    no_raw_phase = [d for d in datasets if int(d.SeriesNumber) != 12]
    folder = factory.write(no_raw_phase, tmp_path / "mixed")
    assert pairs(folder) == [(13, 14)]
    crossed = [d for d in datasets if int(d.SeriesNumber) in (11, 14)]
    assert codes(factory.write(crossed, tmp_path / "crossed")) == (0, ["mixed_distortion_correction"], [])


# -------------------------------------------------------------------------------------- the rest of a study


def stray(**attributes):
    """A magnitude series of its own, as another protocol of the same study."""
    datasets = factory.matching(factory.scan("siemens_classic", echo_times_s=(0.004,)), parts="M")
    for dataset in datasets:
        dataset.SOPInstanceUID += ".8"
        dataset.SeriesInstanceUID += ".8"
        dataset.SeriesNumber, dataset.AcquisitionTime, dataset.ProtocolName = 3, "095000", "other"
        for keyword, value_ in attributes.items():
            setattr(dataset, keyword, value_)
    return datasets


STRAYS = {
    "T1-weighted": ("no_phase", stray(ProtocolName="t1_mprage")),
    "inversion recovery": ("not_gre", stray(ScanningSequence=["GR", "IR"])),
    "spin echo": ("not_gre", stray(ScanningSequence="SE", EchoTime="90")),
    "echo planar": ("not_gre", stray(ScanningSequence="EP", EchoTime="30")),
    "localizer by name": ("localizer", stray(SeriesDescription="localizer")),
    "a single image": ("too_small", stray(EchoTime="20")[:1]),
    "derived": ("derived_image", stray(ImageType=["DERIVED", "PRIMARY", "M", "ND"])),
    "minimum intensity projection": ("derived_image", stray(ImageType=["ORIGINAL", "PRIMARY", "M", "MNIP", "ND"])),
    "susceptibility-weighted": ("derived_image", stray(ImageType=["ORIGINAL", "PRIMARY", "M", "SWI", "ND"])),
    "our own map": ("own_output", stray(Manufacturer="qsm-edge", ImageType=["DERIVED", "PRIMARY", "OTHER", "QSM"])),
    "secondary capture": ("not_mr", stray(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
    "a structured report": ("not_mr", stray(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33", Modality="SR")),
    "raw data": ("not_mr", stray(SOPClassUID="1.2.840.10008.5.1.4.1.1.66")),
}


@pytest.mark.parametrize("name", STRAYS)
def test_what_is_no_acquisition_is_listed_and_ignored(tmp_path, name):
    code, datasets = STRAYS[name]
    factory.write(datasets, tmp_path / "in" / "stray")
    assert codes(factory.write(factory.scan("siemens_classic"), tmp_path / "in" / "good")) == (1, [], [])
    with find(tmp_path / "in") as inventory:
        assert len(inventory.acquisitions) == 1
        assert not inventory.refused
        (ignored,) = inventory.ignored
    assert ignored.code == code
    assert len(ignored.files) == len(datasets)


def test_a_localizer_by_its_orientations(tmp_path):
    planes = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]]
    datasets = stray()
    for number, dataset in enumerate(datasets):
        dataset.ImageOrientationPatient = planes[number % 3]
    factory.write([*datasets, *factory.scan("siemens_classic")], tmp_path / "in")
    assert codes(tmp_path / "in") == (1, [], ["localizer"])


def test_several_echoes_without_phase_are_refused_beside_a_good_acquisition(tmp_path):
    datasets = factory.matching(factory.scan("siemens_classic", name="other"), parts="M")
    factory.write([*datasets, *factory.scan("siemens_classic")], tmp_path / "in")
    assert codes(tmp_path / "in") == (1, ["no_phase"], [])


def test_a_late_single_echo_without_phase_is_refused(tmp_path):
    datasets = factory.matching(factory.scan("siemens_classic", name="other", echo_times_s=(0.02,)), parts="M")
    factory.write([*datasets, *factory.scan("siemens_classic")], tmp_path / "in")
    assert codes(tmp_path / "in") == (1, ["no_phase"], [])


def test_a_magnitude_alone_is_refused_where_there_is_nothing_else(tmp_path):
    assert codes(factory.write(stray(), tmp_path / "in")) == (0, ["no_phase"], [])


def test_a_spin_echo_with_phase_is_no_gradient_echo(tmp_path):
    datasets = factory.scan("siemens_classic", name="other")
    for dataset in datasets:
        dataset.ScanningSequence = "SE"
    factory.write([*datasets, *factory.scan("siemens_classic")], tmp_path / "in")
    assert codes(tmp_path / "in") == (1, [], ["not_gre"])


def test_velocity_encoded_phase_is_refused(tmp_path):
    datasets = factory.scan("siemens_classic", name="flow", echo_times_s=(0.004,))
    for dataset in datasets:
        dataset.SequenceName = "fl3d1_v150in"
    factory.write([*datasets, *factory.scan("siemens_classic")], tmp_path / "in")
    assert codes(tmp_path / "in") == (1, ["not_gre"], [])


def test_what_was_not_dicom_at_all(tmp_path):
    folder = factory.write(factory.scan("siemens_classic"), tmp_path / "in")
    (folder / "LICENSE").write_text("BSD 2-Clause License")
    (folder / "notes.txt").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "empty").write_bytes(b"")
    assert codes(folder) == (1, [], ["empty_file", "not_dicom"])
    (folder / "text.dcm").write_text("this is no DICOM")
    (folder / "nothing.IMA").write_bytes(b"")
    assert codes(folder) == (1, ["empty_file", "not_dicom"], ["empty_file", "not_dicom"])


def test_two_repetitions_of_which_one_is_not_complete(tmp_path):
    datasets = factory.repeated(factory.scan("philips_classic"), value("AcquisitionNumber", 2))
    folder = factory.write(datasets[:-1], tmp_path / "in")
    assert codes(folder) == (1, ["missing_slice"], [])


def test_repetitions_of_a_series_that_names_two_patients(tmp_path):
    def other(dataset):
        dataset.AcquisitionNumber, dataset.PatientID = 2, "SYN02"

    datasets = factory.repeated(factory.scan("philips_classic"), other)
    assert codes(factory.write(datasets, tmp_path / "in")) == (0, ["two_patients"], [])


def test_our_own_output_is_recognised_and_ignored(tmp_path):
    """Map, mask and parametric map, all that a router may send back, beside the acquisition that they came from."""
    factory.write(factory.scan("siemens_classic"), tmp_path / "in" / "gre")
    result = results.result()
    write_series(result, tmp_path / "in" / "chi")
    write_seg(result, tmp_path / "in" / "mask.dcm")
    with find(tmp_path / "in") as inventory:
        assert len(inventory.acquisitions) == 1
        assert not inventory.refused
        (ignored,) = inventory.ignored
    assert ignored.code == "own_output"
    assert len(ignored.files) == results.SHAPE[0] + 1
