"""Other people's programs that judge what we wrote: where they are, and what they said."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def program(name: str, *places: str) -> str:
    """The full path of a program, preferably Debian's (pynetdicom installs namesakes); skips the test without it."""
    for candidate in (*places, f"/usr/bin/{name}", f"/usr/sbin/{name}"):
        if Path(candidate).is_file():
            return candidate
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def verdict(path: Path) -> list[str]:
    """What `dciodvfy -new` has against an object; its exit status is no verdict, and it speaks on stderr."""
    ran = subprocess.run([program("dciodvfy"), "-new", str(path)], capture_output=True, check=False, timeout=60)
    lines = (ran.stderr + ran.stdout).decode("utf-8", "replace").splitlines()
    assert any(line.startswith(("MRImage", "Segmentation", "ParametricMap")) for line in lines), lines
    return [line for line in lines if line.startswith(("Error", "Warning"))]
