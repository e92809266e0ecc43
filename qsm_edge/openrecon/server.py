"""The door: accepts connections and hands each to a process of its own, which may fail, be ended, or be killed.

No more connections are accepted than may be at work; others wait in the system's queue, unread. The server itself reads
nothing that a peer sends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import qsm_edge
from qsm_edge.errors import REASONS, UsageError
from qsm_edge.openrecon import mrd, wire
from qsm_edge.openrecon.session import Task
from qsm_edge.spool.log import Log

_POLL_S = 0.1
#: After the clock of a session has run out, or the server was asked to end.
_GRACE_S = 5.0
_BACKLOG = 16


@dataclass(frozen=True)
class Settings:
    """bind, port: where to listen; port 0 is any that is free. connections: how many are at work at once.

    wall_s: of one connection, from its first byte to its last.
    """

    bind: str = "127.0.0.1"
    port: int = 9002
    connections: int = 1
    wall_s: float = 7200.0
    task: Task = field(default_factory=Task)


@dataclass
class Session:
    """A connection at work; the server keeps it open to say the last word where its process cannot."""

    connection: socket.socket
    process: subprocess.Popen[bytes]
    started_s: float
    timed_out: bool = False


def serve(settings: Settings, *, stop: threading.Event, log: Log) -> None:
    """Serve until `stop` is set; the sessions at work are then ended.

    Raises UsageError (bad_call): the address cannot be listened on, `ismrmrd` is not installed, no sockets as standard
    input (Windows).
    """
    if os.name == "nt":
        raise UsageError("bad_call", "the MRD server runs in a Linux container, and not on Windows")
    mrd.library()
    sessions: list[Session] = []
    with _listening(settings) as door:
        log("mrd_listening", {"address": settings.bind, "port": door.getsockname()[1]})
        try:
            while not stop.is_set():
                _accept(door, sessions, settings, log)
                sessions = [session for session in sessions if not _over(session, settings, log)]
        finally:
            for session in sessions:
                _end(session)
    log("mrd_stopped", {"ended": len(sessions)})


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((settings.bind, settings.port))
            door.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "no such port"
            where = f"{settings.bind}:{settings.port}"
            raise UsageError("bad_call", "cannot listen here", where=where, got=reason) from None
        door.settimeout(_POLL_S)
        yield door


def _accept(door: socket.socket, sessions: list[Session], settings: Settings, log: Log) -> None:
    """Take one more connection where there is room for it."""
    if len(sessions) >= settings.connections:
        time.sleep(_POLL_S)
        return
    try:
        connection, peer = door.accept()
    except TimeoutError:
        return
    except OSError as error:  # out of descriptors, or the peer has gone: neither ends the server
        log("mrd_not_accepted", {"reason": error.strerror})
        time.sleep(_POLL_S)
        return
    log("mrd_connection", {"address": peer[0]})
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sessions.append(Session(connection, _started(connection, settings), time.monotonic()))
    except OSError as error:
        log("mrd_not_accepted", {"reason": error.strerror})
        connection.close()


def _started(connection: socket.socket, settings: Settings) -> subprocess.Popen[bytes]:
    """The process of a connection. Its log goes where ours goes; what libraries say on standard error is dropped."""
    package = str(Path(qsm_edge.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "QSM_EDGE_PARENT": str(os.getpid())}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "qsm_edge.openrecon.session", settings.task.as_json()],
        stdin=connection.fileno(),
        stdout=2,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _over(session: Session, settings: Settings, log: Log) -> bool:
    """Whether a session has ended; one past its clock is ended here, and one that was killed gets its last word."""
    if session.process.poll() is None:
        if time.monotonic() - session.started_s < settings.wall_s:
            return False
        session.timed_out = True
        _kill(session)
    status = session.process.returncode
    if status:
        code = "timed_out" if session.timed_out else "internal"
        log("mrd_session", {"outcome": code, "status": status})
        threading.Thread(target=_last_word, args=(session.connection, code, REASONS[code]), daemon=True).start()
    else:
        session.connection.close()
    return True


def _last_word(connection: socket.socket, code: str, text: str, linger_s: float = wire.LINGER_S) -> None:
    """For a peer whose session died; where that was in the middle of an image, the stream is broken anyway."""
    stream = wire.Stream(connection, wire.Limits(stall_s=_GRACE_S))
    with contextlib.suppress(OSError):
        stream.say(f"[{code}] {text}")
    stream.close(linger_s)


def _end(session: Session) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session.process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        session.process.wait(_GRACE_S)
    _kill(session)
    _last_word(session.connection, "stream_ended", "the server was asked to end", linger_s=0.5)


def _kill(session: Session) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session.process.pid, signal.SIGKILL)
    session.process.wait()
