"""Layer 2: iterative solvers as functions of operators, for arrays of any namespace."""

from __future__ import annotations

from collections.abc import Callable

from qsm_edge.backend import namespace
from qsm_edge.types import Array, OnIteration

Operator = Callable[[Array], Array]


def dot(a: Array, b: Array) -> float:
    """Inner product of two real arrays of one shape, as a Python float."""
    xp = namespace(a, b)
    return float(xp.sum(a * b, dtype=xp.float64))


def cg(
    operator: Operator,
    right: Array,
    start: Array | None = None,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    on_iteration: OnIteration | None = None,
) -> Array:
    """Conjugate gradients for a symmetric positive (semi-)definite `operator`, from `start` or zero.

    Stops when the residual's norm has fallen to `tolerance` times that of `right`, after `iterations` at the latest.
    Early stopping regularises; callers that rely on it say so. `right` and `start` are not changed.
    Source: Hestenes & Stiefel, J Res NBS 1952, doi:10.6028/jres.049.044.
    """
    xp = namespace(right)
    goal = tolerance * dot(right, right) ** 0.5
    solution = xp.zeros_like(right) if start is None else start
    residual = right if start is None else right - operator(solution)
    direction, power = residual, dot(residual, residual)
    for number in range(1, iterations + 1):
        if power**0.5 <= goal:
            break
        image = operator(direction)
        step = power / max(dot(direction, image), 1e-300)
        solution = solution + step * direction
        residual = residual - step * image
        before, power = power, dot(residual, residual)
        if on_iteration:
            on_iteration(number, power**0.5)
        direction = residual + (power / before) * direction
    return solution


def shrink(x: Array, threshold: Array | float) -> Array:
    """Soft thresholding, the proximal map of threshold * |x|_1."""
    xp = namespace(x)
    return xp.sign(x) * xp.maximum(xp.abs(x) - threshold, xp.zeros_like(x))


def neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The parts of a volume that hold every voxel with a next one along `axis`, and that next one."""
    first, second = [slice(None)] * 3, [slice(None)] * 3
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    return tuple(first), tuple(second)
