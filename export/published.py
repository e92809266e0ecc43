"""Weights of the published QSMmask-net, which a site has obtained itself, as a file that this runtime runs.

The network, its scaling and its windows are those of the paper (Lee et al., NMR Biomed 2025, doi:10.1002/nbm.70057): one
magnitude volume scaled by its least and largest value, axes P, R, S, windows of 0.7 x 0.7 x 0.5 of the volume that overlap by
half, the sigmoid cut at 0.5, holes filled. The weights belong to their authors and are for academic and research use: the
file that is made here stays at the site.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from export.model import BasicUNet
from qsm_edge.masking.windows import averaged

AXES = "PRS"
SHARE = (0.7, 0.7, 0.5)
OVERLAP = 0.5
SHAPES = ((48, 48, 64), (49, 53, 71))  # that torch and onnxruntime are compared on: even, and odd on every level


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint: as it is, or under a usual key, or with the prefix of a wrapper. Tensors only are read."""
    found: Any = torch.load(path, weights_only=True, map_location="cpu")
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ValueError(f"{path.name}: no state dict")
    return {name.removeprefix("module."): value for name, value in found.items()}


def network_of(state: dict[str, torch.Tensor]) -> BasicUNet:
    """The published network of whatever widths the weights have; ValueError where they are of another network."""
    try:
        widths = [
            state[f"{name}.conv_1.conv.weight"].shape[0]
            for name in ("conv_0", *(f"down_{i}.convs" for i in (1, 2, 3, 4)))
        ]
        a, b, c, d, e = widths
        network = BasicUNet((a, b, c, d, e, state["final_conv.weight"].shape[1]))
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the weights are not of the published architecture: {error}") from None
    return network.eval()


def convert(args: argparse.Namespace) -> float:
    """Write args.out and its card; returns the largest difference between torch and onnxruntime, which is held to 1e-4."""
    from export.to_onnx import TOLERANCE, exported, write_card

    network = network_of(state_of(args.weights))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    free = {axis: torch.export.Dim(name, min=16, max=1024) for axis, name in ((2, "p"), (3, "r"), (4, "s"))}
    exported(network, torch.rand(1, 1, 48, 40, 33), args.out, dynamic_shapes=(free,))
    rng = np.random.default_rng(0)
    worst = max(
        windowed_difference(network, args.out, rng.random((1, 1, *shape), dtype=np.float32)) for shape in SHAPES
    )
    print(f"{args.out.name}: {args.out.stat().st_size / 1e6:.2f} MB, torch and onnxruntime differ by {worst:.1e}")
    if not worst <= TOLERANCE:
        args.out.unlink()
        raise SystemExit(f"torch and onnxruntime differ by {worst:.1e}, wanted {TOLERANCE:.0e} at most")
    write_card(args.out, args, {"architecture": "BasicUNet as published, doi:10.1002/nbm.70057"}, PUBLISHED_INPUT)
    return worst


PUBLISHED_INPUT = [
    "[input]",
    f'axes = "{AXES}"',
    'normalisation = "minmax"',
    "",
    "[windows]",
    f"share = {list(SHARE)}",
    f"overlap = {OVERLAP}",
]


def windowed_difference(network: BasicUNet, path: Path, tensor: np.ndarray) -> float:
    """The largest difference of probabilities between torch and onnxruntime on the same windows."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def ours(window: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(window)).numpy())

    def theirs(window: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: window})[0])

    a, b = (1 / (1 + np.exp(-averaged(tensor, SHARE, OVERLAP, run))) for run in (ours, theirs))
    return float(np.abs(a - b).max())
