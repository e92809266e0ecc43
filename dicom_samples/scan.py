"""What every vendor's encoding is made of: a scan, one classic slice, an enhanced object and its frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from qsm_edge.types import Geometry
from qsm_edge.units import GAMMA_HZ_PER_T

MAGNITUDE, PHASE, REAL, IMAGINARY = "MPRI"
COMPONENT_NAME = {MAGNITUDE: "MAGNITUDE", PHASE: "PHASE", REAL: "REAL", IMAGINARY: "IMAGINARY"}


@dataclass(frozen=True)
class Scan:
    """What an encoding is made from: signal (echo, z, y, x) complex, TEs [s], B0 [T], a name that seeds the UIDs."""

    signal: np.ndarray
    geometry: Geometry
    echo_times_s: tuple[float, ...]
    b0_tesla: float
    name: str

    @property
    def slices(self) -> int:
        return int(self.geometry.shape[0])

    def uid(self, *key: object) -> str:
        """A UID below 2.25 out of the scan's name and `key`."""
        digest = hashlib.sha256("/".join(map(str, (self.name, *key))).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16], 'big')}"

    def magnitude(self) -> np.ndarray:
        """|signal| on 12 bits, the 99.95th percentile at 3600."""
        magnitude = np.abs(self.signal)
        return np.clip(np.round(magnitude * (3600 / top(magnitude))), 0, 4095).astype(np.uint16)

    def phase(self) -> np.ndarray:
        return np.angle(self.signal)


def top(magnitude: np.ndarray) -> float:
    """The bright end of the range, without its outliers."""
    value = float(np.percentile(magnitude, 99.95))
    return value if value > 0 else 1.0


def ds_strings(*values: float) -> Any:
    """The closest decimal strings of at most 16 characters: one, or a list of several."""
    strings = [format_number_as_ds(float(v)) for v in values]
    return strings[0] if len(strings) == 1 else strings


def item(elements: dict[str, Any]) -> Dataset:
    """A sequence item out of keywords and values."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _axes(geometry: Geometry) -> tuple[list[str], Callable[[int], list[str]]]:
    """ImageOrientationPatient, and ImagePositionPatient as a function of the slice."""
    unit = geometry.affine_lps[:3, :3] / np.asarray(geometry.voxel_mm)
    if not np.allclose(unit.T @ unit, np.eye(3), atol=1e-6):
        raise ValueError("the axes of the volume are not orthogonal")
    if not np.allclose(geometry.b0_dir_lps, (0, 0, 1)):
        raise ValueError("DICOM has no place for a B0 that is not along the patient's z axis")
    orientation = ds_strings(*unit[:, 2], *unit[:, 1])
    return orientation, lambda z: ds_strings(*(geometry.affine_lps @ [z, 0, 0, 1])[:3])


def _new(scan: Scan, sop_class: str, sop_uid: str) -> FileDataset:
    """A dataset with what every encoding says about patient, study and equipment."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, sop_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = "2.25.71265", "SYNTHETIC_HEAD"
    d = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    d.SpecificCharacterSet, d.SOPClassUID, d.SOPInstanceUID = "ISO_IR 100", sop_class, sop_uid
    d.StudyDate = d.SeriesDate = d.ContentDate = "20260105"
    d.StudyTime, d.SeriesTime, d.ContentTime = "101010.000000", "101500.000000", "102010.000000"
    d.AccessionNumber, d.Modality, d.ReferringPhysicianName = "", "MR", ""
    d.StudyDescription, d.ProtocolName, d.BodyPartExamined, d.PatientPosition = "Synthetic", "gre_qsm", "BRAIN", "HFS"
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "SYNTHETIC^HEAD", "SYN01", "", "O"
    d.StudyInstanceUID, d.StudyID, d.FrameOfReferenceUID = scan.uid("study"), "1", scan.uid("frame")
    d.PositionReferenceIndicator, d.AcquisitionNumber, d.MRAcquisitionType = "", 1, "3D"
    d.MagneticFieldStrength = ds_strings(scan.b0_tesla)
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = scan.geometry.shape[1:]
    return d


def _pixels(d: Dataset, stored: np.ndarray, *, bits: int) -> None:
    signed = stored.dtype.kind == "i"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, bits, bits - 1, int(signed)
    d.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()


def classic(
    scan: Scan, z: int, echo: int, component: str, *, series: int, stored: np.ndarray, bits: int = 12
) -> FileDataset:
    """One slice as MR Image Storage, as far as the vendors agree. `stored` is (echo, z, y, x)."""
    d = _new(scan, MRImageStorage, scan.uid("image", series, component, echo, z))
    orientation, position = _axes(scan.geometry)
    voxel = scan.geometry.voxel_mm
    d.AcquisitionDate, d.AcquisitionTime = "20260105", "101510.000000"
    d.SeriesInstanceUID, d.SeriesNumber = scan.uid("series", series), series
    d.ScanningSequence, d.SequenceVariant, d.ScanOptions = "GR", "SP", ""
    d.RepetitionTime, d.FlipAngle, d.NumberOfAverages = "40", "15", "1"
    d.EchoTime, d.EchoNumbers = ds_strings(round(1e3 * scan.echo_times_s[echo], 6)), echo + 1
    d.EchoTrainLength = len(scan.echo_times_s)
    d.ImagingFrequency, d.ImagedNucleus = ds_strings(round(GAMMA_HZ_PER_T * scan.b0_tesla * 1e-6, 6)), "1H"
    d.SliceThickness = d.SpacingBetweenSlices = ds_strings(voxel[0])
    d.PixelSpacing = ds_strings(*voxel[1:])
    d.ImageOrientationPatient, d.ImagePositionPatient = orientation, position(z)
    normal = np.cross(np.asarray(orientation[:3], float), np.asarray(orientation[3:], float))
    d.SliceLocation = ds_strings(float(np.asarray(position(z), float) @ normal))
    _pixels(d, stored[echo, z], bits=bits)
    return d


def enhanced(scan: Scan, series: int, instance: int, component: str) -> FileDataset:
    """The root of an Enhanced MR Image Storage object, as far as Siemens and Philips agree."""
    d = _new(scan, EnhancedMRImageStorage, scan.uid("object", series, instance))
    d.SeriesInstanceUID, d.SeriesNumber, d.InstanceNumber = scan.uid("series", series), series, instance
    d.AcquisitionDateTime, d.AcquisitionDuration = "20260105101510.000000", 400.0
    d.PixelPresentation, d.VolumetricProperties = "MONOCHROME", "VOLUME"
    d.VolumeBasedCalculationTechnique, d.ComplexImageComponent, d.AcquisitionContrast = "NONE", component, "T1"
    d.ContentQualification, d.EchoPulseSequence, d.MultiPlanarExcitation = "PRODUCT", "GRADIENT", "NO"
    d.PhaseContrast, d.TimeOfFlightContrast, d.EchoPlanarPulseSequence = "NO", "NO", "NO"
    d.SteadyStatePulseSequence, d.SaturationRecovery, d.SpectrallySelectedSuppression = "NONE", "NO", "NONE"
    d.GeometryOfKSpaceTraversal, d.SegmentedKSpaceTraversal, d.ResonantNucleus = "RECTILINEAR", "SINGLE", "1H"
    d.BurnedInAnnotation, d.LossyImageCompression, d.PresentationLUTShape = "NO", "00", "IDENTITY"
    d.AcquisitionContextSequence = []
    return d


def frame_groups(scan: Scan, z: int, echo: int, component: str, frame_type: list[str]) -> Dataset:
    """The functional groups of one frame, as far as Siemens and Philips agree."""
    orientation, position = _axes(scan.geometry)
    voxel = scan.geometry.voxel_mm
    frame = item(dict(MREchoSequence=[item(dict(EffectiveEchoTime=round(1e3 * scan.echo_times_s[echo], 6)))]))
    frame.MRImageFrameTypeSequence = [
        item(
            dict(
                FrameType=frame_type,
                PixelPresentation="MONOCHROME",
                VolumetricProperties="VOLUME",
                VolumeBasedCalculationTechnique="NONE",
                ComplexImageComponent=COMPONENT_NAME[component],
                AcquisitionContrast="T1",
            )
        )
    ]
    frame.FrameContentSequence = [item(dict(StackID="1", InStackPositionNumber=z + 1, TemporalPositionIndex=1))]
    frame.PlanePositionSequence = [item(dict(ImagePositionPatient=position(z)))]
    frame.PlaneOrientationSequence = [item(dict(ImageOrientationPatient=orientation))]
    frame.PixelMeasuresSequence = [
        item(
            dict(
                SliceThickness=ds_strings(voxel[0]),
                SpacingBetweenSlices=ds_strings(voxel[0]),
                PixelSpacing=ds_strings(*voxel[1:]),
            )
        )
    ]
    return frame


def multiframe(
    d: Dataset, scan: Scan, *, frames: list[Dataset], pointers: Iterable[tuple[int, int]], stored: np.ndarray
) -> None:
    """Attach shared and per-frame groups, the dimensions and the pixels (frame, y, x)."""
    shared = item(dict(MRImagingModifierSequence=[item(dict(PixelBandwidth="260"))]))
    shared.MRImagingModifierSequence[0].TransmitterFrequency = round(GAMMA_HZ_PER_T * scan.b0_tesla * 1e-6, 6)
    timing = item(
        dict(RepetitionTime="40", FlipAngle="15", EchoTrainLength=len(scan.echo_times_s), RFEchoTrainLength=0)
    )
    timing.GradientEchoTrainLength = 1
    shared.MRTimingAndRelatedParametersSequence = [timing]
    shared.MRAveragesSequence = [item(dict(NumberOfAverages="1"))]
    organisation = scan.uid("dimensions", d.SOPInstanceUID)
    d.DimensionOrganizationSequence = [item(dict(DimensionOrganizationUID=organisation))]
    d.DimensionIndexSequence = [
        item(dict(DimensionOrganizationUID=organisation, DimensionIndexPointer=index, FunctionalGroupPointer=group))
        for index, group in pointers
    ]
    d.NumberOfFrames = len(frames)
    d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence = [shared], frames
    _pixels(d, stored, bits=12)
