"""Stored values -> magnitude, and phase in radians that grows with the field.

What the numbers mean is judged by the numbers (the rescale, and where there is none the range that they fill), by the
rows of `vendors.PHASE_SCALES`; what fits no row is refused. Which way the phase turns is the vendor's (`Vendor.sign`);
where that is not known nothing is read. GE stores the conjugate, and in 3-D negates every second slice: whether it did
is found in the data, as the median cosine of the phase step from slice to slice at the first echo, which is near +1 for
smooth and near -1 for alternating slices. (An FFT shift undoes the negation only for an even number of slices, and
guesses.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qsm_edge.dicom.pixels import read_planes, read_stored
from qsm_edge.dicom.records import IMAGINARY, MAGNITUDE, PHASE, REAL, Image, Plan
from qsm_edge.dicom.vendors import PHASE_SCALES, VENDORS_BY_NAME, Vendor
from qsm_edge.errors import InputRefused

#: A median cosine beyond this is a verdict; between, the slices are neither smooth nor alternating.
CHOP_DECIDED = 0.5
#: Voxels with signal: this share of the bright end. Fewer pairs of them than that decide nothing.
SIGNAL_SHARE, MIN_PAIRS = 0.2, 100
#: A phase that fills its range comes this close to both ends (share of half a turn), and never exceeds them by more.
FILLS, EXCEEDS = 0.03, 0.005
#: Phase images that span less than this hold no phase.
LEAST_SPAN_RAD = 0.1

#: What a bit pattern stands for, by slope, intercept, bits and sign of the image that holds it.
Tables = dict[tuple[float, float, int, bool], np.ndarray]


@dataclass(frozen=True)
class Signal:
    """magnitude, phase [rad] in (-pi, pi], both (echo, z, y, x) float32; how they were read, for the report."""

    magnitude: np.ndarray
    phase_rad: np.ndarray
    scale: str
    chop: str
    sign: str


def read_signal(plan: Plan) -> Signal:
    """Read a plan's pixels and turn them into magnitude and phase.

    Raises
    ------
    InputRefused
        What `pixels.read_stored` raises; bad_rescale, unknown_phase_scale, unknown_phase_sign, phase_constant, phase_unwrapped,
        unknown_component (negative magnitudes), no_magnitude (no signal at all), chop_undecided.
    """
    images = next(iter(plan.images.values()))
    vendor = VENDORS_BY_NAME[images[0][0].vendor]
    if vendor.sign is None:  # the grid refuses such scanners before; nothing may pass by it
        raise InputRefused("unknown_phase_sign", "it is not known which way the phase turns")
    settled = False
    if set(plan.images) == {REAL, IMAGINARY}:
        magnitude, phase, scale = _from_complex(plan)
    else:
        settled = not vendor.chopped
        phase, scale = _phase(plan.images[PHASE], vendor)
        magnitude = _magnitude(plan.images[MAGNITUDE])
    chop = "not looked for"
    if vendor.chopped:
        chop = chop_verdict(magnitude[0], phase[0])
        if chop == "chopped":
            phase[:, 1::2] += np.where(phase[:, 1::2] > 0, np.float32(-np.pi), np.float32(np.pi))
    if not settled:
        _settle(phase, vendor)
    sign = "stored phase falls with the field, conjugated" if vendor.sign < 0 else "stored phase grows with the field"
    return Signal(magnitude, phase, scale, chop, sign)


def _settle(phase: np.ndarray, vendor: Vendor) -> None:
    """Phases [rad] as stored, made to grow with the field and wrapped, in place."""
    if vendor.sign is not None and vendor.sign < 0:
        np.negative(phase, out=phase)
    wrap(phase)


def chop_verdict(magnitude: np.ndarray, phase: np.ndarray) -> str:
    """'smooth' or 'chopped' out of the first echo, (z, y, x). Raises InputRefused chop_undecided."""
    enough = SIGNAL_SHARE * float(np.percentile(magnitude, 98))
    steps = [
        np.cos(phase[z + 1] - phase[z])[np.minimum(magnitude[z], magnitude[z + 1]) > enough]
        for z in range(len(magnitude) - 1)
    ]
    cosines = np.concatenate(steps)
    median = float(np.median(cosines)) if cosines.size >= MIN_PAIRS else 0.0
    if abs(median) < CHOP_DECIDED:
        wanted = f"beyond +-{CHOP_DECIDED}"
        raise InputRefused("chop_undecided", got=f"median cosine of the slice step {median:.2f}", wanted=wanted)
    return "smooth" if median > 0 else "chopped"


def _levels(image: Image) -> np.ndarray:
    """What each of the 65536 bit patterns stands for before rescale: high bits dropped, sign extended. int32."""
    bits = image.file.bits_stored
    patterns, half = np.arange(1 << 16, dtype=np.int32) & ((1 << bits) - 1), 1 << (bits - 1)
    return np.where(patterns >= half, patterns - 2 * half, patterns) if image.file.signed else patterns


def _rescale(image: Image) -> tuple[float, float]:
    return 1.0 if image.slope is None else image.slope, image.intercept or 0.0


def _key(image: Image) -> tuple[float, float, int, bool]:
    return (*_rescale(image), image.file.bits_stored, image.file.signed)


def _tables(echoes: Sequence[Sequence[Image]], factor: float, offset: float = 0.0) -> Tables:
    """float32 ``(rescaled stored value + offset) * factor`` of every bit pattern, by `_key`: equal numbers, equal bits."""
    images = {_key(image): image for images in echoes for image in images}
    return {
        key: ((_levels(image) * key[0] + key[1] + offset) * factor).astype(np.float32) for key, image in images.items()
    }


def _translate(echoes: Sequence[Sequence[Image]], tables: Tables, stored: np.ndarray | None = None) -> np.ndarray:
    """What the tables say of the images' values, float32 (echo, z, y, x); read from the files where not `stored`."""
    first = echoes[0][0].file
    out = np.empty((len(echoes), len(echoes[0]), first.rows, first.columns), dtype=np.float32)

    def look_up(e: int, z: int, plane: np.ndarray) -> None:
        np.take(tables[_key(echoes[e][z])], plane, out=out[e, z], mode="clip")

    if stored is None:
        read_planes(echoes, look_up)
        return out
    for e, planes in enumerate(stored):
        for z, plane in enumerate(planes):
            look_up(e, z, plane)
    return out


def _magnitude(echoes: Sequence[Sequence[Image]]) -> np.ndarray:
    magnitude = _translate(echoes, _tables(echoes, 1.0))
    if float(magnitude.min()) < 0:
        raise InputRefused("unknown_component", "the magnitude images hold negative values")
    if float(magnitude[0].max()) == 0:
        raise InputRefused("no_magnitude", "the magnitude images are empty")
    return magnitude


def _phase(echoes: Sequence[Sequence[Image]], vendor: Vendor) -> tuple[np.ndarray, str]:
    """The phase [rad] and the name of its scale; settled already where slices cannot be chopped."""
    stored = read_stored(echoes)
    spans: list[float] = []
    ranges: dict[tuple[float, float, int, bool], tuple[Image, float, float]] = {}
    for planes, images in zip(stored, echoes, strict=True):
        ends = [_ends(plane, image) for plane, image in zip(planes, images, strict=True)]
        spans.append(max(high for _, high in ends) - min(low for low, _ in ends))
        for image, (low, high) in zip(images, ends, strict=True):
            _, lowest, highest = ranges.get(_key(image), (image, low, high))
            ranges[_key(image)] = image, min(low, lowest), max(high, highest)
    if min(spans) == 0:
        raise InputRefused("phase_constant", got=f"echo {spans.index(0) + 1} has a single value")
    scales = {
        phase_scale(_rescale(i), i.file.bits_stored, i.file.signed, (low, high), full_range=vendor.full_range)
        for i, low, high in ranges.values()
    }
    if len(scales) != 1:
        raise InputRefused("unknown_phase_scale", "the phase images do not share one scale")
    scale, factor, offset = scales.pop()
    if min(spans) * factor < LEAST_SPAN_RAD:
        raise InputRefused("phase_constant", got=f"an echo spans {min(spans) * factor:.3f} rad")
    tables = _tables(echoes, factor, offset)
    if not vendor.chopped:
        for table in tables.values():
            _settle(table, vendor)
    return _translate(echoes, tables, stored), scale


def _ends(stored: np.ndarray, image: Image) -> tuple[float, float]:
    """The lowest and the highest rescaled value of one image."""
    slope, intercept = _rescale(image)
    spare = 16 - image.file.bits_stored
    values = (stored << spare).view(np.int16) >> spare if image.file.signed else (stored << spare) >> spare
    ends = float(values.min()) * slope + intercept, float(values.max()) * slope + intercept
    return min(ends), max(ends)


def phase_scale(
    rescale: tuple[float, float], bits: int, signed: bool, ends: tuple[float, float], *, full_range: bool
) -> tuple[str, float, float]:
    """Name of the scale, radians per rescaled unit, and what to add before.

    rescale: slope and intercept. bits, signed: of what is stored. ends: the lowest and highest rescaled value.
    full_range: see `vendors.Vendor`. A rescale that lays a whole number of bits over a row's turn is believed. Else the
    values themselves must reach both ends of a row. Raises InputRefused unknown_phase_scale, phase_unwrapped.
    """
    (slope, intercept), (low, high) = rescale, ends
    if (slope, intercept) != (1.0, 0.0):
        for name, least, most, factor in PHASE_SCALES:
            if _spans_turn(rescale, bits, signed, (least, most)):
                if max(-low, high) > most * (1 + EXCEEDS):
                    raise InputRefused("phase_unwrapped", got=f"values from {low:g} to {high:g}", wanted=f"+-{most:g}")
                return name, factor, 0.0
    for name, least, most, factor in PHASE_SCALES:
        if min(-low, high) >= least * (1 - FILLS) and max(-low, high) <= most:
            return f"{name}, by range", factor, 0.0
    fills = 0 <= low <= 2048 * FILLS and 4095 - 2048 * FILLS <= high <= 4095
    if full_range and (slope, intercept) == (1.0, 0.0) and fills:
        return "12 bits for a turn, by range", math.pi / 2048, -2048.0
    got = f"values from {low:g} to {high:g}, slope {slope:g}, intercept {intercept:g}"
    raise InputRefused("unknown_phase_scale", got=got)


def _spans_turn(rescale: tuple[float, float], stored: int, signed: bool, half: tuple[float, float]) -> bool:
    """Whether the rescale takes the ends of some number of bits to minus and plus half a turn."""
    (slope, intercept), (least, most) = rescale, half
    for bits in range(8, stored + 1):
        first = -(1 << (bits - 1)) if signed else 0
        bottom, top = first * slope + intercept, (first + (1 << bits) - 1) * slope + intercept
        if least <= -bottom <= most and least * (1 - EXCEEDS) <= top <= most * (1 + EXCEEDS):
            return True
    return False


def _from_complex(plan: Plan) -> tuple[np.ndarray, np.ndarray, str]:
    """Magnitude and phase of real and imaginary images; only the ratio and the sign of the two matter."""
    if len({_key(image) for images in plan.images.values() for echo in images for image in echo}) != 1:
        raise InputRefused("bad_rescale", "real and imaginary images are scaled differently")
    real, imaginary = (_translate(plan.images[c], _tables(plan.images[c], 1.0)) for c in (REAL, IMAGINARY))
    for part in (real, imaginary):
        if float(np.ptp(part)) == 0 or float(part.min()) >= 0:
            raise InputRefused("unknown_component", "the real or imaginary images hold no negative value")
    imaginary += np.float32(0)  # -0 would turn a phase of pi into -pi
    phase = np.arctan2(imaginary, real)
    np.hypot(real, imaginary, out=real)
    return real, phase, "real and imaginary"


def wrap(phase: np.ndarray) -> None:
    """Phases [rad] into (-pi, pi], in place; values are less than a turn outside."""
    turn, half = np.float32(2 * np.pi), np.float32(np.pi)
    np.subtract(phase, turn, out=phase, where=phase > half)
    np.add(phase, turn, out=phase, where=phase <= -half)
