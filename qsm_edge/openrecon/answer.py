"""Susceptibility -> MRD images: as they came, slice by slice or as a volume, 16 bits signed, 1 ppb a unit.

Each answer takes place, header and attributes of the image that it lies on (first echo, magnitude or complex), so that the
scanner makes DICOM of it like of that one; what would change the values, or say that they are something else, is replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from qsm_edge import __version__
from qsm_edge.dicom.common import RESEARCH_USE_ONLY
from qsm_edge.dicom.records import MAGNITUDE, REAL
from qsm_edge.dicom.write import KINDS, stored_values
from qsm_edge.errors import InputRefused
from qsm_edge.openrecon import mrd
from qsm_edge.openrecon.collect import Acquisition
from qsm_edge.openrecon.mrd import MrdImage
from qsm_edge.openrecon.wire import RawImage
from qsm_edge.types import Result

_CHI = KINDS["chi"]
#: Of the source image alone: its scale and window, its echo, and names that only one object may have.
_ITS_OWN = (
    "RescaleType",
    "EchoTime",
    "LUTFileName",
    "DicomJson",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
)
_KEEP_GEOMETRY = {"Keep_image_geometry": ["1"]}


def chi_images(acquisition: Acquisition, result: Result) -> Iterator[RawImage]:
    """The susceptibility series, in the order of space, as a series of its own."""
    component = MAGNITUDE if MAGNITUDE in acquisition.plan.images else REAL
    stored = stored_values(result.chi_ppm, _CHI)
    volumes: dict[int, np.ndarray] = {}
    for z, record in enumerate(acquisition.plan.images[component][0]):
        index, slice_ = acquisition.plane_of(record)
        image = acquisition.images[index]
        volumes.setdefault(index, np.zeros(image.values.shape[1:], dtype=np.int16))[slice_] = stored[z]
    series = 1 + max(int(image.head.image_series_index) for image in acquisition.images)
    for number, (index, values) in enumerate(volumes.items(), 1):
        source = acquisition.images[index]
        head = type(source.head).from_buffer_copy(source.head)
        head.image_type, head.contrast = mrd.MAGNITUDE, 0
        head.image_index, head.image_series_index = number, min(series, 0xFFFF)
        yield mrd.written(head, _said_of(source, result), values)


def _said_of(source: MrdImage, result: Result) -> mrd.Attributes:
    """The attributes of an answer."""
    head = source.head
    center, width = _CHI.window
    kept = {name: values for name, values in source.attributes.items() if name not in _ITS_OWN}
    directions = {"ImageRowDir": head.read_dir, "ImageColumnDir": head.phase_dir, "ImageSliceDir": head.slice_dir}
    placed = {name: [repr(float(part)) for part in field] for name, field in directions.items() if name not in kept}
    return {
        **kept,
        **placed,
        **_KEEP_GEOMETRY,
        "DataRole": ["Image", "Quantitative"],
        "ImageProcessingHistory": ["qsm-edge", __version__],
        "ImageType": ["QSM"],
        "ImageComments": [
            f"{_CHI.description} [ppb]",
            f"qsm-edge {__version__}",
            result.quality.verdict,
            RESEARCH_USE_ONLY,
        ],
        "SequenceDescriptionAdditional": ["QSM_ppb"],
        "SeriesDescriptionAdditional": ["QSM_ppb"],
        "RescaleSlope": ["1"],
        "RescaleIntercept": ["0"],
        "WindowCenter": [str(center)],
        "WindowWidth": [str(width)],
    }


def originals(images: Iterable[RawImage]) -> Iterator[RawImage]:
    """What came, as it came, marked so that the scanner does not turn it again."""
    for image in images:
        try:
            yield mrd.with_attributes(image, {**mrd.read_attributes(image.attributes), **_KEEP_GEOMETRY})
        except InputRefused:  # attributes that are no XML: they stay what they are
            yield image
