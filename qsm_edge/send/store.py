"""C-STORE as a user of the service, and storage commitment: one association for all files of a delivery."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pynetdicom import AE, build_context, evt
from pynetdicom.presentation import PresentationContext

from qsm_edge.dicom.filemeta import FileMeta
from qsm_edge.dicom.messages import (
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    Report,
    commitment_request,
)
from qsm_edge.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from qsm_edge.errors import InternalError
from qsm_edge.listen import Audit, Reports, guard
from qsm_edge.listen.contexts import PLAIN
from qsm_edge.listen.server import on_report
from qsm_edge.listen.tls import client_context
from qsm_edge.send.records import COMMITTED, FAILED, REFUSED, STORED, Destination, Sent

#: An association carries 128 presentation contexts, one of them for commitment.
MAX_CONTEXTS = 127
#: The peer may send responses and reports of this length to us.
RECEIVED_PDU_BYTES = 64 << 10

_DUPLICATE, _FAILED, _OUT_OF_RESOURCES = 0x0111, 0x0110, range(0xA700, 0xA800)
_WARNINGS = (0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000))
_NO_OFFER = "the peer offers no storage commitment"
_NO_ANSWER = "no answer: whether it is stored is not known"
_ENDED = "the association has ended"
_NOT_ASKED = "the association has ended before commitment was known"

Item = tuple[Path, FileMeta]


class GuardedAE(AE):  # type: ignore[misc]
    """pynetdicom's application entity, whose associations are under limits before they begin."""

    begun: Any = None

    def _create_socket(self, assoc: Any, address: Any, tls_args: Any) -> Any:
        self.begun = assoc
        assoc.dul.socket = super()._create_socket(assoc, address, tls_args)
        messages = guard.LimitedMessages(assoc)
        timeout_s = float(assoc.ae.dimse_timeout)
        guard.limit(assoc, messages, maximum_pdu_bytes=RECEIVED_PDU_BYTES, timeout_s=timeout_s)
        guarded, assoc.dul.socket = assoc.dul.socket, None  # given back: the caller sets it, and once only
        return guarded


def send_store(
    items: Sequence[Item],
    destination: Destination,
    reports: Reports | None,
    audit: Callable[[Audit], None] | None,
) -> list[Sent]:
    """Store files and have them committed, as the destination says; returns what became of each, in their order."""
    guard.configure()
    guard.prove()
    reports = Reports() if reports is None else reports
    wanted = list(dict.fromkeys((meta.sop_class_uid, meta.transfer_syntax_uid) for _, meta in items))[:MAX_CONTEXTS]
    with _association(destination, wanted, reports, audit) as assoc:
        if not assoc.is_established:
            return _all(items, *_why_not(assoc))
        if destination.commitment == "required" and not _offers_commitment(assoc):
            return _all(items, REFUSED, _NO_OFFER, False)
        sent: list[Sent] = []
        lost = False  # nothing is sent on an association that did not answer: it would have to be waited for again
        for number, (path, meta) in enumerate(items):
            sent.append(Sent(path, FAILED, _ENDED, retry=True) if lost else _one(assoc, path, meta, number, wanted))
            lost = lost or sent[-1].detail == _NO_ANSWER or not assoc.is_established
        if destination.commitment == "no" or not any(one.outcome == STORED for one in sent):
            return sent
        return _committed(assoc, items, sent, destination, reports, lost)


@contextlib.contextmanager
def _association(
    destination: Destination,
    wanted: Sequence[tuple[str, str]],
    reports: Reports,
    audit: Callable[[Audit], None] | None,
) -> Iterator[Any]:
    """An association with the destination, released at the end, or aborted where that does not work any more."""
    ae = GuardedAE(destination.calling_ae_title)
    ae.implementation_class_uid, ae.implementation_version_name = IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = destination.connect_timeout_s
    ae.acse_timeout = ae.dimse_timeout = destination.answer_timeout_s
    ae.network_timeout = None  # each wait has its own limit; between them nothing needs to come
    ae.maximum_pdu_size = RECEIVED_PDU_BYTES
    contexts: list[PresentationContext] = [build_context(sop_class, syntax) for sop_class, syntax in wanted]
    if destination.commitment != "no":
        contexts.append(build_context(STORAGE_COMMITMENT, list(PLAIN)))
    tls = None
    if destination.tls_ca is not None:
        context = client_context(destination.tls_certificate, destination.tls_key, destination.tls_ca)
        tls = (context, destination.tls_name or destination.host)
    handlers = [(evt.EVT_N_EVENT_REPORT, partial(on_report, reports=reports, audit=audit or _nothing))]
    try:
        assoc = ae.associate(
            destination.host,
            destination.port,
            contexts,
            destination.called_ae_title,
            RECEIVED_PDU_BYTES,
            tls_args=tls,
            evt_handlers=handlers,
        )
    except Exception:  # the host's name is not known, or the peer's answer makes no sense
        if ae.begun is not None and ae.begun.dul.socket is not None:
            ae.begun.dul.kill_dul()
            ae.begun.dul.socket.hang_up()
        assoc = None
    if assoc is None:
        yield _NoAssociation()
        return
    if not guard.is_limited(assoc):
        assoc.abort()
        raise InternalError("internal", "an association without limits")
    try:
        yield assoc
    finally:
        if assoc.is_established and assoc.dul.is_alive():
            with contextlib.suppress(Exception):
                assoc.release()
        if not assoc.is_released:
            with contextlib.suppress(Exception):
                assoc.abort()


class _NoAssociation:
    """Stands for an association with a host that could not be found."""

    is_established = is_rejected = False
    rejected_contexts: tuple[Any, ...] = ()


def _nothing(_: Audit) -> None:
    """An audit trail that nobody reads."""


def _why_not(assoc: Any) -> tuple[str, str, bool]:
    """Outcome, detail and whether to try again, of an association that did not come about."""
    if assoc.is_rejected:
        answer = assoc.acceptor.primitive
        numbers = f"result {answer.result}, source {answer.result_source}, reason {answer.diagnostic}"
        return REFUSED, f"association rejected: {numbers}", answer.result == 2
    if assoc.rejected_contexts:
        return REFUSED, "the peer takes none of these kinds of object or encodings", False
    return FAILED, "no association: the peer cannot be reached, or has ended it", True


def _all(items: Sequence[Item], outcome: str, detail: str, retry: bool) -> list[Sent]:
    return [Sent(path, outcome, detail, retry) for path, _ in items]


def _offers_commitment(assoc: Any) -> bool:
    return any(str(context.abstract_syntax) == STORAGE_COMMITMENT for context in assoc.accepted_contexts)


def _one(assoc: Any, path: Path, meta: FileMeta, number: int, wanted: Sequence[tuple[str, str]]) -> Sent:
    """Store one file. What is not known to have arrived has failed."""
    kind = (meta.sop_class_uid, meta.transfer_syntax_uid)
    if kind not in wanted:
        return Sent(path, FAILED, "more kinds of object than one association carries", retry=True)
    accepted = {(str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in assoc.accepted_contexts}
    if kind not in accepted:
        return Sent(path, REFUSED, "the peer does not take this kind of object in this encoding")
    try:
        answer = assoc.send_c_store(path, msg_id=number % 65535 + 1)
    except Exception as error:
        if isinstance(error, OSError):
            assoc.abort()  # a part of the file may be on its way
            return Sent(path, FAILED, "unreadable_file", retry=True)
        if isinstance(error, RuntimeError):  # the association ended under our hands, or stands still
            return Sent(path, FAILED, _NO_ANSWER, retry=True)
        return Sent(path, FAILED, f"not sent: {type(error).__name__}", retry=True)
    if path.stat().st_size != meta.size:
        return Sent(path, FAILED, "the file has changed while it was sent", retry=True)
    if "Status" not in answer:
        return Sent(path, FAILED, _NO_ANSWER, retry=True)
    return _judged(path, int(answer.Status))


def _judged(path: Path, status: int) -> Sent:
    shown = f"0x{status:04X}"
    if status == 0:
        return Sent(path, STORED)
    if status == _DUPLICATE:
        return Sent(path, STORED, f"{shown}: the peer has it already")
    if status in _WARNINGS:
        return Sent(path, STORED, f"{shown}: stored with a warning")
    return Sent(path, REFUSED, shown, retry=status == _FAILED or status in _OUT_OF_RESOURCES)


def _committed(
    assoc: Any,
    items: Sequence[Item],
    sent: Sequence[Sent],
    destination: Destination,
    reports: Reports,
    lost: bool,
) -> list[Sent]:
    """Ask for commitment of what was stored, wait for the report, and enter what it says."""
    if not _offers_commitment(assoc):
        return list(sent)
    stored = [meta for (_, meta), one in zip(items, sent, strict=True) if one.outcome == STORED]
    transaction = f"2.25.{uuid.uuid4().int}"
    reports.expect(transaction)
    objects = [(meta.sop_class_uid, meta.sop_instance_uid) for meta in stored]
    problem = _NOT_ASKED if lost else _ask(assoc, transaction, objects)
    report = reports.wait(transaction, 0.0 if problem else destination.commitment_wait_s)
    again = destination.commitment == "required" or problem == _NOT_ASKED
    problem = problem or f"no report on commitment within {destination.commitment_wait_s:g} s"
    return [
        _with_report(one, meta, report, problem, again) if one.outcome == STORED else one
        for (_, meta), one in zip(items, sent, strict=True)
    ]


def _ask(assoc: Any, transaction: str, objects: Sequence[tuple[str, str]]) -> str:
    """Send the N-ACTION; '' where the peer took it, else what went wrong."""
    try:
        request = commitment_request(transaction, objects)
        answer, _ = assoc.send_n_action(request, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
    except (RuntimeError, ValueError):
        return _NOT_ASKED
    if "Status" not in answer:
        return _NOT_ASKED
    return "" if answer.Status == 0 else f"commitment refused: 0x{int(answer.Status):04X}"


def _with_report(one: Sent, meta: FileMeta, report: Report | None, problem: str, again: bool) -> Sent:
    """What became of a stored file; `again`: without a report it has to be sent again."""
    uid = meta.sop_instance_uid
    if report is not None and uid in report.committed:
        return Sent(one.path, COMMITTED, one.detail)
    if report is not None and uid in report.failed:
        return Sent(one.path, FAILED, f"not committed: 0x{report.failed[uid]:04X}", retry=True)
    detail = problem if report is None else "the report on commitment does not name it"
    return Sent(one.path, FAILED, detail, retry=True) if again else Sent(one.path, STORED, detail)
