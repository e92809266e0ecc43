"""The two networks: the published one against MONAI itself, ours against what it claims of itself."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet as Reference

from export.model import BasicUNet, EdgeNet, folded, parameters
from export.published import network_of, state_of

pytestmark = pytest.mark.filterwarnings("ignore")


def reference(features=(4, 4, 8, 8, 8, 4)):
    torch.manual_seed(0)
    return Reference(spatial_dims=3, in_channels=1, out_channels=1, features=features).eval()


@pytest.mark.parametrize("shape", [(32, 48, 32), (37, 41, 45)], ids=["even", "odd"])
def test_a_checkpoint_of_monai_loads_and_computes_the_same(tmp_path, shape):
    theirs = reference()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "authors.pth")
    ours = network_of(state_of(tmp_path / "authors.pth"))
    x = torch.rand(1, 1, *shape)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max() < 1e-5


def test_the_published_widths_have_the_published_size():
    assert parameters(BasicUNet()) == parameters(reference((16, 32, 64, 128, 256, 32)))
    assert 5.6e6 < parameters(BasicUNet()) < 5.8e6


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, [1, 2], {"state_dict": {"a": 1}}])
def test_other_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no state dict|not of the published architecture"):
        network_of(state_of(tmp_path / "other.pth"))


def made():
    """A small network whose every part has a say, the slopes too, which training starts at zero."""
    torch.manual_seed(1)
    network = EdgeNet((8, 8, 8, 8), (1, 1, 1, 1)).eval()
    torch.nn.init.normal_(network.slopes.weight, std=0.1)
    return network


@pytest.fixture(scope="module")
def small():
    return made()


def test_a_voxels_own_brightness_moves_its_logit_along_a_parabola():
    """Given the surroundings (a model of the network with the context held), three values of a voxel determine all others."""
    network = made()
    fine = torch.rand(1, network.out.in_channels, 8, 8, 8)
    network.detail.register_forward_hook(lambda *_: fine)
    with torch.no_grad():
        at = [network(torch.full((1, 1, 16, 16, 16), value))[..., 3:13, 3:13, 3:13] for value in (0.0, 1.0, 2.0, 3.0)]
    assert (at[3] - 3 * at[2] + 3 * at[1] - at[0]).abs().max() < 1e-4 * at[3].abs().max()
    assert (at[2] - 2 * at[1] + at[0]).abs().max() > 1e-2


def test_folding_the_standardised_weights_changes_nothing():
    network = made()
    x = torch.rand(2, 1, 32, 48, 32)
    with torch.no_grad():
        before = network(x)
        after = folded(network)(x)
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    assert not any("gain" in name for name in network.state_dict())


def test_air_far_away_does_not_change_the_output(small):
    """No normalisation over space: what a voxel gets does not depend on how much of nothing surrounds the head."""
    x = torch.zeros(1, 1, 160, 48, 48)
    x[:, :, 112:, :, :] = torch.rand(1, 1, 48, 48, 48)
    more = torch.zeros(1, 1, 176, 48, 48)
    more[:, :, 16:] = x
    with torch.no_grad():
        assert (small(x)[:, :, 144:] - small(more)[:, :, 160:]).abs().max() < 1e-4


def test_a_voxel_shift_of_a_block_shifts_the_output(small):
    x = torch.zeros(1, 1, 96, 48, 48)
    x[:, :, 32:48, 16:32, 16:32] = torch.rand(1, 1, 16, 16, 16)
    moved = torch.roll(x, 16, 2)
    with torch.no_grad():
        a, b = small(x), small(moved)
    assert (a[:, :, 32:48] - b[:, :, 48:64]).abs().max() < 0.05 * a.abs().max()
