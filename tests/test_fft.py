"""Real transforms against NumPy's complex ones in float64, on lengths odd and even."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft

from qsm_edge import backend, fft
from qsm_edge.errors import UsageError
from tests.conftest import Flavour
from tests.laws import assert_close

SHAPES = [(7, 6, 5), (6, 5, 8), (4, 9, 7), (1, 2, 3)]


def _volume(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_of_the_complex_transform(xp: Flavour, shape: tuple[int, int, int]) -> None:
    volume = _volume(shape)
    there = xp.asarray(volume)
    expected = np.fft.fftn(volume.astype(np.float64))[..., : shape[2] // 2 + 1].astype(np.complex64)
    assert_close(xp.to_numpy(fft.rfftn(there)), expected, 1e-6)
    assert np.array_equal(xp.to_numpy(there), volume)


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_in_single_precision(xp: Flavour, shape: tuple[int, int, int]) -> None:
    volume = _volume(shape)
    assert_close(xp.to_numpy(fft.irfftn(fft.rfftn(xp.asarray(volume)), shape)), volume, 1e-6)


def test_padding_within_the_transform_is_padding_before_it(xp: Flavour) -> None:
    volume, shape = _volume((5, 6, 7)), (8, 6, 10)
    padded = np.zeros(shape, np.float32)
    padded[:5, :6, :7] = volume
    there = xp.asarray(volume)
    assert np.array_equal(xp.to_numpy(fft.pad(there, shape)), padded)
    assert np.array_equal(xp.to_numpy(fft.crop(fft.pad(there, shape), volume.shape)), volume)
    expected = np.fft.rfftn(padded.astype(np.float64)).astype(np.complex64)
    assert_close(xp.to_numpy(fft.rfftn(there, shape)), expected, 1e-6)


@pytest.mark.parametrize("small", [(3, 4, 5), (6, 8, 10), (1, 8, 2)])
def test_leaving_out_the_lines_of_padding_changes_nothing(xp: Flavour, small: tuple[int, int, int]) -> None:
    shape = (6, 8, 10)
    volume = _volume(small)
    there = xp.asarray(volume)
    expected = xp.to_numpy(fft.rfftn(there, shape))
    assert_close(xp.to_numpy(fft.rfftn_near(there, shape)), expected, 1e-6)
    spectrum = xp.to_numpy(fft.rfftn(xp.asarray(_volume(shape))))
    near = xp.to_numpy(fft.irfftn_near(xp.asarray(spectrum), shape, small))
    assert_close(near, _volume(shape)[tuple(slice(n) for n in small)], 1e-6)
    assert np.array_equal(xp.to_numpy(there), volume)


def test_padding_keeps_booleans() -> None:
    assert fft.pad(np.ones((2, 2, 2), bool), (3, 2, 4)).dtype == bool


def test_fast_lengths_are_the_next_even_ones_of_small_factors() -> None:
    good = {2**a * 3**b * 5**c * 7**d for a in range(1, 10) for b in range(6) for c in range(4) for d in range(4)}
    for n in range(1, 400):
        assert fft.fast_length(n) == min(g for g in good if g >= n)


def test_fast_shapes_have_room_for_the_margin_of_each_axis() -> None:
    assert fft.fast_shape((11, 13, 17), 0) == (12, 14, 18)
    assert fft.fast_shape((11, 13, 17), (1, 3, 10)) == (12, 16, 28)
    assert fft.fast_shape((11, 13, 17), 3) == (14, 16, 20)


def test_wavenumbers_are_cycles_per_millimetre_from_zero(xp: Flavour) -> None:
    shape, voxel = (5, 6, 8), (2.0, 1.5, 0.5)
    kz, ky, kx = (xp.to_numpy(k) for k in fft.wavenumbers(shape, voxel, xp.asarray(np.zeros(1, np.float32))))
    assert kz.shape == (5, 1, 1)
    assert ky.shape == (1, 6, 1)
    assert kx.shape == (1, 1, 5)
    assert_close(kz.ravel(), np.fft.fftfreq(5, 2.0).astype(np.float32), 1e-6)
    assert_close(ky.ravel(), np.fft.fftfreq(6, 1.5).astype(np.float32), 1e-6)
    assert_close(kx.ravel(), np.fft.rfftfreq(8, 0.5).astype(np.float32), 1e-6)


@pytest.mark.parametrize("engine", backend.FFT_ENGINES)
def test_every_engine_gives_the_same_transforms(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """The optional libraries are run where they are installed; what is chosen and missing is refused, not replaced."""
    volume, shape = _volume((7, 6, 5)), (8, 6, 10)
    expected = fft.rfftn(volume, shape)
    monkeypatch.setenv(backend.FFT_VARIABLE, engine)
    try:
        backend.fft_module(engine)
    except UsageError:
        with pytest.raises(UsageError, match="not installed") as caught:
            fft.rfftn(volume, shape)
        assert caught.value.code == "unknown_name"
        return
    spectrum = fft.rfftn(volume, shape)
    assert spectrum.dtype == np.complex64
    assert_close(spectrum, expected, 1e-6)
    assert_close(fft.crop(fft.irfftn(spectrum, shape), volume.shape), volume, 1e-6)


def test_an_engine_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.FFT_VARIABLE, "fastest")
    with pytest.raises(UsageError) as caught:
        fft.rfftn(_volume((4, 5, 6)))
    assert caught.value.code == "unknown_name"


def test_the_chosen_engine_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    class Engine:
        @staticmethod
        def rfftn(x, s, axes, workers):
            called.append((s, axes, workers))
            return scipy.fft.rfftn(x, s=s, axes=axes)

    monkeypatch.setattr(backend, "fft_module", {"scipy": scipy.fft, "mkl": Engine}.__getitem__)
    monkeypatch.setenv(backend.FFT_VARIABLE, "mkl")
    fft.rfftn(_volume((4, 5, 6)), (6, 6, 8))
    assert called == [((6, 6, 8), (0, 1, 2), backend.threads())]


@pytest.mark.parametrize("last_digits", [-1e-9, 0.0, 1e-9])
def test_the_last_digits_of_a_voxel_size_do_not_decide_how_many_it_takes(last_digits: float) -> None:
    voxel = tuple(size * (1 + last_digits) for size in (3.2, 3.3, 0.8))
    assert fft.covering(48.0, voxel) == (15, 15, 60)
