"""The images of one study -> acquisitions, refusals, and what is ignored.

Refused is what looks like a gradient-echo acquisition, or part of one, and cannot be used: incomplete or contradictory
ones, several echoes without phase, phase without magnitude, field maps and phase differences (with the magnitudes of
the same scan), filtered, velocity-encoded or mosaic phase. Ignored is

* what was derived or is a localizer;
* magnitudes that nobody would call a susceptibility acquisition: not from a gradient-echo sequence, or with a single
  echo below `SHORT_ECHO_MS`, as any T1-weighted scan;
* further copies (normalised, distortion-corrected) of the images of an acquisition that is used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qsm_edge.dicom import assemble, grid
from qsm_edge.dicom.acquisition import Acquisition
from qsm_edge.dicom.assemble import Unit
from qsm_edge.dicom.records import IMAGINARY, MAGNITUDE, PHASE, REAL, UNKNOWN, Ignored, Image, Refusal, Verdict
from qsm_edge.dicom.template import make_source, read_template
from qsm_edge.errors import REASONS, InputRefused
from qsm_edge.types import Note

#: A magnitude whose single echo is earlier than this is no half of a susceptibility acquisition.
SHORT_ECHO_MS = 10.0


@dataclass
class Sorted:
    """What one study holds, as it is being found out."""

    acquisitions: list[Acquisition] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)

    def refuse(self, code: str, text: str, images: Iterable[Image]) -> None:
        held = list(images)
        self.refused.append(Refusal(code, text or REASONS[code], _series(held), _files(held)))

    def ignore(self, code: str, text: str, images: Iterable[Image]) -> None:
        self.ignored.append(Ignored(code, text or REASONS[code], _files(images)))


def sort_study(images: Sequence[Image], dropped: Mapping[str, int]) -> Sorted:
    """Sort the images of one study. dropped: how many identical copies of images were left out, by series."""
    out = Sorted()
    numbers: dict[str, list[int]] = defaultdict(list)
    for image in images:
        numbers[image.series_uid].append(image.instance_number)
    honest, trapped = _take_traps(images, out)
    units = [unit for series in _by_series(honest) for unit in assemble.split_repetitions(series)]
    units, copies = assemble.prefer_unnormalised(units)
    joined, ambiguous = assemble.join(units)
    for unit in ambiguous:
        out.refuse("two_acquisitions", "magnitude and phase could belong together in more than one way", unit.images)
    joined, corrected = assemble.prefer_uncorrected(joined)
    whole = [unit for unit in joined if unit.paired]
    loose = [unit for unit in joined if not unit.paired]
    copies += corrected + [unit for unit in loose if any(assemble.is_copy(unit, w) for w in whole)]
    for unit in copies:
        out.ignore("derived_image", "further copies (normalised or distortion-corrected) of images in use", unit.images)
    for unit in _take_mismatched([unit for unit in loose if unit not in copies], out):
        mates = next((held for _, held in trapped if _of_one_scan(unit, held)), None)
        if mates is None:
            _sort_unpaired(unit, out)
        else:
            mates += unit.images
    for verdict, held in trapped:
        out.refuse(verdict.code, verdict.text, held)
    for unit in whole:
        _use(unit, {series: tuple(held) for series, held in numbers.items()}, dropped, out)
    return out


def _take_traps(images: Sequence[Image], out: Sorted) -> tuple[list[Image], list[tuple[Verdict, list[Image]]]]:
    """Set aside the images that are not what they seem; returns the others, and what of those is to be refused."""
    aside: dict[tuple[str, Verdict], list[Image]] = defaultdict(list)
    honest, refused = [], []
    for image in images:
        if image.verdict is None:
            honest.append(image)
        elif image.fault is not None:
            out.refuse(image.fault.code, image.fault.text, [image])
        else:
            aside[image.series_uid if image.verdict.refuse else "", image.verdict].append(image)
    for (_, verdict), held in aside.items():
        if verdict.refuse:
            refused.append((verdict, held))
        else:
            out.ignore(verdict.code, verdict.text, held)
    return honest, refused


def _by_series(images: Iterable[Image]) -> list[list[Image]]:
    series: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        series[image.series_uid].append(image)
    return list(series.values())


def _of_one_scan(unit: Unit, held: Sequence[Image]) -> bool:
    """Whether magnitudes belong to a scan whose phase was set aside: in its series, or of its sequence on its grid."""
    first = unit.reference
    if unit.components & {PHASE, REAL, IMAGINARY}:
        return False
    return any(
        first.series_uid == image.series_uid
        or (first.sequence_name == image.sequence_name != "" and assemble.same_grid(first, image))
        for image in held[:1]
    )


def _take_mismatched(units: Sequence[Unit], out: Sorted) -> list[Unit]:
    """Refuse magnitude and phase that belong together and do not fit; returns the others."""
    left = list(units)
    for one in units:
        for other in units:
            if one not in left or other not in left or one is other:
                continue
            wanted = assemble.complete_pair(one.components | other.components) is not None
            code = assemble.conflict(one, other)
            if wanted and code is not None and assemble.together(one, other) and _near(one, other):
                out.refuse(code, "", (*one.images, *other.images))
                left = [unit for unit in left if unit not in (one, other)]
    return left


def _near(one: Unit, other: Unit) -> bool:
    timed = one.started_s is not None and other.started_s is not None
    return timed or abs(one.series_number - other.series_number) <= 10


def _sort_unpaired(unit: Unit, out: Sorted) -> None:
    """Refuse or ignore images that lack a partner."""
    first, times = unit.reference, unit.all_echo_times
    fault = next((image.fault for image in unit.images if image.fault is not None), None)
    if fault is not None:
        out.refuse(fault.code, fault.text, unit.images)
    elif first.gradient_echo is False:
        out.ignore("not_gre", "", unit.images)
    elif any(not assemble.same_grid(first, image) for image in unit.images):
        out.ignore("localizer", "slices of mixed orientation or size, as of a localizer", unit.images)
    elif len(unit.images) < grid.MIN_SLICES:
        out.ignore("too_small", "single images", unit.images)
    elif UNKNOWN in unit.components and len(times) == 1 and not assemble.collides(unit.images):
        out.ignore("unknown_component", "", unit.images)
    elif unit.components == {MAGNITUDE} and len(times) == 1 and (next(iter(times)) or 0.0) < SHORT_ECHO_MS:
        out.ignore("no_phase", "a magnitude with a single short echo and no phase", unit.images)
    else:
        try:
            grid.plan(unit, {})
        except InputRefused as refusal:
            out.refuse(refusal.code, _text(refusal), unit.images)


def _use(unit: Unit, numbers: Mapping[str, tuple[int, ...]], dropped: Mapping[str, int], out: Sorted) -> None:
    """Make an acquisition of a unit that has magnitude and phase, or say why not."""
    if unit.reference.gradient_echo is False and all(image.fault is None for image in unit.images):
        out.ignore("not_gre", "", unit.images)
        return
    try:
        plan, geometry, b0_tesla, notes = grid.plan(unit, numbers)
        magnitude = next(iter(plan.images.values()))[0]
        template = read_template(magnitude[len(magnitude) // 2])
    except InputRefused as refusal:
        out.refuse(refusal.code, _text(refusal), unit.images)
        return
    source = make_source(plan, geometry, unit.images, b0_tesla, template)
    copies = sum(dropped.get(series, 0) for series in {image.series_uid for image in unit.images})
    if copies:
        notes = (*notes, Note("duplicate_dropped", f"{copies} identical copies of files were left out"))
    out.acquisitions.append(Acquisition(replace(source, notes=notes), plan, geometry, b0_tesla))


def _text(refusal: InputRefused) -> str:
    details = [f"{name} {value}" for name, value in (("got", refusal.got), ("wanted", refusal.wanted)) if value]
    return "; ".join([refusal.what, *details])


def _series(images: Sequence[Image]) -> str:
    """The series by number and description."""
    return ", ".join(sorted({f"{image.series_number} {image.description}".strip() for image in images}))


def _files(images: Iterable[Image]) -> tuple[str, ...]:
    return tuple(sorted({image.file.path: image.file.shown for image in images}.values()))
