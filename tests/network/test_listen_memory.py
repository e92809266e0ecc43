"""A peer's declarations and its gigabytes do not become the listener's memory: measured in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import network_world as world_of
import pytest
from network_world import answer, associate_rq, connected, echoes, pdv, store_rq

from qsm_edge.listen import guard

CHILD = """
import sys
from pathlib import Path
from qsm_edge import listen
settings = listen.Settings(port=0, calling_ae_titles=("PEER",), maximum_instance_bytes=1 << 40)
with listen.serve(settings, Path(sys.argv[1]), lambda part, origin: part.unlink(), lambda line: None) as listener:
    sys.stdout.write(f"{listener.port}\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""
CHUNK = bytes(1 << 20)
MEGABYTES, STORED_MEGABYTES = 300, 120
CAP_MB = 60


@contextlib.contextmanager
def child(tmp_path):
    """A listener in a process of its own: its port, and a function that says how much memory it holds, in MB."""
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())

        def resident_mb(which: str = "VmRSS") -> float:
            with open(f"/proc/{process.pid}/status") as status:
                return next(int(line.split()[1]) / 1024 for line in status if line.startswith(f"{which}:"))

        yield port, resident_mb
        process.stdin.close()
        assert process.wait(30) == 0


def poured(connection, megabytes: int) -> bool:
    """Whether a peer let us send so much."""
    try:
        for _ in range(megabytes):
            connection.sendall(CHUNK)
    except (ConnectionError, TimeoutError):
        return False
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_a_pdu_of_300_mb_is_not_kept_before_nor_in_an_association(tmp_path):
    with child(tmp_path) as (port, resident_mb):
        assert echoes(port)
        before = resident_mb()
        for established, kind in ((False, 1), (False, 4), (True, 4), (True, 1)):
            with connected(port, 20) as connection:
                if established:
                    connection.sendall(associate_rq())
                    assert answer(connection)[0] == 2
                connection.sendall(bytes((kind, 0)) + (MEGABYTES << 20).to_bytes(4, "big"))
                assert not poured(connection, MEGABYTES)
        assert echoes(port)
        assert resident_mb("VmHWM") - before < CAP_MB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_an_instance_of_120_mb_goes_to_the_disk_and_not_into_memory(tmp_path):
    with child(tmp_path) as (port, resident_mb):
        assert echoes(port)
        before = resident_mb()
        with connected(port, 60) as connection:
            connection.sendall(associate_rq())
            assert answer(connection)[0] == 2
            connection.sendall(pdv(3, store_rq()))
            fragment = pdv(0, bytes(guard.SENT_PDU_BYTES - 6))
            for _ in range((STORED_MEGABYTES << 20) // guard.SENT_PDU_BYTES):
                connection.sendall(fragment)
            connection.sendall(pdv(2, b""))
            assert world_of.status_of(answer(connection)[1]) == 0
        assert resident_mb("VmHWM") - before < CAP_MB
