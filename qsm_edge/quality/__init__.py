"""Layer 3: the measures behind the verdict on a result.

Every figure is a plain measurement with its unit; every threshold is a constant below with the reason for it. Nothing
here changes the result: a map whose sign looks wrong is reported, never flipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qsm_edge.errors import InternalError
from qsm_edge.quality.measures import cone_balance, noise_sd, sign_index
from qsm_edge.types import Array, Figure, Geometry, GreSeries, Note, Quality
from qsm_edge.units import PPB_PER_PPM, hz_per_ppm, rad_per_ppm

#: The signed 16-bit output holds 1 ppb a step: beyond this a value is clipped [ppm].
CLIP_PPM = 32.767
#: Beyond any tissue but a fresh bleed, a calcification or a vessel's lumen [ppm]; counted, not judged.
OUTLIER_PPM = 1.0
#: Adult brains with their ventricles measure 1000-1700 mL, a two-year-old's 900; with atrophy seldom under 800.
BRAIN_ML = (700.0, 2000.0)
#: Less than a newborn's, or so much that scalp and neck must be in it: no brain mask, whatever the patient.
HOPELESS_ML = (150.0, 2600.0)
#: A spinal cord or brain stem that leaves the volume crosses 2-8 cm^2; more means that brain was cut off.
EDGE_CM2 = 10.0
#: Phase noise is the inverse: 0.1 rad at 10. At 5, the quarter of the brain that is darkest (half the median signal,
#: or less at late echoes) has 0.4 rad and more: differences of neighbours and echoes begin to wrap at random.
LOW_SNR, HOPELESS_SNR = 10.0, 5.0
#: Grey-white contrast is about 50 ppb and a regularised inversion amplifies field noise 2-3 times.
LOUD_FIELD_PPB = 20.0
#: A residual of 0.1 is a phase error of 6 degrees at every echo. Unless noise explains half of it, it is a misfit:
#: wrong echo times, an offset between odd and even echoes, motion. At 0.3 (17 degrees) the phase is not worth using.
HIGH_RESIDUAL, UNRELIABLE_RESIDUAL = 0.1, 0.3
#: A voxel with a tenth of the median weight has ten times the median noise.
UNRELIABLE_WEIGHT = 0.1
#: Sinuses and ear canals cost a good scan 2-10 % of the brain.
MANY_UNRELIABLE, HOPELESS_UNRELIABLE = 0.2, 0.5
#: Background removal by convolution (RESHARP, iSMV) keeps 69-75 % of a brain: less was lost to something else.
LOW_COVER, HOPELESS_COVER = 0.65, 0.4
#: Half the 16th-84th percentile range is 20-45 ppb in heads at 1.5 to 7 T. Three times more is noise or a wrong scale,
#: five times less has lost the anatomy (echo times ten times off, phase not in radians).
CHI_SPREAD_PPM = (0.004, 0.15)
#: `sign_index` of right maps lies above 0.5 (with one echo above 0.25, however poor the inversion), of right maps with
#: 10 mL of calcification above -0.35; an inverted map has the negative of that.
SIGN_SUSPECT, SIGN_SUSPECT_SINGLE = -0.40, -0.30
#: Notes that inform and ask for nothing; any other note asks for a look.
INFORMING = frozenset({"single_echo", "offset_correction", "strong_sources", "device_fallback", "duplicate_dropped"})


@dataclass
class _Findings:
    """What the judges put together, one after the other."""

    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    poor: bool = False

    def measure(self, name: str, value: float, unit: str, meaning: str) -> None:
        self.figures[name] = Figure(float(value), unit, meaning)

    def say(self, code: str, text: str, poor: bool = False) -> None:
        self.notes.append(Note(code, text))
        self.poor |= poor


def assess(
    *,
    series: GreSeries,
    chi_ppm: Array,
    mask: Array,
    brain: Array,
    field_ppm: Array,
    local_ppm: Array,
    residual: Array,
    weight: Array,
    r2star_per_s: Array | None,
    notes: Iterable[Note] = (),
    figures: Mapping[str, Figure] | None = None,
) -> Quality:
    """Figures, notes and a verdict ('good', 'review' or 'poor') for the parts of a `types.Result`.

    All volumes are host arrays (z, y, x) as `types.Result` describes them. `notes` and the notes of the series' source
    come first in the answer, as do `figures` that a stage measured of itself. A figure that cannot be measured (the
    echo-fit residual of fewer than three echoes, the sign of a small slab) is left out. Not checked: whether the anatomy
    is a head at all.

    Errors: `internal` when the volumes differ in shape.
    """
    geometry = series.geometry
    volumes = dict(
        chi=chi_ppm, mask=mask, brain=brain, field=field_ppm, local=local_ppm, residual=residual, weight=weight
    )
    if r2star_per_s is not None:
        volumes["r2star"] = r2star_per_s
    wrong = {name: np.shape(v) for name, v in volumes.items() if np.shape(v) != geometry.shape}
    if wrong:
        raise InternalError("internal", "volumes of different shapes", got=wrong, wanted=geometry.shape)
    box = _bounding_box(np.asarray(mask, dtype=bool) | np.asarray(brain, dtype=bool))
    cut = {name: np.asarray(v)[box] for name, v in volumes.items()}
    inside, head = cut["mask"].astype(bool), cut["brain"].astype(bool)
    magnitude = np.asarray(series.magnitude)[(slice(None), *box)]
    broken = int((inside & ~np.isfinite(cut["chi"])).sum())
    chi = np.where(inside, np.nan_to_num(cut["chi"], posinf=0, neginf=0), 0).astype(np.float32)
    echoes = len(series.echo_times_s)

    out = _Findings(dict(figures or {}))
    if echoes == 1:
        out.say("single_echo", "One echo: the coil's phase offset is part of the field; only its smooth part leaves.")
    out.measure("echoes", echoes, "", "number of echoes")
    out.measure("first_echo", 1e3 * series.echo_times_s[0], "ms", "first echo time")
    out.measure("last_echo", 1e3 * series.echo_times_s[-1], "ms", "last echo time")
    _judge_mask(head, inside, _edge_area_cm2(np.asarray(brain, dtype=bool), geometry), geometry, out)
    if broken:
        out.say("chi_implausible", f"{broken} voxels of the map are not finite.", True)
    if inside.any() and head.any():
        noise = _judge_signal(magnitude, head, series, out)
        _judge_fit(cut["residual"], cut["weight"], head, noise if echoes > 2 else None, out)
        _measure_field(cut["field"], head, cut["local"], inside, b0_tesla=series.b0_tesla, out=out)
        _judge_chi(chi, inside, out)
        _judge_sign(chi, inside, cut.get("r2star"), magnitude[-1], geometry=geometry, out=out)
    else:
        out.say("mask_empty", "The map is empty: no voxel has a value.", True)

    given = [*series.source.notes, *notes]
    known = {note.code for note in given}
    every = tuple(dict.fromkeys([*given, *(note for note in out.notes if note.code not in known)]))
    review = any(note.code not in INFORMING for note in every)
    return Quality(out.figures, every, "poor" if out.poor else "review" if review else "good")


def assess_mask(mask: np.ndarray, geometry: Geometry) -> tuple[Mapping[str, Figure], tuple[Note, ...]]:
    """Of a mask (z, y, x) bool alone: its volume, how much of it lies on the edge, and what is odd about that."""
    out = _Findings()
    _judge_mask(mask, mask, _edge_area_cm2(mask, geometry), geometry, out)
    del out.figures["cover"]  # of a mask by itself it says nothing
    return out.figures, tuple(out.notes)


def _edge_area_cm2(mask: np.ndarray, geometry: Geometry) -> float:
    """Area of the mask on the six faces of the volume."""
    z, y, x = geometry.voxel_mm
    faces = ((axis, area, end) for axis, area in enumerate((y * x, z * x, z * y)) for end in (0, -1))
    return sum(float(np.take(mask, end, axis).sum()) * area / 100 for axis, area, end in faces)


def _judge_mask(brain: np.ndarray, mask: np.ndarray, contact: float, geometry: Geometry, out: _Findings) -> None:
    """Is the mask that came in a brain, and how much of it has a value?"""
    volume = float(brain.sum()) * geometry.voxel_ml
    cover = float((mask & brain).sum()) / max(float(brain.sum()), 1.0)
    out.measure("brain_volume", volume, "mL", "volume of the brain mask")
    out.measure("cover", 100 * cover, "%", "share of the brain mask that has a susceptibility")
    out.measure("edge_contact", contact, "cm\u00b2", "area of the brain mask on the faces of the volume")
    cut = contact > EDGE_CM2
    if cut:
        text = f"{contact:.0f} cm\u00b2 of the brain mask lie on the edge of the volume: values near it are less sure."
        out.say("mask_touches_edge", text)
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        why = " It is cut off at the edge." if cut else ""
        text = f"The brain mask has {volume:.0f} mL; an adult brain has {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} mL.{why}"
        out.say("mask_implausible", text, not HOPELESS_ML[0] <= volume <= HOPELESS_ML[1])
    if brain.any() and cover < LOW_COVER:
        text = f"Only {100 * cover:.0f} % of the brain mask has a susceptibility."
        out.say("many_unreliable", text, cover < HOPELESS_COVER)


def _judge_signal(magnitude: np.ndarray, brain: np.ndarray, series: GreSeries, out: _Findings) -> float:
    """First-echo signal to noise, and what it means for the field; returns the echo-fit residual of noise alone."""
    times = np.asarray(series.echo_times_s)
    sd = noise_sd(magnitude, brain, series.echo_times_s)
    if not (math.isfinite(sd) and sd > 0):
        return 0.0
    ratios = np.array([float(np.median(echo[brain])) / sd for echo in magnitude])
    how = "the echoes' misfit to a decay" if len(times) > 2 else "the finest diagonal wavelets of the first echo"
    out.measure("snr", ratios[0], "", f"median first-echo signal over the noise's standard deviation, from {how}")
    weights = np.maximum(ratios, 1e-6) ** 2
    mean_time = float((weights * times).sum() / weights.sum()) if len(times) > 1 else 0.0
    per_s = 1 / math.sqrt(float((weights * (times - mean_time) ** 2).sum()))
    ppb = PPB_PER_PPM * per_s / rad_per_ppm(series.b0_tesla, 1.0)
    out.measure("field_noise", ppb, "ppb", "noise of the field in a typical voxel that this signal allows at best")
    if ratios[0] < LOW_SNR or ppb > LOUD_FIELD_PPB:
        text = f"The first echo's signal is {ratios[0]:.1f} times its noise, the field's noise {ppb:.0f} ppb or more."
        out.say("low_snr", text, ratios[0] < HOPELESS_SNR)
    return 1 / math.sqrt(float(weights.mean()))


def _judge_fit(
    residual: np.ndarray, weight: np.ndarray, brain: np.ndarray, noise: float | None, out: _Findings
) -> None:
    """Do the echoes fit one frequency, and where is there no reliable phase?

    `noise` is the residual of noise alone, or None for less than three echoes, which always fit.
    """
    misfit, trust = np.nan_to_num(residual[brain], nan=np.inf), np.nan_to_num(weight[brain])
    unreliable = trust < UNRELIABLE_WEIGHT * np.median(trust[trust > 0]) if (trust > 0).any() else trust <= 0
    if noise is not None:
        unreliable |= misfit > UNRELIABLE_RESIDUAL
        median = float(np.median(misfit))
        out.measure("residual", median, "", "median echo-fit residual relative to the signal (0 perfect)")
        if median > max(HIGH_RESIDUAL, 2 * noise):
            text = f"The echoes differ from a single frequency by {100 * median:.0f} % of the signal in half the brain."
            out.say("high_residual", text, median > UNRELIABLE_RESIDUAL)
    share = float(unreliable.mean())
    out.measure("unreliable", 100 * share, "%", "share of the brain mask without reliable phase")
    if share > MANY_UNRELIABLE:
        text = f"{100 * share:.0f} % of the brain mask carries no reliable phase."
        out.say("many_unreliable", text, share > HOPELESS_UNRELIABLE)


def _measure_field(
    field_ppm: np.ndarray,
    brain: np.ndarray,
    local_ppm: np.ndarray,
    mask: np.ndarray,
    *,
    b0_tesla: float,
    out: _Findings,
) -> None:
    """How far the field spreads: a figure of the shim and of the background removal."""
    total = np.nan_to_num(field_ppm[brain])
    low, high = (float(v) for v in np.percentile(total, [1, 99]))
    hz, deviation = hz_per_ppm(b0_tesla), float(total.std())
    out.measure("field_range", high - low, "ppm", "1st to 99th percentile of the total field over the brain")
    out.measure("field_range_hz", (high - low) * hz, "Hz", "the same as a frequency")
    out.measure("field_sd", deviation, "ppm", "standard deviation of the total field over the brain")
    out.measure("field_sd_hz", deviation * hz, "Hz", "the same as a frequency")
    local = float(np.nan_to_num(local_ppm[mask]).std()) * PPB_PER_PPM
    out.measure("local_field_sd", local, "ppb", "standard deviation of the local field over the map")


def _judge_chi(chi: np.ndarray, mask: np.ndarray, out: _Findings) -> None:
    """The distribution of the susceptibilities, and what does not fit into a brain or into the output."""
    values = chi[mask]
    ranks = np.percentile(values, [1, 5, 16, 50, 84, 95, 99])
    for rank, value in zip((1, 5, 50, 95, 99), ranks[[0, 1, 3, 5, 6]], strict=True):
        meaning = "median susceptibility" if rank == 50 else f"percentile {rank} of the susceptibility"
        out.measure(f"chi_p{rank:02d}", PPB_PER_PPM * float(value), "ppb", meaning)
    spread = float(ranks[4] - ranks[2]) / 2
    out.measure("chi_sd", PPB_PER_PPM * float(values.std()), "ppb", "standard deviation of the susceptibility")
    out.measure("chi_spread", PPB_PER_PPM * spread, "ppb", "half the range of percentiles 16 to 84")
    size = np.abs(values)
    clipped, outliers = int((size > CLIP_PPM).sum()), float((size > OUTLIER_PPM).mean())
    out.measure("clipped", 100 * clipped / size.size, "%", "share of the map beyond the output's range (32 767 ppb)")
    out.measure("outliers", 100 * outliers, "%", "share of the map beyond 1 ppm: no tissue, but bleeds and calcium")
    if clipped:
        out.say("values_clipped", f"{clipped} voxels exceed the output's range of 32 767 ppb.")
    if not CHI_SPREAD_PPM[0] <= spread <= CHI_SPREAD_PPM[1]:
        text = f"The susceptibilities spread by {PPB_PER_PPM * spread:.3g} ppb; those of brains spread by 20 to 45."
        out.say("chi_implausible", text, True)


def _judge_sign(
    chi: np.ndarray,
    mask: np.ndarray,
    r2star: np.ndarray | None,
    late_magnitude: np.ndarray,
    *,
    geometry: Geometry,
    out: _Findings,
) -> None:
    """Are veins and deep grey matter positive, and do streaks run along the cone?"""
    rates = None if r2star is None else np.nan_to_num(r2star)
    index = sign_index(chi, mask, rates, late_magnitude, geometry)
    if index is not None:
        meaning = "are fast-decaying and outlying voxels paramagnetic? +1 all, -1 none: sign inverted"
        out.measure("sign_index", index, "", meaning)
        if index < (SIGN_SUSPECT_SINGLE if r2star is None else SIGN_SUSPECT):
            text = f"Fast-decaying and outlying tissue is diamagnetic (index {index:.2f}): the phase may be inverted."
            out.say("sign_suspect", text, True)
    balance = cone_balance(chi, mask, geometry)
    if math.isfinite(balance):
        meaning = "power on the dipole's cone over power off it: above 1 streaks, below 1 smoothed, 1 as in anatomy"
        out.measure("cone_balance", balance, "", meaning)


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest box around the mask; the whole volume around an empty one."""
    box = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(there[0]), int(there[-1]) + 1) if there.size else slice(0, mask.shape[axis]))
    return box[0], box[1], box[2]
