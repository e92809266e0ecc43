"""What all objects that we write of one result have in common: patient, study, equipment, derivation, sources."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from qsm_edge.dicom import codes
from qsm_edge.dicom.copied import ascii_text, clean, copied, fit, text, texts
from qsm_edge.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, result_key, uid
from qsm_edge.types import Result, SourceInstance

MANUFACTURER, MODEL = "qsm-edge", "QSM"
RESEARCH_USE_ONLY = "research use only"
#: Manufacturer of the scanner in the nested description of it. dcm2niix takes the first manufacturer at any depth for
#: the vendor and scales by its rules, so that the name goes into the model. SoftwareVersions "syngo MR XA.." at
#: any depth makes it Siemens, so that the version goes into the description.
AS_IN_SOURCE = "(as in the source images)"
_REFERENCED_CLASS, _REFERENCED_INSTANCE = 0x00081150, 0x00081155
_OF_THE_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("BodyPartExamined", "Laterality", "PatientPosition", "SeriesDate", "SeriesTime"),
    "ContributingEquipmentSequence",
)


def common_header(result: Result) -> Dataset:
    """Everything of the output's header that depends neither on the kind of object nor on the slice.

    What the source says of patient and study is repeated even where it is empty: an invented value would part the map
    from its images in an archive. Only arrays that did not come from DICOM get a patient and a study of their own.
    """
    source, provenance = result.series.source, result.provenance
    d = copied(source.template)
    if source.template is None:
        d.PatientID, d.StudyID = f"QSM-{provenance.digest[:12].upper()}", "1"
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        said = clean(keyword, texts(source.template, keyword))
        setattr(d, keyword, said or uid(keyword, *result_key(result), result.chi_ppm))
    d.EchoTime = None
    d.Manufacturer, d.ManufacturerModelName = MANUFACTURER, MODEL
    d.SoftwareVersions = ascii_text(provenance.version, "LO")
    d.DerivationDescription = ascii_text(provenance.derivation, "ST")
    d.ImageComments = ascii_text(
        f"{RESEARCH_USE_ONLY.capitalize()}, not for diagnosis. Quantitative susceptibility mapping by {MANUFACTURER} "
        f"{provenance.version}, recipe {provenance.recipe_name} ({provenance.digest[:12]}).",
        "LT",
    )
    d.LossyImageCompression, d.BurnedInAnnotation, d.ContentQualification = "00", "NO", "RESEARCH"
    d.ContributingEquipmentSequence = [_scanner(source.template), _ourselves(result)]
    return d


def _scanner(template: Any) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [codes.code_item(codes.ACQUISITION_EQUIPMENT)]
    item.Manufacturer = AS_IN_SOURCE
    versions = texts(template, "SoftwareVersions")
    name = " ".join(part for part in (text(template, "Manufacturer"), text(template, "ManufacturerModelName")) if part)
    values = {
        "ManufacturerModelName": clean("ManufacturerModelName", [name] if name else []),
        **{
            keyword: clean(keyword, texts(template, keyword))
            for keyword in ("InstitutionName", "StationName", "DeviceSerialNumber")
        },
        "ContributionDescription": fit(f"Acquisition, software {' '.join(versions)}", "ST") if versions else "",
    }
    for keyword, value in values.items():
        if value:
            setattr(item, keyword, value)
    return item


def _ourselves(result: Result) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [codes.code_item(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, MODEL
    item.SoftwareVersions = ascii_text(result.provenance.version, "LO")
    item.ContributionDescription = ascii_text(f"Quantitative susceptibility mapping, {RESEARCH_USE_ONLY}", "ST")
    return item


def source_images(instances: Iterable[SourceInstance]) -> list[Dataset]:
    """SourceImageSequence: an item for every object, with the frames that were used of an enhanced one."""
    frames: dict[tuple[str, str], list[int]] = defaultdict(list)
    for instance in instances:
        frames[instance.sop_class_uid, instance.sop_instance_uid].append(instance.frame)
    items, purpose = [], codes.code_item(codes.SOURCE_IMAGE)
    for (sop_class, sop_instance), numbers in frames.items():
        item = _reference(sop_class, sop_instance)
        used = sorted({number for number in numbers if number > 0})
        if used:
            item.ReferencedFrameNumber = [str(number) for number in used]
        item.PurposeOfReferenceCodeSequence = [purpose]
        items.append(item)
    return items


def referenced_series(instances: Iterable[SourceInstance]) -> list[Dataset]:
    """ReferencedSeriesSequence: every object that is referred to once, below its series."""
    series: dict[str, dict[str, str]] = defaultdict(dict)
    for instance in instances:
        series[instance.series_uid][instance.sop_instance_uid] = instance.sop_class_uid
    items = []
    for series_uid, objects in series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_uid
        item.ReferencedInstanceSequence = []
        for sop_instance, sop_class in objects.items():
            item.ReferencedInstanceSequence.append(_reference(sop_class, sop_instance))
        items.append(item)
    return items


def _reference(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.add_new(_REFERENCED_CLASS, "UI", sop_class)
    item.add_new(_REFERENCED_INSTANCE, "UI", sop_instance)
    return item


def new_file(common: Dataset, sop_class: str, sop_instance_uid: str) -> FileDataset:
    """A file of its own with the elements of `common`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, sop_instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
    dataset = FileDataset("", dict(common.items()), preamble=b"\0" * 128, file_meta=meta)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, sop_instance_uid
    stamp(dataset)
    return dataset


def stamp(dataset: Dataset) -> None:
    """The only elements that differ between two runs on the same input."""
    now = datetime.now()
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Let pydicom and highdicom work on values that were checked already, without checking or warning again."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def identity(image: Dataset, key: tuple[Any, ...], version: str, series_offset: int) -> dict[str, Any]:
    """highdicom's arguments for an object of ours beside the susceptibility series of which `image` is one.

    `key` is what its UIDs follow from; its series number is that of the series plus `series_offset`.
    """
    return {
        "series_instance_uid": uid("series", *key),
        "series_number": int(image.SeriesNumber) + series_offset,
        "sop_instance_uid": uid("image", *key),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL,
        "software_versions": version,
        "device_serial_number": version,
        "specific_character_set": "ISO_IR 192",
    }


def adopt(dataset: Dataset, image: Dataset, dimensions_uid: str) -> None:
    """Give an object made by highdicom the header of our images, and no trace of the moment or of chance."""
    dataset.SpecificCharacterSet = image.SpecificCharacterSet
    for keyword in _OF_THE_STUDY:
        if keyword in image:
            dataset[keyword] = image[keyword]
    moments = ((image.get(f"{of}Date"), image.get(f"{of}Time")) for of in ("Content", "Acquisition", "Series", "Study"))
    dataset.ContentDate, dataset.ContentTime = next(((d, t) for d, t in moments if d and t), ("19000101", "000000"))
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = dimensions_uid
    for index in dataset.DimensionIndexSequence:
        index.DimensionOrganizationUID = dimensions_uid
    meta = dataset.file_meta
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
    stamp(dataset)


def save_whole(dataset: Dataset, path: Path) -> Path:
    """Write a dataset so that it appears under its name complete or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with quietly():
            dataset.save_as(part, enforce_file_format=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
