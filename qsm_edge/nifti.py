"""NIfTI in world space: a user's mask or magnitude in, masks and maps out. The only file that says "nibabel".

Arrays here are (z, y, x) on a `Geometry`; in the file they are (x, y, z) with the RAS affine in qform and sform.
"""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qsm_edge.errors import InputRefused
from qsm_edge.types import Geometry, Result

#: In the header of every file of ours.
_OURS = b"qsm-edge"
#: What says where the voxels lie, in NIfTI-1 and -2.
_PLACE = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
#: Volumes of a file that are taken for echoes of one train; of more, as in a series over time, the first alone counts.
_MOST_ECHOES = 24


def is_nifti(path: Path) -> bool:
    """Whether a file is called one."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


@dataclass(frozen=True)
class Magnitude:
    """A magnitude image in a NIfTI file, its voxels not yet read: its grid, with the axes of the file turned to (z, y, x)."""

    geometry: Geometry
    image: Any

    @property
    def echoes(self) -> int:
        """How many volumes are echoes: all, or the first alone of a series that is longer than a train of echoes."""
        count = math.prod(self.image.shape[3:])
        return count if count <= _MOST_ECHOES else 1

    def load(self, echoes: int) -> np.ndarray:
        """The first volumes, (echo, z, y, x) float32. Raises InputRefused truncated_file, no_magnitude."""
        try:
            out = np.empty((echoes, *self.geometry.shape), np.float32)
            with np.errstate(over="ignore"):  # what overflows is infinite, and has no weight
                for k in range(echoes):
                    at = (k, *(0 for _ in self.image.shape[4:])) if self.image.shape[3:] else ()
                    out[k] = np.asarray(self.image.dataobj[(..., *at)]).T
        except MemoryError:
            raise
        except Exception as error:  # a foreign file can fail in any way a parser can
            raise InputRefused("truncated_file", "the volume cannot be read", got=type(error).__name__) from error
        if not out[0].any():
            raise InputRefused("no_magnitude", "the first volume is empty")
        return out

    def write_mask(self, mask: np.ndarray, path: Path) -> Path:
        """Write a mask (z, y, x) with the axes, the affine and both forms of the image's own file."""
        image = type(self.image)(np.asarray(mask, dtype=np.uint8).T, None)
        for name in _PLACE:
            image.header[name] = self.image.header[name]
        image.header["pixdim"][:4] = self.image.header["pixdim"][:4]
        image.header.set_xyzt_units(*self.image.header.get_xyzt_units())
        return _write_whole(image, path)


def open_magnitude(path: Path) -> Magnitude:
    """The header of a magnitude image: 3-D, or 4-D, an echo a volume in their order. Its name is not repeated in any message.

    Raises
    ------
    InputRefused
        ``empty_file``, ``corrupt_header`` no readable NIfTI volume; ``pixel_data_invalid`` no real numbers;
        ``own_output`` a mask of ours; ``bad_geometry`` no volume, or it says not where it lies.
    """
    import nibabel

    try:
        # Kept open, because a compressed file is read from its start at every opening.
        image: Any = nibabel.load(path, keep_file_open=True)
        shape = tuple(int(n) for n in image.shape)
        affine = np.asarray(image.affine, dtype=np.float64)
        kind, text = image.get_data_dtype(), bytes(image.header["descrip"].tobytes())
    except Exception as error:  # a foreign file can fail in any way a parser can
        code = "empty_file" if path.stat().st_size == 0 else "corrupt_header"
        raise InputRefused(code, got=type(error).__name__, wanted="a NIfTI file") from error
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it, surfaces in such files are not
        raise InputRefused("corrupt_header", got=type(image).__name__, wanted="a NIfTI volume")
    if text.startswith(_OURS) and kind == np.uint8:
        raise InputRefused("own_output", "the file is a mask of ours")
    if kind.kind not in "biuf":
        raise InputRefused("pixel_data_invalid", got=f"values of type {kind}", wanted="real numbers")
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or 0 in shape:
        wanted = "a volume, or one after the other"
        raise InputRefused("bad_geometry", "the image is no volume", got=f"shape {shape}", wanted=wanted)
    if not _has_world(image):
        raise InputRefused("bad_geometry", "the image says not where it lies: qform and sform codes are 0")
    affine_lps = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[:, [2, 1, 0, 3]]
    return Magnitude(Geometry((shape[2], shape[1], shape[0]), affine_lps), image)


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
    return _write_whole(image, path)


def _write_whole(image: Any, path: Path) -> Path:
    """The same image gives the same bytes, under its name complete or not at all."""
    image.header["descrip"] = _OURS
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
