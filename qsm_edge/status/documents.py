"""The three documents, each made of one look at the ledger, the board and the disk; a look serves all who ask at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from qsm_edge.status import facts, health, metrics, page
from qsm_edge.status.board import Board
from qsm_edge.status.http import Answer, Document
from qsm_edge.status.settings import Settings

T = TypeVar("T")

#: For so long an answer is given again, so that many who ask cost no more than one. A write to the ledger costs most.
_SAME_S, _WRITTEN_S = 1.0, 5.0
#: After this a write that has not come back is a finding of its own.
_STUCK_S = 4.0


def documents(
    settings: Settings,
    board: Board,
    root: Path,
    destinations: Sequence[str],
    floor_bytes: int,
    keep_held_days: float,
) -> dict[str, Document]:
    """What is served, by path; see `qsm_edge.status.serve`."""
    stuck = "the disk does not answer"
    written = shared(lambda: health.prove_written(root), _WRITTEN_S, meanwhile=stuck, patience_s=_STUCK_S)

    def examined() -> health.Health:
        return health.examine(board.seen(), root, floor_bytes, written)

    def healthy() -> Answer:
        found = examined()
        body = json.dumps(found.as_dict(), indent=1) + "\n"
        return Answer(200 if found.is_well else 503, "application/json", body.encode())

    def figures() -> Answer:
        seen, known = board.seen(), facts.look(root, destinations, with_results=False)
        told = metrics.families(known, seen, examined(), memory_of(seen.children))
        return Answer(200, metrics.CONTENT_TYPE, metrics.text_of(told).encode())

    def shown() -> Answer:
        known, memory = facts.look(root, destinations), memory_of(board.seen().children)
        text = page.html(
            known,
            examined(),
            refresh_s=settings.refresh_s,
            keep_held_days=keep_held_days,
            memory=sum(memory.values()) if memory else None,
        )
        policy = {"Content-Security-Policy": page.policy()}
        return Answer(200, "text/html; charset=utf-8", text.encode(), policy)

    return {"/": shared(shown, _SAME_S), "/health": healthy, "/metrics": shared(figures, _SAME_S)}


def memory_of(children: Sequence[int]) -> dict[str, int]:
    """Bytes in use by this process and by its children, as far as the system tells."""
    own = health.resident_bytes()
    if own is None:
        return {}
    return {"service": own, "reconstructions": sum(health.resident_bytes(child) or 0 for child in children)}


def shared(
    make: Callable[[], T], seconds: float, *, meanwhile: T | None = None, patience_s: float = -1.0
) -> Callable[[], T]:
    """`make`, called by one thread at a time and not again for `seconds` after it came back; all get what it made.

    meanwhile: what others get who waited `patience_s` for one that does not come back; without it they wait on.
    """
    lock, kept = threading.Lock(), list[tuple[float, T]]()

    def given() -> T:
        if not lock.acquire(timeout=-1.0 if meanwhile is None else patience_s):
            assert meanwhile is not None
            return meanwhile
        try:
            if not kept or time.monotonic() - kept[0][0] > seconds:
                made = make()
                kept[:] = [(time.monotonic(), made)]
            return kept[0][1]
        finally:
            lock.release()

    return given
