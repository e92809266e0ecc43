"""Layer 4': a Result becomes one self-contained HTML page, the same facts as strict JSON, and a small picture.

The page loads nothing and runs nothing: pictures, style and charts are inside it. None of them names the patient.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from qsm_edge.report.facts import report_dict
from qsm_edge.report.page import report_html
from qsm_edge.report.preview import preview_png
from qsm_edge.types import Result

__all__ = ["preview_png", "report_dict", "report_html", "write_report"]


def write_report(result: Result, folder: Path) -> None:
    """Write report.html, report.json and preview.png into `folder`, made if need be; each appears whole or not at all.

    Errors: those of the file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = json.dumps(report_dict(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(folder / "report.html", report_html(result).encode())
    _write(folder / "report.json", facts.encode())
    _write(folder / "preview.png", preview_png(result))


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
