"""The service and its children: bounded, ended as a group, stopped without loss, never more than fit into memory."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from dataclasses import replace

import pytest

from qsm_edge import cli
from qsm_edge.errors import ResourceError
from qsm_edge.serve import serve
from qsm_edge.spool import child, complete, opened, work
from qsm_edge.spool.config import Work
from qsm_edge.spool.ledger import Ledger
from qsm_edge.spool.look import look_at
from tests.spool.spool_world import (
    PATIENCE_S,
    Archive,
    check_agreement,
    fake_run,
    hand_in,
    lives,
    parts,
    site,
    states,
    until,
    work_off,
)
from tests.spool.studies import contents

unix = pytest.mark.skipif(os.name == "nt", reason="process groups and limits are another matter on Windows")


def test_a_stop_puts_the_job_back_as_if_it_had_not_begun(tmp_path):
    made, stop, told, running = site(tmp_path, "pacs"), threading.Event(), [], []
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())

    def log(event, facts):
        told.append(event)
        if event == "started":
            running.append(time.monotonic())
            stop.set()

    assert serve(made, parts(made, run=fake_run("--sleep", "300"), pacs=Archive()), stop=stop, log=log) == 0
    assert time.monotonic() - running[0] < PATIENCE_S
    assert told[-2:] == ["requeued", "stopped"]
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT * FROM jobs")
        assert (row["state"], row["attempts"], row["interruptions"]) == ("ready", 0, 0)
        check_agreement(spool)
    archive = Archive()
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert len(archive.received) == 3


def test_a_service_delivers_to_one_destination_while_another_hangs(tmp_path):
    made, stop, archive, freed = site(tmp_path, "hangs", "up"), threading.Event(), Archive(), threading.Event()
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())

    def hangs(files):
        freed.wait(PATIENCE_S)
        return []

    def watch() -> None:
        with contextlib.suppress(AssertionError):
            until(lambda: len(archive.received) == 3)
        stop.set()
        freed.set()

    threading.Thread(target=watch, daemon=True).start()
    assert serve(made, replace(parts(made), senders={"hangs": hangs, "up": archive}), stop=stop) == 0
    assert len(archive.received) == 3


def test_jobs_that_do_not_fit_beside_one_another_run_one_after_the_other(tmp_path):
    made, told = site(tmp_path, work=Work(workers=2, memory_mb=1000)), []
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents(name="a") + contents("philips_classic", name="b"))

    def read(folder):
        found = look_at(folder, lambda acquisition: 600_000_000)
        return found

    its_parts = replace(parts(made), read=read)
    assert serve(made, its_parts, once=True, log=lambda event, facts: told.append(event)) == 0
    assert [event for event in told if event in ("started", "ended")] == ["started", "ended"] * 2


def test_jobs_that_fit_run_beside_one_another(tmp_path):
    made, told = site(tmp_path), []
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents(name="a") + contents("philips_classic", name="b"))
    its_parts = parts(made, run=fake_run("--sleep", "2"))
    assert serve(made, its_parts, once=True, log=lambda event, facts: told.append(event)) == 0
    assert [event for event in told if event in ("started", "ended")] == ["started"] * 2 + ["ended"] * 2


def test_the_reader_in_a_child_says_what_it_says_here_with_an_estimate_of_memory(tmp_path):
    with opened(tmp_path / "spool") as spool:
        hand_in(spool, contents("philips_enhanced"))
        (folder,) = spool.folder("held").iterdir()
        read = complete.reader(child.Limits(8_000_000_000, 600, 600.0), "fast", ())
        found = dict(read(folder))
        here = look_at(folder, lambda acquisition: 1)
    assert found["acquisitions"][0].pop("memory_bytes") > 100_000_000
    assert here["acquisitions"][0].pop("memory_bytes") == 1
    assert found == here


@unix
def test_a_reader_that_may_not_have_the_memory_is_a_finding_and_the_study_stays(tmp_path):
    made = site(tmp_path)
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    starved = replace(parts(made), read=complete.reader(child.Limits(60_000_000, 600, 600.0), "fast", ()))
    assert work_off(made, starved) == 3
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT * FROM findings")
        assert (row["state"], row["code"]) == ("refused", "internal")
        check_agreement(spool)


@unix
def test_a_child_is_ended_with_its_own_children_at_its_wall_clock(tmp_path):
    running = child.start(["/bin/sh", "-c", "sleep 300 & echo $!; wait"], tmp_path / "said", child.Limits(wall_s=1.0))
    assert child.wait(running) is None
    grandchild = int((tmp_path / "said").read_text())
    until(lambda: not lives(grandchild))


@unix
def test_processor_time_is_bounded_too(tmp_path):
    spin = "import sys; from qsm_edge.spool.limits import limit; limit(0, 1)\nwhile True: pass"
    running = child.start([sys.executable, "-c", spin], tmp_path / "said", child.Limits())
    assert child.wait(running) is None
    assert running.process.returncode == -signal.SIGXCPU


def test_the_commands_work_on_what_is_there(tmp_path, capsys):
    config = tmp_path / "site.toml"
    config.write_text('[spool]\nfolder = "spool"\nquiet_s = 0\nmin_free_mb = 0\n[log]\nformat = "json"\n')
    assert cli.main(["serve", "--once", "--config", str(config)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["recovered", "serving", "stopped"]
    assert cli.main(["queue", "list", "--config", str(config)]) == 0
    assert capsys.readouterr().out == "0 studies, 0 jobs\n"
    assert cli.main(["queue", "purge", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["purged"] == []
    assert cli.main(["send", str(tmp_path), "pacs", "--config", str(config)]) == 2
    assert "unknown_name" in capsys.readouterr().err


def test_the_stopped_service_said_so_without_a_word_of_the_patient(tmp_path):
    made, told = site(tmp_path, "pacs"), io.StringIO()
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    work_off(made, parts(made, pacs=Archive()), told)
    events = [json.loads(line)["event"] for line in told.getvalue().splitlines()]
    assert events == ["recovered", "serving", "looked", "started", "ended", "delivery", "stopped"]
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done"]


def test_a_ledger_without_room_for_the_results_loses_the_run_and_not_the_job(tmp_path, monkeypatch):
    made, archive, full = site(tmp_path, "pacs"), Archive(), []
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    results, transaction = work._results, Ledger.transaction

    def results_found(out):
        full.append(True)  # the next transaction is the one that enters them
        return results(out)

    def without_room(ledger):
        if full and full.pop():
            raise ResourceError("out_of_disk")
        return transaction(ledger)

    with monkeypatch.context() as patched:
        patched.setattr(work, "_results", results_found)
        patched.setattr(Ledger, "transaction", without_room)
        assert work_off(made, parts(made, pacs=archive)) == 3
    assert archive.received == {}
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert [len(copies) for copies in archive.received.values()] == [1, 1, 1]
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done"]
        check_agreement(spool)


def test_a_reader_that_is_killed_once_looks_again_and_one_that_always_crashes_is_a_finding(tmp_path):
    """It may have died for its neighbours' memory; nobody is there at night to ask for another look."""
    made, told = site(tmp_path), []
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    killed = {"acquisitions": [], "refused": [], "ignored": [], "crashed": True, "unknown": True}
    answers = iter([killed])
    its_parts = parts(made)
    its_parts = replace(its_parts, read=lambda folder, honest=its_parts.read: next(answers, None) or honest(folder))
    assert serve(made, its_parts, once=True, log=lambda *event: told.append(event)) == 0
    looks = [facts["refused"] for event, facts in told if event == "looked"]
    assert looks == ["crashed", "nothing"]
    with opened(made.spool.folder) as spool:
        assert (states(spool), states(spool, "findings")) == (["done"], [])

    once_more = replace(site(tmp_path / "other"), work=Work(attempts=3, retry_s=0.0))
    with opened(once_more.spool.folder) as spool:
        hand_in(spool, contents())
    crashed = [{**killed, "refused": [{"code": "internal", "text": "", "series": "", "names": []}]}] * 4
    looks = iter(crashed)
    assert serve(once_more, replace(parts(once_more), read=lambda folder: next(looks)), once=True) == 3
    assert len(list(looks)) == 1
    with opened(once_more.spool.folder) as spool:
        assert states(spool, "findings") == ["refused"]


def test_a_ledger_that_somebody_holds_for_too_long_is_waited_for_and_ends_nothing(tmp_path, monkeypatch):
    """A backup, or a person with a shell: the service goes on when they have finished."""
    made, stop, archive, told = site(tmp_path, "pacs"), threading.Event(), Archive(), []
    monkeypatch.setattr("qsm_edge.spool.ledger._BUSY_S", 0.1)
    service = threading.Thread(
        target=serve,
        args=(made, parts(made, pacs=archive)),
        kwargs=dict(stop=stop, log=lambda *event: told.append(event)),
    )
    service.start()
    try:
        until(lambda: "serving" in [event for event, _ in told])
        with contextlib.closing(sqlite3.connect(made.spool.folder / "ledger.sqlite", isolation_level=None)) as other:
            with opened(made.spool.folder) as spool:
                hand_in(spool, contents())
            other.execute("BEGIN EXCLUSIVE")
            until(lambda: [facts for event, facts in told if event == "trouble"])
            assert service.is_alive()
            other.execute("ROLLBACK")
        until(lambda: len(archive.received) == 3)
    finally:
        stop.set()
        service.join(PATIENCE_S)
    assert {facts["errno"] for event, facts in told if event == "trouble" and "errno" in facts} == {errno.EBUSY}
