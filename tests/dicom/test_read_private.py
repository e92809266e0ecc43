"""Private elements mean the same whether the file tells their value representation or not."""

from __future__ import annotations

import dicom_factory as factory
import pytest
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from qsm_edge.dicom import find, read_series
from qsm_edge.dicom.instances import read_images

COUNTS = {
    "philips_classic": (("Philips Imaging DD 001", 0x2001, 0x18, "SL"), ("Philips Imaging DD 001", 0x2001, 0x14, "SL")),
    "ge_real_imaginary": (("GEMS_RELA_01", 0x0021, 0x4F, "SS"), ("GEMS_ACQU_01", 0x0019, 0x7E, "SS")),
    "ge_phase": (("GEMS_RELA_01", 0x0021, 0x4F, "SS"), ("GEMS_ACQU_01", 0x0019, 0x7E, "SS")),
}


def counted(encoding: str):
    """An acquisition whose private groups, and nothing else, tell how many slices and echoes there are."""
    datasets = factory.scan(encoding)
    for dataset in datasets:
        del dataset.EchoTrainLength
        dataset.EchoNumbers = 1
        counts = (factory.SHAPE[0], len(factory.ECHO_TIMES_S))
        for (creator, group, element, vr), count in zip(COUNTS[encoding], counts, strict=True):
            block = dataset.private_block(group, creator, create=True)
            if element in block:
                del block[element]
            block.add_new(element, vr, count)
    return datasets


def unknown(datasets):
    """Every private element as UN, as archives write them that do not know it."""
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        for element in [e for e in dataset if e.tag.is_private and e.VR in ("SL", "SS", "FL")]:
            size, signed = {"SL": 4, "SS": 2, "FL": 4}[element.VR], True
            value = int(element.value).to_bytes(size, "little", signed=signed)
            dataset[element.tag] = DataElement(element.tag, "UN", value)
    return datasets


def stored(datasets, how: str, folder):
    if how == "UN":
        return factory.rewritten(unknown(datasets), ExplicitVRLittleEndian, folder)
    return factory.rewritten(datasets, {"explicit": ExplicitVRLittleEndian}.get(how, ImplicitVRLittleEndian), folder)


@pytest.mark.parametrize("encoding", factory.READABLE)
def test_every_encoding_without_value_representations(tmp_path, encoding):
    """The images are the same records, but for where they lie."""
    for how in ("explicit", "implicit"):
        stored(factory.scan(encoding), how, tmp_path / how)
    for file in sorted((tmp_path / "explicit").iterdir()):
        assert read_images(tmp_path / "implicit" / file.name, "") == read_images(file, "")
    one, other = (read_series(tmp_path / how) for how in ("explicit", "implicit"))
    assert (one.phase_rad == other.phase_rad).all()
    assert one.source.vendor == other.source.vendor


@pytest.mark.parametrize("how", ["explicit", "implicit", "UN"])
@pytest.mark.parametrize("encoding", COUNTS)
def test_counts_of_slices_and_echoes(tmp_path, encoding, how):
    datasets = counted(encoding)
    folder = stored(datasets, how, tmp_path / "in")
    for file in folder.iterdir():
        (image,) = read_images(file, "")
        assert (image.declared_slices, image.declared_echoes) == (factory.SHAPE[0], len(factory.ECHO_TIMES_S))
    read_series(folder)


@pytest.mark.parametrize("how", ["explicit", "implicit", "UN"])
@pytest.mark.parametrize("encoding", COUNTS)
@pytest.mark.parametrize(("code", "gone"), [("missing_slice", {"slice_": 4}), ("missing_echo", {"echo": 2})])
def test_an_end_that_only_they_tell_of(tmp_path, encoding, how, code, gone):
    datasets = factory.without(counted(encoding), **gone)
    for number, dataset in enumerate(datasets, start=1):
        dataset.InstanceNumber = number
    with find(stored(datasets, how, tmp_path / "in")) as inventory:
        assert not inventory.acquisitions
        assert [refusal.code for refusal in inventory.refused] == [code]


def test_a_number_that_was_written_as_text(tmp_path):
    """By a tool that knew the element to be a number, and not how it is stored."""
    datasets = counted("philips_classic")
    for dataset in datasets:
        for tag in ((0x2001, 0x1018), (0x2001, 0x1014)):
            dataset[tag] = DataElement(tag, "UN", f"{dataset[tag].value:02d}".encode())
    (file, *_) = factory.rewritten(datasets, ExplicitVRLittleEndian, tmp_path / "in").iterdir()
    (image,) = read_images(file, "")
    assert (image.declared_slices, image.declared_echoes) == (factory.SHAPE[0], len(factory.ECHO_TIMES_S))
