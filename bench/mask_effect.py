"""What the network's mask does to susceptibility, against the truth mask: ``python -m bench.mask_effect [--help]``.

Heads 15 and 16 with new seeds of the simulator, four bleeds each, every second one at the surface. Every case is
reconstructed four times: by `default` and by a chain that feels its mask more (PDF), each with the truth mask and with
`--mask auto`. Says how the mean of each bleed, the deep grey nuclei and the error of the whole map move; the bleeds as
the regression of Lee et al., NMR Biomed 2025, doi:10.1002/nbm.70057 (theirs: slope 0.9814, intercept 3.1 ppb, R2 0.9992).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bench.run import HERE, measured, prepared

CHAINS = ("default", "default, pdf")
NUCLEI = (10, 11, 12, 13, 49, 50, 51, 52)
#: What is varied over the cases, in turn.
PROTOCOLS = (
    {"vox": [1, 1, 1], "te": [0.004, 0.010, 0.016, 0.022], "noise": 0.01, "b0": 3.0, "vendor": "siemens"},
    {"vox": [1.5, 1, 1], "te": [0.005, 0.012, 0.019], "noise": 0.015, "b0": 3.0, "vendor": "ge"},
    {"vox": [2, 1, 1], "te": [0.006, 0.012, 0.018, 0.024], "noise": 0.012, "b0": 1.5, "vendor": "philips"},
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", type=int, default=6, help="four bleeds each")
    parser.add_argument("--first-seed", type=int, default=7001)
    parser.add_argument("--work", type=Path, default=HERE / "out" / "mask_effect")
    parser.add_argument("--mask", default="auto", help="what stands against the truth mask")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(args.cases):
        case = made(number, args.first_seed, args.work)
        for chain in CHAINS:
            found = {}
            for name, mask in (("truth", None), ("ours", args.mask)):
                output = args.work / "results" / f"{case.name}-{chain.replace(', ', '-')}-{name}"
                found[name] = measured(case, chain, output, mask=mask) | {"regions": regions(case, output)}
            row = {"case": case.name, "chain": chain, **{name: found[name] for name in found}}
            rows.append(row)
            with (args.work / "rows.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            print(case.name, chain, {name: round(found[name]["core_nrmse"], 2) for name in found}, flush=True)
    print("\n".join(told(rows)))
    return 0


def made(number: int, first_seed: int, work: Path) -> Path:
    """The folder of a simulated case with four bleeds."""
    head = 15 + number % 2
    about = {"head": head, "tilt": [6 * number - 15, 4 - 2 * number], "lesions": 4, "seed": first_seed + number}
    about |= PROTOCOLS[number // 2 % len(PROTOCOLS)]
    name = f"bleeds{head}_{first_seed + number}"
    table = work / f"{name}.json"
    table.write_text(json.dumps({name: about}), encoding="utf-8")
    return prepared(name, work / "cases", table)


def regions(case: Path, output: Path) -> dict[str, float]:
    """Mean susceptibility [ppm] of each bleed and of each deep grey nucleus, over the truth's voxels."""
    (path,) = output.glob("*/nifti/chi_ppm.nii.gz")
    chi = on_the_case(path, case)
    with np.load(case / "truth.npz") as truth:
        lesions, labels = truth["lesions"], truth["labels"]
    found = {f"bleed {k}": float(chi[lesions == k].mean()) for k in np.unique(lesions) if k}
    return found | {
        f"nucleus {k}": float(chi[(labels == k) & (lesions == 0)].mean()) for k in NUCLEI if (labels == k).sum() > 50
    }


def on_the_case(path: Path, case: Path) -> np.ndarray:
    """A NIfTI volume as (z, y, x) in the order of the case's truth."""
    orientations = nib.orientations
    reference, image = nib.load(case / "mag_e1.nii.gz"), nib.load(path)
    turn = orientations.ornt_transform(
        orientations.io_orientation(image.affine), orientations.io_orientation(reference.affine)
    )
    return np.asarray(image.as_reoriented(turn).dataobj, dtype=float).transpose(2, 1, 0)


def told(rows: list[dict[str, Any]]) -> list[str]:
    """The findings as Markdown, a line a chain."""
    head = ["chain", "bleeds", "slope", "intercept ppb", "R2", "nuclei", "bias ppb (90 % interval)", "largest ppb"]
    lines = [
        "| " + " | ".join([*head, "core NRMSE % truth / ours", "worst ratio"]) + " |",
        "|" + "---|" * (len(head) + 2),
    ]
    for chain in dict.fromkeys(row["chain"] for row in rows):
        here = [row for row in rows if row["chain"] == chain]
        pairs = {
            kind: np.array(
                [
                    (row["truth"]["regions"][name], row["ours"]["regions"][name])
                    for row in here
                    for name in row["truth"]["regions"]
                    if name.startswith(kind)
                ]
            )
            for kind in ("bleed", "nucleus")
        }
        x, y = pairs["bleed"].T
        slope, intercept = np.polyfit(x, y, 1)
        r2 = np.corrcoef(x, y)[0, 1] ** 2
        off = 1e3 * (pairs["nucleus"][:, 1] - pairs["nucleus"][:, 0])
        half = 1.68 * off.std(ddof=1) / np.sqrt(len(off))  # two one-sided tests at 5 % are a 90 % interval
        core = np.array([(row["truth"]["core_nrmse"], row["ours"]["core_nrmse"]) for row in here])
        cells = [chain, len(x), f"{slope:.4f}", f"{1e3 * intercept:.2f}", f"{r2:.5f}", len(off)]
        cells += [f"{off.mean():.2f} ({off.mean() - half:.2f} to {off.mean() + half:.2f})", f"{np.abs(off).max():.1f}"]
        cells += [f"{core[:, 0].mean():.1f} / {core[:, 1].mean():.1f}", f"{(core[:, 1] / core[:, 0]).max():.3f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
