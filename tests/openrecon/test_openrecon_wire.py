"""Messages on a socket pair: any way of cutting them is the same, and whoever is slow, silent or too long is ended."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from qsm_edge import cli
from qsm_edge.errors import InputRefused
from qsm_edge.openrecon import wire
from qsm_edge.openrecon.wire import Limits, RawImage, Stream


def head(matrix: tuple[int, int, int] = (5, 4, 3)) -> bytes:
    content = bytearray(wire.IMAGE_BYTES)
    struct.pack_into("<H", content, 2, 2)
    struct.pack_into("<3H", content, 16, *matrix)
    struct.pack_into("<H", content, 34, 1)
    return bytes(content)


IMAGE = RawImage(head(), b"<ismrmrdMeta/>", bytes(range(120)))
IMAGE_MESSAGE = b"".join(
    (struct.pack("<H", 1022), IMAGE.head, struct.pack("<Q", len(IMAGE.attributes)), IMAGE.attributes, IMAGE.values)
)
TEXT = struct.pack("<HI", 5, 9) + "größer\0".encode()
CLOSE = struct.pack("<H", 4)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def sent(theirs: socket.socket, content: bytes, *, step: int = 1 << 20, pause_s: float = 0.0) -> threading.Thread:
    """Send in pieces, meanwhile."""

    def send() -> None:
        with contextlib.suppress(OSError):
            for start in range(0, len(content), step):
                theirs.sendall(content[start : start + step])
                time.sleep(pause_s)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def refusal(stream: Stream) -> str:
    with pytest.raises(InputRefused) as error:
        list(stream.messages())
    return error.value.code


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_messages_are_the_same_however_they_are_cut(pair, step):
    ours, theirs = pair
    sent(theirs, TEXT + IMAGE_MESSAGE + TEXT + CLOSE, step=step)
    assert list(Stream(ours).messages()) == [(5, "größer"), (1022, IMAGE), (5, "größer")]


def test_what_is_sent_is_what_is_read(pair):
    ours, theirs = pair
    ours_stream, theirs_stream = Stream(ours), Stream(theirs)
    ours_stream.say("größer")
    ours_stream.send(wire.CLOSE)
    assert list(theirs_stream.messages()) == [(5, "größer")]


def test_a_waveform_is_passed_over_whatever_it_holds(pair):
    ours, theirs = pair
    waveform = bytearray(wire.WAVEFORM_BYTES)
    struct.pack_into("<2H", waveform, 28, 500, 3)
    sent(theirs, struct.pack("<H", 1026) + bytes(waveform) + CLOSE * 3000 + TEXT + CLOSE)
    assert list(Stream(ours).messages()) == [(5, "größer")]


@pytest.mark.parametrize("content", [b"", TEXT[:3], IMAGE_MESSAGE[:-1]], ids=["at once", "in a text", "in an image"])
def test_silence_ends_a_stream(pair, content):
    ours, theirs = pair
    theirs.sendall(content)
    begun = time.monotonic()
    assert refusal(Stream(ours, Limits(first_s=0.4, stall_s=0.4))) == "stream_ended"
    assert 0.3 < time.monotonic() - begun < 10


def test_drops_do_not_keep_a_message_alive(pair):
    ours, theirs = pair
    sent(theirs, IMAGE_MESSAGE, step=1, pause_s=0.1)
    begun = time.monotonic()
    assert refusal(Stream(ours, Limits(stall_s=0.5))) == "stream_ended"
    assert time.monotonic() - begun < 10, "that would have gone on for half a minute"


@pytest.mark.parametrize(
    "limits", [Limits(total_bytes=300), Limits(images=1), Limits(image_bytes=100), Limits(attribute_bytes=5)], ids=str
)
def test_each_limit_holds(pair, limits):
    ours, theirs = pair
    sent(theirs, IMAGE_MESSAGE * 2 + CLOSE)
    assert refusal(Stream(ours, limits)) == "too_large"


def test_a_claim_within_the_limits_takes_no_memory_before_it_comes(pair):
    import tracemalloc

    ours, theirs = pair
    sent(theirs, struct.pack("<H", 1022) + head((40_000, 20_000, 1)) + bytes(8) + b"few")
    tracemalloc.start()
    try:
        assert refusal(Stream(ours, Limits(stall_s=0.3))) == "stream_ended"
        assert tracemalloc.get_traced_memory()[1] < 10e6, "1.6 GB were claimed"
    finally:
        tracemalloc.stop()


def test_a_peer_that_does_not_read_is_given_up(pair):
    ours = pair[0]
    with pytest.raises(OSError):
        Stream(ours, Limits(stall_s=0.3)).send(wire.IMAGE, bytes(50_000_000))


def test_an_answer_is_not_lost_to_what_was_never_read(pair):
    """Closing with bytes unread would reset the connection, and take our words with it."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as theirs:
        ours, _ = server.accept()
        sending = sent(theirs, struct.pack("<H", 1008) + bytes(3_000_000))
        stream = Stream(ours)
        assert refusal(stream) == "raw_data"
        stream.say("no")
        stream.close()
        sending.join(20)
        assert list(Stream(theirs).messages()) == [(5, "no")]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--port", "70000"], "bad_call"),
        (["--port", "1", "--bind", "192.0.2.1"], "bad_call"),
        (["--connections", "0"], "bad_value"),
        (["--wall-s", "nan"], "bad_value"),
        (["--recipe", "nothing"], "unknown_name"),
        (["--set", "invert.treshold=1"], "unknown_name"),
        (["--model", "absent.onnx"], "bad_call"),
        (["--mask", "threshold", "--set", "mask=network"], "bad_call"),
    ],
)
def test_what_cannot_be_served_is_said_at_the_start(words, code, capsys):
    assert cli.main(["mrd", *words]) == 2
    assert f"[{code}]" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["mrd", "--port", str(taken.getsockname()[1])]) == 2
    assert "[bad_call] cannot listen here" in capsys.readouterr().err


def test_without_the_package_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ismrmrd", None)
    assert cli.main(["mrd", "--port", "0"]) == 2
    assert "qsm-edge[openrecon]" in capsys.readouterr().err
