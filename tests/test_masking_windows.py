"""Windows over a volume: every voxel seen, where MONAI's stand, averaged."""

from __future__ import annotations

import numpy as np
import pytest

from qsm_edge.masking.windows import averaged, boxes, sizes


@pytest.mark.parametrize("shape", [(20, 31, 17), (8, 8, 8), (50, 9, 33)])
@pytest.mark.parametrize("share", [(0.7, 0.7, 0.5), (1.0, 0.3, 0.6)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_every_voxel_is_seen_and_no_window_leaves_the_volume(shape, share, overlap):
    seen = np.zeros(shape, int)
    size = sizes(shape, share)
    for box in boxes(shape, size, overlap):
        assert tuple(s.stop - s.start for s in box) == size
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(box, shape, strict=True))
        seen[box] += 1
    assert seen.min() >= 1


def test_the_places_are_the_known_ones():
    starts = sorted({box[0].start for box in boxes((100, 10, 10), (70, 10, 10), 0.5)})
    assert starts == [0, 30]
    assert len(boxes((10, 10, 10), (10, 10, 10), 0.5)) == 1
    assert sorted({b[2].start for b in boxes((1, 1, 16), (1, 1, 8), 0.5)}) == [0, 4, 8]


def test_what_windows_agree_on_is_kept_and_what_they_do_not_is_averaged():
    volume = np.random.default_rng(0).random((1, 1, 12, 13, 14), dtype=np.float32)
    assert np.allclose(averaged(volume, (0.7, 0.7, 0.5), 0.5, lambda w: 2 * w), 2 * volume)
    calls = []

    def numbered(window):
        calls.append(1)
        return np.full_like(window, len(calls))

    out = averaged(volume[..., :1, :1, :], (1, 1, 0.5), 0.5, numbered)[0, 0, 0, 0]
    assert out[0] == 1
    assert out[5] == 1.5
