"""Overlapping windows over a volume, for networks that were trained on windows and normalise over them.

The places of the windows, their overlap and the plain average of their outputs are part of such a network: another tiling is
another mask. They are those of MONAI's sliding-window inference with a constant weight, which the published QSMmask-net is
used with (Lee et al., NMR Biomed 2025, doi:10.1002/nbm.70057).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

Box = tuple[slice, slice, slice]


def sizes(shape: Sequence[int], share: Sequence[float]) -> tuple[int, int, int]:
    """A window's voxels: `share` of each axis, rounded down, one at least."""
    a, b, c = (max(1, int(n * part)) for n, part in zip(shape, share, strict=True))
    return a, b, c


def boxes(shape: Sequence[int], size: Sequence[int], overlap: float) -> list[Box]:
    """The windows in order, the last axis fastest; the last window of an axis is moved back to end where the volume ends."""
    starts = []
    for n, m in zip(shape, size, strict=True):
        step = m if n == m else max(1, int(m * (1 - overlap)))
        count = next(i for i in range(math.ceil(n / step)) if i * step + m >= n) + 1
        starts.append([min(i * step, n - m) for i in range(count)])
    return [
        (slice(z, z + size[0]), slice(y, y + size[1]), slice(x, x + size[2])) for z, y, x in itertools.product(*starts)
    ]


def averaged(
    volume: np.ndarray, share: Sequence[float], overlap: float, run: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`run` on every window (1, 1, z, y, x) of `volume` (1, 1, z, y, x), the outputs averaged where windows overlap; float32."""
    shape = volume.shape[2:]
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for box in boxes(shape, sizes(shape, share), overlap):
        total[box] += run(np.ascontiguousarray(volume[(slice(None), slice(None), *box)]))[0, 0]
        count[box] += 1
    return np.asarray((total / count)[None, None], np.float32)
