"""Programs that others wrote: DCMTK sends to us and takes from us, Orthanc stores, commits, routes and speaks STOW."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import time
from pathlib import Path

import network_world as world_of
import pydicom
import pytest
from network_world import dataset_bytes, files, image, listening, orthanc, program, run, wait_until
from pydicom.uid import SegmentationStorage

from qsm_edge import send
from qsm_edge.listen import Reports
from qsm_edge.send import Destination
from tests.orthanc_server import free_ports

DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def same(content: bytes, path: Path) -> bool:
    return dataset_bytes(content) == dataset_bytes(path.read_bytes())


def test_dcmtk_s_senders_and_echo_are_served(tmp_path):
    paths = files(tmp_path / "out", 5)
    image(9, sop_class=SegmentationStorage).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    who = ["-aet", "PEER", "-aec", "QSMEDGE", "127.0.0.1"]
    with listening(tmp_path) as world:
        assert run([program("echoscu"), *who, world.port]).returncode == 0
        assert run([program("storescu"), *who, world.port, *paths[:3]]).returncode == 0
        ran = run([program("dcmsend"), "-v", *who, world.port, *paths[3:], tmp_path / "seg.dcm"])
        assert re.search(r"with status SUCCESS\s*: 3", ran.stdout + ran.stderr)
        assert len(world.stored) == 6
        for path in [*paths, tmp_path / "seg.dcm"]:
            # DCMTK may write the group lengths and delimiters of its own taste: the elements are what it promises
            back = pydicom.dcmread(io.BytesIO(world.stored[pydicom.dcmread(path).SOPInstanceUID]))
            assert back == pydicom.dcmread(path)


def test_dcmtk_s_senders_are_told_why_they_are_refused(tmp_path):
    (path,) = files(tmp_path / "out", 1)
    with listening(tmp_path) as world:
        called = run([program("storescu"), "-v", "-aet", "PEER", "-aec", "OTHER", "127.0.0.1", world.port, path])
        calling = run([program("storescu"), "-v", "-aet", "STRANGER", "-aec", "QSMEDGE", "127.0.0.1", world.port, path])

        def full(part, origin):
            raise OSError(28, "No space left on device")

        world.on_store = full
        disk = run([program("storescu"), "-v", "-aet", "PEER", "-aec", "QSMEDGE", "127.0.0.1", world.port, path])
    assert (called.returncode, "Called AE Title Not Recognized" in called.stderr) == (1, True)
    assert (calling.returncode, "Calling AE Title Not Recognized" in calling.stderr) == (1, True)
    assert disk.returncode != 0 or "0xa700" in disk.stderr.lower()
    assert re.search("OutOfResources|Out of Resources|0xa700", disk.stderr, re.IGNORECASE)
    assert world.stored == {}


@contextlib.contextmanager
def storescp(folder: Path, *options: str):
    """DCMTK's receiver, keeping the bytes as they come."""
    folder.mkdir()
    (port,) = free_ports(1)
    command = [program("storescp"), "+B", "-aet", "DCMTK", "-od", str(folder), *options, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError), world_of.connected(port, 1):
                    break
            yield port
        finally:
            process.terminate()
            process.wait(20)


def test_dcmtk_s_receiver_gets_the_bytes_of_our_files(tmp_path):
    paths = files(tmp_path / "out", 4)
    image(9, sop_class=SegmentationStorage).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    paths.append(tmp_path / "seg.dcm")
    with storescp(tmp_path / "in") as port:
        sent = send.send(paths, Destination(host="127.0.0.1", port=port, called_ae_title="DCMTK"))
        assert [(one.outcome, one.detail) for one in sent] == [("stored", "")] * 5
    arrived = {pydicom.dcmread(path).SOPInstanceUID: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert all(same(arrived[pydicom.dcmread(path).SOPInstanceUID], path) for path in paths)


def test_dcmtk_s_receiver_that_refuses_or_dies_is_noticed(tmp_path):
    paths = files(tmp_path / "out", 2)
    with storescp(tmp_path / "a", "--refuse") as port:
        sent = send.send(paths, Destination(host="127.0.0.1", port=port, called_ae_title="DCMTK"))
        assert {one.outcome for one in sent} == {"refused"}
    with storescp(tmp_path / "b", "--abort-during") as port:
        begun = time.monotonic()
        sent = send.send(
            paths, Destination(host="127.0.0.1", port=port, called_ae_title="DCMTK", answer_timeout_s=300.0)
        )
        assert {(one.outcome, one.retry) for one in sent} == {("failed", True)}
        assert time.monotonic() - begun < 100  # noticed, and not waited for


@pytest.mark.orthanc
def test_orthanc_stores_commits_speaks_stow_and_routes_back(tmp_path):
    paths = files(tmp_path / "out")
    plugins = [str(DICOMWEB)] if DICOMWEB.is_file() else []
    with (
        listening(tmp_path, reports=Reports()) as world,
        orthanc(tmp_path / "orthanc", world.port, plugins) as server,
    ):
        required = Destination(
            host="127.0.0.1", port=server.dicom_port, called_ae_title="ORTHANC", commitment="required"
        )
        for _ in range(2):  # a delivery whose outcome was unknown is repeated, and that is harmless
            sent = send.send(paths, required, reports=world.listener.reports)
            assert [(one.outcome, one.detail) for one in sent] == [("committed", "")] * 3
        assert len(server.ask("/instances")) == 3
        assert world.outcomes("commitment") == [("accepted", "3 committed, 0 not")] * 2

        _routed_back(server, world, paths)
        if plugins:
            _by_stow(server, tmp_path)
        else:
            pytest.skip("the plugin orthanc-dicomweb is not installed: all but STOW was tested")


def _routed_back(server, world, paths):
    """Orthanc sends what it got to us, under the bytes that it got."""
    server.post("/modalities/edge/store", server.ask("/instances"))
    wait_until(lambda: len(world.stored) == 3)
    for path in paths:
        assert same(world.stored[pydicom.dcmread(path).SOPInstanceUID], path)


def _by_stow(server, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    for number in (11, 12):
        image(number).save_as(more / f"{number}.dcm", enforce_file_format=True)
    junk = more / "junk.dcm"  # a file whose meta header is all that is right with it
    content = image(13)
    content.save_as(junk, enforce_file_format=True)
    junk.write_bytes(junk.read_bytes()[:400] + b"\xff" * 50)
    to = Destination(kind="stow", url=f"http://127.0.0.1:{server.http_port}/dicom-web")
    good = sorted(more.glob("1*.dcm"))
    for _ in range(2):
        sent = send.send(good, to)
        assert [one.outcome for one in sent] == ["stored"] * 2
    assert len(server.ask("/instances")) == 5
    (bad,) = send.send([junk], to)
    assert bad.outcome in ("refused", "failed")
