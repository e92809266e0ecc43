"""A destination that is down, or dies before it has committed itself: each file goes there later, as the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt

from qsm_edge.dicom.messages import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from qsm_edge.spool import opened
from tests import dicom_factory
from tests.orthanc_server import free_ports
from tests.trials import trial_world as world
from tests.trials.fake_series import DESCRIPTION, IMAGES
from tests.trials.night import study_files
from tests.trials.trial_world import Scanner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the service is a process under signals")


@dataclass
class Committing:
    """What an archive was given, in each of its lives: SOP instance UID and digest of the dataset; what it was asked."""

    lives: list[list[tuple[str, str]]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    dead: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def committing(port: int, kept: Committing, *, dies: bool) -> Iterator[None]:
    """An archive that commits itself on the same association, or `dies` when it is asked to, everything stored."""
    threads: list[threading.Thread] = []
    kept.lives.append([])

    def on_store(event):
        digest = hashlib.sha256(event.request.DataSet.getvalue()).hexdigest()
        kept.lives[-1].append((str(event.request.AffectedSOPInstanceUID), digest))
        return 0x0000

    def on_action(event):
        information = event.action_information
        kept.asked.append(len(information.ReferencedSOPSequence))
        if dies:
            event.assoc.dul.socket._shutdown_socket()
            kept.dead.set()
            return 0x0110, None
        threads.append(threading.Thread(target=report, args=(event.assoc, information)))
        threads[-1].start()
        return 0x0000, None

    def report(assoc, information):
        said = Dataset()
        said.TransactionUID, said.ReferencedSOPSequence = (
            information.TransactionUID,
            information.ReferencedSOPSequence,
        )
        with contextlib.suppress(RuntimeError):
            assoc.send_n_event_report(said, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)

    ae = AE("PACS")
    ae.add_supported_context(MRImageStorage, ExplicitVRLittleEndian)
    ae.add_supported_context(STORAGE_COMMITMENT)
    handlers = [(evt.EVT_C_STORE, on_store), (evt.EVT_N_ACTION, on_action)]
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield
    finally:
        for thread in threads:
            thread.join(30)
        server.shutdown()


@pytest.mark.parametrize("commitment", ["required", "if_offered"])
def test_a_pacs_that_dies_between_storing_and_committing_is_sent_the_same_bytes_again(tmp_path, commitment):
    listens, out = free_ports(2)
    lines = f'port = {out}\ncalled_ae_title = "PACS"\ncommitment = "{commitment}"\n'
    config, scanner, kept = world.site_file(tmp_path, listens, lines), Scanner(listens), Committing()
    (files,) = study_files(tmp_path / "out", 1)
    with world.serving(config, 0.0) as service:
        with committing(out, kept, dies=True):
            scanner.send(files)
            assert kept.dead.wait(world.PATIENCE_S)
        world.wait_until(lambda: len(service.events("delivery")) >= 2)  # a try at a time when nobody is there
        with committing(out, kept, dies=False):
            world.wait_until(lambda: world.all_done(tmp_path / "spool", 1))
            time.sleep(2.0)
    first, second = kept.lives
    assert len(first) >= IMAGES
    assert set(first) == set(second)
    assert Counter(second) == Counter(set(second))
    assert kept.asked[-1] == IMAGES
    with opened(tmp_path / "spool") as spool:
        assert {row["outcome"] for row in spool.ledger.rows("SELECT outcome FROM deliveries")} == {"committed"}
    world.check_at_rest(tmp_path / "spool", jobs=1, instances=len(files))


def test_a_pacs_that_is_down_gets_everything_later_and_once(tmp_path):
    listens, out = free_ports(2)
    config = world.site_file(tmp_path, listens, f'port = {out}\ncalled_ae_title = "PACS"\ncommitment = "no"\n')
    scanner = Scanner(listens)
    groups = study_files(tmp_path / "out", 3)
    with world.serving(config, 0.0) as service:
        scanner.send([file for group in groups for file in group], at_a_time=40)
        world.wait_until(lambda: len(service.events("delivery")) >= 6)
        assert {fact.get("failed") for fact in service.events("delivery")} == {IMAGES}
    with world.archive(tmp_path / "pacs", out) as kept, world.serving(config, 0.0):  # and the service was restarted
        world.wait_until(lambda: world.all_done(tmp_path / "spool", 3))
        time.sleep(2.0)
    assert len(kept.given) == 3 * IMAGES
    assert set(kept.counts().values()) == {1}
    world.check_at_rest(tmp_path / "spool", jobs=3, instances=sum(map(len, groups)))


def test_a_pacs_that_has_no_room_for_some_files_gets_those_again_and_no_other(tmp_path):
    from qsm_edge.errors import ResourceError

    listens, out = free_ports(2)
    config = world.site_file(tmp_path, listens, f'port = {out}\ncalled_ae_title = "PACS"\ncommitment = "no"\n')
    scanner, refused = Scanner(listens), []
    (files,) = study_files(tmp_path / "out", 1)

    def answer(uid: str) -> None:
        if len(refused) < 3 and uid not in refused:
            refused.append(uid)
            raise ResourceError("out_of_disk")

    with world.archive(tmp_path / "pacs", out, world.Archive(answer=answer)) as kept, world.serving(config, 0.0):
        scanner.send(files)
        world.wait_until(lambda: world.all_done(tmp_path / "spool", 1))
        time.sleep(2.0)
    assert len(refused) == 3
    assert set(kept.counts().values()) == {1}
    assert len(kept.given) == IMAGES


@pytest.mark.orthanc
def test_an_orthanc_that_is_killed_and_comes_back_has_one_series_of_each_study(tmp_path):
    listens, *ports = free_ports(3)
    lines = f'port = {ports[0]}\ncalled_ae_title = "ORTHANC"\ncommitment = "required"\ncommitment_wait_s = 5.0\n'
    config, scanner = world.site_file(tmp_path, listens, lines), Scanner(listens)
    files = dicom_factory.write(dicom_factory.scan("siemens_classic", name="again"), tmp_path / "out")
    with world.serving(config, 0.0) as service:
        with world.pacs(tmp_path / "orthanc", listens, ports) as server:
            scanner.send(sorted(files.iterdir()), at_a_time=40)
            world.wait_until(lambda: len(server.ask("/instances")) > 0, step_s=0.005)
        world.wait_until(lambda: service.events("delivery"))
        with world.pacs(tmp_path / "orthanc", listens, ports) as server:
            world.wait_until(lambda: world.all_done(tmp_path / "spool", 1))
            (series,) = world.result_series(server, DESCRIPTION).values()
            assert [len(one["Instances"]) for one in series] == [IMAGES]
