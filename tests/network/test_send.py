"""What is sent arrives as the same bytes, and of each file it is known whether it did, and whether to try again."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading

import network_world as world_of
import pytest
from network_world import PATIENT, PATIENT_ID, connected, dataset_bytes, files, hashed, image, listening
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage, SegmentationStorage
from pynetdicom import AE, evt

from qsm_edge import send
from qsm_edge.errors import UsageError
from qsm_edge.send import Destination
from tests.orthanc_server import free_ports


def to(port: int, **options) -> Destination:
    named = {"host": "127.0.0.1", "called_ae_title": "QSMEDGE", "calling_ae_title": "PEER", "commitment": "no"}
    return Destination(**{**named, "port": port, **options})


@contextlib.contextmanager
def peer(on_store, classes=(MRImageStorage,), syntaxes=(ExplicitVRLittleEndian,)):
    """pynetdicom's own provider of the service, answering what `on_store` returns; gives its port."""
    ae = AE("QSMEDGE")
    for name in classes:
        ae.add_supported_context(name, list(syntaxes))
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_files_arrive_as_the_same_bytes_and_in_their_order(tmp_path):
    paths = [*files(tmp_path / "a", 2), tmp_path / "implicit.dcm", tmp_path / "seg.dcm"]
    image(8, syntax=ImplicitVRLittleEndian).save_as(paths[2], enforce_file_format=True)
    image(9, sop_class=SegmentationStorage).save_as(paths[3], enforce_file_format=True)
    lines = []
    with listening(tmp_path) as world:
        sent = send.send(paths, to(world.port), lines.append)
        assert sent == [send.Sent(path, "stored") for path in paths]
        kept = list(world.stored.values())
    assert [dataset_bytes(content) for content in kept] == [dataset_bytes(path.read_bytes()) for path in paths]
    assert [(line.event, line.outcome, line.peer) for line in lines] == [
        ("sent", "stored", f"127.0.0.1:{world.port}")
    ] * 4
    assert lines[2].instance == hashed(image(8).SOPInstanceUID)


@pytest.mark.parametrize(
    ("status", "outcome", "retry"),
    [
        (0x0000, "stored", False),
        (0xB000, "stored", False),
        (0xB007, "stored", False),
        (0x0111, "stored", False),
        (0xA700, "refused", True),
        (0x0110, "refused", True),
        (0xA900, "refused", False),
        (0xC123, "refused", False),
        (0x0122, "refused", False),
        (0x0124, "refused", False),
    ],
)
def test_a_status_is_an_outcome(tmp_path, status, outcome, retry):
    from qsm_edge.send.store import _judged

    judged = _judged(tmp_path, status)
    assert (judged.outcome, judged.retry) == (outcome, retry)
    assert (f"0x{status:04X}" in judged.detail) == (status != 0)


def test_a_file_that_is_refused_does_not_hold_up_the_others(tmp_path):
    answers = iter([0x0000, 0xA700, 0xC000, 0x0000])
    paths = files(tmp_path / "out", 4)
    with peer(lambda event: next(answers)) as port:
        sent = send.send(paths, to(port))
    assert [(one.outcome, one.retry) for one in sent] == [
        ("stored", False),
        ("refused", True),
        ("refused", False),
        ("stored", False),
    ]


def test_what_cannot_be_sent_is_told_file_by_file(tmp_path):
    good = files(tmp_path / "out", 1)[0]
    implicit, seg, text, empty, cut = (tmp_path / name for name in ("implicit", "seg", "text", "empty", "cut"))
    image(2, syntax=ImplicitVRLittleEndian).save_as(implicit, enforce_file_format=True)
    image(3, sop_class=SegmentationStorage).save_as(seg, enforce_file_format=True)
    text.write_text("no DICOM")
    empty.touch()
    cut.write_bytes(good.read_bytes()[:200])
    with peer(lambda event: 0x0000) as port:
        sent = send.send([text, implicit, empty, good, seg, cut, tmp_path / "absent"], to(port))
    kinds = "the peer does not take this kind of object in this encoding"
    assert [(one.outcome, one.detail, one.retry) for one in sent] == [
        ("refused", "not_dicom", False),
        ("refused", kinds, False),
        ("refused", "empty_file", False),
        ("stored", "", False),
        ("refused", kinds, False),
        ("refused", "truncated_file", False),
        ("failed", "unreadable_file", True),
    ]


def test_nobody_there_a_stranger_s_title_and_a_peer_that_takes_nothing_of_it(tmp_path):
    (path,) = files(tmp_path / "out", 1)
    (free,) = free_ports(1)
    (nobody,) = send.send([path], to(free))
    assert (nobody.outcome, nobody.retry) == ("failed", True)
    with listening(tmp_path, maximum_associations=1) as world:
        (stranger,) = send.send([path], to(world.port, calling_ae_title="STRANGER"))
        assert (stranger.outcome, stranger.retry) == ("refused", False)
        with connected(world.port) as connection:
            connection.sendall(world_of.associate_rq())
            assert world_of.answer(connection)[0] == 2
            (busy,) = send.send([path], to(world.port))
            assert (busy.outcome, busy.retry) == ("refused", True)
    with peer(lambda event: 0, classes=(SegmentationStorage,)) as port:
        (nothing,) = send.send([path], to(port))
        assert (nothing.outcome, nothing.retry) == ("refused", False)


def test_a_peer_that_dies_before_its_answer_leaves_the_outcome_unknown(tmp_path):
    paths = files(tmp_path / "out", 3)
    seen = []

    def die(event):
        seen.append(event.request.AffectedSOPInstanceUID)
        if len(seen) == 2:
            event.assoc.dul.socket._shutdown_socket()
        return 0x0000

    with peer(die) as port:
        sent = send.send(paths, to(port, answer_timeout_s=10.0))
    assert [(one.outcome, one.retry) for one in sent] == [("stored", False), ("failed", True), ("failed", True)]
    with listening(tmp_path) as world:  # and repeating it is harmless
        again = [one.path for one in sent if one.retry]
        assert [one.outcome for one in send.send(again, to(world.port))] == ["stored"] * 2


def test_a_peer_that_never_answers_is_given_up(tmp_path):
    (path,) = files(tmp_path / "out", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (sent,) = send.send([path], to(silent.getsockname()[1], answer_timeout_s=0.3))
        assert (sent.outcome, sent.retry) == ("failed", True)


def test_a_peer_that_declares_300_mb_is_hung_up_on(tmp_path):
    (path,) = files(tmp_path / "out", 1)

    def flood(server):
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            connection.sendall(b"\x02\0" + (300 << 20).to_bytes(4, "big"))
            poured.append(0)
            for _ in range(300):
                connection.sendall(bytes(1 << 20))
                poured[0] += 1

    poured = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=flood, args=(server,))
        thread.start()
        (sent,) = send.send([path], to(server.getsockname()[1], answer_timeout_s=20.0))
        thread.join(60)
    assert (sent.outcome, sent.retry) == ("failed", True)
    assert poured[0] < 50


SENDER = """
import sys, resource
from pathlib import Path
from qsm_edge import send
small, large, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
to = send.Destination(host="127.0.0.1", port=port, called_ae_title="QSMEDGE", calling_ae_title="PEER", commitment="no")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
assert send.send([small], to)[0].outcome == "stored"
before = peak()
assert send.send([large], to)[0].outcome == "stored"
sys.stdout.write(str(peak() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_a_large_file_is_not_in_memory_as_a_whole(tmp_path):
    (small,) = files(tmp_path / "out", 1)
    large = tmp_path / "large.dcm"
    large.write_bytes(small.read_bytes())
    with large.open("ab") as file:
        file.truncate(file.tell() + (120 << 20))
    sizes = []
    with listening(tmp_path) as world:

        def drop(part, origin):
            sizes.append(part.stat().st_size)
            os.truncate(part, 0)  # not read into memory by what comes after

        world.on_store = drop
        command = [sys.executable, "-c", SENDER, small, large, world.port]
        ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert sizes[1] > 120 << 20
    assert float(ran.stdout) < 60


def test_nothing_that_is_written_down_names_the_patient_or_a_uid(tmp_path, caplog, capfd):
    lines = []
    with caplog.at_level(logging.DEBUG), peer(lambda event: 0xC000) as port:
        sent = send.send(files(tmp_path / "out", 2), to(port), lines.append)
    assert [line.outcome for line in lines] == ["refused"] * 2
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("pynetdicom")]
    written = "\n".join([*ours, *capfd.readouterr(), *map(repr, lines), *(one.detail for one in sent)])
    for word in (*PATIENT.split("^"), PATIENT_ID, "1.2.826.0.1.3680043"):
        assert word.lower() not in written.lower()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "ftp"},
        {"host": ""},
        {"port": 0},
        {"called_ae_title": "SEVENTEEN-LETTERS"},
        {"commitment": "perhaps"},
        {"answer_timeout_s": 0.0},
        {"tls_key": "key.pem"},
        {"kind": "stow", "url": "ftp://pacs/dicom-web"},
        {"kind": "stow", "url": "https://user:geheim9@pacs/dicom-web"},
        {"kind": "stow", "url": "http://pacs.example/dicom-web", "token_file": "token"},
    ],
)
def test_a_destination_that_cannot_work_is_refused(tmp_path, options):
    with pytest.raises(UsageError) as caught:
        send.send(files(tmp_path / "out", 1), Destination(**{"host": "pacs", **options}))
    assert caught.value.code == "bad_value"
    assert "geheim9" not in str(caught.value)
