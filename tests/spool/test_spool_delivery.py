"""Every destination gets every result, the same bytes, whatever becomes of it on the way; the ledger says once."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from qsm_edge.errors import UsageError
from qsm_edge.spool import opened
from qsm_edge.spool.config import Delivery, Destination
from qsm_edge.spool.deliver import deliver, due
from qsm_edge.spool.queue import retry
from tests.spool.spool_world import Archive, Sent, check_agreement, hand_in, parts, site, states, work_off
from tests.spool.studies import contents


def _done(made, *names: str) -> None:
    """A study reconstructed, its deliveries due and not yet tried."""
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    work_off(made, parts(made, **{name: Archive(_down) for name in names}))
    with opened(made.spool.folder) as spool, spool.ledger.transaction() as db:
        db.execute("UPDATE deliveries SET attempts = 0, not_before_s = 0, outcome = '', detail = ''")


def _down(path: Path) -> None:
    raise OSError("no route to host")


def test_a_destination_that_is_down_gets_all_of_it_later_and_the_other_one_is_not_held_up(tmp_path):
    made, archive = site(tmp_path, "down", "up"), Archive()
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    assert work_off(made, parts(made, down=Archive(_down), up=archive)) == 3
    assert len(archive.received) == 3
    late = Archive()
    assert work_off(made, parts(made, down=late, up=archive)) == 0
    assert late.received == archive.received
    assert {len(copies) for copies in archive.received.values()} == {1}
    with opened(made.spool.folder) as spool:
        (tried,) = spool.ledger.rows("SELECT DISTINCT attempts FROM deliveries WHERE destination = 'down'")
        assert tried["attempts"] == 2
        check_agreement(spool)


def test_the_time_between_tries_doubles_up_to_the_longest_and_survives_a_clock_set_back(tmp_path):
    made, now, waits = site(tmp_path, "pacs"), 1e9, []
    _done(made, "pacs")
    settings = Delivery(first_retry_s=10.0, longest_retry_s=60.0)
    with opened(made.spool.folder) as spool:
        for _ in range(5):
            assert deliver(spool, "pacs", Archive(_down), settings, now=now)
            (row,) = spool.ledger.rows("SELECT DISTINCT not_before_s FROM deliveries")
            assert due(spool, "pacs", row["not_before_s"] - 0.5, 60.0) == []
            assert len(due(spool, "pacs", row["not_before_s"], 60.0)) == 3
            waits.append(row["not_before_s"] - now)
            now = row["not_before_s"]
        assert len(due(spool, "pacs", now - 86400.0, 60.0)) == 3
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_sender_that_dies_between_sending_and_answering_sends_the_same_bytes_again(tmp_path):
    made = site(tmp_path, "pacs")
    _done(made, "pacs")

    class Died(BaseException):
        """The process ends here."""

    archive = Archive()

    def dies(files):
        archive(files)
        raise Died

    with opened(made.spool.folder) as spool:
        with pytest.raises(Died):
            deliver(spool, "pacs", dies, made.delivery)
        (row,) = spool.ledger.rows("SELECT DISTINCT state, attempts FROM deliveries")
        assert (row["state"], row["attempts"]) == ("pending", 1)
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert [len(set(copies)) for copies in archive.received.values()] == [1, 1, 1]
    assert [len(copies) for copies in archive.received.values()] == [2, 2, 2]
    with opened(made.spool.folder) as spool:
        assert states(spool, "deliveries") == ["done"] * 3
        assert not deliver(spool, "pacs", archive, made.delivery)


def test_what_a_destination_refuses_for_good_waits_for_a_person_and_what_it_takes_is_done(tmp_path):
    made = site(tmp_path, "pacs")
    _done(made, "pacs")
    picky = Archive(lambda path: Sent(path, "refused", "0xC000") if path.name == "mask.dcm" else None)
    assert work_off(made, parts(made, pacs=picky)) == 3
    assert work_off(made, parts(made, pacs=picky)) == 3
    assert picky.calls == 1
    archive = Archive()
    with opened(made.spool.folder) as spool:
        (row,) = spool.ledger.rows("SELECT * FROM deliveries WHERE state = 'refused'")
        assert (row["path"], row["outcome"], row["detail"]) == ("out/1/mask.dcm", "refused", "0xC000")
        assert retry(spool, row["job"][:8]) == "1 files will be sent again"
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert [key.endswith("mask.dcm") for key in archive.received] == [True]
    with opened(made.spool.folder) as spool:
        with pytest.raises(UsageError) as caught:
            retry(spool, row["job"])
        assert caught.value.code == "bad_call"


def test_a_file_that_is_not_what_was_entered_is_never_sent(tmp_path):
    made = site(tmp_path, "pacs")
    _done(made, "pacs")
    with opened(made.spool.folder) as spool:
        (path,) = spool.folder("done").rglob("mask.dcm")
        path.write_bytes(b"another")
    archive = Archive()
    assert work_off(made, parts(made, pacs=archive)) == 3
    assert [key for key in archive.received if key.endswith("mask.dcm")] == []
    assert len(archive.received) == 2
    with opened(made.spool.folder) as spool:
        assert states(spool, "deliveries") == ["done", "done", "refused"]


def test_silence_about_a_file_is_no_delivery(tmp_path):
    made = site(tmp_path, "pacs")
    _done(made, "pacs")
    with opened(made.spool.folder) as spool:
        assert deliver(spool, "pacs", lambda files: [Sent(files[0])], made.delivery)
        assert states(spool, "deliveries") == ["done", "pending", "pending"]


def test_a_destination_gets_the_kinds_that_it_asks_for(tmp_path):
    made = site(tmp_path)
    made, archive = replace(made, destinations=(Destination("pacs", ("mask",)),)), Archive()
    with opened(made.spool.folder) as spool:
        hand_in(spool, contents())
    assert work_off(made, parts(made, pacs=archive)) == 0
    assert [Path(key).name for key in archive.received] == ["mask.dcm"]


def test_what_is_due_at_a_destination_that_is_not_configured_any_more_is_cancelled_and_told(tmp_path):
    made, log = site(tmp_path, "old"), io.StringIO()
    _done(made, "old")
    assert work_off(site(tmp_path), parts(site(tmp_path)), log) == 0
    with opened(made.spool.folder) as spool:
        assert states(spool, "deliveries") == ["cancelled"] * 3
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [one["destination"] for one in events if one["event"] == "cancelled"] == ["old"]
