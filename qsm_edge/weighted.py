"""Layer 3: what else the same data give: T2*, images weighted by the local field or the susceptibility, a projection.

Volumes are (z, y, x), float32. Weighted images have the magnitude's arbitrary scale and show the whole field of view: the
mask says where field and susceptibility have a value, and where they have none the magnitude is left as it is.
"""

from __future__ import annotations

import math

from qsm_edge.backend import namespace
from qsm_edge.types import Array, Geometry
from qsm_edge.units import rad_per_ppm


def t2star_ms(r2star_per_s: Array, mask: Array, *, longest_ms: float = 1000.0) -> Array:
    """Transverse relaxation time T2* [ms], the inverse of the decay rate R2* fitted over the echoes.

    0 outside the mask, `longest_ms` where no decay was measured. Beyond a few times the last echo time the value is noise
    rather than tissue. Source of the fit: Pei et al., MRM 2015, doi:10.1002/mrm.25137.
    """
    xp = namespace(r2star_per_s)
    slowest = xp.full_like(r2star_per_s, 1000.0 / longest_ms)
    return xp.where(mask, 1000.0 / xp.maximum(r2star_per_s, slowest), xp.zeros_like(r2star_per_s))


def swi(
    magnitude: Array,
    local_ppm: Array,
    mask: Array,
    echo_times_s: tuple[float, ...],
    b0_tesla: float,
    *,
    power: float = 4.0,
    echo_tesla_s: float = 0.06,
) -> Array:
    """Susceptibility-weighted image: the magnitude of one echo times the fourth power of a phase mask, which falls from 1
    at no local field to 0 at half a turn of paramagnetic phase.

    mask(phi) = 1 - phi / pi for phi in 0..pi, 1 below, 0 above; phi is the phase that the local field gathers until that
    echo. The echo is the one whose time comes closest to `echo_tesla_s` / B0 (40 ms at 1.5 T, 20 ms at 3 T), the earlier on
    a draw. The mask is raised to `power`.

    The phase is the chain's local field and not a homodyne-filtered phase. It has no wraps; air and skull leave with the
    background, so that the mask does not darken above the sinuses; a high-pass filter takes the low frequencies of large
    nuclei and wide veins with it, this does not; it has the noise of all echoes together and no phase of the coils.

    magnitude: (echo, z, y, x). Source: Haacke et al., MRM 2004, doi:10.1002/mrm.20198 (mask); Haacke et al., AJNR 2009,
    doi:10.3174/ajnr.A1400 (echo time).
    """
    echo = swi_echo(echo_times_s, b0_tesla, echo_tesla_s=echo_tesla_s)
    phase_rad = local_ppm * rad_per_ppm(b0_tesla, echo_times_s[echo])
    return magnitude[echo, ...] * _falling(phase_rad, mask, math.pi, power)


def swi_echo(echo_times_s: tuple[float, ...], b0_tesla: float, *, echo_tesla_s: float = 0.06) -> int:
    """The number of the echo that `swi` shows, from 0."""
    wanted_s = echo_tesla_s / b0_tesla
    return min(range(len(echo_times_s)), key=lambda e: round(abs(echo_times_s[e] - wanted_s), 9))


def smwi(magnitude: Array, chi_ppm: Array, mask: Array, *, threshold_ppm: float = 1.0, power: float = 4.0) -> Array:
    """Susceptibility-map-weighted image: the root of the summed squares of all echoes' magnitudes times the fourth power
    of a mask, which falls from 1 at no susceptibility to 0 at 1 ppm of paramagnetic susceptibility.

    mask(chi) = 1 - chi / `threshold_ppm` for chi in 0..threshold, 1 below, 0 above, raised to `power`. Unlike a phase, the
    susceptibility does not depend on how a vein lies in the field, and does not spill into what is around it.

    magnitude: (echo, z, y, x). Source: Gho et al., MRM 2014, doi:10.1002/mrm.24920.
    """
    xp = namespace(magnitude)
    squares = magnitude[0, ...] ** 2
    for echo in range(1, magnitude.shape[0]):
        squares = squares + magnitude[echo, ...] ** 2
    return xp.sqrt(squares) * _falling(chi_ppm, mask, threshold_ppm, power)


def minimum_projection(volume: Array, mask: Array, geometry: Geometry, *, thickness_mm: float = 10.0) -> Array:
    """Minimum-intensity projection through a slab that slides over the slices, one projection centred on every slice.

    The slab is as many slices as come closest to `thickness_mm`, an odd number (`slab_slices`), and ends with the volume.
    Only voxels of the mask count, so that dark bone around the brain does not cover its surface; 0 where none does.
    """
    xp = namespace(volume)
    none = xp.full_like(volume, math.inf)
    counted = xp.where(mask, volume, none)
    lowest = counted
    for step in range(1, min(slab_slices(geometry, thickness_mm=thickness_mm) // 2, volume.shape[0] - 1) + 1):
        gap = none[:step, ...]
        before = xp.concat([gap, counted[:-step, ...]], axis=0)
        after = xp.concat([counted[step:, ...], gap], axis=0)
        lowest = xp.minimum(lowest, xp.minimum(before, after))
    return xp.where(xp.isfinite(lowest), lowest, xp.zeros_like(lowest))


def slab_slices(geometry: Geometry, *, thickness_mm: float = 10.0) -> int:
    """How many slices, an odd number, the slab of `minimum_projection` has."""
    return 2 * max(math.floor((thickness_mm / geometry.voxel_mm[0] - 1) / 2 + 0.5), 0) + 1


def scaled(volume: Array, mask: Array, *, middle: float = 1000.0) -> Array:
    """A weighted image whose median over the mask is `middle`, so that one window fits every scanner's scale.

    As it is where the mask has no signal.
    """
    values = namespace(volume).sort(volume[mask])
    median = float(values[values.shape[0] // 2]) if values.shape[0] else 0.0
    return volume * (middle / median) if median > 0 else volume


def _falling(x: Array, mask: Array, end: float, power: float) -> Array:
    """1 for x <= 0 and outside the mask, falling in a straight line to 0 at `end`, raised to `power`."""
    xp = namespace(x)
    return xp.where(mask, xp.clip(1.0 - x / end, 0.0, 1.0) ** power, xp.ones_like(x))
