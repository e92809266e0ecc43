"""The brain mask as a DICOM Segmentation, one binary segment.

Beside a susceptibility series it refers to that series and not to the acquired images: there is exactly one instance for
every frame, whatever the vendor's encoding was, and both travel together. A mask by itself refers to the images that it
was made on, the magnitude (or real) images of the first echo. The frame of reference is that of the acquisition either
way, so that it can be laid on all of its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from qsm_edge.dicom import codes
from qsm_edge.dicom.common import (
    MANUFACTURER,
    RESEARCH_USE_ONLY,
    adopt,
    identity,
    quietly,
    referenced_series,
    save_whole,
    source_images,
)
from qsm_edge.dicom.copied import ascii_text
from qsm_edge.dicom.uids import result_key, uid
from qsm_edge.dicom.write import KINDS, slices
from qsm_edge.errors import InternalError
from qsm_edge.types import GreSeries, Provenance, Quality, Result, Source, SourceInstance

#: Added to the SeriesNumber of the susceptibility series, or of the one that there would be.
SERIES_OFFSET, ALONE_OFFSET = 10, 11


def write_seg(result: Result, path: Path) -> Path:
    """Write ``result.brain`` to `path`; it appears complete or not at all.

    The same result gives the same bytes, but for the instance-creation time.
    """
    return save_whole(segmentation(result), path)


def write_mask(series: GreSeries, mask: np.ndarray, provenance: Provenance, path: Path) -> Path:
    """Write a mask that has no susceptibility series beside it to `path`; it appears complete or not at all.

    mask : (z, y, x) on the grid of `series`, whose source names the acquired images. provenance : of the mask alone.
    The same mask of the same images gives the same bytes, but for the instance-creation time.
    """
    return save_whole(mask_segmentation(series, mask, provenance), path)


def segmentation(result: Result) -> Dataset:
    """The Segmentation object of a result."""
    images = list(slices(result, KINDS["chi"], sources=False))
    key = ("seg", *result_key(result), _voxels(result.brain), images[0].SeriesInstanceUID)
    description = "Brain mask of a susceptibility map"
    return _segmentation(result, images, key, offset=SERIES_OFFSET, description=description)


def mask_segmentation(series: GreSeries, mask: np.ndarray, provenance: Provenance) -> Dataset:
    """The Segmentation object of a mask by itself, its frames on the first echo's images."""
    acquired = first_echo(series.source, len(series.echo_times_s))
    if len(acquired) != mask.shape[0]:
        got = f"{len(acquired)} images for {mask.shape[0]} slices"
        raise InternalError("internal", "a mask without the images that it was made on", got=got)
    nothing = np.broadcast_to(np.float32(0), mask.shape)
    maps = dict.fromkeys(("chi_ppm", "field_ppm", "local_ppm", "residual", "weight"), nothing)
    unmapped = Result(
        series=series,
        mask=mask,
        brain=mask,
        r2star_per_s=None,
        quality=Quality({}, (), ""),
        provenance=provenance,
        extras=(),
        **maps,
    )
    images = list(slices(unmapped, KINDS["chi"], sources=False))  # of an empty map: they place the frames, no more
    key = ("mask", *result_key(unmapped), _voxels(mask))
    dataset = _segmentation(unmapped, images, key, offset=ALONE_OFFSET, description="Brain mask")
    with quietly():
        _refer(dataset, {image.SOPInstanceUID: [one] for image, one in zip(images, acquired, strict=True)})
        contribution = ascii_text(f"Brain mask, {RESEARCH_USE_ONLY}", "ST")
        dataset.ContributingEquipmentSequence[-1].ContributionDescription = contribution
    return dataset


def first_echo(source: Source, echoes: int) -> list[SourceInstance]:
    """The magnitude image of the shortest echo time of every slice; the real one where there is no magnitude.

    A slice names its images component by component, each in the order of the echo times. [] for other sources.
    """
    components = [str(name) for name in source.facts.get("components", ())]
    shown = next((name for name in ("magnitude", "real") if name in components), None)
    if shown is None or any(len(images) != echoes * len(components) for images in source.slices):
        return []
    return [images[echoes * components.index(shown)] for images in source.slices]


def _refer(dataset: Dataset, acquired: dict[str, list[SourceInstance]]) -> None:
    """Put acquired images in place of the slices that placed the frames, wherever these are referred to."""
    everything = [image for images in acquired.values() for image in images]
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        for item in groups.DerivationImageSequence[0].SourceImageSequence:
            (true,) = source_images(acquired[item.ReferencedSOPInstanceUID])
            del true.PurposeOfReferenceCodeSequence  # the item has its own
            item.update(true)
    dataset.SourceImageSequence = source_images(everything)
    for item in dataset.SourceImageSequence:
        del item.PurposeOfReferenceCodeSequence
    dataset.ReferencedSeriesSequence = referenced_series(everything)


def _voxels(mask: np.ndarray) -> np.ndarray:
    voxels = np.ascontiguousarray(mask, dtype=bool)
    if not voxels.any():
        raise InternalError("internal", "a result without a mask", wanted="at least one voxel")
    return voxels


def _segmentation(
    result: Result, images: Sequence[Dataset], key: tuple[Any, ...], *, offset: int, description: str
) -> Dataset:
    """``result.brain`` on the frames of `images`, a dataset for every slice; the UIDs follow from `key`."""
    import highdicom
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.coding import Code

    version = ascii_text(result.provenance.version, "LO")
    method = next((record.method for record in result.provenance.stages if record.stage in ("mask", "masking")), "")
    algorithm_type, family = _how(method)
    with quietly():
        segment = SegmentDescription(
            segment_number=1,
            segment_label="Brain",
            segmented_property_category=Code(*codes.ANATOMICAL_STRUCTURE),
            segmented_property_type=Code(*codes.BRAIN),
            algorithm_type=algorithm_type,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=ascii_text(f"{MANUFACTURER} mask {method}".strip(), "LO"), family=Code(*family), version=version
            ),
            tracking_uid=uid("tracking", *key),
            tracking_id=f"{MANUFACTURER} brain",
        )
        dataset = Segmentation(
            source_images=images,
            pixel_array=_voxels(result.brain).astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[segment],
            **identity(images[0], key, version, offset),
            content_label="BRAIN_MASK",
            content_description=description,
            series_description=f"QSM brain mask - {RESEARCH_USE_ONLY}",
        )
        adopt(dataset, images[0], uid("dimensions", *key))
    return dataset


def _how(method: str) -> tuple[str, codes.Code]:
    """SegmentAlgorithmType and the family of the algorithm; how a mask from outside was made is not known."""
    if method == "network":
        return "AUTOMATIC", codes.ARTIFICIAL_INTELLIGENCE
    if method == "threshold":
        return "AUTOMATIC", codes.MORPHOLOGICAL_OPERATIONS
    return "SEMIAUTOMATIC", codes.MANUAL_PROCESSING
