"""Strangers, floods and half-sent things: each is refused or ended, nothing is left behind, and the listener lives."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from network_world import (
    answer,
    associate_rq,
    associated,
    connected,
    echoes,
    image,
    listening,
    pdu,
    pdv,
    report_rq,
    store_rq,
    wait_until,
)

from qsm_edge.dicom.messages import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from qsm_edge.listen import Reports, guard


@pytest.mark.parametrize(
    ("titles", "result"), [({"called": "OTHER"}, (1, 1, 7)), ({"calling": "STRANGER"}, (1, 1, 3))], ids=str
)
def test_a_title_that_is_not_known_is_refused_before_anything_is_read(tmp_path, titles, result):
    with listening(tmp_path) as world, connected(world.port) as connection:
        connection.sendall(associate_rq(**titles))
        kind, body = answer(connection)
        assert (kind, tuple(body[1:])) == (3, result)
        with contextlib.suppress(ConnectionError):
            connection.sendall(pdv(3, store_rq()) + pdv(2, b"1234"))
        assert answer(connection)[0] in (0, 7)
        assert (world.stored, world.outcomes("association")) == ({}, [("refused", f"{next(iter(titles))}_ae_title")])


def test_nobody_may_call_unless_named(tmp_path):
    with listening(tmp_path, calling_ae_titles=()) as world:
        assert associated(world.port).is_rejected
    with listening(tmp_path, calling_ae_titles=(), any_calling_ae_title=True) as world:
        assert echoes(world.port)


def test_an_address_that_is_not_allowed_is_not_even_heard(tmp_path):
    with listening(tmp_path, addresses=("10.1.2.0/24",)) as world, connected(world.port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(associate_rq())
        assert answer(connection) == (0, b"")
        assert world.outcomes("connection") == [("refused", "address")]


def test_an_audit_trail_that_cannot_be_written_does_not_end_the_listener(tmp_path):
    def full(line):
        raise OSError("no space left")

    with listening(tmp_path, audit=full, addresses=("10.1.2.0/24",)) as world:
        for _ in range(3):
            with connected(world.port) as connection:
                assert answer(connection) == (0, b"")
    with listening(tmp_path, audit=full) as world:
        assert associated(world.port, calling="STRANGER").is_rejected
        assert echoes(world.port)


@pytest.mark.parametrize("begin", [b"", b"\x01\x00\x00\x00\x01\x00", associate_rq()[:-20]], ids=["", "head", "most"])
def test_a_connection_that_says_nothing_more_is_ended(tmp_path, begin):
    options = dict(association_timeout_s=0.5, network_timeout_s=0.5)
    with listening(tmp_path, **options) as world, connected(world.port) as connection:
        connection.sendall(begin)
        assert answer(connection)[0] in (0, 7)
        wait_until(lambda: not world.listener._server.connections)


def test_an_association_that_falls_silent_is_ended_between_pdus_and_within_one(tmp_path):
    with listening(tmp_path, idle_timeout_s=0.5, network_timeout_s=0.5) as world:
        for half in (b"", pdv(3, store_rq())[:30], pdv(3, store_rq()) + pdv(0, b"1234"), pdv(3, store_rq()) + b"\4\0"):
            with connected(world.port) as connection:
                connection.sendall(associate_rq())
                assert answer(connection)[0] == 2
                connection.sendall(half)
                assert answer(connection)[0] in (0, 7)
        wait_until(lambda: not world.listener._server.connections)
        assert (world.stored, list(world.incoming.iterdir())) == ({}, [])


def test_drops_do_not_keep_a_pdu_alive(tmp_path):
    with listening(tmp_path, network_timeout_s=0.6) as world, connected(world.port) as connection:
        connection.sendall(associate_rq())
        assert answer(connection)[0] == 2
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            connection.sendall(pdv(0, bytes(4000))[:6])
            while time.monotonic() - begun < 20 and world.listener._server.connections:
                connection.sendall(b"\0")
                time.sleep(0.05)
        wait_until(lambda: not world.listener._server.connections)
        assert time.monotonic() - begun < 15


def test_of_100_associations_those_over_the_cap_are_refused_and_the_listener_lives(tmp_path):
    with listening(tmp_path, maximum_associations=10) as world, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connected(world.port, 60)) for _ in range(100)]
        for connection in crowd:
            connection.sendall(associate_rq())
        answers = [answer(connection) for connection in crowd]
        refused = [tuple(body[1:]) for kind, body in answers if kind == 3]
        assert sum(kind == 2 for kind, _ in answers) == 10
        assert refused == [(2, 3, 2)] * 90
        inside = [connection for connection, (kind, _) in zip(crowd, answers, strict=True) if kind == 2]
        for connection in inside:
            connection.sendall(pdu(5, bytes(4)))
            assert answer(connection)[0] == 6
        wait_until(lambda: not world.listener._server._inside)
        assert echoes(world.port)


@pytest.mark.parametrize("end", [pdu(7, bytes(4)), b""], ids=["abort", "hang up"])
def test_an_end_inside_a_c_store_leaves_nothing(tmp_path, end):
    with listening(tmp_path) as world:
        with connected(world.port) as connection:
            connection.sendall(associate_rq())
            assert answer(connection)[0] == 2
            connection.sendall(pdv(3, store_rq()) + pdv(0, bytes(10000)))
            wait_until(lambda: list(world.incoming.iterdir()))
            connection.sendall(end)
        wait_until(lambda: not world.listener._server.connections)
        assert (world.stored, list(world.incoming.iterdir())) == ({}, [])
        assert echoes(world.port)


NOISE = {
    "tls": bytes.fromhex("160301006a010000660303") + bytes(96),
    "http": b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n",
    "any bytes": bytes(range(256)) * 8,
    "an empty request": pdu(1, b"\0\1" + bytes(66)),
    "a request of zeros": pdu(1, bytes(255)),
    "a command that is none": associate_rq() + pdv(3, b"\xff" * 300),
    "a dataset without its command": associate_rq() + pdv(2, b"1234"),
    "a fragment without its context": associate_rq() + pdu(4, b"\0\0"),
    "a fragment without its control byte": associate_rq() + pdu(4, b"\0\0\0\1\1"),
    "a command without end": associate_rq() + pdv(1, bytes(9000)) + pdv(1, bytes(9000)),
    "50 stores without waiting": associate_rq() + (pdv(3, store_rq()) + pdv(2, b"1234")) * 50,
    "two requests": associate_rq() + associate_rq(),
    "a context that was not negotiated": associate_rq() + pdv(3, store_rq(), context=77) + pdv(2, b"1234", context=77),
}


def test_noise_does_no_harm(tmp_path):
    options = dict(association_timeout_s=3.0, network_timeout_s=3.0, idle_timeout_s=3.0)
    with listening(tmp_path, **options) as world:
        for noise in NOISE.values():
            with connected(world.port, 60) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(noise)
                while answer(connection)[0] not in (0, 3, 7):
                    pass
        assert len(world.stored) <= 1
        wait_until(lambda: not world.listener._server.connections)
        assert associated(world.port).send_c_store(image()).Status == 0


def test_reports_that_pile_up_end_the_association_and_not_the_machine(tmp_path):
    go = threading.Event()

    class Slow(Reports):
        def deliver(self, report):
            return not go.wait(60)

    with listening(tmp_path, reports=Slow()) as world, connected(world.port, 60) as connection:
        connection.sendall(associate_rq(sop_class=STORAGE_COMMITMENT))
        assert answer(connection)[0] == 2
        before = threading.active_count()
        command = report_rq(1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
        report = pdv(3, command) + pdv(2, b"\x08\0\x95\x11UI\4\0001.2\0")
        with contextlib.suppress(ConnectionError):
            connection.sendall(report * 500)
        assert answer(connection)[0] in (0, 7)
        assert threading.active_count() <= before + guard.MAX_WAITING_MESSAGES + 1
        go.set()


def test_the_installed_pynetdicom_keeps_to_the_cap_and_another_one_would_be_noticed(monkeypatch):
    guard.prove()

    def reads_past_it(self):
        self.socket.socket.recv(6)

    monkeypatch.setattr(guard.DULServiceProvider, "_read_pdu_data", reads_past_it)
    with pytest.raises(guard.InternalError):
        guard.prove()
