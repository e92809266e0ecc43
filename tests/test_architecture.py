"""The rules of the house that a machine can hold: layers, one door per third party, size, silence, quick import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qsm_edge"

STAGES = {
    "support",
    "unwrap",
    "echoes",
    "weights",
    "background",
    "strong_sources",
    "edges",
    "invert",
    "reference",
    "masking",
    "quality",
    "weighted",
}
# A part of a stage in a file of its own.
MEMBERS = {
    "tfi": "background",
    "voids": "strong_sources",
    "totalvariation": "invert",
    "polarity": "echoes",
    "network": "masking",
    "modelcard": "masking",
}
BORDER = 4.5  # files in and out: imports layer 0 and itself only
LAYER: dict[str, float] = {
    **dict.fromkeys(("errors", "types", "units"), 0),
    **dict.fromkeys(("backend", "fft"), 1),
    **dict.fromkeys(("kernels", "solvers", "distance"), 2),
    **dict.fromkeys(STAGES | set(MEMBERS), 3),
    **dict.fromkeys(("stages", "recipe", "memory", "provenance", "checks", "pipeline", "maps", "uncertainty"), 4),
    **dict.fromkeys(("dicom", "nifti", "report"), BORDER),
    **dict.fromkeys(("cli", "run", "maskonly", "survey", "publish", "progress", "doctor", "selftest"), 5),
    **dict.fromkeys(
        (
            "spool",
            "serve",
            "queue_commands",
            "contracts",
            "listen",
            "send",
            "status",
            "openrecon",
            "bounds",
            "__main__",
        ),
        5,
    ),
}
DOORS = {
    "cupy": {"backend"},
    "cupyx": {"backend"},
    "pyfftw": {"backend"},
    "mkl_fft": {"backend"},
    "onnxruntime": {"network"},
    "pynetdicom": {"listen", "send"},
    "nibabel": {"nifti"},
    "pydicom": {"dicom"},
    "highdicom": {"dicom"},
    "gdcm": {"dicom"},
    "ismrmrd": {"openrecon"},
}
EVERYWHERE = {"numpy", "scipy", "array_api_compat"}
EXPORT_MAY_IMPORT = {"types", "units", "kernels", "fft", "masking"}
SOURCE_SUFFIXES = {".py", ".toml", ".sh", ".lua", ".html", ".css", ".js", ".md"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def unit(path: Path) -> str:
    """The name that LAYER knows a file of the package by: its module, or the subpackage it belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, written out, absolute, `from a import b` as a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            first = node.args[0]
            yield str(first.value) if isinstance(first, ast.Constant) else ast.unparse(first)


def own_units(path: Path) -> set[str]:
    """The units of the package that a file imports; the version number is everybody's."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("qsm_edge.")}
    return names - {"__version__"}


MODULES = [path for path in sources(PACKAGE) if path.name != "__init__.py" or path.parent != PACKAGE]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_its_own_layer_and_below(path):
    me = unit(path)
    assert me in LAYER, f"give {me} a layer in {Path(__file__).name}"
    for other in own_units(path) - {me}:
        assert other in LAYER, f"{me} imports {other}, which has no layer"
        if LAYER[me] == BORDER:
            assert LAYER[other] == 0, f"{me} is files in and out: it imports layer 0 only, not {other}"
        else:
            assert LAYER[other] <= LAYER[me], f"{me} (layer {LAYER[me]}) imports {other} (layer {LAYER[other]})"
            assert LAYER[other] != BORDER or LAYER[me] == 5, f"{me} is an algorithm: it never imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_pipeline_and_the_tables_name_more_than_one_stage(path):
    me = unit(path)
    if me not in {"pipeline", "stages", "maps"}:
        assert len({MEMBERS.get(name, name) for name in own_units(path) | {me}} & STAGES) <= 1


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_each_third_party_has_one_door(path):
    me = unit(path)
    for name in imported(path):
        root = name.split(".")[0]
        if root in sys.stdlib_module_names or root in EVERYWHERE or root == "qsm_edge":
            continue
        if root.startswith("f'"):
            assert path.name == "__init__.py", f"{me} imports by a computed name"
            continue
        assert root in DOORS, f"{me} imports {root}, which has no door (and is no dependency)"
        assert me in DOORS[root], f"{me} imports {root}; its door is {DOORS[root]}"


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_library_is_silent_and_takes_no_unknown_options(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", f"line {node.lineno}: the library does not print"
            assert unit(path) == "__main__" or called not in ("exit", "sys.exit", "os._exit"), f"line {node.lineno}"
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert node.args.kwarg is None, f"{node.name} swallows unknown options"


def test_the_training_side_uses_a_few_modules_only():
    for path in sources(ROOT / "export"):
        allowed = EXPORT_MAY_IMPORT | ({"pipeline", "network"} if path.name in ("evaluate.py", "fine.py") else set())
        assert own_units(path) <= allowed, f"{path.name} imports {own_units(path) - allowed}"


@pytest.mark.parametrize("folder", ["qsm_edge", "export", "tests", "bench", "dicom_samples", "deploy"])
def test_no_file_is_over_400_lines(folder):
    counts = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCE_SUFFIXES and path.is_file() and not {"__pycache__", "out"} & set(path.parts)
    }
    assert {name: count for name, count in counts.items() if count > 400} == {}


def fresh(code: str) -> str:
    """What a fresh interpreter writes to stdout when it runs `code`; it may write nothing to stderr."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


HEAVY = ("numpy", "scipy", "pydicom", "highdicom", "nibabel", "pynetdicom", "onnxruntime", "cupy", "torch", "PIL")


@pytest.mark.parametrize("module", ["qsm_edge", "qsm_edge.cli"])
def test_importing_loads_nothing_heavy(module):
    loaded = json.loads(fresh(f"import sys, json; import {module}; print(json.dumps(sorted(sys.modules)))"))
    assert [name for name in HEAVY if name in loaded] == []


def test_import_takes_less_than_100_ms():
    timing = "import time; t = time.perf_counter(); import qsm_edge; print(time.perf_counter() - t)"
    assert min(float(fresh(timing)) for _ in range(5)) < 0.1


def test_nothing_happens_on_import():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in sources(PACKAGE)]
    code = (
        "import importlib, threading, warnings, os\n"
        "warnings.simplefilter('error')\n"
        "before = dict(os.environ)\n"
        f"for name in {[name for name in names if not name.endswith('__main__')]}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "codec = 'GDCM_RESOURCES_PATH'\n"  # set by the codec, not by us, and inherited where a test before read with it
        "assert {k: v for k, v in os.environ.items() if k != codec} == {k: v for k, v in before.items() if k != codec}\n"
    )
    assert fresh(code) == ""
