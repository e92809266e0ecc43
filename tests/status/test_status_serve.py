"""The page of a service at work: it answers meanwhile, it ends with it, and neither is the other's trouble."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from qsm_edge import cli
from qsm_edge.errors import ResourceError, UsageError
from qsm_edge.listen import Settings as Network
from qsm_edge.listen import serve as listen
from qsm_edge.send import Destination, send
from qsm_edge.serve import Parts, default_parts, page_of, serve
from qsm_edge.spool import opened
from qsm_edge.spool.config import Site, Table, Watch, load
from qsm_edge.status import Board, Settings, http
from qsm_edge.status.board import LOOK_PATIENCE_S
from tests import dicom_factory
from tests.orthanc_server import free_ports
from tests.spool.spool_world import Archive, check_agreement, fake_run, hand_in, parts, site, states
from tests.spool.studies import contents
from tests.status.exposition import parse
from tests.status.status_world import PATIENCE_S, Answer, ask, said


@dataclass
class Service:
    """A service in a thread of its own, with its page."""

    port: int
    thread: threading.Thread
    stop: threading.Event
    told: list[str] = field(default_factory=list)

    def health(self) -> Answer:
        return ask(self.port, "/health")

    def problems(self) -> dict[str, str]:
        return {problem["part"]: problem["code"] for problem in self.health().json["problems"]}


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


@contextlib.contextmanager
def at_work(made: Site, its_parts: Parts) -> Iterator[Service]:
    """Run the service until the end of the block."""
    (port,) = free_ports(1)
    page = its_parts.page or page_of(made, Table({"port": port}), its_parts.board, lambda event, facts: None)
    told: list[str] = []
    stop = threading.Event()
    run = threading.Thread(
        target=serve,
        args=(made, replace(its_parts, page=page)),
        kwargs={"stop": stop, "log": lambda event, facts: told.append(event)},
    )
    service = Service(port, run, stop, told)
    run.start()
    try:
        until(lambda: "serving" in told)
        yield service
    finally:
        stop.set()
        run.join(PATIENCE_S)
        assert not run.is_alive()


def test_it_answers_during_a_long_reconstruction_and_ends_with_the_service(tmp_path):
    made = site(tmp_path, "pacs")
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    with at_work(made, parts(made, fake_run("--sleep", "300"), pacs=Archive())) as service:
        until(lambda: "started" in service.told)
        for _ in range(3):
            health = service.health()
            assert health.status == 200
            assert health.json["parts"]["worker"] == health.json["parts"]["sender to pacs"] == "alive"
        until(lambda: "reconstructing for" in ask(service.port).text)
        told = parse(ask(service.port, "/metrics").text)
        assert told["qsm_edge_jobs"].value(state="working") == 1
        until(lambda: min(_memory(service.port)) > 1_000_000)
        idle = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S)
        service.stop.set()
        service.thread.join(PATIENCE_S)
    with idle:
        assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        service.health()
    assert service.told[-2:] == ["requeued", "stopped"]
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["ready"]
        check_agreement(spool)


def _memory(port: int) -> tuple[float, float]:
    told = parse(ask(port, "/metrics").text)["qsm_edge_resident_memory_bytes"]
    return told.value(process="service"), told.value(process="reconstructions")


def _received(port: int) -> float:
    return parse(ask(port, "/metrics").text)["qsm_edge_instances_received_total"].value(door="c-store")


def test_requests_of_any_kind_leave_the_service_at_its_work(tmp_path):
    made, archive = site(tmp_path, "pacs"), Archive()
    with at_work(made, parts(made, pacs=archive)) as service, contextlib.ExitStack() as stack:
        for _ in range(40):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S))
            slow.sendall(b"GET / HTTP/1.1\r\nHost:")
        for bad in (b"\0" * 9000, b"GET http://evil/ HTTP/1.1\r\nHost: evil\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"):
            assert said(service.port, bad).status >= 400
        with opened(made.spool.folder) as spool:
            hand_in(spool, contents())
        until(lambda: len(archive.received) == 3)
        assert service.health().status == 200
        until(lambda: "pacs has it" in ask(service.port).text)
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done"]
        check_agreement(spool)


def test_a_sender_that_has_ended_is_told(tmp_path, monkeypatch):
    made, ended = site(tmp_path, "pacs", "web"), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: ended.set())

    def ends(files):
        raise KeyboardInterrupt  # what no thread of a service is to meet

    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    its_parts = replace(parts(made), senders={"pacs": Archive(), "web": ends})
    with at_work(made, its_parts) as service:
        assert ended.wait(PATIENCE_S)
        until(lambda: service.problems() == {"sender to web": "part_stopped"})
        assert service.health().status == 503
        assert service.health().json["parts"]["sender to pacs"] == "alive"
        assert "The service needs help" in ask(service.port).text


@pytest.mark.parametrize(("seconds", "stalled"), [(LOOK_PATIENCE_S - 60, ""), (LOOK_PATIENCE_S + 1, "reader")])
def test_each_look_has_its_own_time(tmp_path, seconds, stalled):
    """Three studies that take that long each, one after the other in one step of the loop."""
    made, clock, seen = site(tmp_path), [0.0], []
    board = Board(lambda: clock[0])
    with opened(made.spool.folder) as spool:
        for name in ("a", "b", "c"):
            hand_in(spool, contents(name=name))
    its_parts = replace(parts(made), board=board)

    def read(folder):
        clock[0] += seconds
        seen.append(board.seen().stalled)
        return its_parts.read(folder)

    assert serve(made, replace(its_parts, read=read), once=True) == 0
    assert seen == [stalled] * 3
    assert board.seen().stalled == ""


def test_a_step_without_room_is_told_until_there_is_some(tmp_path):
    made, room = site(tmp_path), threading.Event()
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    its_parts = parts(made)

    def read(folder):
        if not room.is_set():
            raise ResourceError("out_of_disk")
        return its_parts.read(folder)

    with at_work(made, replace(its_parts, read=read)) as service:
        until(lambda: service.problems() == {"reader": "out_of_disk"})
        room.set()
        until(lambda: service.problems() == {})


def test_a_watched_folder_that_is_gone_is_told_until_it_is_back(tmp_path):
    watched = tmp_path / "in"
    made = site(tmp_path, watch=(Watch(watched, still_s=0.0, every_s=0.1),))
    with at_work(made, parts(made)) as service:
        until(lambda: service.problems() == {"watched folder 1": "watch_missing"})
        assert service.health().status == 503
        watched.mkdir()
        until(lambda: service.problems() == {})
        (watched / "a.txt").write_text("this is no DICOM")
        until(lambda: "turned_away" in service.told)
        (refused,) = parse(ask(service.port, "/metrics").text)["qsm_edge_instances_refused_total"].samples.items()
        assert (dict(refused[0][1]), refused[1]) == ({"door": "folder", "code": "not_dicom"}, 1)


def test_a_listener_that_has_ended_is_told(tmp_path):
    made, listener = site(tmp_path), SimpleNamespace(is_alive=True)
    its_parts = replace(parts(made), listener=lambda spool: contextlib.nullcontext(listener))
    with at_work(made, its_parts) as service:
        assert service.health().json["parts"]["listener"] == "alive"
        listener.is_alive = False
        assert service.problems() == {"listener": "part_stopped"}


def test_a_real_listener_knows_whether_it_lives(tmp_path):
    with listen(
        Network(port=0, any_calling_ae_title=True), tmp_path, lambda part, origin: None, lambda line: None
    ) as one:
        assert one.is_alive
    assert not one.is_alive


def test_less_room_than_the_doors_want_is_told(tmp_path):
    made = site(tmp_path)
    made = replace(made, spool=replace(made.spool, min_free_mb=10_000_000))
    with at_work(made, parts(made)) as service:
        assert service.problems() == {"disk": "out_of_disk"}


def test_a_page_that_cannot_be_made_leaves_health_and_service(tmp_path):
    made = site(tmp_path)
    with at_work(made, parts(made)) as service:
        assert ask(service.port).status == 200
        ledger = made.spool.folder / "ledger.sqlite"
        ledger.rename(ledger.with_name("elsewhere"))
        until(lambda: ask(service.port).status == 500)
        until(lambda: service.problems() == {"ledger": "ledger_unwritable"})
        ledger.with_name("elsewhere").rename(ledger)
        until(lambda: ask(service.port).status == 200)
        until(lambda: service.health().status == 200)


def test_a_port_that_is_taken_stops_the_service_before_it_begins(tmp_path):
    (port,) = free_ports(1)
    made = site(tmp_path)
    page = page_of(made, Table({"port": port}), parts(made).board, lambda event, facts: None)
    with (
        http.serve(Settings(port=port), {}),
        pytest.raises(UsageError) as caught,
    ):
        serve(made, replace(parts(made), page=page), stop=threading.Event())
    assert caught.value.code == "bad_call"


def test_once_serves_no_page_and_a_site_without_the_table_has_none(tmp_path, capsys):
    (port,) = free_ports(1)
    config = tmp_path / "site.toml"
    plain = '[spool]\nfolder = "spool"\nquiet_s = 0\nmin_free_mb = 0\n'
    config.write_text(plain)
    assert default_parts(load(config), lambda event, facts: None).page is None
    config.write_text(plain + f"[status]\nport = {port}\n")
    assert default_parts(load(config), lambda event, facts: None).page is not None
    assert cli.main(["serve", "--config", str(config), "--check"]) == 0
    assert f"page 127.0.0.1 port {port}" in capsys.readouterr().out
    assert cli.main(["serve", "--once", "--config", str(config)]) == 0
    assert "status_page" not in capsys.readouterr().err


def test_the_service_of_a_configuration_hears_its_own_doors(tmp_path):
    """The listener's lines reach the page's counts, through the parts that `serve` is given."""
    config = Path(tmp_path / "site.toml")
    port, network = free_ports(2)
    config.write_text(
        f'[spool]\nfolder = "spool"\nmin_free_mb = 0\n[status]\nport = {port}\n'
        f'[listen]\nport = {network}\ncalling_ae_titles = ["SCANNER"]\n'
    )
    made, told = load(config), []
    its_parts = default_parts(made, lambda event, facts: told.append((event, dict(facts))))
    assert its_parts.page is not None
    with at_work(made, its_parts) as service:
        assert service.told[0] == "recovered"
        assert ("status_page", {"address": "127.0.0.1", "port": port}) in told
        assert ask(port, "/health").json["parts"]["listener"] == "alive"
        images = dicom_factory.write(dicom_factory.scan()[:3], tmp_path / "images")
        scanner = Destination(
            host="127.0.0.1", port=network, called_ae_title="QSMEDGE", calling_ae_title="SCANNER", commitment="no"
        )
        sent = send(sorted(images.iterdir()), scanner)
        assert [one.outcome for one in sent] == ["stored"] * 3
        until(lambda: _received(port) == 3)
