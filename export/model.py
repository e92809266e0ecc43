"""The mask networks: `BasicUNet`, of the published shape, `EdgeNet`, ours, made for two cores, and its second look `FineNet`.

QSMmask-net (Lee et al., NMR Biomed 2025, doi:10.1002/nbm.70057) is a five-level U-Net in the layout that MONAI gives the
name BasicUNet, on windows of 128 x 128 x 64 voxels. `EdgeNet` looks at the whole head at once, on 2 mm. It has no
normalisation over space, so that its output at a voxel does not depend on how much air or neck is in the picture; its
weights are standardised instead (Brock et al., ICLR 2021, arXiv:2101.08692), which is folded into plain convolutions when
the network is exported.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from qsm_edge.masking.fine import CHANNELS as INPUTS
from qsm_edge.masking.fine import UNIT

PUBLISHED = (16, 32, 64, 128, 256, 32)
SLOPE = 0.1
OUTPUTS = 2  # of ours: the mask, and the tissue whose closing is the mask


class _ConvNormAct(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.adn = nn.Sequential()
        self.adn.add_module("N", nn.InstanceNorm3d(outputs, affine=True))
        self.adn.add_module("A", nn.LeakyReLU(SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.adn(self.conv(x))


class _Pair(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_0 = _ConvNormAct(inputs, outputs)
        self.conv_1 = _ConvNormAct(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_1(self.conv_0(x))


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = _Pair(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(functional.max_pool3d(x, 2))


class _Up(nn.Module):
    def __init__(self, inputs: int, skipped: int, outputs: int, halved: bool) -> None:
        super().__init__()
        raised = inputs // 2 if halved else inputs
        self.upsample = nn.Sequential()
        self.upsample.add_module("deconv", nn.ConvTranspose3d(inputs, raised, 2, stride=2))
        self.convs = _Pair(skipped + raised, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(torch.cat([skip, _grown(self.upsample(x), skip)], dim=1))


def _grown(x: Tensor, like: Tensor) -> Tensor:
    """`x` with its last voxel repeated where `like` is a voxel longer: odd lengths lose one on the way down."""
    for axis in (2, 3, 4):
        index = torch.arange(like.shape[axis], device=x.device).clamp(max=x.shape[axis] - 1)
        x = x.index_select(axis, index)
    return x


class BasicUNet(nn.Module):
    """The published architecture: (n, 1, z, y, x) in [0, 1] -> logits of the same shape, 16 voxels an axis at least.

    Its state dict has the names and shapes of MONAI's class of that name in three dimensions with default options, so that a
    checkpoint trained with MONAI loads as it is.
    """

    def __init__(self, features: tuple[int, ...] = PUBLISHED, inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        a, b, c, d, e, last = features
        self.conv_0 = _Pair(inputs, a)
        self.down_1, self.down_2 = _Down(a, b), _Down(b, c)
        self.down_3, self.down_4 = _Down(c, d), _Down(d, e)
        self.upcat_4, self.upcat_3 = _Up(e, d, d, True), _Up(d, c, c, True)
        self.upcat_2, self.upcat_1 = _Up(c, b, b, True), _Up(b, a, last, False)
        self.final_conv = nn.Conv3d(last, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x0 = self.conv_0(x)
        x1 = self.down_1(x0)
        x2 = self.down_2(x1)
        x3 = self.down_3(x2)
        x4 = self.down_4(x3)
        return self.final_conv(self.upcat_1(self.upcat_2(self.upcat_3(self.upcat_4(x4, x3), x2), x1), x0))


class ScaledConv(nn.Conv3d):
    """A convolution whose weights have zero mean and unit gain for every output channel, times a learnt gain."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1, 1))
        self.fan_in = inputs * kernel**3

    def standardised(self) -> Tensor:
        """The weights that are really applied."""
        mean = self.weight.mean(dim=(1, 2, 3, 4), keepdim=True)
        deviation = self.weight.var(dim=(1, 2, 3, 4), keepdim=True, unbiased=False)
        # 1.7 makes up for what the rectifier takes away of a unit variance
        return (self.weight - mean) * (1.7 * self.gain * torch.rsqrt(deviation * self.fan_in + 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv3d(x, self.standardised(), self.bias, self.stride, self.padding)

    def folded(self) -> nn.Conv3d:
        """The plain convolution with the same result."""
        plain = nn.Conv3d(self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding)
        with torch.no_grad():
            plain.weight.copy_(self.standardised())
            plain.bias.copy_(self.bias)
        return plain


class _Residual(nn.Module):
    """x + gain * conv(relu(conv(relu(x)))), the gain starting at 0.2, so that the variance hardly grows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = ScaledConv(channels, channels, 3), ScaledConv(channels, channels, 3)
        self.share = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * self.second(functional.relu(self.first(functional.relu(x))))


class EdgeNet(nn.Module):
    """Ours: (n, 1, z, y, x), whole head on 2 mm, any scale near [0, 1] -> logits (n, 2, z, y, x), the mask and the
    brain's tissue; lengths multiples of 16.

    Blocks of 2 x 2 x 2 voxels become channels and back, so that all convolutions work on 4 mm and coarser; the last two see
    the input's own voxels again, which is where the edge comes from. What they give is not the logit of each voxel but a
    quadratic in that voxel's own brightness: at the edge a voxel's share of tissue is linear in its brightness, and which
    brightness is brain is a matter of the surroundings (as in Chen et al., ACM Trans Graph 2016, doi:10.1145/2980179.2982423,
    where a coarse network gives local affine models of a fine picture).
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 64, 96),
        blocks: tuple[int, ...] = (1, 2, 2, 3),
        detail: int = 16,
        outputs: int = OUTPUTS,
    ) -> None:
        super().__init__()
        self.stem = ScaledConv(8, widths[0], 3)
        self.encoder = nn.ModuleList(
            nn.Sequential(*[_Residual(w) for _ in range(n)]) for w, n in zip(widths, blocks, strict=True)
        )
        self.down = nn.ModuleList(ScaledConv(a, b, 3, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(ScaledConv(b, a, 1) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_Residual(w) for w in widths[:-1])
        self.detail = ScaledConv(widths[0] + 8, detail, 3)
        self.out = nn.Conv3d(detail, 8 * outputs, 3, padding=1)
        self.slopes = nn.Conv3d(detail, 2 * 8 * outputs, 1)
        nn.init.zeros_(self.slopes.weight)
        nn.init.zeros_(self.slopes.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        blocks = _to_channels(x)
        level, skips = self.stem(blocks), []
        for depth, block in enumerate(self.encoder):
            if depth:
                level = self.down[depth - 1](functional.relu(level))
            level = block(level)
            skips.append(level)
        for depth in reversed(range(len(self.decoder))):
            raised = functional.interpolate(self.up[depth](functional.relu(level)), scale_factor=2, mode="nearest")
            level = self.decoder[depth]((skips[depth] + raised) * 0.7)
        fine = functional.relu(self.detail(torch.cat([functional.relu(level), blocks], dim=1)))
        first, second = _to_voxels(self.slopes(fine)).chunk(2, dim=1)
        return _to_voxels(self.out(fine)) + x * (first + x * second)


class FineNet(nn.Module):
    """The second look, on the scanner's own voxels near the brain: (n, 4, z, y, x) as `masking.fine` makes them -> logits
    (n, 2, z, y, x), the mask and the brain's tissue; lengths even.

    What it gives is added to the first network's logits: again, of each voxel, a quadratic in its brightness, and a multiple
    of its decay, with factors from 10 mm around. Nothing is normalised over space, so that any box gives the same.
    """

    def __init__(self, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.stem = ScaledConv(8 * INPUTS, width, 3)
        self.blocks = nn.Sequential(*[_Residual(width) for _ in range(blocks)])
        self.out = nn.Conv3d(width, 8 * 4 * OUTPUTS, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        seen = _to_channels(x)
        around = functional.relu(self.blocks(self.stem(seen)))
        # As channels: turning them to voxels takes as long as a convolution.
        bright, fall, *first = seen.split(8, dim=1)
        finer = []
        for said, factors in zip(first, self.out(around).chunk(OUTPUTS, dim=1), strict=True):
            level, slope, bend, share = factors.split(8, dim=1)
            finer.append(UNIT * said + level + bright * (slope + bright * bend) + fall * share)
        return _to_voxels(torch.cat(finer, dim=1))


def _to_channels(x: Tensor) -> Tensor:
    """(n, c, 2z, 2y, 2x) -> (n, 8c, z, y, x)."""
    n, c, z, y, x_ = x.shape
    blocks = x.reshape(n, c, z // 2, 2, y // 2, 2, x_ // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(n, 8 * c, z // 2, y // 2, x_ // 2)


def _to_voxels(x: Tensor) -> Tensor:
    """(n, 8c, z, y, x) -> (n, c, 2z, 2y, 2x), for every c the inverse of `_to_channels`."""
    n, _, z, y, x_ = x.shape
    voxels = x.reshape(n, -1, 2, 2, 2, z, y, x_).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return voxels.reshape(n, voxels.shape[1], 2 * z, 2 * y, 2 * x_)


def folded(network: nn.Module) -> nn.Module:
    """The same network with plain convolutions, in place of standardised ones; its input is changed."""
    for name, part in network.named_children():
        if isinstance(part, ScaledConv):
            setattr(network, name, part.folded())
        else:
            folded(part)
    return network


def unfolded(network: nn.Module, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with which `network` computes what the plain convolutions `plain` of its folded twin do."""
    state = dict(plain)
    for name, part in network.named_modules():
        if isinstance(part, ScaledConv):
            deviation = plain[f"{name}.weight"].var(dim=(1, 2, 3, 4), keepdim=True, unbiased=False)
            state[f"{name}.gain"] = torch.sqrt(deviation * part.fan_in + 1e-5) / 1.7
    return state


def parameters(network: nn.Module) -> int:
    """How many there are."""
    return sum(p.numel() for p in network.parameters())
