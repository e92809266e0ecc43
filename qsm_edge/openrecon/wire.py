"""MRD messages on a socket: an identifier of two bytes, and what its kind says; little-endian.

Nothing is believed before it has come: a claimed length is held against a limit first, and memory grows with what arrives.
A message must keep coming; between messages there may be minutes, because a scanner connects before it has scanned.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from qsm_edge.errors import InputRefused

CONFIG_FILE, CONFIG_TEXT, HEADER, CLOSE, TEXT = 1, 2, 3, 4, 5
ACQUISITION, IMAGE, WAVEFORM = 1008, 1022, 1026
_NAMES = {CONFIG_FILE: "config file", CONFIG_TEXT: "config text", HEADER: "header", TEXT: "text", IMAGE: "image"}

_ID, _LENGTH, _LONG = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
#: A file name, padded; the fixed headers of an image and of a waveform.
NAME_BYTES, IMAGE_BYTES, WAVEFORM_BYTES = 1024, 198, 40
#: Of an image's header: data type; matrix and channels; of a waveform's: samples and channels.
_DATA_TYPE, _MATRIX, _CHANNELS = (2, "<H"), (16, "<3H"), (34, "<H")
_SAMPLES = (28, "<2H")
#: Bytes of one value by the header's data type.
VALUE_BYTES = {1: 2, 2: 2, 3: 4, 4: 4, 5: 4, 6: 8, 7: 8, 8: 16}
_PIECE = 1 << 20
#: Whoever sends slower than this keeps a connection for its own sake.
_LEAST_BYTES_PER_S = 100_000
#: What still comes when an answer was sent is taken, so that the answer is not lost: so long, and so quiet.
LINGER_S, _QUIET_S = 120.0, 3.0


@dataclass(frozen=True)
class Limits:
    """Of one connection: sizes in bytes, times in seconds.

    first_s: for the configuration and the header. idle_s: between messages. stall_s: within one.
    """

    text_bytes: int = 4_000_000
    attribute_bytes: int = 4_000_000
    image_bytes: int = 1 << 31
    total_bytes: int = 1 << 33
    images: int = 100_000
    first_s: float = 30.0
    idle_s: float = 1800.0
    stall_s: float = 30.0


@dataclass(frozen=True)
class RawImage:
    """An image as it came: the fixed header, the attributes, the values."""

    head: bytes
    attributes: bytes
    values: bytes


@dataclass
class Stream:
    """A connection and how much has come through it. `limits` hold for what is received."""

    connection: socket.socket
    limits: Limits = field(default_factory=Limits)
    received: int = 0
    images: int = 0

    def messages(self) -> Iterator[tuple[int, str | RawImage]]:
        """What the peer sends, as (kind, text or image), until it says close; waveforms are passed over.

        Raises InputRefused: raw_data (k-space), bad_message (no such kind, an image of no known type), too_large,
        stream_ended (cut off, or silent for too long), timed_out is the server's.
        """
        begun = False
        while True:
            patience = self.limits.idle_s if begun else self.limits.first_s
            kind = _ID.unpack(self._exactly(_ID.size, patience, "a message"))[0]
            if kind == CLOSE:
                return
            if kind == ACQUISITION:
                raise InputRefused("raw_data", got="an acquisition", wanted="reconstructed images (emitter: image)")
            if kind == CONFIG_FILE:
                yield kind, self._text(NAME_BYTES, kind)
            elif kind in (CONFIG_TEXT, HEADER, TEXT):
                yield kind, self._text(self._length(_LENGTH, self.limits.text_bytes, _NAMES[kind]), kind)
            elif kind == IMAGE:
                yield kind, self._image()
            elif kind == WAVEFORM:
                self._pass_waveform()
            else:
                raise InputRefused("bad_message", got=f"message {kind}", wanted="1 to 5, 1022 or 1026")
            begun = begun or kind in (HEADER, IMAGE)

    def _exactly(self, count: int, patience_s: float, what: str) -> bytes:
        """`count` bytes. `patience_s`: for the first of them; the others must follow."""
        if self.received + count > self.limits.total_bytes:
            got, wanted = f"{self.received + count} bytes", f"{self.limits.total_bytes} in one connection"
            raise InputRefused("too_large", got=got, wanted=wanted)
        content = bytearray()
        end = time.monotonic() + patience_s + count / _LEAST_BYTES_PER_S
        while len(content) < count:
            wait = end - time.monotonic()
            self.connection.settimeout(max(min(wait, patience_s), 0.001))
            try:
                piece = self.connection.recv(min(count - len(content), _PIECE)) if wait > 0 else None
            except TimeoutError:
                piece = None
            except OSError:
                piece = b""
            if not piece:
                how = "fell silent" if piece is None else "ended"
                raise InputRefused("stream_ended", f"the connection {how} before {what} was complete")
            content += piece
        self.received += count
        return bytes(content)

    def _length(self, form: struct.Struct, most: int, what: str) -> int:
        length = int(form.unpack(self._exactly(form.size, self.limits.stall_s, "a length"))[0])
        if length > most:
            raise InputRefused("too_large", where=what, got=f"{length} bytes", wanted=f"{most} or fewer")
        return length

    def _text(self, length: int, kind: int) -> str:
        content = self._exactly(length, self.limits.stall_s, f"the {_NAMES[kind]}")
        try:
            return content.split(b"\0")[0].decode("utf-8")
        except UnicodeDecodeError:
            raise InputRefused("bad_message", f"the {_NAMES[kind]} is no UTF-8") from None

    def _image(self) -> RawImage:
        self.images += 1
        if self.images > self.limits.images:
            raise InputRefused("too_large", got="more images", wanted=f"{self.limits.images} in one connection")
        head = self._exactly(IMAGE_BYTES, self.limits.stall_s, "an image")
        (data_type,) = _read(head, _DATA_TYPE)
        if data_type not in VALUE_BYTES:
            raise InputRefused("bad_message", "an image of no known type", got=data_type, wanted="1 to 8")
        x, y, z = _read(head, _MATRIX)
        (channels,) = _read(head, _CHANNELS)
        size = x * y * z * channels * VALUE_BYTES[data_type]
        if not 0 < size <= self.limits.image_bytes:
            got = f"{x} x {y} x {z}, {channels} channels: {size} bytes"
            raise InputRefused("too_large" if size else "bad_message", where="image", got=got)
        length = self._length(_LONG, self.limits.attribute_bytes, "image attributes")
        attributes = self._exactly(length, self.limits.stall_s, "an image")
        return RawImage(head, attributes, self._exactly(size, self.limits.stall_s, "an image"))

    def _pass_waveform(self) -> None:
        head = self._exactly(WAVEFORM_BYTES, self.limits.stall_s, "a waveform")
        samples, channels = _read(head, _SAMPLES)
        left = samples * channels * 4
        while left:
            left -= len(self._exactly(min(left, _PIECE), self.limits.stall_s, "a waveform"))

    def send(self, kind: int, *parts: bytes) -> None:
        """Send a message of parts that are complete. OSError where the peer does not take it."""
        self.connection.settimeout(self.limits.stall_s)
        for part in (_ID.pack(kind), *parts):
            view = memoryview(part)
            for start in range(0, len(view), _PIECE):
                self.connection.sendall(view[start : start + _PIECE])

    def say(self, text: str) -> None:
        """Send a text."""
        content = text.encode("utf-8", "replace")
        self.send(TEXT, _LENGTH.pack(len(content)), content)

    def close(self, linger_s: float = LINGER_S) -> None:
        """Say that there is no more, take what still comes for a while, and close: unread bytes would cancel our answer."""
        with contextlib.suppress(OSError):
            self.send(CLOSE)
            self.connection.shutdown(socket.SHUT_WR)
            end = time.monotonic() + linger_s
            self.connection.settimeout(min(_QUIET_S, linger_s))
            while time.monotonic() < end and self.connection.recv(_PIECE):
                pass
        self.connection.close()


def _read(head: bytes, where: tuple[int, str]) -> tuple[int, ...]:
    values: tuple[int, ...] = struct.unpack_from(where[1], head, where[0])
    return values
