"""Unwrapping: congruent, right where the answer is known, and calm where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse import csgraph

from qsm_edge import unwrap
from qsm_edge.solvers import neighbours
from tests import laws, phantoms
from tests.conftest import Flavour

TWO_PI = 2 * np.pi
GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)


def wrapped(x: np.ndarray) -> np.ndarray:
    return np.angle(np.exp(1j * x)).astype(np.float32)


def steep(seed: int = 0) -> np.ndarray:
    """A smooth field of more than four turns, up to 2 rad from voxel to voxel."""
    z, y, x = phantoms.offsets(GEOMETRY, (0, 0, 0))
    slope = 0.4 * z - 0.45 * y + 0.35 * x + 0.012 * y * x
    return (slope + 0.5 * phantoms.smooth_noise(GEOMETRY.shape, seed)).astype(np.float32)


def noisy(truth: np.ndarray, noise: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Wrapped phase and magnitude of a unit signal in complex noise."""
    draw = np.random.default_rng(seed)
    signal = np.exp(1j * truth) + noise * (draw.standard_normal(truth.shape) + 1j * draw.standard_normal(truth.shape))
    return np.angle(signal).astype(np.float32), np.abs(signal).astype(np.float32)


def romeo(phase: np.ndarray, magnitude: np.ndarray, mask: np.ndarray = HEAD.mask) -> np.ndarray:
    return np.asarray(unwrap.METHODS["romeo"](phase, magnitude, mask, GEOMETRY))


def stage(name: str) -> laws.Stage:
    return lambda arrays, geometry: laws.parts(unwrap.METHODS[name](*arrays, geometry))


def inputs(noise: float = 0.1) -> tuple[np.ndarray, ...]:
    return *noisy(steep(), noise), HEAD.mask


def turns_between(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whole turns by which a and b differ inside the mask; fails where they are no whole turns."""
    turns = (a.astype(float) - b)[mask] / TWO_PI
    assert np.abs(turns - np.rint(turns)).max() < 1e-5
    return np.rint(turns).astype(int)


@pytest.mark.parametrize("name", unwrap.METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    laws.devices(stage(name), inputs(), GEOMETRY, xp, 1e-5)


@pytest.mark.parametrize("name", unwrap.METHODS)
def test_storage_order_and_place_do_not_matter(name: str) -> None:
    laws.orientation(stage(name), inputs(), GEOMETRY, 1e-5)
    laws.b0_sign(stage(name), inputs(), GEOMETRY)
    if name != "laplacian":  # which sees the border of the field of view
        laws.translation(stage(name), inputs(), GEOMETRY, 1e-5)


@pytest.mark.parametrize("name", unwrap.METHODS)
def test_nothing_is_given_outside_the_mask(name: str) -> None:
    (out,) = stage(name)(inputs(), GEOMETRY)
    assert out.shape == GEOMETRY.shape
    assert not out[~HEAD.mask].any()


def test_options_and_progress() -> None:
    laws.refuses_unknown_options(unwrap.METHODS.values(), positional=4)
    phase, magnitude, mask = inputs()
    for method in unwrap.METHODS.values():

        def run(tell: Any, method: Any = method) -> Any:
            return method(phase, magnitude, mask, GEOMETRY, on_iteration=tell)

        laws.tells_and_stops(run)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
def test_a_steep_field_comes_back_up_to_one_multiple_for_all(noise: float) -> None:
    truth = steep()
    phase, magnitude = noisy(truth, noise)
    assert np.ptp(truth[HEAD.mask]) > 4 * TWO_PI
    out = romeo(phase, magnitude)
    turns_between(out, phase, HEAD.mask)
    miss = (out - truth)[HEAD.mask]
    assert np.abs(miss - TWO_PI * np.rint(np.median(miss) / TWO_PI)).max() < np.pi
    assert abs(np.median(out[HEAD.mask])) <= np.pi


def test_the_way_goes_round_dropout_and_noise() -> None:
    """A sheet of pure noise with little signal across the head, a gap in it: the two sides must agree through the gap."""
    truth = steep()
    phase, magnitude = noisy(truth, 0.05)
    draw = np.random.default_rng(3)
    sheet = np.zeros(GEOMETRY.shape, bool)
    sheet[:, 14:17, :] = True
    sheet[9:13, :, 11:15] = False
    phase[sheet] = draw.uniform(-np.pi, np.pi, int(sheet.sum()))
    magnitude[sheet] *= 0.05
    out = romeo(phase, magnitude)
    turns_between(out, phase, HEAD.mask)
    good = HEAD.mask & ~sheet
    miss = (out - truth)[good]
    assert np.abs(miss - np.median(miss)).max() < np.pi


def test_every_piece_is_right_by_itself_and_set_nearest_to_zero() -> None:
    truth = steep()
    pieces = [HEAD.mask.copy() for _ in range(3)]
    pieces[0][:, 9:, :], pieces[1][:, :12, :], pieces[1][:, 18:, :], pieces[2][:, :21, :] = False, False, False, False
    out = romeo(wrapped(truth), np.ones(GEOMETRY.shape, np.float32), pieces[0] | pieces[1] | pieces[2])
    for piece in pieces:
        assert piece.sum() > 200
        assert len(np.unique(turns_between(out, truth, piece))) == 1
        assert abs(np.median(out[piece])) <= np.pi + 1e-4


def test_thousands_of_pieces_and_single_voxels() -> None:
    draw = np.random.default_rng(8)
    mask = draw.random(GEOMETRY.shape) < 0.2
    phase = draw.uniform(-np.pi, np.pi, GEOMETRY.shape).astype(np.float32)
    out = romeo(phase, np.ones_like(phase), mask)
    turns_between(out, phase, mask)
    alone = np.zeros_like(mask)
    alone[4, 5, 6] = True
    out = romeo(phase, np.ones_like(phase), alone)
    assert out[4, 5, 6] == pytest.approx(phase[4, 5, 6], abs=1e-6)
    assert np.count_nonzero(out) == 1


def test_pure_noise_and_no_signal_at_all_stay_congruent() -> None:
    """Random phase is full of singularities, for which no answer is right; it must still be the measured phase."""
    draw = np.random.default_rng(9)
    phase = draw.uniform(-np.pi, np.pi, GEOMETRY.shape).astype(np.float32)
    for magnitude in (draw.random(GEOMETRY.shape).astype(np.float32), np.zeros(GEOMETRY.shape, np.float32)):
        turns_between(romeo(phase, magnitude), phase, HEAD.mask)


def test_only_ratios_of_the_magnitude_count() -> None:
    phase, magnitude = noisy(steep(), 0.3)
    magnitude *= 1 + 0.5 * phantoms.smooth_noise(GEOMETRY.shape, 4).clip(-1, 1)
    assert np.array_equal(romeo(phase, magnitude), romeo(phase, (4096 * magnitude).astype(np.float32)))


def test_what_lies_outside_the_mask_does_not_matter_to_the_exact_method() -> None:
    phase, magnitude = noisy(steep(), 0.1)
    other, loud = phase.copy(), magnitude.copy()
    other[~HEAD.mask], loud[~HEAD.mask] = 1.0, 1e5
    assert np.array_equal(romeo(phase, magnitude), romeo(other, loud))


def test_laplacian_is_near_a_smooth_field_deep_inside() -> None:
    """It is not congruent, and harmonic parts move with the border: what it promises is the curvature."""
    z, y, x = phantoms.offsets(GEOMETRY, (0, 0, 0))
    truth = 5 * np.exp(-(z**2 + y**2 + x**2) / (2 * 6.0**2))
    assert truth.max() > 1.5 * np.pi
    out = np.asarray(unwrap.METHODS["laplacian"](wrapped(truth), np.ones(GEOMETRY.shape), HEAD.mask, GEOMETRY))
    deep = HEAD.depth_mm() > 5
    assert np.corrcoef(out[deep], truth[deep])[0, 1] > 0.999
    assert np.polyfit(truth[deep], out[deep], 1)[0] == pytest.approx(1, abs=0.05)
    assert out[HEAD.mask].mean() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("levels", [3, 100_000])
def test_edges_that_are_left_out_are_in_no_minimum_spanning_forest(levels: int) -> None:
    """As cheap a forest of as many pieces comes out, with ties everywhere and with none, in a mask full of holes."""
    draw = np.random.default_rng(levels)
    shape = (7, 8, 9)
    mask = draw.random(shape) < 0.8
    number = np.arange(mask.size).reshape(shape)
    costs = []
    for axis in range(3):
        near, far = neighbours(axis)
        cost = (1 + draw.integers(0, levels, number[near].shape) / levels).astype(np.float32)
        costs.append(np.where(mask[near] & mask[far], cost, np.inf).astype(np.float32))
    everything = [np.isfinite(cost) for cost in costs]
    kept = unwrap._without_dearest(costs)
    found = []
    for chosen in (everything, kept):
        ends = [np.concatenate([number[neighbours(a)[end]][chosen[a]] for a in range(3)]) for end in (0, 1)]
        cost = np.concatenate([costs[axis][chosen[axis]] for axis in range(3)])
        tree = csgraph.minimum_spanning_tree(sparse.coo_array((cost, tuple(ends)), shape=(mask.size,) * 2).tocsr())
        found.append((tree.nnz, float(tree.sum())))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    if levels > mask.size:
        assert sum(k.sum() for k in kept) < 0.8 * sum(e.sum() for e in everything)
