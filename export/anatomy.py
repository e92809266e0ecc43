"""Label map -> `Anatomy`: tissue classes, the brain mask by its definition, where bleeds can sit, and the field of air and bone.

Definition of the mask: brain tissue, ventricles and the CSF they enclose (closing with a ball of 4 mm), one solid piece.
Outside: skull, scalp, eyes, and dural sinuses within 8 mm of the skull. Haemorrhages, calcifications and cavities in the
brain belong to it whatever their signal. (What dark tissue at the surface loses is decided with the image, in `synth`.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import scipy.ndimage as ndi

from qsm_edge.fft import fast_length, irfftn, rfftn, wavenumbers
from qsm_edge.masking import morphology
from qsm_edge.masking.morphology import largest

#: class -> (chi [ppm re water], proton density, R2* at 3 T [1/s], T1 at 3 T [s])
TISSUE = {
    "air": (9.4, 0.0, 50.0, 1.0),
    "white": (-0.03, 0.70, 21.0, 0.85),
    "grey": (0.02, 0.82, 16.0, 1.35),
    "ventricle": (0.0, 1.0, 4.0, 4.0),
    "cerebellar_white": (-0.025, 0.70, 20.0, 0.90),
    "cerebellar_grey": (0.015, 0.82, 16.0, 1.30),
    "thalamus": (0.015, 0.78, 20.0, 1.15),
    "caudate": (0.045, 0.80, 23.0, 1.25),
    "putamen": (0.05, 0.80, 25.0, 1.20),
    "pallidum": (0.13, 0.72, 38.0, 1.00),
    "brainstem": (-0.01, 0.75, 19.0, 1.00),
    "hippocampus": (0.01, 0.82, 16.0, 1.35),
    "accumbens": (0.04, 0.80, 22.0, 1.25),
    "ventral_dc": (0.05, 0.75, 25.0, 1.05),
    "inner_vein": (0.30, 0.60, 40.0, 1.60),
    "csf": (0.0, 1.0, 3.0, 4.0),
    "nerve": (0.0, 0.80, 20.0, 1.00),
    "artery": (-0.05, 0.80, 15.0, 1.60),
    "eye": (0.0, 0.95, 8.0, 3.50),
    "soft": (0.02, 0.75, 28.0, 0.90),
    "mucosa": (0.0, 0.70, 30.0, 1.20),
    "skin": (0.30, 0.80, 35.0, 0.45),
    "cord": (-0.02, 0.75, 20.0, 1.00),
    "sinus": (0.30, 0.60, 40.0, 1.60),
    "bone": (-2.1, 0.06, 300.0, 0.50),
    "marrow": (-0.6, 0.45, 90.0, 0.40),
}
CLASSES = tuple(TISSUE)
CODE = {name: number for number, name in enumerate(CLASSES)}
LESIONS = 6  # classes len(CLASSES) .. len(CLASSES) + LESIONS - 1 are left for lesions
FIRST_LESION = len(CLASSES)

#: FreeSurfer and SynthSeg labels of each class; what is left of a pair first.
LABELS = {
    "air": (0,),
    "white": (2, 41, 25, 57),
    "grey": (3, 42, 136, 137, 163, 164),
    "ventricle": (4, 43, 44, 5, 14, 15, 72),
    "cerebellar_white": (7, 46),
    "cerebellar_grey": (8, 47),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "brainstem": (16,),
    "hippocampus": (17, 53, 18, 54),
    "accumbens": (26, 58),
    "ventral_dc": (28, 60),
    "inner_vein": (30, 62),
    "csf": (24,),
    "nerve": (85, 508, 530),
    "artery": (502,),
    "eye": (506,),
    "soft": (507,),
    "mucosa": (509,),
    "skin": (511,),
    "cord": (512,),
    "sinus": (514,),
    "bone": (515,),
    "marrow": (516,),
}
BRAIN = CLASSES[1:15]
OUTSIDE = ("eye", "soft", "mucosa", "skin", "bone", "marrow")
SKULL = ("soft", "skin", "bone", "marrow")
CLOSING_MM = 4.0
SINUS_MM = 8.0
FIELD_STEP = 2  # the field of air and bone is kept on every second voxel


@dataclass(frozen=True)
class Anatomy:
    """A head, axes S, P, L.

    index (z, y, x) uint8: class codes; spacing_mm: isotropic; hull: bool, the mask before lesions and dark edges; barred:
    bool, never brain; centre: the middle of the brain [voxels]; shallow, deep: voxels (n, 3) where a lesion may be centred,
    1-4 mm below the surface and more than 15 mm; products (6, z/2, y/2, x/2) float16 [ppm]: the field of air, bone and skin
    is chi/3 minus the sum of b_i b_j times these for zz, yy, xx, 2zy, 2zx, 2yx (chi/3 is left out: it has no meaning in air).
    """

    name: str
    index: np.ndarray
    spacing_mm: float
    hull: np.ndarray
    barred: np.ndarray
    centre: np.ndarray
    shallow: np.ndarray
    deep: np.ndarray
    products: np.ndarray


def codes(*names: str) -> np.ndarray:
    """A table of 256 entries, true at the codes of `names`."""
    table = np.zeros(256, bool)
    table[[CODE[name] for name in names]] = True
    return table


def closed(mask: np.ndarray, spacing_mm: float) -> np.ndarray:
    """`mask` closed with the ball of the definition, and filled."""
    return np.asarray(ndi.binary_fill_holes(morphology.closed(mask, CLOSING_MM, spacing_mm)))


def read(path: Path) -> tuple[np.ndarray, float]:
    """Class codes (z, y, x) along S, P, L of a label map in NIfTI with isotropic voxels. ValueError on unknown labels."""
    image = nib.as_closest_canonical(nib.load(path))
    zooms = [float(z) for z in image.header.get_zooms()[:3]]
    if max(zooms) - min(zooms) > 0.02:
        raise ValueError(f"{path.name}: voxels {zooms} mm, wanted isotropic ones")
    labels = np.asarray(image.dataobj).round().astype(np.int16).transpose(2, 1, 0)[:, ::-1, ::-1]
    table = np.full(1024, 255, np.uint8)
    for name, numbers in LABELS.items():
        table[list(numbers)] = CODE[name]
    index = table[labels]
    if (index == 255).any():
        raise ValueError(f"{path.name}: unknown labels {np.unique(labels[index == 255]).tolist()}")
    return np.ascontiguousarray(index), float(np.mean(zooms))


def describe(name: str, index: np.ndarray, spacing_mm: float) -> Anatomy:
    """All that `synth` needs to know of a head, from its class codes."""
    index = np.where(largest(index > 0), index, 0).astype(np.uint8)
    inside = codes(*BRAIN, "csf")[index]
    cranium = closed(inside, spacing_mm)
    index[cranium & (index == 0)] = CODE["csf"]  # specks in a label map are no air bubbles
    brain = codes(*BRAIN)[index]
    solid = closed(brain, spacing_mm)
    skull = ndi.binary_opening(codes(*SKULL)[index])
    near = ndi.distance_transform_edt(~skull, sampling=spacing_mm) < SINUS_MM
    barred = codes(*OUTSIDE)[index] | (codes("sinus")[index] & near)
    hull = largest(ndi.binary_fill_holes(solid & ~barred))
    depth = np.where(brain, ndi.distance_transform_edt(solid, sampling=spacing_mm), 0)
    rng = np.random.default_rng(0)
    shallow, deep = (_some(np.argwhere(where), rng) for where in ((depth > 1) & (depth < 4), depth > 15))
    centre = np.array(ndi.center_of_mass(brain))
    return Anatomy(name, index, spacing_mm, hull, barred, centre, shallow, deep, _products(index, spacing_mm))


def load(path: Path, cache: Path) -> Anatomy:
    """`describe` of a file, kept below `cache` under the hash of this module and the file, because it takes half a minute."""
    key = hashlib.sha256(Path(__file__).read_bytes() + path.read_bytes()).hexdigest()[:16]
    kept = cache / f"{path.name.split('.')[0]}-{key}.npz"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = describe(path.name.split(".")[0], *read(path))
        partial = kept.with_suffix(".partial.npz")
        np.savez_compressed(partial, **vars(made))
        partial.replace(kept)
    with np.load(kept) as found:
        values = {name: found[name] for name in found.files}
    return Anatomy(**{**values, "name": str(values["name"]), "spacing_mm": float(values["spacing_mm"])})


def _some(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return where[rng.permutation(len(where))[:4000]].astype(np.int16)


def _products(index: np.ndarray, spacing_mm: float) -> np.ndarray:
    """See `Anatomy.products`. Air counts as 0 and tissue as less, so that what surrounds the volume is air."""
    chi = np.array([TISSUE[name][0] for name in CLASSES], np.float32)
    step = FIELD_STEP
    shape = [n // step for n in index.shape]
    fine = (chi - chi[0])[index[tuple(slice(n * step) for n in shape)]]
    coarse = fine.reshape(shape[0], step, shape[1], step, shape[2], step).mean(axis=(1, 3, 5))
    voxel = (spacing_mm * step,) * 3
    padded = tuple(fast_length(int(1.4 * n)) for n in shape)
    k = wavenumbers(padded, voxel, coarse)
    k2 = k[0] * k[0] + k[1] * k[1] + k[2] * k[2]
    spectrum = rfftn(coarse, padded) / np.where(k2 == 0, 1, k2)
    inner = tuple(slice(n) for n in shape)
    pairs = ((0, 0, 1), (1, 1, 1), (2, 2, 1), (0, 1, 2), (0, 2, 2), (1, 2, 2))
    parts = [irfftn(spectrum * (k[i] * k[j] * factor), padded)[inner] for i, j, factor in pairs]
    return np.stack(parts).astype(np.float16)
