"""Layer 4: the order of the steps, from a gradient-echo series to a susceptibility map."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qsm_edge import backend, checks, echoes, masking, memory, modelcard, network, polarity, quality, support
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.provenance import Recorder, provenance
from qsm_edge.recipe import Choice, Recipe
from qsm_edge.stages import STAGES, accepts, options_of
from qsm_edge.types import Array, Figure, Geometry, GreSeries, Note, Result, StageRecord

#: Called as ``progress(stage, fraction of the whole, text)``.
Progress = Callable[[str, float, str], None]

#: The part of a volume (z, y, x) that holds the mask.
Box = tuple[slice, slice, slice]

#: Share of the time at which each stage starts, for the progress bar alone.
_STARTS = {
    "mask": 0.0,
    "unwrap": 0.08,
    "echoes": 0.16,
    "background": 0.22,
    "strong_sources": 0.5,
    "invert": 0.6,
    "quality": 0.95,
}


@dataclasses.dataclass(frozen=True)
class MaskResult:
    """A brain mask (z, y, x) bool on the grid of `series`, which is the checked one.

    choice: the method that made it with every option, and the network's name and checksums, or the checksum of a mask that
    was given. figures, notes: what the method says of itself. record: the same for the provenance.
    """

    series: GreSeries
    mask: np.ndarray
    choice: Choice
    figures: Mapping[str, Figure]
    notes: tuple[Note, ...]
    record: StageRecord


def reconstruct(
    series: GreSeries,
    recipe: Recipe | str = "default",
    *,
    mask: str | Array = "auto",
    device: str = "auto",
    model: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Reconstruct a series with a recipe.

    Parameters
    ----------
    series : phases in radians, growing with the field; magnitudes on any linear scale. Where either is not finite, the
        voxel has no weight (see `checks`).
    recipe : a Recipe, or the name or file of one.
    mask : 'auto' (what the recipe says), 'network', 'threshold', or an array (z, y, x): bool, which is taken as it is, or
        numbers, of which those above 0.5 are inside.
    device : 'auto', 'cpu' or 'cuda'. With 'auto' the CPU does what the accelerator could not, and a note says so.
    model : ONNX file of another mask network, its card beside it.
    progress : called now and then; to stop the reconstruction, raise from it.

    Returns
    -------
    Result on the grid of the series, host arrays. Its provenance names the mask that was really used.

    Raises
    ------
    UsageError (bad_call, ...), InputRefused (bad_echo_time, mask_empty, mask_grid, ...), ModelRefused, ResourceError
    (out_of_memory, no_device).
    """
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    tell = progress or (lambda stage, fraction, text: None)
    recorder = Recorder(backend.resolve_device(device))
    made = make_mask(series, chosen, mask=mask, model=model, progress=progress)
    series, brain, notes = made.series, made.mask, list(made.notes)
    chosen = dataclasses.replace(chosen, choices={**chosen.choices, "mask": made.choice})
    recorder.records.append(made.record)
    box = box_of(brain, series.geometry, chosen)
    arrays = _compute(series, brain, box, chosen, device == "auto", recorder=recorder, tell=tell, notes=notes)
    whole = {name: _uncropped(part, box, brain.shape) for name, part in arrays.items()}
    checks.require_finite(whole["chi_ppm"], whole["mask"])
    tell("quality", _STARTS["quality"], "")
    facts: dict[str, Any] = {
        "series": series,
        "brain": brain,
        "r2star_per_s": whole.pop("r2star_per_s", None),
        **whole,
    }
    with recorder.stage("quality", "assess"):
        verdict = quality.assess(**facts, notes=tuple(notes), figures=made.figures)
    return Result(**facts, quality=verdict, provenance=provenance(chosen, series, recorder.records, recorder.device))


def make_mask(
    series: GreSeries,
    recipe: Recipe | str = "default",
    *,
    mask: str | Array = "auto",
    model: str | None = None,
    progress: Progress | None = None,
) -> MaskResult:
    """The brain mask of a series and nothing else: the first step of `reconstruct`, on the host.

    Parameters and errors as there. Echo times and field strength do not move it, nor does the phase where a network makes it.
    """
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    series = checks.checked_series(series)
    given = None if isinstance(mask, str) else checks.checked_mask(mask, series.geometry)
    choice = _settled(chosen, mask if isinstance(mask, str) else "auto", given, model)
    if progress is not None:
        progress("mask", _STARTS["mask"], "")
    recorder, notes, figures = Recorder("cpu"), list[Note](), dict[str, Figure]()
    brain = _brain(series, choice, given, model, recorder, notes, figures)
    return MaskResult(series, brain, choice, figures, tuple(notes), recorder.records[0])


def auto_method(model: str | None) -> str:
    """What the mask method 'auto' comes to on this installation."""
    return "network" if model or network.default_model() else "threshold"


def assess_mask(made: MaskResult) -> tuple[Mapping[str, Figure], tuple[Note, ...]]:
    """Figures and notes on a mask that no map follows: of its method, of the series' source, and of its size and place."""
    figures, odd = quality.assess_mask(made.mask, made.series.geometry)
    return {**made.figures, **figures}, (*made.series.source.notes, *made.notes, *odd)


def _compute(
    series: GreSeries,
    brain: np.ndarray,
    box: Box,
    recipe: Recipe,
    may_fall_back: bool,
    *,
    recorder: Recorder,
    tell: Progress,
    notes: list[Note],
) -> dict[str, np.ndarray]:
    """The chain on the mask's box: one transfer to the recorder's device, one back."""

    def on(device: str) -> dict[str, np.ndarray]:
        size = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
        memory.require_for_chain(series.geometry.shape, len(series.echo_times_s), size, recipe, device)
        small = (np.ascontiguousarray(part[(..., *box)]) for part in (series.magnitude, series.phase_rad, brain))
        magnitude, phase, mask = (backend.to_device(part, device) for part in small)
        moved = dataclasses.replace(series, magnitude=magnitude, phase_rad=phase, geometry=series.geometry.crop(box))
        out, found = chain(moved, mask, recipe, recorder, tell)
        host = {name: backend.to_host(array) for name, array in out.items()}
        notes.extend(found)
        return host

    done = len(recorder.records)
    try:
        return on(recorder.device)
    except Exception as error:
        if not (may_fall_back and recorder.device != "cpu" and backend.is_device_failure(error)):
            raise
        reason = type(error).__name__
    del recorder.records[done:]
    recorder.device = "cpu"
    notes.append(Note("device_fallback", f"The accelerator could not be used ({reason}); the CPU did the computation."))
    return on("cpu")


def chain(
    series: GreSeries, mask: Array, recipe: Recipe, recorder: Recorder, tell: Progress
) -> tuple[dict[str, Array], list[Note]]:
    """From phases to susceptibility, wherever the arrays live.

    `series` and `mask` (z, y, x) bool hold arrays of one namespace and device. Gives back, there too, chi_ppm, mask (where
    chi has a value), field_ppm, local_ppm, residual, weight and, with two echoes or more, r2star_per_s; and the notes. All
    is computed on the support, which reaches beyond the mask and leaves out what is bone in it, and cropped to the mask.
    """
    times = series.echo_times_s
    phase, notes = polarity.align_polarity(series.phase_rad, series.magnitude, mask, times, series.geometry)
    series = dataclasses.replace(series, phase_rad=phase)
    known, seed = unwrapped(series, mask, recipe, recorder, tell)
    out = chain_from_seed(series, seed, known, mask, recipe, recorder, tell)
    notes += _told(out.pop("told"), out.pop("bone"), series.geometry)
    if len(times) == 1:
        notes.append(Note("single_echo", "One echo: the coil's phase offset was left to the background removal."))
    return out, notes


def unwrapped(
    series: GreSeries, mask: Array, recipe: Recipe, recorder: Recorder, tell: Progress
) -> tuple[Array, Array]:
    """The first stages of `chain`: where the field is known (bool), and the unwrapped phase there of `echoes.seed_phase`;
    `series` has its polarity aligned."""
    known = run_stage(recipe, "support", recorder, tell, series.magnitude, mask, series.geometry)
    wrapped, strength = echoes.seed_phase(series.phase_rad, series.magnitude, series.echo_times_s)
    return known, run_stage(recipe, "unwrap", recorder, tell, wrapped, strength, known, series.geometry)


def chain_from_seed(
    series: GreSeries, seed: Array, known: Array, mask: Array, recipe: Recipe, recorder: Recorder, tell: Progress
) -> dict[str, Array]:
    """The part of `chain` after `unwrapped`, which gives `known` and `seed`.

    With the maps of `chain` it gives back, bool (z, y, x), where strong sources were `told` and what of the mask is no longer
    known beside them: `bone`, and the rim that some background methods lose around it.
    """
    geometry, times, xp = series.geometry, series.echo_times_s, backend.namespace(seed)

    def run(stage: str, *arguments: Any) -> Any:
        return run_stage(recipe, stage, recorder, tell, *arguments)

    fit = run("echoes", series.phase_rad, series.magnitude, seed, known, times, series.b0_tesla, geometry)
    r2star = echoes.r2star(series.magnitude, known, times)
    weight = run("weight", fit.precision, fit.residual, known, geometry)
    local, kept = run("background", fit.field_ppm, known, geometry, weight)
    inner = kept & mask
    _require_voxels(inner, recipe.choices["background"].method)

    def without(field: Array, taken: Array) -> tuple[Array, Array]:
        rest, where = method_of(recipe, "background")(field, known & ~taken, geometry, weight)
        return rest, where

    sources = run("strong_sources", fit.field_ppm, local, kept, geometry, weight, without)
    bone = kept & ~sources.known
    rest = xp.where(sources.known, sources.local_ppm - sources.field_ppm, xp.zeros_like(local))
    weight = xp.where(bone, xp.zeros_like(weight), weight)
    weight = run("rim", fit.field_ppm - sources.field_ppm, rest, sources.known, geometry, weight)
    steps = run("edges", series.magnitude, r2star, kept, geometry, weight)
    chi = run("invert", rest, kept, geometry, weight, steps) + sources.chi_ppm
    chi = run("reference", chi, inner, geometry, r2star)
    out = {"field_ppm": fit.field_ppm, "local_ppm": sources.local_ppm, "residual": fit.residual, "weight": weight}
    out |= {} if r2star is None else {"r2star_per_s": r2star}
    out |= {"told": sources.chi_ppm != 0, "bone": bone}
    out = {name: xp.where(mask, part, xp.zeros_like(part)) for name, part in out.items()}
    return {**out, "chi_ppm": xp.where(inner, chi, xp.zeros_like(chi)), "mask": inner}


def _told(sources: Array, bone: Array, geometry: Geometry) -> list[Note]:
    """What a map says of strong sources and of bone beside them, bool (z, y, x): nothing where there are none."""
    xp = backend.namespace(sources)
    told, cut = (geometry.voxel_ml * int(xp.sum(xp.astype(part, xp.int32))) for part in (sources, bone))
    if not told:
        return []
    text = f"The susceptibility of {told:.1f} mL at a loss of signal was found from the field about it."
    if cut >= 0.05:
        text += f" {cut:.1f} mL of the mask there were left out as bone or beside it."
    return [Note("strong_sources", text)]


def method_of(recipe: Recipe, stage: str) -> Callable[..., Any]:
    """The method that a recipe chose for a stage, with its options."""
    choice = recipe.choices[stage]
    return functools.partial(STAGES[stage][choice.method], **choice.options)


def run_stage(recipe: Recipe, stage: str, recorder: Recorder, tell: Progress, *arguments: Any) -> Any:
    """One stage of a recipe: its method with its options, timed and reported."""
    choice, function = recipe.choices[stage], method_of(recipe, stage)
    start = _STARTS.get(stage, 0.0)
    span = min([s for s in _STARTS.values() if s > start], default=1.0) - start
    if stage in _STARTS:
        tell(stage, start, choice.method)
    with recorder.stage(stage, choice.method, choice) as iterations:
        if accepts(function, "on_iteration"):

            def count(number: int, change: float) -> None:
                iterations.append(change)
                # Without an end to go by, it comes nearer and nearer.
                most = float(choice.options.get("iterations") or number + 2)
                tell(stage, start + span * min(number / most, 1.0), f"{choice.method} {number}")

            return function(*arguments, on_iteration=count)
        return function(*arguments)


def _require_voxels(inner: Array, method: str) -> None:
    """Background removal by convolution loses a radius of the mask, which may be all of it."""
    if not bool(backend.namespace(inner).any(inner)):
        what = f"background removal ({method}) leaves nothing of the mask"
        raise InputRefused("mask_empty", what, got="0 voxels", wanted="a smaller radius, or a larger mask")


def _settled(recipe: Recipe, method: str, given: np.ndarray | None, model: str | None) -> Choice:
    """The mask that will really be used: its method, every option, and which network or whose voxels."""
    if given is not None:
        if model:
            raise UsageError("bad_call", "a mask network was given beside a mask, and would not be used", got="both")
        voxels = hashlib.sha256(repr(given.shape).encode() + np.packbits(given).tobytes()).hexdigest()
        return Choice("given", {"mask_sha256": voxels}, "given by the caller")
    choice = recipe.with_mask(method, model=bool(model)).choices["mask"]
    path = Path(model) if model else network.default_model()
    if choice.method == "auto":
        choice = dataclasses.replace(choice, method=auto_method(model))
    function = masking.METHODS[choice.method]
    known: dict[str, Any] = {**options_of(function), **choice.options}
    if accepts(function, "model") and path is not None and path.is_file():  # else the method says what is missing
        card = modelcard.read_card(path)
        known |= {"model": card.name, "model_version": card.version, "model_sha256": card.sha256}
        known |= {"card_sha256": hashlib.sha256(path.with_suffix(".toml").read_bytes()).hexdigest()}
    return dataclasses.replace(choice, options=known)


def _brain(
    series: GreSeries,
    choice: Choice,
    given: np.ndarray | None,
    model: str | None,
    recorder: Recorder,
    notes: list[Note],
    figures: dict[str, Figure],
) -> np.ndarray:
    """The brain mask (z, y, x) bool: the caller's own, or by the method that was settled on, with what that says of itself."""
    if given is not None:
        with recorder.stage("mask", choice.method, choice):
            return given
    memory.require_for_mask(series.geometry.shape)
    function = masking.METHODS[choice.method]
    options = {name: choice.options[name] for name in options_of(function)}
    if accepts(function, "model"):
        options |= {"model": model, "on_note": notes.append}
    if accepts(function, "on_confidence"):
        options["on_confidence"] = lambda sure: figures.update(sure.figures())
    with recorder.stage("mask", choice.method, choice):
        brain = function(series.magnitude, series.phase_rad, series.echo_times_s, series.geometry, **options)
    if choice.method == "threshold":
        notes.append(
            Note("mask_by_threshold", "The mask was made from the signal alone, without a network: look at it.")
        )
    return checks.checked_mask(brain, series.geometry)


def box_of(mask: np.ndarray, geometry: Geometry, recipe: Recipe) -> Box:
    """The mask's bounding box with room for the recipe's support, inside the volume."""
    reach_mm = float(recipe.choices["support"].options.get("reach_mm", 0.0))
    bounds = []
    for axis, voxel_mm in enumerate(geometry.voxel_mm):
        margin = support.margin(reach_mm, voxel_mm)
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append(slice(max(int(filled[0]) - margin, 0), min(int(filled[-1]) + 1 + margin, mask.shape[axis])))
    return bounds[0], bounds[1], bounds[2]


def _uncropped(part: Array, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, part.dtype)
    whole[box] = part
    return whole
