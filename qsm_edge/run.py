"""Layer 5: every acquisition in the input becomes a result folder; what cannot be is refused, and the rest goes on."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsm_edge import publish
from qsm_edge.errors import REASONS, InputRefused, QsmEdgeError, ResourceError, UsageError
from qsm_edge.progress import Progress

if TYPE_CHECKING:
    from qsm_edge.dicom import Inventory
    from qsm_edge.recipe import Recipe
    from qsm_edge.types import Geometry, GreSeries, Result, Source

MASKS = ("auto", "network", "threshold")


@dataclass(frozen=True)
class Options:
    """How to reconstruct and what to write; the names are those of the command line."""

    recipe: str = "default"
    overrides: tuple[str, ...] = ()
    mask: str = "auto"
    model: Path | None = None
    device: str = "auto"
    nifti: bool = False
    parametric_map: bool = False


@dataclass(frozen=True)
class Done:
    """One reconstructed acquisition, and what it took."""

    slug: str
    folder: Path
    verdict: str
    figures: dict[str, dict[str, Any]]
    notes: tuple[tuple[str, str], ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Problem:
    """Something that has no result: `code` is one of `errors.REASONS`, `files` counts what it concerns."""

    code: str
    text: str
    what: str = ""
    files: int = 0
    names: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**asdict(self), "names": list(self.names)}


@dataclass
class Outcome:
    """What became of an input. `stopped` is the exit status of an interruption, 0 for none."""

    done: list[Done] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)
    ignored: list[Problem] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    stopped: int = 0

    @property
    def exit_status(self) -> int:
        """0 all done, 3 something was refused, 2 usage, 1 our fault; an interruption's own status before all."""
        if self.stopped:
            return self.stopped
        if any(problem.code == "internal" for problem in self.failed):
            return 1
        return 2 if self.failed else 3 if self.refused else 0


class Terminated(KeyboardInterrupt):
    """The system asked the process to end: as orderly as an interruption from the keyboard."""


def run(
    source: Path,
    output: Path,
    options: Options,
    progress: Progress,
    *,
    on_traceback: Callable[[str], None] | None = None,
) -> Outcome:
    """Reconstruct every acquisition below `source` into a folder of its own below `output`.

    Parameters
    ----------
    source : a folder at any depth, a zip archive, or a single file.
    output : made if it is not there; results of other acquisitions in it stay.
    on_traceback : called with the text of an unexpected error's traceback, which may quote what the files hold.

    Raises
    ------
    UsageError and ResourceError for what concerns the whole call: an input that is not there or holds no file, an
    unknown recipe, an output that is no folder, an absent device. All that concerns one acquisition is in the Outcome.
    """
    from qsm_edge import backend
    from qsm_edge.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.overrides)
    backend.resolve_device(options.device)
    keep = _check_paths(source, output, options)
    outcome = Outcome(restored=publish.recover(output))
    try:
        with found(source, progress) as inventory:
            outcome.refused += [problem_of(item, item.series) for item in inventory.refused]
            outcome.ignored += [problem_of(item) for item in inventory.ignored]
            for number, acquisition in enumerate(inventory.acquisitions, 1):
                slug = publish.safe_name(acquisition.source.slug)
                progress.label = f"[{number}/{len(inventory.acquisitions)}] {slug}"
                try:
                    done = _one(
                        acquisition,
                        slug=slug,
                        output=output,
                        recipe=recipe,
                        options=options,
                        keep=keep,
                        progress=progress,
                    )
                    outcome.done.append(done)
                except QsmEdgeError as error:
                    refused = error.exit_status == 3
                    (outcome.refused if refused else outcome.failed).append(
                        Problem(error.code, text_without_code(error), slug)
                    )
                except MemoryError:
                    outcome.refused.append(Problem("out_of_memory", REASONS["out_of_memory"], slug))
                except Exception as error:
                    outcome.failed.append(Problem("internal", place_of(error), slug))
                    if on_traceback is not None:
                        on_traceback(traceback.format_exc())
    except (InputRefused, ResourceError) as error:  # of the input as a whole, such as an archive that cannot be trusted
        outcome.refused.append(Problem(error.code, text_without_code(error), source.name))
    except KeyboardInterrupt as stop:
        outcome.stopped = 143 if isinstance(stop, Terminated) else 130
    finally:
        progress.label = ""
        progress.clear()
    return outcome


@contextlib.contextmanager
def found(source: Path, progress: Progress) -> Iterator[Inventory]:
    """What the reader finds in `source`; UsageError (bad_call) where that is not there, closed to us, or empty."""
    from qsm_edge import dicom

    if not source.exists():
        raise UsageError("bad_call", "there is no such file or folder", where=str(source))

    def on_file(number: int, files: int) -> None:
        progress("look through", number / files, f"{files} files")

    with contextlib.ExitStack() as stack:
        try:
            inventory = stack.enter_context(dicom.find(source, progress=on_file))
        except PermissionError as error:
            raise UsageError("bad_call", "the input cannot be read", where=str(source), got=error.strerror) from error
        if not (inventory.acquisitions or inventory.refused or inventory.ignored):
            raise UsageError("bad_call", "there is no file in the input", where=str(source))
        yield inventory


def place_of(error: BaseException) -> str:
    """Type and place of an unexpected error; not its message, which may quote what the files hold."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "qsm_edge" in Path(frame.filename).parts] or frames
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:]))
    return f"{type(error).__name__} at {' < '.join(places)}"


def identity_of(source: Source) -> str:
    """A fingerprint of the images that a result is made of: the same for the same acquisition, wherever it lies."""
    images = sorted({(image.sop_instance_uid, image.frame) for row in source.slices for image in row})
    return hashlib.sha256(repr(images or source.slug).encode()).hexdigest()


def _check_paths(source: Path, output: Path, options: Options) -> tuple[Path, ...]:
    """What must survive the run: the input and the files that the options name."""
    named = [Path(options.mask)] if options.mask not in MASKS else []
    named += [options.model] if options.model is not None else []
    named += [Path(options.recipe)] if Path(options.recipe).is_file() else []
    for path in (source, *named):
        if not path.exists():
            raise UsageError("bad_call", "there is no such file or folder", where=str(path))
    if output.exists() and not output.is_dir():
        raise UsageError("bad_call", "the output is not a folder", where=str(output))
    with publish.speaking_of_disk(output):
        output.mkdir(parents=True, exist_ok=True)
    return (source, *named)


def _one(
    acquisition: Any,
    *,
    slug: str,
    output: Path,
    recipe: Recipe,
    options: Options,
    keep: Sequence[Path],
    progress: Progress,
) -> Done:
    """Load, reconstruct and write one acquisition."""
    from qsm_edge.pipeline import reconstruct

    identity = identity_of(acquisition.source)
    publish.check_replaceable(output, slug, identity, keep)
    clock = [time.perf_counter()]
    progress("read", 0.0)
    series = acquisition.load()
    _check_disk(series, output, options)
    mask = options.mask if options.mask in MASKS else _read_mask(Path(options.mask), series.geometry)
    clock.append(time.perf_counter())
    model = None if options.model is None else str(options.model)
    result = reconstruct(series, recipe, mask=mask, device=options.device, model=model, progress=progress)
    clock.append(time.perf_counter())
    final = publish.publish(output, slug, identity, lambda folder: _write(result, folder, options, progress), keep)
    clock.append(time.perf_counter())
    return Done(
        slug=final.name,
        folder=final,
        verdict=result.quality.verdict,
        figures={
            name: {"value": figure.value, "unit": figure.unit, "meaning": figure.meaning}
            for name, figure in result.quality.figures.items()
        },
        notes=tuple((note.code, note.text) for note in result.quality.notes),
        seconds={
            name: round(end - start, 3)
            for name, start, end in zip(("read", "reconstruct", "write"), clock, clock[1:], strict=False)
        },
    )


def _write(result: Result, folder: Path, options: Options, progress: Progress) -> None:
    from qsm_edge import nifti, report
    from qsm_edge.dicom import parametric, seg, write_series

    progress("write", 0.0, "susceptibility series")
    write_series(result, folder / "chi")
    progress("write", 0.5, "mask")
    seg.write_seg(result, folder / "mask.dcm")
    if options.parametric_map:
        parametric.write_parametric_map(result, folder / "parametric_map.dcm")
    if options.nifti:
        progress("write", 0.6, "nifti")
        nifti.write_result(result, folder / "nifti")
    progress("write", 0.8, "report")
    report.write_report(result, folder)
    progress("write", 1.0)


def _read_mask(path: Path, geometry: Geometry) -> Any:
    """A user's own mask: NIfTI by its name, anything else as a DICOM segmentation."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        from qsm_edge import nifti

        return nifti.read_mask(path, geometry)
    from qsm_edge.dicom import maskfile

    return maskfile.read_seg_mask(path, geometry)


def _check_disk(series: GreSeries, output: Path, options: Options) -> None:
    """Refuse before computing rather than after: series and mask, optional maps, a report, and a margin of a tenth."""
    voxels = series.geometry.shape[0] * series.geometry.shape[1] * series.geometry.shape[2]
    per_voxel = 3 + (21 if options.nifti else 0) + (4 if options.parametric_map else 0)
    wanted = 1.1 * (voxels * per_voxel + 4096 * series.geometry.shape[0] + 10e6)
    free = shutil.disk_usage(output).free
    if free < wanted:
        raise ResourceError(
            "out_of_disk", where=str(output), got=f"{free / 1e6:.0f} MB", wanted=f"{wanted / 1e6:.0f} MB"
        )


def text_without_code(error: QsmEdgeError) -> str:
    """The error's sentence without its code, which has a place of its own."""
    return str(error).removeprefix(f"[{error.code}] ")


def problem_of(item: Any, what: str = "") -> Problem:
    """A refusal or ignored files of the reader; only the first names are kept, and of those no folders."""
    names = tuple(sorted(Path(str(name)).name for name in item.files))
    return Problem(item.code, item.text, what, len(names), names[:5])


def line_of(problem: Mapping[str, Any]) -> str:
    """One line for a person about a `Problem.as_dict()`."""
    head = f"[{problem['code']}] {problem['what'] + ': ' if problem['what'] else ''}{problem['text']}"
    if not problem["files"]:
        return head
    more = ", ..." if problem["files"] > len(problem["names"]) else ""
    return f"{head} ({counted(problem['files'], 'file')}: {', '.join(problem['names'])}{more})"


def counted(number: int, noun: str) -> str:
    """'1 file', '2 files'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
