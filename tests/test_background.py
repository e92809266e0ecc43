"""Background removal: the fields of outside sources go, those of inside sources stay, whatever the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import background
from qsm_edge.distance import depth_mm, shallow_mm, within_mm
from tests import laws, phantoms
from tests.conftest import Flavour

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
EVEN = np.ones(GEOMETRY.shape, np.float32)

#: Enough for the laws, which hold at any number of iterations.
SHORT: dict[str, dict[str, Any]] = {
    "tfi": dict(iterations=8, margin_mm=12.0),
    "pdf": dict(iterations=8),
    "resharp": dict(iterations=15),
    "ismv": dict(iterations=15),
    "lbv": dict(iterations=30),
}


def stage(name: str, **options: Any) -> laws.Stage:
    chosen = {**SHORT.get(name, {}), **options}

    def run(arrays: tuple[Any, ...], geometry: phantoms.Geometry) -> tuple[Any, ...]:
        field, mask, weight = arrays
        return laws.parts(background.METHODS[name](field, mask, geometry, weight, **chosen))

    return run


def inputs() -> tuple[np.ndarray, ...]:
    """A field with noise, and weights that vary."""
    noise = 0.002 * np.random.default_rng(1).standard_normal(GEOMETRY.shape)
    weight = (1 + 0.3 * phantoms.smooth_noise(GEOMETRY.shape, 2).clip(-2, 2)).astype(np.float32)
    return np.where(HEAD.mask, HEAD.field_ppm + noise, 0).astype(np.float32), HEAD.mask, weight


@pytest.mark.parametrize("name", background.METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    laws.devices(stage(name), inputs(), GEOMETRY, xp, 1e-4)


@pytest.mark.parametrize("name", background.METHODS)
def test_storage_order_place_and_sign_of_b0_do_not_matter(name: str) -> None:
    laws.orientation(stage(name), inputs(), GEOMETRY, 2e-4)
    laws.translation(stage(name), inputs(), GEOMETRY, 2e-4)
    laws.b0_sign(stage(name), inputs(), GEOMETRY, 2e-4)


@pytest.mark.parametrize("name", ["tfi", "pdf"])
def test_methods_with_dipoles_use_their_direction(name: str) -> None:
    laws.b0_matters(stage(name), inputs(), GEOMETRY, least=0.01)


@pytest.mark.parametrize("name", background.METHODS)
def test_the_mask_comes_back_no_larger_and_the_field_is_zero_outside_it(name: str) -> None:
    local, kept = stage(name)(inputs(), GEOMETRY)
    assert kept.dtype == bool
    assert not (kept & ~HEAD.mask).any()
    assert not local[~kept].any()
    assert np.count_nonzero(local[kept]) > 0.99 * kept.sum()
    if name in ("tfi", "pdf"):  # the two that lose nothing
        assert np.array_equal(kept, HEAD.mask)


def test_options_and_progress() -> None:
    laws.refuses_unknown_options(background.METHODS.values(), positional=4)
    field, mask, weight = inputs()
    for name, method in background.METHODS.items():
        options = SHORT.get(name, {})

        def run(tell: Any, method: Any = method, options: dict[str, Any] = options) -> Any:
            return method(field, mask, GEOMETRY, weight, on_iteration=tell, **options)

        laws.tells_and_stops(run, options.get("iterations"))


@pytest.mark.parametrize("name", background.METHODS)
def test_the_field_counts_in_proportion(name: str) -> None:
    """Twice the field gives twice the local field; stopping rules are relative, so this holds for all of them."""
    field, mask, weight = inputs()
    run = stage(name)
    laws.assert_close(run((-2 * field, mask, weight), GEOMETRY)[0], -2 * run((field, mask, weight), GEOMETRY)[0], 1e-4)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("vsharp", {}, 1e-5),
        ("lbv", dict(iterations=400, tolerance=1e-6), 1e-4),
        ("ismv", dict(iterations=60, tolerance=0.0), 1e-4),
        ("resharp", dict(iterations=200, tolerance=1e-6), 1e-3),
        ("pdf", dict(iterations=100, tolerance=1e-4), 0.06),
        ("tfi", dict(iterations=150, margin_mm=12.0, noise_ppm=0.05), 0.01),
    ],
)
def test_fields_superpose(name: str, options: dict[str, Any], tolerance: float) -> None:
    """Once converged; conjugate gradients that are stopped early are no linear function of the field."""
    noise = np.where(HEAD.mask, 0.02 * phantoms.smooth_noise(GEOMETRY.shape, 3), 0).astype(np.float32)
    run = stage(name, **options)
    laws.linear(lambda field: run((field, HEAD.mask, EVEN), GEOMETRY)[0], HEAD.field_ppm, noise, tolerance)


def _spread(x: np.ndarray, where: np.ndarray) -> float:
    return float(np.std(x[where]))


@pytest.mark.parametrize(
    ("name", "left", "core_left", "kept_share"),
    [
        ("tfi", 0.009, 0.008, 1.0),
        ("pdf", 0.010, 0.014, 1.0),
        ("vsharp", 0.002, 0.002, 0.75),
        ("resharp", 0.001, 0.001, 0.30),
        ("lbv", 0.009, 0.010, 0.75),
        ("ismv", 0.0012, 0.0012, 0.40),
    ],
)
def test_sources_outside_leave_nothing(name: str, left: float, core_left: float, kept_share: float) -> None:
    """What is left of a purely outside field, as a share of it; measured, with a third in reserve."""
    field = HEAD.background_ppm
    local, kept = background.METHODS[name](field, HEAD.mask, GEOMETRY, EVEN)
    core = kept & (HEAD.depth_mm() > 5)
    assert kept.sum() >= kept_share * HEAD.mask.sum()
    assert _spread(local, kept) < left * _spread(field, kept)
    assert _spread(local, core) < core_left * _spread(field, core)


@pytest.mark.parametrize(
    ("name", "missed", "core_missed"),
    [
        ("tfi", 0.55, 0.19),
        ("pdf", 0.70, 0.27),
        ("vsharp", 0.62, 0.47),
        ("resharp", 0.34, 0.34),
        ("lbv", 0.24, 0.10),
        ("ismv", 0.24, 0.22),
    ],
)
def test_sources_inside_stay(name: str, missed: float, core_missed: float) -> None:
    """Error of the local field under a background nine times as large, as a share of it; 1 is: all was lost."""
    assert _spread(HEAD.background_ppm, HEAD.mask) > 9 * _spread(HEAD.local_ppm, HEAD.mask)
    local, kept = background.METHODS[name](HEAD.field_ppm, HEAD.mask, GEOMETRY, EVEN)
    core = kept & (HEAD.depth_mm() > 5)
    assert _spread(local - HEAD.local_ppm, kept) < missed * _spread(HEAD.local_ppm, kept)
    assert _spread(local - HEAD.local_ppm, core) < core_missed * _spread(HEAD.local_ppm, core)
    assert np.corrcoef(local[core], HEAD.local_ppm[core])[0, 1] > 0.93


@pytest.mark.parametrize("name", ["vsharp", "resharp", "ismv", "lbv"])
@pytest.mark.parametrize("voxel_mm", [(2.0, 1.5, 1.7), (3.0, 0.9, 1.0), (1.5, 1.5, 1.5)])
def test_harmonic_polynomials_leave_nothing(name: str, voxel_mm: phantoms.Triple) -> None:
    """A constant, a gradient and a saddle: what a shim leaves. Fails when a sphere reads zeros beyond the mask."""
    geometry = phantoms.oblique((15, 36, 34), voxel_mm)
    z, y, x = phantoms.offsets(geometry, (0, 0, 0)) / 15.0
    radius = phantoms.head_radius_mm(geometry) / 15.0
    mask = z**2 + y**2 + x**2 <= radius**2
    for field in (np.ones_like(z), z - 2 * y, x * x - y * y, z * x):
        inside = np.where(mask, field, 0).astype(np.float32)
        local, kept = background.METHODS[name](
            inside, mask, geometry, np.ones(geometry.shape, np.float32), **{"vsharp": dict(radius_mm=6.0)}.get(name, {})
        )
        assert kept.any()
        assert np.abs(local).max() < 5e-3 * np.abs(inside).max()


@pytest.mark.parametrize("name", ["tfi", "pdf"])
def test_a_constant_is_no_local_field(name: str) -> None:
    """The centre frequency of a scanner is arbitrary."""
    run = stage(name)
    field, mask, _ = inputs()
    shifted = np.where(mask, field + np.float32(1.5), 0).astype(np.float32)
    one, other = run((field, mask, EVEN), GEOMETRY)[0], run((shifted, mask, EVEN), GEOMETRY)[0]
    assert np.abs(one - other).max() < 1e-5


@pytest.mark.parametrize("name", ["tfi", "pdf"])
def test_weighted_methods_do_not_look_at_voxels_of_weight_zero(name: str) -> None:
    """A bleed's core holds random field: its weight takes it out of the fit, and its neighbours do not notice."""
    bad = np.zeros_like(HEAD.mask)
    bad[10:13, 13:17, 12:15] = True
    garbage = HEAD.field_ppm.copy()
    garbage[bad] += 3.0
    weight = np.where(bad, 0, EVEN)
    got, kept = background.METHODS[name](garbage, HEAD.mask, GEOMETRY, weight)
    clean, _ = background.METHODS[name](HEAD.field_ppm, HEAD.mask, GEOMETRY, weight)
    difference = (got - clean)[kept & ~bad]
    assert np.abs(difference - difference.mean()).max() < 0.02 * _spread(HEAD.local_ppm, HEAD.mask)


@pytest.mark.parametrize(
    ("name", "tight", "share"), [("tfi", dict(loosest=1.0), 0.9), ("pdf", dict(doubtful_share=0.0), 0.9)]
)
def test_a_bleed_at_the_surface_keeps_its_field_when_the_weight_is_low(
    name: str, tight: dict[str, Any], share: float
) -> None:
    """Where the weight says that the signal decays fast, susceptibility may be far from tissue's."""
    radius = phantoms.head_radius_mm(GEOMETRY)
    centre = (0.0, 0.75 * radius, 0.0)
    chi, field = phantoms.blob(GEOMETRY, centre, 2.5)
    bleed = (chi > 0.3) & HEAD.mask
    total = np.where(HEAD.mask, HEAD.field_ppm + 0.8 * field, 0).astype(np.float32)
    weight = np.where(bleed, 0.1, 1).astype(np.float32)
    truth = HEAD.local_ppm + np.where(HEAD.mask, 0.8 * field, 0)
    around = HEAD.mask & (np.sqrt((phantoms.offsets(GEOMETRY, centre) ** 2).sum(axis=0)) < 9)
    run = background.METHODS[name]
    loose, _ = run(total, HEAD.mask, GEOMETRY, weight)
    other, _ = run(total, HEAD.mask, GEOMETRY, weight, **tight)
    assert _spread(loose - truth, around) < share * _spread(other - truth, around)


def test_a_deeper_peel_loses_more_layers() -> None:
    kept = [
        int(background.METHODS["lbv"](HEAD.field_ppm, HEAD.mask, GEOMETRY, EVEN, peel=n)[1].sum()) for n in (1, 2, 3)
    ]
    assert HEAD.mask.sum() > kept[0] > kept[1] > kept[2] > 0


def test_depth_is_the_distance_to_the_nearest_voxel_outside(xp: Flavour) -> None:
    """By brute force; the border of the volume counts as outside."""
    geometry = phantoms.oblique((5, 6, 7))
    mask = np.random.default_rng(6).random(geometry.shape) < 0.9
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    expected = np.zeros(geometry.shape, np.float32)
    for voxel in np.argwhere(mask):
        expected[tuple(voxel)] = np.linalg.norm((outside - voxel) * geometry.voxel_mm, axis=1).min()
    laws.assert_close(xp.to_numpy(depth_mm(xp.asarray(mask), geometry)), expected, 1e-6)


@pytest.mark.parametrize("name", background.METHODS)
def test_a_mask_that_touches_the_border_and_has_a_thin_part_is_survived(name: str) -> None:
    """Slabs cut through the head: every method returns finite fields on a part of the mask."""
    mask = HEAD.mask.copy()
    mask[:6] = False
    mask = np.roll(mask, -6, axis=0)
    mask[3:6, :, 4:6] |= True
    field = np.where(mask, HEAD.field_ppm, 0).astype(np.float32)
    local, kept = stage(name)((field, mask, EVEN), GEOMETRY)
    assert mask[0].any()
    assert np.isfinite(local).all()
    assert kept.any()
    assert not (kept & ~mask).any()


@pytest.mark.parametrize("limit_mm", [0.5, 2.0, 3.6, 80.0])
def test_a_depth_of_limited_reach_is_the_depth_up_to_there(xp: Flavour, limit_mm: float) -> None:
    """80 mm is beyond what is stepped, so that a whole distance transform does it."""
    geometry = phantoms.oblique((9, 11, 10), (1.2, 0.8, 0.9))
    mask = np.random.default_rng(7).random(geometry.shape) < 0.985
    whole = depth_mm(mask, geometry)
    expected = np.where(whole <= limit_mm * (1 + 1e-6), whole, np.float32(np.inf))
    got = xp.to_numpy(shallow_mm(xp.asarray(mask), geometry, limit_mm))
    assert np.array_equal(np.isinf(got), np.isinf(expected))
    laws.assert_close(np.where(np.isinf(got), 0, got), np.where(np.isinf(expected), 0, expected), 1e-6)


@pytest.mark.parametrize("reach_mm", [0.8, 2.4, 80.0])
def test_what_is_within_reach_of_a_mask(xp: Flavour, reach_mm: float) -> None:
    """By brute force, a whole number of voxels away included; of no mask nothing is within reach."""
    geometry = phantoms.oblique((6, 7, 9), (1.2, 0.8, 0.9))
    mask = np.random.default_rng(8).random(geometry.shape) < 0.02
    away = (np.indices(geometry.shape).reshape(3, 1, -1).T - np.argwhere(mask)) * geometry.voxel_mm
    expected = (np.linalg.norm(away, axis=2).min(axis=1) <= reach_mm * (1 + 1e-6)).reshape(geometry.shape)
    assert np.array_equal(xp.to_numpy(within_mm(xp.asarray(mask), geometry, reach_mm)), expected)
    assert not xp.to_numpy(within_mm(xp.asarray(np.zeros_like(mask)), geometry, reach_mm)).any()
