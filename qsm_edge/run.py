"""Layer 5: every acquisition in the input becomes a result folder; what cannot be is refused, and the rest goes on."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qsm_edge import publish
from qsm_edge.errors import REASONS, InputRefused, QsmEdgeError, ResourceError, UsageError
from qsm_edge.progress import Progress

if TYPE_CHECKING:
    from qsm_edge.dicom import Acquisition, Inventory
    from qsm_edge.recipe import Recipe
    from qsm_edge.types import Geometry, Result, Source

T = TypeVar("T")

MASKS = ("auto", "network", "threshold")
#: Files that are named of those that a refusal concerns.
EXAMPLES = 2
#: Names that consoles and archives give to folders; a longer number may be a patient's.
_NUMBERED = re.compile(
    r"(dicom|dcm|images?|im|img|mr|pa|se|ser|series|st|study|scans?|export)?[-_ ]?\d{0,5}", re.IGNORECASE
)


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
    maps: tuple[str, ...] = ()


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
class Outcome(Generic[T]):
    """What became of an input. `stopped` is the exit status of an interruption, 0 for none."""

    done: list[T] = field(default_factory=list)
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
) -> Outcome[Done]:
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
    from qsm_edge import backend, maps
    from qsm_edge.recipe import Recipe

    recipe = Recipe.load(options.recipe, options.overrides)
    maps.check_names(options.maps)
    check_mask_options(recipe, options)
    backend.resolve_device(options.device)
    keep = check_paths(source, output, options)
    variant = variant_of(recipe, options)
    outcome: Outcome[Done] = Outcome(restored=publish.recover(output))

    make = partial(_one, variant=variant, output=output, recipe=recipe, options=options, keep=keep, progress=progress)
    with stopping(outcome, progress):
        each(source, outcome, progress, make, on_traceback)
    return outcome


def each(
    source: Path,
    outcome: Outcome[T],
    progress: Progress,
    make: Callable[[Acquisition, str], T],
    on_traceback: Callable[[str], None] | None,
) -> None:
    """Have `make` do something with every acquisition below `source` and its slug; what came of it goes into `outcome`."""
    with found(source, progress) as inventory:
        outcome.refused += [problem_of(item, item.series) for item in inventory.refused]
        outcome.ignored += [problem_of(item) for item in inventory.ignored]
        for number, acquisition in enumerate(inventory.acquisitions, 1):
            slug = publish.safe_name(acquisition.source.slug)
            progress.label = f"[{number}/{len(inventory.acquisitions)}] {slug}"
            try:
                outcome.done.append(make(acquisition, slug))
            except Exception as error:
                outcome_of(error, slug, outcome, on_traceback)


def outcome_of(error: Exception, what: str, outcome: Outcome[T], on_traceback: Callable[[str], None] | None) -> None:
    """Enter an error that one acquisition met, so that the others can go on."""
    if isinstance(error, QsmEdgeError):
        problem = Problem(error.code, text_without_code(error), what)
        (outcome.refused if error.exit_status == 3 else outcome.failed).append(problem)
    elif isinstance(error, MemoryError):
        outcome.refused.append(Problem("out_of_memory", REASONS["out_of_memory"], what))
    else:
        outcome.failed.append(Problem("internal", place_of(error), what))
        if on_traceback is not None:
            on_traceback("".join(traceback.format_exception(error)))


@contextlib.contextmanager
def stopping(outcome: Outcome[T], progress: Progress) -> Iterator[None]:
    """Enter what ends the whole: an input that cannot be trusted at all, an interruption."""
    try:
        yield
    except (InputRefused, ResourceError) as error:  # of the input as a whole, such as an archive that cannot be trusted
        outcome.refused.append(Problem(error.code, text_without_code(error), "the input"))
    except KeyboardInterrupt as stop:
        outcome.stopped = 143 if isinstance(stop, Terminated) else 130
    finally:
        progress.label = ""
        progress.clear()


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
            raise UsageError("bad_call", "the input cannot be read", got=error.strerror) from error
        if not (inventory.acquisitions or inventory.refused or inventory.ignored):
            raise UsageError("bad_call", "there is no file in the input")
        yield inventory


def place_of(error: BaseException) -> str:
    """Type and place of an unexpected error; not its message, which may quote what the files hold."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "qsm_edge" in Path(frame.filename).parts] or frames
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:]))
    return f"{type(error).__name__} at {' < '.join(places)}"


def identity_of(source: Source, variant: str = "") -> str:
    """A fingerprint of the images that a result is made of, wherever they lie, and of how: one result replaces another of
    the same fingerprint only."""
    images = sorted({(image.sop_instance_uid, image.frame) for row in source.slices for image in row})
    return hashlib.sha256((repr(images or source.slug) + variant).encode()).hexdigest()


def variant_of(recipe: Recipe, options: Options) -> str:
    """What sets the results of these options apart in a folder's name: '' for the default recipe as it comes.

    The name of another recipe that comes with the package; and for a changed recipe, an own mask or an own network the
    first digits of what they hash to, so that nothing made with other settings is replaced.
    """
    from qsm_edge.recipe import Recipe

    own_mask = options.mask not in MASKS
    settled = recipe if own_mask else recipe.with_mask(options.mask)
    shipped = settled.name in Recipe.names() and settled.digest == Recipe.load(settled.name).digest
    files = [Path(options.mask)] if own_mask else []
    if options.model is not None:  # its card, too, moves the mask
        files += [path for path in (options.model, options.model.with_suffix(".toml")) if path.is_file()]
    if shipped and not files:
        return "" if settled.name == "default" else settled.name
    told = hashlib.sha256(settled.digest.encode())
    for path in files:
        with path.open("rb") as file:
            told.update(hashlib.file_digest(file, "sha256").digest())
    return f"{publish.safe_name(settled.name)[:12]}-{told.hexdigest()[:8]}"


def check_mask_options(recipe: Recipe, options: Options) -> None:
    """UsageError (bad_call) for a network or mask options that would be parsed and then ignored."""
    own_mask = options.mask not in MASKS
    if own_mask and options.model is not None:
        raise UsageError("bad_call", "--model would not be used with a mask of your own", got="--mask FILE and --model")
    settled = recipe if own_mask else recipe.with_mask(options.mask, model=options.model is not None)
    told = any(text.partition("=")[0].partition(".")[0].strip() == "mask" for text in options.overrides)
    if told and (own_mask or settled.choices["mask"].method != recipe.choices["mask"].method):
        raise UsageError("bad_call", "--set mask and --mask contradict one another", wanted="one of them")


def check_paths(source: Path, output: Path, options: Options) -> tuple[Path, ...]:
    """What must survive the run: the input and the files that the options name."""
    named = [Path(options.mask)] if options.mask not in MASKS else []
    named += [options.model] if options.model is not None else []
    named += [Path(options.recipe)] if Path(options.recipe).is_file() else []
    if not source.exists():
        raise UsageError("bad_call", "there is no such file or folder", where=str(source))
    for path in named:
        if not path.is_file():
            raise UsageError("bad_call", "there is no such file", where=str(path))
    if output.exists() and not output.is_dir():
        raise UsageError("bad_call", "the output is not a folder", where=str(output))
    with publish.speaking_of_disk(output):
        output.mkdir(parents=True, exist_ok=True)
    return (source, *named)


def _one(
    acquisition: Acquisition,
    slug: str,
    *,
    variant: str,
    output: Path,
    recipe: Recipe,
    options: Options,
    keep: Sequence[Path],
    progress: Progress,
) -> Done:
    """Load, reconstruct and write one acquisition."""
    from qsm_edge.maps import bytes_on_disk, with_maps
    from qsm_edge.pipeline import reconstruct

    identity = identity_of(acquisition.source, variant)
    name = f"{slug[:58]}_{variant}" if variant else slug
    publish.check_replaceable(output, name, identity, keep)
    clock = [time.perf_counter()]
    progress("read", 0.0)
    per_voxel = 3 + (21 if options.nifti else 0) + (4 if options.parametric_map else 0)
    more = bytes_on_disk(options.maps, acquisition.geometry, acquisition.source)
    check_disk(acquisition.geometry, output, per_voxel, more)
    check_memory(acquisition)
    mask = options.mask if options.mask in MASKS else _read_mask(Path(options.mask), acquisition.geometry)
    series = acquisition.load()
    clock.append(time.perf_counter())
    model = None if options.model is None else str(options.model)
    result = reconstruct(series, recipe, mask=mask, device=options.device, model=model, progress=progress)
    result = with_maps(result, options.maps, progress)
    clock.append(time.perf_counter())
    final = publish.publish(output, name, identity, lambda folder: _write(result, folder, options, progress), keep)
    clock.append(time.perf_counter())
    return Done(
        slug=slug,
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


def check_memory(acquisition: Acquisition) -> None:
    """Refuse an acquisition before its pixels are read where they do not fit; raises out_of_memory with the figures."""
    from qsm_edge import memory

    memory.require_to_read(acquisition.geometry.shape, len(acquisition.plan.echo_times_ms))


def _write(result: Result, folder: Path, options: Options, progress: Progress) -> None:
    from qsm_edge import nifti, report
    from qsm_edge.dicom import parametric, seg, write, write_series

    progress("write", 0.0, "susceptibility series")
    write_series(result, folder / "chi")
    write.write_extras(result, folder)
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
    from qsm_edge import nifti
    from qsm_edge.dicom import maskfile

    if nifti.is_nifti(path):
        return nifti.read_mask(path, geometry)
    return maskfile.read_seg_mask(path, geometry)


def check_disk(geometry: Geometry, output: Path, per_voxel: int, more: int = 0) -> None:
    """Refuse before reading rather than after: bytes a voxel, headers and a report, `more` bytes, a margin of a tenth."""
    wanted = 1.1 * (math.prod(geometry.shape) * per_voxel + 4096 * geometry.shape[0] + 10e6 + more)
    free = shutil.disk_usage(output).free
    if free < wanted:
        raise ResourceError(
            "out_of_disk", where=str(output), got=f"{free / 1e6:.0f} MB", wanted=f"{wanted / 1e6:.0f} MB"
        )


def text_without_code(error: QsmEdgeError) -> str:
    """The error's sentence without its code, which has a place of its own."""
    return str(error).removeprefix(f"[{error.code}] ")


def problem_of(item: Any, what: str = "") -> Problem:
    """A refusal or ignored files of the reader; the first two names are kept, as paths below the input."""
    names = sorted(_shown(Path(str(name))) for name in item.files)
    return Problem(item.code, item.text, what, len(names), tuple(names[:EXAMPLES]))


def _shown(path: Path) -> str:
    """A path that the reader has freed of the patient's words as far as a header told them: where none could be read,
    nothing tells a folder's name from a patient's, so that folders are shown that consoles number, and others as *."""
    folders = [name if _NUMBERED.fullmatch(name) else "*" for name in path.parts[:-1]]
    return "/".join((*folders, path.name))


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
