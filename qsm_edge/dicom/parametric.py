"""The susceptibility as a Parametric Map: float32 in ppm, exact. Opt-in, because few viewers show one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from qsm_edge.dicom import codes
from qsm_edge.dicom.common import RESEARCH_USE_ONLY, adopt, identity, quietly, save_whole
from qsm_edge.dicom.copied import ascii_text
from qsm_edge.dicom.uids import result_key, uid
from qsm_edge.dicom.write import KINDS, slices
from qsm_edge.types import Result

#: Added to the SeriesNumber of the susceptibility series.
SERIES_OFFSET = 20
WINDOW_PPM = (0.0, 0.4)


def write_parametric_map(result: Result, path: Path) -> Path:
    """Write ``result.chi_ppm`` to `path`; it appears complete or not at all.

    The same result gives the same bytes, but for the instance-creation time.
    """
    return save_whole(parametric_map(result), path)


def parametric_map(result: Result) -> Dataset:
    """The Parametric Map object of a result, its frames on the slices of the written series."""
    import highdicom
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.coding import Code

    chi_ppm = np.ascontiguousarray(result.chi_ppm, dtype=np.float32)
    images = list(slices(result, KINDS["chi"], sources=False))
    key = ("parametric map", *result_key(result), chi_ppm)
    version = ascii_text(result.provenance.version, "LO")
    reach = float(np.abs(chi_ppm).max())
    with quietly():
        mapping = RealWorldValueMapping(
            lut_label="CHI",
            lut_explanation="Magnetic Susceptibility in ppm",
            unit=Code(*codes.PPM),
            value_range=(-reach, reach),
            slope=1.0,
            intercept=0.0,
            quantity_definition=Code(*codes.MAGNETIC_SUSCEPTIBILITY),
        )
        window = highdicom.VOILUTTransformation(
            window_center=WINDOW_PPM[0], window_width=WINDOW_PPM[1], voi_lut_function="LINEAR_EXACT"
        )
        dataset = ParametricMap(
            source_images=images,
            pixel_array=chi_ppm,
            **identity(images[0], key, version, SERIES_OFFSET),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[window],
            derived_pixel_contrast="NONE",
            content_label="CHI",
            content_description="Magnetic susceptibility",
            series_description=f"QSM chi [ppm] - {RESEARCH_USE_ONLY}",
        )
        adopt(dataset, images[0], uid("dimensions", *key))
    return dataset
