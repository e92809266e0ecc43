"""A small HTTP server for a few documents: GET and HEAD, one request a connection, bounded in everything.

Requests are at most 8 KiB and answered within the time of the settings, from the first byte to the last. More connections
than allowed end the oldest ones: whoever dawdles loses to whoever asks. What goes wrong with a request stays with it.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from qsm_edge.errors import UsageError
from qsm_edge.status.settings import Settings, is_asked_for

MAXIMUM_REQUEST_BYTES = 8192
#: Sent with every answer.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Connection": "close",
}
_STOPPING_S = 2.0
_LINGER_S, _LINGER_READS = 0.2, 16


@dataclass(frozen=True)
class Answer:
    """A document: its status, content type, bytes, and headers in place of the usual ones."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


#: Makes a document when it is asked for. What it raises becomes a 500.
Document = Callable[[], Answer]


class _TooLarge(Exception):
    """A request beyond `MAXIMUM_REQUEST_BYTES`."""


class _Request(io.RawIOBase):
    """What a connection sends, up to a number of bytes and a moment."""

    def __init__(self, connection: socket.socket, ends_s: float) -> None:
        self._connection, self._ends_s, self._left = connection, ends_s, MAXIMUM_REQUEST_BYTES

    def readable(self) -> bool:
        """As io.RawIOBase has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase has it; TimeoutError, _TooLarge."""
        if self._left <= 0:
            raise _TooLarge
        self._connection.settimeout(_left(self._ends_s))
        number = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= number
        return number


def _left(ends_s: float) -> float:
    left = ends_s - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    server: _Server
    protocol_version = default_request_version = "HTTP/1.1"
    server_version, sys_version = "qsm-edge", ""

    def setup(self) -> None:
        """Instead of the usual file, one with an end."""
        self.connection, self.command, self.requestline, self.request_version = self.request, "", "", "HTTP/1.1"
        self._unread = False
        self._ends_s = time.monotonic() + self.server.settings.timeout_s
        self.rfile = io.BufferedReader(_Request(self.request, self._ends_s), MAXIMUM_REQUEST_BYTES)
        self.wfile = _Writer(self.request, self._ends_s)

    def finish(self) -> None:
        """Read on a little after a refusal: closing a connection with something unread takes the answer back."""
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
            self.request.settimeout(_LINGER_S)
            for _ in range(_LINGER_READS if self._unread else 0):
                if not self.request.recv(MAXIMUM_REQUEST_BYTES):
                    break

    def handle(self) -> None:
        """Answer one request. A peer that has gone, or takes too long, is nobody's concern."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            try:
                self.handle_one_request()
            except _TooLarge:
                self.send_error(431)

    def do_GET(self) -> None:
        """Answer with a document."""
        self._answer(self._document())

    def do_HEAD(self) -> None:
        """The same without its body."""
        self._answer(self._document())

    def _document(self) -> Answer:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            return _plain(400, "one Host field and no content, please")
        if not is_asked_for(self.server.settings, hosts[0]):
            return _plain(421, "this server is not known by that name; see [status] hosts")
        make = self.server.documents.get(self.path.partition("?")[0])
        if make is None:
            return _plain(404, "there is " + ", ".join(sorted(self.server.documents)))
        try:
            return make()
        except Exception as error:  # the type alone: a message may name what nobody is to see
            return _plain(500, f"this page cannot be made now: {type(error).__name__}")

    def _answer(self, answer: Answer) -> None:
        self._unread = answer.status >= 400
        self.send_response(answer.status)
        given = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
        for name, value in {**HEADERS, **given, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of requests that are none, or of another method; says no word of the request."""
        if code == 501:
            self._answer(_plain(405, "only GET and HEAD", {"Allow": "GET, HEAD"}))
        else:
            self._answer(_plain(int(code), "this request cannot be understood"))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are no events of the service."""


class _Writer(io.BufferedIOBase):
    """What a connection is sent, until a moment."""

    def __init__(self, connection: socket.socket, ends_s: float) -> None:
        self._connection, self._ends_s = connection, ends_s

    def writable(self) -> bool:
        """As io.RawIOBase has it."""
        return True

    def write(self, content: Any) -> int:
        """All of it; TimeoutError, and what sockets raise."""
        self._connection.settimeout(_left(self._ends_s))
        self._connection.sendall(content)
        return len(content)


def _plain(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers or {})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name != "nt"
    request_queue_size = 64

    def __init__(self, settings: Settings, documents: Mapping[str, Document]) -> None:
        self.settings, self.documents = settings, documents
        self.address_family = socket.AF_INET6 if ipaddress.ip_address(settings.address).version == 6 else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._leaving: set[socket.socket] = set()
        super().__init__((settings.address, settings.port), _Handler)

    def server_bind(self) -> None:
        """Without asking a name server who we are."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.settings.address, int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        """As usual; a process without a descriptor to spare must not ask for one again and again at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Make room by ending the oldest connection; where its thread does not go, nobody comes in."""
        most = self.settings.maximum_connections
        with self._lock:
            while len(self._open) >= most:
                oldest = next(iter(self._open))
                del self._open[oldest]
                self._leaving.add(oldest)
                _hang_up(oldest)
            if len(self._leaving) >= most:
                return False
            self._open[request] = None
        return True

    def shutdown_request(self, request: Any) -> None:
        """A connection is over."""
        super().shutdown_request(request)
        with self._lock:
            self._open.pop(request, None)
            self._leaving.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: what goes wrong with a request stays with it."""

    def hang_up(self) -> None:
        """End all connections, and wait for their threads a while."""
        with self._lock:
            for request in (*self._open, *self._leaving):
                _hang_up(request)
        end = time.monotonic() + _STOPPING_S
        while (self._open or self._leaving) and time.monotonic() < end:
            time.sleep(0.01)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Running:
    """A server at work, until `stop` or the end of a ``with``. `port`: where it listens."""

    def __init__(self, server: _Server) -> None:
        self._server, self.port = server, server.server_port
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="status", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections and end those that are open."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.hang_up()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(settings: Settings, documents: Mapping[str, Document]) -> Running:
    """Serve documents by their paths. Raises UsageError bad_call where nothing can listen at that address."""
    try:
        return Running(_Server(settings, documents))
    except OSError as error:
        where = f"[status] {settings.address}:{settings.port}"
        raise UsageError("bad_call", "nothing can listen there", where=where, got=error.strerror) from error
