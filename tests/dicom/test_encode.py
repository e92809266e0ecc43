"""Laws of the encoder of a series: its files are those of pydicom's own writer, byte for byte."""

from __future__ import annotations

import pytest
import results
from pydicom.dataset import Dataset

from dicom_samples.encode import ENCODINGS
from qsm_edge.dicom import common, write
from qsm_edge.dicom.encode import Encoder
from qsm_edge.dicom.write import KINDS, write_map
from qsm_edge.errors import InternalError

CHARSETS = {
    "none": (None, "Mueller^Juergen"),
    "latin-1": ("ISO_IR 100", "Müller^Jürgen"),
    "utf-8": ("ISO_IR 192", "王^小东=Wang^XiaoDong"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
}


def stand_still(monkeypatch):
    def stamp(dataset):
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = "20260102", "030405"

    monkeypatch.setattr(common, "stamp", stamp)


def check_same_bytes(result, kind, folder):
    paths, datasets = write_map(result, kind, folder / "ours"), list(write.slices(result, kind))
    assert len(paths) == len(datasets) == results.SHAPE[0]
    for path, dataset in zip(paths, datasets, strict=True):
        dataset.save_as(folder / "theirs.dcm", enforce_file_format=True)
        assert path.read_bytes() == (folder / "theirs.dcm").read_bytes()


@pytest.mark.parametrize("kind", ["chi", "field", "r2star"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_files_are_those_of_pydicom(tmp_path, monkeypatch, encoding, kind):
    stand_still(monkeypatch)
    check_same_bytes(results.result(of=results.source(encoding)), KINDS[kind], tmp_path)


@pytest.mark.parametrize("name", CHARSETS)
def test_the_files_are_those_of_pydicom_in_every_character_set(tmp_path, monkeypatch, name):
    stand_still(monkeypatch)
    source = results.source()
    source.template.SpecificCharacterSet, source.template.PatientName = CHARSETS[name]
    check_same_bytes(results.result(of=source), KINDS["chi"], tmp_path)


def test_what_only_other_elements_would_tell_is_an_error_of_ours():
    dataset = next(write.slices(results.result(), KINDS["chi"]))
    del dataset.SmallestImagePixelValue
    dataset.SmallestImagePixelValue = 3  # US or SS
    with pytest.raises(InternalError):
        Encoder().file(dataset)


def test_items_that_sequences_share_or_nest_are_written_each_time(tmp_path):
    dataset, other = list(write.slices(results.result(), KINDS["chi"]))[:2]
    encoder, inner, outer = Encoder(), Dataset(), Dataset()
    encoder.file(dataset)
    inner.CodeValue, outer.PurposeOfReferenceCodeSequence = "1", [inner, inner]
    other.SourceImageSequence = [outer, Dataset(), outer]
    other.save_as(tmp_path / "theirs.dcm", enforce_file_format=True)
    assert encoder.file(other) == (tmp_path / "theirs.dcm").read_bytes()
