"""The authors' checkpoint, which a site has: converted, and run by the runtime with the published windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet as Reference

from export import to_onnx
from export.published import OVERLAP, SHARE
from qsm_edge import masking
from qsm_edge.masking.windows import sizes
from qsm_edge.network import load
from qsm_edge.types import Geometry

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """MONAI's network with random weights, and the file made of its checkpoint."""
    folder = tmp_path_factory.mktemp("site")
    torch.manual_seed(3)
    theirs = Reference(spatial_dims=3, in_channels=1, out_channels=1, features=(4, 4, 8, 8, 8, 4)).eval()
    torch.save(theirs.state_dict(), folder / "authors.pth")
    to_onnx.main([str(folder / "authors.pth"), str(folder / "site.onnx"), "--checkpoint", "--licence", "academic use"])
    return theirs, folder / "site.onnx"


def test_the_runtime_computes_what_monai_computes_on_its_windows(site):
    theirs, path = site
    volume = np.random.default_rng(0).random((1, 1, 50, 61, 70), dtype=np.float32)
    with torch.no_grad():
        wanted = sliding_window_inference(
            torch.from_numpy(volume), sizes(volume.shape[2:], SHARE), 1, theirs, overlap=OVERLAP
        )
    got = load(path).segment(volume)
    assert np.abs(got - wanted.numpy()).max() < 1e-4


def test_the_mask_is_that_of_the_published_recipe_on_the_volumes_own_voxels(site):
    theirs, path = site
    rng = np.random.default_rng(1)
    magnitude = rng.random((48, 52, 50), dtype=np.float32)  # z, y, x: S, P, L
    geometry = Geometry.from_axes(magnitude.shape, voxel_mm=(2.0, 1.0, 1.5))
    soft = []
    mask = masking.network(
        magnitude[None],
        np.zeros_like(magnitude)[None],
        [0.005],
        geometry,
        model=path,
        smooth_mm=0,
        on_confidence=soft.append,
    )
    turned = magnitude.transpose(1, 2, 0)[:, ::-1]  # P, R, S
    scaled = (turned - turned.min()) / (turned.max() - turned.min())
    tensor = torch.from_numpy(np.ascontiguousarray(scaled)[None, None])
    with torch.no_grad():
        logits = sliding_window_inference(tensor, sizes(scaled.shape, SHARE), 1, theirs, overlap=OVERLAP)
    wanted = (logits.numpy()[0, 0] > 0)[:, ::-1].transpose(2, 0, 1)
    assert soft[0].agreement is None
    cleaned = masking.clean(wanted.astype(np.float32), geometry, smooth_mm=0, magnitude=magnitude)
    assert np.mean(mask == cleaned) > 0.9999
