"""A small network on loopback: our listener with a memory of what it was given, objects to send, certificates, peers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_context

from qsm_edge import listen
from qsm_edge.listen import Audit, Origin, Reports, Settings
from tests.orthanc_server import Orthanc, program, running

PATIENT = "Mustermann^Hans"
PATIENT_ID = "4711-geheim"
PATIENCE_S = 60.0


def image(
    number: int = 1, *, sop_class: str = MRImageStorage, syntax: str = ExplicitVRLittleEndian, side: int = 32
) -> FileDataset:
    """A small MR image with a patient in it."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, syntax
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.9.7433.{number}"
    implicit, little = (pydicom.uid.UID(syntax).is_implicit_VR, pydicom.uid.UID(syntax).is_little_endian)
    d = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=implicit, is_little_endian=little)
    d.SOPClassUID, d.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    d.PatientName, d.PatientID, d.Modality = PATIENT, PATIENT_ID, "MR"
    d.StudyInstanceUID, d.SeriesInstanceUID = "1.2.826.0.1.3680043.9.7433.0.1", "1.2.826.0.1.3680043.9.7433.0.2"
    d.InstanceNumber, d.Rows, d.Columns = str(number), side, side
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, 0
    values = np.random.default_rng(number).integers(0, 4096, side * side, dtype="u2")
    d.add_new("PixelData", "OW", values.astype("<u2" if little else ">u2").tobytes())
    return d


def files(folder: Path, count: int = 3, **options) -> list[Path]:
    """`count` images in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(1, count + 1):
        paths.append(folder / f"{number}.dcm")
        image(number, **options).save_as(paths[-1], enforce_file_format=True)
    return paths


def dataset_bytes(content: bytes) -> bytes:
    """The dataset of a DICOM file, without what comes before it."""
    stream = io.BytesIO(content)
    pydicom.filereader.read_preamble(stream, False)
    pydicom.filereader._read_file_meta_info(stream)
    return content[stream.tell() :]


@dataclass
class World:
    """A listener and what it did: files as stored by UID, origins, the audit trail. `on_store` may raise or wait."""

    incoming: Path
    listener: object = None
    stored: dict[str, bytes] = field(default_factory=dict)
    origins: list[Origin] = field(default_factory=list)
    trail: list[Audit] = field(default_factory=list)
    on_store: Callable[[Path, Origin], None] | None = None

    @property
    def port(self) -> int:
        return self.listener.port

    def store(self, part: Path, origin: Origin) -> None:
        if self.on_store is not None:
            self.on_store(part, origin)
        self.stored[origin.sop_instance_uid] = part.read_bytes()
        self.origins.append(origin)
        part.unlink()

    def outcomes(self, event: str) -> list[tuple[str, str]]:
        return [(line.outcome, line.detail) for line in self.trail if line.event == event]


@contextlib.contextmanager
def listening(
    folder: Path, audit: Callable[[Audit], None] | None = None, reports: Reports | None = None, **options
) -> Iterator[World]:
    """Our listener with the given settings, calling title PEER allowed unless told otherwise; nothing is left behind."""
    incoming = folder / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    world = World(incoming)
    chosen = Settings(**{"port": 0, "calling_ae_titles": ("PEER", "ORTHANC"), **options})
    with listen.serve(chosen, incoming, world.store, audit or world.trail.append, reports) as world.listener:
        yield world
    assert list(incoming.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if "AcceptorThread" in thread.name]


def associated(port: int, *contexts, called: str = "QSMEDGE", calling: str = "PEER", **options):
    """An association of pynetdicom's own with our listener."""
    chosen = list(contexts) or [build_context(MRImageStorage, ExplicitVRLittleEndian)]
    return AE(calling).associate("127.0.0.1", port, chosen, called, **options)


def echoes(port: int) -> bool:
    """Whether the listener still answers."""
    assoc = associated(port, build_context("1.2.840.10008.1.1"))
    alive = assoc.is_established and assoc.send_c_echo().Status == 0
    assoc.release()
    return alive


def wait_until(done: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def run(command: Sequence[str], seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=seconds)


def certificates(folder: Path) -> dict[str, Path]:
    """An authority, a certificate for this machine and one for a peer, each with its key, made by openssl."""
    openssl = program("openssl")
    folder.mkdir()
    made = {}

    def execute(*arguments: object) -> None:
        ran = run([openssl, *arguments])
        assert ran.returncode == 0, ran.stderr

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("ca", "stranger"):
        made |= {name: folder / f"{name}.pem", f"{name}_key": folder / f"{name}.key"}
        subject = ["-subj", f"/CN=test {name}"]
        execute("req", "-x509", *key, *subject, "-keyout", made[f"{name}_key"], "-out", made[name])
    for name in ("server", "client"):
        made |= {name: folder / f"{name}.pem", f"{name}_key": folder / f"{name}.key"}
        execute("req", *key[:5], "-subj", f"/CN={name}", "-keyout", made[f"{name}_key"], "-out", folder / f"{name}.csr")
        signed = ["-CA", made["ca"], "-CAkey", made["ca_key"], "-CAcreateserial", "-days", "30"]
        execute("x509", "-req", "-in", folder / f"{name}.csr", *signed, "-extfile", extensions, "-out", made[name])
    return made


def associate_rq(called: str = "QSMEDGE", calling: str = "PEER", sop_class: str = MRImageStorage) -> bytes:
    """An A-ASSOCIATE-RQ with one presentation context, made by hand: a peer of our own making obeys no library."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(content)) + content

    context = item(0x30, sop_class.encode()) + item(0x40, str(ExplicitVRLittleEndian).encode())
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3")
    body = struct.pack(">HH16s16s32x", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode())
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, b"\1\0\0\0" + context) + item(0x50, user)
    return pdu(1, body)


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def pdv(control: int, content: bytes, context: int = 1) -> bytes:
    return pdu(4, struct.pack(">LBB", len(content) + 2, context, control) + content)


def store_rq(number: int = 1, sop_class: str = MRImageStorage, sop_instance: str | None = None) -> bytes:
    """The command set of a C-STORE."""
    uid = f"1.2.3.{number}" if sop_instance is None else sop_instance
    return _command(0x0001, number, sop_class, uid, {0x0700: 0})


def report_rq(number: int, sop_class: str, sop_instance: str) -> bytes:
    """The command set of an N-EVENT-REPORT."""
    return _command(0x0100, number, sop_class, sop_instance, {0x1002: 1})


def _command(field_: int, number: int, sop_class: str, sop_instance: str, more: dict[int, int]) -> bytes:
    numbers = {0x0100: field_, 0x0110: number, 0x0800: 1, **more}
    elements = {0x0002: sop_class.encode(), 0x1000: sop_instance.encode("latin-1")}
    elements |= {tag: struct.pack("<H", value) for tag, value in numbers.items()}
    command = b"".join(_element(tag, elements[tag]) for tag in sorted(elements))
    return _element(0x0000, struct.pack("<L", len(command))) + command


def _element(tag: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", 0, tag, len(value)) + value


def connected(port: int, timeout_s: float = 20.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The next PDU: its type and body; (0, b'') at the end of the connection."""

    def exactly(length: int) -> bytes:
        content = b""
        while len(content) < length:
            more = connection.recv(length - len(content))
            if not more:
                return b""
            content += more
        return content

    with contextlib.suppress(ConnectionError):
        head = exactly(6)
        if head:
            kind, _, length = struct.unpack(">BBL", head)
            return kind, exactly(length)
    return 0, b""


def status_of(body: bytes) -> int:
    """The status in a P-DATA that carries a response's command set."""
    at = body.index(struct.pack("<HHL", 0, 0x0900, 2))
    return struct.unpack_from("<H", body, at + 8)[0]


def hashed(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


@contextlib.contextmanager
def orthanc(folder: Path, our_port: int, plugins: Sequence[str] = ()) -> Iterator[Orthanc]:
    """An Orthanc that knows us as QSMEDGE at `our_port`."""
    known = {"edge": {"AET": "QSMEDGE", "Host": "127.0.0.1", "Port": our_port}}
    with running(program("Orthanc"), folder, {"Plugins": list(plugins), "DicomModalities": known}) as server:
        yield server
