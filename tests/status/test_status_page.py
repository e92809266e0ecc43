"""The page: says what there is and what helps, of nobody in particular; loads nothing, runs nothing, changes nothing."""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
import re
import sqlite3
import time
from collections.abc import Iterator

import pytest

from qsm_edge.errors import REASONS
from qsm_edge.spool import Spool, opened
from qsm_edge.status import facts, health, page
from qsm_edge.status.attention import RECENT_S, beyond
from qsm_edge.status.remedies import REMEDIES
from qsm_edge.status.words import ago, duration, marked, moment, text
from tests.spool.spool_world import DAY_S
from tests.status.status_world import PATIENT, PATIENT_ID, ask, night, served
from tests.test_report import Page

HUGE = b'{"verdict": "", "notes": [], "geometry": {"voxel_mm_zyx": [1e999]}, "acquisition": {"vendor": "", "b0_tesla": 1%s}}'
HUGE = HUGE.replace(b"%s", b"0" * 400)
HOSTILE = "<script>alert(1)</script><img src=x onerror=a>\"'&amp; 1.2.840.113619.2.55.3.1"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return night(tmp_path_factory.mktemp("night"))


@pytest.fixture(scope="module")
def answer(world):
    with served(world[0]) as port:
        return ask(port)


@pytest.fixture(scope="module")
def words(answer):
    return re.sub(r"[ \n]+", " ", " ".join(Page(answer.text).text))


@pytest.fixture
def spool(tmp_path) -> Iterator[Spool]:
    with opened(tmp_path / "spool") as spool:
        yield spool


def shown(spool: Spool, *destinations: str, now: float | None = None, well: bool = True) -> str:
    """The page of a spool, as HTML."""
    problems = () if well else (health.Problem("part_stopped", "listener"),)
    state = health.Health({"worker": "alive"}, problems, 5.0, 10**10, 0)
    return page.html(facts.look(spool.root, destinations, now=now), state, refresh_s=10, keep_held_days=14.0)


def said(html: str) -> str:
    return re.sub(r"[ \n]+", " ", " ".join(Page(html).text))


def enter_job(spool: Spool, job: str, state: str, *, code: str = "", told: str = "", changed_s: float = 0.0) -> None:
    with spool.ledger.transaction() as db:
        db.execute(
            "INSERT INTO jobs (job, study, state, code, text, verdict, memory_bytes, created_s, changed_s) "
            "VALUES (?, ?, ?, ?, ?, 'good', 1, 0, ?)",
            (job, f"5{job}", state, code, told, changed_s or time.time()),
        )


def test_the_page_says_where_everything_is(answer, words):
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for station, number in (("Arriving", 0), ("Waiting", 0), ("Reconstructing", 0), ("Done", 2), ("To be sent", 3)):
        assert f"{station} {number} " in words
    assert "To be sent 3 files, 3 refused" in words
    assert "5 things need attention" in words
    assert "(5) qsm-edge" in words


def test_what_went_wrong_comes_with_its_code_its_meaning_and_what_helps(words):
    for code in ("internal", "mask_empty", "filtered_phase", "missing_slice"):
        assert code in words
        for sentence in (REASONS[code], REMEDIES[code]):
            assert sentence[1:] in words
    assert "Got 4 slices in one echo; wanted 5" in words
    assert re.search("kept for (13\u202fd 23\u202fh|14\u202fd) more", words)
    assert "Destination web: 3 files refused" in words
    assert "Destination web: 3 files could not be sent" in words


def test_each_result_shows_its_map_its_verdict_and_who_has_it(world, answer, words):
    made, _ = world
    pictures = [img["src"].partition(",")[2] for img in Page(answer.text).all("img")]
    kept = [path.read_bytes() for path in made.spool.folder.glob("done/*/out/*/preview.png")]
    assert sorted(base64.b64decode(one) for one in pictures) == sorted(kept)
    assert len(kept) == 2
    assert kept[0] != kept[1]
    assert words.count("Siemens \u00b7 3\u202fT \u00b7 5 echoes \u00b7 4 \u00d7 4 \u00d7 4\u202fmm") == 2
    review, good = words.split("! Review")[1].split("\u2713 Good")
    assert REASONS["mask_by_threshold"][1:] in review
    assert "duplicate_dropped" not in review  # nothing is to be done about it
    assert "pacs has it" in review
    assert "web has 0 of 3 files" in review
    assert "pacs has it" in good
    assert "web refused 3 of 3" in good


def test_nothing_leads_to_the_patient(world):
    made, uids = world
    assert len(uids) > 100
    with served(made) as port:
        answers = [ask(port, path) for path in ("/", "/health", "/metrics", "/none")]
    for answer in answers:
        told = markup.unescape(answer.text)
        assert not [uid for uid in uids if uid in told]
        assert not re.search(r"\d+(\.\d+){5,}", told)
        for word in (*PATIENT.split("^"), PATIENT_ID, str(made.spool.folder)):
            assert word not in told


def test_it_loads_nothing_and_runs_nothing(answer):
    read = Page(answer.text)
    assert not {tag for tag, _ in read.tags} & {"script", "iframe", "object", "embed", "form", "base", "video", "audio"}
    for tag, attrs in read.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert name not in {"style", "srcset", "background", "action", "ping"}
            assert name != "src" or value.startswith("data:image/png;base64,")
            assert name != "href" or value in {"/health", "/metrics", "data:,"}
            assert tag != "meta" or name != "http-equiv" or value == "refresh"
    assert not re.search(r"@import|url\(", answer.text)


def test_its_policy_allows_this_style_and_inner_pictures_and_nothing_else(answer):
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "img-src": "data:",
        **dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'"),
    }


def test_it_can_be_read_without_seeing_it_and_renews_itself(world):
    with served(world[0], refresh_s=7) as port:
        read = Page(ask(port).text)
    assert read.all("html")[0]["lang"] == "en"
    assert [meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "refresh"] == ["7"]
    assert all(len(img["alt"]) > 10 for img in read.all("img"))
    assert all(th.get("scope") in {"row", "col"} for th in read.all("th"))
    assert len(read.all("caption")) == len(read.all("table")) == 2
    assert all(i.get("aria-hidden") == "true" for i in read.all("i"))


def test_asking_changes_nothing(world):
    made, _ = world
    root = made.spool.folder

    def state() -> tuple[list[str], list[tuple[str, int]]]:
        with opened(root) as spool:
            dump = list(spool.ledger._db.iterdump())
        kept = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("ledger"))
        return dump, sorted((str(path), path.stat().st_mtime_ns) for path in kept)

    before = state()
    with served(made) as port:
        for path in ("/", "/metrics", "/health"):
            assert ask(port, path).status == 200
    assert state() == before


def test_an_empty_spool_is_well(spool):
    told = said(shown(spool, "pacs"))
    assert "The service is well Nothing needs you." in told
    assert "No map has been made yet." in told
    assert "pacs \u2713 has everything" in told
    assert "Needs attention" not in told
    assert "Held" not in told


def test_a_map_to_be_looked_at_is_told_at_the_top_for_a_day(spool):
    now = time.time()
    enter_job(spool, "a" * 32, "done", changed_s=now - 5)
    assert "Nothing needs you." in said(shown(spool, now=now))
    enter_job(spool, "b" * 32, "done", changed_s=now - 5)
    with spool.ledger.transaction() as db:
        db.execute("UPDATE jobs SET verdict = 'good,review' WHERE job = ?", ("b" * 32,))
    assert "1 map of the last 24 hours should be looked at before use." in said(shown(spool, now=now))
    assert "Nothing needs you." in said(shown(spool, now=now + DAY_S))


TONES = ("good", "review", "poor")
PAIRS = [("ink", "paper"), ("soft", "paper"), ("soft", "wash"), ("link", "wash"), ("accent", "paper")]
PAIRS += [pair for tone in TONES for pair in ((tone, f"{tone}-wash"), (tone, "paper"), ("ink", f"{tone}-wash"))]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_all_words_can_be_told_from_their_ground(scheme):
    """WCAG 2 asks for a contrast of 4.5."""

    def luminance(colour: str) -> float:
        wide = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
        shares = [int(wide[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    block = re.findall(r":root \{(.*?)\}", page.style(), re.DOTALL)[scheme]
    colours = {name: luminance(value) for name, value in re.findall(r"--([\w-]+): #(\w+)", block)}
    for words, ground in PAIRS:
        low, high = sorted((colours[words], colours[ground]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (words, ground)


def test_a_service_that_is_not_well_says_so_first(spool):
    told = said(shown(spool, well=False))
    assert "The service needs help" in told
    assert REMEDIES["part_stopped"] in told


def test_whatever_others_said_is_text_and_its_uids_are_left_out(spool):
    enter_job(spool, "a" * 32, "failed", code="internal", told=HOSTILE)
    enter_job(spool, "b" * 32, "refused", code=HOSTILE, told="")
    enter_job(spool, "c" * 32, "ready", code=HOSTILE)
    enter_job(spool, "d" * 32, "done", code=HOSTILE)
    folder = spool.job("done", "d" * 32) / "out" / "1"
    folder.mkdir(parents=True)
    report = {
        "verdict": HOSTILE,
        "notes": [{"code": HOSTILE}],
        "acquisition": {"vendor": HOSTILE, "b0_tesla": 3, "echo_times_ms": [1]},
        "geometry": {"voxel_mm_zyx": [1, 1, 1]},
    }
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "preview.png").write_bytes(b"<svg onload=alert(1)>")
    with spool.ledger.transaction() as db:
        for file in folder.iterdir():
            db.execute("INSERT INTO results VALUES (?, ?, 'other', 1, '')", ("d" * 32, f"out/1/{file.name}"))
        db.execute(
            "INSERT INTO deliveries VALUES (?, 'out/1/report.json', 'pacs', 'refused', 1, 0, 'refused', ?, 0)",
            ("d" * 32, HOSTILE),
        )
        row = ("5" * 64, 0, "held", HOSTILE, HOSTILE, "", 3, 0.0)
        db.execute("INSERT INTO findings VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.execute("INSERT INTO studies VALUES (?, 1, 1, 0, 0)", ("5" * 64,))
        instance = ("n", "s", "s", "5" * 64, 1, "c", "t", "held", "", "folder", HOSTILE, HOSTILE, 0.0)
        db.execute(f"INSERT INTO instances VALUES ({','.join('?' * 13)})", instance)
    html = shown(spool, "pacs")
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert "113619" not in html
    read = Page(html)
    assert not [tag for tag, attrs in read.tags if tag in ("script", "svg", "img") or "onerror" in attrs]
    assert "no picture" in said(html)
    assert "! Review" in said(html)  # a verdict that is none asks for a look


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b"\xff", b'{"verdict": 1, "notes": 3}', HUGE, b"[" * 100_000]
)
def test_a_report_that_is_none_costs_its_facts_only(spool, content):
    enter_job(spool, "d" * 32, "done")
    folder = spool.job("done", "d" * 32) / "out" / "1"
    folder.mkdir(parents=True)
    (folder / "report.json").write_bytes(content)
    with spool.ledger.transaction() as db:
        db.execute("INSERT INTO results VALUES (?, 'out/1/report.json', 'other', 1, '')", ("d" * 32,))
    assert "no picture" in said(shown(spool))


def test_a_destination_that_was_given_up_does_not_have_it(spool):
    enter_job(spool, "d" * 32, "done")
    with spool.ledger.transaction() as db:
        db.execute("INSERT INTO results VALUES (?, 'out/1/a.dcm', 'chi', 1, '')", ("d" * 32,))
        for destination, state in (("kept", "done"), ("gone", "cancelled")):
            row = ("d" * 32, "out/1/a.dcm", destination, state, 1, 0.0, "", "", 0.0)
            db.execute("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    told = said(shown(spool, "kept"))
    assert "kept has it" in told
    assert "gone" not in told


def test_long_lists_are_cut_and_counted(spool):
    for number in range(60):
        enter_job(spool, f"{number:032x}", "failed", code="timed_out")
        enter_job(spool, f"{number + 100:032x}", "done")
    html = shown(spool)
    assert said(html).count(REASONS["timed_out"][1:]) == facts.MOST_ROWS
    assert "and 35 more" in said(html)
    assert len(Page(html).all("article")) == facts.MOST_RESULTS
    assert "the last 12 of 60" in said(html)


def test_no_question_walks_through_what_grows_for_ever(spool, monkeypatch):
    """The ledger keeps the entries of every instance and file there ever was; an index must lead past them."""
    asked, connect = [], sqlite3.connect

    def traced(*words, **options):
        db = connect(*words, **options)
        db.set_trace_callback(asked.append)
        return db

    enter_job(spool, "a" * 32, "done")
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", traced)
        facts.look(spool.root, ["pacs"])
    questions = [question.replace("?", "NULL") for question in asked if question.startswith("SELECT")]
    assert len(questions) > 15
    plans = [
        (question, row["detail"])
        for question in questions
        for row in spool.ledger.rows(f"EXPLAIN QUERY PLAN {question}")
    ]
    assert [plan for plan in plans if "USING INDEX" in plan[1]]
    assert not [
        plan for plan in plans if re.match(r"SCAN (instances|deliveries|results|job_instances|i|d|r)\b", plan[1])
    ]


def test_what_nobody_mended_for_days_asks_no_more_but_a_destination_does(spool):
    now = time.time()
    enter_job(spool, "a" * 32, "failed", code="timed_out", changed_s=now - RECENT_S - 1)
    assert "The service is well" in said(shown(spool, now=now))
    assert REMEDIES["timed_out"].split("`")[-1] in said(shown(spool, now=now)).split("Earlier")[1]
    enter_job(spool, "b" * 32, "failed", code="timed_out", changed_s=now - RECENT_S + 5)
    assert "1 thing needs attention" in said(shown(spool, now=now))
    enter_job(spool, "c" * 32, "done")
    with spool.ledger.transaction() as db:
        db.execute("INSERT INTO results VALUES (?, 'out/1/a.dcm', 'chi', 1, '')", ("c" * 32,))
        row = ("c" * 32, "out/1/a.dcm", "pacs", "refused", 1, 0.0, "refused", "", now - 30 * DAY_S)
        db.execute("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    assert "2 things need attention" in said(shown(spool, "pacs", now=now))


LASTING = {0: "0_s", 59.4: "59_s", 60: "1_min", 95: "1_min 35_s", 7260: "2_h 1_min", 90000: "1_d 1_h", -3: "0_s"}


@pytest.mark.parametrize("seconds", LASTING)
def test_durations_are_told_in_their_two_largest_units(seconds):
    assert duration(seconds).replace("\u202f", "_") == LASTING[seconds]


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be set for a process here")
def test_moments_name_the_day_where_it_is_another(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        now = 1_700_000_000.0  # 2023-11-14 22:13:20
        assert moment(now, now) == '<time datetime="2023-11-14T22:13:20Z">22:13</time>'
        assert moment(now - DAY_S, now) == '<time datetime="2023-11-13T22:13:20Z">13 Nov 22:13</time>'
        assert [ago(s) for s in (3, 45, 90, 5400, 3 * DAY_S)] == [
            *("just now", "45\u202fs ago", "2\u202fmin ago", "2\u202fh ago", "3\u202fd ago")
        ]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_names_of_options_are_code():
    assert marked("raise `wall_s` & <`a`>") == "raise <code>wall_s</code> &amp; &lt;<code>a</code>&gt;"


def test_addresses_stay_and_uids_go():
    assert text("192.0.2.10 <1.2.840.10008.1.1>") == "192.0.2.10 &lt;\u2026&gt;"


@pytest.mark.parametrize(
    ("detail", "means", "left"),
    [
        ("a slice is missing; got 4", "a slice is missing", "got 4"),
        ("the phase was", "the phase was filtered", ""),
        ("x", "y", "x"),
    ],
)
def test_a_detail_does_not_repeat_the_meaning(detail, means, left):
    assert beyond(detail, means) == left
