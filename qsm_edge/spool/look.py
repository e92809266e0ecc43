"""What does the reader make of a study? The part that runs in a child: headers in, one JSON document out.

    {"acquisitions": [{"names": [...], "memory_bytes": estimate}],
     "refused": [{"code", "text", "series", "names": [...]}],
     "ignored": [{"code", "text", "names": [...]}]}

Names are those of the instances' files without their suffix.
"""

from __future__ import annotations

import fnmatch
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsm_edge.dicom import Acquisition


def main(argv: Sequence[str]) -> int:
    """FOLDER RECIPE [STAGE.OPTION=VALUE...]: write what is found to standard output; returns the exit status."""
    folder, recipe, *overrides = argv
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = look_at(Path(folder), _estimator(recipe, overrides))
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def look_at(folder: Path, estimate: Callable[[Acquisition], int]) -> dict[str, Any]:
    """The document, for a folder of instances. Raises what `dicom.find` raises."""
    from qsm_edge import dicom

    there = sorted(Path(name).stem for name in os.listdir(folder))
    with dicom.find(folder) as inventory:
        acquisitions = [
            {
                "names": sorted(
                    {image.file.path.stem for part in a.plan.images.values() for row in part for image in row}
                ),
                "memory_bytes": estimate(a),
            }
            for a in inventory.acquisitions
        ]
        refused = [
            {"code": r.code, "text": r.text, "series": r.series, "names": _names(r.files, there)}
            for r in inventory.refused
        ]
        ignored = [{"code": i.code, "text": i.text, "names": _names(i.files, there)} for i in inventory.ignored]
    return {"acquisitions": acquisitions, "refused": refused, "ignored": ignored}


def _estimator(recipe: str, overrides: Sequence[str]) -> Callable[[Acquisition], int]:
    """The memory that a recipe takes, with a mask as large as the volume, because nobody knows it yet."""
    from qsm_edge.memory import estimate_bytes
    from qsm_edge.recipe import Recipe

    settled = Recipe.load(recipe, tuple(overrides))

    def estimate(acquisition: Acquisition) -> int:
        shape = acquisition.geometry.shape
        return int(estimate_bytes(shape, len(acquisition.plan.echo_times_ms), shape, settled))

    return estimate


def _names(shown: Iterable[str], there: Sequence[str]) -> list[str]:
    """The instances meant by the names that the reader shows: it blanks what a patient's ID has in common with a hash."""
    exact = set(there)
    names: set[str] = set()
    for text in shown:
        stem = text.removesuffix(".dcm")
        names.update({stem} & exact or fnmatch.filter(there, stem))
    return sorted(names)
