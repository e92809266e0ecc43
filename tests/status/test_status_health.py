"""Health: well only while every part is alive, the ledger takes what is written, and there is room; else reason codes."""

from __future__ import annotations

import contextlib
import threading

import pytest

from qsm_edge.errors import REASONS, InputRefused, ResourceError
from qsm_edge.spool import opened
from qsm_edge.status import Board, health
from qsm_edge.status.board import LOOK_PATIENCE_S, PATIENCE_S
from qsm_edge.status.documents import shared
from tests.spool.spool_world import site
from tests.status.status_world import ask, served


@pytest.fixture
def made(tmp_path):
    made = site(tmp_path, "pacs")
    with opened(made.spool.folder):
        yield made


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def board(clock):
    return Board(lambda: clock[0])


def codes(made, board: Board) -> dict[str, str]:
    """Part and code of what `/health` finds wrong; its status must agree."""
    with served(made, board) as port:
        answer = ask(port, "/health")
    problems = answer.json["problems"]
    assert answer.headers["content-type"] == "application/json"
    assert (answer.status, answer.json["healthy"]) == ((503, False) if problems else (200, True))
    assert all(problem["means"] == REASONS[problem["code"]] and problem["helps"] for problem in problems)
    return {problem["part"]: problem["code"] for problem in problems}


def test_a_service_at_rest_is_well(made, board):
    board.watch("listener", lambda: True)
    with served(made, board) as port:
        answer = ask(port, "/health")
    assert answer.status == 200
    assert answer.json["parts"] == dict.fromkeys(("watcher", "reader", "worker", "listener"), "alive")


@pytest.mark.parametrize(
    ("step", "part", "patience_s"),
    [
        ("watch", "watcher", PATIENCE_S),
        ("look", "reader", LOOK_PATIENCE_S),
        ("start", "worker", PATIENCE_S),
        ("finish", "worker", PATIENCE_S),
        ("purge", "purge", PATIENCE_S),
    ],
)
def test_a_step_that_does_not_come_back_is_named_by_its_part(made, board, clock, step, part, patience_s):
    with board.at(step):
        clock[0] += patience_s
        assert codes(made, board) == {}
        clock[0] += 1
        assert codes(made, board) == {part: "part_stopped"}
        board.beat(step)  # the next study, or the next folder
        assert codes(made, board) == {}
    clock[0] += PATIENCE_S
    assert codes(made, board) == {}
    clock[0] += 1
    assert codes(made, board) == {"worker": "part_stopped"}  # nobody calls any more


def test_a_thread_that_has_ended_is_named(made, board):
    ended: set[str] = set()
    parts = ("listener", "sender to pacs")
    for part in parts:
        board.watch(part, lambda part=part: part not in ended)
    assert codes(made, board) == {}
    for part in parts:
        ended.add(part)
        assert codes(made, board) == {part: "part_stopped"}
        ended.clear()


@pytest.mark.parametrize(
    ("error", "code"), [(ResourceError("out_of_disk"), "out_of_disk"), (OSError("Mustermann"), "internal")]
)
def test_what_a_step_met_is_told_until_it_goes_well(made, board, error, code):
    with pytest.raises(type(error)), board.at("look"):
        raise error
    with board.at("watch"):
        pass
    assert codes(made, board) == {"reader": code}
    with board.at("look"):
        pass
    assert codes(made, board) == {}


def test_a_ledger_that_another_holds_or_that_is_gone_cannot_be_written(made):
    root = made.spool.folder
    assert health.prove_written(root) == ""
    with opened(root) as spool:
        with spool.ledger.transaction():
            assert health.prove_written(root, patience_s=0.1) == "SQLITE_BUSY"
        assert health.prove_written(root, patience_s=0.1) == ""
    moved = root / "ledger.sqlite"
    moved.rename(root / "elsewhere")
    assert health.prove_written(root) == "SQLITE_CANTOPEN"
    assert not moved.exists()


def test_what_is_no_ledger_is_not_written_to(tmp_path):
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(b"this is no ledger, and long enough to be looked at" * 40)
    before = file.read_bytes()
    assert health.prove_written(tmp_path) == "SQLITE_NOTADB"
    assert file.read_bytes() == before


def test_the_check_tells_what_the_ledger_says(made, board):
    assert codes(made, board) == {}
    with opened(made.spool.folder) as spool, spool.ledger.transaction():
        assert codes(made, board) == {"ledger": "ledger_unwritable"}


def test_the_proof_is_a_write_that_changes_nothing(made):
    root = made.spool.folder
    with opened(root) as spool:
        log = root / "ledger.sqlite-wal"
        before, said = log.stat().st_size, list(spool.ledger._db.iterdump())
        assert health.prove_written(root) == ""
        assert log.stat().st_size > before
        assert list(spool.ledger._db.iterdump()) == said
        assert spool.ledger.rows("PRAGMA user_version")[0][0] == 1


def test_less_room_than_the_doors_want_is_not_well(made, board):
    seen, root = board.seen(), made.spool.folder
    free = health.free_bytes(root)
    assert health.examine(seen, root, free // 2, str).is_well
    found = health.examine(seen, root, 2 * free, str)
    assert [(problem.code, problem.part) for problem in found.problems] == [("out_of_disk", "disk")]


def test_many_who_ask_cost_one_look_and_a_look_that_hangs_holds_up_its_own_only():
    calls, hanging, freed = [], threading.Event(), threading.Event()

    def make() -> str:
        calls.append(1)
        if len(calls) == 2:
            hanging.set()
            freed.wait(60)
        return f"made {len(calls)}"

    once = shared(make, 3600.0)
    assert [once(), once(), len(calls)] == ["made 1", "made 1", 1]
    given = shared(make, 0.0, meanwhile="stuck", patience_s=0.05)
    first = threading.Thread(target=given)
    first.start()
    assert hanging.wait(60)
    assert given() == "stuck"
    freed.set()
    first.join()
    assert given() == "made 3"


def test_a_look_that_fails_is_made_again():
    turns = iter([InputRefused("no_phase"), None])

    def make() -> str:
        error = next(turns)
        if error:
            raise error
        return "well"

    once = shared(make, 3600.0)
    with contextlib.suppress(InputRefused):
        once()
        raise AssertionError
    assert once() == "well"


def test_memory_is_what_the_system_says():
    with open("/proc/self/status") if _has_proc() else contextlib.nullcontext([]) as said:
        told = [int(line.split()[1]) * 1024 for line in said if line.startswith("VmRSS")]
    if not told:
        assert health.resident_bytes() is None
        return
    got = health.resident_bytes()
    assert got is not None
    assert abs(got - told[0]) < 0.1 * told[0]
    assert health.resident_bytes(2**30) is None


def _has_proc() -> bool:
    try:
        open("/proc/self/status").close()
    except OSError:
        return False
    return True
