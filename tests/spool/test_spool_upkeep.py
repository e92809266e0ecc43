"""The watched folder, what a person may change in the queue, and what retention may take."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qsm_edge import cli
from qsm_edge.errors import InputRefused, ResourceError, UsageError
from qsm_edge.spool import opened
from qsm_edge.spool.config import Watch
from qsm_edge.spool.purge import purge
from qsm_edge.spool.queue import listing, release, retry, text_of
from qsm_edge.spool.watch import scan
from tests import dicom_factory as factory
from tests.spool.spool_world import DAY_S, Archive, check_agreement, fake_run, hand_in, parts, site, states, work_off
from tests.spool.studies import content, contents

NOW = 4e9


@pytest.fixture
def drop(tmp_path):
    folder = tmp_path / "drop" / "Mustermann Hans"
    folder.mkdir(parents=True)
    return tmp_path / "drop"


def _scan(spool, watch: Watch, seen: dict, clock: float) -> int:
    return scan(spool, watch, seen, clock, min_free_bytes=0)


def test_a_file_is_taken_when_it_was_still_for_long_enough_and_only_once(tmp_path, drop):
    file, whole = drop / "Mustermann Hans" / "1.dcm", contents()[0]
    watch, seen = Watch(drop, still_s=10.0), {}
    file.write_bytes(whole[:1000])
    with opened(tmp_path / "spool") as spool:
        assert _scan(spool, watch, seen, 0.0) == 1
        file.write_bytes(whole)
        assert _scan(spool, watch, seen, 10.0) == 1
        assert _scan(spool, watch, seen, 19.0) == 1
        assert states(spool, "instances") == []
        assert _scan(spool, watch, seen, 20.0) == 0
        assert states(spool, "instances") == ["held"]
        assert _scan(spool, watch, {}, 99.0) == 0  # another service, the same ledger
        assert file.read_bytes() == whole
        check_agreement(spool)


def test_originals_are_moved_where_that_is_asked_for_and_never_deleted_or_replaced(tmp_path, drop):
    watch, whole = Watch(drop, still_s=0.0, originals="move"), contents()
    with opened(tmp_path / "spool") as spool:
        for file in whole[:2]:
            (drop / "1.dcm").write_bytes(file)
            (drop / "note.txt").write_text("no image")
            _scan(spool, watch, {}, 0.0)
            assert (drop / "note.txt").exists()
        assert not (drop / "1.dcm").exists()
        assert {path.read_bytes() for path in (drop / "taken").iterdir()} == set(whole[:2])
        assert _scan(spool, watch, {}, 1.0) == 0
        assert states(spool, "instances") == ["held", "held"]


def test_a_full_folder_is_taken_in_piece_by_piece_and_to_its_end(tmp_path, drop):
    for number, file in enumerate(contents()[:5]):
        (drop / f"{number}").write_bytes(file)
    watch, seen, left = Watch(drop, still_s=0.0), {}, []
    with opened(tmp_path / "spool") as spool:
        while not left or left[-1]:
            left.append(scan(spool, watch, seen, 0.0, min_free_bytes=0, for_s=0.0))
            assert len(states(spool, "instances")) == min(len(left), 5)
        assert left == [1, 1, 1, 1, 1, 0]


def test_links_are_not_followed(tmp_path, drop):
    (tmp_path / "secret").write_bytes(contents()[0])
    (drop / "link").symlink_to(tmp_path / "secret")
    (drop / "folder").symlink_to(tmp_path, target_is_directory=True)
    with opened(tmp_path / "spool") as spool:
        _scan(spool, Watch(drop, still_s=0.0), {}, 0.0)
        assert states(spool, "instances") == []


def test_a_file_that_cannot_be_read_holds_up_no_other(tmp_path, drop, monkeypatch):
    for number, file in enumerate(contents()[:3]):
        (drop / f"{number}").write_bytes(file)
    copy = shutil.copyfileobj

    def broken(source, target, length):
        if Path(source.name).name == "1":
            raise OSError(errno.EIO, "the disk does not give it")
        copy(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", broken)
    with opened(tmp_path / "spool") as spool:
        _scan(spool, Watch(drop, still_s=0.0), {}, 0.0)
        assert states(spool, "instances") == ["held", "held"]
        assert list(spool.folder("incoming").iterdir()) == []


def test_a_file_for_which_there_is_no_room_waits_in_its_folder(tmp_path, drop):
    (drop / "1.dcm").write_bytes(contents()[0])
    watch = Watch(drop, still_s=0.0, originals="move")
    with opened(tmp_path / "spool") as spool:
        with pytest.raises(ResourceError):
            scan(spool, watch, {}, 0.0, min_free_bytes=1 << 60)
        assert (drop / "1.dcm").exists()
        _scan(spool, watch, {}, 1.0)
        assert states(spool, "instances") == ["held"]


def test_a_watched_study_becomes_a_result_and_no_name_of_a_patient_is_anywhere(tmp_path, drop):
    made, archive = site(tmp_path, "pacs"), Archive()
    made = replace(made, watch=(Watch(drop, still_s=0.0),))
    for number, dataset in enumerate(factory.scan()):
        dataset.PatientName, dataset.PatientID = "Mustermann^Hans", "geheim"
        (drop / "Mustermann Hans" / f"{number}").write_bytes(content(dataset))
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert len(archive.received) == 3
    for path in made.spool.folder.rglob("*"):
        assert "mustermann" not in str(path).lower()
        if path.is_file() and path.suffix != ".dcm":
            assert b"ustermann" not in path.read_bytes()


def _incomplete(made) -> str:
    broken = factory.without(factory.scan("ge_real_imaginary", name="b"), slice_=2, echo=1)
    with opened(made.spool.folder) as spool:
        hand_in(spool, [content(d) for d in broken])
    assert work_off(made, parts(made)) == 3
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT study FROM studies")
    return str(row["study"])


def test_an_incomplete_study_is_not_released_but_may_be_given_up(tmp_path):
    made = site(tmp_path)
    study = _incomplete(made)
    with opened(made.spool.folder) as spool:
        with pytest.raises(InputRefused) as caught:
            release(spool, study)
        assert caught.value.code == "missing_slice"
        assert "missing_slice" in release(spool, study[:8], force=True)
        assert states(spool, "findings") == ["given_up"]
        with pytest.raises(UsageError):
            release(spool, study, force=True)
        assert states(spool) == []
    assert work_off(made, parts(made)) == 0  # nobody waits for it any more
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents("ge_real_imaginary", name="b"))
    assert work_off(made, parts(made)) == 0
    with opened(made.spool.folder) as spool:
        assert (states(spool), states(spool, "findings")) == (["done"], [])


def test_a_study_that_is_not_quiet_yet_is_looked_at_when_it_is_released(tmp_path):
    made = site(tmp_path)
    patient = replace(made, spool=replace(made.spool, quiet_s=86400.0))
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
        (row,) = spool.ledger.rows("SELECT study FROM studies")
        release(spool, row["study"])
    assert work_off(patient, parts(patient)) == 0


def test_a_failed_job_is_made_again_when_that_is_asked_for_and_a_done_one_never(tmp_path):
    made = site(tmp_path)
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    assert work_off(made, parts(made, run=fake_run("--crash"))) == 3
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT job FROM jobs")
        assert states(spool) == ["failed"]
        retry(spool, row["job"][:6])
    assert work_off(made, parts(made)) == 0
    with opened(made.spool.folder) as spool:
        check_agreement(spool)
        with pytest.raises(UsageError) as caught:
            retry(spool, row["job"])
        assert caught.value.code == "bad_call"
        for item in ("a", "zzzzzzzz", "../../x"):
            with pytest.raises(UsageError):
                retry(spool, item)


def test_the_list_tells_what_waits_and_why(tmp_path, capsys):
    made = site(tmp_path)
    study = _incomplete(made)
    with opened(made.spool.folder) as spool:
        text = text_of(listing(spool), NOW)
        assert study[:12] in text
        assert "held [missing_slice]" in text
    config = tmp_path / "site.toml"
    config.write_text('[spool]\nfolder = "spool"\n')
    assert cli.main(["queue", "list", "--config", str(config), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in listed["findings"]] == ["missing_slice"]
    assert cli.main(["queue", "release", study, "--config", str(config)]) == 3
    assert "missing_slice" in capsys.readouterr().err
    assert cli.main(["queue", "release", "--config", str(config)]) == 2
    assert cli.main(["queue", "retry", "0123456789", "--config", str(config)]) == 2


def _sent(made, sender: Archive) -> None:
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    work_off(made, parts(made, pacs=sender))


def test_purge_takes_what_is_old_and_delivered_and_leaves_what_came_again_alone(tmp_path):
    made = site(tmp_path, "pacs")
    _sent(made, Archive())
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT MAX(changed_s) AS s FROM deliveries")
        assert purge(spool, made.spool, now=row["s"] + 29.9 * DAY_S) == []
        assert len(purge(spool, made.spool, now=row["s"] + 30.1 * DAY_S)) == 1
        assert (states(spool), set(states(spool, "instances"))) == (["purged"], {"purged"})
        assert list(spool.root.rglob("*.dcm")) == []
        check_agreement(spool)
        hand_in(spool, contents())
    archive = Archive()
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert archive.received == {}  # it has them


@pytest.mark.parametrize("behave", ["down", "refuses"])
def test_purge_never_takes_what_a_destination_does_not_have(tmp_path, behave):
    from tests.spool.spool_world import Sent

    def refuses(path: Path) -> Sent:
        if behave == "down":
            raise OSError
        return Sent(path, "refused", "0xA900")

    made = site(tmp_path, "pacs")
    _sent(made, Archive(refuses))
    hungry = replace(made.spool, purge_below_free_mb=100_000_000, keep_done_days=0.0)
    with opened(made.spool.folder) as spool:
        assert purge(spool, hungry, now=NOW * 2) == []
        check_agreement(spool)


def test_purge_for_room_takes_finished_studies_of_any_age_and_none_that_waits_for_images(tmp_path):
    made = site(tmp_path, "pacs")
    _sent(made, Archive())
    broken = factory.without(factory.scan("ge_real_imaginary", name="b"), slice_=2, echo=1)
    with opened(made.spool.folder) as spool:
        hand_in(spool, [content(d) for d in broken])
    work_off(made, parts(made, pacs=Archive()))
    with opened(made.spool.folder) as spool:
        hungry = replace(made.spool, purge_below_free_mb=100_000_000)
        assert len(purge(spool, hungry)) == 1
        assert states(spool, "findings") == ["held"]
        assert len(list(spool.folder("held").rglob("*.dcm"))) == len(broken)


def test_what_an_orphan_has_open_in_its_attempts_folder_holds_up_no_purge(tmp_path, monkeypatch):
    """Windows neither renames nor deletes a folder with an open file in it."""
    made = site(tmp_path)
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
        assert work_off(made, parts(made)) == 0
        (row,) = spool.ledger.rows("SELECT job FROM jobs")
        held, replaced = spool.job("working", row["job"]), os.replace
        (held / "0123").mkdir(parents=True)

        def refusing(source, target):
            if Path(source) == held:
                raise PermissionError(13, "the folder is in use")
            replaced(source, target)

        monkeypatch.setattr("qsm_edge.spool.folders.os.replace", refusing)
        assert len(purge(spool, made.spool, now=NOW)) == 1
        assert states(spool) == ["purged"]
        assert not spool.job("done", row["job"]).exists()


def test_a_crash_inside_a_purge_is_finished_by_the_next_start(tmp_path, monkeypatch):
    from qsm_edge.spool.recover import recover

    made = site(tmp_path, "pacs")
    _sent(made, Archive())

    class Died(BaseException):
        """The process ends here."""

    def dies(path: Path, *, missing_ok: bool = False) -> None:
        raise Died

    with opened(made.spool.folder) as spool:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", dies)
            with pytest.raises(Died):
                purge(spool, made.spool, now=NOW)
        assert len(list(spool.folder("held").rglob("*.dcm"))) == len(contents())
        recover(spool)
        assert os.listdir(spool.folder("held")) == []
        check_agreement(spool)
