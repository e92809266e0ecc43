"""Pictures for people to judge: contact sheets of samples and masks, training curves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Panel:
    """One head: volume (z, y, x) along S, P, L, its voxels [mm], outlines by colour, and a caption."""

    volume: np.ndarray
    voxel_mm: tuple[float, float, float]
    outlines: dict[str, np.ndarray]
    caption: str = ""
    centre: tuple[int, int, int] | None = None


def sheet(panels: Sequence[Panel], path: Path, *, across: int = 4, planes: str = "axial sagittal") -> None:
    """A grid of heads, each in the planes named ('axial', 'coronal', 'sagittal'), with outlines."""
    names = planes.split()
    rows = -(-len(panels) // across)
    figure, axes = plt.subplots(
        rows, across * len(names), figsize=(2.6 * across * len(names), 2.7 * rows), squeeze=False
    )
    for cell in axes.ravel():
        cell.axis("off")
    for number, panel in enumerate(panels):
        at = panel.centre or middle(next(iter(panel.outlines.values())) if panel.outlines else panel.volume > 0)
        top = float(np.percentile(panel.volume, 99.7)) or 1.0
        for place, name in enumerate(names):
            cell = axes[number // across, (number % across) * len(names) + place]
            image, aspect = cut(panel.volume, name, at, panel.voxel_mm)
            cell.imshow(image, cmap="gray", vmin=0, vmax=top, aspect=aspect, interpolation="nearest")
            for colour, outline in panel.outlines.items():
                drawn, _ = cut(outline.astype(np.float32), name, at, panel.voxel_mm)
                if drawn.any() and not drawn.all():
                    cell.contour(drawn, [0.5], colors=colour, linewidths=0.7)
            if place == 0:
                cell.set_title(panel.caption, fontsize=7)
    figure.tight_layout(pad=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def middle(mask: np.ndarray) -> tuple[int, int, int]:
    """The voxel in the middle of a mask."""
    if not mask.any():
        a, b, c = (n // 2 for n in mask.shape)
    else:
        a, b, c = (round(float(index.mean())) for index in np.nonzero(mask))
    return a, b, c


def cut(volume: np.ndarray, plane: str, at: Sequence[int], voxel_mm: Sequence[float]) -> tuple[np.ndarray, float]:
    """A slice as a person looks at it (feet down), and its aspect."""
    z, y, x = at
    if plane == "axial":
        return volume[z], voxel_mm[1] / voxel_mm[2]
    if plane == "coronal":
        return volume[::-1, y], voxel_mm[0] / voxel_mm[2]
    return volume[::-1, :, x], voxel_mm[0] / voxel_mm[1]


def curve(table: Path, path: Path) -> None:
    """curve.csv of a training run as a picture."""
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    kinds = (("loss",), ("dice", "dice_min", "lesion_kept_min"), ("outside_ml", "missed_ml"))
    shown = [found for names in kinds if (found := [name for name in names if name in rows[0]])]
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3.2), squeeze=False)
    for cell, names in zip(axes[0], shown, strict=True):
        for name in names:
            cell.plot(steps, [float(row[name]) for row in rows], label=name)
        if not names[0].startswith("dice"):
            cell.set_yscale("log")
        cell.set_xlabel("step")
        cell.legend(fontsize=8)
        cell.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
