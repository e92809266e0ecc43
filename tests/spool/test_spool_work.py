"""From arrival to result: one result for one acquisition, whatever the order, the copies and the company."""

from __future__ import annotations

import io
import json
import os
import random

import pytest

from qsm_edge.spool import child, opened
from qsm_edge.spool.complete import look, reader
from qsm_edge.spool.config import Work
from qsm_edge.spool.look import look_at
from tests import dicom_factory as factory
from tests.spool.spool_world import Archive, check_agreement, fake_run, hand_in, parts, site, states, work_off
from tests.spool.studies import content, contents


@pytest.mark.parametrize("seed", [1, 2])
def test_two_scans_that_arrive_interleaved_and_shuffled_give_one_result_each(tmp_path, seed):
    made, archive = site(tmp_path, "pacs"), Archive()
    files = contents("siemens_classic", name="a") + contents("philips_classic", name="b")
    random.Random(seed).shuffle(files)
    with opened(made.spool.folder) as spool:
        assert set(hand_in(spool, files)) == {"held"}
    assert work_off(made, parts(made, pacs=archive)) == 0
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done", "done"]
        check_agreement(spool)
        assert states(spool, "deliveries") == ["done"] * 6  # two slices and a mask of each
    assert [len(copies) for copies in archive.received.values()] == [1] * 6


def test_pieces_that_arrive_over_several_passes_are_held_with_a_reason_until_the_last(tmp_path):
    made, archive = site(tmp_path, "pacs"), Archive()
    files = contents("philips_classic")
    random.Random(3).shuffle(files)
    for piece in (files[:7], files[7:-1]):
        with opened(made.spool.folder) as spool:
            hand_in(spool, piece)
        assert work_off(made, parts(made, pacs=archive)) == 3
        with opened(made.spool.folder) as spool:
            assert states(spool) == []
            assert states(spool, "findings") == ["held"]
    assert archive.received == {}
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT code FROM findings")
        assert row["code"] == "missing_slice"
        hand_in(spool, files[-1:])
    assert work_off(made, parts(made, pacs=archive)) == 0
    with opened(made.spool.folder) as spool:
        assert (states(spool), states(spool, "findings")) == (["done"], [])
        check_agreement(spool)


def test_copies_are_harmless_before_and_after_the_result(tmp_path):
    made, archive = site(tmp_path, "pacs"), Archive()
    files = contents()
    with opened(made.spool.folder) as spool:
        assert set(hand_in(spool, files)) == {"held"}
        assert set(hand_in(spool, files[:5])) == {"duplicate"}
    assert work_off(made, parts(made, pacs=archive)) == 0
    first = dict(archive.received)
    with opened(made.spool.folder) as spool:
        assert set(hand_in(spool, files)) == {"duplicate"}
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert archive.received == first
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done"]
        check_agreement(spool)


def test_a_copy_in_another_transfer_syntax_is_the_same_job(tmp_path):
    made = site(tmp_path)
    datasets = factory.scan("siemens_classic")
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    assert work_off(made, parts(made)) == 0
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    with opened(made.spool.folder) as spool:
        assert set(hand_in(spool, map(content, datasets))) == {"held"}
    assert work_off(made, parts(made)) == 0
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done"]
        check_agreement(spool)


def _two_echoes_and_the_third() -> tuple[list[bytes], list[bytes]]:
    """The files of a scan whose headers do not tell how many echoes there are, so that two of them are complete."""
    datasets = factory.scan("siemens_classic")
    for dataset in datasets:
        del dataset.EchoTrainLength
    late = [content(d) for d in factory.matching(datasets, echo=2)]
    return [file for file in map(content, datasets) if file not in late], late


def test_a_late_echo_reopens_the_study_and_supersedes_what_nobody_was_sent(tmp_path):
    made, archive, undelivered = site(tmp_path, "pacs"), Archive(), site(tmp_path, "pacs")
    early, late = _two_echoes_and_the_third()
    with opened(made.spool.folder) as spool:
        hand_in(spool, early)
    assert work_off(undelivered, parts(made, pacs=Archive(_down))) == 3
    with opened(made.spool.folder) as spool:
        (first,) = spool.ledger.rows("SELECT job, state FROM jobs")
        assert first["state"] == "done"
        with spool.ledger.transaction() as db:  # as if nobody had tried to send it yet
            db.execute("UPDATE deliveries SET attempts = 0")
        hand_in(spool, late)
    assert work_off(made, parts(made, pacs=archive)) == 0
    with opened(made.spool.folder) as spool:
        by_job = {row["job"]: row["state"] for row in spool.ledger.rows("SELECT job, state FROM jobs")}
        assert by_job.pop(first["job"]) == "superseded"
        assert list(by_job.values()) == ["done"]
        check_agreement(spool)
    assert {key.split("/")[0] for key in archive.received if "chi" in key} == set(by_job)


def test_a_superseded_result_is_sent_to_its_end_where_it_was_begun(tmp_path):
    made, begun, untouched = site(tmp_path, "begun", "untouched"), Archive(), Archive()
    early, late = _two_echoes_and_the_third()
    with opened(made.spool.folder) as spool:
        hand_in(spool, early)
    work_off(made, parts(made, begun=Archive(_down), untouched=Archive(_down)))
    with opened(made.spool.folder) as spool:
        with spool.ledger.transaction() as db:
            db.execute("UPDATE deliveries SET attempts = 0 WHERE destination = 'untouched'")
        hand_in(spool, late)
    assert work_off(made, parts(made, begun=begun, untouched=untouched)) == 0
    assert (len(begun.received), len(untouched.received)) == (6, 3)


def _down(path):
    raise OSError("no route to host")


def test_what_arrives_while_the_reader_looks_makes_it_look_again(tmp_path):
    made, files = site(tmp_path), contents()
    looks = []
    with opened(made.spool.folder) as spool:
        hand_in(spool, files[:-1])
        (row,) = spool.ledger.rows("SELECT study FROM studies")

        def read(folder):
            found = look_at(folder, lambda acquisition: 1)
            if not looks:
                hand_in(spool, files[-1:])
            looks.append(found)
            return found

        assert not look(spool, row["study"], read)
        assert (states(spool), states(spool, "findings")) == ([], [])
        assert look(spool, row["study"], read)
        assert (states(spool), states(spool, "findings")) == (["ready"], [])
        check_agreement(spool)


def test_a_reader_that_crashes_takes_no_job_back(tmp_path):
    made = site(tmp_path)
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
        (row,) = spool.ledger.rows("SELECT study FROM studies")
        assert look(spool, row["study"], lambda folder: look_at(folder, lambda acquisition: 1))
        crashes = reader(child.Limits(), "no such recipe", ())
        if os.name != "nt":
            crashes = reader(child.Limits(memory_bytes=20_000_000), "fast", ())
        assert look(spool, row["study"], crashes)
        assert (states(spool), states(spool, "findings")) == (["ready"], ["refused"])
    assert work_off(made, parts(made)) == 3
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done"]


def test_a_missing_slice_is_held_with_its_reason_and_the_study_beside_it_is_done(tmp_path):
    made = site(tmp_path)
    broken = factory.without(factory.scan("ge_real_imaginary", name="b"), slice_=2, echo=1)
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents(name="a") + [content(d) for d in broken])
    assert work_off(made, parts(made)) == 3
    with opened(made.spool.folder) as spool:
        assert states(spool) == ["done"]
        (finding,) = spool.ledger.rows("SELECT * FROM findings")
        assert (finding["state"], finding["code"], finding["files"]) == ("held", "missing_slice", len(broken))


def test_our_own_output_coming_back_is_ignored_and_not_kept(tmp_path):
    made = site(tmp_path)
    ours = factory.scan()[:2]
    for dataset in ours:
        dataset.Manufacturer = "qsm-edge"
    log = io.StringIO()
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
        assert set(hand_in(spool, [content(d) for d in ours])) == {"ignored"}
    assert work_off(made, parts(made), log) == 0
    with opened(made.spool.folder) as spool:
        rows = spool.ledger.rows("SELECT code FROM instances WHERE state = 'ignored'")
        assert [row["code"] for row in rows] == ["own_output"] * 2
        assert states(spool) == ["done"]
        check_agreement(spool)


def test_results_are_entered_with_their_kind_and_named_by_number(tmp_path):
    made = site(tmp_path, "pacs")
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    work_off(made, parts(made, run=fake_run("--twice"), pacs=Archive()))
    with opened(made.spool.folder) as spool:
        rows = {row["path"]: row["kind"] for row in spool.ledger.rows("SELECT * FROM results")}
        check_agreement(spool)
        assert states(spool, "deliveries") == ["done"] * 6
    assert {path for path, kind in rows.items() if kind == "chi"} == {
        f"out/{n}/chi/{slice_:04d}.dcm" for n in (1, 2) for slice_ in (1, 2)
    }
    assert rows["out/2/mask.dcm"] == "mask"
    assert rows["out/1/report.html"] == "other"


@pytest.mark.parametrize(
    ("options", "state", "code", "attempts"),
    [
        (("--crash",), "failed", "internal", 2),
        (("--refuse", "mask_empty"), "refused", "mask_empty", 1),
        (("--hang",), "failed", "timed_out", 2),
    ],
)
def test_a_reconstruction_that_does_not_come_off_ends_with_its_reason(tmp_path, options, state, code, attempts):
    wall_s = 0.5 if "--hang" in options else 60.0
    made = site(tmp_path, work=Work(retry_s=0.0, wall_s=wall_s, memory_mb=8000))
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    assert work_off(made, parts(made, run=fake_run(*options))) == 3
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT * FROM jobs")
        assert (row["state"], row["code"], row["attempts"]) == (state, code, attempts)
        (folder,) = spool.folder(state).iterdir()
        assert json.loads((folder / "reason.json").read_text())["code"] == code
        check_agreement(spool)


def test_a_lack_of_disk_is_no_fault_of_the_job(tmp_path):
    made = site(tmp_path)
    waiting = site(tmp_path, work=Work(retry_s=3600.0, wall_s=60.0, memory_mb=8000))
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    assert work_off(waiting, parts(waiting, run=fake_run("--refuse", "out_of_disk"))) == 3
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT * FROM jobs")
        assert (row["state"], row["code"], row["attempts"]) == ("ready", "out_of_disk", 0)
        check_agreement(spool)
        with spool.ledger.transaction() as db:
            db.execute("UPDATE jobs SET not_before_s = 0")
    assert work_off(made, parts(made)) == 0
