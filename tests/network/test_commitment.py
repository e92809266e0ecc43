"""Storage commitment: the peer's report, on whichever association it comes, decides; none at all is not a yes."""

from __future__ import annotations

import contextlib
import threading

import pytest
from network_world import files, image, listening
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_role, evt

from qsm_edge import send
from qsm_edge.dicom.messages import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, Report, commitment_report
from qsm_edge.listen import Reports
from qsm_edge.send import Destination


def report_on(request: Dataset, failed: set[str]) -> tuple[int, Dataset]:
    """The event type and information with which a provider reports on a request."""
    d = Dataset()
    d.TransactionUID = request.TransactionUID
    asked = list(request.ReferencedSOPSequence)
    good = [item for item in asked if item.ReferencedSOPInstanceUID not in failed]
    bad = [item for item in asked if item.ReferencedSOPInstanceUID in failed]
    if good:
        d.ReferencedSOPSequence = good
    for item in bad:
        item.FailureReason = 0x0112
    if bad:
        d.FailedSOPSequence = bad
    return (2 if bad else 1), d


@contextlib.contextmanager
def archive(*, offers=True, action_status=0, failed=(), way="same", our_port=0, roles=True, dies=False):
    """A provider of storage and of commitment that reports on the same association, on one of its own, or not at all."""
    threads, answers = [], []

    def on_action(event):
        request = event.action_information
        if dies:
            event.assoc.dul.socket._shutdown_socket()
            return 0x0110, None
        if way != "none" and action_status == 0:
            threads.append(threading.Thread(target=tell, args=(event.assoc, request)))
            threads[-1].start()
        return action_status, None

    def tell(assoc, request):
        kind, information = report_on(request, set(failed))
        if way == "same":
            answers.append(
                assoc.send_n_event_report(information, kind, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
            )
            return
        caller = AE("PEER")
        caller.add_requested_context(STORAGE_COMMITMENT)
        role = [build_role(STORAGE_COMMITMENT, scp_role=True)] if roles else []
        own = caller.associate("127.0.0.1", our_port, ae_title="QSMEDGE", ext_neg=role)
        own._accepted_cx[1]._as_scu = True  # pynetdicom itself would not report without the role
        answers.append(own.send_n_event_report(information, kind, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE))
        own.release()

    ae = AE("ARCHIVE")
    ae.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    if offers:
        ae.add_supported_context(STORAGE_COMMITMENT)
    handlers = [(evt.EVT_C_STORE, lambda event: 0x0000), (evt.EVT_N_ACTION, on_action)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        yield server.server_address[1], answers
    finally:
        for thread in threads:
            thread.join(30)
        server.shutdown()


def to(port: int, commitment: str, wait_s: float = 20.0) -> Destination:
    return Destination(
        host="127.0.0.1", port=port, called_ae_title="ARCHIVE", commitment=commitment, commitment_wait_s=wait_s
    )


def test_a_report_on_the_same_association_commits(tmp_path):
    with archive() as (port, answers):
        sent = send.send(files(tmp_path / "out"), to(port, "required"))
    assert [(one.outcome, one.retry) for one in sent] == [("committed", False)] * 3
    assert answers[0][0].Status == 0


@pytest.mark.parametrize("roles", [True, False], ids=["role", "no role"])
def test_a_report_by_an_association_of_the_peer_s_commits(tmp_path, roles):
    reports = Reports()
    with listening(tmp_path, reports=reports) as world:
        with archive(way="own", our_port=world.port, roles=roles) as (port, answers):
            sent = send.send(files(tmp_path / "out"), to(port, "required"), reports=world.listener.reports)
        assert world.outcomes("commitment") == [("accepted", "3 committed, 0 not")]
    assert [one.outcome for one in sent] == ["committed"] * 3
    assert answers[0][0].Status == 0


@pytest.mark.parametrize("commitment", ["if_offered", "required"])
def test_what_the_report_does_not_commit_is_to_be_sent_again(tmp_path, commitment):
    with archive(failed={image(2).SOPInstanceUID}) as (port, _):
        sent = send.send(files(tmp_path / "out"), to(port, commitment))
    assert [(one.outcome, one.retry) for one in sent] == [("committed", False), ("failed", True), ("committed", False)]
    assert "0x0112" in sent[1].detail


@pytest.mark.parametrize(
    ("options", "wait_s", "words"),
    [({"way": "none"}, 0.3, "no report"), ({"action_status": 0x0213}, 20.0, "0x0213")],
    ids=["silent", "refusing"],
)
def test_no_report_is_stored_at_best_and_failed_where_commitment_is_required(tmp_path, options, wait_s, words):
    (path,) = files(tmp_path / "out", 1)
    with archive(**options) as (port, _):
        (offered,) = send.send([path], to(port, "if_offered", wait_s))
        (required,) = send.send([path], to(port, "required", wait_s))
    assert (offered.outcome, offered.retry, words in offered.detail) == ("stored", False, True)
    assert (required.outcome, required.retry, words in required.detail) == ("failed", True, True)


@pytest.mark.parametrize("commitment", ["if_offered", "required"])
def test_a_peer_that_offers_commitment_and_dies_before_it_is_sent_everything_again(tmp_path, commitment):
    with archive(dies=True) as (port, _):
        sent = send.send(files(tmp_path / "out"), to(port, commitment))
    assert [(one.outcome, one.retry) for one in sent] == [("failed", True)] * 3


def test_a_peer_without_commitment_is_sent_to_only_where_it_is_not_required(tmp_path):
    (path,) = files(tmp_path / "out", 1)
    with archive(offers=False) as (port, _):
        (offered,) = send.send([path], to(port, "if_offered"))
        (required,) = send.send([path], to(port, "required"))
    assert (offered.outcome, offered.detail) == ("stored", "")
    assert (required.outcome, required.retry) == ("refused", False)


def test_a_report_that_nobody_waits_for_is_not_taken(tmp_path):
    request = Dataset()
    request.TransactionUID, request.ReferencedSOPSequence = "1.2.3", []
    with listening(tmp_path) as world:
        caller = AE("PEER")
        caller.add_requested_context(STORAGE_COMMITMENT)
        role = [build_role(STORAGE_COMMITMENT, scp_role=True)]
        assoc = caller.associate("127.0.0.1", world.port, ae_title="QSMEDGE", ext_neg=role)
        nonsense = Dataset()
        nonsense.RetrieveAETitle = "PEER"
        for information, status in ((report_on(request, set())[1], 0x0112), (nonsense, 0x0115)):
            answer, _ = assoc.send_n_event_report(information, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
            assert answer.Status == status
        assoc.release()


def test_we_ask_for_commitment_and_give_none(tmp_path):
    (path,) = files(tmp_path / "out", 1)
    with listening(tmp_path) as world:
        destination = Destination(host="127.0.0.1", port=world.port, called_ae_title="QSMEDGE", calling_ae_title="PEER")
        (sent,) = send.send([path], destination)
    assert (sent.outcome, sent.detail) == ("stored", "commitment refused: 0x0211")


def test_an_instance_that_a_report_names_both_ways_is_not_committed():
    d = Dataset()
    d.TransactionUID = "1.2.3"
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.4"
    d.ReferencedSOPSequence, d.FailedSOPSequence = [item], [item]
    assert commitment_report(d) == Report("1.2.3", frozenset(), {"1.2.4": 0})


def test_reports_meet_whoever_waits_be_they_early_late_or_never():
    reports, report = Reports(), Report("1.2", frozenset({"1"}), {})
    assert not reports.deliver(report)
    reports.expect("1.2")
    assert reports.deliver(report)  # before anybody waits
    assert reports.wait("1.2", 0.0) == report
    assert not reports.deliver(report)  # over
    reports.expect("1.2")
    waiting = threading.Timer(0.1, reports.deliver, [report])
    waiting.start()
    assert reports.wait("1.2", 20.0) == report
    waiting.join()
    reports.expect("1.2")
    assert reports.wait("1.2", 0.01) is None
    assert not reports.deliver(report)
