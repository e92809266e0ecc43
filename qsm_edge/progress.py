"""Layer 5: what a person sees while it runs: one line that changes on a terminal, plain lines anywhere else."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

_REFRESH_S = 0.1


class Progress:
    """Called as ``progress(stage, fraction, text)``; `label` says which acquisition it is about.

    stage : short name. fraction : 0..1 of the stage. text : the method or the thing at hand, may be empty.
    On a terminal the line is rewritten at most ten times a second; elsewhere a line is written as a stage begins.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self.label = ""
        self._stream, self._quiet = stream, quiet
        self._terminal = stream.isatty()
        self._width = 0
        self._stage = ""
        self._last = float("-inf")

    def __call__(self, stage: str, fraction: float, text: str = "") -> None:
        if self._quiet:
            return
        head = f"{self.label}: {stage}" if self.label else stage
        begins, self._stage = head != self._stage, head
        if not self._terminal:
            if begins:
                self._stream.write(f"{head} ({text})\n" if text else f"{head}\n")
                self._stream.flush()
            return
        now = time.monotonic()
        if begins or fraction >= 1.0 or now - self._last >= _REFRESH_S:
            self._last = now
            share = f" {100 * min(max(fraction, 0.0), 1.0):3.0f} %"
            self._rewrite(f"{head}{share}{f'  {text}' if text else ''}")

    def clear(self) -> None:
        """Take the line off the terminal, before something else is written there."""
        self._stage = ""
        if self._terminal and self._width:
            self._rewrite("")
            self._stream.write("\r")
            self._stream.flush()

    def _rewrite(self, text: str) -> None:
        """Overwrite with blanks rather than escape codes: every console understands those."""
        text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)
