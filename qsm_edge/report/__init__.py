"""Layer 4': a Result becomes one self-contained HTML page, and the same facts as strict JSON.

The page loads nothing and runs nothing: pictures, style and charts are inside it. Neither file names the patient.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from qsm_edge.report.facts import report_dict
from qsm_edge.report.page import report_html
from qsm_edge.types import Result

__all__ = ["report_dict", "report_html", "write_report"]


def write_report(result: Result, folder: Path) -> None:
    """Write report.html and report.json into `folder`, which is made if need be; each appears whole or not at all.

    Errors: those of the file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.html", report_html(result))
    _write(
        folder / "report.json", json.dumps(report_dict(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
