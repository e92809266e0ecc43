"""A small picture of the susceptibility map, for lists of results: one slice in each direction, nothing written on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qsm_edge.report.facts import windows
from qsm_edge.report.pictures import View, mosaic
from qsm_edge.types import Result

#: Coarser than the report's pictures: some 20 kB for a head.
PIXEL_MM = 1.5


def preview_png(result: Result) -> bytes:
    """An axial, a coronal and a sagittal slice through the middle of the brain, on the report's grey window, as PNG.

    Black outside the map's mask, so that nothing of a face is on it.
    """
    brain, mask = np.asarray(result.brain, dtype=bool), np.asarray(result.mask, dtype=bool)
    view = replace(View.around(brain | mask, result.series.geometry), pixel_mm=PIXEL_MM)
    panels = view.panels("axial", (0.5,)) + view.panels("coronal", (0.5,)) + view.panels("sagittal", (0.5,))
    window = windows(result.series.b0_tesla)["chi_ppm"]
    chi_ppm = np.where(mask, result.chi_ppm, 0)  # what lies outside must not shine in at the rim
    return mosaic(view, chi_ppm, panels, window, columns=3, within=mask).png
