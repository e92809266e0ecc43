"""What a mask that is too large or too small does to susceptibility: ``python -m bench.margins [--cases ...]``.

The truth mask grown and shrunk by one and two voxels, and the network's mask, each through the same chain. The error is taken
over the voxels that the core (the truth mask less 5 mm) and all masks share, so that only a voxel's value is compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage as ndi

from bench.mask_effect import on_the_case
from bench.run import CASES, CHAINS, HERE, measured, prepared

MARGINS = (-2, -1, 0, 1, 2)  # voxels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--cases", nargs="+", default=("siemens15", "philips16", "bleed16"), choices=CASES, metavar="CASE"
    )
    parser.add_argument("--chain", default="default", choices=tuple(CHAINS))
    parser.add_argument("--work", type=Path, default=HERE / "out")
    args = parser.parse_args()
    names = ["auto", *(f"{margin:+d}" for margin in MARGINS)]
    print("| case | core NRMSE % over the common voxels: " + " | ".join(names) + " | largest move |")
    print("|" + "---|" * (len(names) + 2), flush=True)
    for name in args.cases:
        errors = moved(prepared(name, args.work / "cases"), args.chain, args.work)
        most = max(abs(value - errors["+0"]) for value in errors.values())
        print(f"| {name} | " + " | ".join(f"{errors[key]:.1f}" for key in names) + f" | {most:.1f} |", flush=True)
    return 0


def moved(case: Path, chain: str, work: Path) -> dict[str, float]:
    """Core NRMSE [%] of each mask's map, all over the same voxels."""
    with np.load(case / "truth.npz") as truth:
        kept: dict[str, Any] = {key: truth[key] for key in ("mask", "chi", "lesions", "voxel")}
    true = kept["mask"]
    shapes = {f"{margin:+d}": _grown(true, margin) for margin in MARGINS}
    maps = {}
    (work / "results").mkdir(parents=True, exist_ok=True)
    for key, mask in shapes.items():
        path = work / "results" / f"{case.name}-mask{key}.nii.gz"
        affine = nib.load(case / "mask_true.nii.gz").affine
        nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0).astype(np.uint8), affine), path)
        maps[key] = _map(case, chain, work, key, path)
    maps["auto"] = _map(case, chain, work, "auto", "auto")
    common = ndi.distance_transform_edt(true, sampling=kept["voxel"]) > 5
    common &= kept["lesions"] == 0
    for found in maps.values():
        common &= found != 0
    true_chi = kept["chi"][common] - kept["chi"][common].mean()
    return {
        key: float(100 * np.linalg.norm(found[common] - found[common].mean() - true_chi) / np.linalg.norm(true_chi))
        for key, found in maps.items()
    }


def _grown(mask: np.ndarray, margin: int) -> np.ndarray:
    if margin == 0:
        return mask
    change = ndi.binary_dilation if margin > 0 else ndi.binary_erosion
    return np.asarray(change(mask, iterations=abs(margin)))


def _map(case: Path, chain: str, work: Path, key: str, mask: str | Path) -> np.ndarray:
    output = work / "results" / f"{case.name}-margin{key}"
    measured(case, chain, output, mask=mask)
    (path,) = output.glob("*/nifti/chi_ppm.nii.gz")
    return on_the_case(path, case)


if __name__ == "__main__":
    raise SystemExit(main())
