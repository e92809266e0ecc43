"""One connection, in a process of its own: receive all, reconstruct, answer. Standard input is the socket.

    python -m qsm_edge.openrecon.session SETTINGS(JSON)       started by `server`, with limits on itself

What goes wrong is told to the peer as a text ``[code] ...``, the images that came go back where they were wanted back, and
the stream is closed as the protocol has it: a scanner must never be left waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsm_edge.errors import REASONS, InputRefused, QsmEdgeError
from qsm_edge.openrecon import wire
from qsm_edge.run import Options, place_of
from qsm_edge.spool.limits import end_with_parent, limit
from qsm_edge.spool.log import Log, logger

if TYPE_CHECKING:  # what takes a second to load is loaded when images have come
    from qsm_edge.openrecon.collect import Acquisition
    from qsm_edge.types import Result


@dataclass(frozen=True)
class Task:
    """What a server tells its sessions. options: used where the console sets no parameter."""

    options: Options = field(default_factory=Options)
    limits: wire.Limits = field(default_factory=wire.Limits)
    log_form: str = "plain"

    def as_json(self) -> str:
        """For the command line of a session."""
        options = {**asdict(self.options), "model": None if self.options.model is None else str(self.options.model)}
        return json.dumps({**asdict(self), "options": options})

    @staticmethod
    def from_json(text: str) -> Task:
        """The same back."""
        said = json.loads(text)
        options, limits = said.pop("options"), said.pop("limits")
        options["model"] = None if options["model"] is None else Path(options["model"])
        options["overrides"], options["maps"] = tuple(options["overrides"]), tuple(options["maps"])
        return Task(Options(**options), wire.Limits(**limits), **said)


@dataclass
class Received:
    """What a stream brought: the XML header, the texts that may hold parameters, the images."""

    header: str = ""
    texts: list[str] = field(default_factory=list)
    images: list[wire.RawImage] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """Serve the connection on standard input; returns 0, whatever the peer did."""
    task = Task.from_json(argv[0])
    limit(0, 0)  # no core file: it would hold the images
    end_with_parent(int(os.environ.get("QSM_EDGE_PARENT", os.getppid())))
    warnings.simplefilter("ignore")  # a library's warning may quote what a header holds
    connection = socket.socket(fileno=os.dup(0))
    converse(connection, task, logger(sys.stdout, task.log_form))
    return 0


def converse(connection: socket.socket, task: Task, log: Log) -> None:
    """Talk with one peer until the connection is closed. Never raises for what the peer does."""
    stream, received = wire.Stream(connection, task.limits), Received()
    begun, code, sent = time.monotonic(), "empty", 0
    try:
        try:
            receive(stream, received)
            if received.images:
                code, sent = _answered(stream, received, task.options)
        except Exception as error:  # the stream is broken, or takes nothing more
            code, text = _told(error)
            with contextlib.suppress(OSError):
                stream.say(text)
    finally:
        stream.close()
        facts = {"images": len(received.images), "sent": sent, "seconds": round(time.monotonic() - begun, 1)}
        log("mrd_session", {"outcome": code, **facts})


def receive(stream: wire.Stream, received: Received) -> None:
    """Take everything up to the peer's close. Raises InputRefused: what `Stream.messages` raises, bad_message for no header."""
    for kind, content in stream.messages():
        if isinstance(content, wire.RawImage):
            received.images.append(content)
        elif kind == wire.HEADER:
            if received.header:
                raise InputRefused("bad_message", "a second header in one stream")
            received.header = content
        else:
            received.texts.append(content)
    if received.images and not received.header:
        raise InputRefused("bad_message", "images without a header")


def _answered(stream: wire.Stream, received: Received, defaults: Options) -> tuple[str, int]:
    """Reconstruct and answer; what came goes back where that is wanted, and where nobody could be asked. Code and count.

    Raises OSError where the peer does not take it.
    """
    from qsm_edge.openrecon import answer
    from qsm_edge.openrecon.parameters import parameters_in, wishes

    code, text, back = "done", "", True
    chi: Sequence[wire.RawImage] = ()
    try:
        parameters: dict[str, Any] = {}
        for said in received.texts:  # a configuration's name says nothing here, and other texts are for people
            parameters.update(parameters_in(said) or {})
        wanted = wishes(parameters, defaults)
        back = wanted.send_original
        acquisition, result = reconstruct(received, wanted.options)
        text, chi = _verdict(result), tuple(answer.chi_images(acquisition, result))
    except Exception as error:
        code, text = _told(error)
    stream.say(text)
    sent = _send(stream, answer.originals(received.images)) if back else 0
    return code, sent + _send(stream, chi)


def reconstruct(received: Received, options: Options) -> tuple[Acquisition, Result]:
    """The acquisition and its result. Raises what `collect`, `Acquisition.load` and `pipeline.reconstruct` raise."""
    from qsm_edge import pipeline
    from qsm_edge.openrecon.collect import collect
    from qsm_edge.openrecon.header import read_header
    from qsm_edge.openrecon.mrd import understood
    from qsm_edge.recipe import Recipe

    acquisition = collect([understood(image) for image in received.images], read_header(received.header))
    series = acquisition.load()
    recipe = Recipe.load(options.recipe, options.overrides)
    model = None if options.model is None else str(options.model)
    return acquisition, pipeline.reconstruct(series, recipe, mask=options.mask, device=options.device, model=model)


def _send(stream: wire.Stream, images: Iterable[wire.RawImage]) -> int:
    count = 0
    for image in images:
        stream.send(wire.IMAGE, image.head, len(image.attributes).to_bytes(8, "little"), image.attributes, image.values)
        count += 1
    return count


def _verdict(result: Result) -> str:
    """What the report would say first."""
    notes = [*result.series.source.notes, *result.quality.notes]
    return "\n".join([f"verdict {result.quality.verdict}", *(f"[{note.code}] {note.text}" for note in notes)])


def _told(error: Exception) -> tuple[str, str]:
    """Reason code and text of an error for the peer; of an unexpected one its place, not what it quotes."""
    if isinstance(error, QsmEdgeError):
        return error.code, str(error)
    if isinstance(error, MemoryError):
        return "out_of_memory", f"[out_of_memory] {REASONS['out_of_memory']}"
    if isinstance(error, OSError):
        return "stream_ended", f"[stream_ended] {REASONS['stream_ended']}"
    return "internal", f"[internal] an internal error: {place_of(error)}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
