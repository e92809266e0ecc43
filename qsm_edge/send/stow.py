"""STOW-RS with the standard library: files streamed as multipart/related, the answer taken for each instance."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

from qsm_edge.dicom.filemeta import FileMeta
from qsm_edge.errors import UsageError
from qsm_edge.listen.tls import client_context
from qsm_edge.send.records import FAILED, REFUSED, STORED, Destination, Sent

#: One request carries so many bytes, or one file.
REQUEST_BYTES = 64 << 20
#: An answer names each instance in some hundred bytes.
MAX_ANSWER_BYTES = 16 << 20
CHUNK_BYTES = 256 << 10

_FAILED_SEQUENCE, _STORED_SEQUENCE, _UID, _REASON = "00081198", "00081199", "00081155", "00081197"
_TRANSIENT = (408, 425, 429, *range(500, 600))
_DUPLICATE, _TRY_AGAIN = 0x0111, (0x0110, *range(0xA700, 0xA800))

Item = tuple[Path, FileMeta]


@dataclass(frozen=True)
class Answer:
    """What a server said: HTTP status; UIDs that it names as stored, and as failed with their reasons. `told`: whether its
    answer could be understood at all."""

    status: int
    stored: frozenset[str] = frozenset()
    failed: Mapping[str, int] | None = None
    told: bool = False


def send_stow(items: Sequence[Item], destination: Destination) -> list[Sent]:
    """Store files; returns what became of each, in their order."""
    token = _token(destination)
    context = _context(destination)
    sent: list[Sent] = []
    for batch in _batches(items):
        answer = _post(batch, destination, token, context)
        sent += [_judged(path, meta.sop_instance_uid, answer) for path, meta in batch]
    return sent


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    total = 0
    for item in items:
        if batch and total + item[1].size > REQUEST_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += item[1].size
    yield batch


def _token(destination: Destination) -> str:
    """The bearer token, '' without one; never part of a message."""
    if destination.token_file is None:
        return ""
    try:
        token = destination.token_file.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        what = "the file with the token cannot be read"
        raise UsageError("bad_value", what, where="token_file", got=type(error).__name__) from None
    if not token.isprintable() or " " in token or not token:
        raise UsageError("bad_value", "the file holds no token", where="token_file", wanted="one word")
    return token


def _context(destination: Destination) -> ssl.SSLContext | None:
    if not destination.url.startswith("https:"):
        return None
    if destination.tls_ca is not None:
        return client_context(destination.tls_certificate, destination.tls_key, destination.tls_ca)
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if destination.tls_certificate is not None:
        context.load_cert_chain(destination.tls_certificate, destination.tls_key)
    return context


class _Body:
    """A multipart body that is read from its files while it is sent; a file that has changed its length is an OSError."""

    def __init__(self, batch: Sequence[Item], boundary: str) -> None:
        self._batch = batch
        self._head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"--{boundary}--\r\n".encode()
        self.length = sum(len(self._head) + meta.size + 2 for _, meta in batch) + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        for path, meta in self._batch:
            yield self._head
            with path.open("rb") as file:
                yield from _chunks(file, meta.size)
            yield b"\r\n"
        yield self._tail


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(CHUNK_BYTES, size))
        if not chunk:
            raise OSError("the file has become shorter")
        size -= len(chunk)
        yield chunk


def _boundary(batch: Sequence[Item]) -> str:
    """Of the instances' own hashes, so that the same delivery is the same request; no file holds it but by design."""
    import hashlib

    names = "\n".join(meta.sop_instance_uid for _, meta in batch)
    return f"qsm-edge-{hashlib.sha256(names.encode()).hexdigest()[:40]}"


def _post(batch: Sequence[Item], destination: Destination, token: str, context: ssl.SSLContext | None) -> Answer | None:
    """One request; None where no answer came, so that nothing is known."""
    url = urllib.parse.urlsplit(destination.url)
    boundary = _boundary(batch)
    body = _Body(batch, boundary)
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Content-Length": str(body.length),
        "Accept": "application/dicom+json",
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }
    host, port = str(url.hostname), url.port
    connection: http.client.HTTPConnection
    if context is None:
        connection = http.client.HTTPConnection(host, port, timeout=destination.connect_timeout_s)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=destination.connect_timeout_s, context=context)
    with contextlib.closing(connection):
        try:
            connection.connect()
            connection.sock.settimeout(destination.answer_timeout_s)
            with contextlib.suppress(ConnectionError):  # a server may have answered before it took everything
                connection.request("POST", f"{url.path.rstrip('/')}/studies", body=iter(body), headers=headers)
            with _within(connection.sock, destination.answer_timeout_s) as late:
                response = connection.getresponse()
                kind, content = response.getheader("Content-Type") or "", response.read(MAX_ANSWER_BYTES)
            return None if late.is_set() else _answer(response.status, kind, content)
        except (OSError, http.client.HTTPException):
            return None


@contextlib.contextmanager
def _within(connection: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Hang up after `seconds`: an answer that comes in drops passes every timeout of a single read."""
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # under TLS, too, and the reader keeps its state

    watch = threading.Timer(seconds, hang_up)
    watch.daemon = True
    watch.start()
    try:
        yield late
    finally:
        watch.cancel()


def _answer(status: int, kind: str, content: bytes) -> Answer:
    try:
        read = _from_xml if "xml" in kind else _from_json
        stored, failed = read(content)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, ElementTree.ParseError):
        return Answer(status)
    return Answer(status, frozenset(stored), failed, told=True)


def _from_json(content: bytes) -> tuple[set[str], dict[str, int]]:
    said: Any = json.loads(content)
    said = said[0] if isinstance(said, list) else said
    stored = {item[_UID]["Value"][0] for item in said.get(_STORED_SEQUENCE, {}).get("Value", ())}
    failed = {
        item[_UID]["Value"][0]: int(item.get(_REASON, {}).get("Value", [0])[0])
        for item in said.get(_FAILED_SEQUENCE, {}).get("Value", ())
    }
    return stored, failed


def _from_xml(content: bytes) -> tuple[set[str], dict[str, int]]:
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError("an answer that defines entities")
    root = ElementTree.fromstring(content)
    stored = {_value(item, _UID) for item in _items(root, _STORED_SEQUENCE)}
    failed = {_value(item, _UID): int(_value(item, _REASON) or 0) for item in _items(root, _FAILED_SEQUENCE)}
    return stored, failed


def _items(root: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    for element in root.iter():
        if element.get("tag", "").upper() == tag:
            yield from (child for child in element if _name(child) == "Item")


def _value(item: ElementTree.Element, tag: str) -> str:
    found = next((element for element in item if element.get("tag", "").upper() == tag), None)
    values = [] if found is None else [child.text or "" for child in found if _name(child) == "Value"]
    return values[0].strip() if values else ""


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _judged(path: Path, uid: str, answer: Answer | None) -> Sent:
    """What became of one instance, by what the server says of it before what it says of all."""
    if answer is None:
        return Sent(path, FAILED, "no answer: whether it is stored is not known", retry=True)
    shown = f"HTTP {answer.status}"
    if answer.failed is not None and uid in answer.failed:
        reason = answer.failed[uid]
        if reason == _DUPLICATE:
            return Sent(path, STORED, f"0x{reason:04X}: the server has it already")
        return Sent(
            path, REFUSED, f"{shown}, 0x{reason:04X}", retry=reason in _TRY_AGAIN or answer.status in _TRANSIENT
        )
    if uid in answer.stored and answer.status < 500:
        return Sent(path, STORED)
    if answer.status == 200 and not answer.told:  # "all instances" is what it means
        return Sent(path, STORED, f"{shown}, without a list")
    if answer.status in (200, 202) or answer.status in _TRANSIENT:
        return Sent(path, FAILED, f"{shown}, not named" if answer.status < 300 else shown, retry=True)
    return Sent(path, REFUSED, shown)
