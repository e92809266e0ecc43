"""Layer 4: arrays that come from a caller are looked at before anything is computed from them.

The DICOM reader refuses the same things with the same codes; here they are looked for in what Python hands over.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from qsm_edge import backend
from qsm_edge.errors import InputRefused, InternalError, UsageError
from qsm_edge.types import Array, Geometry, GreSeries

#: Echo times of gradient echoes, as the reader has them; milliseconds given for seconds lie beyond.
ECHO_TIME_S = (5e-5, 0.5)
#: From portable magnets to those for animals; a frequency in MHz lies beyond.
FIELD_TESLA = (0.05, 20.0)
#: From mouse brains to the coarsest localizer; metres given for millimetres lie below.
VOXEL_MM = (0.01, 50.0)
#: An unwrapped phase may run through a hundred turns; 12 bits or milliradians taken for radians lie beyond.
LARGEST_RAD = 1000.0
#: Fewer voxels than this along an axis hold no field to unwrap, and no dipole.
SMALLEST_SIDE = 4
#: Cosine of the angle between two axes, which B0's direction and the voxel size take as perpendicular.
SKEW = 0.01


def checked_series(series: GreSeries) -> GreSeries:
    """The series with finite float32 arrays on the host, the caller's own where nothing had to be changed.

    Where magnitude or phase is not finite (a masked phase is often NaN outside its mask), both are 0 in what comes back,
    so that the voxel has no weight.

    Raises
    ------
    UsageError
        bad_call: no arrays, or of a shape or type that does not fit.
    InputRefused
        bad_echo_time (not ascending, or not in seconds), bad_field_strength, bad_geometry, too_small,
        unknown_component (negative magnitude), unknown_phase_scale (no radians), no_magnitude (no signal at all).
    """
    times = _checked_times(series.echo_times_s)
    b0_tesla = _number(series.b0_tesla)
    if not FIELD_TESLA[0] <= b0_tesla <= FIELD_TESLA[1]:
        low, high = FIELD_TESLA
        raise InputRefused("bad_field_strength", got=series.b0_tesla, wanted=f"{low:g} to {high:g} T")
    _check_geometry(series.geometry)
    wanted = (len(times), *series.geometry.shape)
    magnitude = _host(series.magnitude, "magnitude", "fiu", wanted)
    phase = _host(series.phase_rad, "phase_rad", "f", wanted)
    magnitude, phase = _finite(magnitude, phase)
    return dataclasses.replace(series, magnitude=magnitude, phase_rad=phase, echo_times_s=times, b0_tesla=b0_tesla)


def checked_mask(mask: Array, geometry: Geometry) -> np.ndarray:
    """A caller's mask as bool (z, y, x) on the host: of numbers, those above 0.5 are inside, and NaN is outside.

    Raises UsageError bad_call (no array of numbers), InputRefused mask_grid, mask_empty.
    """
    if not backend.is_array(mask):
        raise UsageError("bad_call", "the mask is no array", got=type(mask).__name__, wanted="bool (z, y, x)")
    values = backend.to_host(mask)
    if values.dtype.kind not in "bfiu":
        raise UsageError("bad_call", "the mask holds no numbers", got=values.dtype, wanted="bool (z, y, x)")
    if values.shape != geometry.shape:
        raise InputRefused("mask_grid", got=values.shape, wanted=geometry.shape)
    inside = np.ascontiguousarray(values if values.dtype.kind == "b" else values > 0.5)
    if not inside.any():
        raise InputRefused("mask_empty", "the mask holds no voxel", got="0 voxels", wanted="a brain")
    return inside


def require_finite(chi_ppm: np.ndarray, mask: np.ndarray) -> None:
    """The last look at a map: one with NaN or infinity in it is never given out. Raises InternalError."""
    broken = int((~np.isfinite(chi_ppm[mask])).sum())
    if broken:
        got = f"{broken} of {int(mask.sum())} voxels"
        raise InternalError("internal", "the susceptibility map is not finite", got=got, wanted="numbers")


def _number(value: Any) -> float:
    """`value` as a float, NaN for what is no number: it then fits no range."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _checked_times(echo_times_s: Any) -> tuple[float, ...]:
    try:
        times = tuple(_number(t) for t in echo_times_s)
    except TypeError:
        raise UsageError("bad_call", "the echo times are no sequence", got=type(echo_times_s).__name__) from None
    low, high = ECHO_TIME_S
    if not times or not all(low <= t <= high for t in times):
        raise InputRefused("bad_echo_time", got=times, wanted=f"seconds, {low:g} to {high:g}")
    if any(b <= a for a, b in itertools.pairwise(times)):
        raise InputRefused("bad_echo_time", "the echo times do not ascend", got=times)
    return times


def _check_geometry(geometry: Geometry) -> None:
    affine, b0 = geometry.affine_lps, np.asarray(geometry.b0_dir_lps, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise InputRefused("bad_geometry", "the affine is no finite 4 x 4 matrix", got=affine.shape)
    if b0.shape != (3,) or not np.isfinite(b0).all() or not b0.any():
        raise InputRefused("bad_geometry", "the direction of B0 is none", got=geometry.b0_dir_lps)
    low, high = VOXEL_MM
    if not all(low <= v <= high for v in geometry.voxel_mm):
        raise InputRefused("bad_geometry", "the voxel size", got=geometry.voxel_mm, wanted=f"{low:g} to {high:g} mm")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    skew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if skew > SKEW:
        raise InputRefused("bad_geometry", "the axes are not perpendicular", got=f"cosine {skew:.3g}", wanted="0")
    if len(geometry.shape) != 3 or min(geometry.shape) < SMALLEST_SIDE:
        raise InputRefused("too_small", got=geometry.shape, wanted=f"{SMALLEST_SIDE} voxels or more along each axis")


def _host(array: Array, name: str, kinds: str, wanted: tuple[int, ...]) -> np.ndarray:
    """An array of the caller's on the host, C order, float32."""
    if not backend.is_array(array):
        raise UsageError("bad_call", f"{name} is no array", got=type(array).__name__, wanted="(echo, z, y, x)")
    if tuple(array.shape) != wanted:
        what = f"{name} does not fit the echo times and the geometry"
        raise UsageError("bad_call", what, got=tuple(array.shape), wanted=f"{wanted} (echo, z, y, x)")
    host = backend.to_host(array)
    if host.dtype.kind not in kinds:
        raise UsageError("bad_call", f"the values of {name}", got=host.dtype, wanted="float32")
    with np.errstate(over="ignore"):  # what overflows is infinite, and treated like that
        return np.ascontiguousarray(host, dtype=np.float32)


def _finite(magnitude: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with 0 where one is not finite; one echo after the other, because a train may fill half the memory."""
    copied = False
    signal = 0.0
    for e in range(magnitude.shape[0]):
        sound = np.isfinite(magnitude[e]) & np.isfinite(phase[e])
        if not sound.all():
            if not copied:
                magnitude, phase, copied = magnitude.copy(), phase.copy(), True
            magnitude[e][~sound] = 0
            phase[e][~sound] = 0
        if float(magnitude[e].min()) < 0:
            raise InputRefused("unknown_component", "the magnitude holds negative values", got=f"echo {e + 1}")
        largest = max(float(phase[e].max()), -float(phase[e].min()))
        if largest > LARGEST_RAD:
            raise InputRefused("unknown_phase_scale", got=f"phases up to {largest:.4g}", wanted="radians")
        signal = max(signal, float(magnitude[e].max()))
    if signal == 0:
        raise InputRefused("no_magnitude", "the magnitude holds no signal", got="nothing above 0")
    return magnitude, phase
