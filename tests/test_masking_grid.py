"""Grids, shapes and the cheapest surface: what the automatic masks are built from."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from phantoms import turned

from qsm_edge.errors import UsageError
from qsm_edge.masking import prepare, restore
from qsm_edge.masking.cut import cheapest_surface
from qsm_edge.masking.grid import apply, closest_axes, turn, turn_back
from qsm_edge.masking.morphology import away_mm, closed, depth_mm, filled, grown, largest, otsu
from qsm_edge.types import Geometry

AXES = ["".join(letters) for pick in itertools.product("LR", "PA", "SI") for letters in itertools.permutations(pick)]


def card(**changes):
    facts = {
        "shape": (24, 30, 26),
        "spacing_mm": (3.0, 2.5, 2.8),
        "axes": "SPL",
        "normalisation": "none",
        "centre": "volume",
    }
    return SimpleNamespace(**facts | changes)


def oblique(shape=(21, 32, 27), voxel_mm=(3.1, 2.0, 2.3)):
    """A slab turned by 20 and 10 degrees, its origin anywhere."""
    a, b = np.deg2rad([20, 10])
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = (turn_x @ turn_y)[:, [2, 1, 0]] * voxel_mm
    affine[:3, 3] = (-31.0, 12.0, 77.0)
    return Geometry(shape, affine)


def stored_otherwise(volume, geometry, order, flip):
    """The same voxels of the same patient in another array order, with the affine that says so."""
    return np.ascontiguousarray(turn(volume, order, flip)), turned(geometry, order, flip)


def smooth_volume(geometry, seed=3):
    """A sum of a few slow waves, positive."""
    draw = np.random.default_rng(seed)
    at = np.meshgrid(*[np.arange(n) * v for n, v in zip(geometry.shape, geometry.voxel_mm, strict=True)], indexing="ij")
    waves = [
        np.cos(sum(k * a for k, a in zip(draw.uniform(-1, 1, 3) / 14, at, strict=True)) + draw.uniform(0, 6))
        for _ in range(5)
    ]
    return (10 + sum(waves)).astype(np.float32)


@pytest.mark.parametrize("letters", AXES)
def test_a_tensor_axis_runs_the_way_its_letter_says(letters):
    geometry = oblique()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), axis=-1)
    place = index @ geometry.affine_lps[:3, :3].T  # LPS mm
    for axis, letter in enumerate(letters):
        along = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}[letter]
        tensor, _ = prepare(
            place[..., along] + 500, geometry, card(axes=letters, shape=(12, 12, 12), spacing_mm=(3.0,) * 3)
        )
        steps = np.diff(tensor[0, 0], axis=axis)
        assert np.sign(np.median(steps)) == (1 if letter in "LPS" else -1)
        assert abs(np.median(steps)) > 3.0 * np.cos(np.deg2rad(25))


@pytest.mark.parametrize("letters", ["SPL", "PRS", "IAR"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_however_a_volume_is_stored_the_tensor_is_the_same(letters, order):
    geometry = oblique()
    volume = np.random.default_rng(1).random(geometry.shape, dtype=np.float32)
    tensor, grid = prepare(volume, geometry, card(axes=letters))
    back = restore(tensor, grid, geometry)
    for flip in itertools.product((False, True), repeat=3):
        other, there = stored_otherwise(volume, geometry, order, flip)
        again, other_grid = prepare(other, there, card(axes=letters))
        assert np.array_equal(tensor, again)
        assert np.array_equal(stored_otherwise(back, geometry, order, flip)[0], restore(again, other_grid, there))


def test_turning_back_undoes_turning():
    volume = np.random.default_rng(0).random((4, 5, 6))
    for order in itertools.permutations(range(3)):
        for flip in itertools.product((False, True), repeat=3):
            assert np.array_equal(turn_back(turn(volume, order, flip), order, flip), volume)


def test_a_smooth_volume_survives_the_way_there_and_back():
    geometry = oblique()
    volume = smooth_volume(geometry)
    tensor, grid = prepare(volume, geometry, card(shape=(34, 33, 33), spacing_mm=(2.0, 2.0, 2.0)))
    inner = (slice(2, -2),) * 3
    assert np.abs(restore(tensor, grid, geometry) - volume)[inner].max() < 0.02 * np.ptp(volume)


def test_what_has_no_weight_is_not_touched():
    volume = np.random.default_rng(0).random((6, 7, 5), dtype=np.float32)
    weights = [np.eye(n, dtype=np.float32)[part] for n, part in zip((6, 7, 5), np.s_[2:4, :3, 1:], strict=True)]
    volume[5], volume[:, 3:], volume[..., 0] = np.nan, np.inf, np.nan
    assert np.array_equal(apply(volume, weights), volume[2:4, :3, 1:])
    nothing = np.zeros((4, 6), np.float32)
    assert np.array_equal(apply(volume, [nothing, *weights[1:]]), np.zeros((4, 3, 4)))


def test_averaging_onto_a_coarse_grid_keeps_the_mean_and_halves_the_noise():
    geometry = Geometry.from_axes((48, 48, 48))
    noise = 5 + np.random.default_rng(2).standard_normal(geometry.shape).astype(np.float32)
    tensor, _ = prepare(noise, geometry, card(shape=(16, 16, 16), spacing_mm=(3.0,) * 3))
    assert tensor.mean() == pytest.approx(5, abs=0.02)
    assert tensor.std() == pytest.approx(
        (19 / 81) ** 1.5, rel=0.1
    )  # weights 1 2 3 2 1 over 9, squared and summed, thrice


def test_beyond_the_volume_there_is_nothing_and_beyond_the_grid_what_is_asked_for():
    geometry = Geometry.from_axes((20, 20, 20), (2.0, 2.0, 2.0))
    tensor, _ = prepare(np.ones(geometry.shape), geometry, card(shape=(40, 20, 20), spacing_mm=(2.0,) * 3))
    assert np.all(tensor[0, 0, :9] == 0)
    assert np.all(tensor[0, 0, 10:30] == 1)
    tensor, grid = prepare(np.ones(geometry.shape), geometry, card(shape=(10, 20, 20), spacing_mm=(2.0,) * 3))
    back = restore(tensor, grid, geometry, beyond=-7.0)
    assert np.all(back[:5] == -7)
    assert np.all(back[5:15] == 1)


def test_a_grid_on_the_head_moves_with_it():
    geometry = Geometry.from_axes((50, 60, 60), (2.0, 2.0, 2.0))
    head = np.zeros(geometry.shape, np.float32)
    head[6:26, 8:32, 10:30] = 100 + np.arange(20)[:, None, None]
    moved = np.roll(head, (12, 20, 24), axis=(0, 1, 2))
    wanted = card(shape=(24, 24, 24), spacing_mm=(2.0,) * 3, centre="head")
    assert np.allclose(prepare(head, geometry, wanted)[0], prepare(moved, geometry, wanted)[0], atol=1e-3)
    assert prepare(head, geometry, wanted)[0].max() > 115


@pytest.mark.parametrize(
    ("how", "low", "high"),
    [("none", 20.0, 60.0), ("minmax", 0.0, 1.0), ("p99", 20 / 59.6, 60 / 59.6), ("zscore", -1.73, 1.73)],
)
def test_normalisations_do_what_they_are_called(how, low, high):
    geometry = Geometry.from_axes((101, 12, 12))
    ramp = np.broadcast_to(np.linspace(20, 60, 101)[:, None, None], geometry.shape)
    tensor, _ = prepare(ramp, geometry, card(shape=geometry.shape, spacing_mm=(1.0,) * 3, normalisation=how))
    assert tensor.dtype == np.float32
    assert tensor.min() == pytest.approx(low, abs=0.02)
    assert tensor.max() == pytest.approx(high, abs=0.02)


def test_a_single_slice_in_a_tensor_that_is_empty_but_for_it_is_scaled_by_its_own_brightness():
    geometry = Geometry.from_axes((1, 12, 12), (3.0, 1.0, 1.0))
    bright = np.full(geometry.shape, 700.0)
    tensor, _ = prepare(bright, geometry, card(shape=(800, 12, 12), spacing_mm=(1.0,) * 3, normalisation="p99"))
    assert (tensor > 0).mean() < 0.01
    assert tensor.max() == pytest.approx(1.0)


def test_what_is_not_finite_counts_as_nothing_and_nothing_divides_by_zero():
    geometry = Geometry.from_axes((8, 8, 8))
    for how in ("none", "minmax", "p99", "zscore"):
        tensor, _ = prepare(
            np.full(geometry.shape, np.nan), geometry, card(shape=(8, 8, 8), spacing_mm=(1.0,) * 3, normalisation=how)
        )
        assert np.array_equal(tensor, np.zeros_like(tensor))


@pytest.mark.parametrize(
    "changes", [{"axes": "SPP"}, {"axes": "XYZ"}, {"axes": "SP"}, {"normalisation": "max"}, {"centre": "nose"}]
)
def test_a_card_that_makes_no_sense_is_refused(changes):
    geometry = Geometry.from_axes((8, 8, 8))
    with pytest.raises(UsageError) as caught:
        prepare(np.ones(geometry.shape), geometry, card(**changes))
    assert caught.value.code == "bad_value"


def test_an_output_of_another_grid_is_refused():
    geometry = Geometry.from_axes((20, 20, 20))
    _, grid = prepare(np.ones(geometry.shape), geometry, card())
    for soft, where in (
        (np.zeros((1, 1, 3, 3, 3)), geometry),
        (np.zeros((24, 30, 26)), Geometry.from_axes((20, 20, 21))),
    ):
        with pytest.raises(UsageError) as caught:
            restore(soft, grid, where)
        assert caught.value.code == "bad_call"


def test_the_closest_axes_of_a_slab_that_is_turned_by_less_than_45_degrees_are_its_own():
    assert closest_axes(oblique()) == ((0, 1, 2), (False, False, False))


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_otsu_separates_noise_from_tissue():
    draw = np.random.default_rng(4)
    noise, tissue = draw.rayleigh(3, 9000), draw.normal(100, 10, 4000)
    assert noise.max() < otsu(np.concatenate([noise, tissue])) < tissue.min()
    assert otsu(np.zeros(10)) == 0


def test_depth_counts_from_the_nearest_outside_and_the_border_of_the_volume_is_none():
    mask = np.ones((9, 9, 9), bool)
    mask[4, 4, 4] = False
    assert depth_mm(mask, 2.0)[4, 4, 0] == pytest.approx(8.0)
    assert depth_mm(mask, 2.0)[0, 0, 0] == pytest.approx(8.0 * 3**0.5)


@pytest.mark.parametrize("step_mm", [1.0, (0.7, 1.9, 1.3), (3.0, 0.5, 0.6)])
@pytest.mark.parametrize("radius_mm", [0.2, 1.0, 3.0, 4.4, 30.0])
def test_growing_by_rows_is_growing_by_distance(step_mm, radius_mm):
    mask = np.random.default_rng(3).random((11, 14, 9)) > 0.99
    assert mask.any()
    assert np.array_equal(grown(mask, radius_mm, step_mm), away_mm(mask, step_mm) <= radius_mm)
    assert not grown(np.zeros_like(mask), radius_mm, step_mm).any()


def test_closing_fills_what_a_ball_does_not_fit_into_and_nothing_else():
    wall = np.ones((30, 30, 40), bool)
    wall[10:, :, 10:13] = False  # a slit of 3 voxels, 6 mm
    wall[10:, :, 22:34] = False  # a valley of 24 mm
    result = closed(wall, 4.0, 2.0)
    assert result[:, :, 10:13].all()
    assert not result[14:, :, 24:32].any()


def test_closing_a_slab_does_not_round_its_ends():
    slab = np.zeros((6, 40, 40), bool)
    slab[:, 10:30, 10:30] = True
    assert np.array_equal(closed(slab, 8.0, 2.0), slab)


def test_holes_are_filled_also_where_the_end_of_the_slab_opens_them():
    ball = np.zeros((10, 20, 20), bool)
    ball[:, 3:17, 3:17] = True
    holed = ball.copy()
    holed[0:4, 8:12, 8:12] = False  # open to the first slice
    holed[6, 5:8, 12:14] = False
    assert np.array_equal(filled(holed), ball)
    notched = ball.copy()
    notched[2:5, 3:8, 8:12] = False  # open to the outside: no hole
    assert np.array_equal(filled(notched), notched)


def test_the_largest_piece_stays_alone():
    mask = np.zeros((10, 10, 10), bool)
    mask[1:4, 1:4, 1:4] = mask[6:8, 6:8, 6:8] = True
    assert largest(mask).sum() == 27
    assert not largest(np.zeros((3, 3, 3), bool)).any()


# ---- the cheapest surface --------------------------------------------------------------------------------------------


def spheres(shape=(44, 48, 46)):
    at = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    return np.sqrt(sum(a**2 for a in at)), at


def cut(cost, r, force=None, sure=7):
    u = cheapest_surface(
        cost.astype(np.float32), np.zeros_like(r, np.float32) if force is None else force, r < sure, r > 20
    )
    assert u.min() >= 0
    assert u.max() <= 1
    return u > 0.5


def test_the_surface_follows_a_dark_shell():
    r, _ = spheres()
    inside = cut(np.where(abs(r - 15) < 1.5, 0.05, 1.0), r)
    assert inside[r < 13].all()
    assert not inside[r > 17].any()


def test_a_gap_in_the_shell_is_spanned():
    r, at = spheres()
    shell = (abs(r - 15) < 1.5) & ~((at[0] > 0) & (np.hypot(at[1], at[2]) < 5))
    inside = cut(np.where(shell, 0.05, 1.0), r)
    assert inside[r < 11].all()
    assert not inside[r > 17].any()


@pytest.mark.parametrize(("inner", "radius"), [(0.20, 9), (0.60, 15)])
def test_of_two_shells_the_one_of_less_area_times_cost_is_taken(inner, radius):
    r, _ = spheres()  # squares of the inner radii, 8.5 and 14.5, times costs: 14 or 43 against 21; the seed's 7: 49
    cost = np.where(abs(r - 10) < 1.5, inner, np.where(abs(r - 16) < 1.5, 0.10, 1.0))
    volume = cut(cost, r).sum()
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.3)


def test_a_dark_pit_in_the_border_is_passed_over():
    r, at = spheres()
    pit = np.sqrt((at[0] - 13) ** 2 + at[1] ** 2 + at[2] ** 2) < 5
    inside = cut(np.where((abs(r - 15) < 1.5) | pit, 0.05, 1.0), r)
    assert inside[pit & (r < 12)].all()


def test_a_force_moves_the_surface_and_calls_back_level_by_level():
    r, _ = spheres()
    cost = np.full(r.shape, 0.2, np.float32)
    pushed = np.where(r < 17, -0.1, 0.1).astype(np.float32)
    assert cut(cost, r, pushed).sum() == pytest.approx((r < 17).sum(), rel=0.1)
    calls = []
    cheapest_surface(cost, pushed, r < 5, r > 20, steps=(3, 2), on_iteration=lambda n, x: calls.append(n))
    assert calls == [3, 5]


def test_samples_that_are_the_volumes_own_are_copied_as_they_are():
    volume = np.random.default_rng(0).random((6, 7, 8), dtype=np.float32)
    whole = [np.eye(n, dtype=np.float32) for n in volume.shape]
    part = [rows[1:5] for rows in whole]
    product = np.einsum("abc,za,yb,xc->zyx", volume, *part)
    for weights, wanted in ((whole, volume), (part, volume[1:5, 1:5, 1:5])):
        got = apply(volume, weights)
        assert np.array_equal(got, wanted)
        assert not np.may_share_memory(got, volume)
        got += 1  # it is the caller's own
    assert np.array_equal(product, volume[1:5, 1:5, 1:5])
    swapped = [whole[0][[1, 0, 2, 3, 4, 5]], *whole[1:]]
    assert np.array_equal(apply(volume, swapped), volume[[1, 0, 2, 3, 4, 5]])
