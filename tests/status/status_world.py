"""A spool with something of everything in it, and a client that reads answers as they come off the wire."""

from __future__ import annotations

import contextlib
import io
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import FileDataset

from qsm_edge import status
from qsm_edge.report import write_report
from qsm_edge.spool import opened
from qsm_edge.spool.config import Site
from qsm_edge.types import Geometry, Note
from tests import dicom_factory, report_factory
from tests.spool.spool_world import Archive, Sent, fake_run, hand_in, parts, site, work_off
from tests.spool.studies import content

PATIENT, PATIENT_ID = "Mustermann^Hans", "4711-geheim"
PATIENCE_S = 60.0
NOTES = (Note("mask_by_threshold", "Look at the mask."), Note("duplicate_dropped", "3 copies"))


def scan(name: str, encoding: str = "siemens_classic", **without: object) -> list[FileDataset]:
    """An acquisition of a patient who has a name; `without`: what is missing, as `dicom_factory.matching` has it."""
    datasets = dicom_factory.scan(encoding, name=name)
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID = PATIENT, PATIENT_ID
    return dicom_factory.without(datasets, **without) if without else datasets


def uids(datasets: Sequence[FileDataset]) -> set[str]:
    """Whatever in them leads to the patient."""
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    return {str(d.get(keyword)) for d in datasets for keyword in keywords if d.get(keyword)}


def report(folder: Path, geometry: Geometry | None = None, notes: Sequence[Note] = (), **head: object) -> Path:
    """What a reconstruction leaves for people: report and preview of a drawn head."""
    write_report(report_factory.result(report_factory.head(geometry, **head), notes=tuple(notes)), folder)
    return folder


def night(tmp_path: Path, voxel_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)) -> tuple[Site, set[str]]:
    """A spool after a night: two results (one to be looked at, one refused by a destination), one held, one refused by the
    reader, one that failed, one that the chain refused, one that waits. Also the UIDs of all of it."""
    made = site(tmp_path, "pacs", "web")
    made = replace(made, delivery=replace(made.delivery, first_retry_s=600.0, longest_retry_s=3600.0))
    geometry = report_factory.geometry(voxel_mm)
    good = str(report(tmp_path / "good", geometry))
    review = str(report(tmp_path / "review", geometry, NOTES, extras=(report_factory.BLEED,), seed=1))
    seen: set[str] = set()

    def come(datasets: Sequence[FileDataset], *options: str, web: Archive | None = None) -> None:
        seen.update(uids(datasets))
        with opened(made.spool.folder) as spool:
            hand_in(spool, [content(dataset) for dataset in datasets])
        work_off(made, parts(made, fake_run(*options), pacs=Archive(), web=web or Archive()))

    turned_down = Archive(lambda path: Sent(path, "refused", "0x0122 this SOP class"))
    not_there = Archive(lambda path: Sent(path, "failed", "no association: the peer cannot be reached", retry=True))
    come(scan("a"), "--report", good, web=turned_down)
    come(scan("b", "philips_classic"), "--crash")
    come(scan("c", "ge_real_imaginary"), "--refuse", "mask_empty")
    come(scan("d", slice_=2, echo=1))
    come(filtered(scan("e")))
    come(scan("f", "siemens_xa_classic"), "--verdict", "review", "--report", review, web=not_there)
    return made, seen


def filtered(datasets: Sequence[FileDataset]) -> list[FileDataset]:
    """Phase that was filtered, which the reader refuses."""
    for dataset in dicom_factory.matching(datasets, parts="P"):
        dataset.ImageType = [*dataset.ImageType, "FILTERED"]
    return list(datasets)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.text)


def ask(port: int, path: str = "/", method: str = "GET", host: str | None = None, extra: str = "") -> Answer:
    """One request and what comes back."""
    named = f"127.0.0.1:{port}" if host is None else host
    return said(port, f"{method} {path} HTTP/1.1\r\nHost: {named}\r\n{extra}\r\n".encode())


def said(port: int, request: bytes) -> Answer:
    """What comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        return understood(received(connection))


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side ends it."""
    held = io.BytesIO()
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            held.write(chunk)
    return held.getvalue()


def understood(answer: bytes) -> Answer:
    """Status, headers (each once) and body of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    assert first.startswith("HTTP/1.1 "), answer[:200]
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs)
    return Answer(int(first.split()[1]), headers, body)


@contextlib.contextmanager
def served(made: Site, board: status.Board | None = None, **settings: object) -> Iterator[int]:
    """The status page of a spool, without its service; the port."""
    chosen = status.Settings(port=0, **settings)
    status.check(chosen)
    names = [destination.name for destination in made.destinations]
    root = made.spool.folder
    with status.serve(chosen, board or status.Board(), root, destinations=names, keep_held_days=14.0) as running:
        yield running.port
