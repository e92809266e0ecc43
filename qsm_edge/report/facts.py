"""The facts of a result as strict JSON: the same that the page shows, under keys that do not change.

Schema 1 (units in the names; a number that was not measured or is not finite is null)::

    schema, schema_version    "qsm-edge/report", 1
    software                  name, version
    verdict                   "good", "review" or "poor"
    notes                     [{code, text, meaning}]        code and meaning as in errors.REASONS
    figures                   {name: {value, unit, meaning}}
    acquisition               vendor, encoding, slug, images, facts {...}, b0_tesla, echo_times_ms [...],
                              echo_signal [...]              median over the brain, relative to the first echo
    geometry                  shape_zyx, voxel_mm_zyx, affine_lps_zyx (4x4: index (z, y, x, 1) to LPS mm), b0_dir_zyx,
                              b0_dir_lps, tilt_deg
    stages                    [{stage, method, options {...}, iterations, seconds, peak_bytes, sentence, dois [...]}]
    recipe                    name, digest (SHA-256), options {...}     resolved, defaults included
    environment               {name: text}
    methods                   text, dois [...]
    derivation                what the DICOM output says of how it was made
    windows                   {picture: [black, white]}
    maps                      [name]                         further series, by the names of their folders
    use                       "research use only"

Keys may be added within a version, never renamed or removed. Nothing here names the patient: the DICOM template is not
read, and facts whose names smell of a person or a UID are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qsm_edge.errors import REASONS
from qsm_edge.report.pictures import orientation_of
from qsm_edge.types import Result

SCHEMA, SCHEMA_VERSION = "qsm-edge/report", 1
USE = "research use only"
_PERSONAL = re.compile(
    r"(?i:patient|birth|person|accession|operator|physician|institution|address|other.?id|(?<![a-z])uids?(?![a-z]))|UID"
)


def plain(value: Any) -> Any:
    """`value` as strict JSON has it: no NaN, no NumPy types, text for whatever is neither number nor container."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [plain(item) for item in items]
    return str(value)


def shown_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The reader's facts without those that could name a person or lead to one."""
    return {str(key): plain(value) for key, value in facts.items() if not _PERSONAL.search(str(key))}


def cited(result: Result) -> list[str]:
    """The DOIs of all stages in the order of first use."""
    return list(dict.fromkeys(doi for stage in result.provenance.stages for doi in stage.dois))


def echo_signal(result: Result) -> list[float]:
    """Median magnitude over the brain at each echo, relative to the first; nan for an empty brain."""
    brain = np.asarray(result.brain, dtype=bool)
    if not brain.any():
        return [math.nan] * len(result.series.echo_times_s)
    medians = [float(np.median(np.asarray(echo)[brain])) for echo in result.series.magnitude]
    return [median / medians[0] if medians[0] else math.nan for median in medians]


def windows(b0_tesla: float, noise_ppb: float = 0.0) -> dict[str, tuple[float, float]]:
    """The grey windows of the page's pictures: fixed, so that two reports can be laid side by side.

    R2* of tissue grows about in proportion to the field strength, so its window does, and that of T2* shrinks. The noise
    of the susceptibility differs twentyfold between protocols: its window is the first of 10, 20, 40, ... 320 ppb that
    holds `noise_ppb`.
    """
    steps = [0.01 * 2**n for n in range(6)]
    noise_ppm = next((step for step in steps if noise_ppb <= 1000 * step), steps[-1])
    return {
        "chi_ppm": (-0.2, 0.2),
        "field_ppm": (-0.5, 0.5),
        "local_ppm": (-0.05, 0.05),
        "r2star_per_s": (0.0, 15.0 * b0_tesla),
        "residual": (0.0, 0.1),
        "t2star_ms": (0.0, 300.0 / b0_tesla),
        "chi_sd_ppm": (0.0, noise_ppm),
    }


def report_dict(result: Result) -> dict[str, Any]:
    """The facts of `result` as nested dicts, lists, strings, finite numbers and None (schema in the module's text)."""
    series, quality, made = result.series, result.quality, result.provenance
    geometry, source = series.geometry, series.source
    noise = quality.figures.get("chi_noise_p95")
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "software": {"name": made.software, "version": made.version},
        "verdict": quality.verdict,
        "notes": [{"code": n.code, "text": n.text, "meaning": REASONS.get(n.code, "")} for n in quality.notes],
        "figures": {
            name: {"value": figure.value, "unit": figure.unit, "meaning": figure.meaning}
            for name, figure in quality.figures.items()
        },
        "acquisition": {
            "vendor": source.vendor,
            "encoding": source.encoding,
            "slug": source.slug,
            "images": sum(len(images) for images in source.slices),
            "facts": shown_facts(source.facts),
            "b0_tesla": series.b0_tesla,
            "echo_times_ms": [round(1e3 * t, 6) for t in series.echo_times_s],
            "echo_signal": echo_signal(result),
        },
        "geometry": {
            "shape_zyx": geometry.shape,
            "voxel_mm_zyx": geometry.voxel_mm,
            "affine_lps_zyx": geometry.affine_lps,
            "b0_dir_zyx": geometry.b0_dir,
            "b0_dir_lps": geometry.b0_dir_lps,
            "tilt_deg": orientation_of(geometry).tilt_deg,
        },
        "stages": [
            {
                "stage": stage.stage,
                "method": stage.method,
                "options": stage.options,
                "iterations": stage.iterations,
                "seconds": stage.seconds,
                "peak_bytes": stage.peak_bytes,
                "sentence": stage.sentence,
                "dois": stage.dois,
            }
            for stage in made.stages
        ],
        "recipe": {"name": made.recipe_name, "digest": made.digest, "options": made.recipe},
        "environment": made.environment,
        "methods": {"text": made.methods_text, "dois": cited(result)},
        "derivation": made.derivation,
        "windows": windows(series.b0_tesla, noise.value if noise is not None else 0.0),
        "maps": [extra.name for extra in result.extras],
        "use": USE,
    }
    answer: dict[str, Any] = plain(facts)
    return answer
