"""Layer 5: studies arrive by C-STORE. The only door to pynetdicom beside `send`.

What comes is bytes for the spool: a dataset is written as it came, never decoded here. An instance is acknowledged when
it is stored, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qsm_edge.listen.commitment import Reports
from qsm_edge.listen.records import Audit, Origin, Settings, check, check_ae_title

if TYPE_CHECKING:
    from qsm_edge.listen.server import Listener

__all__ = ["Audit", "Origin", "Reports", "Settings", "check", "check_ae_title", "serve"]


def serve(
    settings: Settings,
    incoming: Path,
    store: Callable[[Path, Origin], None],
    audit: Callable[[Audit], None],
    reports: Reports | None = None,
) -> Listener:
    """Listen for associations until `stop()`, or the end of the ``with`` that the returned listener may stand in.

    Parameters
    ----------
    incoming : a folder; each instance becomes ``<random>.part`` in it: a whole DICOM file, flushed to the disk.
    store : takes such a file over (moves it), from several threads at once. When it returns, success is answered. When it
        raises, failure: ResourceError 0xA700; InputRefused 0xC000 with the reason code as comment; anything else
        0x0110. The file is deleted, where it is still there.
    audit : takes a line of the audit trail, from several threads at once.
    reports : where storage commitment's reports go; a new one by default, at ``listener.reports``.

    Raises
    ------
    UsageError : bad_value in the settings, bad_call where nothing can listen at that address.
    InternalError : the installed pynetdicom does not keep to the limits.
    """
    from qsm_edge.listen.server import serve as start

    return start(settings, incoming, store, audit, reports)
