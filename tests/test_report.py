"""Laws of the report: self-contained, silent about the patient, strict JSON, the same facts in both."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import report_factory as factory

from qsm_edge.errors import REASONS
from qsm_edge.report import report_dict, report_html, write_report
from qsm_edge.report.tables import linked, number
from qsm_edge.types import Figure, Note, Quality, StageRecord

SCHEMA_KEYS = {
    "": "schema schema_version software verdict notes figures acquisition geometry stages recipe environment methods "
    "derivation windows maps use",
    "software": "name version",
    "acquisition": "vendor encoding slug images facts b0_tesla echo_times_ms echo_signal",
    "geometry": "shape_zyx voxel_mm_zyx affine_lps_zyx b0_dir_zyx b0_dir_lps tilt_deg",
    "recipe": "name digest options",
    "methods": "text dois",
}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not balance."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def result():
    return factory.result(notes=(Note("mask_by_threshold", "Look at the mask."),))


@pytest.fixture(scope="module")
def page(result):
    return Page(report_html(result))


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def with_source(result, **changes):
    return dataclasses.replace(result, series=dataclasses.replace(result.series, source=factory.source(**changes)))


def test_the_page_loads_nothing_and_runs_nothing(result, page):
    html = report_html(result)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "video", "audio"}
    assert page.all("img")
    for _, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert name != "src" or value.startswith("data:image/png;base64,")
            assert name != "href" or value.startswith("https://doi.org/10.")
            assert name not in {"srcset", "background", "xlink:href", "action", "ping"}
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= {f"#grey{i}" for i in range(20)}
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_page_can_be_read_without_seeing_it(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(len(img["alt"]) > 10 for img in page.all("img"))
    assert all(th.get("scope") in {"row", "col"} for th in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_says_what_the_json_says(result, page):
    facts, text = report_dict(result), " ".join(page.text)
    words = re.sub(r"\s+", " ", text)
    for name, figure in facts["figures"].items():
        assert name in text
        assert number(figure["value"]) in text
        assert figure["meaning"] in text
    for stage in facts["stages"]:
        assert stage["method"] in text
        for option in stage["options"]:
            assert option in text
    for expected in (
        "research use only",
        "Look at the mask.",
        "mask_by_threshold",
        "Review",
        facts["recipe"]["digest"],
    ):
        assert expected in words
    for time in facts["acquisition"]["echo_times_ms"]:
        assert f"{time:g}" in page.text
    assert {a["href"] for a in page.all("a")} == {f"https://doi.org/{doi}" for doi in facts["methods"]["dois"]}


def test_every_quantity_has_its_picture(result):
    alts = [img["alt"] for img in Page(report_html(result)).all("img")]
    wanted = [
        "Axial",
        "Coronal and sagittal",
        "Magnitude",
        "Mask",
        "Total field",
        "Local field",
        "Susceptibility",
        "R2*",
    ]
    assert [alt.split(":")[0] for alt in alts] == [*wanted, "Echo-fit residual"]
    assert alts[0] == "Axial: 12 axial slices, grey from -200 to 200 ppb"
    assert "4 axial, 1 coronal, 1 sagittal slices" in alts[4]


@pytest.mark.parametrize("echoes", [(0.02,), (0.005, 0.015)])
def test_what_few_echoes_cannot_tell_is_said(echoes):
    few = factory.result(factory.head(echo_times_s=echoes))
    page = Page(report_html(few))
    assert "The echo-fit residual needs three echoes: fewer always fit a line." in page.text
    names = [img["alt"].split(":")[0] for img in page.all("img")]
    assert "Echo-fit residual" not in names
    assert ("R2*" in names) == (len(echoes) > 1)
    assert "residual" not in report_dict(few)["figures"]


HOSTILE = '<script>alert("x")</script>&\'"><img src=x onerror=y>'


def test_text_from_outside_stays_text(result):
    note = Note("low_snr", HOSTILE)
    quality = Quality({HOSTILE: Figure(1.0, HOSTILE, HOSTILE)}, (note,), "review")
    stage = StageRecord(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, 1.0, 1, 1, HOSTILE, ("10.1/<b>&\"'",))
    made = factory.provenance(
        software=HOSTILE,
        version=HOSTILE,
        recipe_name=HOSTILE,
        digest=HOSTILE,
        stages=(stage,),
        environment={HOSTILE: HOSTILE},
        methods_text=HOSTILE + " 10.1/<b>&\"'",
        derivation=HOSTILE,
    )
    bad = with_source(
        dataclasses.replace(result, quality=quality, provenance=made),
        vendor=HOSTILE,
        encoding=HOSTILE,
        slug=HOSTILE,
        facts={HOSTILE: HOSTILE, "many": [HOSTILE]},
    )
    page = Page(report_html(bad))
    assert page.all("script") == []
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert all(img["src"].startswith("data:") for img in page.all("img"))
    assert "".join(page.text).count(HOSTILE) >= 12
    assert strict(json.dumps(report_dict(bad), allow_nan=False))["acquisition"]["slug"] == HOSTILE


class Untouchable:
    """A DICOM template: whoever looks into it fails."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the report looked into the template: {name}")


def test_the_patient_is_not_named(result, tmp_path):
    facts = {
        "patient_name": "DOE^JANE",
        "PatientID": "4711-X",
        "patient_birth_date": "19700101",
        "Accession Number": "A-99-A",
        "operators": "SMITH^JOHN",
        "referringPhysician": "HOUSE^G",
        "study_uid": "1.2.3.4.5",
        "UID": "1.2.3.4.5",
        "SeriesInstanceUID": "1.2.3.4.5",
        "institution": "St. Elsewhere",
        "fluid": "kept",
    }
    quiet = with_source(result, template=Untouchable(), facts=facts)
    write_report(quiet, tmp_path)
    for name in ("report.html", "report.json"):
        text = re.sub(r"base64,[^\"]*", "", (tmp_path / name).read_text(encoding="utf-8"))
        for secret in ("DOE", "JANE", "4711", "19700101", "A-99-A", "SMITH", "HOUSE", "1.2.3.4.5", "Elsewhere"):
            assert secret not in text
        assert "kept" in text


def test_the_json_is_strict_and_keeps_its_keys(result, tmp_path):
    odd = Quality(
        {"nan": Figure(math.nan, "", "x"), "inf": Figure(-math.inf, "", "x"), "np": Figure(np.float32(2.5), "", "x")},
        (Note("low_snr", ""), Note("not_in_the_list", "x")),
        "poor",
    )
    facts = {
        "a": np.int16(3),
        "b": np.array([1.5, np.nan]),
        "c": {"d": (True, np.bool_(False))},
        "e": {"y", "x"},
        "f": b"z",
    }
    series = dataclasses.replace(with_source(result, facts=facts).series)
    write_report(dataclasses.replace(result, series=series, quality=odd), tmp_path)
    got = strict((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [got["figures"][name]["value"] for name in ("nan", "inf", "np")] == [None, None, 2.5]
    assert got["acquisition"]["facts"] == {
        "a": 3,
        "b": [1.5, None],
        "c": {"d": [True, False]},
        "e": ["x", "y"],
        "f": "b'z'",
    }
    assert [note["meaning"] for note in got["notes"]] == [REASONS["low_snr"], ""]
    assert (got["schema"], got["schema_version"]) == ("qsm-edge/report", 1)
    for part, keys in SCHEMA_KEYS.items():
        assert set(got[part] if part else got) == set(keys.split())
    assert set(got["stages"][0]) == {f.name for f in dataclasses.fields(StageRecord)}
    assert got["recipe"]["options"] == {"invert": {"method": "tv", "weight": 5e-4}}
    assert got["geometry"]["shape_zyx"] == list(result.chi_ppm.shape)
    assert np.allclose(got["geometry"]["affine_lps_zyx"], result.series.geometry.affine_lps)


def test_the_echo_signal_is_the_decay_of_the_brain(result):
    times = np.asarray(factory.ECHOES)
    signal = report_dict(result)["acquisition"]["echo_signal"]
    assert signal[0] == 1
    rates = -np.log(signal[1:]) / (times[1:] - times[0])
    assert np.all((rates > 15) & (rates < 22))  # between cortex and white matter


def test_same_result_same_bytes(result):
    assert report_html(result) == report_html(result)
    assert json.dumps(report_dict(result)) == json.dumps(report_dict(result))


def test_inputs_are_untouched(result):
    frozen = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, np.ndarray):
            frozen[field.name] = value.copy()
            frozen[field.name].setflags(write=False)
    assert report_html(dataclasses.replace(result, **frozen)) == report_html(result)


def test_an_empty_map_is_reported_too():
    parts = factory.head()
    nothing = np.zeros_like(parts["mask"])
    for brain in (parts["brain"], nothing):
        empty = factory.result(parts | {"mask": nothing, "brain": brain, "chi_ppm": 0 * parts["chi_ppm"]})
        page = Page(report_html(empty))
        assert "Poor" in page.text
        assert "mask_empty" in page.text
        strict(json.dumps(report_dict(empty), allow_nan=False))


def test_volumes_that_are_no_numbers_are_reported_too(result):
    broken = {name: np.full(result.mask.shape, np.nan, np.float32) for name in ("chi_ppm", "residual", "r2star_per_s")}
    series = dataclasses.replace(result.series, magnitude=result.series.magnitude * np.float32(np.nan))
    Page(report_html(dataclasses.replace(result, series=series, **broken)))


def test_the_page_stays_small(result):
    """Two megabytes, where everything is noise on a grid finer than the pictures."""
    geometry = factory.geometry((1.0, 0.9, 0.9))
    noise = np.random.default_rng(0).random(geometry.shape, dtype=np.float32)
    brain = np.linalg.norm(factory.lps_mm(geometry) / (62, 78, 58), axis=-1) < 1
    series = dataclasses.replace(result.series, geometry=geometry, magnitude=noise[None].repeat(5, axis=0))
    loud = dataclasses.replace(
        result,
        series=series,
        chi_ppm=0.4 * noise - 0.2,
        field_ppm=noise - 0.5,
        local_ppm=0.1 * noise - 0.05,
        residual=0.1 * noise,
        r2star_per_s=45 * noise,
        weight=noise,
        mask=brain,
        brain=brain,
    )
    assert len(report_html(loud)) < 2_000_000


def test_the_files_appear_whole_or_not_at_all(result, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "folder"
    write_report(result, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"report.html", "report.json", "preview.png"}

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_report(dataclasses.replace(result, provenance=factory.provenance(version="9")), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (0, "0"),
        (-0.0, "0"),
        (0.0004567, "0.0005"),
        (-1.2345, "\u22121.23"),
        (99.96, "100"),
        (1234.5, "1\u202f234"),
        (-32767, "\u221232\u202f767"),
        ("text", "text"),
    ],
)
def test_numbers_are_written_for_readers(value, text):
    assert number(value) == text


def test_dois_become_links_wherever_they_stand():
    text = linked(
        "See doi:10.1002/mrm.30006, (10.1016/j.media.2010.03.001). And 10.1002/(SICI)1522<1:AID>3.0.CO;2-X & <b>",
        ["10.1002/(SICI)1522<1:AID>3.0.CO;2-X"],
    )
    hrefs = re.findall(r'href="([^"]*)"', text)
    assert hrefs == [
        "https://doi.org/10.1002/mrm.30006",
        "https://doi.org/10.1016/j.media.2010.03.001",
        "https://doi.org/10.1002/(SICI)1522%3C1:AID%3E3.0.CO;2-X",
    ]
    assert text.endswith("&amp; &lt;b&gt;")
