"""A child whose service was killed: it ends too, and where it does not, no later attempt fails or has anything of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qsm_edge.spool import Spool, child, opened, work
from qsm_edge.spool.complete import look
from qsm_edge.spool.look import look_at
from qsm_edge.spool.recover import recover
from tests.spool.spool_world import check_agreement, fake_run, hand_in, lives, parts, site, states, until, work_off
from tests.spool.studies import contents

ROOT = Path(__file__).resolve().parents[2]
ORPHAN = b"of the orphan"
RESULT = {"out/1/chi/0001.dcm", "out/1/chi/0002.dcm", "out/1/mask.dcm", "out/1/report.html"}
#: When the orphan writes: after its service has ended, once the next one has put things right, while that one's own attempt
#: is at work, and when that is over and not yet entered.
MOMENTS = ("at once", "recovered", "at work", "over")
#: Systems that do not end a process with its parent, as a child finds them.
WITHOUT = ("sys.platform = 'darwin'", "limits._PR_SET_PDEATHSIG = 0")
#: `limits` in a child, with another thing to do than to look at a study: say its number and what standard input holds.
CHILD = """
import os, sys, time
from qsm_edge.spool import limits, look
{system}
def sleep(words):
    print(os.getpid(), repr(sys.stdin.read()), flush=True)
    time.sleep(float(words[0]))
    return 7
look.main = {do}
raise SystemExit(limits.main(["0", "0", "look", *sys.argv[1:]]))
"""
PARENT = """
import sys, time
from pathlib import Path
from qsm_edge.spool import child
running = child.start([sys.executable, "-c", sys.argv[1], "300"], Path(sys.argv[2]), child.Limits())
time.sleep(300)
"""


def _child(system: str, do: str = "sleep") -> str:
    return CHILD.format(system=system, do=do)


def _started(spool: Spool) -> work.Started:
    job, _ = work.next_job(spool, 0, alone=True, now=time.time())
    return work.start(spool, job, fake_run(), child.Limits(wall_s=60.0))


def _orphan_writes(attempt: work.Started) -> None:
    """What a child does that was not ended: it makes its folders, again where they are gone, writes, and says its part."""
    out = attempt.folder / "out"
    for name in ("one", "two"):
        (out / name / "chi").mkdir(parents=True, exist_ok=True)
        for number in (1, 2, 3):
            (out / name / "chi" / f"{number:04d}.dcm").write_bytes(ORPHAN)
    done = [{"folder": str(out / name), "verdict": "orphan"} for name in ("one", "two")]
    attempt.running.said.write_text(json.dumps({"done": done, "refused": [], "failed": []}))


@pytest.fixture
def orphaned(tmp_path):
    """A spool whose service was killed when a child was at work, and the child, whose part the test plays from now on."""
    with opened(tmp_path / "spool") as spool:
        hand_in(spool, contents())
        (study,) = spool.ledger.rows("SELECT study FROM studies")
        assert look(spool, study["study"], lambda folder: look_at(folder, lambda acquisition: 1))
        orphan = _started(spool)
        child.kill(orphan.running)
        yield spool, orphan


def _attempt(spool: Spool, orphan: work.Started, when: tuple[str, ...]) -> str:
    """The next service's attempt at the job, from its start to its end; returns the job's state."""
    writes = {moment: _orphan_writes if moment in when else lambda attempt: None for moment in MOMENTS}
    writes["at once"](orphan)
    assert recover(spool).requeued == 1
    writes["recovered"](orphan)
    mine = _started(spool)
    writes["at work"](orphan)
    assert child.wait(mine.running) == 0
    writes["over"](orphan)
    return work.finish(spool, mine, site(spool.root.parent).work, ())


def _done(spool: Spool, job: str) -> dict[str, bytes]:
    folder = spool.job("done", job)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("when", [MOMENTS, *((moment,) for moment in MOMENTS)], ids="+".join)
def test_an_orphan_neither_fails_the_next_attempt_nor_adds_to_its_result(orphaned, when):
    spool, orphan = orphaned
    assert _attempt(spool, orphan, when) == "done"
    (row,) = spool.ledger.rows("SELECT * FROM jobs")
    assert (row["attempts"], row["interruptions"], row["verdict"]) == (1, 1, "good")
    kept = _done(spool, orphan.job)
    assert kept.keys() == RESULT
    assert ORPHAN not in kept.values()
    assert {row["path"] for row in spool.ledger.rows("SELECT path FROM results")} == RESULT
    check_agreement(spool)


def test_what_an_orphan_writes_after_the_end_is_cleared_by_the_next_start_and_the_result_stays(orphaned):
    spool, orphan = orphaned
    assert _attempt(spool, orphan, ()) == "done"
    before = _done(spool, orphan.job)
    _orphan_writes(orphan)
    assert [path.name for path in spool.folder("working").iterdir()] == [orphan.job]
    assert recover(spool).requeued == 0
    assert list(spool.folder("working").iterdir()) == []
    assert _done(spool, orphan.job) == before
    check_agreement(spool)


def test_an_orphan_of_a_job_that_was_refused_meanwhile_brings_nothing_back(orphaned):
    spool, orphan = orphaned
    assert recover(spool).requeued == 1
    with spool.ledger.transaction() as db:
        db.execute("UPDATE jobs SET state = 'refused', code = 'mask_empty'")
    _orphan_writes(orphan)
    recover(spool)
    assert states(spool) == ["refused"]
    check_agreement(spool)


def test_what_an_attempt_leaves_beside_the_results_that_it_tells_of_is_no_result(orphaned):
    spool, _ = orphaned
    recover(spool)
    mine = _started(spool)
    assert child.wait(mine.running) == 0
    for name in ("stray.dcm", "out/stray.dcm", "out/two/chi/0001.dcm", "out/.one.partial-7/mask.dcm"):
        (mine.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (mine.folder / name).write_bytes(b"stray")
    assert work.finish(spool, mine, site(spool.root.parent).work, ()) == "done"
    assert _done(spool, mine.job).keys() == RESULT
    check_agreement(spool)


def test_where_an_orphan_has_its_folder_open_the_next_attempt_goes_on_beside_it(orphaned, monkeypatch):
    """Windows neither renames nor deletes a folder with an open file in it."""
    spool, orphan = orphaned
    replace, held = os.replace, spool.job("working", orphan.job)

    def refusing(source, target):
        if Path(source) == held:
            raise PermissionError(13, "the folder is in use")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("qsm_edge.spool.folders.os.replace", refusing)
        assert _attempt(spool, orphan, MOMENTS) == "done"
        assert orphan.folder.is_dir()
    assert _done(spool, orphan.job).keys() == RESULT
    recover(spool)
    check_agreement(spool)


def test_every_attempt_at_a_job_has_a_folder_of_its_own_and_none_is_left(tmp_path):
    made, given = site(tmp_path), []

    def run(source: Path, output: Path) -> list[str]:
        assert source.parent == output.parent
        given.append(output.parent)
        return fake_run("--crash")(source, output)

    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    assert work_off(made, parts(made, run=run)) == 3
    assert len(set(given)) == len(given) == made.work.attempts
    with opened(made.spool.folder) as spool:
        assert {folder.parent for folder in given} == {spool.job("working", given[0].parent.name)}
        assert not given[0].parent.exists()
        check_agreement(spool)


def _said(said: Path) -> str:
    """The first line of a child that has begun."""
    until(lambda: said.exists() and "\n" in said.read_text())
    return said.read_text().splitlines()[0]


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9 on Windows")
@pytest.mark.parametrize("system", ["", *WITHOUT], ids=["as it is", "elsewhere", "refused"])
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path, system):
    words = [sys.executable, "-c", PARENT, _child(system), str(tmp_path / "said")]
    parent = subprocess.Popen(words, cwd=ROOT)
    number = 0
    try:
        number = int(_said(tmp_path / "said").split()[0])
        assert lives(number)
        os.kill(parent.pid, signal.SIGKILL)
        until(lambda: not lives(number))
    finally:
        parent.kill()
        parent.wait()
        if number:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("system", WITHOUT, ids=["elsewhere", "refused"])
def test_no_child_holds_the_pipe_of_another_and_each_finds_its_input_empty(tmp_path, system):
    words = [sys.executable, "-c", _child(system), "300"]
    limits = child.Limits(wall_s=120.0)
    both = [child.start(words, tmp_path / name, limits) for name in ("first", "second")]
    try:
        assert {_said(running.said).split()[1] for running in both} == {"''"}
        both[0].process.stdin.close()  # as when the parent ends; the second one was started while the first one ran
        assert child.wait(both[0]) == (signal.SIGTERM if os.name == "nt" else -signal.SIGKILL)
        assert not child.over(both[1])
    finally:
        for running in both:
            child.kill(running)
    assert both[1].process.stdin.closed


def test_who_starts_it_by_hand_may_close_its_input(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "QSM_EDGE_PARENT"}
    words = [sys.executable, "-c", _child(WITHOUT[0]), "1"]
    ended = subprocess.run(words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, timeout=120.0, check=False)
    assert ended.returncode == 7


def test_a_reader_that_watches_for_its_parent_reads_as_it_does_here(tmp_path):
    with opened(tmp_path / "spool") as spool:
        hand_in(spool, contents("philips_enhanced"))
        (folder,) = spool.folder("held").iterdir()
        words = [sys.executable, "-c", _child(WITHOUT[1], do="look.main"), str(folder), "fast"]
        running = child.start(words, tmp_path / "said", child.Limits(wall_s=120.0))
        assert child.wait(running) == 0
        found, here = json.loads(running.said.read_text()), look_at(folder, lambda acquisition: 1)
    for acquisition in (*found["acquisitions"], *here["acquisitions"]):
        del acquisition["memory_bytes"]
    assert found == here
    assert running.process.stdin.closed
