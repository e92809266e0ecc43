"""What the output repeats of its sources: patient, study, frame of reference, protocol; valid, whatever came in.

A template comes from foreign files. Every value is read as text, held against its value representation, its length and
the terms that the standard allows, and left out where it does not fit, so that one bad value never makes our object
invalid. Values are never logged.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

#: Copied where valid.
OPTIONAL = (
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
    "ProtocolName",
    "InstitutionName",
    "SequenceName",
    "RepetitionTime",
    "FlipAngle",
    "NumberOfAverages",
    "ImagingFrequency",
    "ImagedNucleus",
    "MagneticFieldStrength",
    "NumberOfPhaseEncodingSteps",
    "PercentSampling",
    "PercentPhaseFieldOfView",
    "PixelBandwidth",
    "ReceiveCoilName",
    "TransmitCoilName",
    "InPlanePhaseEncodingDirection",
)
#: Copied where valid, and present without a value otherwise.
REQUIRED = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PositionReferenceIndicator",
    "AcquisitionNumber",
    "ScanOptions",
    "MRAcquisitionType",
    "EchoTrainLength",
    "RepetitionTime",
    "PatientPosition",
    "ContentDate",
    "ContentTime",
)
#: BodyPartExamined: without a side, and with one. Anything else (vendors' own terms, nothing) becomes BRAIN.
UNPAIRED = frozenset(
    (
        *("ABDOMEN", "BLADDER", "BRAIN", "CHEST", "COCCYX", "CSPINE", "HEAD", "HEADNECK", "HEART", "LIVER", "LSPINE"),
        *("NECK", "PANCREAS", "PELVIS", "PROSTATE", "SKULL", "SPINE", "SPLEEN", "SSPINE", "TSPINE", "UTERUS"),
        "WHOLEBODY",
    )
)
PAIRED = frozenset(
    (
        *("ANKLE", "ARM", "BREAST", "CALF", "ELBOW", "EXTREMITY", "EYE", "FOOT", "FOREARM", "HAND", "HIP", "KIDNEY"),
        *("KNEE", "LEG", "SHOULDER", "THIGH", "WRIST"),
    )
)
#: Where the standard enumerates the values. Vendors' own scan options and body parts are left out.
ALLOWED: dict[str, frozenset[str]] = {
    "PatientSex": frozenset("MFO"),
    "PatientIdentityRemoved": frozenset(("YES", "NO")),
    "Laterality": frozenset("LR"),
    "ScanningSequence": frozenset(("SE", "IR", "GR", "EP", "RM")),
    "SequenceVariant": frozenset(("SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE")),
    "ScanOptions": frozenset(("PER", "RG", "CG", "PPG", "FC", "PFF", "PFP", "SP", "FS")),
    "MRAcquisitionType": frozenset(("2D", "3D")),
    "InPlanePhaseEncodingDirection": frozenset(("ROW", "COL")),
    "PatientPosition": frozenset(("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")),
}
#: A zero here means that the scanner did not know.
POSITIVE = frozenset(
    (
        *("EchoTrainLength", "RepetitionTime", "NumberOfAverages", "ImagingFrequency", "MagneticFieldStrength"),
        *("PixelBandwidth", "PatientSize", "PatientWeight", "NumberOfPhaseEncodingSteps", "SliceThickness"),
        *("PercentSampling", "PercentPhaseFieldOfView"),
    )
)
MULTIPLE = {"ScanningSequence", "SequenceVariant", "ScanOptions"}
_LENGTH = {"LO": 64, "SH": 16, "ST": 1024, "LT": 10240, "CS": 16, "PN": 64}
_LINES = {"ST", "LT"}
#: Symbols of methods texts whose compatibility decomposition is not ASCII.
_PLAIN = {"\u03c7": "chi", "\u00b1": "+/-", "\u00d7": "x", "\u2013": "-", "\u2014": "-", "\u00b7": "*", "\u03c0": "pi"}
_PERSON_GROUPS, _PERSON_COMPONENTS = 3, 5


def texts(template: Any, keyword: str) -> list[str]:
    """The values of an element as text; [] where it is absent, empty or unreadable."""
    if template is None:
        return []
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            tag = tag_for_keyword(keyword)
            if tag is None or tag not in template:
                return []
            value = template[tag].value
            values = value if isinstance(value, pydicom.multival.MultiValue | list | tuple) else [value]
            return [str(v) for v in values if v is not None and str(v) != ""]
    except Exception:  # a foreign value can fail in any way; it is then as good as absent
        return []


def text(template: Any, keyword: str) -> str:
    """The first value as text, '' where there is none."""
    return next(iter(texts(template, keyword)), "")


def copied(template: Any) -> Dataset:
    """A dataset with the valid values of `OPTIONAL` and `REQUIRED`, and a character set that holds them."""
    out = Dataset()
    for keyword in (*REQUIRED, *OPTIONAL):
        value = clean(keyword, texts(template, keyword))
        if value or keyword in REQUIRED:
            setattr(out, keyword, value)
    for keyword, fallback in (("ScanningSequence", "GR"), ("SequenceVariant", "NONE")):
        setattr(out, keyword, clean(keyword, texts(template, keyword)) or fallback)
    part = fit(text(template, "BodyPartExamined"), "CS")
    out.BodyPartExamined = part if part in UNPAIRED | PAIRED else "BRAIN"
    if part in PAIRED:
        out.Laterality = clean("Laterality", texts(template, "Laterality"))
    if out.get("PatientIdentityRemoved") == "YES" and not out.get("DeidentificationMethod"):
        out.DeidentificationMethod = "as in the source images"
    out.SpecificCharacterSet = character_set(out, template)
    return out


def character_set(dataset: Dataset, template: Any) -> Any:
    """The declared character set where it brings every text of `dataset` back unchanged, else Latin-1, else UTF-8."""
    declared = [] if template is None else template.get("SpecificCharacterSet") or []
    declared = [declared] if isinstance(declared, str) else [str(term or "") for term in declared]
    for candidate in (declared, ["ISO_IR 100"]):
        if any(candidate) and _survives(dataset, candidate):
            return candidate[0] if len(candidate) == 1 else candidate
    return "ISO_IR 192"


def _survives(dataset: Dataset, charset: list[str]) -> bool:
    """Whether writing and reading `dataset` with a character set is silent and changes nothing."""
    trial = Dataset()
    trial.SpecificCharacterSet = charset
    for element in dataset:
        if element.VR in ("LO", "SH", "ST", "LT", "PN"):
            trial[element.tag] = pydicom.DataElement(element.tag, element.VR, str(element.value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, trial, implicit_vr=False, little_endian=True, enforce_file_format=False)
            buffer.seek(0)
            back = pydicom.dcmread(buffer, force=True)
            return all(str(back[e.tag].value) == str(e.value) for e in trial if e.keyword != "SpecificCharacterSet")
    except Exception:  # unknown term, unencodable text, a warning of either
        return False


def clean(keyword: str, values: list[str]) -> Any:
    """A value of `keyword` that is valid, out of foreign text: a string, a list of them, or '' where there is none."""
    vr = dictionary_VR(tag_for_keyword(keyword) or 0)
    allowed = ALLOWED.get(keyword)
    if keyword in MULTIPLE:
        kept = [value.strip().upper() for value in values]
        kept = list(dict.fromkeys(value for value in kept if allowed is None or value in allowed))
        return kept[0] if len(kept) == 1 else kept or ""
    if not values:
        return ""
    joined = " ".join(values) if vr in _LENGTH and vr != "CS" else values[0]
    value = _BY_VR.get(vr, _nothing)(joined) if vr not in _LENGTH else fit(joined, vr)
    if keyword in POSITIVE and value and not float(value) > 0:
        return ""
    return value if allowed is None or value in allowed else ""


def fit(value: str, vr: str) -> str:
    """Text that is valid as `vr`: no control characters or backslashes, not too long, code strings in capitals."""
    if vr == "PN":
        return _person(value)
    keep = "\r\n\t" if vr in _LINES else ""
    plain = value.encode("utf-8", "replace").decode("utf-8").replace("\\", " ")
    plain = "".join(c for c in plain if c in keep or unicodedata.category(c)[0] != "C").strip()
    if vr == "CS":
        plain = plain.upper()
        return plain if re.fullmatch(r"[A-Z0-9_ ]{1,16}", plain) else ""
    return plain[: _LENGTH[vr]].rstrip()


def ascii_text(value: str, vr: str) -> str:
    """Our own text, which every character set can hold."""
    for symbol, plain in _PLAIN.items():
        value = value.replace(symbol, plain)
    return fit(unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode(), vr)


def _person(value: str) -> str:
    groups = []
    for group in value.split("=")[:_PERSON_GROUPS]:
        components = [fit(part, "LO") for part in group.split("^")[:_PERSON_COMPONENTS]]
        groups.append("^".join(components)[: _LENGTH["PN"]].rstrip("^ "))
    return "=".join(groups).rstrip("=")


def _matching(pattern: str) -> Callable[[str], str]:
    return lambda value: value.strip() if re.fullmatch(pattern, value.strip()) else ""


def _date(value: str) -> str:
    value = value.strip()
    if not re.fullmatch(r"\d{8}", value):
        return ""
    try:
        date(int(value[:4]), int(value[4:6]), int(value[6:]))
    except ValueError:
        return ""
    return value


def decimal(value: float | str) -> str:
    """The closest decimal string of at most 16 characters, '' where it is no finite number."""
    try:
        return str(pydicom.valuerep.format_number_as_ds(float(value)))
    except (ValueError, OverflowError, TypeError):
        return ""


def decimals(*values: float) -> list[str]:
    """Geometry as decimal strings; rounded to a picometre, so that 2.5000000000000004 mm is 2.5."""
    return [decimal(round(float(value), 9) + 0.0) for value in values]


def _integer(value: str) -> str:
    match = re.fullmatch(r"[+-]?\d{1,11}", value.strip())
    return str(int(value)) if match and -(2**31) <= int(value) < 2**31 else ""


def _nothing(_value: str) -> str:
    return ""


_BY_VR: Mapping[str, Callable[[str], str]] = {
    "AS": _matching(r"\d{3}[DWMY]"),
    "DA": _date,
    "DS": lambda value: decimal(value) if "_" not in value else "",
    "IS": _integer,
    "TM": _matching(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?"),
    "UI": _matching(r"(?=.{1,64}$)\d+(\.\d+)+"),  # leading zeros are wrong but must still name the same study
}
