"""A magnitude that no flip leaves as it is, as DICOM of every encoding and as NIfTI, and `qsm-edge mask` on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from network_factory import ball

from dicom_samples.encode import encode
from qsm_edge import cli
from qsm_edge.types import Geometry

SAMPLES = ("siemens_classic", "siemens_xa_enhanced", "philips_classic", "philips_enhanced", "ge_real_imaginary")
ECHO_TIMES_S, B0_TESLA = (0.006, 0.013), 3.0
PATIENT = ("Quagga", "Zebediah")


def geometry() -> Geometry:
    """A slab turned about one axis, of other steps along each."""
    a = np.deg2rad(12.0)
    axes = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])[:, ::-1]
    affine = np.eye(4)
    affine[:3, :3] = axes * (2.5, 1.5, 1.2)
    affine[:3, 3] = (-21.5, 3.25, -17.125)
    return Geometry((17, 29, 36), affine)


def lopsided() -> np.ndarray:
    """A ball without an eighth: no flip or turn leaves its mask as it is."""
    magnitude = ball(geometry(), 17.0)
    magnitude[9:, 15:, 19:] = 0
    return magnitude


def encoded(name: str) -> list[pydicom.Dataset]:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in geometry().shape), indexing="ij")
    noise = np.random.default_rng(0).uniform(0, 0.005, (2, *geometry().shape))
    times = np.reshape(ECHO_TIMES_S, (-1, 1, 1, 1))
    signal = (lopsided() + noise) * np.exp(150j * times * (z + 0.5 * y * y - 0.3 * x))
    datasets = encode(signal, geometry(), ECHO_TIMES_S, B0_TESLA, name, seed_name=name)
    for dataset in datasets:
        dataset.PatientName = "^".join(PATIENT)
    return datasets


def mask(capsys, *words: object) -> tuple[int, dict[str, Any]]:
    status = cli.main(["mask", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert not any(name in said.out + said.err for name in PATIENT)
    return status, json.loads(said.out)


def voxels(path: Path) -> np.ndarray:
    """(z, y, x) bool of a NIfTI file that has the axes of the images."""
    return np.asarray(nibabel.load(path).dataobj).T > 0


def nifti(path: Path, volume: np.ndarray, affine: np.ndarray, codes: tuple[int, int] = (2, 1)) -> Path:
    """A NIfTI file of a (z, y, x) or (echo, z, y, x) volume, with codes of sform and qform."""
    values = np.asarray(1000 * volume, np.float32)
    image = nibabel.Nifti1Image(values.T if values.ndim == 3 else values.transpose(3, 2, 1, 0), None)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    nibabel.save(image, path)
    return path
