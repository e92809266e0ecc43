"""Text for the page: escaped, without anything that looks like a UID; times, durations and sizes as people say them."""

from __future__ import annotations

import re
import time
from html import escape

#: Five numbers with dots between them or more: an address has four.
_UID = re.compile(r"\d+(?:\.\d+){4,}")
#: Digits of a name that are shown, as `qsm-edge queue list` shows them.
NAME_DIGITS = 12


def text(value: object) -> str:
    """`value` for HTML, in an element or a quoted attribute; UIDs are left out, wherever they come from."""
    return escape(_UID.sub("\u2026", str(value)), quote=True)


def name(of: str) -> str:
    """The beginning of a study's or job's name."""
    return f'<code class="id">{text(of[:NAME_DIGITS])}</code>'


def marked(value: str) -> str:
    """The same, with what stands between `backticks` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(value))


def thousands(number: int) -> str:
    """A whole number with room between its thousands."""
    return f"{number:,}".replace(",", "\u202f")


def plural(number: int, word: str, words: str = "") -> str:
    """A number with its noun."""
    return f"{thousands(number)} {word if number == 1 else words or word + 's'}"


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}\u202fs"
    for size, small, names in ((86400, 3600, ("d", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}\u202f{names[0]}" + (f" {rest}\u202f{names[1]}" if rest else "")
    raise AssertionError


def ago(seconds: float) -> str:
    """How long ago, roughly."""
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{round(seconds / size)}\u202f{word} ago"
    return "just now" if seconds < 20 else f"{round(seconds)}\u202fs ago"


def capital(sentence: str) -> str:
    """The same with a large letter first."""
    return sentence[:1].upper() + sentence[1:]


def moment(when_s: float, now_s: float, *, seconds: bool = False) -> str:
    """A moment on the clock of this machine, with the day where it is not today."""
    then, now = time.localtime(when_s), time.localtime(now_s)
    shown = time.strftime("%H:%M:%S" if seconds else "%H:%M", then)
    if then[:3] != now[:3]:
        shown = f"{then.tm_mday} {_MONTHS[then.tm_mon - 1]} {shown}"
    exact = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when_s))
    return f'<time datetime="{exact}">{shown}</time>'


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def size(number: float) -> str:
    """Bytes."""
    for unit, word in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.3g}\u202f{word}"
    return f"{number / 1e3:.0f}\u202fkB"
