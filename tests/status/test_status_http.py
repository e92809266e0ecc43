"""The server: two methods, three paths, its own names, and limits that no client can use up for the others."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping

import pytest

from qsm_edge.errors import UsageError
from qsm_edge.status import http
from qsm_edge.status.settings import Settings, check, is_asked_for
from tests.status.status_world import PATIENCE_S, ask, received, said, understood


def document(body: bytes = b"hello\n") -> http.Document:
    return lambda: http.Answer(200, "text/plain", body)


@contextlib.contextmanager
def running(documents: Mapping[str, http.Document] | None = None, **settings: object) -> Iterator[http.Running]:
    with http.serve(Settings(port=0, **settings), documents or {"/": document()}) as server:
        yield server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running({"/": document(), "/other": document(b"other\n")}, hosts=("Qsm.Example.org",)) as server:
        yield server.port


def until(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def threads() -> int:
    return threading.active_count()


def test_head_is_get_without_its_body(port):
    get, head = ask(port), ask(port, method="HEAD")
    assert (get.status, get.body, head.status, head.body) == (200, b"hello\n", 200, b"")
    assert {k: v for k, v in get.headers.items() if k != "date"} == {
        k: v for k, v in head.headers.items() if k != "date"
    }
    assert get.headers["content-length"] == "6"
    assert ask(port, "/other?a=b#c").body == b"other\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "SEND"])
def test_there_are_no_other_methods(port, method):
    answer = ask(port, method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.x\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01 / \xff\r\n\r\n",
    ],
)
def test_what_is_no_plain_request_is_refused_and_not_repeated(port, request_):
    answer = said(port, request_)
    assert answer.status in (400, 405)
    assert len(answer.body) < 100
    assert b"\xff" not in answer.body
    assert ask(port).status == 200


def test_refusals_say_nothing_of_the_request_and_are_as_guarded_as_the_pages(port):
    answers = [
        ask(port, "/<script>Mustermann"),
        ask(port, host="mustermann.example"),
        ask(port, method="MUSTERMANN"),
        ask(port),
    ]
    assert [answer.status for answer in answers] == [404, 421, 405, 200]
    for answer in answers:
        assert b"ustermann" not in answer.body.lower()
        assert b"script" not in answer.body
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert (answer.headers["cache-control"], answer.headers["connection"]) == ("no-store", "close")
        assert answer.headers["server"].strip() == "qsm-edge"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost.:8080", 200),  # a tunnel has a port of its own
        ("127.0.0.1", 200),
        ("127.0.0.53:1", 200),
        ("[::1]:8080", 200),
        ("qsm.example.ORG:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("other.qsm.example.org", 421),
        ("192.0.2.1", 421),
        ("2130706433", 421),
        ("localhost:port", 421),
        ("localhost@evil.example", 421),
        ("", 421),
    ],
)
def test_only_its_own_names_are_answered(port, host, status):
    assert ask(port, host=host).status == status


def test_on_all_interfaces_any_address_is_its_own_and_a_name_still_is_not():
    everywhere = Settings(address="0.0.0.0", allow_network=True, hosts=("qsm",))
    assert [is_asked_for(everywhere, host) for host in ("192.0.2.7", "[2001:db8::1]:80", "qsm", "evil.example")] == [
        *(True, True, True, False)
    ]


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "fe80::1"])
def test_others_see_the_page_only_where_the_configuration_says_so(address):
    check(Settings(address=address, allow_network=True))
    with pytest.raises(UsageError) as caught:
        check(Settings(address=address))
    assert (caught.value.code, caught.value.where) == ("bad_value", "address")


def test_a_request_may_have_eight_kilobytes(port):
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "
    room = http.MAXIMUM_REQUEST_BYTES - len(head) - 4
    assert said(port, head + b"a" * room + b"\r\n\r\n").status == 200
    for much in (head + b"a" * 2 * room, b"G" * 20_000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 3000):
        assert said(port, much).status == 431


def test_a_page_that_cannot_be_made_is_its_own_trouble():
    def broken() -> http.Answer:
        raise ValueError("Mustermann")

    with running({"/": document(), "/broken": broken}) as server:
        answer = ask(server.port, "/broken")
        assert (answer.status, answer.text) == (500, "this page cannot be made now: ValueError\n")
        assert ask(server.port).status == 200


def test_who_dawdles_holds_up_nobody():
    with running(maximum_connections=3, timeout_s=PATIENCE_S) as server, contextlib.ExitStack() as stack:
        for _ in range(12):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
            slow.sendall(b"GET / HT")
            assert ask(server.port).status == 200


def test_a_request_ends_at_its_time_however_it_is_drawn_out():
    with running(timeout_s=1.0) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(0.05)
        begun, ended = time.monotonic(), False
        while not ended and time.monotonic() - begun < PATIENCE_S:
            try:
                slow.sendall(b"G")
                ended = slow.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        assert time.monotonic() - begun >= 0.9


def test_who_does_not_read_the_answer_is_left():
    before = threads()
    with (
        running({"/": document(bytes(100_000_000))}, timeout_s=1.0) as server,
        socket.create_connection(("127.0.0.1", server.port)) as deaf,
    ):
        deaf.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: threads() == before + 2)
        until(lambda: threads() == before + 1)
        assert ask(server.port, "/none").status == 404


def test_threads_that_do_not_go_make_it_refuse_and_not_grow():
    held = threading.Event()

    def waits() -> http.Answer:
        held.wait(PATIENCE_S)
        return http.Answer(200, "text/plain", b"")

    before = threads()
    patience = {"maximum_connections": 2, "timeout_s": 2 * PATIENCE_S}
    with running({"/": waits}, **patience) as server, contextlib.ExitStack() as stack:
        ends = []
        for _ in range(8):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
            with contextlib.suppress(OSError):
                one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            ends.append(one)
        ends[-1].settimeout(PATIENCE_S / 4)
        assert received(ends[-1]) == b""
        assert threads() <= before + 1 + 4
        assert not held.is_set()
        held.set()
        until(lambda: threads() == before + 1)
        assert ask(server.port).status == 200


def test_it_stops_with_its_connections():
    before = threads()
    with running(timeout_s=4 * PATIENCE_S) as server:
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
        until(lambda: threads() == before + 2)
    with idle:
        assert received(idle) == b""
    until(lambda: threads() == before)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    server.stop()


def test_a_port_that_is_taken_is_a_usage_error():
    with running() as server, pytest.raises(UsageError) as caught:
        http.serve(Settings(port=server.port), {})
    assert caught.value.code == "bad_call"
    assert str(server.port) in caught.value.where


def test_it_listens_on_the_other_family_too():
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    with running(address="::1") as server, socket.create_connection(("::1", server.port), timeout=PATIENCE_S) as one:
        one.sendall(f"GET / HTTP/1.1\r\nHost: [::1]:{server.port}\r\n\r\n".encode())
        assert understood(received(one)).body == b"hello\n"
