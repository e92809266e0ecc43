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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from export.data import WORK, Pair, Source
from export.model import OUTPUTS, PUBLISHED, BasicUNet, EdgeNet, parameters, unfolded
from export.pictures import curve
from export.pool import Pool
from export.views import VOLUMES, View, cut, middle, shown, view
from qsm_edge.masking.confidence import agreement

SIZES: dict[str, dict[str, Any]] = {
    "small": {"widths": (16, 32, 48, 64)},
    "medium": {"widths": (16, 32, 64, 96)},
    "fine": {"widths": (16, 32, 64, 96), "detail": 48},
    "large": {"widths": (24, 48, 80, 96), "detail": 48},
    "wide": {"widths": (32, 64, 96, 128), "detail": 64},
}
WARM_UP = 150
DECAY = 0.998  # of the averaged weights
VALIDATE_EVERY = 500
FRESH_EVERY = 8  # every eighth step sees a sample that no step has seen; making one takes longer than a step
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
    parser.add_argument(
        "--seconds", type=float, help="let the clock, not the steps, say how the rate falls and when to stop"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help="windows a step")
    parser.add_argument(
        "--resident", type=int, default=0, help="keep up to this many samples in the accelerator's memory (10 MB each)"
    )
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
    # before the accelerator is first used: its processes are forked
    pool = Pool(args.label_maps, args.work, args.workers, args.resident, args.develop) if args.resident else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
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
    if pool:
        loader: Iterable[tuple[list[list[Tensor]], list[View]]] = from_pool(pool, args, device, step)
    else:
        ahead = 4 if args.workers else None
        loader = torch.utils.data.DataLoader(
            Steps(args, step, end), batch_size=None, num_workers=args.workers, prefetch_factor=ahead
        )
    started, losses = time.monotonic(), []
    for windows, views in loader:
        seconds = spent + time.monotonic() - started
        done = min(1.0, seconds / args.seconds) if args.seconds else step / args.steps
        rate = rate_at(args.rate, step, WARM_UP, done)
        tensor, target, weight = shown(windows, views, (args.lesion_weight, args.foreign_weight))
        with torch.autocast(device, torch.bfloat16, enabled=args.bfloat16):
            logit = network(tensor.to(device, memory_format=torch.channels_last_3d))
        value = loss(logit.float(), target.to(device), weight.to(device))
        step = stepped(network, average, optimiser, value, rate, step)
        losses.append(value.detach())
        if args.seconds and done >= 1:
            end = step
        if step % VALIDATE_EVERY == 0 or step == end:
            mean = float(torch.stack(losses).mean())
            losses = []
            seconds = spent + time.monotonic() - started
            scores = validate(average, develop, device)
            samples = {"samples": pool.filled} if pool else {}
            log(
                folder,
                {
                    "step": step,
                    "seconds": round(seconds),
                    "rate": f"{rate:.2e}",
                    "loss": round(mean, 5),
                    **scores,
                    **samples,
                },
            )
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
        if step == end:
            break
    if pool:
        pool.close()
    return folder


def rate_at(peak: float, step: int, warm_up: int, done: float) -> float:
    """The rate of a step: up over `warm_up` steps, then down by a cosine of the share of the run that is `done`."""
    return peak * min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-6


def stepped(
    network: torch.nn.Module,
    average: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    value: Tensor,
    rate: float,
    step: int,
) -> int:
    """Take a step down the loss `value` and draw the averaged weights after it; returns how many steps that makes."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    share = min(DECAY, (2 + step) / (11 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - share)
    return step + 1


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
    """What each step is shown, from the disk; entry i is that of step `first + i`, whatever was shown before."""

    def __init__(self, args: argparse.Namespace, first: int, end: int) -> None:
        self.args, self.first, self.end = args, first, end
        self.source = Source(args.label_maps, "train", args.work)

    def __len__(self) -> int:
        return max(0, self.end - self.first)

    def __getitem__(self, i: int) -> tuple[list[list[Tensor]], list[View]]:
        step = self.first + i
        rng = np.random.default_rng([self.args.seed, step])
        newest = self.args.pool + step // FRESH_EVERY
        chosen = rng.integers(newest + 1, size=self.args.batch)
        if step % FRESH_EVERY == 0:
            chosen[0] = newest
        windows, views = [], []
        for k in chosen:
            pair = self.source.pair(int(k))
            views.append(view(rng, pair.tensor.shape, self.args.crop, middle(pair)))
            windows.append(cut([torch.from_numpy(getattr(pair, name)) for name in VOLUMES], views[-1], self.args.crop))
        return windows, views


def from_pool(
    pool: Pool, args: argparse.Namespace, device: str, first: int
) -> Iterator[tuple[list[list[Tensor]], list[View]]]:
    """What each step is shown, from the samples that are on the accelerator by then, for as long as it goes on asking."""
    pool.take(device, wait_for=args.pool)
    step = first
    while True:
        pool.take(device)
        yield pool.draw(np.random.default_rng([args.seed, step]), args.batch, tuple(args.crop))
        step += 1


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
        for start in range(0, len(pairs), 2):
            tensor = torch.from_numpy(np.stack([p.tensor for p in pairs[start : start + 2]]).astype(np.float32))[
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
