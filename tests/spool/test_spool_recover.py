"""After a crash at any named point: the ledger is right, and the folders are made to agree; a second time changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import threading
import time

import pytest

from qsm_edge.errors import UsageError
from qsm_edge.spool import opened
from qsm_edge.spool.folders import build, serving
from qsm_edge.spool.ledger import Ledger
from qsm_edge.spool.recover import recover
from tests.spool.spool_world import Archive, check_agreement, hand_in, parts, site, states, work_off
from tests.spool.studies import contents


@pytest.fixture
def night(tmp_path):
    """A spool with a study done and delivered, and one that was just received."""
    made = site(tmp_path, "pacs")
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents(name="a"))
    work_off(made, parts(made, pacs=Archive()))
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents("philips_enhanced", name="b"))
        yield made, spool


def _again(spool) -> None:
    """What is put right stays right."""
    check_agreement(spool)
    second = recover(spool)
    assert (second.parts, second.adopted, second.deleted, second.requeued, second.missing) == (0, 0, 0, 0, [])
    check_agreement(spool)


def test_a_part_that_nobody_was_told_of_goes(night):
    _, spool = night
    (spool.folder("incoming") / "0123.part").write_bytes(contents()[0][:700])
    assert recover(spool).parts == 1
    _again(spool)


def test_a_file_that_was_renamed_and_not_yet_entered_is_adopted_and_reconstructed(night):
    made, spool = night
    with spool.ledger.transaction() as db:
        (row,) = db.execute("SELECT i.* FROM instances i JOIN studies s USING (study) WHERE s.looked = 0")
        db.execute("DELETE FROM instances WHERE name = ?", (row["name"],))
        db.execute("DELETE FROM studies WHERE study = ?", (row["study"],))
    assert recover(spool).adopted == 1
    (again,) = spool.ledger.rows("SELECT * FROM instances WHERE name = ?", (row["name"],))
    known = ("name", "sop", "series", "study", "size", "sop_class", "syntax", "state")
    assert [again[key] for key in known] == [row[key] for key in known]
    _again(spool)
    assert work_off(made, parts(made, pacs=Archive())) == 0
    assert states(spool) == ["done", "done"]


def test_what_bears_no_instances_name_is_not_adopted(night):
    _, spool = night
    (study, *_) = spool.folder("held").iterdir()
    (study / "0123-4567.dcm").write_bytes(contents("ge_real_imaginary")[0])
    (study / "x.part").write_bytes(b"")
    (spool.folder("held") / "stray").write_bytes(b"")
    assert recover(spool).adopted == 0
    _again(spool)


def test_a_job_that_was_at_work_is_ready_again_without_what_it_had_made(night):
    made, spool = night
    archive = Archive()
    assert work_off(made, parts(made, pacs=archive)) == 0
    (row,) = spool.ledger.rows("SELECT * FROM jobs ORDER BY created_s DESC LIMIT 1")
    with spool.ledger.transaction() as db:  # as it was before the results were entered
        db.execute("DELETE FROM deliveries WHERE job = ?", (row["job"],))
        db.execute("DELETE FROM results WHERE job = ?", (row["job"],))
        db.execute("UPDATE jobs SET state = 'working' WHERE job = ?", (row["job"],))
    os.rename(spool.job("done", row["job"]), spool.job("working", row["job"]))
    assert recover(spool).requeued == 1
    assert states(spool) == ["done", "ready"]
    _again(spool)
    again = Archive()
    assert work_off(made, parts(made, pacs=again)) == 0
    assert again.received.keys() == archive.received.keys()
    _again(spool)


@pytest.mark.parametrize("seen", ["not moved", "both"])
def test_a_result_that_was_entered_is_put_in_its_place_and_not_made_again(night, seen):
    _, spool = night
    (row,) = spool.ledger.rows("SELECT * FROM jobs")
    done = spool.job("done", row["job"])
    before = {path.name: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    attempt = spool.job("working", row["job"]) / "0123"
    shutil.copytree(done / "out", attempt / "in")
    if seen == "not moved":  # a disk that forgot a rename; else what the attempt had besides was not yet taken away
        os.rename(done, attempt / "whole")
    assert recover(spool).requeued == 0
    _again(spool)
    assert {path.name: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_folders_that_the_ledger_does_not_know_go(night):
    _, spool = night
    for state in ("ready", "working", "done", "refused", "failed"):
        (spool.folder(state) / "f00" / "in").mkdir(parents=True)
        (spool.folder(state) / ".gone-f00").mkdir()
    assert recover(spool).deleted == 10
    _again(spool)


def test_a_ready_job_without_its_folder_gets_it_back(night):
    _, spool = night
    with spool.ledger.transaction() as db:
        db.execute("DELETE FROM deliveries")
        db.execute("DELETE FROM results")
        db.execute("UPDATE jobs SET state = 'ready'")
    (row,) = spool.ledger.rows("SELECT * FROM jobs")
    shutil.rmtree(spool.job("done", row["job"]))
    recover(spool)
    assert len(list((spool.job("ready", row["job"]) / "in").iterdir())) == len(contents(name="a"))
    _again(spool)


def test_an_instance_whose_file_is_gone_is_told_of_holds_up_nobody_and_may_come_again(night):
    made, spool = night
    (row, *_) = spool.ledger.rows("SELECT i.* FROM instances i JOIN studies USING (study) WHERE looked > 0")
    spool.instance(row["study"], row["name"]).unlink()
    with spool.ledger.transaction() as db:
        db.execute("UPDATE studies SET hurry = 1")
    assert recover(spool).missing == [row["name"]]
    assert work_off(made, parts(made, pacs=Archive())) == 3
    assert states(spool) == ["done", "done"]
    assert states(spool, "findings") == ["held"]
    hand_in(spool, contents(name="a"))
    assert recover(spool).missing == []
    check_agreement(spool)


def test_a_job_that_brings_the_service_down_goes_behind_the_others(night):
    _, spool = night
    with spool.ledger.transaction() as db:
        db.execute("DELETE FROM deliveries")
        db.execute("DELETE FROM results")
        db.execute("UPDATE jobs SET state = 'working', interruptions = 3")
    recover(spool, retry_s=10.0)
    (row,) = spool.ledger.rows("SELECT interruptions, not_before_s - changed_s AS wait_s FROM jobs")
    assert row["interruptions"] == 4
    assert row["wait_s"] >= 80.0


def test_one_service_works_on_a_spool(tmp_path):
    with serving(tmp_path):
        with pytest.raises(UsageError) as caught, serving(tmp_path):
            pass
        assert caught.value.code == "bad_call"
    with serving(tmp_path):
        pass


def test_a_transaction_is_all_or_nothing_and_outlives_the_connection(tmp_path):
    ledger = Ledger(tmp_path / "l")
    with contextlib.suppress(ZeroDivisionError), ledger.transaction() as db:
        db.execute("INSERT INTO studies (study, arrivals, received_s) VALUES ('a', 1, 0)")
        raise ZeroDivisionError
    with ledger.transaction() as db:
        db.execute("INSERT INTO studies (study, arrivals, received_s) VALUES ('b', 1, 0)")
    assert ledger.rows("PRAGMA journal_mode")[0][0] == "wal"
    assert ledger.rows("PRAGMA synchronous")[0][0] == 2
    ledger.close()
    again = Ledger(tmp_path / "l")
    assert [row["study"] for row in again.rows("SELECT study FROM studies")] == ["b"]
    again.close()


def test_the_ledger_takes_no_state_that_is_not_drawn(tmp_path):
    ledger = Ledger(tmp_path / "l")
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction() as db:
        db.execute(
            "INSERT INTO jobs (job, study, state, memory_bytes, created_s, changed_s) VALUES ('a','b','lost',1,0,0)"
        )
    ledger.close()


def test_a_ledger_of_another_version_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "l")
    with ledger.transaction() as db:
        db.execute("PRAGMA user_version = 99")
    ledger.close()
    with pytest.raises(UsageError) as caught:
        Ledger(tmp_path / "l")
    assert caught.value.code == "bad_value"


def test_a_folder_is_built_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(FileNotFoundError):
        build(tmp_path / "job", [tmp_path / "a", tmp_path / "gone"])
    assert not (tmp_path / "job").exists()
    build(tmp_path / "job", [tmp_path / "a"])
    assert (tmp_path / "job" / "in" / "a").read_bytes() == b"a"


@pytest.mark.skipif(os.name == "nt", reason="permissions are another matter on Windows")
def test_the_spool_is_private_to_its_user(tmp_path):
    with opened(tmp_path / "spool") as spool:
        assert {path.stat().st_mode & 0o077 for path in (spool.root, *map(spool.folder, ("held", "done")))} == {0}


def _at_once(ledger, acts) -> list[BaseException | None]:
    """Have every act wait for the ledger at the same time; returns what each of them raised."""
    told: list[BaseException | None] = [None] * len(acts)

    def call(number: int) -> None:
        try:
            ledger.together(acts[number])
        except Exception as error:
            told[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(acts))]
    with ledger._lock:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while len(ledger._turns) < len(acts):
            assert time.monotonic() < end
            time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    return told


def _remembering(name: str, folder, fails: bool = False):
    def act(db):
        db.execute("INSERT INTO watched VALUES (?, 1, 1, '')", (name,))
        if fails:
            raise OSError(errno.ENOSPC, "no room for this one")
        return folder

    return act


def test_who_waits_together_shares_one_flush_and_an_act_that_fails_undoes_nobody_else_s(tmp_path):
    with opened(tmp_path) as spool:
        said: list[str] = []
        spool.ledger._db.set_trace_callback(said.append)
        acts = [_remembering(f"{n}", spool.folder("held"), fails=n == 2) for n in range(5)]
        told = _at_once(spool.ledger, acts)
        assert said.count("COMMIT") == 1
        assert [type(error) for error in told] == [type(None), type(None), OSError, type(None), type(None)]
    with opened(tmp_path) as spool:
        kept = {row["file"] for row in spool.ledger.rows("SELECT file FROM watched")}
        assert kept == {"0", "1", "3", "4"}


def test_where_the_shared_flush_fails_nobody_is_told_that_it_did_not(tmp_path):
    with opened(tmp_path) as spool:
        acts = [_remembering(f"{n}", spool.root / "gone" if n == 1 else None) for n in range(3)]
        told = _at_once(spool.ledger, acts)
        assert [type(error) for error in told] == [FileNotFoundError] * 3
        assert spool.ledger.rows("SELECT file FROM watched") == []
        spool.ledger.together(_remembering("after", None))
        assert len(spool.ledger.rows("SELECT file FROM watched")) == 1
