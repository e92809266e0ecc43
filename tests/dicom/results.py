"""Results made by hand for the tests of the writer: no reconstruction runs here."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache

import numpy as np
from pydicom.dataset import Dataset

from dicom_samples.encode import encode
from qsm_edge.types import (
    Geometry,
    GreSeries,
    Provenance,
    Quality,
    Result,
    Source,
    SourceInstance,
    StageRecord,
)

SHAPE = (5, 9, 7)
ECHO_TIMES_S = (0.005, 0.011)


def turned(about_x: float, about_y: float, about_z: float) -> np.ndarray:
    """A rotation by three angles in degrees."""
    (ca, cb, cc), (sa, sb, sc) = (f(np.deg2rad([about_x, about_y, about_z])) for f in (np.cos, np.sin))
    x, y = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]]), np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    return x @ y @ np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])


def geometry(shape=SHAPE, voxel_mm=(2.5, 1.3, 1.1), angles=(14.0, -6.0, 3.0), plane="axial") -> Geometry:
    """An oblique grid; `plane` turns the slices to the sides (sagittal) or to the front (coronal)."""
    axes = {  # columns of (z, y, x) in LPS, right-handed: rows to the left, columns to the back, slices to the head ...
        "axial": [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
        "sagittal": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        "coronal": [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
    }[plane]
    affine = np.eye(4)
    affine[:3, :3] = turned(*angles) @ np.array(axes) * np.asarray(voxel_mm)
    affine[:3, 3] = (-31.37, 12.718281828, -7.5)
    return Geometry(shape, affine)


def chi(shape=SHAPE) -> np.ndarray:
    """Susceptibilities of a head, with one value in every voxel that no other voxel has; zero outside the mask."""
    values = np.random.default_rng(7).permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    return np.where(brain(shape), (values - values.size / 3) / 1000, 0).astype(np.float32)


def brain(shape=SHAPE) -> np.ndarray:
    """A mask that no flip or turn leaves as it is; its first slice is empty."""
    mask = np.zeros(shape, bool)
    mask[1:, 1:-2, 2:] = True
    mask[1, 1, 2:4] = False
    mask[-1, -3, -1] = False
    return mask


def sources(datasets: Iterable[Dataset], grid: Geometry) -> tuple[tuple[SourceInstance, ...], ...]:
    """The images of every slice, found by position."""
    slices: list[list[SourceInstance]] = [[] for _ in range(grid.shape[0])]
    inverse = np.linalg.inv(grid.affine_lps)
    for d in datasets:
        frames = d.get("PerFrameFunctionalGroupsSequence")
        positions = [f.PlanePositionSequence[0].ImagePositionPatient for f in frames] if frames else []
        for number, position in enumerate(positions or [d.ImagePositionPatient], start=1):
            z = round(float((inverse @ [*map(float, position), 1.0])[0]))
            frame = number if frames else 0
            slices[z].append(SourceInstance(d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID, frame))
    return tuple(tuple(images) for images in slices)


def source(encoding: str = "siemens_classic", grid: Geometry | None = None, name: str = "writer") -> Source:
    """What the reader would hand over of an encoded series: the first object without pixels and private elements."""
    grid = grid or geometry()
    template, slices = _encoded(encoding, grid.shape, grid.affine_lps.tobytes(), name)
    return Source("vendor", encoding, slices, copy.deepcopy(template))


@cache
def _encoded(encoding: str, shape: tuple[int, int, int], affine: bytes, name: str):
    grid = Geometry(shape, np.frombuffer(affine).reshape(4, 4))
    datasets = encode(np.ones((2, *shape), complex), grid, ECHO_TIMES_S, 3.0, encoding, seed_name=name)
    template = Dataset()
    for element in datasets[0]:
        if element.VR != "SQ" and not element.tag.is_private and element.keyword != "PixelData":
            template[element.tag] = element
    return template, sources(datasets, grid)


def provenance(digest: str = "a1" * 32, seconds: float = 1.0, mask_method: str = "threshold") -> Provenance:
    """As of a run of the default recipe."""
    stages = tuple(
        StageRecord(stage, method, {"radius_mm": 5.0}, seconds, 1000, 0, "", ())
        for stage, method in (("mask", mask_method), ("unwrap", "romeo"), ("background", "pdf"), ("invert", "tv"))
    )
    text = "mask threshold; unwrap romeo; echoes nonlinear_fit; background pdf; invert tv; reference mean"
    return Provenance("qsm-edge", "0.1.0", "default", {}, digest, stages, {"python": "3"}, "Phase was unwrapped.", text)


def result(
    of: Source | None = None, grid: Geometry | None = None, chi_ppm: np.ndarray | None = None, **changed: object
) -> Result:
    """A result on `grid`; `changed` replaces fields."""
    grid = grid or geometry()
    chi_ppm = chi(grid.shape) if chi_ppm is None else chi_ppm
    images = np.ones((2, *grid.shape), np.float32)
    series = GreSeries(images, images, ECHO_TIMES_S, 3.0, grid, of if of is not None else source(grid=grid))
    mask = brain(grid.shape)
    fields = dict(
        series=series,
        chi_ppm=chi_ppm,
        mask=mask & (chi_ppm != 0),
        brain=mask,
        field_ppm=chi_ppm * 2,
        local_ppm=chi_ppm / 2,
        residual=np.zeros_like(chi_ppm),
        weight=np.ones_like(chi_ppm),
        r2star_per_s=np.abs(chi_ppm) * 100,
        quality=Quality({}, (), "good"),
        provenance=provenance(),
    )
    return Result(**{**fields, **changed})
