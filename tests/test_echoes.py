"""Echo combination: exact without noise, statistically sound with it, and honest about misfits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsm_edge import echoes
from tests import laws, phantoms
from tests.conftest import Flavour
from tests.phantoms import GAMMA_RAD_PER_PPM_TESLA_S

GEOMETRY = phantoms.oblique()
MASK = phantoms.head(GEOMETRY).mask
UNEVEN_S = (0.0043, 0.0081, 0.0147, 0.0226, 0.0390)
B0_TESLA = 3.0


def field_ppm(seed: int = 0, spread: float = 0.12) -> np.ndarray:
    return spread * phantoms.smooth_noise(GEOMETRY.shape, seed)


def offset_rad(seed: int = 5) -> np.ndarray:
    return 1.5 * phantoms.smooth_noise(GEOMETRY.shape, seed)


def seed_truth(field: np.ndarray, times: tuple[float, ...], b0_tesla: float = B0_TESLA) -> np.ndarray:
    """The unwrapped phase that the spatial unwrapping would give for `seed_phase`."""
    i, j = (0, 0) if len(times) == 1 else echoes.seed_pair(times)
    gap = times[0] if len(times) == 1 else times[j] - times[i]
    return (GAMMA_RAD_PER_PPM_TESLA_S * b0_tesla * gap * field).astype(np.float32)


def fitted(
    name: str,
    phase: np.ndarray,
    magnitude: np.ndarray,
    seed: np.ndarray,
    times: tuple[float, ...],
    b0_tesla: float = B0_TESLA,
    mask: np.ndarray = MASK,
    **options: Any,
) -> echoes.FieldFit:
    fit: echoes.FieldFit = echoes.METHODS[name](phase, magnitude, seed, mask, times, b0_tesla, GEOMETRY, **options)
    return fit


def noisy_seed(phase: np.ndarray, magnitude: np.ndarray, times: tuple[float, ...], field: np.ndarray) -> np.ndarray:
    """The measured seed, unwrapped with the help of the truth."""
    got, _ = echoes.seed_phase(phase, magnitude, times)
    truth = seed_truth(field, times)
    return (truth + echoes.wrap(got - truth)).astype(np.float32)


def stage(name: str, times: tuple[float, ...]) -> laws.Stage:
    def run(arrays: tuple[Any, ...], geometry: phantoms.Geometry) -> tuple[Any, ...]:
        return laws.parts(echoes.METHODS[name](*arrays, times, B0_TESLA, geometry))

    return run


def inputs(times: tuple[float, ...], noise: float = 0.05) -> tuple[np.ndarray, ...]:
    field = field_ppm()
    phase, magnitude = phantoms.echoes(field, times, B0_TESLA, offset_rad=offset_rad(), noise=noise)
    return phase, magnitude, noisy_seed(phase, magnitude, times, field), MASK


@pytest.mark.parametrize("name", echoes.METHODS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_array_any_device(xp: Flavour, name: str, count: int) -> None:
    laws.devices(stage(name, UNEVEN_S[:count]), inputs(UNEVEN_S[:count]), GEOMETRY, xp, 1e-5)


@pytest.mark.parametrize("name", echoes.METHODS)
def test_storage_order_and_place_do_not_matter(name: str) -> None:
    laws.orientation(stage(name, UNEVEN_S), inputs(UNEVEN_S), GEOMETRY, 1e-6)
    laws.translation(stage(name, UNEVEN_S), inputs(UNEVEN_S), GEOMETRY, 1e-6)
    laws.b0_sign(stage(name, UNEVEN_S), inputs(UNEVEN_S), GEOMETRY)


def test_options_and_progress() -> None:
    laws.refuses_unknown_options(echoes.METHODS.values(), positional=7)
    for name in echoes.METHODS:

        def run(tell: Any, name: str = name) -> Any:
            phase, magnitude, seed, _ = inputs(UNEVEN_S)
            return fitted(name, phase, magnitude, seed, UNEVEN_S, on_iteration=tell)

        laws.tells_and_stops(run)


def test_the_seed_is_the_closest_pair_the_earlier_on_a_draw() -> None:
    assert echoes.seed_pair((0.005, 0.010, 0.015)) == (0, 1)
    assert echoes.seed_pair((0.004, 0.012, 0.017, 0.030)) == (1, 2)
    assert echoes.seed_pair((0.1 + 0.005, 0.1 + 0.010, 0.1 + 0.015)) == (0, 1)  # a draw but for rounding
    assert echoes.seed_pair((0.03, 0.05)) == (0, 1)


def test_the_seed_phase_has_lost_the_offset_and_is_wrapped() -> None:
    times = (0.004, 0.012, 0.017)
    field = field_ppm(spread=2.0)
    phase, magnitude = phantoms.echoes(field, times, B0_TESLA, offset_rad=offset_rad())
    got, strength = echoes.seed_phase(phase, magnitude, times)
    truth = GAMMA_RAD_PER_PPM_TESLA_S * B0_TESLA * 0.005 * field
    assert np.abs(np.angle(np.exp(1j * (got - truth)))).max() < 1e-4
    assert np.abs(got).max() <= np.pi + 1e-5
    assert np.array_equal(strength, magnitude[2])  # the weaker of the two
    single, its_strength = echoes.seed_phase(phase[:1], magnitude[:1], times[:1])
    assert np.array_equal(single, phase[0])
    assert np.array_equal(its_strength, magnitude[0])


@pytest.mark.parametrize("name", echoes.METHODS)
@pytest.mark.parametrize(
    "times",
    [
        UNEVEN_S,
        (0.020, 0.045),
        (0.0012, 0.0031, 0.0050),
        (0.004, 0.012, 0.017, 0.030),  # the seed is not the first pair
        tuple(0.035 + 0.0023 * i for i in range(8)),  # a late start
    ],
)
@pytest.mark.parametrize("b0_tesla", [1.5, 7.0])
def test_noise_free_signals_give_their_field_and_offset_back(
    name: str, times: tuple[float, ...], b0_tesla: float
) -> None:
    field, offset = field_ppm(spread=0.3), offset_rad()
    phase, magnitude = phantoms.echoes(field, times, b0_tesla, offset_rad=offset)
    turns = GAMMA_RAD_PER_PPM_TESLA_S * b0_tesla * times[-1] * np.abs(field[MASK]).max() / (2 * np.pi)
    if times[-1] > 0.02 and b0_tesla == 7.0:
        assert turns > 3
    fit = fitted(name, phase, magnitude, seed_truth(field, times, b0_tesla), times, b0_tesla)
    assert np.abs(fit.field_ppm - field)[MASK].max() < 2e-5
    assert np.abs(np.angle(np.exp(1j * (fit.offset_rad - offset))))[MASK].max() < 3e-3
    assert np.abs(fit.offset_rad).max() <= np.pi + 1e-5
    assert fit.residual[MASK].max() < 1e-3
    for part in laws.parts(fit):
        assert part.dtype == np.float32
        assert not part[~MASK].any()


@pytest.mark.parametrize("name", echoes.METHODS)
def test_one_echo_is_its_phase_over_its_time(name: str) -> None:
    field, times = field_ppm(), (0.018,)
    phase, magnitude = phantoms.echoes(field, times, B0_TESLA, offset_rad=0.0)
    fit = fitted(name, phase, magnitude, seed_truth(field, times), times)
    assert np.abs(fit.field_ppm - field)[MASK].max() < 1e-6
    assert not fit.residual.any()
    assert not fit.offset_rad.any()
    ratio = fit.precision[MASK] / magnitude[0][MASK]
    assert ratio == pytest.approx(GAMMA_RAD_PER_PPM_TESLA_S * B0_TESLA * times[0], rel=1e-5)


def _errors(name: str, noise: float) -> tuple[np.ndarray, echoes.FieldFit]:
    field = field_ppm()
    phase, magnitude = phantoms.echoes(field, UNEVEN_S, B0_TESLA, offset_rad=offset_rad(), noise=noise, seed=11)
    fit = fitted(name, phase, magnitude, noisy_seed(phase, magnitude, UNEVEN_S, field), UNEVEN_S)
    return (fit.field_ppm - field)[MASK], fit


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.2])
def test_the_nonlinear_fit_is_no_worse_than_the_linear_one(noise: float) -> None:
    linear, _ = _errors("linear_fit", noise)
    nonlinear, _ = _errors("nonlinear_fit", noise)
    assert np.sqrt(np.mean(nonlinear**2)) <= 1.01 * np.sqrt(np.mean(linear**2))
    assert np.median(np.abs(nonlinear)) <= 1.01 * np.median(np.abs(linear))


@pytest.mark.parametrize("name", echoes.METHODS)
def test_the_error_is_the_one_that_the_precision_predicts(name: str) -> None:
    """precision is 1 / standard deviation in units of signal over noise: their product is the noise."""
    noise = 0.02
    error, fit = _errors(name, noise)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(error.size)
    assert np.std(error * fit.precision[MASK]) == pytest.approx(noise, rel=0.05)


@pytest.mark.parametrize("name", echoes.METHODS)
def test_the_residual_is_the_noise_and_rises_where_an_echo_is_corrupted(name: str) -> None:
    field = field_ppm()
    phase, magnitude = phantoms.echoes(field, UNEVEN_S, B0_TESLA, noise=0.02, seed=12)
    seed = noisy_seed(phase, magnitude, UNEVEN_S, field)
    sound = fitted(name, phase, magnitude, seed, UNEVEN_S).residual
    signal = (magnitude.astype(float) ** 2).sum(axis=0)  # two of five degrees of freedom went into the fit
    assert np.mean((sound**2 * signal)[MASK]) == pytest.approx((len(UNEVEN_S) - 2) * 0.02**2, rel=0.05)
    spoilt = np.zeros_like(MASK)
    spoilt[10:13, 12:18, 10:16] = True
    phase[2][spoilt] += 2.0
    fit = fitted(name, phase, magnitude, seed, UNEVEN_S)
    assert fit.residual[spoilt].min() > 5 * np.median(sound[MASK])
    assert np.array_equal(fit.residual[MASK & ~spoilt], sound[MASK & ~spoilt])


def test_iterations_are_used_and_none_is_the_linear_fit() -> None:
    phase, magnitude, seed, _ = inputs(UNEVEN_S, noise=0.15)
    none = fitted("nonlinear_fit", phase, magnitude, seed, UNEVEN_S, iterations=0)
    one, many, more = (fitted("nonlinear_fit", phase, magnitude, seed, UNEVEN_S, iterations=n) for n in (1, 12, 14))
    assert np.array_equal(none.field_ppm, fitted("linear_fit", phase, magnitude, seed, UNEVEN_S).field_ppm)
    settled = np.abs(more.field_ppm - many.field_ppm)[MASK]
    assert np.mean(settled < 1e-5) > 0.99  # converged but where noise has no minimum nearby
    assert np.abs(one.field_ppm - many.field_ppm).mean() < np.abs(none.field_ppm - many.field_ppm).mean()


@pytest.mark.parametrize("name", echoes.METHODS)
def test_the_scale_of_the_magnitude_does_not_matter_but_to_the_precision(name: str) -> None:
    phase, magnitude, seed, _ = inputs(UNEVEN_S)
    one = fitted(name, phase, magnitude, seed, UNEVEN_S)
    other = fitted(name, phase, 1024 * magnitude, seed, UNEVEN_S)
    assert np.array_equal(other.field_ppm, one.field_ppm)
    laws.assert_close(other.precision, 1024 * one.precision, 1e-6)


@pytest.mark.parametrize("name", echoes.METHODS)
def test_voxels_without_signal_and_bright_ones_outside_leave_the_others_alone(name: str) -> None:
    phase, magnitude, seed, _ = inputs(UNEVEN_S)
    expected = fitted(name, phase, magnitude, seed, UNEVEN_S)
    hole = np.zeros_like(MASK)
    hole[10:12, 14:16, 12:14] = True
    magnitude[:, hole] = 0
    magnitude[:, ~MASK] *= 1e5  # a spike, or fat next to the coil
    fit = fitted(name, phase, magnitude, seed, UNEVEN_S)
    assert all(np.isfinite(part).all() for part in laws.parts(fit))
    assert fit.precision[hole].max() < 1e-3 * np.median(fit.precision[MASK])
    rest = MASK & ~hole
    assert np.abs(fit.field_ppm - expected.field_ppm)[rest].max() < 1e-5


def test_decay_rates_come_back_within_their_range(xp: Flavour) -> None:
    draw = np.random.default_rng(2)
    rate = draw.uniform(2, 120, GEOMETRY.shape)
    rate[12, 14, 13], rate[12, 15, 13] = 900, -30
    te = np.array(UNEVEN_S).reshape(-1, 1, 1, 1)
    magnitude = xp.asarray((700 * np.exp(-te * rate)).astype(np.float32))
    got = xp.to_numpy(echoes.r2star(magnitude, xp.asarray(MASK), UNEVEN_S))
    assert got.dtype == np.float32
    assert np.abs(got - np.clip(rate, 0, 500))[MASK].max() < 0.05
    assert not got[~MASK].any()
    assert echoes.r2star(magnitude[:1, ...], xp.asarray(MASK), UNEVEN_S[:1]) is None


def test_decay_rates_are_unbiased_in_moderate_noise_and_finite_without_signal() -> None:
    magnitude = phantoms.echoes(0 * field_ppm(), UNEVEN_S, B0_TESLA, r2star_per_s=30.0, noise=0.02, seed=3)[1]
    got = echoes.r2star(magnitude, MASK, UNEVEN_S)
    assert got[MASK].mean() == pytest.approx(30.0, rel=0.02)
    dark = echoes.r2star(0 * magnitude, MASK, UNEVEN_S)
    assert np.isfinite(dark).all()
