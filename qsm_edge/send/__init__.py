"""Layer 5: files go out, by C-STORE or STOW-RS, the bytes as they are.

Sending the same file twice is harmless, since its UIDs follow from its contents: whoever does not know whether a file
arrived sends it again. `Sent.retry` says when that makes sense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsm_edge.errors import InputRefused
from qsm_edge.listen import Audit, Reports
from qsm_edge.send.records import REFUSED, Destination, Sent, check

if TYPE_CHECKING:
    from qsm_edge.dicom.filemeta import FileMeta

__all__ = ["Destination", "Sent", "check", "send"]


def send(
    files: Sequence[Path],
    destination: Destination,
    audit: Callable[[Audit], None] | None = None,
    reports: Reports | None = None,
) -> list[Sent]:
    """Send files; returns what became of each, in their order. Nothing that a peer does is raised.

    Parameters
    ----------
    audit : takes a line of the audit trail for every file.
    reports : of the listener that the peer may report commitment to; without one, on our own association only.

    Raises
    ------
    UsageError : bad_value in the destination, or its certificates or token cannot be read.
    InternalError : the installed pynetdicom does not keep to the limits.
    """
    from qsm_edge.dicom.filemeta import read_file_meta
    from qsm_edge.dicom.identify import hashed

    check(destination)
    outcomes: dict[int, Sent] = {}
    known: dict[int, tuple[Path, FileMeta]] = {}
    for number, path in enumerate(files):
        try:
            known[number] = (path, read_file_meta(path))
        except InputRefused as refusal:
            outcomes[number] = Sent(path, REFUSED, refusal.code)
        except OSError:
            outcomes[number] = Sent(path, "failed", "unreadable_file", retry=True)
    if known:
        if destination.kind == "stow":
            from qsm_edge.send.stow import send_stow

            done = send_stow(list(known.values()), destination)
        else:
            from qsm_edge.send.store import send_store

            done = send_store(list(known.values()), destination, reports, audit)
        outcomes |= dict(zip(known, done, strict=True))
    if audit is not None:
        peer = destination.url if destination.kind == "stow" else f"{destination.host}:{destination.port}"
        titles = ("", "") if destination.kind == "stow" else (destination.calling_ae_title, destination.called_ae_title)
        for number in range(len(files)):
            one = outcomes[number]
            instance = hashed(known[number][1].sop_instance_uid) if number in known else ""
            audit(Audit("sent", one.outcome, peer, *titles, instance, one.detail))
    return [outcomes[number] for number in range(len(files))]
