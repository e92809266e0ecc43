"""Layer 1: Fourier transforms of real volumes. DC at index 0, half spectrum along x, float32 in and out.

The grids are padded to sizes whose factors are 2, 3, 5 and 7 at most, for which both pocketfft and cuFFT are fast.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.fft

from qsm_edge.backend import is_numpy, like, namespace, scipy_fft_for, threads
from qsm_edge.types import Array

Triple = tuple[int, int, int]


def rfftn(x: Array, shape: Triple | None = None) -> Array:
    """Half spectrum of a real (z, y, x) volume, zero-padded at the far ends to `shape`."""
    module = scipy_fft_for(x)
    if module is None:
        return namespace(x).fft.rfftn(_padded(x, shape), axes=(0, 1, 2))
    options: dict[str, Any] = {"workers": threads()} if is_numpy(x) else {}
    return module.rfftn(x, s=shape, axes=(0, 1, 2), **options)


def irfftn(spectrum: Array, shape: Triple) -> Array:
    """Real volume of `shape` from its half spectrum, whose contents are given up (they may be overwritten)."""
    module = scipy_fft_for(spectrum)
    if module is None:
        return namespace(spectrum).fft.irfftn(spectrum, s=shape, axes=(0, 1, 2))
    options: dict[str, Any] = {"workers": threads()} if is_numpy(spectrum) else {}
    return module.irfftn(spectrum, s=shape, axes=(0, 1, 2), overwrite_x=True, **options)


def rfftn_near(x: Array, shape: Triple) -> Array:
    """`rfftn(x, shape)`, an axis at a time, so that lines of padding alone are not transformed."""
    module, options = _lines(x)
    out = module.rfft(x, n=shape[2], axis=2, **options)
    out = module.fft(out, n=shape[1], axis=1, **options)
    return module.fft(out, n=shape[0], axis=0, **options)


def irfftn_near(spectrum: Array, shape: Triple, small: Triple) -> Array:
    """The near corner of `small` of `irfftn(spectrum, shape)`, without the lines that would be cropped away."""
    module, options = _lines(spectrum)
    out = module.ifft(spectrum, axis=0, **options)[: small[0], :, :]
    out = module.ifft(out, axis=1, **options)[:, : small[1], :]
    return module.irfft(out, n=shape[2], axis=2, **options)[:, :, : small[2]]


def _lines(x: Array) -> tuple[Any, dict[str, Any]]:
    """Transforms along one axis for the array at hand, and their options."""
    module = scipy_fft_for(x)
    if module is None:
        return namespace(x).fft, {}
    return module, {"workers": threads()} if is_numpy(x) else {}


def _padded(x: Array, shape: Triple | None) -> Array:
    if shape is None or tuple(x.shape) == tuple(shape):
        return x
    xp = namespace(x)
    out = xp.zeros(shape, dtype=x.dtype, device=x.device)
    out[tuple(slice(n) for n in x.shape)] = x
    return out


def pad(x: Array, shape: Triple) -> Array:
    """`x` in the near corner of a zero volume of `shape`."""
    return _padded(x, shape)


def crop(x: Array, shape: Triple) -> Array:
    """The near corner of `x`, the inverse of `pad`."""
    return x[tuple(slice(n) for n in shape)]


def fast_length(n: int) -> int:
    """Smallest even length >= n whose prime factors are 2, 3, 5 and 7."""
    n = max(int(n), 2)
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and n % 2 == 0:
            return n
        n += 1


def fast_shape(shape: tuple[int, ...], margin: tuple[int, ...] | int = 0) -> Triple:
    """Fast FFT lengths that hold `shape` and `margin` voxels more on each axis (zeros against wrap-around)."""
    margins = (margin,) * 3 if isinstance(margin, int) else margin
    z, y, x = (fast_length(n + m) for n, m in zip(shape, margins, strict=True))
    return z, y, x


def covering(length_mm: float, voxel_mm: tuple[float, ...]) -> tuple[int, ...]:
    """How many voxels cover a length along each axis; the last digits of a grid's numbers do not decide it."""
    return tuple(math.ceil(length_mm / v * (1 - 1e-6)) for v in voxel_mm)


def wavenumbers(shape: Triple, voxel_mm: tuple[float, float, float], reference: Array) -> tuple[Array, Array, Array]:
    """Spatial frequencies [cycles/mm] of the half spectrum along z, y, x, shaped to broadcast, where `reference` lives."""
    xp = namespace(reference)
    # On the host, then moved: not every namespace's fftfreq takes a device.
    lines = [scipy.fft.fftfreq(shape[0], voxel_mm[0]), scipy.fft.fftfreq(shape[1], voxel_mm[1])]
    lines.append(scipy.fft.rfftfreq(shape[2], voxel_mm[2]))
    kz, ky, kx = (like(line.astype(np.float32), reference) for line in lines)
    return xp.reshape(kz, (-1, 1, 1)), xp.reshape(ky, (1, -1, 1)), xp.reshape(kx, (1, 1, -1))
