"""NIfTI in world space: a user's mask in, maps out. The only file that says "nibabel".

Arrays here are (z, y, x) on a `Geometry`; in the file they are (x, y, z) with the RAS affine in qform and sform.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from qsm_edge.errors import InputRefused
from qsm_edge.types import Geometry, Result


def tolerance_mm(geometry: Geometry) -> float:
    """How far a voxel of a mask may lie from the image's voxel: 0.05 mm, or 2 % of a voxel where that is more."""
    return max(0.05, 0.02 * min(geometry.voxel_mm))


def read_mask(path: Path, geometry: Geometry) -> np.ndarray:
    """The mask in a NIfTI file as bool (z, y, x) on `geometry`: axes turned and flipped by its affine, never resampled.

    Values above 0.5 are inside (a soft mask is cut there), NaN is outside. Trailing axes of length 1 are dropped.

    Raises
    ------
    InputRefused
        ``mask_invalid`` no readable three-dimensional image of numbers; ``mask_grid`` not the grid of the images, or
        no world coordinates; ``mask_empty`` nothing inside.
    """
    import nibabel

    where = Path(path).name
    try:
        image = nibabel.load(path)
        affine, shape = np.asarray(image.affine, dtype=np.float64), tuple(int(n) for n in image.shape)
        placed = _has_world(image)
    except Exception as error:  # a foreign file can fail in any way a parser can
        raise InputRefused("mask_invalid", where=where, got=type(error).__name__, wanted="a NIfTI file") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise InputRefused(
            "mask_invalid", "the mask is not one volume", where=where, got=f"shape {shape}", wanted="3-D"
        )
    if not placed:
        raise InputRefused("mask_grid", "the mask says not where it lies: qform and sform codes are 0", where=where)

    flipped = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # RAS to LPS; the file's axes are taken as they come
    lay = geometry.lay(flipped, (shape[0], shape[1], shape[2]))
    turned = tuple(shape[axis] for axis in lay.order)
    if turned != geometry.shape or lay.start != (0, 0, 0) or not lay.miss_mm <= tolerance_mm(geometry):
        voxel = tuple(round(float(v), 4) for v in np.linalg.norm(affine[:3, :3], axis=0))
        raise InputRefused(
            "mask_grid",
            where=where,
            got=f"shape {shape}, voxels {voxel} mm, {_off(lay.miss_mm, lay.start)}",
            wanted=f"shape {geometry.shape} (z, y, x), voxels {tuple(round(v, 4) for v in geometry.voxel_mm)} mm, "
            f"within {tolerance_mm(geometry):.2g} mm",
        )
    try:
        values = np.asarray(image.dataobj).reshape(shape)
        if values.dtype.kind not in "biuf":
            raise TypeError(f"values of type {values.dtype}")
    except Exception as error:
        raise InputRefused("mask_invalid", where=where, got=type(error).__name__, wanted="a readable volume") from error
    mask = np.ascontiguousarray(lay.turn(values) > 0.5)
    if not mask.any():
        raise InputRefused("mask_empty", where=where, got="no value above 0.5")
    return mask


def _has_world(image: object) -> bool:
    """Whether the file says where it lies; formats other than NIfTI always do, or nibabel refuses them."""
    header = getattr(image, "header", None)
    if header is None or "qform_code" not in getattr(header, "keys", list)():
        return True
    return bool(header["qform_code"] > 0 or header["sform_code"] > 0)


def _off(miss_mm: float, start: tuple[int, int, int]) -> str:
    if np.isinf(miss_mm):
        return "other axes or voxel sizes"
    return f"shifted by {start} voxels and {miss_mm:.3g} mm"


def write_nifti(array: np.ndarray, geometry: Geometry, path: Path) -> Path:
    """Write a (z, y, x) array: bool and uint8 as uint8, everything else as float32; ``.gz`` compressed, by the name.

    The same array gives the same bytes. The file appears complete under its name, or not at all.
    """
    import nibabel

    if array.shape != geometry.shape:
        raise ValueError(f"array of shape {array.shape} on a grid of {geometry.shape}")
    dtype = np.uint8 if array.dtype in (np.bool_, np.uint8) else np.float32
    image = nibabel.Nifti1Image(np.asarray(array, dtype=dtype).transpose(2, 1, 0), None)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(geometry.affine_ras_xyz, code=1)
    image.set_qform(geometry.affine_ras_xyz, code=1)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def write_result(result: Result, folder: Path) -> tuple[Path, ...]:
    """Write ``{chi_ppm,mask,field_ppm,local_ppm,r2star}.nii.gz`` into `folder`; r2star only where there is one.

    The mask is the brain mask that the reconstruction was given or made.
    """
    maps = {
        "chi_ppm": result.chi_ppm,
        "mask": result.brain.astype(bool),
        "field_ppm": result.field_ppm,
        "local_ppm": result.local_ppm,
        "r2star": result.r2star_per_s,
    }
    folder.mkdir(parents=True, exist_ok=True)
    geometry = result.series.geometry
    return tuple(
        write_nifti(np.asarray(volume), geometry, folder / f"{name}.nii.gz")
        for name, volume in maps.items()
        if volume is not None
    )
