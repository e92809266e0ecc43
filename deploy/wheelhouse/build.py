"""Make the wheelhouse: every wheel of the runtime for this Python, their hashes, a bill of materials, and the sizes.

    python deploy/wheelhouse/build.py [FOLDER] [--extras cpu,codecs]

Downloads with pip from wherever pip is configured to look; after that nothing needs a network. FOLDER is replaced as a
whole, and only when everything in it is complete.
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT, PACKAGE = "qsm-edge", "qsm_edge"
REQUIREMENTS, SBOM, SIZES = "requirements.txt", "sbom.cdx.json", "SIZES.txt"


@dataclass(frozen=True)
class Wheel:
    """One wheel and what its own metadata say of it."""

    name: str
    version: str
    file: str
    size: int
    sha256: str
    licence: str
    expression: bool
    requires: tuple[str, ...]


def canonical(name: str) -> str:
    """The one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def look(path: Path) -> Wheel:
    """Read a wheel's METADATA. ValueError where there is none, or where name or version is missing."""
    with zipfile.ZipFile(path) as archive:
        inside = [entry for entry in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry)]
        if len(inside) != 1:
            raise ValueError(f"{path.name} is no wheel: it has {len(inside)} METADATA files")
        said = email.parser.HeaderParser().parsestr(archive.read(inside[0]).decode("utf-8"))
    name, version = said.get("Name"), said.get("Version")
    if not name or not version:
        raise ValueError(f"{path.name} does not say its name and version")
    classified = [one.split(" :: ")[-1] for one in said.get_all("Classifier", []) if one.startswith("License :: ")]
    expression = said.get("License-Expression") or ""
    licence = expression or ", ".join(classified) or (said.get("License") or "").split("\n")[0][:80]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # Of others the extras were not asked for; of ours, what is in the folder tells which were.
    wanted = [one for one in said.get_all("Requires-Dist", []) if "extra" not in one or canonical(name) == PROJECT]
    requires = tuple(sorted({canonical(re.split(r"[^A-Za-z0-9._-]", one, maxsplit=1)[0]) for one in wanted}))
    size = path.stat().st_size
    return Wheel(canonical(name), version, path.name, size, digest, licence, bool(expression), requires)


def requirements(wheels: Sequence[Wheel]) -> str:
    """What ``pip install --require-hashes`` takes: exactly these versions and exactly these bytes."""
    return "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in wheels)


def bill(wheels: Sequence[Wheel]) -> dict[str, Any]:
    """A CycloneDX 1.5 bill of materials. The same wheels give the same serial number."""
    own = next(one for one in wheels if one.name == PROJECT)
    present = {one.name: reference(one) for one in wheels}
    serial = uuid.uuid5(uuid.NAMESPACE_OID, requirements(wheels))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": component(own)},
        "components": [component(one) for one in wheels if one is not own],
        "dependencies": [
            {
                "ref": reference(one),
                "dependsOn": [present[name] for name in one.requires if name in present],
            }
            for one in wheels
        ],
    }


def reference(wheel: Wheel) -> str:
    """The wheel's package URL, which is its name in the bill too."""
    return f"pkg:pypi/{wheel.name}@{wheel.version}"


def component(wheel: Wheel) -> dict[str, Any]:
    """A wheel as the bill lists it; a licence that the wheel does not state is left out rather than guessed."""
    stated = {"expression": wheel.licence} if wheel.expression else {"license": {"name": wheel.licence}}
    licences = {"licenses": [stated]} if wheel.licence else {}
    return {
        "type": "application" if wheel.name == PROJECT else "library",
        "bom-ref": reference(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": reference(wheel),
        "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        **licences,
        "properties": [{"name": "wheel", "value": wheel.file}, {"name": "bytes", "value": str(wheel.size)}],
    }


def sizes(wheels: Sequence[Wheel]) -> str:
    """A table for a person, the largest first."""
    rows = [f"{one.size / 1e6:8.1f} MB  {one.file}" for one in sorted(wheels, key=lambda one: -one.size)]
    total = sum(one.size for one in wheels)
    on = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    return "\n".join([f"for {on}", *rows, f"{total / 1e6:8.1f} MB  in all, {len(wheels)} wheels"]) + "\n"


def describe(folder: Path) -> list[Wheel]:
    """Write requirements, bill and sizes beside the wheels of a folder. ValueError where a name is there twice."""
    wheels = sorted((look(path) for path in folder.glob("*.whl")), key=lambda one: one.name)
    names = [one.name for one in wheels]
    if PROJECT not in names or len(set(names)) != len(names):
        raise ValueError(f"a wheelhouse holds {PROJECT} and each name once; this one holds {', '.join(names)}")
    (folder / REQUIREMENTS).write_text(requirements(wheels), encoding="utf-8")
    (folder / SBOM).write_text(json.dumps(bill(wheels), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / SIZES).write_text(sizes(wheels), encoding="utf-8")
    return wheels


def fetch(folder: Path, extras: str) -> None:
    """The project's own wheel and, of exactly what it asks for, one wheel each."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory() as copied:  # so that nothing an earlier build left behind gets in
        for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / name, copied)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / PACKAGE, Path(copied) / PACKAGE, ignore=ignored)
        same_bytes = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}  # of the same source, whenever it is built
        subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), copied], check=True, env=same_bytes)
    (own,) = folder.glob("*.whl")
    wanted = f"{own}[{extras}]" if extras else str(own)
    subprocess.run([*pip, "download", "--only-binary", ":all:", "-d", str(folder), wanted], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Download, hash and describe the wheels of the runtime.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist" / "wheelhouse")
    parser.add_argument("--extras", default="cpu,codecs", help="extras of the package (%(default)s)")
    args = parser.parse_args(argv)
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as made:
        fresh = Path(made) / "wheelhouse"
        fresh.mkdir()
        fetch(fresh, args.extras)
        describe(fresh)
        shutil.copy(Path(__file__).with_name("install.sh"), fresh)
        if args.folder.exists():
            args.folder.rename(Path(made) / "before")
        fresh.rename(args.folder)
    sys.stdout.write((args.folder / SIZES).read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
