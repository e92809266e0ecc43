"""Solvers against direct solutions, operators against their definitions as adjoints and proximal maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import solvers
from tests import laws
from tests.conftest import Flavour

DRAW = np.random.default_rng(7)
ROOT = DRAW.standard_normal((24, 24))
MATRIX = (ROOT @ ROOT.T / 24 + 0.5 * np.eye(24)).astype(np.float32)
RIGHT = DRAW.standard_normal((2, 3, 4)).astype(np.float32)
ANSWER = np.linalg.solve(MATRIX.astype(float), RIGHT.ravel().astype(float)).reshape(2, 3, 4).astype(np.float32)


def _operator(xp: Flavour) -> Any:
    matrix = xp.asarray(MATRIX)

    def apply(x: Any) -> Any:
        from qsm_edge.backend import namespace

        return namespace(x).reshape(matrix @ namespace(x).reshape(x, (24,)), (2, 3, 4))

    return apply


def test_cg_solves_what_a_direct_solver_solves(xp: Flavour) -> None:
    right = xp.asarray(RIGHT)
    laws.assert_close(
        xp.to_numpy(solvers.cg(_operator(xp), right, iterations=60, tolerance=1e-7)), ANSWER, 1e-5, "from zero"
    )
    start = xp.asarray(np.full((2, 3, 4), 5, np.float32))
    laws.assert_close(
        xp.to_numpy(solvers.cg(_operator(xp), right, start, iterations=60, tolerance=1e-7)), ANSWER, 1e-5, "from 5"
    )
    assert np.array_equal(xp.to_numpy(right), RIGHT)
    assert (xp.to_numpy(start) == 5).all()


def test_cg_from_the_answer_stays_there_and_counts_no_iteration() -> None:
    told: list[int] = []
    flavour = Flavour("numpy", np.array, np.asarray)
    got = solvers.cg(_operator(flavour), RIGHT, ANSWER, tolerance=1e-4, on_iteration=lambda n, r: told.append(n))
    assert np.array_equal(got, ANSWER)
    assert told == []


def test_cg_keeps_to_its_tolerance_and_to_its_iterations() -> None:
    apply = _operator(Flavour("numpy", np.array, np.asarray))
    residuals: list[float] = []
    got = solvers.cg(apply, RIGHT, iterations=60, tolerance=1e-2, on_iteration=lambda n, r: residuals.append(r))
    norm = float(np.linalg.norm(RIGHT))
    assert np.linalg.norm(RIGHT - apply(got)) <= 1.01e-2 * norm
    assert len(residuals) < 60
    assert all(r > 1e-2 * norm for r in residuals[:-1])
    told: list[int] = []
    solvers.cg(apply, RIGHT, iterations=4, tolerance=0.0, on_iteration=lambda n, r: told.append(n))
    assert told == [1, 2, 3, 4]
    laws.tells_and_stops(lambda tell: solvers.cg(apply, RIGHT, on_iteration=tell))


def test_cg_of_nothing_is_nothing() -> None:
    apply = _operator(Flavour("numpy", np.array, np.asarray))
    assert not solvers.cg(apply, np.zeros_like(RIGHT)).any()


def test_the_inner_product_does_not_lose_small_terms(xp: Flavour) -> None:
    large = np.ones((100, 100, 30), np.float32)
    large[0, 0, 0] = 2e4  # its square swamps single precision
    got = solvers.dot(xp.asarray(large), xp.asarray(large))
    assert isinstance(got, float)
    assert got == pytest.approx(4e8 + 299999, rel=1e-12)


def test_shrinking_minimises_what_it_says(xp: Flavour) -> None:
    """argmin_u |u - x|^2 / 2 + t |u|, searched on a fine grid."""
    x = np.linspace(-2, 2, 41, dtype=np.float32).reshape(1, 1, -1)
    candidates = np.linspace(-2, 2, 4001)
    for threshold in (0.0, 0.3, 1.1):
        cost = (candidates - x[..., None]) ** 2 / 2 + threshold * np.abs(candidates)
        best = candidates[cost.argmin(axis=-1)].astype(np.float32)
        got = xp.to_numpy(solvers.shrink(xp.asarray(x), threshold))
        assert np.abs(got - best).max() < 1.1e-3
    each = np.linspace(0, 1, 41, dtype=np.float32).reshape(1, 1, -1)
    got = xp.to_numpy(solvers.shrink(xp.asarray(x), xp.asarray(each)))
    laws.assert_close(got, np.sign(x) * np.maximum(np.abs(x) - each, 0), 1e-6)
