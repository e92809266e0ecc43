"""Layer 5: the brain mask of every acquisition in the input, without a map; or of one NIfTI magnitude image."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsm_edge import __version__, nifti, publish
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.pipeline import MaskResult, assess_mask, auto_method, make_mask
from qsm_edge.progress import Progress
from qsm_edge.provenance import SOFTWARE, provenance
from qsm_edge.recipe import Recipe
from qsm_edge.run import (
    MASKS,
    Options,
    Outcome,
    Problem,
    check_disk,
    check_mask_options,
    check_memory,
    check_paths,
    each,
    identity_of,
    outcome_of,
    stopping,
    text_without_code,
    variant_of,
)
from qsm_edge.types import GreSeries, Note, Source

if TYPE_CHECKING:
    from qsm_edge.dicom import Acquisition

VOXELS, SEGMENTATION, FACTS = "mask.nii.gz", "mask.dcm", "mask.json"
#: Bytes a voxel on the disk at most: the mask as NIfTI and one bit as DICOM.
_ON_DISK = 2
#: A magnitude image in a NIfTI file says neither, and the mask depends on neither: on the order of the echoes alone.
_ANY_ECHO_S, _ANY_FIELD_T = 0.01, 3.0


@dataclass(frozen=True)
class Masked:
    """A mask that was made: of which acquisition, where it lies, and what its `mask.json` says."""

    slug: str
    folder: Path
    facts: Mapping[str, Any]
    seconds: float


def run_mask(
    source: Path,
    output: Path,
    options: Options,
    progress: Progress,
    *,
    on_traceback: Callable[[str], None] | None = None,
) -> Outcome[Masked]:
    """Make the brain mask of every acquisition below `source`, as `run` would, into a folder of its own below `output`.

    Where `source` is a NIfTI file it is taken for a magnitude image, and the mask goes into `output` itself. Of `options`,
    overrides (of the mask's stage alone), mask and model count. Errors as of `run`.
    """
    if options.mask not in MASKS:
        raise UsageError("bad_call", "no way to make a mask", got=options.mask, wanted=", ".join(MASKS))
    recipe = Recipe.load(options.recipe, _overrides(options))
    for text in options.overrides:
        if text.partition("=")[0].partition(".")[0].strip() != "mask":
            raise UsageError("bad_call", "that would not be used", where="--set", got=text, wanted="mask.option=value")
    check_mask_options(recipe, options)
    keep = check_paths(source, output, options)
    outcome: Outcome[Masked] = Outcome(restored=publish.recover(output))
    task = _Task(output, recipe, options, keep, progress)
    with stopping(outcome, progress):
        if source.is_file() and nifti.is_nifti(source):
            try:
                outcome.done.append(_of_nifti(source, task))
            except InputRefused as error:
                ours = error.code == "own_output"
                problem = Problem(error.code, text_without_code(error), "the input", 1 if ours else 0, ("*",) * ours)
                (outcome.ignored if ours else outcome.refused).append(problem)
            except Exception as error:
                outcome_of(error, "the input", outcome, on_traceback)
        else:
            each(source, outcome, progress, lambda found, slug: _of_dicom(found, slug, task), on_traceback)
    return outcome


def _overrides(options: Options) -> tuple[str, ...]:
    """The overrides after the method whose options they are: the one asked for, or what 'auto' comes to."""
    method = _method(options) if options.overrides else options.mask
    return options.overrides if method == "auto" else (f"mask={method}", *options.overrides)


def _method(options: Options) -> str:
    """The way to make a mask that was asked for, or what 'auto' comes to."""
    return auto_method(_model(options)) if options.mask == "auto" else options.mask


def _model(options: Options) -> str | None:
    return None if options.model is None else str(options.model)


@dataclass(frozen=True)
class _Task:
    """What is asked for, the same for every acquisition."""

    output: Path
    recipe: Recipe
    options: Options
    keep: Sequence[Path]
    progress: Progress

    @property
    def variant(self) -> str:
        """Sets a mask apart from the results of `run`, and from masks made with other settings."""
        return f"mask {variant_of(self.recipe, self.options)}"

    def make(self, series: GreSeries) -> MaskResult:
        return make_mask(
            series, self.recipe, mask=self.options.mask, model=_model(self.options), progress=self.progress
        )


def _of_dicom(acquisition: Acquisition, slug: str, task: _Task) -> Masked:
    """Load one acquisition and publish its mask."""
    from qsm_edge.dicom import seg

    start = time.perf_counter()
    identity = identity_of(acquisition.source, task.variant)
    publish.check_replaceable(task.output, slug, identity, task.keep)
    task.progress("read", 0.0)
    check_disk(acquisition.geometry, task.output, _ON_DISK)
    check_memory(acquisition)
    made = task.make(acquisition.load())
    facts = _facts(made)

    def write(folder: Path) -> None:
        task.progress("write", 0.0)
        nifti.write_nifti(made.mask, made.series.geometry, folder / VOXELS)
        seg.write_mask(made.series, made.mask, _provenance(made), folder / SEGMENTATION)
        _write_facts(facts, folder)

    folder = publish.publish(task.output, slug, identity, write, task.keep)
    return Masked(slug, folder, facts, round(time.perf_counter() - start, 3))


def _of_nifti(path: Path, task: _Task) -> Masked:
    """Load one magnitude image, which has no patient that a DICOM object could refer to, and write its mask."""
    from qsm_edge import memory

    start = time.perf_counter()
    image = nifti.open_magnitude(path)
    with path.open("rb") as file:
        identity = hashlib.sha256((hashlib.file_digest(file, "sha256").hexdigest() + task.variant).encode()).hexdigest()
    names = (VOXELS, FACTS)
    publish.check_placeable(task.output, identity, names, task.keep)
    task.progress("read", 0.0)
    check_disk(image.geometry, task.output, _ON_DISK)
    echoes = image.echoes if _method(task.options) == "network" else 1  # the classical mask looks at the first alone
    memory.require_to_read(image.geometry.shape, echoes)
    magnitude = image.load(echoes)
    phase = np.zeros_like(magnitude)
    source = Source("unknown", "nifti", slug="image")
    times = tuple(_ANY_ECHO_S * (1 + k) for k in range(echoes))
    made = task.make(GreSeries(magnitude, phase, times, _ANY_FIELD_T, image.geometry, source))
    lacking = "A NIfTI magnitude has no phase: the classical mask looked at the magnitude alone, and tells dark tissue "
    lacking += "from air and bone less surely."
    facts = _facts(made, (Note("no_phase", lacking),) if made.choice.method == "threshold" else ())

    def write(folder: Path) -> None:
        task.progress("write", 0.0)
        image.write_mask(made.mask, folder / VOXELS)
        _write_facts(facts, folder)

    publish.place_in(task.output, identity, names, write)
    return Masked(source.slug, task.output, facts, round(time.perf_counter() - start, 3))


def _provenance(made: MaskResult) -> Any:
    """As of a recipe that makes the mask and nothing else."""
    return provenance(Recipe("mask", "", {"mask": made.choice}), made.series, [made.record], "cpu")


def _facts(made: MaskResult, notes: Sequence[Note] = ()) -> dict[str, Any]:
    """What `mask.json` says: how the mask was made, and how far it can be believed. The same for the same input."""
    figures, said = assess_mask(made)
    options = dict(made.choice.options)
    model = {
        short: options.pop(name)
        for short, name in (("name", "model"), ("version", "model_version"), ("sha256", "model_sha256"))
        if name in options
    }
    if model:
        model["card_sha256"] = options.pop("card_sha256")
    return {
        "software": SOFTWARE,
        "version": __version__,
        "method": made.choice.method,
        "options": options,
        "model": model or None,
        "digest": _provenance(made).digest,
        "about": made.record.sentence,
        "dois": list(made.record.dois),
        "vendor": made.series.source.vendor,
        "encoding": made.series.source.encoding,
        "echoes": made.series.magnitude.shape[0],
        "volume_ml": round(figures["brain_volume"].value, 3),
        "figures": {
            name: {"value": float(figure.value), "unit": figure.unit, "meaning": figure.meaning}
            for name, figure in figures.items()
            if name != "brain_volume"
        },
        "notes": [{"code": note.code, "text": note.text} for note in dict.fromkeys((*said, *notes))],
    }


def _write_facts(facts: Mapping[str, Any], folder: Path) -> None:
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")
