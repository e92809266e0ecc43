"""Maps -> classic MR Image Storage that a PACS takes: one file per slice, signed 16 bit, real-world value mapping.

There is no modality LUT in this object, so that a viewer shows the stored integers: they are the value in the unit of
the series. The vendor's Manufacturer and private elements never come along, at no depth: readers scale by them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import MRImageStorage

from qsm_edge.dicom import codes
from qsm_edge.dicom.common import RESEARCH_USE_ONLY, common_header, new_file, quietly, referenced_series, source_images
from qsm_edge.dicom.copied import ascii_text, clean, decimal, decimals, texts
from qsm_edge.dicom.encode import Encoder
from qsm_edge.dicom.uids import result_key, uid
from qsm_edge.errors import UsageError
from qsm_edge.types import ExtraMap, Geometry, Result

#: Stored values are clipped to +-LIMIT; the same on both sides, so that negating a map negates its pixels.
LIMIT = 32767
#: Added to the source's SeriesNumber: far from what a scanner counts to, and different for different sources.
SERIES_NUMBER_STEP = 9000


@dataclass(frozen=True)
class MapKind:
    """How a map is stored: the stored integer times `slope` is the value in `unit`; `per_unit` units are 1 of ours.

    image_type: what follows DERIVED and PRIMARY. quantity, unit: None for an image of arbitrary units, which has no
    real-world values. series_offset: added to the series number, another one for every kind. derivation: what of the
    quantity the map shows, if not the quantity itself. mapped: the stored values that have a real-world value.
    """

    name: str
    image_type: tuple[str, ...]
    description: str
    quantity: codes.Code | None
    unit: codes.Code | None
    per_unit: float
    slope: float
    window: tuple[int, int]
    series_offset: int
    derivation: codes.Code | None = None
    mapped: tuple[int, int] = (-LIMIT, LIMIT)


def _weighted(name: str, image_type: tuple[str, ...], description: str, offset: int) -> MapKind:
    return MapKind(name, image_type, description, None, None, 1.0, 1.0, (800, 1600), offset)


_PPB = (codes.PPB, 1000.0, 1.0)
#: Maps that every result has.
KINDS: dict[str, MapKind] = {
    kind.name: kind
    for kind in (
        MapKind("chi", ("OTHER", "QSM"), "QSM chi", codes.MAGNETIC_SUSCEPTIBILITY, *_PPB, (0, 400), 0),
        MapKind("field", ("OTHER", "FIELD_MAP"), "Total field", codes.FIELD_MAP, *_PPB, (0, 1000), 1),
        MapKind("local", ("OTHER", "LOCAL_FIELD"), "Local field", codes.FIELD_MAP, *_PPB, (0, 100), 2),
        MapKind("r2star", ("OTHER", "R2_STAR"), "R2*", codes.R2_STAR, codes.PER_SECOND, 1.0, 1.0, (50, 100), 3),
    )
}
#: Maps that a result has where they were asked for, by the names of `types.ExtraMap`.
EXTRA_KINDS: dict[str, MapKind] = {
    kind.name: kind
    for kind in (
        MapKind("t2star", ("OTHER", "T2_STAR"), "T2*", codes.T2_STAR, codes.MILLISECOND, 1.0, 1.0, (50, 100), 4),
        KINDS["r2star"],
        _weighted("swi", ("OTHER", "SWI"), "SWI", 5),
        _weighted("smwi", ("OTHER", "SMWI"), "SMWI", 6),
        _weighted("swi_mip", ("PROJECTION IMAGE", "SWI", "MIN_IP"), "SWI minIP", 7),
        MapKind(  # infinite where the field does not determine chi: stored as LIMIT, which no real-world value has
            "chi_sd",
            ("OTHER", "QSM_SD"),
            "QSM chi SD",
            codes.MAGNETIC_SUSCEPTIBILITY,
            *_PPB,
            (10, 20),
            8,
            codes.STANDARD_DEVIATION,
            (0, LIMIT - 1),
        ),
    )
}


def volume_of(result: Result, kind: MapKind) -> np.ndarray:
    """The map of `kind` (z, y, x) in our own unit. Raises UsageError where the result has none."""
    extra = _extra(result, kind)
    volume = {
        "chi": result.chi_ppm,
        "field": result.field_ppm,
        "local": result.local_ppm,
        "r2star": result.r2star_per_s,
    }.get(kind.name, None if extra is None else extra.volume)
    if volume is None:
        raise UsageError("bad_call", f"this result has no map {kind.name!r}")
    return np.asarray(volume)


def _extra(result: Result, kind: MapKind) -> ExtraMap | None:
    return next((extra for extra in result.extras if extra.name == kind.name), None)


def stored_values(volume: np.ndarray, kind: MapKind) -> np.ndarray:
    """`volume` as the integers that are written: rounded to the nearest, clipped to +-`LIMIT`; not a number is 0."""
    stored = np.empty(volume.shape, dtype=np.int16)
    for values, plane in zip(volume, stored, strict=True):  # one at a time stays in the cache
        scaled = np.rint(np.nan_to_num(values.astype(np.float64) * (kind.per_unit / kind.slope), nan=0.0))
        plane[...] = np.clip(scaled, -LIMIT, LIMIT)
    return stored


def write_series(
    result: Result, folder: Path, *, series_number: int | None = None, description: str | None = None
) -> tuple[Path, ...]:
    """Write the susceptibility map as a DICOM series into `folder`, one file per slice; returns the files.

    `folder` appears complete or not at all. The same result gives the same bytes, but for the instance-creation time.

    Parameters
    ----------
    result : on the grid of its series; sources and patient come from ``result.series.source``, either may be absent.
    folder : is made; its parent is there.
    series_number : 9000 more than that of the source by default.
    description : goes into SeriesDescription instead of "QSM chi"; the unit and "research use only" are appended.

    Raises
    ------
    UsageError
        ``bad_call``: `folder` is there already and not empty.
    """
    return write_map(result, KINDS["chi"], folder, series_number=series_number, description=description)


def write_map(
    result: Result,
    kind: MapKind,
    folder: Path,
    *,
    series_number: int | None = None,
    description: str | None = None,
) -> tuple[Path, ...]:
    """As `write_series`, for any of `KINDS` and `EXTRA_KINDS`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("bad_call", "the folder for the series is there already", where=folder.name)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        names = []
        encoder = Encoder()
        for dataset in slices(result, kind, series_number=series_number, description=description):
            names.append(f"{int(dataset.InstanceNumber):04d}.dcm")
            with quietly():
                content = encoder.file(dataset)
            (part / names[-1]).write_bytes(content)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return tuple(folder / name for name in names)


def write_extras(result: Result, parent: Path) -> None:
    """Write each of ``result.extras`` as a series into a folder of its name in `parent`."""
    for extra in result.extras:
        write_map(result, EXTRA_KINDS[extra.name], parent / extra.name)


def slices(
    result: Result,
    kind: MapKind,
    *,
    series_number: int | None = None,
    description: str | None = None,
    sources: bool = True,
) -> Iterator[FileDataset]:
    """The datasets of a map, slice by slice along the first array axis, ready to be saved.

    sources: name the images that each slice came from; whoever needs the slices only to refer to them saves the time.
    """
    stored = stored_values(volume_of(result, kind), kind)
    series_uid = uid("series", kind.name, *result_key(result), stored)
    extra = _extra(result, kind)
    slab = 1 if extra is None else extra.slab
    with quietly():
        common = common_header(result)
        _series(common, kind, result, series_number, description)
        common.SeriesInstanceUID = series_uid
        if extra is not None:
            common.DerivationDescription = ascii_text(extra.derivation, "ST")
            common.ImageComments = ascii_text(f"{common.ImageComments} {extra.comment}".rstrip(), "LT")
        _pixels(common)
        _grid(common, result, slab)
        if kind.quantity is not None and kind.unit is not None:
            common.RealWorldValueMappingSequence = [_value_mapping(kind, kind.quantity, kind.unit)]
    for z, plane in enumerate(stored):
        with quietly():  # not around the loop: a caller that stops in the middle would leave it open
            dataset = new_file(common, MRImageStorage, uid("image", series_uid, z))
            _place(dataset, result, z)
            if sources:
                _name_sources(dataset, result, z, slab)
            dataset.add_new("SmallestImagePixelValue", "SS", int(plane.min()))
            dataset.add_new("LargestImagePixelValue", "SS", int(plane.max()))
            dataset.add_new("PixelData", "OW", plane.astype("<i2").tobytes())
        yield dataset


def _series(d: Dataset, kind: MapKind, result: Result, series_number: int | None, description: str | None) -> None:
    template = result.series.source.template
    source_number = clean("SeriesNumber", texts(template, "SeriesNumber"))
    if series_number is None:
        series_number = min(max(int(source_number or 0), 0), 2**31 - 1 - 2 * SERIES_NUMBER_STEP)
        series_number += SERIES_NUMBER_STEP + kind.series_offset
    d.SeriesNumber, d.Modality = str(series_number), "MR"
    extra = _extra(result, kind)
    thick = "" if extra is None or extra.slab == 1 else f" {_slab_mm(result, extra.slab):.3g} mm"
    tail = thick + (f" [{kind.unit.meaning}]" if kind.unit else "") + f" - {RESEARCH_USE_ONLY}"
    d.SeriesDescription = ascii_text(description or kind.description, "LO")[: 64 - len(tail)].rstrip() + tail
    d.ImageType = ["DERIVED", "PRIMARY", *kind.image_type]
    d.WindowCenter, d.WindowWidth = (str(value) for value in kind.window)


def _slab_mm(result: Result, slab: int) -> float:
    return slab * result.series.geometry.voxel_mm[0]


def _pixels(d: Dataset) -> None:
    """Signed 16 bit, larger is brighter."""
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1


def _value_mapping(kind: MapKind, quantity: codes.Code, unit: codes.Code) -> Dataset:
    """What the pixels mean: a real-world value for every stored one."""
    mapping = Dataset()
    of = f"{kind.derivation.meaning} of " if kind.derivation else ""
    mapping.LUTExplanation, mapping.LUTLabel = f"{of}{quantity.meaning} in {unit.meaning}", kind.name.upper()
    mapping.add_new("RealWorldValueFirstValueMapped", "SS", kind.mapped[0])
    mapping.add_new("RealWorldValueLastValueMapped", "SS", kind.mapped[1])
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = kind.slope, 0.0
    mapping.MeasurementUnitsCodeSequence = [codes.code_item(unit)]
    mapping.QuantityDefinitionSequence = [codes.quantity_item(quantity)]
    if kind.derivation is not None:
        mapping.QuantityDefinitionSequence.append(codes.quantity_item(kind.derivation, codes.DERIVATION))
    return mapping


def _grid(d: Dataset, result: Result, slab: int) -> None:
    """What the places of all slices share, and the thickness where each holds a slab of them."""
    geometry, source = result.series.geometry, result.series.source
    voxel = geometry.voxel_mm
    d.Rows, d.Columns = geometry.shape[1:]
    d.ImageOrientationPatient = [decimal(round(float(c), 13) + 0.0) for axis in _in_plane(geometry) for c in axis]
    d.PixelSpacing = decimals(*voxel[1:])
    (d.SpacingBetweenSlices,) = decimals(voxel[0])
    d.SliceThickness = clean("SliceThickness", texts(source.template, "SliceThickness")) or d.SpacingBetweenSlices
    if slab > 1:
        d.SliceThickness = decimal(round(_slab_mm(result, slab), 4))


def _in_plane(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The directions in which columns and rows are counted."""
    affine, voxel = geometry.affine_lps, geometry.voxel_mm
    return affine[:3, 2] / voxel[2], affine[:3, 1] / voxel[1]


def _place(d: Dataset, result: Result, z: int) -> None:
    """Number and position of one slice."""
    geometry = result.series.geometry
    position = (geometry.affine_lps @ np.array([z, 0, 0, 1.0]))[:3]
    d.InstanceNumber = str(z + 1)
    d.ImagePositionPatient = decimals(*position)
    (d.SliceLocation,) = decimals(float(position @ np.cross(*_in_plane(geometry))))


def _name_sources(d: Dataset, result: Result, z: int, slab: int) -> None:
    slab_of = result.series.source.slices[max(z - slab // 2, 0) : z + slab // 2 + 1]
    used = [image for images in slab_of for image in images]
    if used:
        d.SourceImageSequence, d.ReferencedSeriesSequence = source_images(used), referenced_series(used)
