"""Metrics: a strict reader takes them, they say what the ledger says, and counters count what the log tells."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qsm_edge.spool import opened
from qsm_edge.status import Board, metrics
from qsm_edge.status.metrics import Family, Sample, text_of
from tests.spool.spool_world import Archive, hand_in, parts, site, work_off
from tests.status.exposition import parse
from tests.status.status_world import ask, content, night, scan, served


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return night(tmp_path_factory.mktemp("night"))


@pytest.fixture(scope="module")
def told(world):
    made, _ = world
    with served(made) as port:
        answer = ask(port, "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parse(answer.text)


def test_every_figure_says_what_it_is(told):
    assert len(told) > 15
    assert all(name.startswith("qsm_edge_") for name in told)
    assert all(family.help.endswith(".") for family in told.values())


def test_the_figures_are_those_of_the_ledger(world, told):
    made, _ = world
    with opened(made.spool.folder) as spool:
        jobs = {r["state"]: r["n"] for r in spool.ledger.rows("SELECT state, COUNT(*) n FROM jobs GROUP BY state")}
        due = {
            (r["destination"], r["state"]): r["n"]
            for r in spool.ledger.rows("SELECT destination, state, COUNT(*) n FROM deliveries GROUP BY 1, 2")
        }
    assert jobs == {"done": 2, "failed": 1, "refused": 1}
    for state in metrics.JOB_STATES:
        assert told["qsm_edge_jobs"].value(state=state) == jobs.get(state, 0)
    for destination in ("pacs", "web"):
        for state in ("pending", "refused"):
            wanted = due.get((destination, state), 0)
            assert told["qsm_edge_deliveries"].value(destination=destination, state=state) == wanted
    assert told["qsm_edge_deliveries"].value(destination="web", state="pending") == 3
    assert told["qsm_edge_deliveries"].value(destination="web", state="refused") == 3
    assert [told["qsm_edge_results"].value(verdict=v) for v in metrics.VERDICTS] == [1, 1, 0]
    assert [told["qsm_edge_studies"].value(state=s) for s in ("arriving", "held", "refused")] == [0, 1, 1]
    assert told["qsm_edge_oldest_undelivered_seconds"].value(destination="pacs") == 0
    assert told["qsm_edge_oldest_undelivered_seconds"].value(destination="web") > 0
    assert told["qsm_edge_healthy"].value() == 1
    assert told["qsm_edge_disk_free_bytes"].value() > 0


def test_the_service_counts_what_it_did(tmp_path):
    """Of one study reconstructed, delivered to one destination and refused by the other; a job of another that crashed."""
    made, archive = site(tmp_path, "pacs"), Archive()
    made = replace(made, work=replace(made.work, attempts=1))
    its_parts = parts(made, pacs=archive)
    with opened(made.spool.folder) as spool:
        hand_in(spool, [content(one) for one in scan("a")])
    work_off(made, its_parts)
    with served(made, its_parts.board) as port:
        told = parse(ask(port, "/metrics").text)
    assert told["qsm_edge_reconstructions_total"].value(state="done") == 1
    assert told["qsm_edge_delivery_tries_total"].value(destination="pacs", outcome="stored") == 3
    assert told["qsm_edge_delivery_tries_total"].value(destination="pacs", outcome="failed") == 0
    seconds = told["qsm_edge_last_reconstruction_seconds"].value()
    assert told["qsm_edge_reconstruction_seconds"].samples["qsm_edge_reconstruction_seconds_sum", ()] == seconds
    assert told["qsm_edge_reconstruction_seconds"].samples["qsm_edge_reconstruction_seconds_count", ()] == 1


def test_a_watched_folder_and_the_network_are_counted_by_door_and_reason(tmp_path):
    board, passed = Board(), []
    log = board.hearing(lambda event, facts: passed.append((event, facts)))
    events = [
        ("received", {"door": "folder", "outcome": "held"}),
        ("received", {"door": "folder", "outcome": "duplicate"}),
        ("turned_away", {"door": "folder", "code": "not_dicom"}),
        ("received", {"outcome": "stored", "peer": "192.0.2.1", "calling": "SCANNER"}),
        ("received", {"outcome": "refused", "peer": "192.0.2.1", "detail": "0xA700 out_of_disk"}),
        ("received", {"outcome": "refused", "peer": "192.0.2.1", "detail": "0x0110 Mustermann"}),
        ("received", {"outcome": "refused"}),
        ("ended", {}),
        ("delivery", {"destination": "pacs", "stored": "many"}),
    ]
    for event, facts in events:
        log(event, facts)
    assert passed == events  # whatever it makes of them, the log has them all
    made = site(tmp_path)
    with opened(made.spool.folder), served(made, board) as port:
        told = parse(ask(port, "/metrics").text)
    assert told["qsm_edge_instances_received_total"].value(door="folder") == 2
    assert told["qsm_edge_instances_received_total"].value(door="c-store") == 1
    refused = told["qsm_edge_instances_refused_total"]
    assert {tuple(dict(k[1]).values()): v for k, v in refused.samples.items()} == {
        ("folder", "not_dicom"): 1,
        ("c-store", "out_of_disk"): 1,
        ("c-store", "internal"): 2,
    }


def test_reconstructions_are_counted_in_classes_that_hold_their_upper_ends():
    board = Board()
    for seconds in (9.9, 10.0, 10.1, 4000.0):
        board.hearing(lambda event, facts: None)("ended", {"state": "done", "seconds": seconds})
    (family,) = parse(text_of([metrics._histogram(board.seen())])).values()
    found = {dict(labels)["le"]: value for (_, labels), value in family.samples.items() if labels}
    assert [found[le] for le in ("10", "30", "3600", "+Inf")] == [2, 3, 3, 4]


@pytest.mark.parametrize("text", ["plain", 'a"b', "a\\b", "a\nb", '\\n"\n\\', 'a{b="c"},d 1', "äö✓", ""])
def test_any_text_comes_back_as_it_was(text):
    family = Family("x", "gauge", f"h {text}", (Sample(1, (("label", text), ("second", "2"))),))
    read = parse(text_of([family]))["x"]
    assert read.help == f"h {text}"
    assert read.value(label=text, second="2") == 1


@pytest.mark.parametrize("value", [0, -1.5, 1e-9, 1e21, 51439239168, math.inf, -math.inf, math.pi])
def test_any_number_comes_back_as_it_was(value):
    assert parse(text_of([Family("x", "gauge", "h", (Sample(value),))]))["x"].value() == value


@pytest.mark.parametrize(
    "text",
    [
        "x 1\n",
        "# TYPE x gauge\nx 1\n",
        "# HELP x h\n# TYPE x gauge\nx 1",
        "# HELP x h\n# TYPE x gauge\ny 1\n",
        "# HELP x h\n# TYPE x gauge\nx 1\nx 2\n",
        '# HELP x h\n# TYPE x gauge\nx{a="b} 1\n',
        '# HELP x h\n# TYPE x gauge\nx{a="b",a="c"} 1\n',
        "# HELP x h\n# TYPE x gauge\nx one\n",
        "# HELP x h\n# TYPE x counter\nx 1\n",
        "# HELP x h\n# TYPE x gauge\n# HELP x h\n# TYPE x gauge\n",
    ],
)
def test_the_reader_is_strict(text):
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [(["good"], "good"), (["good", "review"], "review"), (["poor", "good"], "poor"), ([""], "review"), ([], "review")],
)
def test_the_worst_verdict_counts(verdicts, worst):
    assert metrics.worst(verdicts) == worst
