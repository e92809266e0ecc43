"""What is not stored is not acknowledged, and each refusal has its status and its reason code."""

from __future__ import annotations

import errno
import os
import threading

import network_world as world_of
import pytest
from network_world import associated, image, listening
from pydicom.uid import SegmentationStorage

from qsm_edge.errors import InputRefused, InternalError, ResourceError

ERRORS = [
    (ResourceError("out_of_disk"), 0xA700, "out_of_disk"),
    (OSError(errno.ENOSPC, "full"), 0xA700, "out_of_disk"),
    (InputRefused("corrupt_header", "PatientName Mustermann"), 0xC000, "corrupt_header"),
    (InternalError("internal"), 0x0110, "internal"),
    (ZeroDivisionError("Mustermann"), 0x0110, "internal"),
    (OSError(errno.EIO, "Mustermann"), 0x0110, "internal"),
]


def test_what_is_not_stored_is_not_acknowledged_and_what_comes_after_it_is_taken(tmp_path):
    raised = iter([error for error, _, _ in ERRORS])

    def refuse(part, origin):
        assert part.is_file()
        error = next(raised, None)
        if error is not None:
            raise error

    with listening(tmp_path) as world:
        world.on_store = refuse
        assoc = associated(world.port)
        for _, status, comment in ERRORS:
            answer = assoc.send_c_store(image())
            assert (answer.Status, answer.ErrorComment) == (status, comment)
            assert list(world.incoming.iterdir()) == []
        assert assoc.send_c_store(image()).Status == 0
        assoc.release()
        told = [("refused", f"0x{status:04X} {comment}") for _, status, comment in ERRORS]
        assert world.outcomes("received") == [*told, ("stored", "")]


def test_a_line_of_the_audit_trail_that_cannot_be_written_is_no_acknowledgement(tmp_path):
    def full(line):
        raise OSError(errno.ENOSPC, "full")

    with listening(tmp_path, audit=full) as world:
        assoc = associated(world.port)
        assert assoc.send_c_store(image()).Status == 0x0110
        assoc.release()


def test_the_answer_waits_for_the_store(tmp_path):
    reached, go = threading.Event(), threading.Event()

    def wait(part, origin):
        reached.set()
        assert go.wait(20)

    with listening(tmp_path) as world, world_of.connected(world.port, 0.5) as connection:
        world.on_store = wait
        connection.sendall(world_of.associate_rq())
        assert world_of.answer(connection)[0] == 2
        connection.sendall(world_of.pdv(3, world_of.store_rq()) + world_of.pdv(2, b"1234"))
        assert reached.wait(20)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        go.set()
        connection.settimeout(20)
        assert world_of.status_of(world_of.answer(connection)[1]) == 0


def test_a_disk_that_is_full_while_a_dataset_comes_is_told_and_the_association_lives(tmp_path, monkeypatch):
    from qsm_edge.listen import receive

    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with listening(tmp_path) as world:
        assoc = associated(world.port)
        with monkeypatch.context() as patch:
            patch.setattr(receive.Part, "_begin", full)
            assert assoc.send_c_store(image(1)).Status == 0xA700
        assert assoc.send_c_store(image(2)).Status == 0
        assoc.release()


def test_an_instance_beyond_the_limit_is_refused_and_the_next_one_taken(tmp_path):
    with listening(tmp_path, maximum_instance_bytes=4096) as world:
        assoc = associated(world.port)
        answer = assoc.send_c_store(image(1, side=64))
        assert (answer.Status, answer.ErrorComment) == (0xC000, "too_large")
        assert assoc.send_c_store(image(2, side=16)).Status == 0
        assoc.release()
        assert list(world.stored) == [image(2).SOPInstanceUID]


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2." + "3" * 70, "", "CON", "1..2", "1.02"])
def test_an_instance_whose_uid_is_none_is_refused(tmp_path, uid):
    with listening(tmp_path) as world, world_of.connected(world.port) as connection:
        connection.sendall(world_of.associate_rq())
        assert world_of.answer(connection)[0] == 2
        connection.sendall(world_of.pdv(3, world_of.store_rq(sop_instance=uid)) + world_of.pdv(2, b"1234"))
        kind, body = world_of.answer(connection)
        if kind == 4:
            assert world_of.status_of(body) == 0xC000
            assert b"unsafe_uid" in body
        else:
            assert kind in (0, 7)  # pynetdicom takes neither an empty nor an overlong one for a request at all
        assert world.stored == {}


def test_an_instance_of_another_class_than_was_negotiated_is_refused(tmp_path):
    with listening(tmp_path) as world, world_of.connected(world.port) as connection:
        connection.sendall(world_of.associate_rq())
        assert world_of.answer(connection)[0] == 2
        rq = world_of.store_rq(sop_class=SegmentationStorage)
        connection.sendall(world_of.pdv(3, rq) + world_of.pdv(2, b"1234"))
        assert world_of.status_of(world_of.answer(connection)[1]) == 0x0122
        assert world.stored == {}
