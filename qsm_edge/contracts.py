"""Layer 5: `qsm-edge module`: one run as a container platform asks for it, by environment variables and files.

Folders come from the variables of mercure, MONAI Deploy or Holoscan, settings from mercure's ``task.json`` in the input.
Everything goes straight into the output folder, without folders in it, because mercure sends the ``*.dcm`` that lie there:
``<acquisition>.chi.<name>.dcm``, ``<acquisition>.mask.dcm``, the report, and ``result.json``, which says what became of the
input in the words of ``qsm-edge run --json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qsm_edge.errors import UsageError

#: Input and output of each platform. mercure sets all of them; MONAI Deploy the third before its version 1, then the second.
FOLDERS = (
    ("MERCURE_IN_DIR", "MERCURE_OUT_DIR"),
    ("HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH"),
    ("MONAI_INPUTPATH", "MONAI_OUTPUTPATH"),
)
TASK, RESULT = "task.json", "result.json"
#: Settings, which are the options of `qsm-edge run`, and what each must be.
SETTINGS: dict[str, type] = {
    "recipe": str,
    "set": list,
    "mask": str,
    "model": str,
    "device": str,
    "maps": list,
    "nifti": bool,
    "parametric_map": bool,
}
_MOST_TASK_BYTES = 1_000_000

_EPILOG = """\
MERCURE_IN_DIR and MERCURE_OUT_DIR, or HOLOSCAN_INPUT_PATH and HOLOSCAN_OUTPUT_PATH, or MONAI_INPUTPATH and
MONAI_OUTPUTPATH name the folders. See deploy/mercure and deploy/monai.
exit status: 0 there is a result (what was refused beside it is in result.json) · 3 there is none · 2 wrong usage ·
1 our fault
"""


def add_command(command: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    sub = command("module", _module, "One run inside a container platform, which names the folders in its environment.")
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, _EPILOG


def _module(args: argparse.Namespace) -> int:
    status, document = module(os.environ)
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
    return status


def folders(environment: Mapping[str, str]) -> tuple[Path, Path]:
    """Input and output folder. UsageError (bad_call) where none, half of a pair, or two that differ are named."""
    named: set[tuple[str, str]] = set()
    for reads, writes in FOLDERS:
        pair = environment.get(reads, ""), environment.get(writes, "")
        if any(pair) and not all(pair):
            raise UsageError("bad_call", "one of two variables is not set", wanted=f"{reads} and {writes}")
        if all(pair):
            named.add((os.path.normpath(pair[0]), os.path.normpath(pair[1])))
    if len(named) != 1:
        wanted = " or ".join(" and ".join(pair) for pair in FOLDERS)
        what = "the environment names different folders" if named else "the environment names no folders"
        raise UsageError("bad_call", what, wanted=wanted)
    source, output = (Path(name) for name in named.pop())
    if not output.is_dir():
        raise UsageError("bad_call", "the output folder is not there", where=str(output))
    return source, output


def options(source: Path) -> list[str]:
    """The options of `qsm-edge run` that the task in the input folder sets; none where there is no task.

    Raises
    ------
    UsageError
        bad_value where the task or a setting is of another kind, unknown_name where a setting is none of `SETTINGS`.
    """
    words: list[str] = []
    for name, value in _settings(source / TASK).items():
        kind = SETTINGS.get(name)
        if kind is None:
            raise UsageError("unknown_name", "no such setting", where=TASK, got=name, wanted=", ".join(SETTINGS))
        texts = value if isinstance(value, list) else [value]
        if not isinstance(value, kind) or not (kind is bool or all(isinstance(text, str) for text in texts)):
            wanted = {str: "a text", list: "a list of texts", bool: "true or false"}[kind]
            raise UsageError("bad_value", f"the setting {name} is of another kind", where=TASK, wanted=wanted)
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            words += [flag] if value else []
        elif name == "maps":
            words += [f"{flag}={','.join(texts)}"] if texts else []
        else:
            words += [f"{flag}={text}" for text in texts]
    return words


def _settings(path: Path) -> dict[str, Any]:
    """What a task says under process.settings; mercure gives each step a task with this step alone."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_TASK_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError("bad_call", "the task cannot be read", where=TASK, got=error.strerror) from error
    settings: list[Any]
    try:
        if len(content) > _MOST_TASK_BYTES:
            raise ValueError
        process = json.loads(content).get("process") or {}
        steps = process if isinstance(process, list) else [process]
        settings = [step.get("settings") or {} for step in steps]
    except (ValueError, AttributeError, RecursionError):
        settings = []
    if len(settings) != 1 or not isinstance(settings[0], dict):
        wanted = '{"process": {"settings": {...}}} in JSON, one step'
        raise UsageError("bad_value", "the task is not understood", where=TASK, wanted=wanted)
    return dict(settings[0])


def module(environment: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """Run once as the environment says; returns exit status and what was written into ``result.json``.

    Raises
    ------
    UsageError : for the environment and the task; where the output folder is known, ``result.json`` says it too.
    """
    source, output = folders(environment)
    try:
        words = options(source)
    except UsageError as error:
        _write(output / RESULT, {"exit_status": error.exit_status, "error": error.as_dict()})
        raise
    # On the same disk, so that nothing is copied; hidden, so that nothing unfinished is sent.
    work = Path(tempfile.mkdtemp(prefix=".qsm-edge-", dir=output))
    try:
        status, document = _run(source, work, words)
        for done in document.get("done", []):
            done["files"] = _flatten(Path(done.pop("folder")), output)
            del done["report"]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if status == 3 and document.get("done"):
        status = 0
    document = {**document, "command": "module", "output": str(output), "exit_status": status}
    _write(output / RESULT, document)
    return status, document


def _run(source: Path, work: Path, words: list[str]) -> tuple[int, dict[str, Any]]:
    from qsm_edge.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = main(["run", str(source), str(work), "--json", *words])
    try:
        return status, dict(json.loads(said.getvalue()))
    except ValueError:  # argparse refused a setting, and has said so on standard error
        error = UsageError("bad_value", "a setting has a value that is not one of its choices", where=TASK)
        return status, {"error": error.as_dict()}


def _flatten(result: Path, output: Path) -> list[str]:
    """Move the files of a result folder into `output` itself; their names are their paths, joined by dots."""
    names = []
    for path in sorted(path for path in result.rglob("*") if path.is_file() and not path.name.startswith(".")):
        name = ".".join((result.name, *path.relative_to(result).parts))
        path.replace(output / name)
        names.append(name)
    return names


def _write(path: Path, document: Mapping[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
