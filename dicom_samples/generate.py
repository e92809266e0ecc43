"""Make the sample series: one synthetic head in five vendors' encodings, with its truth and checksums.

    python -m dicom_samples.generate [FOLDER]

writes one folder per encoding, ``chi_true.nii.gz`` [ppm relative to water], ``mask.nii.gz`` and ``SHA256SUMS``. The
noise is the same in all encodings, so that reconstructions of them differ by quantisation alone. Nobody was scanned.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from dicom_samples.encode import encode, save
from dicom_samples.head import simulate
from qsm_edge.nifti import write_nifti
from qsm_edge.types import Geometry

ENCODED = ("siemens_classic", "siemens_xa_enhanced", "philips_classic", "philips_enhanced", "ge_real_imaginary")
#: (z, y, x); an odd number of slices tells a chop from a shift by half the field of view.
SHAPE, VOXEL_MM = (45, 80, 64), (3.2, 2.6, 2.6)
#: Turned about the patient's x, then y axis; the centre lies a little below the middle of the brain.
TILT_DEG, CENTRE_MM = (14.0, -5.0), (0.0, 0.0, -1.0)
ECHO_TIMES_S, B0_TESLA = (0.007, 0.015, 0.023, 0.031), 3.0


def sample_geometry() -> Geometry:
    """The oblique slab: rows to the left, columns to the back, slices to the top, each tilted."""
    about_x, about_y = np.deg2rad(TILT_DEG)
    turn_x = [[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]]
    turn_y = [[np.cos(about_y), 0, np.sin(about_y)], [0, 1, 0], [-np.sin(about_y), 0, np.cos(about_y)]]
    axes = np.array(turn_x) @ np.array(turn_y)
    affine = np.eye(4)
    affine[:3, :3] = axes[:, ::-1] * np.asarray(VOXEL_MM)
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ ((np.asarray(SHAPE) - 1) / 2)
    return Geometry(SHAPE, affine)


def sample_signal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal (echo, z, y, x) complex64, chi [ppm], mask."""
    return simulate(sample_geometry(), ECHO_TIMES_S, B0_TESLA)


def sample(signal: np.ndarray, encoding: str) -> list[FileDataset]:
    """The sample in one of `ENCODED`; every encoding is a study of its own of the same patient."""
    return encode(signal, sample_geometry(), ECHO_TIMES_S, B0_TESLA, encoding, seed_name=f"head/{encoding}")


def checksums(folder: Path) -> str:
    """The lines of SHA256SUMS, as ``sha256sum --check`` reads them, for every sample file below `folder`."""
    files = [folder / "chi_true.nii.gz", folder / "mask.nii.gz"]
    files += [path for name in ENCODED for path in sorted((folder / name).iterdir())]
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    folder = parser.parse_args().folder
    signal, chi_ppm, mask = sample_signal()
    for encoding in ENCODED:
        shutil.rmtree(folder / encoding, ignore_errors=True)
        save(sample(signal, encoding), folder / encoding)
    write_nifti(np.round(chi_ppm, 4).astype(np.float32), sample_geometry(), folder / "chi_true.nii.gz")
    write_nifti(mask.astype(np.uint8), sample_geometry(), folder / "mask.nii.gz")
    (folder / "SHA256SUMS").write_text(checksums(folder))


if __name__ == "__main__":
    main()
