"""A PACS takes what we write: Orthanc is started, sent the series, the mask and the map, and asked for them again."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import judges
import pydicom
import pytest
import results

from qsm_edge.dicom.parametric import write_parametric_map
from qsm_edge.dicom.seg import write_seg
from qsm_edge.dicom.write import write_series

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Orthanc:
    """A running server: its ports on the loopback interface."""

    dicom_port: int
    http_port: int

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=20) as answer:
            return answer.read()

    def ask(self, path: str):
        return json.loads(self.get(path))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    executable = judges.program("Orthanc")
    folder = tmp_path_factory.mktemp("orthanc")
    dicom_port, http_port = free_ports(2)
    settings = {
        "Name": "qsm-edge tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": True,
        "OverwriteInstances": False,
        "StorageCompression": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([executable, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
        try:
            server = Orthanc(dicom_port, http_port)
            wait_for(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def wait_for(server: Orthanc, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"Orthanc stopped: {log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            server.ask("/system")
            with socket.create_connection(("127.0.0.1", server.dicom_port), timeout=2):
                return
        time.sleep(0.1)
    pytest.fail(f"Orthanc did not answer in {PATIENCE_S} s")


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
