"""Images -> which of them belong to one acquisition.

Magnitude and phase may share a series (Philips, GE), have one each (Siemens) or one for every echo (Siemens XA,
exported to classic objects). A *unit* is what one series holds of one repetition; units of a study are joined while
nothing speaks against it:

* a series with a complete set of components stands on its own;
* else units are joined when they share grid and distortion correction, bring no echo twice, and were acquired at the
  same time. Real magnitude and phase of one acquisition carry the same acquisition time, and a magnitude and a phase
  that were scanned one after the other (with the same protocol, in adjacent series) do not: times that differ are
  never joined. Where a time is missing, magnitude and phase must have the same echo times and protocol, and echoes in
  separate series must be numbered. Where times do not decide (missing, or the same for several repetitions) magnitude
  and phase of different acquisition numbers are never joined;
* what can be joined in two ways is refused (`two_acquisitions`).

Whether the joined images are complete is another question (`grid`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from qsm_edge.dicom.records import IMAGINARY, MAGNITUDE, PHASE, REAL, Image
from qsm_edge.dicom.vendors import VENDORS_BY_NAME

#: Echoes and components of one acquisition start within this time of one another, repetitions do not.
SAME_START_S = 2.0
#: Echo times outside are none, or not in milliseconds.
ECHO_TIME_MS = (0.05, 500.0)
#: Directions, relative sizes: what is the same orientation and the same voxel.
SAME_DIRECTION, SAME_SIZE = 1e-4, 1e-4


@dataclass(frozen=True)
class Unit:
    """What one series holds of one acquisition; or several such, joined.

    undated: it is one of several repetitions in its series, which times do not tell apart.
    """

    images: tuple[Image, ...]
    undated: bool = False

    @property
    def components(self) -> frozenset[str]:
        return frozenset(image.component for image in self.images)

    @cached_property
    def reference(self) -> Image:
        """An image that most of the others are like, its header whole, if there is one: one stray that happens to come first
        would speak for all."""
        sound = [image for image in self.images if image.fault is None] or [*self.images]
        votes = Counter(map(_looks, sound))
        chosen = max(votes, key=lambda look: (votes[look], look))
        return next(image for image in sound if _looks(image) == chosen)

    @property
    def cells(self) -> frozenset[tuple[str, float | None]]:
        """The component and echo time of every image whose header is whole."""
        return frozenset((image.component, image.echo_time_ms) for image in self.images if image.fault is None)

    def echo_times(self, component: str) -> frozenset[float | None]:
        return frozenset(time for part, time in self.cells if part == component)

    @property
    def all_echo_times(self) -> frozenset[float]:
        """Those that can be believed."""
        low, high = ECHO_TIME_MS
        return frozenset(time for _, time in self.cells if time is not None and low <= time <= high)

    @property
    def started_s(self) -> float | None:
        return min((image.started_s for image in self.images if image.started_s is not None), default=None)

    @property
    def acquisitions(self) -> frozenset[int]:
        """The acquisition numbers, where they are told; scanners count echoes and slices with them, too."""
        return frozenset(image.acquisition for image in self.images if image.acquisition)

    @property
    def series_number(self) -> int:
        return min(image.series_number for image in self.images)

    @property
    def paired(self) -> bool:
        return complete_pair(self.components) is not None


def _looks(image: Image) -> tuple[int, int, tuple[float, ...]]:
    """Size and direction, as far as they need to be told apart for a vote."""
    return image.file.rows, image.file.columns, tuple(round(v, 2) for v in image.orientation)


def complete_pair(components: Iterable[str], prefer: str = MAGNITUDE + PHASE) -> str | None:
    """The pair of components that a phase can be had from: magnitude and phase, or real and imaginary."""
    pairs = sorted((MAGNITUDE + PHASE, REAL + IMAGINARY), key=lambda pair: pair != prefer)
    return next((pair for pair in pairs if set(pair) <= set(components)), None)


def split_repetitions(images: Sequence[Image]) -> list[Unit]:
    """The images of one series, by repetition where several can be told apart and are of about one size.

    Only a series that holds a place more than once is split: acquisition and temporal numbers count other things too,
    and a single image more is no repetition. What cannot be told apart stays together, to be refused.
    """
    if not collides(images) or two_patients(images):
        return [Unit(tuple(images))]
    keys: tuple[tuple[Callable[[Image], object], bool], ...] = (  # and whether it counts repetitions
        (lambda image: image.encoding, False),  # the same series exported twice, as classic and as enhanced objects
        (lambda image: image.acquisition, True),
        (lambda image: image.temporal, True),
        (lambda image: (image.acquisition, image.temporal), True),
        (lambda image: image.distortion, False),
        (lambda image: (image.component, image.normalised), False),
    )
    for key, counts in keys:
        groups: dict[object, list[Image]] = defaultdict(list)
        for image in images:
            groups[key(image)].append(image)
        sizes = [len(group) for group in groups.values()]
        if len(groups) > 1 and 2 * min(sizes) >= max(sizes) and not any(map(collides, groups.values())):
            units = [Unit(tuple(group)) for group in groups.values()]
            return [replace(unit, undated=counts and not _dated(unit, units)) for unit in units]
    return [Unit(tuple(images))]


def _dated(unit: Unit, siblings: Sequence[Unit]) -> bool:
    """Whether the time tells a repetition from the others of its series."""
    apart = [_time_apart(unit, other) for other in siblings if other is not unit]
    return all(time is not None and time > SAME_START_S for time in apart)


def two_patients(images: Sequence[Image]) -> bool:
    """Whether the images name more than one patient; what is not told contradicts nothing."""
    return any(len({value for value in part if value}) > 1 for part in zip(*(i.patient for i in images), strict=True))


def collides(images: Sequence[Image]) -> bool:
    """Whether two images claim the same place, echo and component."""
    places = {(i.component, i.echo_time_ms, tuple(round(v, 1) for v in i.position)) for i in images}
    return len(places) < len(images)


def same_grid(one: Image, other: Image) -> bool:
    """Whether two images can be slices of one volume, their position aside."""
    if (one.file.rows, one.file.columns) != (other.file.rows, other.file.columns):
        return False
    if len(one.orientation) != len(other.orientation) or len(one.spacing) != len(other.spacing):
        return False
    turned = any(abs(a - b) > SAME_DIRECTION for a, b in zip(one.orientation, other.orientation, strict=True))
    sized = any(abs(a - b) > SAME_SIZE * abs(a) for a, b in zip(one.spacing, other.spacing, strict=True))
    return not turned and not sized


def _contradict(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _time_apart(one: Unit, other: Unit) -> float | None:
    if one.started_s is None or other.started_s is None:
        return None
    return abs(one.started_s - other.started_s)


def _numbered_apart(one: Unit, other: Unit) -> bool:
    """Whether acquisition numbers say that two units are different repetitions, and times do not say otherwise.

    Times come first: magnitude and phase of one run may bear different numbers.
    """
    undecided = _time_apart(one, other) is None or one.undated or other.undated
    numbers = one.acquisitions, other.acquisitions
    return undecided and all(numbers) and numbers[0].isdisjoint(numbers[1])


def joinable(one: Unit, other: Unit) -> bool:
    """Whether two units are parts of one acquisition as far as their headers tell."""
    return together(one, other) and conflict(one, other) is None


def together(one: Unit, other: Unit) -> bool:
    """Whether time, protocol and echoes of two units fit one acquisition, whatever their grids."""
    first, second = one.reference, other.reference
    if one.cells & other.cells or first.vendor != second.vendor:
        return False
    if first.temporal and second.temporal and first.temporal != second.temporal:
        return False
    apart = _time_apart(one, other)
    if apart is not None and apart > SAME_START_S:
        return False
    if apart is None and _contradict(first.protocol, second.protocol):
        return False
    if _numbered_apart(one, other):
        return False
    parts = one.components & other.components
    if parts:  # more echoes of the same component: a series for every echo
        numbers = _echo_numbers(one, parts), _echo_numbers(other, parts)
        single = all(len(other.echo_times(part)) == 1 for part in parts)
        return single and numbers[0].isdisjoint(numbers[1]) and (apart is not None or 0 not in numbers[0] | numbers[1])
    known, brought = one.all_echo_times, other.all_echo_times
    return brought <= known or known <= brought


def conflict(one: Unit, other: Unit) -> str | None:
    """The reason code why two units can not share a grid, None where they can."""
    first, second = one.reference, other.reference
    if _contradict(first.distortion, second.distortion):
        return "mixed_distortion_correction"
    if not same_grid(first, second) or _contradict(first.frame_of_reference, second.frame_of_reference):
        return "geometry_mismatch"
    return None


def _echo_numbers(unit: Unit, components: frozenset[str]) -> set[int]:
    return {image.echo_number for image in unit.images if image.component in components}


def join(units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """Join the units of one study into acquisitions, in the order of their series.

    Returns them, and those whose magnitude and phase could be joined in more than one way.
    """
    made: list[Unit] = [unit for unit in units if unit.paired and len(unit.cells) > 2]
    rest = sorted((u for u in units if u not in made), key=lambda u: (u.series_number, u.started_s or 0.0))
    open_: list[Unit] = []
    parts: list[list[Unit]] = []
    for unit in rest:
        fitting = [i for i, candidate in enumerate(open_) if joinable(candidate, unit)]
        if fitting:
            best = min(fitting, key=lambda i: (_unlike(open_[i], unit), _time_apart(open_[i], unit) or 0.0, i))
            parts[best].append(unit)
            open_[best] = _merged(parts[best])
        else:
            parts.append([unit])
            open_.append(unit)
    swapped = {i for i in range(len(parts)) for j in range(len(parts)) if i != j and _can_swap(parts[i], parts[j])}
    ambiguous = [u for i, u in enumerate(open_) if i in swapped or _has_undecided_twin(u, open_)]
    return made + [u for u in open_ if u not in ambiguous], ambiguous


def _merged(parts: Sequence[Unit]) -> Unit:
    return Unit(tuple(image for part in parts for image in part.images), any(part.undated for part in parts))


def _can_swap(one: Sequence[Unit], other: Sequence[Unit]) -> bool:
    """Whether two joined acquisitions might as well have been joined crosswise: repetitions that nothing numbers."""
    for mine in one:
        for theirs in other:
            if len(one) < 2 or len(other) < 2 or mine.cells != theirs.cells or not (mine.undated or theirs.undated):
                continue
            crossed = ((mine, other, theirs), (theirs, one, mine))
            if all(joinable(_merged([u for u in rest if u is not gone]), unit) for unit, rest, gone in crossed):
                return True
    return False


def _unlike(one: Unit, other: Unit) -> bool:
    return one.all_echo_times != other.all_echo_times


def _has_undecided_twin(unit: Unit, others: Sequence[Unit]) -> bool:
    """Whether a partner might as well belong to another unit: same images, no times to decide, one without phase."""
    for other in others:
        if other is unit or unit.paired == other.paired or conflict(unit, other) is not None:
            continue
        shared, apart = unit.components & other.components, _time_apart(unit, other)
        alike = bool(shared) and all(unit.echo_times(part) == other.echo_times(part) for part in shared)
        same_time = apart is None or apart <= SAME_START_S
        apart_by = _contradict(unit.reference.protocol, other.reference.protocol) or _numbered_apart(unit, other)
        if alike and same_time and not apart_by:
            return True
    return False


def prefer_unnormalised(units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """Drop magnitudes that differ from others only in intensity normalisation, whose noise is not uniform."""
    magnitudes = [u for u in units if u.components == {MAGNITUDE}]
    plain = [u for u in magnitudes if not u.reference.normalised]
    dropped = [u for u in magnitudes if u.reference.normalised and any(_differ_in_norm(u, p) for p in plain)]
    return [u for u in units if u not in dropped], dropped


def _differ_in_norm(one: Unit, other: Unit) -> bool:
    return _same_acquisition(one, other) and conflict(one, other) is None


def prefer_uncorrected(units: Sequence[Unit]) -> tuple[list[Unit], list[Unit]]:
    """Drop acquisitions that are the distortion-corrected copy of another: the correction interpolates the phase."""
    raw = [u for u in units if u.reference.distortion == "ND"]
    dropped = [
        u for u in units if u.reference.distortion.startswith("DIS") and any(_same_acquisition(u, r) for r in raw)
    ]
    return [u for u in units if u not in dropped], dropped


def is_copy(unit: Unit, whole: Unit) -> bool:
    """Whether an unpaired unit repeats images of a whole acquisition (in another normalisation or correction)."""
    return _same_start(unit, whole) and unit.cells <= whole.cells


def _same_acquisition(one: Unit, other: Unit) -> bool:
    return _same_start(one, other) and one.cells == other.cells


def _same_start(one: Unit, other: Unit) -> bool:
    apart = _time_apart(one, other)
    return apart is not None and apart <= SAME_START_S and not _numbered_apart(one, other)


def prefer_pair(unit: Unit) -> str | None:
    """Which pair of components to read where an acquisition was exported with all four."""
    return complete_pair(unit.components, VENDORS_BY_NAME[unit.reference.vendor].prefer)
