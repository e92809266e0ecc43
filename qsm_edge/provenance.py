"""Layer 4: what ran, with what, on what; and the same as a paragraph that can be pasted into a paper."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata

from qsm_edge import __version__, backend
from qsm_edge.recipe import Choice, Recipe
from qsm_edge.stages import STAGES, dois_of, sentence_of
from qsm_edge.types import GreSeries, Provenance, StageRecord

SOFTWARE = "qsm-edge"


@dataclass
class Recorder:
    """Times the stages and notes their peak memory; `records` is in the order in which they ended."""

    device: str
    records: list[StageRecord] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, method: str, choice: Choice | None = None) -> Iterator[list[float]]:
        """Record what runs inside, with `choice`'s options; append to the yielded list once an iteration."""
        iterations: list[float] = []
        backend.reset_peak(self.device)
        start = time.perf_counter()
        yield iterations
        seconds = time.perf_counter() - start
        function = STAGES.get(name, {}).get(method)
        self.records.append(
            StageRecord(
                stage=name,
                method=method,
                options=dict(choice.options) if choice else {},
                seconds=seconds,
                peak_bytes=backend.peak_bytes(self.device),
                iterations=len(iterations),
                sentence=sentence_of(function) if function else "",
                dois=dois_of(function) if function else (),
            )
        )


def provenance(recipe: Recipe, series: GreSeries, records: list[StageRecord], device: str) -> Provenance:
    """The provenance of a result, its methods paragraph and the short derivation for the DICOM header.

    `recipe` holds what ran: the mask's method with the network's checksum, or the checksum of a mask that was given.
    """
    environment = {
        "device": backend.devices()[-1 if device == "cuda" else 0],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "fft": "" if device == "cuda" else backend.fft_engine(),
        **{name: _version(name) for name in ("numpy", "scipy", "pydicom", "highdicom", "onnxruntime", "cupy")},
    }
    return Provenance(
        software=SOFTWARE,
        version=__version__,
        recipe_name=recipe.name,
        recipe=recipe.as_dict(),
        digest=recipe.digest,
        stages=tuple(records),
        environment={k: v for k, v in environment.items() if v},
        methods_text=methods_paragraph(recipe, series, records),
        derivation=_derivation(recipe, records),
    )


def methods_paragraph(recipe: Recipe, series: GreSeries, records: list[StageRecord]) -> str:
    """What was done, in words, with the DOI of every method that ran."""
    te = ", ".join(f"{1000 * t:.4g}" for t in series.echo_times_s)
    voxel = " x ".join(f"{v:.3g}" for v in reversed(series.geometry.voxel_mm))
    head = (
        f"Susceptibility maps were made with {SOFTWARE} {__version__}, recipe '{recipe.name}' ({recipe.digest[:12]}), from "
        f"gradient-echo data at {series.b0_tesla:.3g} T with {len(series.echo_times_s)} echo(es) at {te} ms and voxels of "
        f"{voxel} mm (x, y, z)."
    )
    body = []
    for record in records:
        if record.sentence or record.stage == "mask":
            body.append(stated(record))
    tail = "Values are in ppm (DICOM: ppb), paramagnetic positive, relative to the stated reference. For research use only."
    return " ".join([head, *body, tail])


def stated(record: StageRecord) -> str:
    """What a stage did, in words, with the DOIs of its method."""
    cited = "; ".join(f"doi:{doi}" for doi in record.dois)
    sentence = record.sentence or "The brain mask was given from outside."
    return f"{record.stage.replace('_', ' ').capitalize()} ({_named(record)}): {sentence}" + (
        f" [{cited}]" if cited else ""
    )


def _derivation(recipe: Recipe, records: list[StageRecord]) -> str:
    steps = ", ".join(f"{r.stage} {_named(r)}" for r in records if r.sentence or r.stage == "mask")
    return f"{SOFTWARE} {__version__} recipe {recipe.name} {recipe.digest[:12]}: {steps}"


def _named(record: StageRecord) -> str:
    """The method, and what tells its network or its given mask from another: the start of a SHA-256."""
    words = [record.method, *(str(record.options[key]) for key in ("model", "model_version") if key in record.options)]
    words += [f"sha256:{record.options[key][:12]}" for key in ("model_sha256", "mask_sha256") if key in record.options]
    return " ".join(words)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
