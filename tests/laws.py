"""Laws that hold for whole families of methods, whatever they compute.

A `Stage` is a call of NumPy arrays (first) and a Geometry (second) to a tuple of arrays. Tolerances are relative to the
largest absolute value of the expected array; booleans must agree exactly.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from qsm_edge.types import Geometry
from tests.conftest import Flavour

Arrays = tuple[np.ndarray, ...]
Stage = Callable[[tuple[Any, ...], Geometry], tuple[Any, ...]]
Turn = tuple[tuple[int, int, int], tuple[bool, bool, bool]]

#: Axis orders with reversals: one flip, a cyclic order with a flip, a swap with the two others.
TURNS: tuple[Turn, ...] = (
    ((0, 1, 2), (False, True, False)),
    ((2, 0, 1), (True, False, False)),
    ((1, 0, 2), (True, False, True)),
)


class Stopped(Exception):
    """Raised from `on_iteration`."""


def parts(result: Any) -> tuple[Any, ...]:
    """The arrays of a result: one, a tuple, or the fields of a dataclass."""
    if dataclasses.is_dataclass(result):
        return tuple(getattr(result, field.name) for field in dataclasses.fields(result))
    return result if isinstance(result, tuple) else (result,)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """Largest difference at most `tolerance` times the largest expected value; equal types; booleans exact."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, wanted {expected.shape}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, wanted {expected.dtype}"
    if expected.dtype == bool:
        assert np.array_equal(actual, expected), f"{what}: {np.sum(actual != expected)} voxels differ"
        return
    assert np.isfinite(actual).all(), f"{what}: not finite"
    worst, scale = float(np.abs(actual - expected).max()), float(np.abs(expected).max())
    assert worst <= tolerance * scale, f"{what}: off by {worst:.3g} of {scale:.3g}, allowed {tolerance:g}"


def turned(volume: np.ndarray, turn: Turn) -> np.ndarray:
    """The last three axes of `volume` in another order, some backwards."""
    order, flip = turn
    lead = volume.ndim - 3
    moved = volume.transpose(*range(lead), *(lead + axis for axis in order))
    return np.ascontiguousarray(moved[(..., *(slice(None, None, -1 if f else 1) for f in flip))])


def turned_geometry(geometry: Geometry, turn: Turn) -> Geometry:
    """The geometry of a turned volume: the same voxels at the same places of the patient."""
    order, flip = turn
    affine = np.array(geometry.affine_lps)[:, [*order, 3]]
    shape = tuple(geometry.shape[axis] for axis in order)
    for axis in range(3):
        if flip[axis]:
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    return Geometry(shape, affine, geometry.b0_dir_lps)  # type: ignore[arg-type]


def orientation(stage: Stage, arrays: Arrays, geometry: Geometry, tolerance: float) -> None:
    """Storing the same volume along other axes changes nothing but the storage."""
    expected = stage(arrays, geometry)
    for turn in TURNS:
        got = stage(tuple(turned(a, turn) for a in arrays), turned_geometry(geometry, turn))
        for number, (actual, wanted) in enumerate(zip(got, expected, strict=True)):
            assert_close(actual, turned(wanted, turn), tolerance, f"result {number} under {turn}")


def b0_sign(stage: Stage, arrays: Arrays, geometry: Geometry, tolerance: float = 1e-6) -> None:
    """A magnet turned round is the same magnet."""
    x, y, z = geometry.b0_dir_lps
    other = Geometry(geometry.shape, geometry.affine_lps, (-x, -y, -z))
    for actual, wanted in zip(stage(arrays, other), stage(arrays, geometry), strict=True):
        assert_close(actual, wanted, tolerance, "B0 reversed")


def b0_matters(stage: Stage, arrays: Arrays, geometry: Geometry, least: float = 0.05) -> None:
    """Another direction of B0 gives another answer, or the direction is not used at all."""
    z, y, x = geometry.b0_dir_lps
    other = Geometry(geometry.shape, geometry.affine_lps, (x, z, y))
    actual, wanted = stage(arrays, other)[0], stage(arrays, geometry)[0]
    assert np.abs(actual - wanted).max() > least * np.abs(wanted).max()


def translation(stage: Stage, arrays: Arrays, geometry: Geometry, tolerance: float) -> None:
    """Another place in the field of view moves the answer along and leaves it alone otherwise."""
    room = tuple(n + 5 for n in geometry.shape)
    results = []
    for before in ((0, 3, 1), (4, 1, 5)):
        box = tuple(slice(b, b + n) for b, n in zip(before, geometry.shape, strict=True))
        around = [(b, m - b - n) for b, m, n in zip(before, room, geometry.shape, strict=True)]
        affine = np.array(geometry.affine_lps)
        affine[:3, 3] -= affine[:3, :3] @ np.array(before)
        moved = Geometry(room, affine, geometry.b0_dir_lps)  # type: ignore[arg-type]
        got = stage(tuple(np.pad(a, [(0, 0)] * (a.ndim - 3) + around) for a in arrays), moved)
        results.append([np.ascontiguousarray(g[(..., *box)]) for g in got])
    for number, (actual, wanted) in enumerate(zip(*results, strict=True)):
        assert_close(actual, wanted, tolerance, f"result {number} moved")


def devices(stage: Stage, arrays: Arrays, geometry: Geometry, flavour: Flavour, tolerance: float) -> None:
    """Arrays of any flavour give NumPy's answer where they live, float32 stays float32, and inputs are not touched."""
    originals = tuple(np.array(a) for a in arrays)
    expected = stage(tuple(np.array(a) for a in arrays), geometry)
    given = tuple(flavour.asarray(a) for a in arrays)
    got = stage(given, geometry)
    for number, (actual, wanted) in enumerate(zip(got, expected, strict=True)):
        assert wanted.dtype in (np.float32, np.bool_), f"result {number} is {wanted.dtype}"
        assert_close(flavour.to_numpy(actual), wanted, tolerance, f"result {number} on {flavour.name}")
    for number, (array, original) in enumerate(zip(given, originals, strict=True)):
        assert np.array_equal(flavour.to_numpy(array), original), f"input {number} was changed"


def linear(apply: Callable[[np.ndarray], np.ndarray], first: np.ndarray, second: np.ndarray, tolerance: float) -> None:
    """apply(2 a - 3 b) = 2 apply(a) - 3 apply(b)."""
    mixed = apply((2 * first - 3 * second).astype(np.float32))
    assert_close(mixed, (2 * apply(first) - 3 * apply(second)).astype(np.float32), tolerance, "mixture")


def refuses_unknown_options(methods: Iterable[Callable[..., Any]], positional: int) -> None:
    """A misspelt option is a TypeError; no method swallows what it does not know, or takes options by position."""
    for method in methods:
        kinds = [p.kind for p in inspect.signature(method).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == positional, method
        with pytest.raises(TypeError, match="no_such_option"):
            method(*[None] * positional, no_such_option=1)


def tells_and_stops(run: Callable[[Callable[[int, float], None]], Any], at_most: int | None = None) -> None:
    """`on_iteration` is called with a rising number and a finite measure; raising from it ends the computation."""
    told: list[tuple[int, float]] = []
    run(lambda number, measure: told.append((number, measure)))
    assert told
    assert all(isinstance(number, int) and isinstance(measure, float) for number, measure in told)
    assert np.isfinite([measure for _, measure in told]).all()
    if at_most is not None:
        assert len(told) <= at_most

    calls = 0

    def stop(number: int, measure: float) -> None:
        nonlocal calls
        calls += 1
        raise Stopped

    with pytest.raises(Stopped):
        run(stop)
    assert calls == 1
