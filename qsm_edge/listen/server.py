"""The listener: who is let in, the association's life from the first byte to the last, and what is answered."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE, build_context, evt
from pynetdicom.acse import ACSE
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from qsm_edge.dicom.identify import hashed
from qsm_edge.dicom.messages import STORAGE_COMMITMENT, commitment_report, status
from qsm_edge.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from qsm_edge.errors import UsageError
from qsm_edge.listen import guard
from qsm_edge.listen.commitment import Reports
from qsm_edge.listen.contexts import PLAIN, STORAGE, VERIFICATION, transfer_syntaxes
from qsm_edge.listen.receive import Receiver, keep
from qsm_edge.listen.records import Audit, Origin, Settings, check, is_allowed, networks
from qsm_edge.listen.tls import server_context

#: Connections, also those that never become associations, are closed unread beyond so many.
CONNECTIONS_AN_ASSOCIATION, MORE_CONNECTIONS = 8, 32
#: Result, source and diagnostic of an A-ASSOCIATE-RJ.
CALLED_UNKNOWN, CALLING_UNKNOWN, TOO_MANY = (1, 1, 7), (1, 1, 3), (2, 3, 2)
_NO_SUCH_INSTANCE, _INVALID_ARGUMENT, _UNRECOGNISED_OPERATION = 0x0112, 0x0115, 0x0211

Store = Callable[[Path, Origin], None]
AuditTrail = Callable[[Audit], None]


class Gate(ACSE):  # type: ignore[misc]
    """Negotiates as pynetdicom does, after the titles and the number of associations were looked at."""

    def negotiate_association(self) -> None:
        """Reject, with the reason, or negotiate."""
        server, request = self.assoc._server, self.assoc.requestor.primitive
        calling, called = str(request.calling_ae_title).strip(), str(request.called_ae_title).strip()
        reason = server.admit(self.assoc, calling, called)
        if reason is None:
            super().negotiate_association()
            return
        self.assoc.requestor.ae_title = request.calling_ae_title
        self.send_reject(*reason)
        self.assoc.is_rejected = True
        self.assoc.kill()


class Connection(RequestHandler):  # type: ignore[misc]
    """One connection in a thread of its own, which ends when everything of it has ended."""

    server: Server
    request: Any

    def handle(self) -> None:
        """TLS, the association, and what is left behind of it."""
        settings = self.server.settings
        self.hang_up: Callable[[], None] = partial(_shut, self.request)
        self.server.connections.add(self)
        assoc = receiver = None
        try:
            self.request.settimeout(settings.association_timeout_s)
            if self.server.tls is not None:
                self.request = self._encrypted()
            assoc = self._create_association()
            assoc.acse = Gate(assoc)
            receiver = Receiver(assoc, self.server.incoming, settings.maximum_instance_bytes)
            guard.limit(
                assoc,
                receiver,
                maximum_pdu_bytes=settings.maximum_pdu_bytes,
                timeout_s=settings.network_timeout_s,
            )
            self.hang_up = assoc.dul.socket.hang_up
            assoc.start()
            assoc.join()
        finally:
            self.server.leave(assoc)
            if receiver is not None and receiver.part is not None:
                receiver.part.discard()
            self.hang_up()
            with contextlib.suppress(OSError):
                self.request.close()
            self.server.connections.discard(self)

    def _encrypted(self) -> Any:
        """The connection under TLS; whoever does not finish the handshake in time is cut off."""
        assert self.server.tls is not None
        encrypted = self.server.tls.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        self.hang_up = partial(_shut, encrypted)
        watch = threading.Timer(self.server.settings.association_timeout_s, self.hang_up)
        watch.daemon = True
        watch.start()
        try:
            encrypted.do_handshake()
        except BaseException:
            encrypted.close()
            raise
        finally:
            watch.cancel()
        return encrypted


class Server(ThreadedAssociationServer):  # type: ignore[misc]
    """pynetdicom's server: a connection is judged by its address and number when it is accepted, unread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        ae: Any,
        settings: Settings,
        incoming: Path,
        contexts: list[Any],
        handlers: list[Any],
        audit: AuditTrail,
    ) -> None:
        self.settings, self.incoming, self.audit = settings, incoming, audit
        self.tls = None
        if settings.tls_certificate is not None:
            self.tls = server_context(settings.tls_certificate, settings.tls_key, settings.tls_ca)
        self.connections: set[Connection] = set()
        self._allowed = networks(settings.addresses)
        self._inside: set[Any] = set()
        self._lock = threading.Lock()
        address = (settings.bind, settings.port)
        super().__init__(ae, address, settings.ae_title, contexts, evt_handlers=handlers, request_handler=Connection)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is to be looked at at all."""
        limit = CONNECTIONS_AN_ASSOCIATION * self.settings.maximum_associations + MORE_CONNECTIONS
        address = str(client_address[0])
        reason = "" if is_allowed(address, self._allowed) else "address"
        reason = reason or ("too_many" if len(self.connections) >= limit else "")
        if reason:
            self.tell(Audit("connection", "refused", address, detail=reason))
        return not reason

    def admit(self, assoc: Any, calling: str, called: str) -> tuple[int, int, int] | None:
        """Let an association in, or say why not."""
        settings, reason = self.settings, None
        if called != settings.ae_title:
            reason, detail = CALLED_UNKNOWN, "called_ae_title"
        elif not settings.any_calling_ae_title and calling not in settings.calling_ae_titles:
            reason, detail = CALLING_UNKNOWN, "calling_ae_title"
        else:
            with self._lock:
                if len(self._inside) < settings.maximum_associations:
                    self._inside.add(assoc)
                    return None
            reason, detail = TOO_MANY, "too_many"
        self.tell(Audit("association", "refused", _address(assoc), calling, called, detail=detail))
        return reason

    def leave(self, assoc: Any) -> None:
        """An association is over."""
        with self._lock:
            self._inside.discard(assoc)

    def tell(self, line: Audit) -> None:
        """A line about a connection that was refused; one that cannot be written must not end the listener."""
        with contextlib.suppress(Exception):
            self.audit(line)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that failed before it was an association: TLS with a stranger, most of the time."""
        self.tell(Audit("connection", "failed", str(client_address[0])))


class Listener:
    """A running listener. `port`: where it listens. `reports`: of storage commitment, for a sender to wait on."""

    def __init__(self, server: Server, reports: Reports) -> None:
        self._server, self.reports = server, reports
        self.port = int(server.server_address[1])
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="listener", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it takes connections."""
        return self._thread.is_alive()

    def stop(self, grace_s: float = 10.0) -> None:
        """Take no more connections, let the open ones finish for `grace_s`, end those that do not."""
        if self._thread.is_alive():
            BaseServer.shutdown(self._server)
            self._thread.join()
        with contextlib.suppress(OSError):
            self._server.socket.close()
        _wait(lambda: not self._server.connections, grace_s)
        for connection in tuple(self._server.connections):
            connection.hang_up()
        _wait(lambda: not self._server.connections, 10.0)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    settings: Settings, incoming: Path, store: Store, audit: AuditTrail, reports: Reports | None = None
) -> Listener:
    """Start to listen; documented at `qsm_edge.listen.serve`."""
    check(settings)
    guard.configure()
    guard.prove()
    ae = AE(settings.ae_title)
    ae.acse_timeout = settings.association_timeout_s
    ae.network_timeout = settings.idle_timeout_s
    ae.dimse_timeout = settings.network_timeout_s
    ae.maximum_pdu_size = settings.maximum_pdu_bytes
    ae.maximum_associations = 1 << 30  # counted at the gate: pynetdicom counts those that it is about to reject, too
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    reports = Reports() if reports is None else reports
    handlers = [
        (evt.EVT_C_STORE, partial(_on_store, store=store, audit=audit)),
        (evt.EVT_N_EVENT_REPORT, partial(on_report, reports=reports, audit=audit)),
        (evt.EVT_N_ACTION, _no_commitment_from_us),
    ]
    try:
        server = Server(ae, settings, incoming, _contexts(), handlers, audit)
    except OSError as error:
        where = f"{settings.bind}:{settings.port}"
        raise UsageError("bad_call", "nothing can listen there", where=where, got=error.strerror) from error
    return Listener(server, reports)


def _contexts() -> list[Any]:
    syntaxes = list(transfer_syntaxes())
    commitment = build_context(STORAGE_COMMITMENT, list(PLAIN))
    commitment.scu_role = commitment.scp_role = True  # the peer is the provider of the service and may call us
    storage = [build_context(sop_class, syntaxes) for sop_class in STORAGE.values()]
    return [*storage, build_context(VERIFICATION, list(PLAIN)), commitment]


def _on_store(event: Any, *, store: Store, audit: AuditTrail) -> Any:
    """Answer a C-STORE, once what it brought is stored."""
    assoc = event.assoc
    receiver: Receiver = assoc.dimse
    part = receiver.part
    calling, called = (str(user.ae_title).strip() for user in (assoc.requestor, assoc.acceptor))
    try:
        code, reason = keep(part, store)
        outcome = "stored" if code == 0 else "refused"
        instance = "" if part is None else hashed(part.origin.sop_instance_uid)
        detail = f"0x{code:04X} {reason}".strip() if code else ""
        audit(Audit("received", outcome, _address(assoc), calling, called, instance, detail))
    except Exception:
        code, reason = 0x0110, "internal"
    finally:
        receiver.part = None  # the peer sends the next when it has the answer, not before
        assoc.dul._idle_timer.restart()
    return status(code, reason)


def on_report(event: Any, *, reports: Reports, audit: AuditTrail) -> tuple[Any, None]:
    """Answer a storage commitment's N-EVENT-REPORT, on whichever association it comes."""
    assoc = event.assoc
    peer = assoc.requestor if assoc.is_acceptor else assoc.acceptor
    calling, called = (str(user.ae_title).strip() for user in (assoc.requestor, assoc.acceptor))
    try:
        report = commitment_report(event.event_information)
        known = reports.deliver(report)
        code = 0x0000 if known else _NO_SUCH_INSTANCE
        detail = f"{len(report.committed)} committed, {len(report.failed)} not"
    except Exception:
        code, detail = _INVALID_ARGUMENT, "corrupt_header"
    outcome = "accepted" if code == 0 else "refused"
    audit(Audit("commitment", outcome, str(peer.address_info.address), calling, called, detail=detail))
    return status(code), None


def _no_commitment_from_us(_: Any) -> tuple[int, None]:
    """We ask for commitment and give none: what is received here is passed on, not archived."""
    return _UNRECOGNISED_OPERATION, None


def _address(assoc: Any) -> str:
    return str(assoc.requestor.address_info.address)


def _shut(connection: Any) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(2)


def _wait(done: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)
