"""Layer 5: what the reader understands of an input, and what it would refuse and why; nothing is reconstructed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qsm_edge.errors import QsmEdgeError
from qsm_edge.progress import Progress
from qsm_edge.run import Problem, check_memory, counted, found, line_of, place_of, problem_of, text_without_code


def survey(source: Path, progress: Progress, *, pixels: bool = True) -> dict[str, Any]:
    """Every acquisition below `source`: ``usable`` ones with what is known of them, ``refused`` and ``ignored`` ones.

    With `pixels` each acquisition is loaded once, because some facts and some reasons for refusal are in the values only
    (the phase's scale and sign, a constant phase). Raises UsageError where the input is not there or holds no file.
    """
    usable: list[dict[str, Any]] = []
    with found(source, progress) as inventory:
        refused = [problem_of(item, item.series) for item in inventory.refused]
        ignored = [problem_of(item) for item in inventory.ignored]
        for number, acquisition in enumerate(inventory.acquisitions, 1):
            slug = acquisition.source.slug
            progress.label = f"[{number}/{len(inventory.acquisitions)}] {slug}"
            try:
                series = None
                if pixels:
                    progress("read", 0.0)
                    check_memory(acquisition)
                    series = acquisition.load()
                facts = acquisition.describe(series)
                del series  # before the next one is read
            except QsmEdgeError as error:
                refused.append(Problem(error.code, text_without_code(error), slug))
            except Exception as error:
                refused.append(Problem("internal", place_of(error), slug))
            else:
                usable.append(facts)
    progress.label = ""
    return {
        "pixels_read": pixels,
        "usable": usable,
        "refused": [problem.as_dict() for problem in refused],
        "ignored": [problem.as_dict() for problem in ignored],
    }


def text_of(facts: dict[str, Any]) -> str:
    """The same for a person."""
    lines: list[str] = []
    for one in facts["usable"]:
        lines.append(f"usable   {one['slug']}")
        shown = {key: value for key, value in one.items() if key not in ("slug", "notes")}
        width = max((len(key) for key in shown), default=0)
        lines += [f"           {key.replace('_', ' '):<{width}}  {_said(value)}" for key, value in shown.items()]
        lines += [f"           note [{note['code']}] {note['text']}" for note in one["notes"]]
    for word in ("refused", "ignored"):
        lines += [f"{word:<9}{line_of(problem)}" for problem in facts[word]]
    ignored = sum(problem["files"] for problem in facts["ignored"])
    lines.append(
        f"{len(facts['usable'])} usable, {len(facts['refused'])} refused, {counted(ignored, 'other file')} ignored"
    )
    return "".join(f"{line}\n" for line in lines)


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ("; " if value and isinstance(value[0], dict) else ", ").join(_said(item) for item in value)
    if isinstance(value, dict):
        return " ".join(_said(item) for item in value.values())
    return str(value)
