"""One crossing between host and device, and a device that is only what it says it is."""

from __future__ import annotations

import numpy as np
import pytest

from qsm_edge import backend
from qsm_edge.errors import ResourceError, UsageError
from tests.conftest import FLAVOURS, Flavour

VOLUME = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.int32, np.complex64])
def test_host_and_back_changes_neither_values_nor_type_nor_place(xp: Flavour, dtype: type) -> None:
    original = (VOLUME > 0).astype(dtype)
    there = xp.asarray(original)
    host = backend.to_host(there)
    assert type(host) is np.ndarray
    assert host.dtype == dtype
    assert np.array_equal(host, original)
    assert np.array_equal(xp.to_numpy(backend.like(host, there)), original)


def test_on_host_crosses_once_each_way_for_one_array_and_for_several(xp: Flavour) -> None:
    seen: list[type] = []

    @backend.on_host
    def ranked(volume: np.ndarray, name: str, *, mask: np.ndarray | None = None) -> tuple[np.ndarray, str, np.ndarray]:
        seen.extend([type(volume), type(mask)])
        assert mask is not None
        return np.sort(volume, axis=0), name, mask

    @backend.on_host
    def negative(volume: np.ndarray) -> np.ndarray:
        return -volume

    mask = xp.asarray(VOLUME > 0)
    first, name, second = ranked(xp.asarray(VOLUME), "as it is", mask=mask)
    assert seen == [np.ndarray, np.ndarray]
    assert name == "as it is"
    assert np.array_equal(xp.to_numpy(first), np.sort(VOLUME, axis=0))
    assert np.array_equal(xp.to_numpy(second), VOLUME > 0)
    assert np.array_equal(xp.to_numpy(negative(xp.asarray(VOLUME))), -VOLUME)


def test_arrays_of_two_kinds_do_not_mix() -> None:
    with pytest.raises(TypeError):
        backend.namespace(VOLUME, FLAVOURS["strict"]().asarray(VOLUME))


def test_only_numpy_is_numpy_and_only_numpy_uses_scipys_transforms_on_the_processor() -> None:
    strict = FLAVOURS["strict-device1"]().asarray(VOLUME)
    assert backend.is_numpy(VOLUME)
    assert not backend.is_numpy(strict)
    assert backend.scipy_fft_for(VOLUME).__name__ == "scipy.fft"  # type: ignore[union-attr]
    assert backend.scipy_fft_for(strict) is None


def test_the_processor_is_taken_when_asked_for_and_when_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.resolve_device("cpu") == "cpu"
    assert backend.to_device(VOLUME, "cpu") is VOLUME
    monkeypatch.setattr(backend, "cupy_module", lambda: None)
    assert backend.resolve_device("auto") == "cpu"
    assert len(backend.devices()) == 1
    with pytest.raises(ResourceError) as refused:
        backend.resolve_device("cuda")
    assert refused.value.code == "no_device"
    with pytest.raises(ResourceError) as refused:
        backend.to_device(VOLUME, "cuda")
    assert refused.value.code == "no_device"


def test_an_accelerator_is_preferred_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cupy_module", object)
    assert backend.resolve_device("auto") == "cuda"
    assert backend.resolve_device("cuda") == "cuda"
    assert backend.resolve_device("cpu") == "cpu"


def test_an_unknown_device_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(UsageError) as refused:
        backend.resolve_device("gpu")
    assert refused.value.code == "unknown_name"
    assert all(name in refused.value.wanted for name in ("auto", "cpu", "cuda"))


def test_memory_figures_are_of_this_process_and_machine() -> None:
    room, before = backend.available_bytes("cpu"), backend.peak_bytes("cpu")
    assert room > 2**24
    ballast = np.ones(before // 8 + 2**23)  # larger than anything this process has held
    assert backend.peak_bytes("cpu") >= before
    assert backend.peak_bytes("cpu") >= 0.9 * ballast.nbytes
    assert backend.threads() >= 1


@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
def test_the_middle_of_a_line_is_that_of_the_sorted_line(xp: Flavour, count: int) -> None:
    values = VOLUME.ravel()[:count]
    expected = float(np.sort(values)[count // 2]) if count else 0.0
    assert backend.median(xp.asarray(values)) == expected
