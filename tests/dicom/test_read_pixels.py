"""How pixels are stored does not change what they are: transfer syntaxes, high bits, sign, one frame or many."""

from __future__ import annotations

import dicom_factory as factory
import numpy as np
import pydicom
import pytest
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from qsm_edge.dicom import find, read_series
from qsm_edge.errors import InputRefused

JPEG_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"
ENCODINGS = ("siemens_classic", "philips_enhanced", "ge_real_imaginary")


@pytest.fixture(scope="module", params=ENCODINGS)
def plain(request, tmp_path_factory):
    """An encoding, and what its uncompressed files read as."""
    folder = factory.write(factory.scan(request.param), tmp_path_factory.mktemp("plain"))
    return request.param, read_series(folder)


def same(one, other) -> None:
    np.testing.assert_array_equal(one.magnitude, other.magnitude)
    np.testing.assert_array_equal(one.phase_rad, other.phase_rad)
    np.testing.assert_array_equal(one.geometry.affine_lps, other.geometry.affine_lps)
    assert (one.echo_times_s, one.b0_tesla) == (other.echo_times_s, other.b0_tesla)


def stored_as(encoding: str, syntax: str, folder):
    """The files of an encoding in another uncompressed syntax."""
    datasets = factory.scan(encoding)
    for dataset in datasets if syntax == ExplicitVRBigEndian else ():
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
        _swap(dataset)
    return factory.rewritten(datasets, syntax, folder)


def _swap(dataset) -> None:
    """Convert every element, so that pydicom writes values and not bytes of the other order."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _swap(item)
        elif element.VR == "UN":
            del dataset[element.tag]
    dataset.set_original_encoding(False, False, dataset.original_character_set)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes(tmp_path, plain, syntax):
    encoding, wanted = plain
    same(read_series(stored_as(encoding, syntax, tmp_path / "in")), wanted)


@pytest.mark.parametrize("encoding", ["siemens_classic", "ge_real_imaginary"])
def test_the_retired_big_endian_syntax(tmp_path, encoding):
    wanted = read_series(factory.write(factory.scan(encoding), tmp_path / "plain"))
    same(read_series(stored_as(encoding, ExplicitVRBigEndian, tmp_path / "in")), wanted)


def test_run_length_encoding(tmp_path, plain):
    encoding, wanted = plain
    datasets = factory.scan(encoding)
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    same(read_series(factory.write(datasets, tmp_path / "in")), wanted)


@pytest.mark.skipif(not get_decoder(JPEGLSLossless).is_available, reason="no JPEG-LS codec is installed")
def test_jpeg_ls(tmp_path, plain):
    encoding, wanted = plain
    datasets = factory.scan(encoding)
    for dataset in datasets:
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    same(read_series(factory.write(datasets, tmp_path / "in")), wanted)


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_2000])
def test_jpeg_lossless_and_jpeg_2000(tmp_path, plain, syntax):
    gdcm = pytest.importorskip("gdcm", reason="the extra [codecs] is not installed")
    encoding, wanted = plain
    target = gdcm.TransferSyntax(
        gdcm.TransferSyntax.JPEGLosslessProcess14_1 if syntax == JPEG_LOSSLESS else gdcm.TransferSyntax.JPEG2000Lossless
    )
    folder = factory.write(factory.scan(encoding), tmp_path / "in")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(target)
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        dataset.PixelData = pydicom.dcmread(file).PixelData  # but not the header: it moves the frames of enhanced ones
        dataset["PixelData"].VR, dataset.file_meta.TransferSyntaxUID = "OB", syntax
        dataset.save_as(file, enforce_file_format=True)
    same(read_series(folder), wanted)


def compressed(folder):
    datasets = factory.scan("siemens_classic")
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    return factory.write(datasets, folder)


def relabelled(folder, syntax: str) -> None:
    """Files that claim another transfer syntax."""
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(file)


def test_a_codec_that_is_not_there_is_asked_for_by_its_extra(tmp_path):
    folder = compressed(tmp_path / "in")
    relabelled(folder, "1.2.840.10008.1.2.4.201")  # lossless, and read by none of our codecs
    if get_decoder("1.2.840.10008.1.2.4.201").is_available:
        pytest.skip("somebody installed a codec for high-throughput JPEG 2000")
    with pytest.raises(InputRefused) as refusal:
        read_series(folder)
    assert refusal.value.code == "codec_missing"
    assert "qsm-edge[codecs]" in refusal.value.what


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"])
def test_lossy_syntaxes_are_refused_before_they_are_decoded(tmp_path, syntax):
    folder = compressed(tmp_path / "in")
    relabelled(folder, syntax)
    with find(folder) as inventory:
        assert [refusal.code for refusal in inventory.refused] == ["lossy_compression"]


@pytest.mark.parametrize("damage", ["cut", "garbled", "empty"])
def test_a_broken_frame(tmp_path, damage):
    folder = compressed(tmp_path / "in")
    file = sorted(folder.iterdir())[5]
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-60])
    else:
        dataset = pydicom.dcmread(file)
        frame = b"\xff" * 64 if damage == "garbled" else bytes(2)
        dataset.PixelData = pydicom.encaps.encapsulate([frame], has_bot=False)
        dataset["PixelData"].VR = "OB"
        dataset.save_as(file)
    with pytest.raises(InputRefused) as refusal:
        read_series(folder)
    assert refusal.value.code == ("truncated_file" if damage == "cut" else "pixel_data_invalid")


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_2000, "1.2.840.10008.1.2.4.80"])
def test_a_frame_that_is_nothing_of_the_kind(tmp_path, syntax):
    """A decoder in another language must not take the process with it."""
    if not get_decoder(syntax).is_available:
        pytest.skip("no codec for this syntax is installed")
    folder = compressed(tmp_path / "in")
    relabelled(folder, syntax)
    with pytest.raises(InputRefused) as refusal:
        read_series(folder)
    assert refusal.value.code == "pixel_data_invalid"


def test_what_stands_in_the_spare_bits_is_no_pixel(tmp_path):
    """Old consoles put overlays into the four bits above a 12-bit value."""
    wanted = read_series(factory.write(factory.scan("siemens_classic"), tmp_path / "plain"))
    datasets = factory.scan("siemens_classic")
    for dataset in datasets:
        stored = np.frombuffer(dataset.PixelData, "<u2") | np.uint16(0x5000)
        dataset.PixelData = stored.tobytes()
    same(read_series(factory.write(datasets, tmp_path / "in")), wanted)


def test_signed_values_of_fewer_bits(tmp_path):
    """13 bits with a sign, whether the spare bits repeat it or not."""
    wanted = read_series(factory.write(factory.scan("ge_phase"), tmp_path / "plain"))
    datasets = factory.scan("ge_phase")
    for number, dataset in enumerate(datasets):
        dataset.BitsStored, dataset.HighBit = 13, 12
        if number % 2:
            dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") & np.uint16(0x1FFF)).tobytes()
    same(read_series(factory.write(datasets, tmp_path / "in")), wanted)


def test_magnitudes_are_rescaled_slice_by_slice(tmp_path):
    """Philips may give each slice a slope of its own."""
    datasets = factory.scan("siemens_classic")
    for dataset in factory.matching(datasets, parts="M", slice_=2):
        dataset.RescaleSlope, dataset.RescaleIntercept = "2.5", "10"
    plain_ = read_series(factory.write(factory.scan("siemens_classic"), tmp_path / "plain"))
    scaled = read_series(factory.write(datasets, tmp_path / "in"))
    np.testing.assert_allclose(scaled.magnitude[:, 2], plain_.magnitude[:, 2] * 2.5 + 10, rtol=1e-6)
    np.testing.assert_array_equal(scaled.magnitude[:, [0, 1, 3, 4]], plain_.magnitude[:, [0, 1, 3, 4]])


def test_a_file_that_shrinks_between_looking_and_reading(tmp_path):
    folder = factory.write(factory.scan("siemens_classic"), tmp_path / "in")
    with find(folder) as inventory:
        (acquisition,) = inventory.acquisitions
        file = sorted(folder.iterdir())[3]
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(InputRefused) as refusal:
            acquisition.load()
    assert refusal.value.code == "truncated_file"
