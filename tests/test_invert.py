"""Dipole inversion: closed forms against closed forms, iterative ones against the truth and against their own claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import edges, invert
from tests import laws, phantoms
from tests.conftest import Flavour
from tests.test_kernels import full_dipole

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
EVEN = np.ones(GEOMETRY.shape, np.float32)
#: Every step pays alike, outside the mask too: right for an exact field, which no background has left anything in.
NO_EDGES = np.ones((3, *GEOMETRY.shape), np.float32)
ITERATIVE = ("tv", "hdqsm", "rts")
SHORT: dict[str, dict[str, Any]] = {
    "tv": dict(iterations=8),
    "hdqsm": dict(iterations=6, first_iterations=4),
    "rts": dict(iterations=8),
}


def inverted(
    name: str, local: np.ndarray, weight: np.ndarray = EVEN, steps: np.ndarray = NO_EDGES, **options: Any
) -> np.ndarray:
    return np.asarray(invert.METHODS[name](local, HEAD.mask, GEOMETRY, weight, steps, **options))


def stage(name: str) -> laws.Stage:
    def run(arrays: tuple[Any, ...], geometry: phantoms.Geometry) -> tuple[Any, ...]:
        local, mask, weight = arrays
        steps = edges.none(weight, None, mask, geometry, weight)
        return laws.parts(invert.METHODS[name](local, mask, geometry, weight, steps, **SHORT.get(name, {})))

    return run


def noisy_local(noise: float = 0.001) -> np.ndarray:
    draw = np.random.default_rng(1)
    return np.where(HEAD.mask, HEAD.local_ppm + noise * draw.standard_normal(GEOMETRY.shape), 0).astype(np.float32)


def inputs() -> tuple[np.ndarray, ...]:
    weight = (1 + 0.3 * phantoms.smooth_noise(GEOMETRY.shape, 2).clip(-2, 2)).astype(np.float32)
    return noisy_local(), HEAD.mask, weight


def agreement(chi: np.ndarray, truth: np.ndarray = HEAD.chi_ppm) -> tuple[float, float, float]:
    """Correlation, slope and normalised root-mean-square error inside the mask, means taken off."""
    got, wanted = (v[HEAD.mask] - v[HEAD.mask].mean() for v in (chi, truth))
    error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    return float(np.corrcoef(got, wanted)[0, 1]), float(np.polyfit(wanted, got, 1)[0]), error


@pytest.mark.parametrize("name", invert.METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    laws.devices(stage(name), inputs(), GEOMETRY, xp, 1e-4)


@pytest.mark.parametrize("name", invert.METHODS)
def test_storage_order_place_and_sign_of_b0_do_not_matter_but_its_direction_does(name: str) -> None:
    laws.orientation(stage(name), inputs(), GEOMETRY, 1e-4)
    laws.translation(stage(name), inputs(), GEOMETRY, 1e-4)
    laws.b0_sign(stage(name), inputs(), GEOMETRY, 1e-4)
    laws.b0_matters(stage(name), inputs(), GEOMETRY)


@pytest.mark.parametrize("name", invert.METHODS)
def test_nothing_is_given_outside_the_mask(name: str) -> None:
    (chi,) = stage(name)(inputs(), GEOMETRY)
    assert not chi[~HEAD.mask].any()
    assert np.count_nonzero(chi[HEAD.mask]) > 0.99 * HEAD.mask.sum()


@pytest.mark.parametrize("name", invert.METHODS)
def test_what_the_field_holds_outside_the_mask_is_not_looked_at(name: str) -> None:
    local, mask, weight = inputs()
    loud = np.where(mask, local, 7.0).astype(np.float32)
    (got,), (wanted,) = stage(name)((loud, mask, weight), GEOMETRY), stage(name)((local, mask, weight), GEOMETRY)
    laws.assert_close(got, wanted, 1e-6)


def test_options_and_progress() -> None:
    laws.refuses_unknown_options(invert.METHODS.values(), positional=5)
    local, mask, weight = inputs()
    for name, method in invert.METHODS.items():
        options = SHORT.get(name, {})

        def run(tell: Any, method: Any = method, options: dict[str, Any] = options) -> Any:
            return method(local, mask, GEOMETRY, weight, NO_EDGES, on_iteration=tell, **options)

        laws.tells_and_stops(run, sum(options.values()) or 1)


@pytest.mark.parametrize("name", ["tkd", "tikhonov"])
def test_closed_forms_are_linear(name: str) -> None:
    first, second = HEAD.local_ppm, noisy_local(0.02)
    laws.linear(lambda local: inverted(name, local), first, second, 1e-5)


SMALL = phantoms.oblique((7, 9, 11), (2.0, 1.5, 1.7))
PADDED = (8, 10, 12)  # without a margin: the next even lengths of small factors above n


def _reference(local: np.ndarray, mask: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """chi by the full complex transform in float64."""
    padded = np.zeros(PADDED)
    padded[:7, :9, :11] = np.where(mask, local, 0)
    chi = np.fft.ifftn(inverse * np.fft.fftn(padded))
    assert np.abs(chi.imag).max() < 1e-12
    return (chi.real[:7, :9, :11] * mask).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.1, 0.15, 0.22])
def test_tkd_is_its_formula(xp: Flavour, threshold: float) -> None:
    draw = np.random.default_rng(5)
    local, mask = draw.standard_normal(SMALL.shape).astype(np.float32), draw.random(SMALL.shape) < 0.8
    d = full_dipole(PADDED, SMALL.voxel_mm, SMALL.b0_dir)
    assert np.abs(np.abs(d) - threshold).min() > 1e-6  # no value for rounding to put on either side
    inverse = np.where(np.abs(d) > threshold, 1 / np.where(d == 0, 1, d), np.sign(d) / threshold)
    got = invert.METHODS["tkd"](
        xp.asarray(local),
        xp.asarray(mask),
        SMALL,
        xp.asarray(np.ones_like(local)),
        xp.asarray(np.ones((3, *SMALL.shape), np.float32)),
        threshold=threshold,
        margin_mm=0.0,
    )
    laws.assert_close(xp.to_numpy(got), _reference(local, mask, inverse), 2e-6)


@pytest.mark.parametrize("regularisation", [0.01, 0.05])
def test_tikhonov_is_its_formula(xp: Flavour, regularisation: float) -> None:
    draw = np.random.default_rng(6)
    local, mask = draw.standard_normal(SMALL.shape).astype(np.float32), draw.random(SMALL.shape) < 0.8
    d = full_dipole(PADDED, SMALL.voxel_mm, SMALL.b0_dir)
    got = invert.METHODS["tikhonov"](
        xp.asarray(local),
        xp.asarray(mask),
        SMALL,
        xp.asarray(np.ones_like(local)),
        xp.asarray(np.ones((3, *SMALL.shape), np.float32)),
        regularisation=regularisation,
        margin_mm=0.0,
    )
    laws.assert_close(xp.to_numpy(got), _reference(local, mask, d / (d**2 + regularisation)), 2e-6)


@pytest.mark.parametrize(
    ("name", "correlation", "slope", "error"),
    [
        ("tv", 0.995, (0.95, 1.02), 0.09),
        ("hdqsm", 0.995, (0.95, 1.02), 0.09),
        ("rts", 0.98, (0.90, 1.02), 0.20),
        ("tkd", 0.95, (0.78, 0.90), 0.32),
        ("tikhonov", 0.92, (0.55, 0.70), 0.50),
    ],
)
def test_a_smooth_phantom_comes_back(name: str, correlation: float, slope: tuple[float, float], error: float) -> None:
    """From its analytic field; the closed forms underestimate by what their regularisation takes."""
    weak = dict(regularisation=2e-5) if name in ("tv", "hdqsm") else {}  # there is no noise
    found = agreement(inverted(name, HEAD.local_ppm, **weak))
    assert found[0] > correlation
    assert slope[0] < found[1] < slope[1]
    assert found[2] < error


@pytest.mark.parametrize("name", invert.METHODS)
def test_voxels_of_weight_zero_are_ignored(name: str) -> None:
    bad = np.zeros_like(HEAD.mask)
    bad[10:13, 13:17, 12:15] = True
    garbage = HEAD.local_ppm.copy()
    garbage[bad] = np.random.default_rng(2).uniform(-5, 5, int(bad.sum()))
    weight = np.where(bad, 0, EVEN).astype(np.float32)
    laws.assert_close(inverted(name, garbage, weight), inverted(name, HEAD.local_ppm, weight), 1e-5)
    if name in ("tv", "hdqsm"):  # whose data term leaves a gap there, rather than a field of zero
        assert agreement(inverted(name, garbage, weight))[2] < 0.2
    assert agreement(inverted(name, garbage))[2] > 1  # as it is not when they count


@pytest.mark.parametrize("name", ["tkd", "tikhonov", "rts"])
def test_ordinary_weights_do_not_scale_the_closed_forms(name: str) -> None:
    """Only what is hardly trusted fades out; a tissue of lower signal keeps its field."""
    weight = np.where(HEAD.chi_ppm > 0.02, np.float32(0.4), EVEN)
    weight[:, :12] = 2.0
    assert agreement(inverted(name, HEAD.local_ppm, weight), inverted(name, HEAD.local_ppm))[2] < 0.02


def test_few_wrong_voxels_do_not_bend_the_hybrid() -> None:
    """Their weights are one: nothing but the L1 pass can tell that no susceptibility explains them."""
    spots = np.zeros_like(HEAD.mask)
    for at in ((11, 14, 13), (8, 11, 15), (14, 18, 10)):
        spots[at] = True
    spoilt = HEAD.local_ppm.copy()
    spoilt[spots] += 0.5
    found = agreement(inverted("hdqsm", spoilt, regularisation=1e-4))[2]
    assert found < 0.3 * agreement(inverted("tv", spoilt, regularisation=1e-4))[2]
    assert found < 0.15


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_constant_field_is_no_susceptibility(name: str) -> None:
    raised = np.where(HEAD.mask, HEAD.local_ppm + np.float32(0.3), 0).astype(np.float32)
    laws.assert_close(inverted(name, raised), inverted(name, HEAD.local_ppm), 2e-3)


@pytest.mark.parametrize("name", ["tv", "rts"])
def test_the_penalty_changes_the_way_and_not_the_answer(name: str) -> None:
    penalties = {"tv": (4e-3, 1.6e-2), "rts": (0.05, 0.2)}[name]
    settled = dict(iterations=200, tolerance=0.0, margin_mm=6.0)
    one, other = (inverted(name, noisy_local(), penalty=p, **settled) for p in penalties)
    if name == "tv":
        assert agreement(one, other)[2] < 0.04
    else:  # its penalty also decides how far the well-conditioned part may move
        assert agreement(one, other)[2] < 0.10


@pytest.mark.parametrize("name", ITERATIVE)
def test_iterations_settle(name: str) -> None:
    changes: list[float] = []
    inverted(name, noisy_local(), on_iteration=lambda number, moved: changes.append(moved))
    assert changes[-1] < 0.05
    assert changes[-1] < 1.1 * min(changes)


@pytest.mark.parametrize("name", invert.METHODS)
def test_no_weight_anywhere_gives_nothing_rather_than_nonsense(name: str) -> None:
    chi = inverted(name, HEAD.local_ppm, 0 * EVEN)
    assert np.isfinite(chi).all()
    assert np.abs(chi).max() < 1e-6


def test_more_regularisation_is_smoother_and_more_noise_needs_it() -> None:
    def roughness(chi: np.ndarray) -> float:
        return float(sum(np.abs(np.diff(chi, axis=a)).sum() for a in range(3)))

    weak, strong = (inverted("tv", noisy_local(0.003), regularisation=r) for r in (1e-5, 1e-3))
    assert roughness(strong) < roughness(weak)
