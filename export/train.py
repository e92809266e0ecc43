"""Train the mask network: ``python -m export.train --name RUN --label-maps DIR --steps N`` (see --help).

Stops and goes on: `--name RUN` of a run that has a checkpoint takes it up where it was, with the same samples in the same
order. Writes below export/out/runs/RUN: config.toml, curve.csv, curve.png, last.pt (everything) and best.pt (the averaged
weights with the best Dice on the development heads).
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scipy.ndimage as ndi
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from export.data import WORK, Pair, Source
from export.model import OUTPUTS, PUBLISHED, BasicUNet, EdgeNet, parameters, unfolded
from export.pictures import curve
from qsm_edge.masking.confidence import agreement

SIZES: dict[str, dict[str, Any]] = {
    "small": {"widths": (16, 32, 48, 64)},
    "medium": {"widths": (16, 32, 64, 96)},
    "fine": {"widths": (16, 32, 64, 96), "detail": 48},
    "large": {"widths": (24, 48, 80, 96), "detail": 48},
}
WARM_UP = 150
DECAY = 0.998  # of the averaged weights
VALIDATE_EVERY = 500
FRESH_EVERY = 8  # every eighth step sees a sample that no step has seen; making one takes longer than a step
BEYOND_LESIONS = 0.6  # share of a voxel that touches a lesion which counts as brain
FACES = ndi.generate_binary_structure(3, 1)
BATCH = 2  # windows a step; with one alone torch takes a convolution on the CPU that is three times slower


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="export.train", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--name", required=True, help="folder of the run below export/out/runs; one that exists goes on"
    )
    parser.add_argument(
        "--label-maps", type=Path, help="folder with head label maps; procedural heads where it is not given"
    )
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--stop-at", type=int, help="stop here, as if interrupted; the schedule is that of --steps")
    parser.add_argument("--size", choices=(*SIZES, "published"), default="medium")
    parser.add_argument("--crop", type=int, nargs=3, default=(80, 80, 80), metavar=("Z", "Y", "X"))
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--lesion-weight", type=float, default=8.0)
    parser.add_argument("--foreign-weight", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that make samples")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pool", type=int, default=0, help="samples that the first step draws from already")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=torch.cpu._is_avx512_bf16_supported() or torch.cuda.is_available(),
        help="convolutions in bfloat16, twice as fast where the processor has them; weights stay float32",
    )
    parser.add_argument(
        "--develop", type=int, default=16, help="samples of the development heads that are validated on"
    )
    parser.add_argument(
        "--start-from", type=Path, help="a checkpoint whose averaged weights are started from, or an ONNX file of ours"
    )
    parser.add_argument("--work", type=Path, default=WORK)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    run(args)
    return 0


def build(size: str, outputs: int = OUTPUTS) -> torch.nn.Module:
    """A network by its name in `--size`."""
    return BasicUNet(PUBLISHED, outputs=outputs) if size == "published" else EdgeNet(**SIZES[size], outputs=outputs)


def run(args: argparse.Namespace) -> Path:
    """Train as told; returns the folder of the run."""
    folder = args.work / "runs" / args.name
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    network, average = (build(args.size).to(device, memory_format=torch.channels_last_3d) for _ in range(2))
    if args.start_from:
        found = started_from(args.start_from, network)
        own = network.state_dict()
        fitting = {k: v for k, v in found.items() if k in own and v.shape == own[k].shape}
        network.load_state_dict(own | fitting)
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=args.rate, weight_decay=0.01, betas=(0.9, 0.99))
    step, best, spent = 0, 0.0, 0.0
    last = folder / "last.pt"
    if last.exists():
        state = torch.load(last, weights_only=True, map_location=device)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step, best, spent = state["step"], state["best"], state["seconds"]
    else:
        said = [f"{key} = {str(value)!r}" for key, value in sorted(vars(args).items()) if key not in ("work",)]
        (folder / "config.toml").write_text(
            "\n".join([*said, f"parameters = {parameters(network)}", ""]), encoding="utf-8"
        )
    end = min(args.steps, args.stop_at or args.steps)
    develop = [Source(args.label_maps, "develop", args.work).pair(k) for k in range(args.develop)]
    steps = Steps(args, step, end)
    loader = torch.utils.data.DataLoader(
        steps, batch_size=None, num_workers=args.workers, prefetch_factor=4 if args.workers else None
    )
    started, losses = time.monotonic(), []
    for tensor, target, weight in loader:
        rate = args.rate * min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)) + 1e-6
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(device, torch.bfloat16, enabled=args.bfloat16):
            logit = network(tensor.to(device, memory_format=torch.channels_last_3d))
        value = loss(logit.float(), target.to(device), weight.to(device))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        losses.append(float(value.detach()))
        share = min(DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(now, 1 - share)
        if step % VALIDATE_EVERY == 0 or step == end:
            seconds = spent + time.monotonic() - started
            scores = validate(average, develop, device)
            log(
                folder,
                {
                    "step": step,
                    "seconds": round(seconds),
                    "rate": f"{rate:.2e}",
                    "loss": round(float(np.mean(losses)), 5),
                    **scores,
                },
            )
            losses = []
            better = scores["dice"] > best
            best = max(best, scores["dice"])
            state = {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
            }
            state |= {"step": step, "best": best, "seconds": seconds, "size": args.size}
            save(state, last)
            if better:
                save({"average": average.state_dict(), "step": step, "size": args.size}, folder / "best.pt")
    return folder


def started_from(path: Path, network: torch.nn.Module) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint; of an ONNX file those that it was folded from, for as long as it has them all."""
    if path.suffix != ".onnx":
        return dict(torch.load(path, weights_only=True, map_location="cpu")["average"])
    initial = onnx.load(path).graph.initializer
    plain = {
        i.name.removesuffix(".half"): torch.from_numpy(numpy_helper.to_array(i).astype(np.float32)) for i in initial
    }
    own = network.state_dict()
    return unfolded(network, {name: value for name, value in plain.items() if name in own})


class Steps(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """What each step is shown; entry i is that of step `first + i`, whatever was shown before."""

    def __init__(self, args: argparse.Namespace, first: int, end: int) -> None:
        self.args, self.first, self.end = args, first, end
        self.source = Source(args.label_maps, "train", args.work)

    def __len__(self) -> int:
        return max(0, self.end - self.first)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        step = self.first + i
        rng = np.random.default_rng([self.args.seed, step])
        newest = self.args.pool + step // FRESH_EVERY
        chosen = rng.integers(newest + 1, size=BATCH)
        if step % FRESH_EVERY == 0:
            chosen[0] = newest
        windows = [prepared(self.source.pair(int(k)), self.args, rng) for k in chosen]
        a, b, c = (torch.stack(parts) for parts in zip(*windows, strict=True))
        return a, b, c


def prepared(pair: Pair, args: argparse.Namespace, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random window, mirrored or not, of random brightness: input and weight (1, z, y, x), target (2, z, y, x)."""
    window = []
    middle = [
        float(np.average(np.arange(n), weights=pair.mask.sum(axis=others) + 1e-3))
        for n, others in zip(pair.mask.shape, ((1, 2), (0, 2), (0, 1)), strict=True)
    ]
    spread = 4 if rng.random() < 0.6 else 18
    for n, m, at in zip(pair.tensor.shape, args.crop, middle, strict=True):
        start = int(np.clip(round(at - m / 2 + rng.normal(0, spread)), 0, max(0, n - m)))
        window.append(slice(start, start + m))
    flip = -1 if rng.random() < 0.5 else 1
    volumes = (pair.tensor, pair.mask, pair.tissue, pair.lesion, pair.foreign)
    tensor, mask, tissue, lesion, foreign = (v[tuple(window)][:, :, ::flip].astype(np.float32) for v in volumes)
    tensor = tensor * np.float32(np.exp(rng.normal(0, 0.2)))
    if rng.random() < 0.3:
        tensor = np.maximum(tensor, 0) ** np.float32(np.exp(rng.normal(0, 0.2)))
    mask, tissue, lesion, foreign = mask / 255, tissue / 255, lesion / 255, foreign / 255
    # A lesion is kept whole, also where it is the surface itself: a voxel that holds two fifths of one belongs to the mask,
    # and so does most of its neighbours, where the grid cannot say how far the lesion goes.
    around = np.minimum(1, 1.5 * ndi.maximum_filter(lesion, footprint=FACES, mode="nearest"))
    kept = np.maximum(np.minimum(1, 2.5 * lesion), BEYOND_LESIONS * around)
    target = np.maximum(np.stack([mask, tissue]), kept)
    weight = 1 + args.lesion_weight * kept + args.foreign_weight * foreign
    a, b, c = (torch.from_numpy(np.ascontiguousarray(v)) for v in (tensor[None], target, weight[None]))
    return a, b, c


def loss(logit: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted cross-entropy and Dice with squares, both least where the probability is the share that is brain."""
    entropy = functional.binary_cross_entropy_with_logits(logit, target, weight=weight.expand_as(target))
    p = torch.sigmoid(logit)
    inner = tuple(axis for axis in range(logit.ndim) if axis != 1)
    overlap = 2 * (weight * p * target).sum(inner)
    dice = (1 - overlap / ((weight * (p * p + target * target)).sum(inner) + 1)).mean()
    return entropy * 2 + dice


def validate(network: torch.nn.Module, pairs: list[Pair], device: str) -> dict[str, float]:
    """Over whole heads on the network's grid: mean and least Dice, worst share of lesions kept, litres outside and missed."""
    network.eval()
    dice, kept, outside, missed = [], [], [], []
    found_all = []
    with torch.no_grad():
        for start in range(0, len(pairs), BATCH):
            tensor = torch.from_numpy(np.stack([p.tensor for p in pairs[start : start + BATCH]]).astype(np.float32))[
                :, None
            ]
            found_all.extend((network(tensor.to(device, memory_format=torch.channels_last_3d))[:, 0] > 0).cpu().numpy())
    for pair, found in zip(pairs, found_all, strict=True):
        true, lesion = pair.mask > 127, pair.lesion > 127
        dice.append(agreement(found, true, 0.5))
        outside.append(0.008 * (found & ~true).sum())
        missed.append(0.008 * (true & ~found).sum())
        if lesion.sum() > 20:
            kept.append(float(found[lesion].mean()))
    network.train()
    values = {
        "dice": np.mean(dice),
        "dice_min": np.min(dice),
        "outside_ml": np.mean(outside),
        "missed_ml": np.mean(missed),
    }
    values["lesion_kept_min"] = np.min(kept) if kept else float("nan")
    return {name: round(float(value), 4) for name, value in values.items()}


def save(state: dict[str, object], path: Path) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def log(folder: Path, row: dict[str, object]) -> None:
    """A line in curve.csv and on the screen, and the picture anew."""
    path = folder / "curve.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    curve(path, path.with_suffix(".png"))


if __name__ == "__main__":
    raise SystemExit(main())
