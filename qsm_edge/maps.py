"""Layer 4: the maps beside the susceptibility that can be asked for: their table, and a result that carries them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsm_edge import echoes, uncertainty, weighted
from qsm_edge.errors import UsageError
from qsm_edge.pipeline import Progress
from qsm_edge.provenance import Recorder, stated
from qsm_edge.stages import accepts, dois_of, options_of, sentence_of
from qsm_edge.types import ExtraMap, Figure, Geometry, GreSeries, Note, Result, Source, StageRecord

#: Bytes of a written slice's header at most: by itself, and for every image that it names.
_HEADER, _REFERENCE = 8192, 512


@dataclass(frozen=True)
class MapMethod:
    """How a map is made of a result: `make` calls `functions`, whose docstrings say it in words.

    folder: the name of `ExtraMap`, and of the folder that the series goes into. decays: needs two echoes. comment: what a
    reader of the images has to know. figures: what is measured on the map.
    """

    folder: str
    functions: tuple[Callable[..., Any], ...]
    make: Callable[..., np.ndarray]
    decays: bool = False
    comment: str = ""
    figures: Callable[[np.ndarray, np.ndarray], Mapping[str, Figure]] | None = None


def _t2star(result: Result) -> np.ndarray:
    return np.asarray(weighted.t2star_ms(result.r2star_per_s, result.brain))


def _r2star(result: Result) -> np.ndarray:
    return np.asarray(result.r2star_per_s)


def _swi(result: Result) -> np.ndarray:
    series = result.series
    times, b0_tesla = series.echo_times_s, series.b0_tesla
    image = weighted.swi(series.magnitude, result.local_ppm, result.mask, times, b0_tesla)
    return np.asarray(weighted.scaled(image, result.brain))


def _smwi(result: Result) -> np.ndarray:
    image = weighted.smwi(result.series.magnitude, result.chi_ppm, result.mask)
    return np.asarray(weighted.scaled(image, result.brain))


def _mip(result: Result) -> np.ndarray:
    return np.asarray(weighted.minimum_projection(_swi(result), result.brain, result.series.geometry))


MAPS: Mapping[str, MapMethod] = {
    "t2star": MapMethod("t2star", (weighted.t2star_ms,), _t2star, decays=True),
    "r2star": MapMethod("r2star", (echoes.r2star,), _r2star, decays=True),
    "swi": MapMethod("swi", (weighted.swi,), _swi),
    "smwi": MapMethod("smwi", (weighted.smwi,), _smwi),
    "mip": MapMethod("swi_mip", (weighted.swi, weighted.minimum_projection), _mip),
    "chi_sd": MapMethod(
        "chi_sd",
        (uncertainty.chi_sd,),
        uncertainty.chi_sd,
        comment=uncertainty.COMMENT,
        figures=uncertainty.figures,
    ),
}


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError (unknown_name) where a name is not in `MAPS`."""
    unknown = [name for name in names if name not in MAPS]
    if unknown:
        raise UsageError("unknown_name", "no such map", got=", ".join(unknown), wanted=", ".join(MAPS))


def with_maps(result: Result, names: Sequence[str], progress: Progress | None = None) -> Result:
    """`result` with the maps of `names` in its `extras`, in the order of `MAPS` and each once.

    They enter the stages and the methods text of its provenance, and what is measured on them its figures; its derivation,
    which the other objects repeat, and its digest stay. What one echo cannot give is left out, and a note
    (``map_needs_echoes``) says so. Raises as `check_names`.
    """
    check_names(names)
    if not names:
        return result
    wanted = {name: MAPS[name] for name in MAPS if name in names}
    lacking = [name for name, how in wanted.items() if how.decays and result.r2star_per_s is None]
    recorder, extras, figures = Recorder("cpu"), [], dict(result.quality.figures)
    for name, how in wanted.items():
        if name in lacking:
            continue
        with recorder.stage("map", name):
            volume = how.make(result, progress) if accepts(how.make, "progress") else how.make(result)
        record = recorder.records[-1] = _told(recorder.records[-1], how.functions, result.series)
        derivation = f"{result.provenance.derivation}; {stated(record)}"
        slab = weighted.slab_slices(result.series.geometry) if name == "mip" else 1
        extras.append(ExtraMap(how.folder, volume, derivation, slab, how.comment))
        figures |= how.figures(volume, result.mask) if how.figures else {}
    made = result.provenance
    text = " ".join([made.methods_text, *(stated(record) for record in recorder.records)])
    notes = [Note("map_needs_echoes", f"One echo: left out {' and '.join(lacking)}.")] if lacking else []
    return dataclasses.replace(
        result,
        extras=tuple(extras),
        quality=dataclasses.replace(result.quality, figures=figures, notes=(*result.quality.notes, *notes)),
        provenance=dataclasses.replace(made, stages=(*made.stages, *recorder.records), methods_text=text),
    )


def _told(record: StageRecord, functions: Sequence[Callable[..., Any]], series: GreSeries) -> StageRecord:
    """The record with what the docstrings of `functions` say, and their options."""
    options = {name: value for function in functions for name, value in options_of(function).items()}
    sentences = [sentence_of(function) for function in functions]
    if weighted.swi in functions:
        echo_ms = 1000 * series.echo_times_s[weighted.swi_echo(series.echo_times_s, series.b0_tesla)]
        options["echo_ms"] = round(echo_ms, 6)
        sentences.append(f"The echo is that at {echo_ms:.4g} ms.")
    dois = tuple(dict.fromkeys(doi for function in functions for doi in dois_of(function)))
    return dataclasses.replace(record, options=options, sentence=" ".join(sentences), dois=dois)


def bytes_on_disk(names: Sequence[str], geometry: Geometry, source: Source) -> int:
    """What the series of `names` take at most: voxels, and headers that name the images that each slice came from."""
    images = sum(len(of_slice) for of_slice in source.slices)
    slab = weighted.slab_slices(geometry)
    named = sum(images * (slab if name == "mip" else 1) for name in set(names))
    return len(set(names)) * (2 * math.prod(geometry.shape) + _HEADER * geometry.shape[0]) + _REFERENCE * named
