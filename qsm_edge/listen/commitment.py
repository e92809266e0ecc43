"""Storage commitment's reports on their way from whichever association brought them to whoever waits for them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsm_edge.dicom.messages import Report


class Reports:
    """The reports that somebody waits for, by transaction UID; threads may share it."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._awaited: dict[str, Report | None] = {}

    def expect(self, transaction_uid: str) -> None:
        """Announce a transaction, before the peer hears of it: its report may come first."""
        with self._arrived:
            self._awaited[transaction_uid] = None

    def deliver(self, report: Report) -> bool:
        """Hand a report over; False where nobody waits for its transaction."""
        with self._arrived:
            if report.transaction_uid not in self._awaited:
                return False
            self._awaited[report.transaction_uid] = report
            self._arrived.notify_all()
            return True

    def wait(self, transaction_uid: str, timeout_s: float) -> Report | None:
        """The report of an announced transaction, None where it has not come in time. The transaction is over then."""
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while self._awaited.get(transaction_uid) is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._arrived.wait(left):
                    break
            return self._awaited.pop(transaction_uid, None)
