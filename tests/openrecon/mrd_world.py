"""A scanner for the MRD server: DICOM samples as MRD images, sent by the package's own serialiser over a real socket."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from qsm_edge.openrecon import mrd

ROOT = Path(__file__).resolve().parents[2]
PATIENT = "Mustermann^Hans"
TYPES = {"M": 1, "P": 2}
PATIENCE_S = 300.0

if importlib.util.find_spec("ismrmrd") is None:
    pytest.skip("the package ismrmrd is not installed (extra: openrecon)", allow_module_level=True)
ismrmrd = mrd.library()


def header(datasets: Iterable[pydicom.Dataset], vendor: str = "SIEMENS", **changed: object) -> str:
    """The XML header of a scan, with a patient in it, and an element that no schema knows."""
    datasets = list(datasets)
    first, xsd = datasets[0], ismrmrd.xsd
    made = xsd.ismrmrdHeader(
        subjectInformation=xsd.subjectInformationType(patientName=PATIENT, patientID="4711-geheim"),
        measurementInformation=xsd.measurementInformationType(
            patientPosition=xsd.patientPositionType.HFS, protocolName=str(first.get("ProtocolName", "gre_qsm"))
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor=vendor, systemModel="Prisma", systemFieldStrength_T=float(first.MagneticFieldStrength)
        ),
        experimentalConditions=xsd.experimentalConditionsType(
            H1resonanceFrequency_Hz=round(float(first.ImagingFrequency) * 1e6)
        ),
        sequenceParameters=xsd.sequenceParametersType(TE=sorted({float(d.EchoTime) for d in datasets})),
    )
    text: str = made.toXML()
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, str(new))
    return text.replace("</ismrmrdHeader>", "<newElement>1</newElement></ismrmrdHeader>")


def directions(d: pydicom.Dataset) -> tuple[np.ndarray, np.ndarray]:
    orientation = np.array(d.ImageOrientationPatient, dtype=float)
    return orientation[:3], orientation[3:]


def middle(d: pydicom.Dataset) -> np.ndarray:
    """Where the middle of a DICOM image lies, which is what MRD calls its position."""
    row, column = directions(d)
    dy, dx = map(float, d.PixelSpacing)
    return (
        np.array(d.ImagePositionPatient, dtype=float) + row * dx * (d.Columns - 1) / 2 + column * dy * (d.Rows - 1) / 2
    )


def image(d: pydicom.Dataset, *, attributes: bool = True) -> Any:
    """A DICOM image as an MRD image. attributes: with what a scanner says in them, else with the fixed header alone."""
    made = ismrmrd.Image.from_array(d.pixel_array, transpose=False)
    row, column = directions(d)
    dy, dx = map(float, d.PixelSpacing)
    made.image_type = TYPES[d.ImageType[2]]
    made.field_of_view = (dx * d.Columns, dy * d.Rows, float(d.SliceThickness))
    made.position, made.read_dir, made.phase_dir = tuple(middle(d)), tuple(row), tuple(column)
    made.slice_dir = tuple(np.cross(row, column))
    made.contrast, made.slice = int(d.EchoNumbers) - 1, int(d.InstanceNumber) - 1
    made.image_series_index, made.image_index = int(d.SeriesNumber), int(d.InstanceNumber)
    if attributes:
        said = {"ImageRowDir": [repr(float(v)) for v in row], "ImageColumnDir": [repr(float(v)) for v in column]}
        said |= {"EchoTime": str(d.EchoTime), "ImageType": list(d.ImageType[3:]), "IceMiniHead": PATIENT}
        if "RescaleSlope" in d:
            said |= {"RescaleSlope": str(d.RescaleSlope), "RescaleIntercept": str(d.RescaleIntercept)}
        made.attribute_string = ismrmrd.Meta(said).serialize()
    return made


def sample(name: str = "siemens_classic") -> list[pydicom.Dataset]:
    """The images of a DICOM sample."""
    return [pydicom.dcmread(path) for path in sorted((ROOT / "dicom_samples" / name).glob("*.dcm"))]


def config_file(name: str = "openrecon") -> bytes:
    return struct.pack("<H1024s", 1, name.encode())


def text_message(text: str, kind: int = 5) -> bytes:
    content = text.encode()
    return struct.pack("<HI", kind, len(content)) + content


@dataclass
class Answer:
    """What came back: texts, images, and whether the stream was closed as the protocol has it."""

    texts: list[str] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    closed: bool = False

    @property
    def code(self) -> str:
        """The reason code of a refusal, '' where there is none."""
        return self.texts[0].split("]")[0][1:] if self.texts and self.texts[0].startswith("[") else ""

    def series(self, index: int) -> list[Any]:
        return [one for one in self.images if one.image_series_index == index]


def answer(connection: socket.socket) -> Answer:
    """Read until the peer says close, or hangs up."""
    read = Answer()
    with connection.makefile("rb") as stream, contextlib.suppress(EOFError):
        for item in ismrmrd.ProtocolDeserializer(stream).deserialize():
            (read.texts if isinstance(item, str) else read.images).append(item)
        read.closed = True
    return read


def scan(
    port: int, images: Iterable[Any], xml: str, parameters: dict[str, Any] | None = None, config: bytes | None = None
) -> Answer:
    """A whole conversation, as a scanner has it."""
    with connected(port) as connection:
        with connection.makefile("wb") as stream:
            stream.write(config_file() if config is None else config)
            stream.write(text_message(xml, 3))
            if parameters is not None:
                stream.write(text_message(json.dumps({"version": "1.1.0", "parameters": parameters})))
            serialiser = ismrmrd.ProtocolSerializer(stream)
            for one in images:
                serialiser.serialize(one)
            serialiser.close()
        return answer(connection)


@contextlib.contextmanager
def connected(port: int, patience_s: float = PATIENCE_S) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
        yield connection


@dataclass
class Server:
    """A server at work, and what it has logged."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def outcomes(self) -> list[str]:
        return [event["outcome"] for event in self.events() if event["event"] == "mrd_session"]


def wait_until(done: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """`qsm-edge mrd` in a process of its own; nothing of it is left, and its log holds no patient."""
    log = folder / "server.log"
    words = [sys.executable, "-m", "qsm_edge", "mrd", "--port", "0", "--log", "json", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(words, stderr=out, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment, text=True)
    server = Server(process, 0, log)
    try:
        wait_until(lambda: process.poll() is not None or "mrd_listening" in log.read_text(), 60)
        assert process.poll() is None, log.read_text()
        server.port = server.events()[0]["port"]
        yield server
        assert process.poll() in (None, 0), "the server has died"
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert server.events()[-1]["event"] == "mrd_stopped"
    assert PATIENT not in log.read_text()
    assert "4711" not in log.read_text()
