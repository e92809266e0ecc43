"""A head from formulas, for where there are no label maps: continuous integration, and a look at how the pieces fit.

Coarser and simpler than a real head; a network trained on it alone is not for use.
"""

from __future__ import annotations

import numpy as np

from dicom_samples.head import capsule, ellipsoid, folds, mirrored, union
from export.anatomy import CODE, Anatomy, describe

SPACING_MM = 2.0
SHAPE = (120, 120, 96)


def procedural(seed: int) -> Anatomy:
    """Head number `seed`: the same seed gives the same bits. Axes S, P, L."""
    rng = np.random.default_rng(seed)
    middle = (np.array(SHAPE) - 1) / 2 + (8, 0, 0)  # the brain sits above the middle
    z, y, x = ((np.arange(n, dtype=np.float32) - c) * SPACING_MM for n, c in zip(SHAPE, middle, strict=True))
    a, b, c = (float(s) for s in rng.normal(1, 0.05, 3))
    z, y, x = np.meshgrid(z / a, y / b, x / c, indexing="ij")
    points = (x, y, z)  # x to the left, y to the back, z up
    index = np.zeros(SHAPE, np.uint8)

    def paint(name: str, where: np.ndarray) -> None:
        index[where] = CODE[name]

    sided = (np.abs(x), y, z)
    cerebrum = union(
        ellipsoid(points, (0, 0, 8), (64, 82, 58)), ellipsoid(sided, (38, -8, -22), (24, 40, 22)), blend_mm=14
    )
    cerebellum = ellipsoid(sided, (22, 46, -42), (28, 28, 22))
    stem = union(ellipsoid(points, (0, 18, -34), (15, 14, 20)), capsule(points, (0, 20, -30), (0, 30, -68), 8.5))
    cord = capsule(points, (0, 30, -68), (0, 36, -140), 7.0)
    brain = union(cerebrum, cerebellum, stem, blend_mm=5)
    cavity = union(brain, ellipsoid(points, (0, 26, -40), (44, 42, 26)), blend_mm=10) - float(rng.uniform(2, 5))
    skull = cavity - float(rng.uniform(4, 8))
    face = ellipsoid(points, (0, -52, -58), (46, 36, 46))
    scalp = union(
        skull - float(rng.uniform(4, 9)), face - 7, capsule(points, (0, 24, -70), (0, 34, -180), 56), blend_mm=16
    )
    paint("skin", scalp < 0)
    paint("soft", (scalp < -3) & (skull >= 0))
    paint("bone", skull < 0)
    paint("marrow", (skull < -2) & (cavity > 2) & (z > -5))
    paint("csf", (cavity < 0) | (capsule(points, (0, 28, -60), (0, 36, -140), 11) < 0))
    for centre, axes in (
        ((8, -84, -6), (14, 5, 9)),
        ((7, -40, -40), (9, 13, 9)),
        ((30, -64, -70), (14, 16, 15)),
        ((51, 20, -46), (6, 10, 9)),
    ):
        paint("air", (mirrored(points, centre, axes) < 0) & (cavity > 1))
    paint("eye", mirrored(points, (32, -74, -34), (12, 12, 12)) < 0)
    paint("sinus", (capsule(points, (0, -40, 66), (0, 60, 58), 4) < 0) & (cavity < 3))
    paint("cord", cord < 0)
    sulcus = folds(points, float(rng.uniform(15, 21)), rng.uniform(0, 6, 5).tolist())
    tissue = (cerebrum < 0) & ~((sulcus < 1.2) & (cerebrum > -12))
    paint("grey", tissue)
    paint("white", tissue & (cerebrum < -4) & ~((sulcus < 4) & (cerebrum > -16)))
    paint("cerebellar_grey", cerebellum < 0)
    paint("cerebellar_white", cerebellum < -9)
    paint("brainstem", stem < 0)
    for name, centre, axes in (
        ("thalamus", (11, 13, 2), (9, 15, 9)),
        ("caudate", (14, -20, 9), (5, 11, 9)),
        ("putamen", (27, -5, 1), (6, 15, 9)),
        ("pallidum", (19, -2, -1), (5, 9, 6)),
        ("ventricle", (9, -4, 14), (5, 30, 6)),
    ):
        paint(name, mirrored(points, centre, axes) < 0)
    return describe(f"procedural {seed}", index, SPACING_MM)
