"""Child processes: started in a group of their own, watched by the clock, ended as a group.

Standard input of a child is a pipe into which nothing is written, and whose other end only this process has: at its end
of file a child knows that its parent has ended, however that ended (`limits.end_with_pipe`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import qsm_edge

#: How long a group that was asked to end may take to clear up.
GRACE_S = 10.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Limits:
    """Of one child: address space, processor time and wall clock; 0 is none."""

    memory_bytes: int = 0
    cpu_s: int = 0
    wall_s: float = 0.0


@dataclass
class Running:
    """A child at work; what it writes to standard output goes into `said`. Its pipe is closed when it is over."""

    process: subprocess.Popen[bytes]
    said: Path
    limits: Limits
    started_s: float

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started_s


def command(limits: Limits, *words: str) -> list[str]:
    """The command line of a child of ours under limits."""
    return [sys.executable, "-P", "-m", "qsm_edge.spool.limits", str(limits.memory_bytes), str(limits.cpu_s), *words]


def start(words: Sequence[str], said: Path, limits: Limits) -> Running:
    """Start a child. Its standard error is dropped: a library's warning may quote what a file holds."""
    with said.open("wb") as out:
        return Running(_popen(words, out), said, limits, time.monotonic())


def _popen(words: Sequence[str], out: IO[bytes]) -> subprocess.Popen[bytes]:
    package = str(Path(qsm_edge.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "QSM_EDGE_PARENT": str(os.getpid())}
    return subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=os.name != "nt",
    )


def over(running: Running) -> bool:
    """Whether the child has ended; one that is past its wall clock is ended here."""
    if running.process.poll() is not None:
        _close(running)
        return True
    if running.limits.wall_s and running.seconds > running.limits.wall_s:
        kill(running)
        return True
    return False


def stop(running: Running, grace_s: float = GRACE_S) -> None:
    """Ask the group to end, and end it when it does not."""
    _signal(running, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(grace_s)
    kill(running)


def kill(running: Running) -> None:
    """End the whole group at once."""
    _signal(running, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    running.process.wait()
    _close(running)


def wait(running: Running) -> int | None:
    """Wait for the child; its exit status (negative: the signal), or None where it was past its wall clock."""
    try:
        while not over(running):
            time.sleep(_POLL_S)
    except BaseException:  # an interruption: the child must not outlive us
        kill(running)
        raise
    return None if timed_out(running) else running.process.returncode


def timed_out(running: Running) -> bool:
    """Whether a child that is over was ended for its wall clock or its processor time."""
    status = running.process.returncode
    if os.name != "nt" and status == -signal.SIGXCPU:
        return True
    return bool(running.limits.wall_s and running.seconds > running.limits.wall_s and status is not None and status < 0)


def _close(running: Running) -> None:
    """Let go of the pipe of a child that is over."""
    if running.process.stdin is not None:
        running.process.stdin.close()


def _signal(running: Running, number: int) -> None:
    if os.name == "nt":
        running.process.terminate()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.process.pid, number)
