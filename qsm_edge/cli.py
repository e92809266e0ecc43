"""Layer 5: the commands. Parses arguments, calls one function, shows what came out; nothing is computed here."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsm_edge import __version__, contracts
from qsm_edge.errors import QsmEdgeError
from qsm_edge.openrecon import command as openrecon_command
from qsm_edge.progress import Progress
from qsm_edge.queue_commands import add_commands
from qsm_edge.run import MASKS, Done, Options, Outcome, Terminated, counted, line_of, place_of, run

if TYPE_CHECKING:
    from qsm_edge.maskonly import Masked

_EPILOG = """\
exit status: 0 all done · 3 something was refused · 2 wrong usage · 1 our fault · 130 interrupted

examples:
  qsm-edge run /data/study /data/qsm                      every multi-echo GRE below a folder
  qsm-edge run study.zip out --recipe fast --nifti        quicker, and NIfTI files beside the DICOM
  qsm-edge run study out --mask brain.nii.gz              your own mask, honoured exactly
  qsm-edge run study out --set invert=tkd --set invert.threshold=0.15
  qsm-edge mask study masks                               the brain masks alone
  qsm-edge inspect /data/study                            what would be done, and why not
"""

_MASK_EPILOG = """\
INPUT is what `run` takes, and each gradient-echo acquisition in it gets a folder OUTPUT/<acquisition>/ with
  mask.nii.gz   on the grid of the images
  mask.dcm      a DICOM segmentation that refers to the first echo's magnitude (or real) images
  mask.json     method, network, echoes read, volume, how sure the network is, notes with reason codes
or INPUT is a magnitude image as NIfTI (.nii, .nii.gz; 3-D, or 4-D with an echo a volume, 24 at most; of a
longer series the first volume alone counts): then mask.nii.gz, with the axes and the affine of that file, and mask.json
go into OUTPUT itself.

examples:
  qsm-edge mask study masks
  qsm-edge mask study masks --mask network --model brain.onnx
  qsm-edge mask magnitude.nii.gz masks --mask threshold --set mask.closing_mm=6
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status and never raises."""
    with contextlib.suppress(AttributeError, ValueError):  # a replaced stream knows nothing of encodings
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        args = parser().parse_args(argv)
    except SystemExit as exit_:  # argparse has said what is wrong
        return int(exit_.code or 0)
    try:
        with _quiet_libraries(args.debug), _ends_orderly():
            status = int(args.command(args))
            sys.stdout.flush()
            return status
    except QsmEdgeError as error:
        return _fail(args, error.as_dict(), str(error), error.exit_status)
    except KeyboardInterrupt as stop:
        sys.stderr.write("qsm-edge: stopped\n")
        return 143 if isinstance(stop, Terminated) else 130
    except BrokenPipeError:  # whoever read our output has gone; nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        place = place_of(error)
        if args.debug:
            sys.stderr.write(traceback.format_exc())
        text = f"[internal] an internal error: {place}{'' if args.debug else '; --debug shows all of it'}"
        return _fail(args, {"code": "internal", "what": place}, text, 1)


def parser() -> argparse.ArgumentParser:
    """The command line, as the documents describe it."""
    top = argparse.ArgumentParser(
        prog="qsm-edge",
        description="Quantitative susceptibility mapping: multi-echo GRE DICOM in, a DICOM susceptibility series out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"qsm-edge {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
        sub.add_argument("--debug", action="store_true", help="show tracebacks and the libraries' warnings")
        return sub

    sub = command("run", _run, "Reconstruct every GRE acquisition below INPUT into a folder of its own below OUTPUT.")
    sub.add_argument("input", metavar="INPUT", type=Path, help="a folder at any depth, a .zip, or a file")
    sub.add_argument("output", metavar="OUTPUT", type=Path, help="a folder; made if it is not there")
    sub.add_argument("--recipe", default="default", metavar="NAME|FILE", help="see `qsm-edge recipe` (%(default)s)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="STAGE.OPTION=VALUE", help="change one option; may be repeated"
    )
    sub.add_argument("--mask", default="auto", metavar="|".join((*MASKS, "FILE")), help="NIfTI or DICOM SEG (auto)")
    sub.add_argument("--model", type=Path, metavar="FILE", help="the mask network, an ONNX file with its card")
    sub.add_argument("--nifti", action="store_true", help="write NIfTI files too")
    sub.add_argument("--parametric-map", action="store_true", help="write a DICOM Parametric Map (float32) too")
    sub.add_argument(
        "--maps",
        metavar="NAME,...",
        help="further DICOM series: t2star, r2star, swi, smwi, mip (minimum projection), chi_sd (uncertainty)",
    )
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (auto)")
    sub.add_argument("--quiet", action="store_true", help="say nothing but what went wrong")

    sub = command(
        "mask", _mask, "Make the brain mask of every GRE acquisition below INPUT, or of a NIfTI magnitude image."
    )
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, _MASK_EPILOG
    sub.add_argument(
        "input", metavar="INPUT", type=Path, help="a folder at any depth, a .zip, a file, or a NIfTI image"
    )
    sub.add_argument("output", metavar="OUTPUT", type=Path, help="a folder; made if it is not there")
    text = "network: by --model or the one that ships; threshold: without a network; auto: the network if there is one"
    sub.add_argument("--mask", default="auto", choices=MASKS, help=f"{text} (auto)")
    sub.add_argument("--model", type=Path, metavar="FILE", help="the mask network, an ONNX file with its card")
    sub.add_argument(
        "--set", action="append", default=[], metavar="mask.OPTION=VALUE", help="change one option; may be repeated"
    )
    sub.add_argument("--quiet", action="store_true", help="say nothing but what went wrong")

    sub = command("inspect", _inspect, "Say what the reader understands of INPUT, what would be refused, and why.")
    sub.add_argument("input", metavar="INPUT", type=Path, help="a folder at any depth, a .zip, or a file")
    sub.add_argument("--headers-only", action="store_true", help="do not read the pixels: quicker, finds less")
    sub.add_argument("--quiet", action="store_true", help="show no progress")

    add_commands(command)
    contracts.add_command(command)
    openrecon_command.add_command(command)

    sub = command("doctor", _doctor, "Check this installation, and its numbers on a case with a known answer.")
    sub.add_argument("--quiet", action="store_true", help="show no progress")

    sub = command("recipe", _recipe, "Print a recipe with every option resolved, as TOML that --recipe takes.")
    sub.add_argument("name", nargs="?", default="default", metavar="NAME|FILE", help="which (%(default)s)")
    sub.add_argument("--set", action="append", default=[], metavar="STAGE.OPTION=VALUE", help="change one option")
    return top


def _run(args: argparse.Namespace) -> int:
    options = Options(
        recipe=args.recipe,
        overrides=tuple(args.set),
        mask=args.mask,
        model=args.model,
        device=args.device,
        nifti=args.nifti,
        parametric_map=args.parametric_map,
        maps=() if args.maps is None else tuple(name.strip() for name in args.maps.split(",")),
    )
    progress = Progress(sys.stderr, quiet=args.quiet)
    outcome = run(args.input, args.output, options, progress, on_traceback=_write_error if args.debug else None)
    return _told(args, "run", outcome, _run_done, _run_lines)


def _mask(args: argparse.Namespace) -> int:
    from qsm_edge.maskonly import run_mask

    options = Options(overrides=tuple(args.set), mask=args.mask, model=args.model, device="cpu")
    progress = Progress(sys.stderr, quiet=args.quiet)
    outcome = run_mask(args.input, args.output, options, progress, on_traceback=_write_error if args.debug else None)
    return _told(args, "mask", outcome, _mask_done, _mask_lines)


def _told(
    args: argparse.Namespace,
    command: str,
    outcome: Outcome[Any],
    facts_of: Callable[[Any], dict[str, Any]],
    lines_of: Callable[[Any], list[str]],
) -> int:
    """Say what became of the input, as JSON or as text; returns the exit status."""
    if args.json:
        _write_json(command, _document(args, outcome, facts_of))
    elif not args.quiet:
        sys.stdout.write(_summary(outcome, lines_of, {"run": "reconstructed", "mask": "masked"}[command]))
    if args.json or args.quiet:
        sys.stderr.write("".join(f"{line}\n" for line in _problems(outcome)))
    if outcome.stopped:
        sys.stderr.write("qsm-edge: stopped; finished results were kept, the unfinished one was removed\n")
    return outcome.exit_status


def _document(
    args: argparse.Namespace, outcome: Outcome[Any], facts_of: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    return {
        "output": str(args.output),
        "exit_status": outcome.exit_status,
        "done": [facts_of(done) for done in outcome.done],
        "refused": [problem.as_dict() for problem in outcome.refused],
        "failed": [problem.as_dict() for problem in outcome.failed],
        "ignored": [problem.as_dict() for problem in outcome.ignored],
        "restored": outcome.restored,
    }


def _run_done(done: Done) -> dict[str, Any]:
    return {
        "acquisition": done.slug,
        "folder": str(done.folder),
        "report": str(done.folder / "report.html"),
        "verdict": done.verdict,
        "figures": done.figures,
        "notes": [dict(code=code, text=text) for code, text in done.notes],
        "seconds": done.seconds,
    }


def _run_lines(done: Done) -> list[str]:
    lines = [f"done     {done.slug}: verdict {done.verdict}, {sum(done.seconds.values()):.1f} s"]
    lines += [f"           note [{code}] {text}" for code, text in done.notes]
    return [*lines, f"           look at {done.folder / 'report.html'}"]


def _mask_done(done: Masked) -> dict[str, Any]:
    return {"acquisition": done.slug, "folder": str(done.folder), **done.facts, "seconds": done.seconds}


def _mask_lines(done: Masked) -> list[str]:
    model = done.facts["model"]
    by = done.facts["method"] + (f" {model['name']} {model['version']}" if model else "")
    lines = [f"done     {done.slug}: {done.facts['volume_ml']:.0f} mL by {by}, {done.seconds:.1f} s"]
    lines += [f"           note [{note['code']}] {note['text']}" for note in done.facts["notes"]]
    return [*lines, f"           look at {done.folder / 'mask.nii.gz'}"]


def _summary(outcome: Outcome[Any], lines_of: Callable[[Any], list[str]], verb: str) -> str:
    lines = [line for done in outcome.done for line in lines_of(done)]
    lines += _problems(outcome)
    for problem in outcome.ignored:
        lines.append(f"ignored  {line_of(problem.as_dict())}")
    ignored = sum(problem.files for problem in outcome.ignored)
    counts = [f"{len(outcome.done)} {verb}", f"{len(outcome.refused)} refused"]
    counts += [f"{len(outcome.failed)} failed"] if outcome.failed else []
    counts += [f"{counted(ignored, 'other file')} ignored"] if ignored else []
    lines.append(", ".join(counts))
    if not (outcome.done or outcome.refused or outcome.failed or outcome.stopped):
        lines.append("there was no gradient-echo acquisition in the input; `qsm-edge inspect` says more")
    return "".join(f"{line}\n" for line in lines)


def _problems(outcome: Outcome[Any]) -> list[str]:
    refused = [f"refused  {line_of(problem.as_dict())}" for problem in outcome.refused]
    return refused + [f"failed   {line_of(problem.as_dict())}" for problem in outcome.failed]


def _shown(
    args: argparse.Namespace,
    command: str,
    look: Callable[[Progress], dict[str, Any]],
    text_of: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """What `look` found, written as JSON or as text, with its progress shown meanwhile."""
    progress = Progress(sys.stderr, quiet=args.quiet)
    try:
        found = look(progress)
    finally:
        progress.clear()
    if args.json:
        _write_json(command, found)
    else:
        sys.stdout.write(text_of(found))
    return found


def _inspect(args: argparse.Namespace) -> int:
    from qsm_edge.survey import survey, text_of

    found = _shown(
        args, "inspect", lambda progress: survey(args.input, progress, pixels=not args.headers_only), text_of
    )
    codes = {problem["code"] for problem in found["refused"]}
    return 1 if "internal" in codes else 3 if codes else 0


def _doctor(args: argparse.Namespace) -> int:
    from qsm_edge.doctor import examine, text_of

    report = _shown(args, "doctor", examine, text_of)
    return 0 if report["healthy"] else 1


def _recipe(args: argparse.Namespace) -> int:
    from qsm_edge.recipe import Recipe

    recipe = Recipe.load(args.name, tuple(args.set))
    if args.json:
        document = {"name": args.name, "digest": recipe.digest, "toml": recipe.to_toml(), "names": list(Recipe.names())}
        _write_json("recipe", document)
    else:
        sys.stdout.write(f"# recipes that come with qsm-edge: {', '.join(Recipe.names())}\n{recipe.to_toml()}")
    return 0


def _write_error(text: str) -> None:
    sys.stderr.write(text)


def _write_json(command: str, document: dict[str, Any]) -> None:
    whole = {"software": "qsm-edge", "version": __version__, "command": command, **document}
    sys.stdout.write(json.dumps(_finite(whole), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """`value` with null in place of NaN and infinity, which JSON does not have, and text in place of other objects."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):  # a NumPy scalar or array
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _fail(args: argparse.Namespace, facts: dict[str, str], text: str, status: int) -> int:
    if args.json:
        with contextlib.suppress(OSError):
            _write_json(args.command.__name__.strip("_"), {"exit_status": status, "error": facts})
            sys.stdout.flush()
    sys.stderr.write(f"qsm-edge: {text}\n")
    return status


@contextlib.contextmanager
def _quiet_libraries(debug: bool) -> Iterator[None]:
    """Warnings of the DICOM libraries may quote what a file holds, a name included: shown with --debug only."""
    with warnings.catch_warnings():
        warnings.simplefilter("default" if debug else "ignore")
        yield


@contextlib.contextmanager
def _ends_orderly() -> Iterator[None]:
    """Let a request to terminate unwind the stack, so that unfinished folders are removed."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever called us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
