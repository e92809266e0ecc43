"""Total variation by ADMM: the gradient and its adjoint, and that slabs are a matter of speed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import backend, totalvariation
from tests import phantoms
from tests.conftest import Flavour

GEOMETRY = phantoms.oblique()


def problem(xp: Any = np.asarray, edges: Any = None) -> totalvariation.Problem:
    rng = np.random.default_rng(3)
    field = rng.standard_normal(GEOMETRY.shape).astype(np.float32)
    mask, weight = np.ones(GEOMETRY.shape, bool), np.ones(GEOMETRY.shape, np.float32)
    return totalvariation.problem_of(xp(field), xp(mask), GEOMETRY, xp(weight), 5.0, edges)


def test_the_divergence_is_the_adjoint_of_the_gradient(xp: Flavour) -> None:
    """With a threshold of zero nothing is shrunk: what is split off is the gradient, and what is followed is all of it."""
    asked = problem(xp.asarray)
    rng = np.random.default_rng(4)
    x, other = (xp.asarray(rng.standard_normal(asked.shape).astype(np.float32)) for _ in range(2))
    one, two = (totalvariation.SplitGradient(asked, 0.0) for _ in range(2))
    one.follow(x)
    two.follow(other)
    slopes = sum(float(np.vdot(xp.to_numpy(a), xp.to_numpy(b))) for a, b in zip(one._sums, two._sums, strict=True))
    assert slopes == pytest.approx(float(np.vdot(xp.to_numpy(x), xp.to_numpy(two.divergence()))), rel=1e-4)


def test_a_step_shorter_than_the_threshold_is_shrunk_away() -> None:
    """Then nothing is left of the slope to follow but its dual, taken off once more."""
    asked = problem()
    x = np.zeros(asked.shape, np.float32)
    x[asked.shape[0] // 2 :] = 0.1
    split = totalvariation.SplitGradient(asked, 0.2 / GEOMETRY.voxel_mm[0])
    split.follow(x)
    free = totalvariation.SplitGradient(asked, 0.0)
    free.follow(x)
    np.testing.assert_allclose(split.divergence(), -free.divergence(), atol=1e-6)


@pytest.mark.parametrize("size", [1, 20_000, 10**9])
def test_slabs_change_no_bit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def answer() -> np.ndarray:
        asked = problem()

        def follow(x: np.ndarray, at: slice) -> np.ndarray:
            return (asked.field[at] + 0.1 * x) / np.float32(1.1)

        chi = totalvariation.admm(asked, 1e-3, 1e-2, 0.1, follow, asked.field, 6, 0.0, None)
        return np.asarray(chi)

    expected = answer()
    monkeypatch.setattr(backend, "_SLAB_BYTES", size)
    assert np.array_equal(answer(), expected)


def test_what_moves_where_no_data_are_is_not_looked_at() -> None:
    asked = problem()
    before = np.zeros(asked.shape, np.float32)
    after = np.where(asked.power > 0, 2.0, 0).astype(np.float32)
    far = np.where(asked.power > 0, after, 1e3).astype(np.float32)
    assert totalvariation.moved_by(before, after, asked.power) == pytest.approx(1.0)
    assert totalvariation.moved_by(before, far, asked.power) == pytest.approx(1.0)
    assert totalvariation.moved_by(after, far, asked.power) == 0.0
