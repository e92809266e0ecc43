"""One association's C-STOREs -> part files, fragment by fragment as they come; never an object as a whole in memory."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pynetdicom.dimse_messages import C_STORE_RQ

from qsm_edge.dicom.filemeta import file_head
from qsm_edge.dicom.uids import is_uid
from qsm_edge.errors import InputRefused, InternalError, QsmEdgeError, ResourceError
from qsm_edge.listen.guard import LimitedMessages
from qsm_edge.listen.records import Origin
from qsm_edge.publish import FULL

OUT_OF_RESOURCES, CANNOT_UNDERSTAND, FAILED, NO_SUCH_CLASS = 0xA700, 0xC000, 0x0110, 0x0122
_REQUIRED = ("MessageID", "AffectedSOPClassUID", "AffectedSOPInstanceUID", "Priority")


class WrongClass(Exception):
    """The object is not of the class that its presentation context was negotiated for."""


class Part:
    """A part file that is being written. After a first error it takes what comes and keeps nothing of it."""

    def __init__(self, folder: Path, origin: Origin, limit_bytes: int, refusal: Exception | None = None) -> None:
        self.path = folder / f"{secrets.token_hex(16)}.part"
        self.origin = origin
        self.error = refusal
        self._length, self._limit_bytes = 0, limit_bytes
        self._file: BinaryIO | None = None
        self._do(self._begin)

    def write(self, fragment: memoryview) -> None:
        """Append to the dataset."""
        self._length += len(fragment)
        if self._length > self._limit_bytes:
            self._fail(InputRefused("too_large", wanted=f"at most {self._limit_bytes} bytes"))
        self._do(lambda: self._open_file().write(fragment))

    def close(self) -> None:
        """The file is complete and on the disk when this returns; raises what went wrong since it was begun."""
        if self._length == 0:
            self._fail(InputRefused("empty_file"))
        self._do(self._sync)
        if self.error is not None:
            raise self.error

    def discard(self) -> None:
        """Close and delete, whatever state it is in."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _begin(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self.path, flags, 0o600), "wb", buffering=1 << 18)
        o = self.origin
        self._file.write(file_head(o.sop_class_uid, o.sop_instance_uid, o.transfer_syntax_uid, o.calling_ae_title))

    def _sync(self) -> None:
        file = self._open_file()
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._file = None

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise InternalError("internal", "a part file is written to after its end")
        return self._file

    def _do(self, action: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except OSError as error:
            self._fail(ResourceError("out_of_disk", got=error.strerror) if error.errno in FULL else error)

    def _fail(self, error: Exception) -> None:
        """Keep the first error and give the space back at once."""
        if self.error is None:
            self.error = error
            self.discard()


class Receiver(LimitedMessages):
    """Messages of an association that stores: datasets of C-STORE go to the disk, and one is answered before the next."""

    def __init__(self, assoc: Any, incoming: Path, limit_bytes: int) -> None:
        super().__init__(assoc)
        self.part: Part | None = None
        self._incoming, self._limit_bytes = incoming, limit_bytes
        self._writing = False

    def on_command(self) -> None:
        """Begin a part file where the command is a C-STORE."""
        self._writing = isinstance(self.message, C_STORE_RQ)
        if not self._writing:
            return
        if self.part is not None:
            raise ValueError("a C-STORE before the one before it was answered")
        command = self.message.command_set
        if any(command.get(keyword) in (None, "") for keyword in _REQUIRED):
            raise ValueError("a C-STORE that does not say what it stores")  # pynetdicom would not answer it
        context = self.assoc._accepted_cx[self.message.context_id]
        sop_class, sop_instance = str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID)
        origin = Origin(
            calling_ae_title=str(self.assoc.requestor.ae_title).strip(),
            called_ae_title=str(self.assoc.acceptor.ae_title).strip(),
            address=str(self.assoc.requestor.address_info.address),
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
            transfer_syntax_uid=str(context.transfer_syntax[0]),
        )
        refusal: Exception | None = None
        if not is_uid(sop_instance) or not is_uid(sop_class):
            refusal = InputRefused("unsafe_uid")
        elif sop_class != str(context.abstract_syntax):
            refusal = WrongClass()
        self.part = Part(self._incoming, origin, self._limit_bytes, refusal)

    def of_dataset(self, fragment: bytes) -> bytes:
        """Write a C-STORE's fragment to its part; only the mark of the last one goes on."""
        if not self._writing or self.part is None:
            return fragment
        self.part.write(memoryview(fragment)[1:])
        last = bool(fragment[0] & 2)
        self._writing = not last
        return fragment[:1] if last else b""


def keep(part: Part | None, store: Callable[[Path, Origin], None]) -> tuple[int, str]:
    """Complete a part and have it stored; returns status and reason code of the answer. The part is gone afterwards."""
    if part is None:
        return CANNOT_UNDERSTAND, "empty_file"
    try:
        part.close()
        store(part.path, part.origin)
    except ResourceError as error:
        return OUT_OF_RESOURCES, error.code
    except InputRefused as error:
        return CANNOT_UNDERSTAND, error.code
    except WrongClass:
        return NO_SUCH_CLASS, "corrupt_header"
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            return OUT_OF_RESOURCES, "out_of_disk"
        return FAILED, error.code if isinstance(error, QsmEdgeError) else "internal"
    else:
        return 0x0000, ""
    finally:
        part.discard()
