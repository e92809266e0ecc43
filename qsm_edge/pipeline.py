"""Layer 4: the order of the steps, from a gradient-echo series to a susceptibility map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from qsm_edge import backend, echoes, masking, memory, network, polarity, quality
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.provenance import Recorder, provenance
from qsm_edge.recipe import Choice, Recipe
from qsm_edge.stages import STAGES, accepts
from qsm_edge.types import Array, Geometry, GreSeries, Note, Result

#: Called as ``progress(stage, fraction of the whole, text)``.
Progress = Callable[[str, float, str], None]

#: Share of the time at which each stage starts, for the progress bar alone.
_STARTS = {"mask": 0.0, "unwrap": 0.08, "echoes": 0.16, "background": 0.22, "invert": 0.6, "quality": 0.95}

#: Voxels kept around the mask, so that its surface has neighbours.
_MARGIN = 2


def reconstruct(
    series: GreSeries,
    recipe: Recipe | str = "default",
    *,
    mask: str | np.ndarray = "auto",
    device: str = "auto",
    model: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Reconstruct a series with a recipe.

    Parameters
    ----------
    series : phases in radians, growing with the field; magnitudes on any linear scale.
    recipe : a Recipe, or the name or file of one.
    mask : 'auto' (what the recipe says), 'network', 'threshold', or a bool array (z, y, x), which is taken as it is.
    device : 'auto', 'cpu' or 'cuda'.
    model : ONNX file of another mask network, its card beside it.
    progress : called now and then; to stop the reconstruction, raise from it.

    Returns
    -------
    Result on the grid of the series, host arrays.

    Raises
    ------
    UsageError, InputRefused (mask_empty, mask_grid, ...), ModelRefused, ResourceError (out_of_memory, no_device).
    """
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    tell = progress or (lambda stage, fraction, text: None)
    device = backend.resolve_device(device)
    notes: list[Note] = []
    recorder = Recorder(device)
    memory.require_for_mask(series)
    tell("mask", 0.0, "")
    brain = _brain(series, chosen, mask, model, recorder, notes)
    box = _box(brain)
    memory.require(memory.estimate_bytes(series, _size(box), chosen), device)
    small = _cropped(series, box)
    arrays = _compute(small, brain[box], chosen, device, recorder, tell, notes)
    whole = {name: _uncropped(part, box, brain.shape) for name, part in arrays.items()}
    tell("quality", _STARTS["quality"], "")
    facts: dict[str, Any] = {
        "series": series,
        "brain": brain,
        "r2star_per_s": whole.pop("r2star_per_s", None),
        **whole,
    }
    with recorder.stage("quality", "assess"):
        verdict = quality.assess(**facts, notes=tuple(notes))
    return Result(**facts, quality=verdict, provenance=provenance(chosen, series, recorder.records, device))


def _compute(
    series: GreSeries,
    brain: np.ndarray,
    recipe: Recipe,
    device: str,
    recorder: Recorder,
    tell: Progress,
    notes: list[Note],
) -> dict[str, np.ndarray]:
    """The chain on the mask's box: one transfer to the device, one back."""
    magnitude, phase, mask = (backend.to_device(a, device) for a in (series.magnitude, series.phase_rad, brain))
    moved = dataclasses.replace(series, magnitude=magnitude, phase_rad=phase)
    out, found = chain(moved, mask, recipe, recorder, tell)
    notes += found
    return {name: backend.to_host(array) for name, array in out.items()}


def chain(
    series: GreSeries, mask: Array, recipe: Recipe, recorder: Recorder, tell: Progress
) -> tuple[dict[str, Array], list[Note]]:
    """From phases to susceptibility, wherever the arrays live.

    `series` and `mask` (z, y, x) bool hold arrays of one namespace and device. Gives back, there too, chi_ppm, mask (where
    chi has a value), field_ppm, local_ppm, residual, weight and, with two echoes or more, r2star_per_s; and the notes.
    """
    geometry, times = series.geometry, series.echo_times_s

    def run(stage: str, *arguments: Any) -> Any:
        return run_stage(recipe, stage, recorder, tell, *arguments)

    magnitude = series.magnitude
    phase, notes = polarity.align_polarity(series.phase_rad, magnitude, mask, times, geometry)
    wrapped, strength = echoes.seed_phase(phase, magnitude, times)
    seed = run("unwrap", wrapped, strength, mask, geometry)
    fit = run("echoes", phase, magnitude, seed, mask, times, series.b0_tesla, geometry)
    r2star = echoes.r2star(magnitude, mask, times)
    weight = run("weight", fit.precision, fit.residual, mask, geometry)
    local, inner = run("background", fit.field_ppm, mask, geometry, weight)
    weight = run("rim", fit.field_ppm, local, inner, geometry, weight)
    chi = run("invert", local, inner, geometry, weight)
    chi = run("reference", chi, inner, geometry, r2star)
    if len(times) == 1:
        notes.append(Note("single_echo", "One echo: the coil's phase offset was left to the background removal."))
    out = {"chi_ppm": chi, "mask": inner, "field_ppm": fit.field_ppm, "local_ppm": local}
    out |= {"residual": fit.residual, "weight": weight}
    return (out if r2star is None else {**out, "r2star_per_s": r2star}), notes


def run_stage(recipe: Recipe, stage: str, recorder: Recorder, tell: Progress, *arguments: Any) -> Any:
    """One stage of a recipe: its method with its options, timed and reported."""
    choice = recipe.choices[stage]
    function = STAGES[stage][choice.method]
    start = _STARTS.get(stage, 0.0)
    span = min([s for s in _STARTS.values() if s > start], default=1.0) - start
    options = dict(choice.options)
    if stage in _STARTS:
        tell(stage, start, choice.method)
    with recorder.stage(stage, choice.method, choice) as iterations:
        if accepts(function, "on_iteration"):

            def count(number: int, change: float) -> None:
                iterations.append(change)
                most = float(options.get("iterations", number) or 1)
                tell(stage, start + span * min(number / most, 1.0), f"{choice.method} {number}")

            options["on_iteration"] = count
        return function(*arguments, **options)


def _brain(
    series: GreSeries,
    recipe: Recipe,
    mask: str | np.ndarray,
    model: str | None,
    recorder: Recorder,
    notes: list[Note],
) -> np.ndarray:
    """The brain mask (z, y, x) bool: the caller's own, or by the method that the call or the recipe names."""
    if isinstance(mask, np.ndarray):
        with recorder.stage("mask", "given"):
            return _checked(np.ascontiguousarray(mask, dtype=bool), series.geometry)
    choice = recipe.choices["mask"] if mask == "auto" else Choice(mask, {})
    method = choice.method
    if method == "auto":
        method = "network" if model or network.default_model() else "threshold"
    if method not in masking.METHODS:
        raise UsageError(
            "unknown_name", "no such mask method", got=method, wanted=", ".join(("auto", *masking.METHODS))
        )
    function = masking.METHODS[method]
    options: dict[str, Any] = {
        **choice.options,
        **({"model": model, "on_note": notes.append} if accepts(function, "model") else {}),
    }
    with recorder.stage("mask", method, choice):
        brain = function(
            backend.to_host(series.magnitude),
            backend.to_host(series.phase_rad),
            series.echo_times_s,
            series.geometry,
            **options,
        )
    if method == "threshold":
        notes.append(
            Note("mask_by_threshold", "The mask was made from the signal alone, without a network: look at it.")
        )
    return _checked(brain, series.geometry)


def _checked(brain: np.ndarray, geometry: Geometry) -> np.ndarray:
    if brain.shape != geometry.shape:
        raise InputRefused("mask_grid", got=brain.shape, wanted=geometry.shape)
    if not brain.any():
        raise InputRefused("mask_empty", "the mask holds no voxel", got="0 voxels", wanted="a brain")
    return brain


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The mask's bounding box with a margin, inside the volume."""
    bounds = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append(slice(max(int(filled[0]) - _MARGIN, 0), min(int(filled[-1]) + 1 + _MARGIN, mask.shape[axis])))
    return bounds[0], bounds[1], bounds[2]


def _size(box: tuple[slice, slice, slice]) -> tuple[int, int, int]:
    z, y, x = (s.stop - s.start for s in box)
    return z, y, x


def _cropped(series: GreSeries, box: tuple[slice, slice, slice]) -> GreSeries:
    magnitude, phase = (
        np.ascontiguousarray(backend.to_host(part)[(slice(None), *box)])
        for part in (series.magnitude, series.phase_rad)
    )
    return dataclasses.replace(series, magnitude=magnitude, phase_rad=phase, geometry=series.geometry.crop(box))


def _uncropped(part: Array, box: tuple[slice, slice, slice], shape: tuple[int, ...]) -> np.ndarray:
    whole = np.zeros(shape, part.dtype)
    whole[box] = part
    return whole
