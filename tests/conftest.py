"""Fixtures that every test module may use: the shared data folder, and arrays of every flavour."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout: real scans and benchmark cases that are not in the repository."""
    if not SHARED.is_dir():
        pytest.skip("no folder 'shared' beside the checkout: the real scans and benchmark cases are not here")
    return SHARED


@dataclass(frozen=True)
class Flavour:
    """One kind of array: `asarray` makes it from a NumPy array, `to_numpy` brings it back for an assertion."""

    name: str
    asarray: Callable[[Any], Any]
    to_numpy: Callable[[Any], np.ndarray]


def _numpy() -> Flavour:
    return Flavour("numpy", np.array, np.asarray)


def _numpy_read_only() -> Flavour:
    """Inputs belong to the caller: an algorithm that writes into them fails here."""

    def asarray(array: Any) -> np.ndarray:
        frozen = np.array(array)
        frozen.setflags(write=False)
        return frozen

    return Flavour("numpy-read-only", asarray, np.asarray)


def _strict(device_name: str) -> Flavour:
    """The standard and nothing but it; on the second device a host array that slips in fails as on an accelerator."""
    import array_api_strict as strict

    device, host = strict.Device(device_name), strict.Device("CPU_DEVICE")

    def to_numpy(array: Any) -> np.ndarray:
        assert isinstance(array, strict._array_object.Array), f"expected an array_api_strict array, got {type(array)}"
        assert array.device == device, f"the array has left its device: {array.device}"
        return np.array(np.from_dlpack(array.to_device(host)))

    return Flavour(f"strict-{device_name}", lambda array: strict.asarray(np.asarray(array), device=device), to_numpy)


def _cupy() -> Flavour:
    import cupy

    return Flavour("cupy", cupy.asarray, cupy.asnumpy)


def _gpu_is_there() -> bool:
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    try:
        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


FLAVOURS = {
    "numpy": _numpy,
    "numpy-read-only": _numpy_read_only,
    "strict": lambda: _strict("CPU_DEVICE"),
    "strict-device1": lambda: _strict("device1"),
}
if _gpu_is_there():
    FLAVOURS["cupy"] = _cupy


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.gpu if n == "cupy" else ()) for n in FLAVOURS])
def xp(request: pytest.FixtureRequest) -> Flavour:
    """Arrays of one flavour after the other: NumPy, read-only, strict, strict on its second device, CuPy if any."""
    return FLAVOURS[request.param]()
