"""Samples on the network's grid, made once and kept: what `train` and `evaluate` read.

Sample k depends on k, the split and the label maps alone, so a training run that stops and goes on sees what it would have
seen. Heads 15 and 16 never train.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export import anatomy
from export.procedural import procedural
from export.synth import sample
from qsm_edge.masking.grid import apply, down_weights, prepare

HERE = Path(__file__).resolve().parent
WORK = HERE / "out"
VERSION = 2  # of the samples: to be raised when `synth` makes others from the same seed
DEVELOPMENT = ("15", "16")  # heads that are looked at, never trained on
FIRST_SEED = {"train": 1_000_000, "develop": 2_000_000}


@dataclass(frozen=True)
class GridCard:
    """The network's input grid: what `masking.prepare` needs to know of a model before there is one."""

    shape: tuple[int, int, int] = (128, 128, 96)
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    axes: str = "SPL"
    normalisation: str = "p99"
    centre: str = "head"


CARD = GridCard()


@dataclass(frozen=True)
class Pair:
    """tensor (z, y, x) float16, the network's input; mask, tissue, lesion, foreign: shares in 1/255, uint8."""

    tensor: np.ndarray
    mask: np.ndarray
    tissue: np.ndarray
    lesion: np.ndarray
    foreign: np.ndarray


class Source:
    """`pair(k)` for k = 0, 1, ...; from label maps in `folder`, or from procedural heads where it is None."""

    def __init__(self, folder: Path | None, split: str, work: Path = WORK) -> None:
        self.split, self.work = split, work
        if folder is None:
            self.name = "procedural"
            self._load = [(lambda n=n: procedural(n)) for n in ((1, 2, 3) if split == "train" else (4,))]
        else:
            self.name = "heads"
            files = sorted(path for path in folder.glob("*.nii.gz"))
            wanted = [p for p in files if p.name.split(".")[0].endswith(DEVELOPMENT) == (split == "develop")]
            if not wanted:
                raise FileNotFoundError(
                    f"no label maps for '{split}' in {folder.name}; wanted *.nii.gz, those ending in 15 and 16 to develop on"
                )
            self._load = [(lambda p=p: anatomy.load(p, work / "anatomy")) for p in wanted]
        self._anatomies: list[anatomy.Anatomy] | None = None

    @property
    def anatomies(self) -> list[anatomy.Anatomy]:
        """Loaded when they are first needed: samples that are kept need none."""
        if self._anatomies is None:
            self._anatomies = [self.anatomy(n) for n in range(self.heads)]
        return self._anatomies

    @property
    def heads(self) -> int:
        """How many there are."""
        return len(self._load)

    def anatomy(self, number: int) -> anatomy.Anatomy:
        """One of them; label maps are described once and kept."""
        return self._load[number]()

    def place(self, k: int) -> Path:
        """Where sample k is kept."""
        return self.work / "samples" / f"{self.name}-{self.split}-{VERSION}" / f"{k:06d}.npz"

    def pair(self, k: int) -> Pair:
        """Sample k on the network's grid; from the disk, or made and put there."""
        kept = self.place(k)
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(".partial.npz")
            np.savez(partial, **vars(made(sample(self.anatomies, FIRST_SEED[self.split] + k))))
            partial.replace(kept)
        with np.load(kept) as found:
            return Pair(**{name: found[name] for name in found.files})


def made(one: object) -> Pair:
    """A `synth.Sample` as the network meets it: through the runtime's own `masking.prepare`."""
    tensor, grid = prepare(one.magnitude[0], one.geometry, CARD)  # type: ignore[attr-defined]
    weights = down_weights(grid)
    shares = (
        np.round(255 * np.clip(apply(v, weights), 0, 1)).astype(np.uint8)
        for v in (one.mask, one.tissue, one.lesion, one.foreign)
    )  # type: ignore[attr-defined]
    return Pair(tensor[0, 0].astype(np.float16), *shares)
