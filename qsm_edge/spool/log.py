"""What the service tells: one line an event on a stream, plain or JSON, with hashes in place of every UID.

No line quotes what a file holds. The events `received`, `turned_away` and `sent` are the audit trail: who, when, which
(hashed) instance, what became of it; those of the network are told by `listen` and `send`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TextIO

Log = Callable[[str, Mapping[str, object]], None]


@dataclass(frozen=True)
class Origin:
    """Where an instance came from: the door (`c-store` or `folder`), the calling AE title, the peer's address."""

    door: str
    caller: str = ""
    address: str = ""


def logger(stream: TextIO, form: str = "plain", *, clock: Callable[[], float] = time.time) -> Log:
    """A function that writes ``event`` and its facts to `stream`; `form` is plain or json. Threads may share it."""
    lock = threading.Lock()

    def say(event: str, facts: Mapping[str, object]) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock()))
        if form == "json":
            line = json.dumps({"time": when, "event": event, **facts}, default=str)
        else:
            line = " ".join([when, event, *(f"{key}={_plain(value)}" for key, value in facts.items())])
        with lock:
            stream.write(line + "\n")
            stream.flush()

    return say


def silent(event: str, facts: Mapping[str, object]) -> None:
    """A `Log` that says nothing."""


def _plain(value: object) -> str:
    """A value on one line, so that no peer can forge a second one; quoted where it holds a blank."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and not set(text) & set(' "\\') and text else json.dumps(text)
