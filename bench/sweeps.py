"""What a protocol will give: ``python -m bench.sweeps [--head 15]`` draws accuracy against noise, voxels, field and echoes.

One head of the simulator, one thing varied at a time from 1 mm, 3 T, five echoes to 25 ms and a noise of 0.01 (water = 1), the
truth mask and the recipe `default`. Writes a table to the screen and `sweeps.png` with the core's error, XSIM and the deep grey
nuclei's error, so that a site can see what its protocol will give before it changes it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.run import HERE, measured, prepared

USUAL: dict[str, Any] = {
    "tilt": [10, -6],
    "vox": [1, 1, 1],
    "te": [0.005, 0.010, 0.015, 0.020, 0.025],
    "vendor": "siemens",
}
USUAL |= {"lesions": 0, "noise": 0.01, "b0": 3.0, "seed": 4242}
#: What is varied: values on the axis, and what each changes.
SWEEPS: dict[str, dict[float, dict[str, Any]]] = {
    "noise (water = 1)": {v: {"noise": v} for v in (0.005, 0.01, 0.04)},
    "slice thickness mm": {v: {"vox": [v, 1, 1]} for v in (1.0, 2.0, 3.0)},
    "voxel mm": {v: {"vox": [v, v, v]} for v in (1.0, 2.0)},
    "field T": {v: {"b0": v} for v in (1.5, 3.0, 7.0)},
    "echoes": {n: {"te": [round(0.025 * (k + 1) / n, 6) for k in range(n)]} for n in (1, 2, 3, 5)},
}
FIGURES = {
    "core_nrmse": "core NRMSE %",
    "full_nrmse": "full NRMSE %",
    "core_xsim": "core XSIM",
    "core_dgm_err_ppb": "nuclei, error ppb",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--head", type=int, default=15)
    parser.add_argument("--work", type=Path, default=HERE / "out" / "sweeps")
    parser.add_argument("--picture", type=Path, default=HERE / "sweeps.png")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[float, dict[str, Any]]] = {}
    print("| varied | value | " + " | ".join(FIGURES.values()) + " |")
    print("|" + "---|" * (len(FIGURES) + 2), flush=True)
    for varied, values in SWEEPS.items():
        for value, change in values.items():
            row = one(args.head, USUAL | change, args.work)
            found.setdefault(varied, {})[value] = row
            print(f"| {varied} | {value:g} | " + " | ".join(f"{row[key]:.2f}" for key in FIGURES) + " |", flush=True)
    drawn(found, args.picture)
    return 0


def one(head: int, about: dict[str, Any], work: Path) -> dict[str, Any]:
    """Simulated, reconstructed and scored; kept, because several sweeps pass through the usual protocol."""
    about = {"head": head, **about}
    name = "sweep_" + "_".join(f"{v:g}" for v in (head, about["noise"], *about["vox"], about["b0"], len(about["te"])))
    kept = work / f"{name}.row.json"
    if not kept.exists():
        table = work / f"{name}.json"
        table.write_text(json.dumps({name: about}), encoding="utf-8")
        case = prepared(name, work / "cases", table)
        kept.write_text(json.dumps(measured(case, "default", work / "results" / name)), encoding="utf-8")
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def drawn(found: dict[str, dict[float, dict[str, Any]]], path: Path) -> None:
    """One page: a row a figure, a column a sweep."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(FIGURES), len(found), figsize=(3 * len(found), 2.3 * len(FIGURES)), sharey="row")
    for column, (varied, rows) in enumerate(found.items()):
        for line, (key, label) in enumerate(FIGURES.items()):
            cell = axes[line][column]
            cell.plot(list(rows), [row[key] for row in rows.values()], "o-")
            cell.grid(alpha=0.3)
            if line == len(FIGURES) - 1:
                cell.set_xlabel(varied)
            if column == 0:
                cell.set_ylabel(label)
    for line, key in enumerate(FIGURES):
        axes[line][0].set_ylim(0, 1.08 * max(row[key] for rows in found.values() for row in rows.values()))
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    raise SystemExit(main())
