"""One parsed file -> the images in it, with everything that decides where they belong, or a verdict on the file.

A classic object is one image; the frames of an enhanced one are read through the same names, nearest functional group
first, so that the rest of the reader does not know the difference.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from qsm_edge.dicom import vendors
from qsm_edge.dicom.elements import UNDEFINED, Absurd, Elements, Short
from qsm_edge.dicom.header import NATIVE, Header, Parsed, Private, parse
from qsm_edge.dicom.privacy import names_patient, words_of
from qsm_edge.dicom.records import Image, StoredFile, Verdict
from qsm_edge.dicom.uids import is_uid
from qsm_edge.errors import InputRefused

MR, ENHANCED_MR, LEGACY_ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.4{tail}" for tail in ("", ".1", ".4"))
DICOMDIR = "1.2.840.10008.1.3.10"

#: Compressed without loss by definition; every other compressed syntax can lose and is refused.
RLE = "1.2.840.10008.1.2.5"
LOSSLESS = (RLE, *(f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 90, 201, 202)))

#: Larger images than any scanner makes are refused before anything is allocated.
MAX_SIDE, MAX_FRAMES, MAX_PIXEL_BYTES = 8192, 200_000, 8 << 30

_PER_FRAME, _SHARED = 0x52009230, 0x52009229
_SOP_CLASS, _SOP_UID, _STUDY, _SERIES, _FRAME_OF_REFERENCE = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200052
_COIL = Private(0x0051, "SIEMENS MR HEADER", 0x0F)


def read_images(path: Path, shown: str, patients: set[str] | None = None) -> list[Image] | Verdict:
    """The images of a file, or what the file is instead.

    The words of the patient's name and ID are added to `patients`, whatever becomes of the file.

    Raises
    ------
    InputRefused
        What `header.parse` raises, and for MR images unsafe_uid, corrupt_header, truncated_file, too_large.
    """
    parsed = parse(path, shown)
    root = Header([parsed.elements])
    if patients is not None:
        patients |= _patient_words(root)
    sop_class = root.text(_SOP_CLASS)
    if _is_ours(root):
        return Verdict("own_output", "our own output")
    if not sop_class:
        if parsed.short and parsed.elements.table:
            raise InputRefused("truncated_file", where=shown)
        raise InputRefused("corrupt_header", "the header does not say what the file is", where=shown)
    if sop_class not in (MR, ENHANCED_MR, LEGACY_ENHANCED_MR):
        return Verdict("not_mr", "a directory of DICOM files" if sop_class == DICOMDIR else "not an MR image")
    stored = _stored(parsed, root, path, shown, sop_class)
    if sop_class == MR:
        return [_image(root, root, stored, 0, _fault(parsed, stored))]
    return _frames(parsed, root, stored)


def _frames(parsed: Parsed, root: Header, stored: StoredFile) -> list[Image]:
    fault, broken = _fault(parsed, stored), Verdict("corrupt_header", "the frames cannot be told apart", refuse=True)
    if fault is not None:  # one image stands for the object, so that its series is known
        return [_image(root, root, stored, 1, fault)]
    try:
        frames = parsed.elements.items(_PER_FRAME)
        shared, shared_private = _groups(parsed.elements.items(_SHARED)[:1])
        groups = [_groups([frame]) for frame in frames]
    except (Short, Absurd):
        return [_image(root, root, stored, 1, broken)]
    if len(frames) != stored.frames:
        return [_image(root, root, stored, 1, broken)]
    images = []
    for number, (own, private) in enumerate(groups, start=1):
        header = Header([*own, *shared, parsed.elements], [*private, *shared_private])
        images.append(_image(header, root, stored, number, None))
    return images


def _is_ours(root: Header) -> bool:
    return root.text(0x00080070).lower() == vendors.OWN_MANUFACTURER


def _groups(holder: list[Elements]) -> tuple[list[Elements], list[Elements]]:
    """The contents of one item's functional groups: the standard ones, and the vendor's own."""
    standard: list[Elements] = []
    private: list[Elements] = list(holder)
    for item in holder:
        for tag, (vr, _, _) in item.table.items():
            if vr in (b"SQ", b"UN", b""):
                (private if (tag >> 16) % 2 else standard).extend(item.items(tag)[:1])
    return standard, private


def _stored(parsed: Parsed, root: Header, path: Path, shown: str, sop_class: str) -> StoredFile:
    uid = root.text(_SOP_UID)
    for tag in (_SOP_UID, _STUDY, _SERIES):
        if not is_uid(root.text(tag)):
            if parsed.short:
                raise InputRefused("truncated_file", where=shown)
            raise InputRefused("unsafe_uid", where=shown)
    rows, columns = root.count(0x00280010), root.count(0x00280011)
    frames = max(root.count(0x00280008), 1)
    if max(rows, columns) > MAX_SIDE or frames > MAX_FRAMES or rows * columns * frames * 2 > MAX_PIXEL_BYTES:
        raise InputRefused("too_large", where=shown, got=f"{frames} x {rows} x {columns}")
    if not rows or not columns:
        raise InputRefused("truncated_file" if parsed.short else "corrupt_header", "no image size", where=shown)
    place = parsed.place
    return StoredFile(
        path,
        shown,
        sop_class,
        uid,
        parsed.transfer_syntax,
        place.offset if place else -1,
        place.length if place else 0,
        frames,
        rows,
        columns,
        root.count(0x00280101),
        root.count(0x00280103) == 1,
        bool(parsed.meta_sop_uid) and parsed.meta_sop_uid != uid,
    )


def _fault(parsed: Parsed, stored: StoredFile) -> Verdict | None:
    """What is wrong with the pixels, as far as their description tells; they are read later."""
    root, place = Header([parsed.elements]), parsed.place
    if place is None:
        return Verdict("truncated_file", "a file ends before its pixel data", refuse=True)
    if stored.transfer_syntax in NATIVE:
        wanted = stored.rows * stored.columns * stored.frames * 2
        if place.room < min(place.length, wanted) or (place.length == UNDEFINED and place.room < wanted):
            return Verdict("truncated_file", "a file ends inside its pixel data", refuse=True)
        if root.count(0x00280100) == 16 and place.length != wanted:
            return Verdict("pixel_data_invalid", "the pixel data are not as long as the image is large", refuse=True)
    elif stored.transfer_syntax not in LOSSLESS:
        return Verdict("lossy_compression", "the pixel data may have been compressed with loss", refuse=True)
    elif place.length != UNDEFINED:
        return Verdict("pixel_data_invalid", "compressed pixel data without fragments", refuse=True)
    elif not place.fragments_end:
        return Verdict("truncated_file", "a file ends inside its pixel data", refuse=True)
    if root.text(0x00282110) == "01":
        return Verdict("lossy_compression", "the pixel data were once compressed with loss", refuse=True)
    layout = (root.count(0x00280002) or 1, root.count(0x00280100), stored.bits_stored, root.count(0x00280102) + 1)
    if layout[:2] != (1, 16) or not 1 < stored.bits_stored <= 16 or layout[2] != layout[3]:
        return Verdict("pixel_data_invalid", "not 16-bit grey values in their low bits", refuse=True)
    return None


class _Numbers:
    """Reads numbers and remembers the first that is none, with the reason code of its meaning."""

    def __init__(self, header: Header, fault: Verdict | None) -> None:
        self._header, self.fault = header, fault

    def one(self, tag: int, code: str, what: str) -> float | None:
        value: float | None = self._try(lambda: self._header.number(tag), code, what)
        return value

    def many(self, tag: int, code: str, what: str) -> tuple[float, ...]:
        return self._try(lambda: self._header.numbers(tag), code, what) or ()

    def _try(self, read: Callable[[], Any], code: str, what: str) -> Any:
        try:
            return read()
        except ValueError:
            self.fault = self.fault or Verdict(code, f"{what} is not a usable number", refuse=True)
            return None


def _image(header: Header, root: Header, stored: StoredFile, frame: int, fault: Verdict | None) -> Image:
    vendor = vendors.vendor_of(header)
    component = vendors.component_of(header, vendor)
    numbers = _Numbers(header, fault)
    slope = numbers.one(0x00281053, "bad_rescale", "the rescale slope")
    intercept = numbers.one(0x00281052, "bad_rescale", "the rescale intercept")
    if (slope is None) != (intercept is None):
        numbers.fault = numbers.fault or Verdict("bad_rescale", "of slope and intercept one is missing", refuse=True)
    if (slope is not None and not 0 < abs(slope) < 1e9) or abs(intercept or 0) > 1e12:
        numbers.fault = numbers.fault or Verdict("bad_rescale", "the rescale is zero or beyond reason", refuse=True)
    position = numbers.many(0x00200032, "bad_geometry", "the position")
    orientation = numbers.many(0x00200037, "bad_geometry", "the orientation")
    spacing = numbers.many(0x00280030, "bad_geometry", "the pixel spacing")
    echo = numbers.one(0x00189082, "bad_echo_time", "the echo time")
    if echo is None:
        echo = numbers.one(0x00180081, "bad_echo_time", "the echo time")
    types = [*vendors.image_type(header), *_more_types(header, vendor)]
    tesla = numbers.one(0x00180087, "bad_field_strength", "the field strength")
    megahertz = numbers.one(0x00180084, "bad_field_strength", "the imaging frequency")
    if megahertz is None:
        megahertz = numbers.one(0x00189098, "bad_field_strength", "the transmitter frequency")
    return Image(  # the numbers are all read by now, and so is what is wrong with one
        file=stored,
        frame=frame,
        vendor=vendor.name,
        encoding=f"{vendor.name}_{'xa_' if 'MFSPLIT' in types else ''}{'enhanced' if frame else 'classic'}",
        component=component,
        verdict=vendors.trap_of(header, component),
        fault=numbers.fault,
        scanner=vendors.scanner_verdict(header, vendor),
        study_uid=root.text(_STUDY),
        series_uid=root.text(_SERIES),
        frame_of_reference=root.text(_FRAME_OF_REFERENCE),
        patient=_patient(root),
        series_number=root.count(0x00200011),
        description=_description(root),
        protocol=root.text(0x00181030),
        sequence_name=header.text(0x00180024) or header.text(0x00189005),
        gradient_echo=_gradient_echo(header),
        echo_time_ms=None if echo is None else round(echo, 5),  # a double, or a float that was one
        echo_number=_echo_number(header, vendor),
        position=tuple(round(v, 6) for v in position),  # classic and enhanced print the last digit differently
        orientation=tuple(round(v, 9) for v in orientation),
        spacing=spacing,
        slope=slope,
        intercept=intercept,
        started_s=_started(header),
        acquisition=header.count(0x00209156) or header.count(0x00200012),
        temporal=header.count(0x00209128) or header.count(0x00200100),
        coil=next(iter(header.private_texts(_COIL)), "") or header.text(0x00181250),
        distortion=next((t for t in types if t in ("ND", "DIS2D", "DIS3D")), ""),
        normalised="NORM" in types,
        instance_number=root.count(0x00200013),
        declared_echoes=_private_count(header, vendor.echoes) or _train_length(header),
        declared_slices=_slices(header, vendor),
        declared_images=header.count(0x00201002),
        field_tesla=tesla / 1e4 if tesla is not None and tesla > 100 else tesla,  # some files give gauss
        frequency_mhz=megahertz / 1e6 if megahertz is not None and megahertz > 1e6 else megahertz,  # or Hz
    )


def _private_count(header: Header, where: Private | None) -> int:
    return header.private_count(where) if where else 0


def _slices(header: Header, vendor: vendors.Vendor) -> int:
    """How many slices one volume has as the scanner tells, 0 where it does not, or says two things."""
    told = _private_count(header, vendor.slices) or vendors.slices_in_protocol(header, vendor)
    images = header.count(0x00201002)
    return told if told and images % told == 0 else 0


def _more_types(header: Header, vendor: vendors.Vendor) -> list[str]:
    """Siemens XA tells distortion correction and normalisation in a private copy of ImageType."""
    where = vendor.image_type
    return [v.upper() for v in header.private_texts(where)] if where else []


def _patient(root: Header) -> tuple[str, str, str]:
    """ID, name and birth date as digests: enough to see that two differ. Empty where there is none."""
    name = root.text(0x00100010).split("=")[0].rstrip("^ ").casefold()
    values = (root.text(0x00100020), name, root.text(0x00100030))
    id_, name, born = (hashlib.sha256(v.encode()).hexdigest()[:16] if v else "" for v in values)
    return id_, name, born


def _description(root: Header) -> str:
    """The series description without the patient: '' where a part of the name or of the ID occurs in it."""
    text = root.decoded(0x0008103E)[:64]
    return "" if names_patient(text, _patient_words(root)) else text


def _patient_words(root: Header) -> frozenset[str]:
    return words_of(root.decoded(0x00100010), root.text(0x00100020))


def _gradient_echo(header: Header) -> bool | None:
    """True, False, or None where the header does not say (GE: research mode)."""
    sequence, pulse = set(header.texts(0x00180020)), header.text(0x00189008)
    if header.text(0x00189009) == "YES":  # inversion recovery
        return False
    if sequence:
        if sequence & {"SE", "IR"}:
            return False
        return True if "GR" in sequence else (False if "EP" in sequence else None)
    return {"GRADIENT": True, "SPIN": False, "BOTH": False}.get(pulse)


def _train_length(header: Header) -> int:
    """EchoTrainLength where it counts echoes: not the lines of an echo-planar train, nor a turbo factor."""
    planar = "EP" in header.texts(0x00180020) or header.text(0x00189018) == "YES"
    length = header.count(0x00180091)
    return 0 if planar or length > 32 else length


def _echo_number(header: Header, vendor: vendors.Vendor) -> int:
    """The echo's number from 1, 0 where it is not told. GE says 1 for every echo."""
    told = header.count(0x00180086)
    if not told and vendor.echo_index is not None:
        texts = header.private_texts(vendor.echo_index)
        index = re.match(r"(?:[A-Z]+_)?(\d+)_", texts[0]) if texts else None
        told = int(index[1]) if index else 0
    return told


def _started(header: Header) -> float | None:
    """When the image was acquired [s since year 1], None where that is not told."""
    stamp = header.text(0x00189074) or header.text(0x0008002A)
    if not stamp:
        day, time = header.text(0x00080022) or header.text(0x00080020), header.text(0x00080032)
        stamp = f"{day.replace('.', '')}{time.replace(':', '')}" if day and time else ""
    match = re.match(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d(?:\.\d+)?)", stamp)
    if match is None:
        return None
    year, month, day_, hour, minute = map(int, match.groups()[:5])
    try:
        return date(year, month, day_).toordinal() * 86400.0 + hour * 3600 + minute * 60 + float(match[6])
    except ValueError:
        return None
