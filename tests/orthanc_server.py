"""Somebody else's programs, and a real Orthanc on loopback, with a storage of its own, for the length of a test."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Orthanc:
    """A running server: its ports on the loopback interface."""

    dicom_port: int
    http_port: int

    def get(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", body, timeout=60) as answer:
            return answer.read()

    def ask(self, path: str, body: bytes | None = None):
        return json.loads(self.get(path, body))

    def post(self, path: str, content: object):
        return self.ask(path, json.dumps(content).encode())


def program(name: str) -> str:
    """The full path of somebody else's program (pynetdicom installs namesakes into the environment); skips without it."""
    for candidate in (f"/usr/bin/{name}", f"/usr/sbin/{name}"):
        if Path(candidate).is_file():
            return candidate
    pytest.skip(f"{name} is not installed")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def running(
    executable: str, folder: Path, more: Mapping[str, object] | None = None, ports: Sequence[int] = ()
) -> Iterator[Orthanc]:
    """An Orthanc with the AE title ORTHANC, its files and its log in `folder`; `more`: settings beside the usual ones;
    `ports`: its own, DICOM and HTTP, free ones where they are not given."""
    folder.mkdir(exist_ok=True)
    dicom_port, http_port = ports or free_ports(2)
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
        **(more or {}),
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([executable, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
        try:
            server = Orthanc(dicom_port, http_port)
            _wait_for(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def _wait_for(server: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
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
