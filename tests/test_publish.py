"""A result folder appears whole or not at all, whatever interrupts the writer, and nothing of others is touched."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qsm_edge import publish
from qsm_edge.errors import ResourceError, UsageError


def writes(text: str):
    """A writer that leaves `text` in a nested file."""

    def write(folder: Path) -> None:
        (folder / "chi").mkdir()
        (folder / "chi" / "0001.dcm").write_text(text)

    return write


def visible(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))


def everything(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir())


def test_the_folder_is_whole_when_it_gets_its_name(tmp_path):
    def write(folder: Path) -> None:
        writes("one")(folder)
        assert visible(tmp_path) == [], "the final name must not exist while the writer writes"

    final = publish.publish(tmp_path, "gre", "acq-1", write)
    assert final == tmp_path / "gre"
    assert (final / "chi" / "0001.dcm").read_text() == "one"
    assert everything(tmp_path) == ["gre"]
    assert publish.made_of(final) == "acq-1"


def test_a_second_run_replaces_the_first_and_keeps_what_the_user_added(tmp_path):
    final = publish.publish(tmp_path, "gre", "acq-1", writes("one"))
    (final / "notes.txt").write_text("looked at it")
    assert publish.publish(tmp_path, "gre", "acq-1", writes("two")) == final
    assert (final / "chi" / "0001.dcm").read_text() == "two"
    assert (final / "notes.txt").read_text() == "looked at it"
    assert everything(tmp_path) == ["gre"]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), SystemExit(143)])
def test_an_error_leaves_the_earlier_result_and_nothing_else(tmp_path, error):
    final = publish.publish(tmp_path, "gre", "acq-1", writes("one"))

    def write(folder: Path) -> None:
        writes("two")(folder)
        raise error

    with pytest.raises(type(error)):
        publish.publish(tmp_path, "gre", "acq-1", write)
    assert (final / "chi" / "0001.dcm").read_text() == "one"
    assert everything(tmp_path) == ["gre"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_reason_with_numbers(tmp_path, code):
    def write(folder: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(ResourceError, match=r"MB free") as caught:
        publish.publish(tmp_path, "gre", "acq-1", write)
    assert caught.value.code == "out_of_disk"
    assert everything(tmp_path) == []


def test_a_closed_folder_is_the_callers_mistake(tmp_path):
    def write(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(UsageError) as caught:
        publish.publish(tmp_path, "gre", "acq-1", write)
    assert caught.value.code == "bad_call"


def test_what_others_made_is_never_replaced(tmp_path):
    (tmp_path / "gre").mkdir()
    (tmp_path / "gre" / "thesis.txt").write_text("mine")
    (tmp_path / "gre-2").write_text("a file of that name")
    assert publish.publish(tmp_path, "gre", "acq-1", writes("one")) == tmp_path / "gre-3"
    assert publish.publish(tmp_path, "gre", "acq-2", writes("other")) == tmp_path / "gre-4"
    assert publish.publish(tmp_path, "gre", "acq-1", writes("again")) == tmp_path / "gre-3"
    assert (tmp_path / "gre" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "gre-2").read_text() == "a file of that name"
    assert (tmp_path / "gre-4" / "chi" / "0001.dcm").read_text() == "other"


def test_a_gap_in_the_numbers_does_not_double_a_result(tmp_path):
    (tmp_path / "gre").mkdir()
    assert publish.publish(tmp_path, "gre", "acq-1", writes("one")).name == "gre-2"
    (tmp_path / "gre").rmdir()
    assert publish.publish(tmp_path, "gre", "acq-1", writes("two")).name == "gre-2"
    assert visible(tmp_path) == ["gre-2"]


def test_the_runs_own_input_or_mask_is_not_replaced(tmp_path):
    final = publish.publish(tmp_path, "gre", "acq-1", writes("one"))
    mask = final / "edited_mask.nii.gz"
    mask.write_text("hours of work")
    with pytest.raises(UsageError, match="own input or mask") as caught:
        publish.publish(tmp_path, "gre", "acq-1", writes("two"), keep=(mask,))
    assert caught.value.code == "bad_call"
    assert mask.read_text() == "hours of work"
    assert publish.publish(tmp_path, "gre", "acq-2", writes("two"), keep=(mask,)).name == "gre-2"


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
from qsm_edge import publish

def write(folder):
    (folder / "half.dcm").write_text("half")
    print("writing", flush=True)
    time.sleep(60)

publish.publish(Path(sys.argv[1]), "gre", "acq-1", write)
"""


@pytest.fixture
def writer(tmp_path):
    """Another process in the middle of writing a result."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


@pytest.mark.parametrize("written", ["", '{"software": "qsm'])
def test_what_was_cut_off_within_its_marker_is_cleared_up(tmp_path, written):
    cut = tmp_path / ".gre.partial-12"
    cut.mkdir()
    (cut / publish.MARKER).write_text(written)
    assert publish.recover(tmp_path) == []
    assert not cut.exists()


def test_kill_9_leaves_nothing_under_a_final_name_and_the_next_run_clears_up(tmp_path, writer):
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait(10)
    assert visible(tmp_path) == []
    assert everything(tmp_path) == [f".gre.partial-{writer.pid}"]
    assert publish.recover(tmp_path) == []
    assert everything(tmp_path) == []


def test_a_living_writer_is_not_disturbed(tmp_path, writer):
    publish.recover(tmp_path)
    assert everything(tmp_path) == [f".gre.partial-{writer.pid}"]
    assert publish.publish(tmp_path, "gre", "acq-1", writes("mine")).name == "gre"


def test_a_process_of_the_same_number_in_another_container_is_not_disturbed(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: writer.pid)
    assert publish.publish(tmp_path, "gre", "acq-1", writes("mine")).name == "gre"
    assert (tmp_path / f".gre.partial-{writer.pid}" / "half.dcm").read_text() == "half"


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    final = publish.publish(tmp_path, "gre", "acq-1", writes("one"))
    final.rename(tmp_path / ".gre.old-4711.0")
    assert publish.recover(tmp_path) == ["gre"]
    assert (final / "chi" / "0001.dcm").read_text() == "one"


def test_a_crash_after_both_renames_keeps_the_new_result_and_the_users_files(tmp_path):
    old = publish.publish(tmp_path, "gre", "acq-1", writes("one"))
    (old / "notes.txt").write_text("looked at it")
    old.rename(tmp_path / ".gre.old-4711.0")
    final = tmp_path / "gre"
    final.mkdir()
    (final / publish.MARKER).write_text((tmp_path / ".gre.old-4711.0" / publish.MARKER).read_text())
    assert publish.recover(tmp_path) == []
    assert (final / "notes.txt").read_text() == "looked at it"
    assert everything(tmp_path) == ["gre"]


def test_a_result_whose_name_was_taken_meanwhile_comes_back_under_another(tmp_path):
    publish.publish(tmp_path, "gre", "acq-1", writes("one")).rename(tmp_path / ".gre.old-4711.0")
    publish.publish(tmp_path, "gre", "acq-2", writes("other"))
    assert publish.recover(tmp_path) == ["gre-2"]
    assert (tmp_path / "gre-2" / "chi" / "0001.dcm").read_text() == "one"
    assert (tmp_path / "gre" / "chi" / "0001.dcm").read_text() == "other"


def test_a_failing_swap_puts_the_earlier_result_back(tmp_path, monkeypatch):
    final = publish.publish(tmp_path, "gre", "acq-1", writes("one"))
    rename = os.rename

    def refuse_the_new_one(source, target):
        if ".partial-" in str(source):
            raise OSError(errno.EIO, "input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="input/output"):
        publish.publish(tmp_path, "gre", "acq-1", writes("two"))
    assert (final / "chi" / "0001.dcm").read_text() == "one"
    assert everything(tmp_path) == ["gre"]


def test_hidden_folders_of_others_are_left_alone(tmp_path):
    for name in (".gre.partial-12", ".thesis.old-3", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("mine")
    (tmp_path / ".x.partial-1").write_text("a file")
    before = everything(tmp_path)
    assert publish.recover(tmp_path) == []
    assert everything(tmp_path) == before
    assert publish.recover(tmp_path / "absent") == []


def test_two_runs_at_once_of_the_same_acquisition_both_succeed(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom qsm_edge import publish\n"
        "def write(folder):\n (folder / 'chi').mkdir()\n (folder / 'chi' / 'a').write_text(sys.argv[2])\n"
        "for _ in range(40):\n publish.recover(Path(sys.argv[1]))\n"
        " assert publish.publish(Path(sys.argv[1]), 'gre', 'acq-1', write).name == 'gre'\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(n)]) for n in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    publish.recover(tmp_path)
    assert everything(tmp_path) == ["gre"]
    assert (tmp_path / "gre" / "chi" / "a").read_text() in ("0", "1")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("gre_qsm-401", "gre_qsm-401"),
        ("../../etc", "etc"),
        ("/abs/path", "abs_path"),
        ("a\0b\nc", "a_b_c"),
        ("CON", "_CON"),
        ("lpt1.txt", "_lpt1.txt"),
        ("", "acquisition"),
        ("...", "acquisition"),
        ("ä" * 5, "acquisition"),
        ("x" * 300, "x" * 80),
    ],
)
def test_names_are_safe_on_every_file_system(text, safe):
    assert publish.safe_name(text) == safe


def test_an_abandoned_folder_without_locks_is_judged_by_its_age(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "_lock", lambda path, wait=False: None)
    young, old = tmp_path / ".gre.partial-1", tmp_path / ".gre.partial-2"
    for path in (young, old):
        path.mkdir()
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    publish.recover(tmp_path)
    assert everything(tmp_path) == [young.name]
