"""Peers that break the protocol, stall, lie about sizes or send the wrong thing: each is told why, and the server lives."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time

import numpy as np
import pytest
from mrd_world import PATIENT, answer, config_file, connected, ismrmrd, scan, serving, text_message, wait_until

XML = '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>'
#: Header of an image: the offsets of type and matrix, of its channels.
HEAD = 198


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("hostile"), "--idle-s", "3", "--connections", "4") as running:
        yield running


def head(data_type: int = 2, matrix: tuple[int, int, int] = (8, 8, 1), channels: int = 1) -> bytes:
    content = bytearray(HEAD)
    struct.pack_into("<H", content, 2, data_type)
    struct.pack_into("<3H", content, 16, *matrix)
    struct.pack_into("<H", content, 34, channels)
    return struct.pack("<H", 1022) + bytes(content)


def alive(port: int) -> bool:
    """Whether a decent peer is still served."""
    said = scan(port, [], XML)
    return (said.texts, said.images, said.closed) == ([], [], True)


BEGUN = config_file() + text_message(XML, 3)
WHOLE_IMAGE = head() + struct.pack("<Q", 0) + bytes(128)

BROKEN = {
    "an id that is none": (struct.pack("<H", 7777), "bad_message"),
    "an array, which is another version's": (struct.pack("<H", 1030), "bad_message"),
    "a web browser": (b"GET / HTTP/1.1\r\nHost: scanner\r\n\r\n", "bad_message"),
    "a text of 4 GB": (struct.pack("<HI", 5, 0xFFFFFFFF), "too_large"),
    "a header of 4 GB": (struct.pack("<HI", 3, 0xFFFFFFFF), "too_large"),
    "attributes of 16 EB": (BEGUN + head() + b"\xff" * 8, "too_large"),
    "a huge image": (BEGUN + head(8, (65535, 65535, 65535), 65535), "too_large"),
    "an image of no size": (BEGUN + head(2, (0, 8, 1)), "bad_message"),
    "an image of no type": (BEGUN + head(9), "bad_message"),
    "a text that is no UTF-8": (struct.pack("<HI", 5, 2) + b"\xff\xfe", "bad_message"),
    "two headers": (BEGUN + text_message(XML, 3), "bad_message"),
    "images without a header": (config_file() + WHOLE_IMAGE + struct.pack("<H", 4), "bad_message"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_protocol_is_named_and_the_stream_is_closed(server, name):
    content, code = BROKEN[name]
    with connected(server.port, 30) as connection:
        connection.sendall(content)
        said = answer(connection)
    assert (said.code, said.closed, said.images) == (code, True, [])


def test_k_space_is_refused_by_name(server):
    acquisition = ismrmrd.Acquisition.from_array(np.ones((4, 64), np.complex64))
    said = scan(server.port, [acquisition], XML)
    assert (said.code, said.closed) == ("raw_data", True)


def test_waveforms_are_passed_over(server):
    beats = ismrmrd.Waveform.from_array(np.ones((2, 500), np.uint32))
    said = scan(server.port, [beats, beats], XML)
    assert (said.texts, said.closed) == ([], True)


@pytest.mark.parametrize(
    "xml",
    [
        "no XML",
        "<other/>",
        '<!DOCTYPE a [<!ENTITY b "c">]><ismrmrdHeader/>',
        XML.replace(
            "/>", "><encoding><reconSpace><matrixSize><z>many</z></matrixSize></reconSpace></encoding></ismrmrdHeader>"
        ),
    ],
)
def test_a_header_that_is_not_understood_is_refused_and_the_images_go_back(server, xml):
    with connected(server.port, 60) as connection:
        connection.sendall(config_file() + text_message(xml, 3) + WHOLE_IMAGE + struct.pack("<H", 4))
        said = answer(connection)
    assert said.code in ("corrupt_header", "bad_message")
    assert (len(said.images), said.closed) == (1, True)


@pytest.mark.parametrize(
    "attributes",
    [b"<a><b>", b"\xff\xff", b"<other/>", b"<!DOCTYPE a><ismrmrdMeta/>", b"<ismrmrdMeta><meta/></ismrmrdMeta>"],
)
def test_attributes_that_are_not_understood_are_refused_and_go_back_as_they_are(server, attributes):
    sent = head() + struct.pack("<Q", len(attributes)) + attributes + bytes(128)
    with connected(server.port, 60) as connection:
        connection.sendall(BEGUN + sent + struct.pack("<H", 4))
        content = b""
        while piece := connection.recv(1 << 16):
            content += piece
    length = struct.unpack_from("<I", content, 2)[0]
    assert content[6 : 6 + length].startswith(b"[bad_message]")
    assert content[6 + length :] == sent + struct.pack("<H", 4)


def parts() -> dict[str, bytes]:
    """Where a stream may break off, or fall silent."""
    return {
        "nothing": b"",
        "half an id": b"\1",
        "half a name": config_file()[:500],
        "half a header": (config_file() + text_message(XML, 3))[:-9],
        "half an image": BEGUN + WHOLE_IMAGE[:-50],
        "no close": BEGUN + WHOLE_IMAGE,
    }


@pytest.mark.parametrize("name", parts())
def test_a_stream_that_breaks_off_is_never_reconstructed(server, name):
    before = server.outcomes().count("stream_ended")
    with connected(server.port, 30) as connection:
        connection.sendall(parts()[name])
        connection.shutdown(socket.SHUT_WR)
        said = answer(connection)
    assert (said.code, said.images) == ("stream_ended", [])
    wait_until(lambda: server.outcomes().count("stream_ended") == before + 1)


def test_a_peer_that_vanishes_takes_nothing_with_it(server):
    for content in parts().values():
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(content)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell
        connection.close()
    assert alive(server.port)


def test_silence_between_messages_ends_a_connection(server):
    with connected(server.port, 60) as connection:
        connection.sendall(BEGUN)
        begun = time.monotonic()
        said = answer(connection)
    assert (said.code, said.closed) == ("stream_ended", True)
    assert time.monotonic() - begun > 2.5, "that was no silence of three seconds"


def test_more_connections_than_allowed_wait_and_are_served_in_turn(tmp_path):
    with serving(tmp_path, "--connections", "1", "--idle-s", "4") as server, contextlib.ExitStack() as stack:
        idle = stack.enter_context(connected(server.port, 60))
        idle.sendall(BEGUN)
        wait_until(lambda: len(server.events()) > 1)
        crowd = [stack.enter_context(connected(server.port, 120)) for _ in range(5)]
        for one in crowd:
            one.sendall(BEGUN + struct.pack("<H", 4))
        assert len([e for e in server.events() if e["event"] == "mrd_connection"]) == 1
        assert answer(idle).code == "stream_ended"
        for one in (idle, *crowd):
            assert one is idle or answer(one).closed
            one.close()


def children(server) -> list[int]:
    with open(f"/proc/{server.process.pid}/task/{server.process.pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's list of children")
def test_a_session_that_is_killed_is_reported_to_its_peer_and_the_server_lives(server):
    with connected(server.port, 60) as connection:
        connection.sendall(BEGUN)
        wait_until(lambda: children(server))
        for child in children(server):
            os.kill(child, signal.SIGKILL)
        said = answer(connection)
    assert (said.code, said.closed) == ("internal", True)
    assert alive(server.port)


def test_a_session_has_a_clock(tmp_path):
    with serving(tmp_path, "--wall-s", "2") as server:
        with connected(server.port, 60) as connection:
            connection.sendall(BEGUN)
            said = answer(connection)
        assert (said.code, said.closed) == ("timed_out", True)
        wait_until(lambda: server.outcomes() == ["timed_out"])


def test_a_server_that_is_asked_to_end_tells_its_peers(tmp_path):
    with serving(tmp_path) as server, connected(server.port, 60) as connection:
        connection.sendall(BEGUN)
        wait_until(lambda: len(server.events()) > 1)
        server.process.terminate()
        said = answer(connection)
        server.process.wait(30)
    assert (said.code, said.closed, said.images) == ("stream_ended", True, [])
    assert server.events()[-1]["ended"] == 1


def test_a_name_in_a_text_stays_out_of_the_log(server):
    with connected(server.port, 60) as connection:
        connection.sendall(BEGUN + text_message(PATIENT) + struct.pack("<H", 9999))
        assert answer(connection).code == "bad_message"
    assert PATIENT not in server.log.read_text()


def test_after_all_that_a_decent_peer_is_served(server):
    assert alive(server.port)
