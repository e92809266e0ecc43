"""Total-field inversion as background removal: what it promises beyond the laws of `test_background`."""

from __future__ import annotations

import numpy as np
import pytest

from qsm_edge.background import METHODS
from qsm_edge.tfi import tfi
from tests import laws, phantoms

GEOMETRY = phantoms.oblique()
HEAD = phantoms.head(GEOMETRY)
EVEN = np.ones(GEOMETRY.shape, np.float32)


def _spread(x: np.ndarray, where: np.ndarray) -> float:
    return float(np.std(x[where]))


def test_it_keeps_the_surface_better_than_outside_sources_alone_do() -> None:
    """The reason for estimating both: PDF lets outside sources mimic inside ones near the surface."""
    surface = HEAD.mask & (HEAD.depth_mm() < 5)
    joint, _ = tfi(HEAD.field_ppm, HEAD.mask, GEOMETRY, EVEN)
    outside_alone, _ = METHODS["pdf"](HEAD.field_ppm, HEAD.mask, GEOMETRY, EVEN)
    truth = HEAD.local_ppm
    assert _spread(joint - truth, surface) < 0.9 * _spread(outside_alone - truth, surface)
    assert _spread(joint - truth, HEAD.mask) < 0.9 * _spread(outside_alone - truth, HEAD.mask)


def test_at_full_length_the_storage_order_moves_the_answer_by_rounding_alone() -> None:
    """Hundreds of single-precision steps: 2 % of the largest local field, where the short run keeps 0.02 %."""
    turn = laws.TURNS[1]
    expected, _ = tfi(HEAD.field_ppm, HEAD.mask, GEOMETRY, EVEN)
    arrays = [laws.turned(a, turn) for a in (HEAD.field_ppm, HEAD.mask)]
    got, _ = tfi(*arrays, laws.turned_geometry(GEOMETRY, turn), laws.turned(EVEN, turn))
    laws.assert_close(got, laws.turned(expected, turn), 0.02)


@pytest.mark.parametrize("shape", [(37, 45, 40), (36, 46, 41)])
def test_the_coarse_grid_gives_the_fine_grids_answer(shape: tuple[int, int, int]) -> None:
    """Blocks of 2 x 2 x 2 voxels on lengths that two does not divide, against no blocks at all."""
    geometry = phantoms.oblique(shape, (1.1, 0.9, 1.0))
    head = phantoms.head(geometry)
    even = np.ones(shape, np.float32)
    run = {
        coarse: tfi(head.field_ppm, head.mask, geometry, even, coarse_mm=coarse, margin_mm=16.0, iterations=60)[0]
        for coarse in (0.0, 2.0)
    }
    core = head.depth_mm() > 4
    assert not np.array_equal(run[0.0], run[2.0])
    assert _spread(run[2.0] - run[0.0], core) < 0.15 * _spread(head.local_ppm, core)
    errors = {coarse: _spread(local - head.local_ppm, core) for coarse, local in run.items()}
    assert errors[2.0] < 1.35 * errors[0.0]  # tissue correlated over 3 mm is coarse on voxels of 2 mm
