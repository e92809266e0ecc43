"""No part of a patient's name or ID is in anything that the reader says, whatever files and folders are called."""

from __future__ import annotations

import os
import zipfile

import dicom_factory as factory
import pytest
import results

from qsm_edge.dicom import find, read_series
from qsm_edge.dicom.maskfile import read_seg_mask
from qsm_edge.dicom.privacy import without_patient, words_of
from qsm_edge.dicom.seg import write_seg
from qsm_edge.errors import InputRefused
from qsm_edge.types import Geometry

FORBIDDEN = ("mustermann", "hans", "m0815")


def exported(number: int) -> str:
    """As Siemens' offline export calls files."""
    return f"MUSTERMANN_HANS.MR.HEAD_M0815.0011.{number:04d}.2026.01.05.10.15.10.12345.{number}.IMA"


def of_patient(datasets):
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID = "Mustermann^Hans", "M0815"
    return datasets


def said(inventory) -> str:
    """Everything that a caller may print of what was found, and of what loading it raises."""
    texts = [repr([(r.code, r.text, r.series, r.files) for r in inventory.refused])]
    texts += [repr([(i.code, i.text, i.files) for i in inventory.ignored])]
    for acquisition in inventory.acquisitions:
        texts.append(f"{acquisition.describe()} {acquisition.source.slug}")
        try:
            acquisition.load()
        except InputRefused as refusal:
            texts += [str(refusal), repr(refusal), repr(refusal.as_dict())]
    return " ".join(texts).lower()


def check(inventory) -> str:
    text = said(inventory)
    assert not [part for part in FORBIDDEN if part in text], text
    return text


def test_names_of_files_that_are_refused_or_ignored(tmp_path):
    folder = tmp_path / "in" / "Mustermann Hans (M0815)"
    datasets = of_patient(factory.without(factory.scan("siemens_classic"), parts="P", echo=1))
    factory.write(datasets, folder, exported)
    (folder / exported(901)).write_bytes(b"")
    (folder / exported(902)).write_bytes(b"no DICOM at all")
    (folder / exported(903)).write_bytes(next(folder.glob("*.0001.2026*")).read_bytes()[:700])
    (folder / "letter about Mr Mustermann.txt").write_text("...")
    (folder / "hans").symlink_to(tmp_path)
    with find(tmp_path / "in") as inventory:
        text = check(inventory)
        assert sorted(r.code for r in inventory.refused) == [
            "empty_file",
            "missing_echo",
            "not_dicom",
            "truncated_file",
        ]
        counts = {r.code: len(r.files) for r in inventory.refused}
    assert counts["missing_echo"] == len(datasets)
    assert "0901" in text  # which file it was can still be told


def test_names_of_files_whose_pixels_are_refused(tmp_path):
    folder = factory.write(of_patient(factory.scan("siemens_classic")), tmp_path / "in", exported)
    with find(folder) as inventory:
        for file in folder.iterdir():
            file.write_bytes(file.read_bytes()[:-20])
        assert "truncated_file" in check(inventory)


def test_a_file_that_tells_nobody_beside_those_that_do(tmp_path):
    """De-identified inside, not outside."""
    datasets = factory.without(factory.scan("siemens_classic"), parts="P", echo=1)
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID = "ANON", "1"
    factory.write(datasets, tmp_path / "in", "Mustermann, Hans {:04d} M0815.dcm".format)
    other = of_patient(factory.scan("philips_enhanced", name="other"))
    with find(factory.write(other, tmp_path / "in")) as inventory:
        check(inventory)


def test_a_lone_exported_file_of_which_nothing_can_be_read(tmp_path):
    """Nothing tells the name but the place where consoles put it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "MUSTERMANN_HANS.MR.HEAD.0011.0001.IMA").write_bytes(b"")
    with find(tmp_path / "in") as inventory:
        check(inventory)
        assert inventory.refused[0].files == ("*.MR.HEAD.0011.0001.IMA",)


def test_names_inside_an_archive(tmp_path):
    folder = factory.write(of_patient(factory.scan("siemens_classic")[:-1]), tmp_path / "files", exported)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as out:
        for file in folder.iterdir():
            out.write(file, f"Mustermann_Hans/{file.name}")
    with find(tmp_path / "in.zip") as inventory:
        check(inventory)
        assert [refusal.code for refusal in inventory.refused] == ["missing_slice"]


def test_one_acquisition_is_asked_for_and_refused_without_a_name(tmp_path):
    folder = tmp_path / "Mustermann_Hans"
    factory.write(of_patient(factory.scan("siemens_classic")[:-1]), folder, exported)
    with pytest.raises(InputRefused) as refusal:
        read_series(folder)
    assert not [part for part in FORBIDDEN if part in f"{refusal.value} {refusal.value.as_dict()}".lower()]
    (tmp_path / "Mustermann").mkdir()
    with pytest.raises(InputRefused) as refusal:
        read_series(tmp_path / "Mustermann")
    assert "mustermann" not in str(refusal.value).lower()


def test_a_mask_that_does_not_fit_is_refused_without_a_name(tmp_path):
    result = results.result()
    result.series.source.template.PatientName, result.series.source.template.PatientID = "Mustermann^Hans", "M0815"
    path = write_seg(result, tmp_path / "brain of hans mustermann (m0815).dcm")
    with pytest.raises(InputRefused) as refusal:
        read_seg_mask(path, Geometry.from_axes((4, 6, 8)))
    assert (refusal.value.code, refusal.value.where) == ("mask_grid", "brain of * * (*).dcm")


@pytest.mark.parametrize(
    ("patient", "name", "wanted"),
    [
        ("Müller^Jürgen", "MUELLER_JUERGEN_0001.dcm", "*_*_0001.dcm"),
        ("Müller^Jürgen", "Muller Jurgen.dcm", "* *.dcm"),
        ("Müller^Jürgen", "mu\u0308ller.dcm", "*.dcm"),  # decomposed, as on a Mac
        ("Strauß^Eva", "STRAUSS_eva", "*_*"),
        ("Strauß^Eva", "Strauß", "*"),
        ("Wu^Li", "wu_li/IM0001", "*_*/IM0001"),
        ("Wu^Li", "clip_wurzel", "clip_wurzel"),
        ("王^小东=Wang^XiaoDong", "wangxiaodong-王小东.dcm", "**-**.dcm"),
        ("Doe^J", "IM00001.dcm", "IM00001.dcm"),
        ("", "A_B.MR.x.1.2.IMA", "*.MR.x.1.2.IMA"),
        ("", "study/IM001.MR.dcm", "study/IM001.MR.dcm"),
    ],
)
def test_spellings(patient, name, wanted):
    assert without_patient(name, words_of(patient)) == wanted


def test_a_name_that_is_no_text(tmp_path):
    """Bytes that a file system takes for a name and no console can print."""
    (tmp_path / os.fsdecode(b"sch\xf6n.dcm")).write_bytes(b"")
    with find(tmp_path) as inventory:
        inventory.refused[0].files[0].encode("utf-8")
