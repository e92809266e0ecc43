"""Judge masks: ``python -m export.evaluate bench|robust|volumes ...`` (see --help).

`bench` scores masks on simulated cases with truth (folders with truth.npz and mag.nii.gz, made with the simulator beside the
checkout): ours by the runtime's own road, and any other tool's masks laid beside it. `robust` draws the curve of Dice against
noise, voxel size, field strength, cut slabs and tilt on heads that never trained. Tables go to the screen and to a CSV,
contact sheets to PNG.
"""

from __future__ import annotations

import argparse
import csv
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import scipy.ndimage as ndi

from export.anatomy import LABELS
from export.data import FIRST_SEED, WORK, Source
from export.pictures import Panel, sheet
from export.synth import sample
from export.world import SECOND_MM, Protocol
from qsm_edge.masking import morphology, network
from qsm_edge.masking.confidence import agreement
from qsm_edge.types import Geometry

FOREIGN = [
    n
    for name in ("eye", "soft", "mucosa", "skin", "bone", "marrow", "sinus", "artery", "nerve", "cord")
    for n in LABELS[name]
]
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="export.evaluate", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, help="ONNX file; the one that ships where it is not given")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet to this PNG")
    parser.add_argument("--table", type=Path, help="write the rows to this CSV")
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="score on simulated cases")
    bench.add_argument(
        "cases", type=Path, nargs="+", help="folders with truth.npz, and mag.nii.gz (every echo) or mag_e1.nii.gz"
    )
    bench.add_argument("--other", action="append", default=[], metavar="NAME", help="also score CASE/NAME.nii.gz")
    robust = commands.add_parser("robust", help="curves over protocols")
    robust.add_argument("--label-maps", type=Path)
    robust.add_argument("--heads", type=int, default=4, help="samples a cell")
    volumes = commands.add_parser("volumes", help="make masks of NIfTI magnitudes, for a person to judge")
    volumes.add_argument("files", type=Path, nargs="+")
    volumes.add_argument(
        "--other", action="append", default=[], metavar="NAME", help="beside it, NAME.nii.gz of a tool"
    )
    args = parser.parse_args(arguments)
    rows, panels = {"bench": bench_rows, "robust": robust_rows, "volumes": volume_rows}[args.command](args)
    print(table(rows))
    if args.table:
        with args.table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    if args.sheet and panels:
        sheet(panels, args.sheet, across=2, planes="axial coronal sagittal")
    return 0


def masked(magnitude: np.ndarray, geometry: Geometry, model: Path | None) -> tuple[np.ndarray, float, float]:
    """Our mask of the echoes (echo, z, y, x) of one scan, the seconds it took, and the edge's width [mm]."""
    sure: list[float] = []
    start = time.perf_counter()
    mask = network(
        magnitude,
        np.zeros_like(magnitude),
        [0.005 * (number + 1) for number in range(len(magnitude))],
        geometry,
        model=model,
        on_confidence=lambda c: sure.append(c.edge_mm),
    )
    return mask, time.perf_counter() - start, sure[0]


def loaded(path: Path) -> tuple[np.ndarray, Geometry]:
    """The echoes (echo, z, y, x) of a NIfTI volume with its geometry."""
    image = nib.load(path)
    affine = RAS_TO_LPS @ image.affine
    affine = affine[:, [2, 1, 0, 3]]
    volume = np.asarray(image.dataobj, dtype=np.float32)
    echoes = np.ascontiguousarray(volume.reshape(*volume.shape[:3], -1).transpose(3, 2, 1, 0))
    return echoes, Geometry(echoes.shape[1:], affine)  # type: ignore[arg-type]


def bench_rows(args: argparse.Namespace) -> tuple[list[dict[str, object]], list[Panel]]:
    rows: list[dict[str, object]] = []
    panels = []
    for case in args.cases:
        with np.load(case / "truth.npz") as found:
            truth = {name: found[name] for name in ("mask", "labels", "lesions", "voxel")}
        every = case / "mag.nii.gz"
        magnitude, geometry = loaded(every if every.exists() else case / "mag_e1.nii.gz")
        mask, seconds, edge = masked(magnitude, geometry, args.model)
        spare = {"case": case.name, "tool": "qsm-edge"}
        rows.append(
            spare
            | scores(mask, truth)
            | {
                "edge_mm": round(edge, 2),
                "seconds": round(seconds, 2),
                "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
            }
        )
        outlines = {"red": truth["mask"], "yellow": mask}
        for name in args.other:
            path = case / f"{name}.nii.gz"
            if path.exists():
                rows.append({"case": case.name, "tool": name} | scores(loaded(path)[0][0] > 0.5, truth))
        centre = None
        if truth["lesions"].any():
            kept = {k: float(mask[truth["lesions"] == k].mean()) for k in np.unique(truth["lesions"]) if k}
            worst = min(kept, key=lambda k: kept[k])
            a, b, c = (round(float(i.mean())) for i in np.nonzero(truth["lesions"] == worst))
            centre = (a, b, c)
        panels.append(
            Panel(
                magnitude[0],
                tuple(float(v) for v in truth["voxel"]),
                outlines,
                f"{case.name}: {rows[-1 - len(args.other)]['dice']}",
                centre,
            )
        )  # type: ignore[arg-type]
    return rows, panels


def scores(mask: np.ndarray, truth: dict[str, np.ndarray]) -> dict[str, object]:
    """The measures of a mask against the truth of a simulated case."""
    true, voxel = truth["mask"], truth["voxel"]
    ml = float(np.prod(voxel)) / 1000
    ours, theirs = (m & ~ndi.binary_erosion(m) for m in (mask, true))
    reach = np.r_[
        ndi.distance_transform_edt(~theirs, sampling=voxel)[ours],
        ndi.distance_transform_edt(~ours, sampling=voxel)[theirs],
    ]
    outside = mask & ~true
    row: dict[str, object] = {
        "dice": round(agreement(mask, true, 0.5), 4),
        "hd95_mm": round(float(np.percentile(reach, 95)), 2),
        "surface_dice_1mm": round(float((reach <= 1).mean()), 3),
        "holes_ml": round(float((ndi.binary_fill_holes(mask) & ~mask).sum()) * ml, 2),
        "pieces": int(ndi.label(mask)[1]),
        "outside_ml": round(float(outside.sum()) * ml, 1),
        "foreign_ml": round(float((outside & np.isin(truth["labels"], [0, *FOREIGN])).sum()) * ml, 2),
        "missed_ml": round(float((true & ~mask).sum()) * ml, 1),
    }
    lesions = truth["lesions"]
    if lesions.any():
        row["lesion_kept_min"] = round(min(float(mask[lesions == k].mean()) for k in np.unique(lesions) if k), 4)
    return row


#: The middle of the curves, and what is varied from it one at a time.
USUAL = Protocol((0.005, 0.020), 3.0, (1.0, 1.0, 1.0), 0.01, (8.0, 0.0, 0.0), None, finest_mm=SECOND_MM)
CURVES: dict[str, Callable[[float], Protocol]] = {
    "noise": lambda v: replace(USUAL, noise=v),
    "voxel_mm": lambda v: replace(USUAL, voxel_mm=(v, v, v)),
    "slice_mm": lambda v: replace(USUAL, voxel_mm=(v, 1.0, 1.0)),
    "field_t": lambda v: replace(USUAL, b0_tesla=v),
    "te_ms": lambda v: replace(USUAL, te_s=(v / 1000,)),  # alone
    "late_ms": lambda v: replace(USUAL, te_s=(*USUAL.te_s[:1], v / 1000)),
    "tilt_deg": lambda v: replace(USUAL, tilt_deg=(v, v / 3, v / 3)),
    "slab_mm": lambda v: replace(USUAL, slab_mm=(-v / 2, v / 2)),
    "coil_depth": lambda v: replace(USUAL, coil_depth=v),
}
POINTS = {
    "noise": (0.005, 0.02, 0.05, 0.1),
    "voxel_mm": (0.5, 1.0, 1.5, 2.0, 3.0),
    "slice_mm": (2.0, 4.0),
    "field_t": (1.5, 3.0, 7.0),
    "te_ms": (3.0, 10.0, 20.0, 40.0),
    "late_ms": (10.0, 30.0),
    "tilt_deg": (0.0, 15.0, 30.0, 45.0),
    "slab_mm": (40.0, 70.0, 100.0),
    "coil_depth": (0.0, 0.7, 1.1),
}


def robust_rows(args: argparse.Namespace) -> tuple[list[dict[str, object]], list[Panel]]:
    """Dice of every cell, over heads that never trained: mean and least; `any`: random contrast and coils at each point."""
    heads = Source(args.label_maps, "develop", WORK).anatomies
    rows, panels = [], []
    for name, values in POINTS.items():
        for value in values:
            dice, worst = [], (2.0, None)
            for k in range(args.heads):
                one = sample(heads, FIRST_SEED["develop"] + 500_000 + k, CURVES[name](value), plain=k % 2 == 0)
                mask, _, _ = masked(one.magnitude, one.geometry, args.model)
                dice.append(agreement(mask, one.mask, 0.5))
                if dice[-1] < worst[0]:
                    worst = (
                        dice[-1],
                        Panel(
                            one.magnitude[0],
                            one.geometry.voxel_mm,
                            {"red": one.mask > 0.5, "yellow": mask},
                            f"{name} {value:g}: {dice[-1]:.3f}",
                        ),
                    )
            rows.append(
                {
                    "varied": name,
                    "value": value,
                    "dice": round(float(np.mean(dice)), 4),
                    "dice_min": round(min(dice), 4),
                }
            )
            if worst[1] is not None:
                panels.append(worst[1])
    return rows, panels


def volume_rows(args: argparse.Namespace) -> tuple[list[dict[str, object]], list[Panel]]:
    rows, panels = [], []
    for path in args.files:
        volume, geometry = loaded(path)
        mask, seconds, edge = masked(volume, geometry, args.model)
        others = {name: loaded(path.parent / f"{name}.nii.gz")[0][0] > 0.5 for name in args.other}
        row: dict[str, object] = {"volume": path.parent.name if others else path.name}
        row["ml"] = round(float(mask.sum() * np.prod(geometry.voxel_mm)) / 1000)
        row |= {"pieces": int(ndi.label(mask)[1]), "edge_mm": round(edge, 2), "seconds": round(seconds, 2)}
        rows.append(row | (against(mask, volume[0], geometry, others) if others else {}))
        panels.append(
            Panel(
                volume[0],
                geometry.voxel_mm,
                {"yellow": mask, **dict(zip(COLOURS, others.values(), strict=False))},
                path.name,
            )
        )
    return rows, panels


COLOURS = ("cyan", "red", "magenta")  # of other tools' masks


def against(
    mask: np.ndarray, volume: np.ndarray, geometry: Geometry, others: dict[str, np.ndarray]
) -> dict[str, object]:
    """Where there is no truth: what of ours lies outside all of the others' masks, and what they all call brain, is parenchyma
    by its signal, and is missing from ours.

    Parenchyma by its signal: as bright, against the local level (the mean over 15 mm of what all call brain), as the middle
    four fifths of what lies 8 mm and deeper in all masks, and more than a voxel thick: a single layer of voxels at the surface
    that has the brightness of parenchyma is CSF and skull, or CSF and bone, in one voxel.
    """
    every, some = np.logical_and.reduce(list(others.values())), np.logical_or.reduce(list(others.values()))
    ml = float(np.prod(geometry.voxel_mm)) / 1000
    sigma = [15.0 / v for v in geometry.voxel_mm]
    share = ndi.gaussian_filter(every.astype(np.float32), sigma)
    level = ndi.gaussian_filter(np.where(every, volume, 0).astype(np.float32), sigma) / np.maximum(share, 1e-3)
    relative = volume / np.maximum(level, 1e-6)
    low, high = np.percentile(relative[every & ~morphology.grown(~every, 8.0, geometry.voxel_mm)], [10, 90])
    parenchyma = ndi.binary_opening(every & (relative > low) & (relative < high))
    row: dict[str, object] = {
        "outside_all_ml": round(float((mask & ~some).sum()) * ml, 1),
        "parenchyma_missed_ml": round(float((parenchyma & ~mask).sum()) * ml, 1),
        "all_call_brain_missed_ml": round(float((every & ~mask).sum()) * ml, 1),
        "holes_ml": round(float((ndi.binary_fill_holes(mask) & ~mask).sum()) * ml, 2),
    }
    return row | {f"dice_{name}": round(agreement(mask, other, 0.5), 3) for name, other in others.items()}


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows as Markdown."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows)])


if __name__ == "__main__":
    raise SystemExit(main())
