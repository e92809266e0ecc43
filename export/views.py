"""What a training step is shown: windows of samples, mirrored and of random brightness, with their targets.

All that is random about a view is drawn with NumPy, so that it follows from a seed; cutting and painting are torch, so that
they run where the samples lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.data import Pair

BEYOND_LESIONS = 0.6  # share of a voxel that touches a lesion which counts as brain
VOLUMES = ("tensor", "mask", "tissue", "lesion", "foreign")  # of a Pair, in this order


@dataclass(frozen=True)
class View:
    """A window's first voxels (z, y, x), whether left and right are swapped, a factor and an exponent of brightness."""

    start: tuple[int, int, int]
    mirrored: bool
    gain: float
    power: float


def middle(pair: Pair) -> tuple[float, float, float]:
    """The mask's centre of gravity [voxels]."""
    lines = [pair.mask.sum(axis=others, dtype=np.float64) for others in ((1, 2), (0, 2), (0, 1))]
    a, b, c = (float(np.average(np.arange(len(line)), weights=line + 1e-3)) for line in lines)
    return a, b, c


def view(rng: np.random.Generator, shape: Sequence[int], window: Sequence[int], centre: Sequence[float]) -> View:
    """A random one of a volume of `shape`: most windows hold the brain's middle in theirs."""
    spread = 4 if rng.random() < 0.6 else 18
    a, b, c = (
        int(np.clip(round(at - m / 2 + rng.normal(0, spread)), 0, max(0, n - m)))
        for n, m, at in zip(shape, window, centre, strict=True)
    )
    gain = float(np.exp(rng.normal(0, 0.2)))
    power = float(np.exp(rng.normal(0, 0.2))) if rng.random() < 0.3 else 1.0
    return View((a, b, c), bool(rng.random() < 0.5), gain, power)


def cut(volumes: Sequence[Tensor], one: View, window: Sequence[int]) -> list[Tensor]:
    """The view's window of each volume (z, y, x), mirrored where it is."""
    z, y, x = (slice(start, start + m) for start, m in zip(one.start, window, strict=True))
    return [volume[z, y, x].flip(2) if one.mirrored else volume[z, y, x] for volume in volumes]


def shown(windows: Sequence[Sequence[Tensor]], views: Sequence[View], loads: tuple[float, float]) -> tuple[Tensor, ...]:
    """Input and weight (n, 1, z, y, x), target (n, 2, z, y, x) of n windows (`VOLUMES` each, shares in 1/255).

    loads: how much more than other voxels those of lesions and of foreign tissue weigh.
    """
    tensor, mask, tissue, lesion, foreign = (torch.stack(list(v))[:, None].float() for v in zip(*windows, strict=True))
    gain, power = (
        torch.tensor(v, dtype=torch.float32, device=tensor.device).reshape(-1, 1, 1, 1, 1)
        for v in ([one.gain for one in views], [one.power for one in views])
    )
    tensor = tensor * gain
    tensor = torch.where(power == 1, tensor, tensor.clamp(min=0) ** power)
    mask, tissue, lesion, foreign = (v / 255 for v in (mask, tissue, lesion, foreign))
    # A lesion is kept whole, also where it is the surface itself: a voxel that holds two fifths of one belongs to the mask,
    # and so does most of its neighbours, where the grid cannot say how far the lesion goes.
    faces = [functional.max_pool3d(lesion, k, 1, tuple(n // 2 for n in k)) for k in ((3, 1, 1), (1, 3, 1), (1, 1, 3))]
    around = (1.5 * torch.maximum(torch.maximum(faces[0], faces[1]), faces[2])).clamp(max=1)
    kept = torch.maximum((2.5 * lesion).clamp(max=1), BEYOND_LESIONS * around)
    target = torch.maximum(torch.cat([mask, tissue], dim=1), kept)
    return tensor, target, 1 + loads[0] * kept + loads[1] * foreign
