"""MRD images -> one acquisition: who is echo, component and slice, by headers and attributes; then magnitude and phase.

Each two-dimensional image becomes the record that a DICOM image becomes (`dicom.records.Image`), a volume one for each of
its slices, so that the grid is judged by the same rules. What MRD says in its own way:

* `position` is the middle of an image or volume. Only distances between positions move a result.
* Directions are those of ImageRowDir and ImageColumnDir where an image has them (it may have been flipped), else of the
  fixed header. Its numbers have 32 bits, good for seven digits: spacings are rounded to 10 nm, and slices lie on the normal.
* `field_of_view` is along x, y, z as the matrix is; of a single slice the third is its thickness, and spacing comes from
  the positions.
* Echo times are in EchoTime [ms], else in the header's list, by contrast.
* A complex image is real and imaginary at once. Phase images need a scale that can be told (`signal.phase_scale`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qsm_edge import memory
from qsm_edge.dicom import grid, signal
from qsm_edge.dicom.assemble import Unit
from qsm_edge.dicom.records import IMAGINARY, MAGNITUDE, PHASE, REAL, UNKNOWN, Image, Plan, StoredFile, Verdict
from qsm_edge.dicom.vendors import VENDORS_BY_NAME, trap_in, verdict_on_scanner
from qsm_edge.errors import InputRefused
from qsm_edge.openrecon import mrd
from qsm_edge.openrecon.header import Header
from qsm_edge.openrecon.mrd import MrdImage
from qsm_edge.types import Geometry, GreSeries, Note, Source
from qsm_edge.units import ms_to_s

_VENDOR = "siemens"
_COMPONENTS = {mrd.MAGNITUDE: MAGNITUDE, mrd.PHASE: PHASE}
#: Digits after mm that a 32-bit field of view still tells.
_SPACING_DIGITS = 5
#: A volume whose slices are closer than this share of its pixels gives its slice thickness for the extent of the slab.
_LEAST_STEP = 0.25
#: Cosines that are 1, sides of a pixel that are equal.
_SAME, _SQUARE = 1e-4, 1e-3


@dataclass(frozen=True)
class Acquisition:
    """Images that fill one grid. `images` are those that came; the plan's records point into them (`plane_of`)."""

    images: tuple[MrdImage, ...]
    plan: Plan
    geometry: Geometry
    b0_tesla: float
    notes: tuple[Note, ...]

    def plane_of(self, record: Image) -> tuple[int, int]:
        """Which image a record is of, and which slice of it."""
        return record.instance_number, record.frame - 1

    def load(self) -> GreSeries:
        """Magnitude and phase. Raises InputRefused as `signal.read_signal` does; ResourceError out_of_memory."""
        memory.require_to_read(self.geometry.shape, len(self.plan.echo_times_ms))
        if set(self.plan.images) == {REAL, IMAGINARY}:
            real, imaginary = (self._component(part) for part in (REAL, IMAGINARY))
            imaginary += np.float32(0)  # -0 would turn a phase of pi into -pi
            phase, magnitude, scale = np.arctan2(imaginary, real), np.hypot(real, imaginary), "complex"
        else:
            magnitude = self._component(MAGNITUDE)
            phase, scale = self._phase()
        if float(np.fmin.reduce(magnitude, axis=None)) < 0:
            raise InputRefused("unknown_component", "the magnitude images hold negative values")
        facts = {"vendor": _VENDOR, "encoding": "MRD", "phase_scale": scale}
        source = Source(_VENDOR, "MRD", slug="openrecon", facts=facts, notes=self.notes)
        times = tuple(ms_to_s(time) for time in self.plan.echo_times_ms)
        return GreSeries(magnitude, phase, times, self.b0_tesla, self.geometry, source)

    def _plane(self, record: Image) -> np.ndarray:
        """One slice, rescaled, in float64."""
        image, z = self.plane_of(record)
        plane = self.images[image].values[0, z]
        plane = {REAL: plane.real, IMAGINARY: plane.imag}.get(record.component, plane)
        slope, intercept = _rescale(record)
        return np.asarray(plane.astype(np.float64) * slope + intercept)

    def _component(self, part: str, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
        """(echo, z, y, x) float32 of one component."""
        echoes = self.plan.images[part]
        out = np.empty((len(echoes), *self.geometry.shape), dtype=np.float32)
        for e, records in enumerate(echoes):
            for z, record in enumerate(records):
                out[e, z] = (self._plane(record) + offset) * factor
        return out

    def _phase(self) -> tuple[np.ndarray, str]:
        """The phase [rad] in (-pi, pi], and how its values were understood."""
        ends: dict[tuple[tuple[float, float], int, bool], tuple[float, float]] = {}
        spans = []
        for records in self.plan.images[PHASE]:
            least, most = math.inf, -math.inf
            for record in records:
                plane = self._plane(record)
                low, high = float(np.fmin.reduce(plane, axis=None)), float(np.fmax.reduce(plane, axis=None))
                least, most = min(least, low), max(most, high)
                key = _rescale(record), record.file.bits_stored, record.file.signed
                before = ends.get(key, (low, high))
                ends[key] = min(low, before[0]), max(high, before[1])
            spans.append(most - least)
        if not min(spans) > 0:
            raise InputRefused("phase_constant", "an echo of the phase has a single value")
        full_range = VENDORS_BY_NAME[_VENDOR].full_range
        scales = {signal.phase_scale(*key, pair, full_range=full_range) for key, pair in ends.items()}
        if len(scales) != 1:
            raise InputRefused("unknown_phase_scale", "the phase images do not share one scale")
        name, factor, offset = scales.pop()
        if min(spans) * factor < signal.LEAST_SPAN_RAD:
            raise InputRefused("phase_constant", got=f"an echo spans {min(spans) * factor:.3f} rad")
        phase = self._component(PHASE, factor, offset)
        signal.wrap(phase)
        return phase, name


def collect(images: Sequence[MrdImage], header: Header) -> Acquisition:
    """One acquisition out of all that came.

    Raises
    ------
    InputRefused
        unknown_phase_sign, vertical_field (of the scanner), coil_uncombined, pixel_data_invalid, unknown_component, what
        `vendors.TRAPS` names, and what `grid.plan` raises.
    """
    scanner = _verdict(header)
    records = [record for index, image in enumerate(images) for record in _records(index, image, header, scanner)]
    used, ignored = [], 0
    for record in records:
        if record.verdict is None:
            used.append(record)
        elif record.verdict.refuse:
            raise InputRefused(record.verdict.code, record.verdict.text)
        else:
            ignored += 1
    if not used:
        code = records[0].verdict.code if records and records[0].verdict else "no_magnitude"
        raise InputRefused(code, "no image of the stream is part of an acquisition")
    used, dropped = _unnormalised(used)
    if any(record.component == UNKNOWN for record in used):
        raise InputRefused("unknown_component", wanted="magnitude and phase, or complex images")
    plan, geometry, b0_tesla, notes = grid.plan(Unit(tuple(used)), {})
    for number, what in ((ignored, "derived or localizer"), (dropped, "normalised magnitude")):
        notes += (Note("duplicate_dropped", f"{number} {what} images were left out"),) if number else ()
    return Acquisition(tuple(images), plan, _rounded(geometry), b0_tesla, notes)


def _rounded(geometry: Geometry) -> Geometry:
    """The same with a slice step that is perpendicular and has no more digits than 32-bit positions tell."""
    affine = np.array(geometry.affine_lps)
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    step = round(geometry.voxel_mm[0], _SPACING_DIGITS) / np.linalg.norm(normal)
    affine[:3, 0] = normal * math.copysign(step, float(normal @ affine[:3, 0]))
    return Geometry(geometry.shape, affine)


def _verdict(header: Header) -> Verdict | None:
    """Why nothing that this scanner sends can be used: OpenRecon's are Siemens', and only their sign is known."""
    if not re.search(VENDORS_BY_NAME[_VENDOR].manufacturer, header.vendor, re.IGNORECASE):
        text = "which way the phase turns is known of Siemens scanners only, and the MRD header names none"
        return Verdict("unknown_phase_sign", text, refuse=True)
    return verdict_on_scanner(header.vendor, header.model, _VENDOR, _VENDOR)


def _records(index: int, image: MrdImage, header: Header, scanner: Verdict | None) -> list[Image]:
    """The slices of one image or volume as records; those of a complex one twice."""
    head, said = image.head, image.attributes
    channels, depth, rows, columns = image.values.shape
    if channels > 1:
        raise InputRefused("coil_uncombined", got=f"{channels} channels")
    kind = image.values.dtype.kind
    if (kind == "c") != (head.image_type == mrd.COMPLEX):
        raise InputRefused("pixel_data_invalid", "complex values and the image type contradict one another")
    components = [REAL, IMAGINARY] if kind == "c" else [_COMPONENTS.get(head.image_type, UNKNOWN)]
    types = [text.upper() for text in said.get("ImageType", [])]
    names = [text for key in ("SeriesDescription", "SequenceDescription") for text in said.get(key, [])]
    traps = [("type", text) for text in types] + [("description", text) for text in (*names, header.protocol)]
    row, column, positions = _geometry(image)
    bits = 8 * image.values.dtype.itemsize
    file = StoredFile(Path(), "", "", "", "", 0, 0, 1, rows, columns, min(bits, 16), kind == "i", False)
    width, height = head.field_of_view[0], head.field_of_view[1]
    if abs(height * columns / (width * rows) - 1) > _SQUARE > abs(height * rows / (width * columns) - 1):
        # Square pixels, were the field of view given as (y, x): some converters do.
        raise InputRefused("bad_geometry", "field of view and matrix are not in the same order")
    record = Image(
        file=file,
        frame=1,
        vendor=_VENDOR,
        encoding="MRD",
        component=UNKNOWN,
        verdict=None,
        fault=None,
        scanner=scanner,
        study_uid="",
        series_uid="",
        frame_of_reference="",
        patient=("", "", ""),
        series_number=int(head.image_series_index),
        description=" ".join(names),
        protocol=header.protocol,
        sequence_name="",
        gradient_echo=None,
        echo_time_ms=_echo_time(said, header, int(head.contrast)),
        echo_number=int(head.contrast) + 1,
        position=(),
        orientation=tuple(round(part, 9) for part in (*row, *column)),
        spacing=(round(height / rows, _SPACING_DIGITS), round(width / columns, _SPACING_DIGITS)),
        slope=_attribute(said, "RescaleSlope"),
        intercept=_attribute(said, "RescaleIntercept"),
        started_s=None,
        acquisition=0,
        temporal=int(head.repetition),
        coil="",
        distortion=next((text for text in types if text == "ND" or text.startswith("DIS")), ""),
        normalised="NORM" in types,
        instance_number=index,
        declared_echoes=header.contrasts,
        declared_slices=header.slices,
        declared_images=0,
        field_tesla=header.field_tesla,
        frequency_mhz=header.frequency_mhz,
    )
    if record.slope is not None and (record.slope == 0 or kind == "c"):
        raise InputRefused("bad_rescale", got=f"slope {record.slope:g}")
    return [
        replace(record, component=part, verdict=trap_in(part, tuple(traps)), frame=z + 1, position=positions[z])
        for part in components
        for z in range(depth)
    ]


def _geometry(image: MrdImage) -> tuple[tuple[float, ...], tuple[float, ...], list[tuple[float, ...]]]:
    """Directions of rows and columns, and the position of the first voxel of each slice, in LPS mm."""
    head, said = image.head, image.attributes
    row, column, along = (
        _vector(said, name, field)
        for name, field in (
            ("ImageRowDir", head.read_dir),
            ("ImageColumnDir", head.phase_dir),
            ("ImageSliceDir", head.slice_dir),
        )
    )
    extent, middle = np.array(head.field_of_view, dtype=np.float64), np.array(head.position, dtype=np.float64)
    if not (np.isfinite([*row, *column, *along, *extent, *middle]).all() and extent.min() > 0):
        raise InputRefused("bad_geometry", "position, direction or field of view is missing")
    _, depth, rows, columns = image.values.shape
    first = middle - row * extent[0] * (1 - 1 / columns) / 2 - column * extent[1] * (1 - 1 / rows) / 2
    if depth == 1:
        return tuple(row), tuple(column), [tuple(first)]
    step = extent[2] / depth
    if step < _LEAST_STEP * extent[0] / columns:
        raise InputRefused("bad_geometry", "the field of view along a volume is not that of all of its slices")
    if abs(abs(float(along @ np.cross(row, column))) - 1) > _SAME:
        raise InputRefused("bad_geometry", "the slices of a volume do not lie along its normal")
    return tuple(row), tuple(column), [tuple(first + along * step * (z - (depth - 1) / 2)) for z in range(depth)]


def _vector(said: mrd.Attributes, name: str, field: Sequence[float]) -> np.ndarray:
    """A direction: the attribute's, which has all its digits, or the fixed header's."""
    if name not in said:
        return np.array(field, dtype=np.float64)
    try:
        vector = np.array([float(text) for text in said[name]])
    except ValueError:
        vector = np.empty(0)
    if vector.shape != (3,):
        raise InputRefused("bad_geometry", f"{name} is no vector")
    return vector


def _echo_time(said: mrd.Attributes, header: Header, contrast: int) -> float | None:
    told = _attribute(said, "EchoTime")
    if told is None and contrast < len(header.echo_times_ms):
        return header.echo_times_ms[contrast]
    return told


def _attribute(said: mrd.Attributes, name: str) -> float | None:
    """A number of the attributes, None where it is not told."""
    if name not in said:
        return None
    try:
        (value,) = (float(text) for text in said[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        code = "bad_echo_time" if name == "EchoTime" else "bad_rescale"
        raise InputRefused(code, f"{name} is no number")
    return value


def _rescale(record: Image) -> tuple[float, float]:
    return 1.0 if record.slope is None else record.slope, record.intercept or 0.0


def _unnormalised(records: list[Image]) -> tuple[list[Image], int]:
    """Without the magnitudes that others repeat unnormalised, whose noise is uniform; and how many those were."""
    places = {
        (r.echo_number, r.temporal, np.round(r.position, 2).tobytes())
        for r in records
        if r.component == MAGNITUDE and not r.normalised
    }
    kept = [
        r
        for r in records
        if r.component != MAGNITUDE
        or not r.normalised
        or (r.echo_number, r.temporal, np.round(r.position, 2).tobytes()) not in places
    ]
    return kept, len(records) - len(kept)
