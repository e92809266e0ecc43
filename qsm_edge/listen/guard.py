"""pynetdicom under limits: what a peer declares is held against a cap before a byte of it is kept.

pynetdicom 3 reads a PDU of any declared length into memory, before it looks at the AE title, and waits for the rest of
it without end; it collects a message's fragments without end, too. Its seams are replaced here: the socket, the
collector of messages, the queue to the wire. `prove` shows at every start that the installed version still passes
through them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import struct
import threading
import time
from types import SimpleNamespace
from typing import Any

import pynetdicom
from pynetdicom import _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import N_EVENT_REPORT_RQ
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

from qsm_edge.errors import InternalError

#: An association's request with 128 presentation contexts and many transfer syntaxes each stays below this.
MAX_NEGOTIATION_BYTES = 256 << 10
#: A command set is some hundred bytes; a commitment's report some hundred bytes an instance.
MAX_COMMAND_BYTES, MAX_MESSAGE_BYTES = 16 << 10, 16 << 20
#: Messages that a peer may send before the ones before them are answered; PDUs that may wait for the wire.
MAX_WAITING_MESSAGES, MAX_WAITING_PDUS = 16, 32
#: Where a peer takes PDUs of any length.
SENT_PDU_BYTES = 128 << 10

#: How long a reactor may take to stand still: it does so every millisecond, unless the machine is starved.
_STOP_S = 30.0
_ASSOCIATE, _DATA, _SHORT = (0x01, 0x02), 0x04, (0x03, 0x05, 0x06, 0x07)
_ABORT = bytes((0x07, 0, 0, 0, 0, 4, 0, 0, 2, 6))  # by the service provider: invalid PDU parameter
_INVALID = "Evt19"


def configure() -> None:
    """Set what pynetdicom has for the whole process: files are sent unread; nothing is logged, for its log names UIDs."""
    _config.LOG_HANDLER_LEVEL = "none"
    _config.STORE_SEND_CHUNKED_DATASET = True
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


class CappedSocket(AssociationSocket):  # type: ignore[misc]
    """An association's socket that reads no PDU longer than allowed, and none for longer than `timeout_s`."""

    def __init__(self, plain: AssociationSocket, *, maximum_pdu_bytes: int, timeout_s: float) -> None:
        self.__dict__.update(plain.__dict__)  # a second construction would announce the connection twice
        self._maximum_pdu_bytes, self._timeout_s = maximum_pdu_bytes, timeout_s
        with contextlib.suppress(OSError, AttributeError):
            # a command and its dataset are two sends: the second would wait for the peer's delayed acknowledgement
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._deadline_s, self._inside_pdu = 0.0, False

    def recv(self, nr_bytes: int) -> bytearray:
        """The six bytes that begin a PDU, then the rest of it; ConnectionError for one that is not allowed."""
        if self._inside_pdu:
            self._inside_pdu = False
            return self._read(nr_bytes)
        self._deadline_s = time.monotonic() + self._timeout_s
        head = self._read(nr_bytes)
        if len(head) == nr_bytes == 6:
            kind, _, length = struct.unpack(">BBL", head)
            if length > self._longest(kind):
                self.hang_up(_ABORT)
                raise ConnectionError("a PDU of an unknown kind or beyond the maximum length")
            self._inside_pdu = True
        return head

    def _longest(self, kind: int) -> int:
        if kind in _ASSOCIATE:
            return MAX_NEGOTIATION_BYTES
        return self._maximum_pdu_bytes if kind == _DATA else 64 if kind in _SHORT else -1

    def _read(self, nr_bytes: int) -> bytearray:
        content, got = bytearray(nr_bytes), 0
        view = memoryview(content)
        while got < nr_bytes:
            left = self._deadline_s - time.monotonic()
            connection = self.socket
            if connection is None or left <= 0:
                self.hang_up()
                raise TimeoutError("the PDU did not arrive in time")
            connection.settimeout(left)
            read = connection.recv_into(view[got:])
            if read == 0:
                break
            got += read
        return bytearray(view[:got]) if got < nr_bytes else content

    def send(self, bytestream: bytes) -> None:
        """Send a PDU; a peer that has not taken it all within `timeout_s` has left."""
        left, deadline_s = memoryview(bytestream), time.monotonic() + self._timeout_s
        try:
            while left:
                connection, left_s = self.socket, deadline_s - time.monotonic()
                if connection is None or left_s <= 0:
                    raise TimeoutError("the PDU was not taken in time")
                connection.settimeout(left_s)
                left = left[connection.send(left) :]
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # the transport connection is closed

    def _shutdown_socket(self) -> None:
        """As of the base class, which does not close a connection that cannot be shut down."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                self.socket.close()

    def hang_up(self, last_words: bytes = b"") -> None:
        """End the connection at once; whoever reads from it notices."""
        connection = self.socket
        if connection is None:
            return
        with contextlib.suppress(OSError):
            if last_words:
                connection.settimeout(1.0)
                connection.sendall(last_words)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class LimitedMessages(DIMSEServiceProvider):  # type: ignore[misc]
    """Collects messages of limited size and number, and cuts what is sent for peers that would take a PDU of any length."""

    def __init__(self, assoc: Any) -> None:
        super().__init__(assoc)
        self._command_bytes = self._other_bytes = 0
        self._reports = 0  # N-EVENT-REPORTs that are not answered: pynetdicom starts a thread for each
        assoc.bind(evt.EVT_DIMSE_RECV, self._note)

    def _note(self, event: Any) -> None:
        self._reports += isinstance(event.message, N_EVENT_REPORT_RQ)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """As of the base class, counting the answers."""
        super().send_msg(primitive, context_id)
        if isinstance(primitive, N_EVENT_REPORT) and primitive.MessageIDBeingRespondedTo is not None:
            self._reports -= 1

    @property
    def maximum_pdu_size(self) -> int:
        """Length of a PDU towards the peer."""
        longest = super().maximum_pdu_size
        return min(longest, SENT_PDU_BYTES) if longest else SENT_PDU_BYTES

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of one PDU. Whatever is wrong with them ends the association, and nothing but that."""
        try:
            for context_id, fragment in primitive.presentation_data_value_list:
                self._take(context_id, fragment)
        except Exception:
            self.dul.event_queue.put(_INVALID)

    def _take(self, context_id: int, fragment: bytes) -> None:
        if fragment[0] & 1:
            self._command_bytes += len(fragment)
        else:
            if self.message is None or self.message.context_id != context_id:
                raise ValueError("a dataset without its command")
            fragment = self.of_dataset(fragment)
            self._other_bytes += len(fragment)
        if self._command_bytes > MAX_COMMAND_BYTES or self._other_bytes > MAX_MESSAGE_BYTES:
            raise ValueError("a message beyond the limit")
        if not fragment:
            return
        if self.msg_queue.qsize() > MAX_WAITING_MESSAGES:
            raise ValueError("more messages than are answered")
        one = P_DATA()
        one.presentation_data_value_list.append((context_id, fragment))
        super().receive_primitive(one)
        if self._reports > MAX_WAITING_MESSAGES:
            raise ValueError("more reports than are answered")
        if self.message is None:
            self._command_bytes = self._other_bytes = 0
        elif self.message.context_id is not None and fragment[0] & 1:
            self.on_command()

    def of_dataset(self, fragment: bytes) -> bytes:
        """What of a dataset's fragment goes on into the message: all of it here."""
        return fragment

    def on_command(self) -> None:
        """Called when a message's command is complete and its dataset is to come."""


class PacedQueue(queue.Queue[Any]):
    """The queue to the wire; whoever fills it waits for the wire, so that a file is not in memory as a whole."""

    def __init__(self, dul: Any) -> None:
        super().__init__()
        self._dul = dul

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As of the base class, once there is room or nobody sends any more."""
        while self.qsize() >= MAX_WAITING_PDUS and self._dul.is_alive() and threading.current_thread() is not self._dul:
            time.sleep(0.001)
        super().put(item, block, timeout)


class SteadyTimer(Timer):  # type: ignore[misc]
    """pynetdicom's timer by the clock that nobody sets: one that was set back would keep a dead peer's place for as long."""

    def start(self) -> None:
        """Start anew."""
        self._start_time: float | None = time.monotonic()
        self._end_time: float | None = None

    def stop(self) -> None:
        """Stand still."""
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds until it expires; 1 where it never does."""
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return float(self.timeout)
        end = time.monotonic() if self._end_time is None else self._end_time
        return float(self.timeout - (end - self._start_time))


class Checkpoint:
    """Where an association's reactor stands still while somebody else waits for an answer.

    pynetdicom's own is an event beside a flag, `_is_paused`: a reactor that was held up between the two by the system takes
    the answer away from who waits for it, who then waits for the whole of the timeout; and a thread that serves a report
    lowers the flag of a reactor that stands still, for which somebody then waits without end. `clear` returns here when the
    reactor stands still or has ended, and `Steady` asks for no flag.
    """

    def __init__(self, assoc: Any) -> None:
        self._assoc, self._changed = assoc, threading.Condition()
        self._open, self._standing = True, False

    def set(self) -> None:
        """Let the reactor go on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Called by the reactor in every round: stand still here until it may go on."""
        with self._changed:
            self._standing = not self._open
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open)
            self._standing = False

    def clear(self) -> None:
        """Stop the reactor. RuntimeError where it does not stop in time, so that nobody waits for it without end."""
        with self._changed:
            self._open = False
            if threading.current_thread() is self._assoc:
                return
            deadline_s = time.monotonic() + _STOP_S
            while not self._standing and self._assoc.is_alive():
                if time.monotonic() > deadline_s:
                    raise RuntimeError("the association's reactor does not stop")
                self._changed.wait(0.02)
        if not self._assoc.is_alive():  # nothing will come any more
            self._assoc.dimse.msg_queue.put((None, None))


class Steady(Association):  # type: ignore[misc]
    """An association whose reactor is paused when its `Checkpoint` has said so."""

    @property
    def _is_paused(self) -> bool:
        return True

    @_is_paused.setter
    def _is_paused(self, value: bool) -> None:
        """What pynetdicom's threads say of each other."""


def _steady(assoc: Any, thread: Any) -> None:
    """Have a thread of pynetdicom end its association where an exception would end the thread: a peer can bring that about
    (data before the association is accepted), and nobody would close the connection then. Whatever ends the one that reads,
    who waits for an answer hears of it."""
    run = thread.run

    def steady() -> None:
        try:
            run()
        except Exception:
            negotiated = assoc.dul.state_machine.current_state not in ("Sta1", "Sta2")
            assoc.dul.kill_dul()
            assoc.dul.socket.hang_up()
            if thread is not assoc.dul:
                assoc.dimse.msg_queue.put((None, None))
            elif negotiated:
                end = A_P_ABORT()
                end.provider_reason = 0
                assoc.dul.to_user_queue.put(end)
        if thread is assoc.dul:
            assoc.dimse.msg_queue.put((None, None))

    thread.run = steady


def limit(assoc: Any, messages: LimitedMessages, *, maximum_pdu_bytes: int, timeout_s: float) -> None:
    """Put an association that has its socket and has not begun under limits."""
    guarded = CappedSocket(assoc.dul.socket, maximum_pdu_bytes=maximum_pdu_bytes, timeout_s=timeout_s)
    assoc.dul.socket = guarded
    assoc.dul.to_provider_queue = PacedQueue(assoc.dul)
    assoc.dimse = messages
    assoc.__class__, assoc._reactor_checkpoint = Steady, Checkpoint(assoc)
    assoc.dul.artim_timer = SteadyTimer(assoc.dul.artim_timer.timeout)
    assoc.dul._idle_timer = SteadyTimer(assoc.dul._idle_timer.timeout)
    for thread in (assoc, assoc.dul):
        _steady(assoc, thread)


def is_limited(assoc: Any) -> bool:
    """Whether `limit` is in force."""
    parts = (assoc, Steady), (assoc.dul.socket, CappedSocket), (assoc.dimse, LimitedMessages)
    return all(isinstance(part, kind) for part, kind in parts) and isinstance(assoc._reactor_checkpoint, Checkpoint)


def prove() -> None:
    """Raise InternalError where the installed pynetdicom reads past the cap: a PDU of 4 GB is declared to it."""
    near, far = socket.socketpair()
    with near, far:
        assoc = SimpleNamespace(network_timeout=1.0)
        assoc.dul = DULServiceProvider(assoc)
        plain = AssociationSocket(assoc, client_socket=near)
        assoc.dul.socket = CappedSocket(plain, maximum_pdu_bytes=4096, timeout_s=1.0)
        assoc.dul.event_queue.get(block=False)  # the connection's own announcement
        far.sendall(b"\x04\0\xff\xff\xff\xff" + bytes(1024))
        far.shutdown(socket.SHUT_WR)
        with contextlib.suppress(Exception):
            assoc.dul._read_pdu_data()
        events = list(assoc.dul.event_queue.queue)
        far.settimeout(0.1)
        heard = b""
        with contextlib.suppress(OSError):
            heard = far.recv(16)
    if events != ["Evt17"] or heard != _ABORT:
        what = "the installed pynetdicom does not keep to the limits that this program relies on"
        raise InternalError("internal", what, got=f"pynetdicom {pynetdicom.__version__}", wanted="pynetdicom 3.0")
