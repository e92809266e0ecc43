"""What Python hands over: masked phases are NaN outside, units get mixed up, and arrays come in every type."""

from __future__ import annotations

import dataclasses

import array_api_strict
import numpy as np
import pytest

from qsm_edge import checks, reference
from qsm_edge.errors import InternalError, QsmEdgeError
from qsm_edge.pipeline import reconstruct
from qsm_edge.types import Geometry, GreSeries
from tests.test_pipeline import SHAPE, TIMES, head


def small(**changes) -> GreSeries:
    """A series of 2 echoes on a small oblique grid, with `changes`."""
    random = np.random.default_rng(2)
    shape = (2, 5, 7, 6)
    fields = dict(
        magnitude=random.uniform(1, 2, shape).astype(np.float32),
        phase_rad=random.uniform(-3, 3, shape).astype(np.float32),
        echo_times_s=(0.004, 0.011),
        b0_tesla=3.0,
        geometry=Geometry.from_axes(shape[1:], (2.0, 1.0, 1.5), (0.9, 0.3, -0.31)),
    )
    return GreSeries(**(fields | changes))


@pytest.mark.parametrize("part", ["phase_rad", "magnitude"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_outside_the_mask_moves_no_voxel(part, value):
    series, mask, _, _ = head()
    plain = reconstruct(series, "fast", mask=mask, device="cpu")
    masked = getattr(series, part).copy()
    masked[:, ~mask] = value
    masked.setflags(write=False)
    other = reconstruct(dataclasses.replace(series, **{part: masked}), "fast", mask=mask, device="cpu")
    assert np.array_equal(other.chi_ppm, plain.chi_ppm)
    assert np.isfinite(other.series.phase_rad).all()
    assert np.isfinite(other.series.magnitude).all()
    assert all(np.isfinite(figure.value) for figure in other.quality.figures.values())


def test_what_is_not_finite_inside_the_mask_has_no_weight():
    series, mask, _, _ = head()
    hole = (slice(17, 20), slice(20, 23), slice(18, 21))
    phase = series.phase_rad.copy()
    phase[(slice(None), *hole)] = np.nan
    result = reconstruct(dataclasses.replace(series, phase_rad=phase), mask=mask, device="cpu")
    assert np.isfinite(result.chi_ppm).all()
    assert result.weight[hole].max() < 1e-3 < np.median(result.weight[mask])
    assert result.brain[hole].all()


def test_one_echo_that_is_not_finite_leaves_the_others_their_say():
    series = small()
    phase = series.phase_rad.copy()
    phase[1, 2, 3, 4] = np.nan
    sound = checks.checked_series(dataclasses.replace(series, phase_rad=phase))
    assert sound.magnitude[1, 2, 3, 4] == sound.phase_rad[1, 2, 3, 4] == 0
    assert sound.magnitude[0, 2, 3, 4] == series.magnitude[0, 2, 3, 4] > 0


def test_a_sound_series_is_not_copied_and_types_and_namespaces_do_not_matter():
    series = small()
    sound = checks.checked_series(series)
    assert sound.magnitude is series.magnitude
    assert sound.phase_rad is series.phase_rad
    strict = array_api_strict.Device("device1")
    for magnitude, phase in (
        (series.magnitude.astype(np.float64), series.phase_rad.astype(np.float64)),
        (np.asfortranarray(series.magnitude), np.asfortranarray(series.phase_rad)),
        tuple(array_api_strict.asarray(a, device=strict) for a in (series.magnitude, series.phase_rad)),
    ):
        other = checks.checked_series(dataclasses.replace(series, magnitude=magnitude, phase_rad=phase))
        for name in ("magnitude", "phase_rad"):
            array = getattr(other, name)
            assert type(array) is np.ndarray
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            assert np.array_equal(array, getattr(series, name))
    whole = checks.checked_series(dataclasses.replace(series, magnitude=np.full((2, 5, 7, 6), 9, np.int16)))
    assert whole.magnitude.dtype == np.float32


SKEWED = np.eye(4) + 0.2 * np.eye(4, k=1)
REFUSED = {
    "times in ms": (dict(echo_times_s=(4.0, 11.0)), "bad_echo_time"),
    "times falling": (dict(echo_times_s=(0.011, 0.004)), "bad_echo_time"),
    "times equal": (dict(echo_times_s=(0.004, 0.004)), "bad_echo_time"),
    "time zero": (dict(echo_times_s=(0.0, 0.004)), "bad_echo_time"),
    "time nan": (dict(echo_times_s=(0.004, np.nan)), "bad_echo_time"),
    "time of text": (dict(echo_times_s=("4 ms", "11 ms")), "bad_echo_time"),
    "no times": (dict(echo_times_s=()), "bad_echo_time"),
    "times a number": (dict(echo_times_s=0.004), "bad_call"),
    "too few times": (dict(echo_times_s=(0.004,)), "bad_call"),
    "field zero": (dict(b0_tesla=0.0), "bad_field_strength"),
    "field negative": (dict(b0_tesla=-3.0), "bad_field_strength"),
    "field nan": (dict(b0_tesla=np.nan), "bad_field_strength"),
    "field in MHz": (dict(b0_tesla=123.2), "bad_field_strength"),
    "no field": (dict(b0_tesla=None), "bad_field_strength"),
    "another grid": (dict(geometry=Geometry.from_axes((5, 7, 7))), "bad_call"),
    "metres": (dict(geometry=Geometry.from_axes((5, 7, 6), (1e-3, 1e-3, 1e-3))), "bad_geometry"),
    "flat": (dict(geometry=Geometry((5, 7, 6), np.diag([1.0, 1.0, 0.0, 1.0]))), "bad_geometry"),
    "affine nan": (dict(geometry=Geometry((5, 7, 6), np.full((4, 4), np.nan))), "bad_geometry"),
    "affine 3 x 3": (dict(geometry=Geometry((5, 7, 6), np.eye(3))), "bad_geometry"),
    "skewed": (dict(geometry=Geometry((5, 7, 6), SKEWED)), "bad_geometry"),
    "no B0": (dict(geometry=Geometry((5, 7, 6), np.eye(4), (0.0, 0.0, 0.0))), "bad_geometry"),
    "a list": (dict(phase_rad=[[0.0]]), "bad_call"),
    "one volume": (dict(phase_rad=np.zeros((5, 7, 6), np.float32)), "bad_call"),
    "complex phase": (dict(phase_rad=np.ones((2, 5, 7, 6), np.complex64)), "bad_call"),
    "phase in 12 bits": (dict(phase_rad=np.full((2, 5, 7, 6), 4095, np.uint16)), "bad_call"),
    "phase in milliradians": (dict(phase_rad=np.full((2, 5, 7, 6), 3141.0)), "unknown_phase_scale"),
    "negative magnitude": (dict(magnitude=np.full((2, 5, 7, 6), -1.0)), "unknown_component"),
    "no signal": (dict(magnitude=np.zeros((2, 5, 7, 6))), "no_magnitude"),
    "nothing finite": (dict(phase_rad=np.full((2, 5, 7, 6), np.nan)), "no_magnitude"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_with_its_code(name):
    changes, code = REFUSED[name]
    with pytest.raises(QsmEdgeError) as caught:
        reconstruct(small(**changes), mask=np.ones((5, 7, 6), bool), device="cpu")
    assert caught.value.code == code
    assert caught.value.exit_status in (2, 3)


def test_a_single_slice_is_too_small():
    changes = dict(
        magnitude=np.ones((2, 1, 7, 6)), phase_rad=np.ones((2, 1, 7, 6)), geometry=Geometry.from_axes((1, 7, 6))
    )
    with pytest.raises(QsmEdgeError) as caught:
        checks.checked_series(small(**changes))
    assert caught.value.code == "too_small"


def test_a_mask_of_numbers_is_cut_at_one_half_and_nan_is_outside():
    geometry = Geometry.from_axes((5, 7, 6))
    soft = np.full(geometry.shape, np.nan, np.float32)
    soft[1:4] = 0.4
    soft[2] = 0.6
    wanted = np.zeros(geometry.shape, bool)
    wanted[2] = True
    assert np.array_equal(checks.checked_mask(soft, geometry), wanted)
    assert np.array_equal(checks.checked_mask(wanted.astype(np.uint8), geometry), wanted)
    assert checks.checked_mask(wanted, geometry) is wanted
    strict = array_api_strict.asarray(wanted, device=array_api_strict.Device("device1"))
    assert np.array_equal(checks.checked_mask(strict, geometry), wanted)


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        (np.zeros((5, 7, 6)), "mask_empty"),
        (np.full((5, 7, 6), np.nan), "mask_empty"),
        (np.ones((5, 7, 7)), "mask_grid"),
        ([[True]], "bad_call"),
        (None, "bad_call"),
        (np.full((5, 7, 6), "brain"), "bad_call"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, code):
    with pytest.raises(QsmEdgeError) as caught:
        reconstruct(small(), mask=mask, device="cpu")
    assert caught.value.code == code


def test_a_map_that_is_not_finite_is_never_given_out(monkeypatch):
    series, mask, _, _ = head(times=TIMES[:2])
    assert series.geometry.shape == SHAPE
    broken = lambda chi, inner, geometry, r2star: chi * np.float32(np.nan)  # noqa: E731
    monkeypatch.setitem(reference.METHODS, "mean", broken)
    with pytest.raises(InternalError) as caught:
        reconstruct(series, "fast", mask=mask, device="cpu")
    assert caught.value.code == "internal"
    assert "voxels" in caught.value.got
