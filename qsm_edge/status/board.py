"""What the running service tells of itself beside the ledger: who is alive, what is at work since when, and counts.

The service writes, the status page reads; neither waits for the other, and nothing here stops the service.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qsm_edge.errors import REASONS, QsmEdgeError
from qsm_edge.spool.log import Log

#: Upper ends of the classes that reconstructions are counted in, s.
BUCKETS_S = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
#: How long the loop may be at one thing before it counts as stalled; a child that looks at a study is ended after 900 s.
PATIENCE_S, LOOK_PATIENCE_S = 600.0, 960.0
#: The steps of the service's loop, by the part of the service that each is.
LOOP = {"watch": "watcher", "look": "reader", "finish": "worker", "start": "worker", "purge": "purge"}
DOORS = ("c-store", "folder")

#: A counter's name and labels.
Count = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Seen:
    """The board at one moment. stalled: the part of the loop that does not come back, or empty; trouble: part -> code;
    buckets: reconstructions by `BUCKETS_S`, the last beyond all; children: process numbers of what is at work."""

    uptime_s: float
    alive: Mapping[str, bool]
    stalled: str
    trouble: Mapping[str, str]
    counts: Mapping[Count, int]
    buckets: tuple[int, ...]
    seconds_sum: float
    last_seconds: float | None
    children: tuple[int, ...]


class Board:
    """See the module. All methods may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock, self._begun = clock, threading.Lock(), clock()
        self._step, self._since = "", self._begun
        self._threads: dict[str, Callable[[], bool]] = {}
        self._trouble: dict[str, str] = {}
        self._counts: Counter[Count] = Counter({("received", (("door", door),)): 0 for door in DOORS})
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._sum, self._last = 0.0, math.nan
        self._children: tuple[int, ...] = ()

    @contextlib.contextmanager
    def at(self, step: str) -> Iterator[None]:
        """The loop is at one of the steps of `LOOP` meanwhile; what is raised there is remembered until it goes well."""
        part = LOOP[step]
        self.beat(step)
        try:
            yield
        except Exception as error:
            self.trouble(part, error.code if isinstance(error, QsmEdgeError) else "internal")
            raise
        else:
            self.trouble(part, "")
        finally:
            self.beat("")

    def beat(self, step: str) -> None:
        """The loop begins something, or nothing (''), now."""
        with self._lock:
            self._step, self._since = step, self._clock()

    def trouble(self, part: str, code: str) -> None:
        """Something is wrong with a part of the service; '' takes it back."""
        with self._lock:
            self._trouble.pop(part, None)
            if code:
                self._trouble[part] = code

    def watch(self, part: str, alive: Callable[[], bool]) -> None:
        """A part of the service has a thread of its own; `alive` tells whether it runs."""
        with self._lock:
            self._threads[part] = alive

    def children(self, numbers: Iterable[int]) -> None:
        """The processes that are at work."""
        self._children = tuple(numbers)

    def hearing(self, log: Log) -> Log:
        """`log`, with a count kept of what is told."""

        def say(event: str, facts: Mapping[str, object]) -> None:
            with contextlib.suppress(Exception):  # a count is not worth a result
                self._hear(event, {name: str(value) for name, value in facts.items()})
            log(event, facts)

        return say

    def _hear(self, event: str, facts: Mapping[str, str]) -> None:
        outcome, door = facts.get("outcome", ""), facts.get("door", "c-store")  # the listener's lines name no door
        with self._lock:
            if event == "turned_away" or (event == "received" and outcome == "refused"):
                code = facts.get("code") or facts.get("detail", "").rpartition(" ")[2]
                self._counts["refused", (("door", door), ("code", code if code in REASONS else "internal"))] += 1
            elif event == "received":
                self._counts["received", (("door", door),)] += 1
            elif event == "ended":
                self._counts["ended", (("state", facts["state"]),)] += 1
                self._last = float(facts["seconds"])
                self._buckets[bisect.bisect_left(BUCKETS_S, self._last)] += 1
                self._sum += self._last
            elif event == "delivery":
                for name in ("stored", "committed", "refused", "failed"):
                    key = ("sent", (("destination", facts["destination"]), ("outcome", name)))
                    self._counts[key] += int(facts.get(name, "0"))

    def seen(self) -> Seen:
        """All of it now."""
        with self._lock:
            now, step, since = self._clock(), self._step, self._since
            threads, trouble, counts = dict(self._threads), dict(self._trouble), dict(self._counts)
            buckets, total, last = tuple(self._buckets), self._sum, self._last
        patience = LOOK_PATIENCE_S if step == "look" else PATIENCE_S
        return Seen(
            uptime_s=now - self._begun,
            alive={part: alive() for part, alive in threads.items()},
            stalled=LOOP.get(step, "worker") if now - since > patience else "",
            trouble=trouble,
            counts=counts,
            buckets=buckets,
            seconds_sum=total,
            last_seconds=None if math.isnan(last) else last,
            children=self._children,
        )
