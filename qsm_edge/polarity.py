"""Layer 3: bipolar read-outs, whose odd and even echoes differ by a phase ramp (part of the stage `echoes`)."""

from __future__ import annotations

import itertools
import math

from qsm_edge.backend import namespace
from qsm_edge.types import Array, Geometry, Note

#: Ramp (root mean square over the mask, rad) below which the read-out is taken as monopolar.
SMALLEST_RAD = 0.05
#: Echoes are evenly spaced when their gaps agree to this share.
EVEN = 0.02


def align_polarity(
    phase_rad: Array, magnitude: Array, mask: Array, echo_times_s: tuple[float, ...], geometry: Geometry
) -> tuple[Array, list[Note]]:
    """Find and remove the phase offset between odd and even echoes; gives back the phases and a note if there was one.

    In a bipolar train every second echo is read backwards, and gradient delays and eddy currents leave a constant and a
    linear ramp between the two kinds. The first three echoes show it, because the field, the coil's offset and all that
    grows evenly cancel in phase_1 - 2 phase_2 + phase_3, which is minus twice the ramp. Constant and ramp are fitted to
    that in the complex plane, weighted by the signal, and taken off the second, fourth, ... echo. The half turn that
    stays undecided adds a constant frequency, which no map shows. Needs three echoes or more, all evenly spaced; other
    trains are returned as they are, because where the spacing breaks the alternation may, too.

    Source: Li et al., MRM 2015, doi:10.1002/mrm.25345. NOT checked: ramps steeper than half a turn a voxel.
    """
    del geometry
    if len(echo_times_s) < 3:
        return phase_rad, []
    gaps = [after - before for before, after in itertools.pairwise(echo_times_s)]
    if max(gaps) - min(gaps) > EVEN * gaps[0]:
        return phase_rad, []
    xp = namespace(phase_rad)
    bend = phase_rad[0, ...] - 2 * phase_rad[1, ...] + phase_rad[2, ...]
    power = magnitude[0, ...] * magnitude[1, ...] * magnitude[2, ...] * xp.astype(mask, xp.float32)
    power = power / xp.maximum(xp.max(power), xp.asarray(1e-30, dtype=power.dtype, device=power.device))
    ramp = _ramp(bend, power)
    inside = xp.astype(mask, xp.float32)
    spread = math.sqrt(float(xp.sum((ramp / 2) ** 2 * inside)) / max(float(xp.sum(inside)), 1.0))
    if spread < SMALLEST_RAD:
        return phase_rad, []
    offset = -ramp / 2
    echoes = [phase_rad[e, ...] - offset if e % 2 else phase_rad[e, ...] for e in range(len(echo_times_s))]
    text = (
        f"Odd and even echoes differ by a phase ramp of {spread:.2f} rad (root mean square); it was fitted and removed."
    )
    return xp.stack(echoes), [Note("offset_correction", text)]


def _ramp(angle: Array, power: Array) -> Array:
    """Constant plus linear ramp [rad] nearest to `angle` modulo 2 pi, weighted by `power`; zero where there is no signal."""
    xp = namespace(angle)
    axes = []
    for axis, size in enumerate(angle.shape):
        shape = [1, 1, 1]
        shape[axis] = -1
        index = xp.astype(xp.arange(size, device=angle.device), xp.float32) - (size - 1) / 2
        axes.append(xp.reshape(index, tuple(shape)))
    ramp = xp.zeros_like(angle)
    for axis in range(3):  # the mean step from voxel to voxel
        near = [slice(None)] * 3
        far = [slice(None)] * 3
        near[axis], far[axis] = slice(None, -1), slice(1, None)
        step, both = angle[tuple(far)] - angle[tuple(near)], power[tuple(far)] * power[tuple(near)]
        ramp = ramp + axes[axis] * _angle(float(xp.sum(both * xp.cos(step))), float(xp.sum(both * xp.sin(step))))
    for _ in range(3):  # then the constant, and what is left of the slopes, by weighted least squares
        rest = angle - ramp
        ramp = ramp + _angle(float(xp.sum(power * xp.cos(rest))), float(xp.sum(power * xp.sin(rest))))
        miss = xp.sin(angle - ramp)
        for at in axes:
            spread = float(xp.sum(power * at * at))
            ramp = ramp + at * (float(xp.sum(power * at * miss)) / spread if spread > 0 else 0.0)
    middle = math.remainder(float(xp.sum(ramp * power)) / max(float(xp.sum(power)), 1e-30), 2 * math.pi)
    return ramp + (middle - float(xp.sum(ramp * power)) / max(float(xp.sum(power)), 1e-30))


def _angle(cosine: float, sine: float) -> float:
    return math.atan2(sine, cosine) if cosine or sine else 0.0
