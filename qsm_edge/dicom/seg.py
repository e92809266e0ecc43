"""The brain mask as a DICOM Segmentation, one binary segment on the frames of the written susceptibility series.

It refers to that series and not to the acquired images: there is exactly one instance for every frame, whatever the
vendor's encoding was, and both travel together. The frame of reference is that of the acquisition, so that it can be
laid on all of its images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from qsm_edge.dicom import codes
from qsm_edge.dicom.common import MANUFACTURER, RESEARCH_USE_ONLY, adopt, identity, quietly, save_whole
from qsm_edge.dicom.copied import ascii_text
from qsm_edge.dicom.uids import result_key, uid
from qsm_edge.dicom.write import KINDS, slices
from qsm_edge.errors import InternalError
from qsm_edge.types import Result

#: Added to the SeriesNumber of the susceptibility series.
SERIES_OFFSET = 10


def write_seg(result: Result, path: Path) -> Path:
    """Write ``result.brain`` to `path`; it appears complete or not at all.

    The same result gives the same bytes, but for the instance-creation time.
    """
    return save_whole(segmentation(result), path)


def segmentation(result: Result) -> Dataset:
    """The Segmentation object of a result."""
    import highdicom
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.coding import Code

    mask = np.ascontiguousarray(result.brain, dtype=bool)
    if not mask.any():
        raise InternalError("internal", "a result without a mask", wanted="at least one voxel")
    images = list(slices(result, KINDS["chi"], sources=False))
    key = ("seg", *result_key(result), mask, images[0].SeriesInstanceUID)
    version = ascii_text(result.provenance.version, "LO")
    method = next((record.method for record in result.provenance.stages if record.stage in ("mask", "masking")), "")
    algorithm_type, family = _how(method)
    with quietly():
        description = SegmentDescription(
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
            pixel_array=mask.astype(np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=[description],
            **identity(images[0], key, version, SERIES_OFFSET),
            content_label="BRAIN_MASK",
            content_description="Brain mask of a susceptibility map",
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
