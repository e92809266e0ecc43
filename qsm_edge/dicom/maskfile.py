"""A mask as a DICOM Segmentation -> bool array on the grid of the images, placed by position, never resampled."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from qsm_edge.dicom.privacy import without_patient, words_of
from qsm_edge.errors import InputRefused
from qsm_edge.types import Geometry

SEGMENTATION, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
BRAIN_CODES = {("12738006", "SCT"), ("T-A0100", "SRT"), ("T-A0100", "SNM3"), ("50801", "FMA")}
_BRAIN_NAME = re.compile(r"\bbrain(?!\W*stem)", re.IGNORECASE)
MAX_FRAMES, MAX_VOXELS = 100_000, 500_000_000


@dataclass(frozen=True)
class _Plane:
    """The first pixel of a frame, the steps along its columns and rows [mm], and its segment, None in a label map."""

    position: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    step_mm: float
    segment: int | None


def tolerance_mm(geometry: Geometry) -> float:
    """How far a pixel of the mask may lie from the image's voxel: 0.05 mm, or 2 % of a voxel where that is more."""
    return max(0.05, 0.02 * min(geometry.voxel_mm))


def read_seg_mask(path: Path, geometry: Geometry) -> np.ndarray:
    """The mask in a DICOM Segmentation as bool (z, y, x) on `geometry`.

    Of several segments those that are named or coded as the brain count, or all of them where none is. Binary,
    fractional (above one half is inside) and label-map objects; frames of any orientation that lie on the grid, in any
    order, absent ones empty.

    Raises
    ------
    InputRefused
        ``mask_invalid`` no readable Segmentation; ``mask_grid`` a frame does not lie on the grid, or pixels that are
        set lie outside it; ``mask_empty`` nothing inside.
    """
    where = without_patient(Path(path).name, ())
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            where = without_patient(where, words_of(*(str(dataset.get(k, "")) for k in ("PatientName", "PatientID"))))
            frames, chosen = _frames(dataset), _brain_segments(dataset)
            places = [_place(dataset, number) for number in range(len(frames))]
    except InputRefused as error:
        raise InputRefused(error.code, error.what, where=where, got=error.got, wanted=error.wanted) from error
    except Exception as error:  # a foreign file can fail in any way a parser can
        raise InputRefused(
            "mask_invalid", where=where, got=type(error).__name__, wanted="a DICOM Segmentation of planes"
        ) from error
    mask = np.zeros(geometry.shape, bool)
    for frame, plane in zip(frames, places, strict=True):
        inside = np.isin(frame, list(chosen)) if plane.segment is None else (frame > 0) & (plane.segment in chosen)
        if inside.any():
            _add(mask, inside, geometry, plane, where)
    if not mask.any():
        raise InputRefused("mask_empty", where=where, got=f"{len(frames)} frames, {len(chosen)} segments")
    return mask


def _add(mask: np.ndarray, inside: np.ndarray, geometry: Geometry, plane: _Plane, where: str) -> None:
    """Set the pixels of one frame (rows, columns) in `mask`."""
    affine = np.eye(4)
    normal = np.cross(plane.columns, plane.rows)
    normal /= np.linalg.norm(normal)
    along = int(np.argmax(np.abs(geometry.affine_lps[:3, :3].T @ normal) / np.asarray(geometry.voxel_mm)))
    step = geometry.voxel_mm[along]  # one plane has no step of its own
    affine[:3, :3] = np.stack([normal * step, plane.rows, plane.columns], axis=1)
    affine[:3, 3] = plane.position
    lay = geometry.lay(affine, (1, *inside.shape))
    if not lay.miss_mm <= tolerance_mm(geometry) or abs((plane.step_mm or step) - step) > tolerance_mm(geometry):
        miss = "other axes or pixel size" if np.isinf(lay.miss_mm) else f"{lay.miss_mm:.3g} mm beside the voxels"
        got = f"{miss}, {plane.step_mm or step:.4g} mm from plane to plane"
        wanted = f"within {tolerance_mm(geometry):.2g} mm, {step:.4g} mm from plane to plane"
        raise InputRefused("mask_grid", where=where, got=got, wanted=wanted)
    at = np.argwhere(lay.turn(inside[None])) + np.asarray(lay.start)
    if (at < 0).any() or (at >= np.asarray(geometry.shape)).any():
        raise InputRefused(
            "mask_grid",
            "the mask reaches beyond the images",
            where=where,
            got=f"indices {tuple(at.min(0).tolist())} to {tuple(at.max(0).tolist())} (z, y, x)",
            wanted=f"within {geometry.shape}",
        )
    mask[tuple(at.T)] = True


def _frames(dataset: Dataset) -> np.ndarray:
    """Frames (frame, rows, columns): 0 and 1, or the segment's number in a label map."""
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class not in (SEGMENTATION, LABEL_MAP):
        wanted = "SOP class Segmentation Storage or Label Map Segmentation Storage"
        raise InputRefused("mask_invalid", got=f"SOP class {sop_class[:64]}", wanted=wanted)
    count, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    if not 0 < count <= MAX_FRAMES or count * rows * columns > MAX_VOXELS:
        raise InputRefused("mask_invalid", "the mask claims a size beyond reason", got=f"{count} x {rows} x {columns}")
    frames = np.asarray(dataset.pixel_array).reshape(count, rows, columns)
    if str(dataset.get("SegmentationType", "BINARY")) == "FRACTIONAL":
        frames = frames > 0.5 * float(dataset.MaximumFractionalValue)
    return frames


def _brain_segments(dataset: Dataset) -> set[int]:
    """The numbers of the segments that are the brain; all where none says so. Number 0 is a label map's background."""
    segments = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
    segments.pop(0, None)
    brains = {number for number, item in segments.items() if _is_brain(item)}
    return brains or set(segments)


def _is_brain(segment: Dataset) -> bool:
    codes = [
        (str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", "")))
        for code in segment.get("SegmentedPropertyTypeCodeSequence") or ()
    ]
    names = (str(segment.get(keyword, "")) for keyword in ("SegmentLabel", "SegmentDescription"))
    return any(code in BRAIN_CODES for code in codes) or any(_BRAIN_NAME.search(name) for name in names)


def _place(dataset: Dataset, number: int) -> _Plane:
    """Where a frame lies, and whose it is."""
    own, shared = dataset.PerFrameFunctionalGroupsSequence[number], dataset.get("SharedFunctionalGroupsSequence")

    def group(keyword: str) -> Any:
        return (own if keyword in own else shared[0])[keyword].value[0]

    orientation = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, dtype=np.float64)
    measures = group("PixelMeasuresSequence")
    spacing = np.array(measures.PixelSpacing, dtype=np.float64)
    if not (np.isfinite(orientation).all() and np.linalg.norm(np.cross(orientation[:3], orientation[3:])) > 0.5):
        raise ValueError("degenerate orientation")
    return _Plane(
        position=np.array(group("PlanePositionSequence").ImagePositionPatient, dtype=np.float64),
        columns=orientation[:3] * spacing[1],
        rows=orientation[3:] * spacing[0],
        step_mm=abs(float(measures.get("SpacingBetweenSlices") or 0)),
        segment=None
        if str(dataset.SOPClassUID) == LABEL_MAP
        else int(group("SegmentIdentificationSequence").ReferencedSegmentNumber),
    )
