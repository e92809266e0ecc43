"""What an acquisition is called and what its output repeats: a classic-layout dataset, a slug, the facts.

The template holds what the source headers say, enhanced ones flattened under the classic names; it is the writer that
cleans and chooses. Nothing here lets a patient's name into a slug, a fact or a message.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from qsm_edge.dicom.records import COMPONENT_NAMES, Image, Plan
from qsm_edge.errors import InputRefused
from qsm_edge.types import Geometry, Source, SourceInstance

_MULTI_FRAME = (0x52009229, 0x52009230, 0x00280008, 0x00209221, 0x00209222)
#: Sequences and bulk are of no use to the output.
_NO_VALUES = ("SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN")
#: Enhanced elements under their classic names, with how the value changes.
_CLASSIC_NAMES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "TransmitterFrequency": ("ImagingFrequency", {}),
    "ResonantNucleus": ("ImagedNucleus", {}),
    "PulseSequenceName": ("SequenceName", {}),
    "EchoPulseSequence": ("ScanningSequence", {"GRADIENT": "GR", "SPIN": "SE", "BOTH": "GR"}),
    "InPlanePhaseEncodingDirection": ("InPlanePhaseEncodingDirection", {"COLUMN": "COL"}),
}


def read_template(image: Image) -> Dataset:
    """The header of one image in the classic layout: standard elements only, no pixels, no sequences.

    Raises InputRefused corrupt_header where pydicom cannot read it, unreadable_file where nobody can.
    """
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            source = pydicom.dcmread(image.file.path, stop_before_pixels=True, force=True)
            out = Dataset()
            _take(out, source)
            if image.frame:
                for groups in (*_shared_groups(source), _frame_groups(source, image.frame)):
                    for element in groups:
                        if element.VR == "SQ" and not element.tag.is_private and element.value:
                            _take(out, element.value[0])
                _classic_names(out)
            return out
    except OSError as error:
        what = "the file cannot be read"
        raise InputRefused("unreadable_file", what, where=image.file.shown, got=error.strerror or "") from None
    except Exception as error:  # pydicom raises whatever its innards do
        raise InputRefused("corrupt_header", where=image.file.shown, got=type(error).__name__) from None


def _shared_groups(source: Dataset) -> list[Dataset]:
    """The shared functional groups; every group may stand in the frames instead, and the sequence be empty or absent."""
    return list(source.get("SharedFunctionalGroupsSequence") or ())[:1]


def _frame_groups(source: Dataset, frame: int) -> Dataset:
    groups: Dataset = source.PerFrameFunctionalGroupsSequence[frame - 1]
    return groups


def _take(out: Dataset, source: Dataset) -> None:
    """Copy standard elements that are no sequences, leaving out any that cannot be read."""
    for tag in list(source.keys()):
        if tag.is_private or tag.group in (0x0002, 0x7FE0, 0xFFFA, 0xFFFC) or tag in _MULTI_FRAME:
            continue
        if source.get_item(tag).VR in _NO_VALUES:
            continue
        try:
            element = source[tag]
        except Exception:  # a value that pydicom cannot convert is as good as absent
            continue
        if element.VR not in _NO_VALUES:
            out.add(element)


def _classic_names(out: Dataset) -> None:
    for keyword, (classic, values) in _CLASSIC_NAMES.items():
        if keyword in out:
            value = out[keyword].value
            setattr(out, classic, values.get(str(value), value))
    stamp = re.match(r"(\d{8})(\d{6}(?:\.\d{1,6})?)", str(out.get("AcquisitionDateTime", "")))
    if stamp is not None:
        out.AcquisitionDate, out.AcquisitionTime = stamp.groups()


def make_source(plan: Plan, geometry: Geometry, unit: tuple[Image, ...], b0_tesla: float, template: Dataset) -> Source:
    """Everything about an acquisition but its pixels."""
    first = next(iter(plan.images.values()))[0][0]
    count = len(next(iter(plan.images.values()))[0])
    slices = tuple(
        tuple(_instance(echo[z]) for echoes in plan.images.values() for echo in echoes) for z in range(count)
    )
    series = {image.series_uid: image for image in unit}
    numbered = sorted((image.series_number, image.description) for image in series.values())
    voxel = tuple(round(v, 4) for v in geometry.voxel_mm)
    plane, oblique = _plane(geometry)
    facts: dict[str, Any] = {
        "vendor": first.vendor,
        "encoding": first.encoding,
        "components": [COMPONENT_NAMES[part] for part in plan.images],
        "echo_times_ms": list(plan.echo_times_ms),
        "matrix": list(geometry.shape),
        "voxel_mm": list(voxel),
        "plane": plane,
        "oblique_degrees": oblique,
        "b0_direction": [round(v, 6) for v in geometry.b0_dir],
        "b0_tesla": round(b0_tesla, 6),
        "b0_nominal_tesla": first.field_tesla,
        "series": [{"number": number, "description": text} for number, text in numbered],
        "distortion_correction": first.distortion or "not told",
        "completeness": f"{len(plan.images)} components x {len(plan.echo_times_ms)} echoes x {count} slices, complete",
        "files": len({image.file.path for echoes in plan.images.values() for echo in echoes for image in echo}),
    }
    return Source(first.vendor, first.encoding, slices, template, slug(unit), facts)


def _instance(image: Image) -> SourceInstance:
    return SourceInstance(image.file.sop_class_uid, image.file.sop_instance_uid, image.series_uid, image.frame)


def _plane(geometry: Geometry) -> tuple[str, float]:
    """The patient plane closest to the slices, and the angle [degrees] between the two."""
    normal = np.abs(geometry.affine_lps[:3, 0]) / geometry.voxel_mm[0]
    closest = int(np.argmax(normal))
    angle = math.degrees(math.acos(min(1.0, float(normal[closest]))))
    return ("sagittal", "coronal", "transverse")[closest], round(angle, 2)


def slug(unit: tuple[Image, ...]) -> str:
    """A folder name for an acquisition: series number, description, eight digits of a digest of what it is made of."""
    first = min(unit, key=lambda image: image.series_number)
    plain = unicodedata.normalize("NFKD", first.description).encode("ascii", "ignore").decode()
    words = "_".join(re.findall(r"[a-z0-9]+", plain.lower()))[:40].strip("_") or "gre"
    parts = sorted({f"{i.file.sop_instance_uid}/{i.frame}" for i in unit})
    digest = hashlib.sha256("\n".join([first.study_uid, *parts]).encode()).hexdigest()
    return f"{min(first.series_number, 99999):04d}_{words}_{digest[:8]}"
