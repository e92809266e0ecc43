"""A PACS takes what we write: Orthanc is started, sent the series, the mask and the map, and asked for them again."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import judges
import pydicom
import pytest
import results

from qsm_edge.dicom.parametric import write_parametric_map
from qsm_edge.dicom.seg import write_seg
from qsm_edge.dicom.write import write_series
from tests.orthanc_server import Orthanc, running


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running(judges.program("Orthanc"), tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def send(server: Orthanc, paths: list[Path]) -> None:
    """C-STORE by DCMTK's dcmsend, which proposes what the files need; storescu proposes no segmentations."""
    command = [
        judges.program("dcmsend"),
        "-v",
        "-aet",
        "QSMEDGE",
        "-aec",
        "ORTHANC",
        "127.0.0.1",
        str(server.dicom_port),
    ]
    ran = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    succeeded = re.search(r"with status SUCCESS\s*: (\d+)", ran.stdout + ran.stderr)
    assert succeeded is not None
    assert int(succeeded[1]) == len(paths)


@pytest.mark.orthanc
@pytest.mark.parametrize("encoding", ["siemens_classic", "philips_enhanced", "ge_real_imaginary"])
def test_a_pacs_stores_the_series_the_mask_and_the_map(tmp_path, orthanc, encoding):
    source = results.source(encoding, name=f"orthanc {encoding}")
    source.template.SpecificCharacterSet, source.template.PatientName = "ISO_IR 192", "Müller^Jürgen"
    result = results.result(source)
    chi = list(write_series(result, tmp_path / "chi"))
    others = [write_seg(result, tmp_path / "mask.dcm"), write_parametric_map(result, tmp_path / "map.dcm")]
    send(orthanc, chi + others)

    (study,) = [s for s in map(orthanc.ask, studies(orthanc)) if uid_of(s, "Study") == source.template.StudyInstanceUID]
    assert study["PatientMainDicomTags"]["PatientName"] == "Müller^Jürgen"
    series = {s["MainDicomTags"]["Modality"]: s for s in (orthanc.ask(f"/series/{name}") for name in study["Series"])}
    by_uid = {uid_of(s, "Series"): s for s in (orthanc.ask(f"/series/{name}") for name in study["Series"])}
    assert len(by_uid) == 3
    assert {modality: len(s["Instances"]) for modality, s in series.items() if modality == "SEG"} == {"SEG": 1}
    chi_series = by_uid[pydicom.dcmread(chi[0]).SeriesInstanceUID]
    assert len(chi_series["Instances"]) == len(chi)
    assert "research use only" in chi_series["MainDicomTags"]["SeriesDescription"]

    sent = {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path) for path in chi + others}
    for each in by_uid.values():
        for name in each["Instances"]:
            back = pydicom.dcmread(io.BytesIO(orthanc.get(f"/instances/{name}/file")))
            assert back == sent.pop(back.SOPInstanceUID)
    assert not sent


@pytest.mark.orthanc
def test_sending_a_result_twice_adds_nothing(tmp_path, orthanc):
    source = results.source(name="twice")
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        result = results.result(source)
        paths = [*write_series(result, tmp_path / folder / "chi"), write_seg(result, tmp_path / folder / "mask.dcm")]
        send(orthanc, paths)
    (study,) = [s for s in map(orthanc.ask, studies(orthanc)) if uid_of(s, "Study") == source.template.StudyInstanceUID]
    assert sum(len(orthanc.ask(f"/series/{name}")["Instances"]) for name in study["Series"]) == results.SHAPE[0] + 1


def studies(orthanc: Orthanc) -> list[str]:
    return [f"/studies/{name}" for name in orthanc.ask("/studies")]


def uid_of(entry, level: str) -> str:
    return entry["MainDicomTags"][f"{level}InstanceUID"]
