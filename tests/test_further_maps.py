"""Maps beside the susceptibility, from the names on the command line to the files: what is made, told, left out, refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import report_factory as factory

from dicom_samples.encode import encode, save
from dicom_samples.head import simulate
from qsm_edge import cli, maps, stages
from qsm_edge.errors import UsageError
from qsm_edge.report import report_dict, report_html
from qsm_edge.types import Geometry, Source, SourceInstance

ALL = ("t2star", "r2star", "swi", "smwi", "mip")
FOLDERS = ("t2star", "r2star", "swi", "smwi", "swi_mip")
#: The map of uncertainty asks the chain, which results of a factory do not have: test_uncertainty.py.
KNOWN = (*ALL, "chi_sd")
SHAPE, VOXEL_MM, ECHO_TIMES_S = (21, 36, 30), (7.0, 5.8, 5.5), (0.006, 0.013, 0.020)


@pytest.fixture(scope="module")
def plain():
    return factory.result()


@pytest.fixture(scope="module")
def one_echo():
    return factory.result(factory.head(echo_times_s=(0.02,)))


def test_maps_come_in_the_order_of_the_table_and_once(plain):
    assert tuple(maps.MAPS) == KNOWN
    found = maps.with_maps(plain, ("mip", "swi", "t2star", "swi"))
    assert [extra.name for extra in found.extras] == ["t2star", "swi", "swi_mip"]
    assert [extra.name for extra in maps.with_maps(plain, ALL).extras] == list(FOLDERS)
    assert maps.with_maps(plain, ()) is plain


def test_an_unknown_name_is_refused_with_the_known_ones(plain):
    for call in (lambda: maps.check_names(("swi", "swii")), lambda: maps.with_maps(plain, ("swii",))):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "unknown_name"
        assert caught.value.got == "swii"
        assert caught.value.wanted == ", ".join(KNOWN)


def test_what_the_other_objects_repeat_stays_as_it_was(plain):
    found = maps.with_maps(plain, ALL)
    for name in (field.name for field in dataclasses.fields(plain)):
        if name not in ("extras", "provenance"):
            assert getattr(found, name) is getattr(plain, name) or name == "quality", name
    assert found.quality == plain.quality
    for name in ("recipe", "digest", "derivation", "environment"):
        assert getattr(found.provenance, name) == getattr(plain.provenance, name)
    assert found.provenance.stages[: len(plain.provenance.stages)] == plain.provenance.stages


@pytest.mark.parametrize("name", ALL)
def test_the_methods_cite_what_was_made_and_nothing_else(plain, name):
    found = maps.with_maps(plain, (name,))
    added = found.provenance.methods_text.removeprefix(plain.provenance.methods_text)
    wanted = {doi for function in maps.MAPS[name].functions for doi in stages.dois_of(function)}
    assert wanted
    assert set(re.findall(r"doi:(10\.[^;\] ]+)", added)) == wanted
    (extra,) = found.extras
    assert extra.derivation.startswith(plain.provenance.derivation)
    assert all(doi in extra.derivation for doi in wanted)
    assert len(extra.derivation) < 1024 - 400  # a real chain's own derivation is longer than this one's
    assert found.provenance.stages[-1].options.items() >= stages.options_of(maps.MAPS[name].functions[-1]).items()


def test_the_echo_that_is_shown_is_told(plain):
    for name in ("swi", "mip"):
        record = maps.with_maps(plain, (name,)).provenance.stages[-1]
        assert record.options["echo_ms"] == 20.0
        assert "at 20 ms" in record.sentence


def test_the_projection_is_one_of_the_image_that_is_written(plain):
    """On one scale, so that a value of the projection is found in a slice of the image."""
    extras = {extra.name: extra for extra in maps.with_maps(plain, ("swi", "mip")).extras}
    swi, projection = extras["swi"].volume, extras["swi_mip"]
    half = projection.slab // 2
    assert half == 1
    inside = np.where(plain.brain, swi, np.inf)
    z = swi.shape[0] // 2
    lowest = inside[z - half : z + half + 1].min(axis=0)
    np.testing.assert_array_equal(projection.volume[z], np.where(np.isfinite(lowest), lowest, 0))


def test_csf_is_long_in_t2star_and_veins_are_dark(plain):
    where = factory.lps_mm(plain.series.geometry)
    extras = {extra.name: extra.volume for extra in maps.with_maps(plain, ALL).extras}

    def typical(volume: np.ndarray, ellipsoid: Any) -> float:
        return float(np.median(volume[(((where - ellipsoid[0]) / ellipsoid[1]) ** 2).sum(-1) < 1]))

    ventricle, vein, white = factory.INNER[0], factory.INNER[8], ((0.0, -30.0, 20.0), (9.0, 9.0, 9.0))
    assert typical(extras["t2star"], ventricle) > 3 * typical(extras["t2star"], white) > 0
    for name in ("swi", "smwi"):
        assert typical(extras[name], vein) < 0.7 * typical(extras[name], white), name
    np.testing.assert_array_equal(extras["r2star"], plain.r2star_per_s)


def test_one_echo_has_no_decay_and_says_so(one_echo):
    found = maps.with_maps(one_echo, ALL)
    assert [extra.name for extra in found.extras] == ["swi", "smwi", "swi_mip"]
    (note,) = found.quality.notes[len(one_echo.quality.notes) :]
    assert note.code == "map_needs_echoes"
    assert "t2star and r2star" in note.text
    assert found.quality.verdict == one_echo.quality.verdict
    assert maps.with_maps(one_echo, ("swi",)).quality.notes == one_echo.quality.notes


def test_the_report_shows_each_once(plain):
    found = maps.with_maps(plain, ALL)
    assert report_dict(found)["maps"] == list(FOLDERS)
    assert report_dict(plain)["maps"] == []
    pictures = report_html(found).count("<img ") - report_html(plain).count("<img ")
    assert pictures == len(FOLDERS) - 1  # R2* is among the others already
    for name in set(FOLDERS) - {"r2star"}:
        assert f"<code>{name}/</code>" in report_html(found)
    assert "Further maps" not in report_html(plain)


def geometry() -> Geometry:
    """A coarse oblique slab that holds a head."""
    a = np.deg2rad(9.0)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])[:, ::-1]
    affine[:3, :3] *= np.asarray(VOXEL_MM)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(SHAPE) - 1) / 2)
    return Geometry(SHAPE, affine)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    signal, _, _ = simulate(geometry(), ECHO_TIMES_S, 3.0)
    save(encode(signal, geometry(), ECHO_TIMES_S, 3.0, "siemens_classic", seed_name="maps"), folder)
    return folder


def run(capsys, *words: object) -> tuple[int, dict[str, Any]]:
    status = cli.main(["run", *map(str, words), "--json", "--recipe", "fast"])
    return status, json.loads(capsys.readouterr().out)


def pixels(folder: Path) -> dict[str, Any]:
    """Every file of a series without the moment at which it was made."""
    found = {}
    for path in sorted(folder.glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        del dataset.InstanceCreationDate, dataset.InstanceCreationTime
        found[path.name] = dataset
    return found


def test_series_are_written_beside_the_susceptibility_and_leave_with_the_wish(study, tmp_path, capsys):
    output = tmp_path / "out"
    folders = (*FOLDERS, "chi_sd")
    status, facts = run(capsys, study, output, "--maps", "t2star, r2star,swi,smwi,mip,chi_sd")
    assert status == 0
    folder = Path(facts["done"][0]["folder"])
    for name in folders:
        slices = [pydicom.dcmread(path) for path in (folder / name).glob("*.dcm")]
        assert len(slices) == SHAPE[0]
        assert max(d.pixel_array.max() for d in slices) > (50 if name != "chi_sd" else 0)
    taken = sum(path.stat().st_size for name in folders for path in (folder / name).iterdir())
    images = SourceInstance("1.2", "2.25.1", "2.25.2")
    source = Source("v", "e", ((images,) * 2 * len(ECHO_TIMES_S),) * SHAPE[0])
    assert taken < maps.bytes_on_disk(KNOWN, geometry(), source) < 3 * taken
    report = json.loads((folder / "report.json").read_text())
    assert report["maps"] == list(folders)
    assert {"chi_noise", "chi_noise_p95", "undetermined"} <= set(report["figures"])
    assert "10.1002/mrm.24920" in report["methods"]["dois"]
    with_others = pixels(folder / "chi")
    status, again = run(capsys, output, tmp_path / "fed back")
    assert (status, again["done"], again["refused"]) == (0, [], [])
    own = sum(problem["files"] for problem in again["ignored"] if problem["code"] == "own_output")
    assert own == SHAPE[0] * (1 + len(folders)) + 1  # and the mask

    status, facts = run(capsys, study, output)
    assert status == 0
    assert os.listdir(output) == [folder.name]
    assert {path.name for path in folder.iterdir()} & set(folders) == set()
    assert pixels(folder / "chi") == with_others


@pytest.mark.parametrize("words", ["swi,swim", "", "SWI", "swi;mip"])
def test_a_name_that_is_none_stops_the_run_before_it_begins(study, tmp_path, capsys, words):
    status, facts = run(capsys, study, tmp_path / "out", "--maps", words)
    assert (status, facts["error"]["code"]) == (2, "unknown_name")
    assert facts["error"]["wanted"] == ", ".join(KNOWN)
    assert not (tmp_path / "out").exists()


def test_one_echo_is_reconstructed_without_what_it_cannot_give(tmp_path, capsys):
    signal, _, _ = simulate(geometry(), (0.02,), 3.0)
    save(encode(signal, geometry(), (0.02,), 3.0, "siemens_classic", seed_name="one"), tmp_path / "in")
    status, facts = run(capsys, tmp_path / "in", tmp_path / "out", "--maps", "t2star,smwi")
    assert (status, facts["refused"], facts["failed"]) == (0, [], [])
    (done,) = facts["done"]
    assert "map_needs_echoes" in [note["code"] for note in done["notes"]]
    assert {path.name for path in Path(done["folder"]).iterdir()} & set(FOLDERS) == {"smwi"}


def test_the_room_for_them_is_asked_for_before_anything_is_read(study, tmp_path, capsys, monkeypatch):
    import shutil
    from types import SimpleNamespace

    asked = {}
    for words in ((), ("--maps", ",".join(ALL))):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        status, facts = run(capsys, study, tmp_path / "out", *words)
        assert (status, [problem["code"] for problem in facts["refused"]]) == (3, ["out_of_disk"])
        (wanted,) = re.findall(r"wanted: (\d+) MB", facts["refused"][0]["text"])
        asked[words] = int(wanted)
    least, most = asked.values()
    assert most > least
