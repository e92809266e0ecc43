"""What is received is what was sent, to the byte, and it is acknowledged when it is stored and never before."""

from __future__ import annotations

import logging
import threading

import network_world as world_of
import pydicom
import pytest
from network_world import PATIENT, PATIENT_ID, associated, dataset_bytes, files, hashed, image, listening, wait_until
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import build_context

from qsm_edge import listen
from qsm_edge.dicom.uids import IMPLEMENTATION_CLASS_UID
from qsm_edge.errors import UsageError
from qsm_edge.listen.contexts import STORAGE


def stored(port, dataset):
    """The status that pynetdicom's own user of the service gets for a dataset."""
    assoc = associated(port, build_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID))
    assert assoc.is_established
    answer = assoc.send_c_store(dataset)
    assoc.release()
    return answer


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_the_dataset_is_kept_as_it_came_in_a_file_of_its_own(tmp_path, syntax):
    original = image(syntax=syntax)
    path = tmp_path / "sent.dcm"
    with listening(tmp_path) as world:
        original.save_as(path, enforce_file_format=True)
        assoc = associated(world.port, build_context(MRImageStorage, syntax))
        answer = assoc.send_c_store(path)  # in chunks of the file's own bytes, as `configure` has it
        assoc.release()
        assert answer.Status == 0x0000
        content = world.stored[original.SOPInstanceUID]
    assert dataset_bytes(content) == dataset_bytes(path.read_bytes())
    back = pydicom.dcmread(world_of.io.BytesIO(content))
    assert back == original
    meta = back.file_meta
    assert content[:132] == b"\0" * 128 + b"DICM"
    assert (meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID) == (syntax, MRImageStorage)
    assert meta.MediaStorageSOPInstanceUID == original.SOPInstanceUID
    assert (meta.ImplementationClassUID, meta.SourceApplicationEntityTitle) == (IMPLEMENTATION_CLASS_UID, "PEER")
    (origin,) = world.origins
    assert origin == listen.Origin("PEER", "QSMEDGE", "127.0.0.1", MRImageStorage, original.SOPInstanceUID, syntax)


def test_bytes_that_no_parser_would_take_are_kept_as_well(tmp_path):
    with listening(tmp_path) as world, world_of.connected(world.port) as connection:
        connection.sendall(world_of.associate_rq())
        assert world_of.answer(connection)[0] == 2
        garbage = bytes(range(256)) * 50
        connection.sendall(world_of.pdv(3, world_of.store_rq(1)))
        connection.sendall(world_of.pdv(0, garbage[:5000]) + world_of.pdv(0, b"") + world_of.pdv(2, garbage[5000:]))
        assert world_of.status_of(world_of.answer(connection)[1]) == 0
        assert dataset_bytes(world.stored["1.2.3.1"]) == garbage


def test_echo_is_answered(tmp_path):
    with listening(tmp_path) as world:
        assoc = associated(world.port, build_context("1.2.840.10008.1.1"))
        assert assoc.send_c_echo().Status == 0
        assoc.release()


@pytest.mark.parametrize("sop_class", [EnhancedMRImageStorage, SegmentationStorage])
def test_what_comes_along_with_a_study_is_taken(tmp_path, sop_class):
    with listening(tmp_path) as world:
        assert stored(world.port, image(sop_class=sop_class)).Status == 0
        assert world.origins[0].sop_class_uid == sop_class


def test_only_the_classes_and_encodings_of_the_table_are_negotiated(tmp_path):
    raw, lossy = "1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.1.2.4.50"
    with listening(tmp_path) as world:
        contexts = [build_context(raw), build_context(MRImageStorage, lossy)]
        contexts += [build_context(name, RLELossless) for name in STORAGE.values()]
        assoc = associated(world.port, *contexts)
        assert {context.abstract_syntax for context in assoc.accepted_contexts} == set(STORAGE.values())
        rejected = {(context.abstract_syntax, context.result) for context in assoc.rejected_contexts}
        assert rejected == {(raw, 3), (MRImageStorage, 4)}
        assoc.release()


def test_nothing_that_is_written_down_names_the_patient_or_a_uid(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG), listening(tmp_path) as world:
        for path in files(tmp_path / "out"):
            assert stored(world.port, pydicom.dcmread(path)).Status == 0
        with world_of.connected(world.port) as connection:  # and one that ends in an error
            connection.sendall(world_of.associate_rq() + world_of.pdv(3, PATIENT.encode() * 9))
            while world_of.answer(connection)[0]:
                pass
        names = [part.name for part in world.incoming.iterdir()]
    written = "\n".join([caplog.text, *capfd.readouterr(), *names, *map(repr, world.trail)])
    assert len(world.trail) >= 3
    for word in (*PATIENT.split("^"), PATIENT_ID, "1.2.826.0.1.3680043"):
        assert word.lower() not in written.lower()
    line = world.trail[0]
    assert (line.event, line.outcome, line.peer) == ("received", "stored", "127.0.0.1")
    assert (line.calling, line.called) == ("PEER", "QSMEDGE")
    assert line.instance == hashed(image(1).SOPInstanceUID)
    assert len(line.at) == len("2026-01-01T00:00:00Z")


def test_a_graceful_stop_lets_an_association_finish(tmp_path):
    with listening(tmp_path) as world:
        assoc = associated(world.port)
        stopping = threading.Thread(target=world.listener.stop)
        stopping.start()
        wait_until(lambda: not world.listener._thread.is_alive())
        assert assoc.send_c_store(image()).Status == 0
        assoc.release()
        stopping.join(20)
        with pytest.raises(ConnectionError):
            world_of.connected(world.port)


def test_a_stop_ends_who_does_not_finish(tmp_path):
    with listening(tmp_path) as world, world_of.connected(world.port) as connection:
        connection.sendall(world_of.associate_rq())
        assert world_of.answer(connection)[0] == 2
        world.listener.stop(grace_s=0.1)
        assert world_of.answer(connection)[0] in (0, 7)


@pytest.mark.parametrize(
    "options",
    [
        {"ae_title": "SEVENTEEN-LETTERS"},
        {"ae_title": ""},
        {"calling_ae_titles": ("A\\B",)},
        {"bind": "somewhere"},
        {"addresses": ("10.0.0.0/99",)},
        {"maximum_associations": 0},
        {"maximum_pdu_bytes": 1 << 30},
        {"tls_ca": "ca.pem"},
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, options):
    with pytest.raises(UsageError) as caught:
        listen.serve(listen.Settings(**{"port": 0, **options}), tmp_path, print, print)
    assert caught.value.code == "bad_value"


def test_a_port_that_is_taken_is_told(tmp_path):
    with listening(tmp_path) as world, pytest.raises(UsageError) as caught:
        listen.serve(listen.Settings(port=world.port), tmp_path, print, print)
    assert caught.value.code == "bad_call"
