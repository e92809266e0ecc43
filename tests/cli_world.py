"""Stand-ins for reader, chain and writers, so that the commands can be led into every kind of trouble."""

from __future__ import annotations

import contextlib
import json
import os
from collections import namedtuple
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qsm_edge import cli, run
from qsm_edge.types import Figure, Geometry, GreSeries, Note, Quality, Source, SourceInstance

PATIENT = "DOE^JOHN"
Refusal = namedtuple("Refusal", "code text series files")
Ignored = namedtuple("Ignored", "code text files")


@dataclass
class Acquisition:
    """What the reader hands out, of a given grid; `trouble` is raised when it is loaded."""

    slug: str
    shape: tuple[int, int, int] = (4, 6, 8)
    trouble: BaseException | None = None
    loads: int = 0
    plan = SimpleNamespace(echo_times_ms=(5.0, 10.0))

    @property
    def geometry(self) -> Geometry:
        return Geometry.from_axes(self.shape)

    @property
    def source(self) -> Source:
        image = SourceInstance("1.2", f"2.25.{sum(map(ord, self.slug))}", "2.25.7")
        return Source("SIEMENS", "classic", ((image,),), None, self.slug)

    def describe(self, series: GreSeries | None = None) -> dict[str, Any]:
        return {
            "slug": self.slug,
            "notes": [],
            "vendor": "SIEMENS",
            "echo_times_ms": (5.0, 10.0),
            "b0_dir": (0.9, 0.1, 0.0),
            **(dict(series.source.facts) if series is not None else {}),
        }

    def load(self) -> GreSeries:
        self.loads += 1
        if self.trouble is not None:
            raise self.trouble
        volume = np.zeros((2, *self.shape), np.float32)
        source = replace(self.source, facts={"phase_scale": "12 bits for a turn"})
        return GreSeries(volume, volume, (0.005, 0.010), 3.0, self.geometry, source)


@dataclass
class World:
    """The stand-ins, and what was asked of them."""

    input: Path
    output: Path
    acquisitions: list[Acquisition] = field(default_factory=lambda: [Acquisition("gre_one")])
    refused: list[Refusal] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    reconstruct: Any = None
    write: Any = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def run(self, *options: str) -> int:
        return cli.main(["run", str(self.input), str(self.output), *options])

    def results(self) -> list[str]:
        return sorted(os.listdir(self.output))


@pytest.fixture(name="world")
def fixture_world(tmp_path, monkeypatch) -> World:
    made = World(tmp_path / "in", tmp_path / "out")
    made.input.mkdir()

    @contextlib.contextmanager
    def find(path: Path, *, progress: Any = None):
        assert path == made.input
        if progress is not None:
            progress(1, 2)
        yield SimpleNamespace(
            acquisitions=tuple(made.acquisitions), refused=tuple(made.refused), ignored=tuple(made.ignored)
        )

    def reconstruct(series, recipe, *, mask, device, model, progress):
        made.calls.append(dict(recipe=recipe, mask=mask, device=device, model=model))
        progress("invert", 0.5, "tkd")
        if made.reconstruct is not None:
            made.reconstruct(series)
        figures = {"volume_ml": Figure(np.float32(1300.5), "mL", "volume"), "snr": Figure(float("nan"), "1", "none")}
        return SimpleNamespace(series=series, quality=Quality(figures, (Note("single_echo", "one echo"),), "review"))

    def write(result, folder, options, progress):
        (folder / "report.html").write_text("report")
        if made.write is not None:
            made.write(folder)

    monkeypatch.setattr("qsm_edge.dicom.find", find)
    monkeypatch.setattr("qsm_edge.pipeline.reconstruct", reconstruct)
    monkeypatch.setattr(run, "_write", write)
    return made


def said(capsys) -> tuple[str, str]:
    captured = capsys.readouterr()
    assert PATIENT not in captured.out + captured.err
    return captured.out, captured.err


def document(capsys) -> dict[str, Any]:
    out, _ = said(capsys)
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def fails_on(slug: str, error: BaseException):
    def trouble(series: GreSeries) -> None:
        if series.source.slug == slug:
            raise error

    return trouble
