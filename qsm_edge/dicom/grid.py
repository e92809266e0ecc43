"""One acquisition's images -> a complete grid of component x echo x slice in space, or the reason why there is none."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qsm_edge.dicom.assemble import ECHO_TIME_MS, SAME_DIRECTION, Unit, prefer_pair, same_grid, two_patients
from qsm_edge.dicom.records import COMPONENT_NAMES, IMAGINARY, MAGNITUDE, PHASE, REAL, UNKNOWN, Image, Plan
from qsm_edge.errors import InputRefused
from qsm_edge.types import Geometry, Note
from qsm_edge.units import mhz_to_tesla

#: Uneven gaps up to the larger of these are rounding.
GAP_SHARE, GAP_MM = 0.01, 0.01
#: The same slice in another echo or component lies within this distance.
SAME_PLACE_MM = 0.02
#: A field map needs neighbours on every axis.
MIN_SLICES, MIN_SIDE = 4, 8
FIELD_TESLA = (0.05, 20.0)
#: Real magnets run a few per cent beside their nominal field.
FIELD_AGREES = 0.06
_FIELD_MAPPING = r"field[ _-]?map"

#: component and echo time -> index of the place -> the images there
Cells = dict[tuple[str, float], dict[int, list[Image]]]


def plan(unit: Unit, numbers: Mapping[str, tuple[int, ...]]) -> tuple[Plan, Geometry, float, tuple[Note, ...]]:
    """Lay an acquisition's images out on a grid.

    numbers: the instance numbers of all images that there are of each series, used or not, repeated where they repeat.

    Returns
    -------
    plan, geometry, field strength in tesla, notes.

    Raises
    ------
    InputRefused
        Whatever makes the acquisition incomplete, contradictory or unusable, by its reason code.
    """
    for image in unit.images:
        if image.fault is not None:
            raise InputRefused(image.fault.code, image.fault.text)
    _check_identity(unit.images)
    pair = _pair(unit)
    used = [image for image in unit.images if image.component in pair]
    scanner = next((image.scanner for image in used if image.scanner is not None), None)
    if scanner is not None:
        raise InputRefused(scanner.code, scanner.text)
    _check_echo_times(used)
    _check_grid(used)
    place = _places(used)
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for image, index in zip(used, place, strict=True):
        cells[image.component, image.echo_time_ms or 0.0][index].append(image)
    _check_collisions(cells)
    echo_times = _check_echoes(cells, pair, used)
    count = _check_slices(cells, pair, used, numbers)
    images = {part: tuple(tuple(cells[part, time][z][0] for z in range(count)) for time in echo_times) for part in pair}
    geometry = _geometry(images[pair[0]][0])
    _check_straight(used, place, geometry)
    return Plan(images, echo_times), geometry, _field(used), _notes(used)


def _check_identity(images: Sequence[Image]) -> None:
    if two_patients(images):
        raise InputRefused("two_patients")
    if len({image.study_uid for image in images}) > 1:
        raise InputRefused("two_acquisitions", "the images of one series name two studies")
    renamed = sum(image.file.renamed for image in images)
    if 0 < renamed < len(images):
        raise InputRefused("corrupt_header", "some files name another object in their meta header than they hold")


def _pair(unit: Unit) -> str:
    pair, have = prefer_pair(unit), unit.components
    if pair is not None:
        return pair
    if UNKNOWN in have:
        raise InputRefused("unknown_component")
    if have & {REAL, IMAGINARY}:
        kind = COMPONENT_NAMES[IMAGINARY if REAL in have else REAL]
        raise InputRefused("no_imaginary", f"there are no {kind} images", got=_names(have))
    raise InputRefused("no_magnitude" if PHASE in have else "no_phase", got=_names(have))


def _names(components: Iterable[str]) -> str:
    return ", ".join(sorted(COMPONENT_NAMES[c] for c in components))


def _check_echo_times(images: Sequence[Image]) -> None:
    low, high = ECHO_TIME_MS
    for image in images:
        time = image.echo_time_ms
        if time is None or not low <= time <= high:
            got = "none" if time is None else f"{time:g} ms"
            raise InputRefused("bad_echo_time", got=got, wanted=f"{low:g} to {high:g} ms")


def _check_grid(images: Sequence[Image]) -> None:
    for image in images:
        row, column = np.array(image.orientation[:3]), np.array(image.orientation[3:])
        if len(image.orientation) != 6 or len(image.position) != 3 or len(image.spacing) != 2:
            raise InputRefused("bad_geometry", "position, orientation or pixel spacing is missing")
        if (
            max(map(abs, image.orientation)) > 1.01
            or np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 2e-3
        ):
            raise InputRefused("bad_geometry", "the orientation is no pair of perpendicular unit vectors")
        if min(image.spacing) <= 0.01 or max(image.spacing) > 100 or max(map(abs, image.position)) > 1e4:
            raise InputRefused("bad_geometry", "position or pixel spacing is out of bounds")
    if len({image.frame_of_reference for image in images if image.frame_of_reference}) > 1:
        raise InputRefused("geometry_mismatch", "the images have different frames of reference")
    corrections = {image.distortion for image in images if image.distortion}
    if len(corrections) > 1:
        raise InputRefused("mixed_distortion_correction", got=", ".join(sorted(corrections)))
    firsts: dict[tuple[str, float | None], Image] = {}
    for image in images:
        first = firsts.setdefault((image.component, image.echo_time_ms), image)
        if not same_grid(first, image):
            turned = np.max(np.abs(np.subtract(first.orientation, image.orientation))) > SAME_DIRECTION
            raise InputRefused("localizer" if turned else "geometry_mismatch", "the slices of one echo differ in grid")
    if not all(same_grid(images[0], first) for first in firsts.values()):
        raise InputRefused("geometry_mismatch")


def _places(images: Sequence[Image]) -> list[int]:
    """The index along the normal of the place of every image, counted over the places that there are."""
    points = np.array([image.position for image in images])
    along = points @ _normal(images[0])
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order]) > SAME_PLACE_MM
    index = np.empty(len(images), dtype=int)
    index[order] = np.concatenate([[0], np.cumsum(steps)])
    for here in np.split(points[order], np.flatnonzero(steps) + 1):
        if np.ptp(here, axis=0).max() > 5 * SAME_PLACE_MM:
            raise InputRefused("geometry_mismatch", "images of the same slice lie beside one another")
    return [int(i) for i in index]


def _normal(image: Image) -> np.ndarray:
    normal: np.ndarray = np.cross(image.orientation[:3], image.orientation[3:])
    return normal


def _check_collisions(cells: Cells) -> None:
    """Two images for one slice, echo and component: a doubled slice, unless all of them come so."""
    crowds = [images for by_place in cells.values() for images in by_place.values()]
    doubled = [images for images in crowds if len(images) > 1]
    if not doubled:
        return
    where = f"{len(doubled)} of {len(crowds)} slices"
    if all(len({image.echo_number for image in images}) == len(images) for images in doubled):
        raise InputRefused("bad_echo_time", "several echoes have the same echo time", got=where)
    if all(len({image.coil for image in images}) == len(images) for images in doubled):
        raise InputRefused("coil_uncombined", got=where)
    if len(doubled) == len(crowds):
        raise InputRefused("two_acquisitions", got="every slice more than once")
    raise InputRefused("doubled_slice", got=where)


def _check_echoes(cells: Cells, pair: str, used: Sequence[Image]) -> tuple[float, ...]:
    """The echo times in ms, ascending, after looking for signs that one is missing."""
    first, second = ({time for part, time in cells if part == component} for component in pair)
    both = first | second
    if first != second:
        if pair == MAGNITUDE + PHASE and len(first) == 2 and second == {max(first)}:
            raise InputRefused("phase_difference", "two magnitudes and one phase: that is their difference")
        raise InputRefused("missing_echo", got=f"{len(first)} and {len(second)} echo times", wanted=f"{len(both)} each")
    if len(second) == 1 and any(re.search(_FIELD_MAPPING, i.description + i.protocol, re.I) for i in used):
        raise InputRefused("phase_difference", "a field-mapping protocol with one phase: that is a difference")
    numbers: dict[float, set[int]] = defaultdict(set)
    for image in used:
        numbers[image.echo_time_ms or 0.0].add(image.echo_number)
    told = [next(iter(n)) for n in numbers.values() if len(n) == 1]
    distinct = len(set(told)) == len(both) and 0 not in told
    if distinct and set(told) != set(range(1, len(both) + 1)):
        raise InputRefused("missing_echo", got=f"echo numbers {sorted(told)}", wanted=f"1 to {max(told)}")
    declared = max(image.declared_echoes for image in used)
    if declared > len(both):
        raise InputRefused("missing_echo", got=f"{len(both)} echoes", wanted=f"{declared}, as the headers say")
    return tuple(sorted(both))


def _check_slices(cells: Cells, pair: str, used: Sequence[Image], numbers: Mapping[str, tuple[int, ...]]) -> int:
    """The number of slices, the same in every cell and without a gap."""
    places = {index for by_place in cells.values() for index in by_place}
    by_part = [[frozenset(by_place) for (part, _), by_place in cells.items() if part == c] for c in pair]
    if any(len(by_place) != len(places) for by_place in cells.values()):
        apart = all(len(set(sets)) == 1 for sets in by_part) and 2 * len(by_part[0][0] & by_part[1][0]) < len(places)
        if apart:
            raise InputRefused("geometry_mismatch", "magnitude and phase lie on different slices")
        least = min(len(by_place) for by_place in cells.values())
        raise InputRefused("missing_slice", got=f"{least} slices in one echo", wanted=str(len(places)))
    if len(places) < MIN_SLICES or min(used[0].file.rows, used[0].file.columns) < MIN_SIDE:
        raise InputRefused("too_small", got=f"{len(places)} x {used[0].file.rows} x {used[0].file.columns}")
    cell = next(iter(cells.values()))
    along = np.array([cell[z][0].position for z in range(len(places))]) @ _normal(used[0])
    gaps = np.diff(along)
    slack = max(GAP_MM, GAP_SHARE * float(np.median(gaps)))
    if np.ptp(gaps) > 2 * slack:
        steps = gaps / gaps.min()
        whole = np.all(np.abs(steps - np.round(steps)) * gaps.min() <= 2 * slack * np.round(steps))
        got = f"{gaps.min():.3f} to {gaps.max():.3f} mm"
        raise InputRefused("missing_slice" if whole else "uneven_gaps", got=got)
    declared = max(image.declared_slices for image in used)
    if declared > len(places):
        raise InputRefused("missing_slice", got=str(len(places)), wanted=f"{declared}, as the headers say")
    _check_counts(used, len(places), numbers)
    return len(places)


def _check_counts(used: Sequence[Image], slices: int, numbers: Mapping[str, tuple[int, ...]]) -> None:
    """Look for slices that are missing at an end of every stack, where no gap shows, in numbers that count images.

    Other components and echoes may be absent with good reason: a count that leaves whole stacks out says nothing.
    """
    series: dict[str, list[Image]] = defaultdict(list)
    for image in used:
        if image.frame == 0:
            series[image.series_uid].append(image)
    for uid, images in series.items():
        held, told = numbers.get(uid, ()), {image.declared_images for image in images}
        have = set(held)
        if images[0].vendor == "siemens":  # numbers start with 1, and start again with every echo
            gap = bool(held) and min(have) > 0 and have != set(range(1, max(have) + 1))
        else:
            lacking = max(held, default=0) - min(held, default=0) + 1 - len(held)
            gap = (
                min(held, default=0) > 0 and len(have) == len(held) and 0 < lacking < len(held) and lacking % slices > 0
            )
        if gap:
            raise InputRefused("missing_slice", "the instance numbers of a series have a gap")
        stacks = len({(image.component, image.echo_time_ms) for image in images})
        total = told.pop() if len(told) == 1 else 0
        if total % slices and total % stacks == 0 and total // stacks > slices:
            wanted = f"a divisor of {total}, the images that the headers count"
            raise InputRefused("missing_slice", got=f"{slices} slices", wanted=wanted)


def _geometry(slices: Sequence[Image]) -> Geometry:
    """Index to patient: slice step from the first to the last slice, in-plane axes as the header has them."""
    first, last = np.array(slices[0].position), np.array(slices[-1].position)
    row, column = np.array(slices[0].orientation[:3]), np.array(slices[0].orientation[3:])
    affine = np.eye(4)
    affine[:3, 0] = (last - first) / (len(slices) - 1)
    affine[:3, 1], affine[:3, 2] = column * slices[0].spacing[0], row * slices[0].spacing[1]
    affine[:3, 3] = first
    return Geometry((len(slices), slices[0].file.rows, slices[0].file.columns), affine)


def _check_straight(used: Sequence[Image], place: Sequence[int], geometry: Geometry) -> None:
    """The slices must lie on a line along their normal, evenly."""
    affine = geometry.affine_lps
    slack = max(GAP_MM, GAP_SHARE * geometry.voxel_mm[0])
    wanted = affine[:3, 3] + np.outer(place, affine[:3, 0])
    off = np.abs(np.array([image.position for image in used]) - wanted).max()
    if off > 2 * slack:
        raise InputRefused("uneven_gaps", got=f"a slice {off:.3f} mm beside its place", wanted=f"{slack:.3f} mm")
    slant = np.linalg.norm(np.cross(affine[:3, 0], _normal(used[0]))) / geometry.voxel_mm[0]
    if slant > 0.01:
        raise InputRefused("bad_geometry", "the slices are stacked at a slant", got=f"{np.degrees(slant):.1f} degrees")


def _field(used: Sequence[Image]) -> float:
    """The field strength [T], from the imaging frequency where there is one: magnets run beside their nominal field."""
    low, high = FIELD_TESLA
    nominal = [image.field_tesla for image in used if image.field_tesla is not None]
    actual = [mhz_to_tesla(image.frequency_mhz) for image in used if image.frequency_mhz is not None]
    for values in (nominal, actual):
        if values and (min(values) < low or max(values) > high or max(values) - min(values) > 1e-3 * max(values)):
            raise InputRefused("bad_field_strength", got=f"{min(values):g} to {max(values):g} T")
    if nominal and actual and abs(min(actual) / min(nominal) - 1) > FIELD_AGREES:
        got = f"{min(nominal):g} T, and a proton frequency of {min(actual):.3f} T"
        raise InputRefused("bad_field_strength", "field strength and imaging frequency contradict one another", got=got)
    if not nominal and not actual:
        raise InputRefused("bad_field_strength", "neither field strength nor imaging frequency is given")
    return min(actual or nominal)


def _notes(used: Sequence[Image]) -> tuple[Note, ...]:
    if all(image.file.renamed for image in used):
        text = "the files' meta headers name other objects than the files hold, as some de-identification leaves it"
        return (Note("corrupt_header", text),)
    return ()
