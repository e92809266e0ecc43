"""Layer 5: the running service as others see it: a page for people, `/health` for watchdogs, `/metrics` for Prometheus.

A small HTTP server in the service's own process, read only and for this machine alone unless the configuration says more.
It asks the ledger through a connection of its own and the service through its `Board`; it holds up neither.

::

    service loop, threads, log --Board--.
    ledger, result folders -----Facts---+--> page.html, metrics.text_of, health.examine --> http.serve
    the spool's disk ------------Health-'
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from qsm_edge.status.board import Board
from qsm_edge.status.settings import Settings, check

__all__ = ["Board", "Settings", "check", "serve"]


def serve(
    settings: Settings,
    board: Board,
    root: Path,
    *,
    destinations: Sequence[str] = (),
    floor_bytes: int = 0,
    keep_held_days: float = 0.0,
) -> AbstractContextManager[object]:
    """Serve the page of the spool at `root` until the end of a ``with``; its ``port`` says where.

    destinations: their names. floor_bytes: below this the disk counts as full. keep_held_days: how long a study waits.

    Raises
    ------
    UsageError : bad_call where nothing can listen at that address.
    """
    from qsm_edge.status import http
    from qsm_edge.status.documents import documents

    made = documents(settings, board, root, destinations, floor_bytes, keep_held_days)
    return http.serve(settings, made)
