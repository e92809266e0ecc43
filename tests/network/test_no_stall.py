"""No wait on the network is without end, and no answer is lost to our own threads: what does not come is tried again."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import network_world as world_of
import pytest
from network_world import answer, associate_rq, connected, echoes, files, image, listening, wait_until

from qsm_edge import send
from qsm_edge.listen import guard
from qsm_edge.send import Destination


def to(port: int, timeout_s: float) -> Destination:
    return Destination(
        host="127.0.0.1",
        port=port,
        called_ae_title="QSMEDGE",
        calling_ae_title="PEER",
        commitment="no",
        answer_timeout_s=timeout_s,
    )


def test_a_reactor_that_the_system_holds_up_takes_no_answer_away(tmp_path, monkeypatch):
    """On a starved machine it was held up behind its checkpoint until the answer was there, and took it: a stall of one
    whole timeout, in the middle of a delivery."""

    class HeldUp(guard.Checkpoint):
        def wait(self):
            super().wait()
            end = time.monotonic() + 0.1
            while not self._assoc.dimse.msg_queue.qsize() and time.monotonic() < end:
                pass

    monkeypatch.setattr(guard, "Checkpoint", HeldUp)
    paths = files(tmp_path / "out", 12)
    with listening(tmp_path) as world:
        sent = send.send(paths, to(world.port, 60.0))
    assert [(one.outcome, one.detail) for one in sent] == [("stored", "")] * 12


def test_an_end_of_the_association_under_our_hands_is_no_wait(tmp_path, monkeypatch):
    """The peer is gone between the look whether it is there and the sending: nothing would ever come."""
    paths = files(tmp_path / "out", 3)

    class Gone(guard.Checkpoint):
        def clear(self):
            self._assoc.dul.socket.hang_up()
            self._assoc.join(60)
            super().clear()

    monkeypatch.setattr(guard, "Checkpoint", Gone)
    with listening(tmp_path) as world:
        begun = time.monotonic()
        sent = send.send(paths, to(world.port, 300.0))
        assert time.monotonic() - begun < 60
    assert {(one.outcome, one.retry) for one in sent} == {("failed", True)}


def test_a_reactor_that_does_not_stand_still_is_given_up(tmp_path, monkeypatch):
    paths = files(tmp_path / "out", 2)
    go = threading.Event()

    class Runs(guard.Checkpoint):
        def wait(self):
            go.wait(60)

    monkeypatch.setattr(guard, "Checkpoint", Runs)
    monkeypatch.setattr(guard, "_STOP_S", 0.3)
    with listening(tmp_path) as world:
        timer = threading.Timer(5.0, go.set)
        timer.start()
        sent = send.send(paths, to(world.port, 300.0))
        go.set()
        timer.join()
    assert {(one.outcome, one.retry) for one in sent} == {("failed", True)}


@contextlib.contextmanager
def slow_reader(accepted: bytes, bytes_a_time: int):
    """A peer that accepts an association and then takes a few bytes at a time, for ever."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def run() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    world_of.answer(connection)
                    connection.sendall(accepted)
                    while not ended.is_set() and connection.recv(bytes_a_time):
                        time.sleep(0.1)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            server.close()
            thread.join(20)


def test_a_peer_that_takes_a_few_bytes_at_a_time_is_given_up(tmp_path):
    path = tmp_path / "large.dcm"
    image(1, side=2048).save_as(path, enforce_file_format=True)
    with listening(tmp_path) as world, connected(world.port) as connection:
        connection.sendall(associate_rq())
        kind, body = answer(connection)
    accepted = world_of.pdu(kind, body)
    with slow_reader(accepted, 64) as port:
        begun = time.monotonic()
        (sent,) = send.send([path], to(port, 1.0))
        assert (sent.outcome, sent.retry) == ("failed", True)
        assert time.monotonic() - begun < 60


@pytest.mark.parametrize("step_s", [-86400.0, 86400.0], ids=["back", "forward"])
def test_a_clock_that_is_set_neither_keeps_nor_ends_an_association(tmp_path, monkeypatch, step_s):
    with listening(tmp_path, idle_timeout_s=1.5) as world, connected(world.port) as connection:
        connection.sendall(associate_rq())
        assert answer(connection)[0] == 2
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + step_s)
        connection.sendall(world_of.pdv(3, world_of.store_rq()) + world_of.pdv(2, b"1234"))
        assert world_of.status_of(answer(connection)[1]) == 0  # it was not ended
        begun = time.monotonic()
        assert answer(connection)[0] in (0, 7)  # and is ended in its time
        assert time.monotonic() - begun < 15
        wait_until(lambda: not world.listener._server.connections)
        assert echoes(world.port)


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\nX-Word: ", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"])
def test_a_server_whose_answer_comes_in_drops_is_given_up(tmp_path, said):
    (path,) = files(tmp_path / "out", 1)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drops() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 20)
                connection.sendall(said)
                while not ended.wait(0.1):
                    connection.sendall(b"a")

        thread = threading.Thread(target=drops, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/dicom-web"
        begun = time.monotonic()
        (sent,) = send.send([path], Destination(kind="stow", url=url, answer_timeout_s=1.0))
        ended.set()
        assert (sent.outcome, sent.retry) == ("failed", True)
        assert time.monotonic() - begun < 60
        thread.join(20)
