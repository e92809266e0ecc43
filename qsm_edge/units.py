"""Layer 0: the only physical constants and unit conversions of the project.

Sign convention of the whole code base: phase grows with the field, ``phase = phase0 + 2 pi gamma dB TE``, and a
paramagnetic source has a positive susceptibility. Fields are relative to B0 and in ppm, susceptibilities in ppm.
"""

from __future__ import annotations

import math

#: Gyromagnetic ratio of the proton, reduced, in Hz/T (CODATA 2018).
GAMMA_HZ_PER_T = 42.577478518e6


def rad_per_ppm(b0_tesla: float, echo_time_s: float) -> float:
    """Phase [rad] that a relative field of 1 ppm gathers over `echo_time_s` [s] at `b0_tesla` [T]."""
    return 2.0 * math.pi * GAMMA_HZ_PER_T * 1e-6 * b0_tesla * echo_time_s


def hz_per_ppm(b0_tesla: float) -> float:
    """Frequency offset [Hz] of a relative field of 1 ppm at `b0_tesla` [T]."""
    return GAMMA_HZ_PER_T * 1e-6 * b0_tesla


def ms_to_s(milliseconds: float) -> float:
    """DICOM and file headers give times in ms, the code computes in s."""
    return milliseconds * 1e-3


def mhz_to_tesla(frequency_mhz: float) -> float:
    """Field strength [T] of a proton imaging frequency [MHz]."""
    return frequency_mhz * 1e6 / GAMMA_HZ_PER_T


#: ppm to ppb, the unit of the DICOM output.
PPB_PER_PPM = 1000.0
