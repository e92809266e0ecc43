"""Train the second network: ``python -m export.fine --name RUN --label-maps DIR --seconds N`` (see --help).

It looks again at the neighbourhood of the brain, on the scanner's own voxels, with what the first network says of them
(`qsm_edge.masking.fine`); so its samples are made with the network that ships, or another by `--first`. A process of its own
makes samples for as long as the run lasts. Writes below export/out/runs/RUN, as `export.train` does, and goes on in the same way.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.anatomy import Anatomy
from export.data import WORK, Source
from export.model import FineNet, parameters
from export.synth import sample
from export.train import log, loss, rate_at, save, stepped
from export.views import BEYOND_LESIONS, VOLUMES
from export.world import SECOND_MM, Protocol, random_protocol
from qsm_edge import network as door
from qsm_edge.masking.fine import COARSEST_MM, fine_input
from qsm_edge.masking.grid import apply, down_weights, prepare

FIRST_SEED = {"train": 5_000_000, "develop": 6_000_000}
WARM_UP = 100
LOOK_EVERY = 15  # steps between two looks for new samples
SMALLEST = 24  # voxels; a thinner slab is no window
CUT = 0.4  # share of tissue that counts, in validation


def fine_protocol(rng: np.random.Generator) -> Protocol:
    """A random protocol that is not too coarse for a second look, with a late echo 4 to 35 ms (3 T) after the first."""
    while True:
        how = random_protocol(rng)
        if max(how.voxel_mm) <= COARSEST_MM[1] and min(how.voxel_mm) <= COARSEST_MM[0]:
            break
    gap = float(np.exp(rng.uniform(np.log(0.004), np.log(0.035)))) * min(1.3, 3 / how.b0_tesla)
    return replace(how, te_s=(how.te_s[0], how.te_s[0] + gap), finest_mm=SECOND_MM)


def made(anatomies: list[Anatomy], seed: int, first: door.Network) -> dict[str, np.ndarray] | None:
    """Volumes of `VOLUMES`: what the second network sees (4, z, y, x) float16, shares in 1/255; None: no brain was found."""
    one = sample(anatomies, seed, fine_protocol(np.random.default_rng([77, seed])))
    tensor, grid = prepare(one.magnitude[0], one.geometry, first.card)
    mask, tissue = first.segment(tensor)[0]
    seen = fine_input(one.magnitude[0], one.magnitude[1], one.geometry, mask, tissue, grid)
    if seen is None:
        return None
    weights = [rows[part] for rows, part in zip(down_weights(seen.grid), seen.box, strict=True)]
    even = [(0, len(rows) % 2) for rows in weights]
    shares = [
        np.pad(np.round(255 * np.clip(apply(v, weights), 0, 1)), even, mode="edge").astype(np.uint8)
        for v in (one.mask, one.tissue, one.lesion, one.foreign)
    ]
    return dict(zip(VOLUMES, [seen.tensor[0].astype(np.float16), *shares], strict=True))


def place(work: Path, split: str, k: int) -> Path:
    """Where sample k is kept."""
    return work / "samples" / f"fine-{split}" / f"{k:06d}.npz"


def make(source: Source, model: Path | None, numbers: range, nice: int = 5) -> None:
    """Samples of these numbers, on one core, into files; those that are there already are left."""
    os.nice(nice)
    torch.set_num_threads(1)
    path = model or door.default_model()
    assert path is not None
    first = door.load(path, threads=1)
    for k in numbers:
        kept = place(source.work, source.split, k)
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(".partial.npz")
            found = made(source.anatomies, FIRST_SEED[source.split] + k, first)
            np.savez(partial, **(found or {}))
            partial.replace(kept)


class Samples:
    """Those that have been made so far, `keep` of them in memory, the older ones leaving by chance."""

    def __init__(self, work: Path, keep: int) -> None:
        self.work, self.keep, self.seen = work, keep, 0
        self.held: list[list[Tensor]] = []

    def take(self, most: int, rng: np.random.Generator) -> None:
        """Read up to `most` new ones."""
        while most and place(self.work, "train", self.seen).exists():
            found = read(place(self.work, "train", self.seen))
            self.seen += 1
            if found is None or min(found[0].shape[1:]) < SMALLEST:
                continue
            self.held.append(found)
            most -= 1
            if len(self.held) > self.keep:
                self.held.pop(int(rng.integers(len(self.held) // 2)))


def read(path: Path) -> list[Tensor] | None:
    """A sample's volumes; None of one without a brain."""
    with np.load(path) as found:
        return [torch.from_numpy(found[name]) for name in VOLUMES] if found.files else None


def window(volumes: list[Tensor], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random cube of `size` voxels: input (4, ...), target (2, ...), weight (1, ...), as a head of another day gives them.

    Mirrored by chance, of other brightness, without a late echo one time in four, and with a first network that is wrong by a
    little, as it is on heads that it has not been trained on.
    """
    shape = volumes[0].shape[1:]
    sides = [min(size, n // 2 * 2) for n in shape]
    start = [int(rng.integers(0, n - m + 1)) for n, m in zip(shape, sides, strict=True)]
    part = tuple(slice(s, s + m) for s, m in zip(start, sides, strict=True))
    x = volumes[0][(slice(None), *part)].float().clone()
    shares = torch.stack([v[part] for v in volumes[1:]]).float() / 255
    if rng.random() < 0.5:
        x, shares = x.flip(3), shares.flip(3)
    x[0] *= float(np.exp(rng.normal(0, 0.1)))
    if rng.random() < 0.3:
        x[0] = x[0].clamp(min=0) ** float(np.exp(rng.normal(0, 0.2)))
    if rng.random() < 0.25:
        x[1] = 0
    for channel in (2, 3):
        off = float(rng.normal(0, 0.08)) + 0.12 * _smooth(sides, rng)
        x[channel] = x[channel] * float(np.exp(rng.normal(0, 0.15))) + off
    mask, tissue, lesion, foreign = shares[:, None]
    kept = torch.maximum((2.5 * lesion).clamp(max=1), BEYOND_LESIONS * (1.5 * _most(lesion, 3)).clamp(max=1))
    edge = _most(mask, 5) + _most(-mask, 5)
    target = torch.maximum(torch.cat([mask, tissue]), kept)
    weight = 1 + 4 * kept + foreign + 2 * edge
    end = [n for m in reversed(sides) for n in (0, size - m)]
    x = functional.pad(x[None], end, mode="replicate")[0]
    return x, functional.pad(target, end), functional.pad(weight, end)


def _most(volume: Tensor, side: int) -> Tensor:
    """The largest value in a cube of `side` voxels, axis by axis: at once it takes torch ten times as long."""
    for axis in range(3):
        kernel = [side if a == axis else 1 for a in range(3)]
        volume = functional.max_pool3d(volume[None], kernel, 1, [n // 2 for n in kernel])[0]
    return volume


def _smooth(shape: list[int], rng: np.random.Generator) -> Tensor:
    coarse = rng.standard_normal([max(2, n // 16 + 1) for n in shape]).astype(np.float32)
    return functional.interpolate(torch.from_numpy(coarse)[None, None], shape, mode="trilinear", align_corners=True)[
        0, 0
    ]


def compared(source: Source, count: int) -> list[np.ndarray]:
    """What a second network sees of heads of `source`, for a comparison of two runtimes: (1, 4, z, y, x) float32 each."""
    path = door.default_model()
    assert path is not None
    first = door.load(path)
    found = (made(source.anatomies, FIRST_SEED[source.split] + k, first) for k in range(count))
    return [one["tensor"].astype(np.float32)[None] for one in found if one is not None]


def run(args: argparse.Namespace) -> Path:
    """Train as told; returns the folder of the run."""
    folder = args.work / "runs" / args.name
    folder.mkdir(parents=True, exist_ok=True)
    source, develop = (Source(args.label_maps, split, args.work) for split in ("train", "develop"))
    _ = source.anatomies  # before forking: shared
    make(develop, args.first, range(args.develop), nice=0)
    fork = multiprocessing.get_context("fork")
    maker = fork.Process(target=make, args=(source, args.first, range(args.samples)), daemon=True)
    maker.start()
    try:
        _train(args, folder, maker)
    finally:
        maker.terminate()
    return folder


def _train(args: argparse.Namespace, folder: Path, maker: multiprocessing.process.BaseProcess) -> None:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    torch.set_num_threads(args.threads)
    network, average = (FineNet(args.width, args.blocks).to(memory_format=torch.channels_last_3d) for _ in range(2))
    optimiser = torch.optim.AdamW(network.parameters(), lr=args.rate, weight_decay=0.01, betas=(0.9, 0.99))
    step, spent, last = 0, 0.0, folder / "last.pt"
    start = last if last.exists() else args.start_from
    if start:
        state = torch.load(start, weights_only=True, map_location="cpu")
        network.load_state_dict(state["network"] if last.exists() else state["average"])
        average.load_state_dict(state["average"])
        if last.exists():
            optimiser.load_state_dict(state["optimiser"])
            step, spent = state["step"], state["seconds"]
    else:
        average.load_state_dict(network.state_dict())
    samples = Samples(args.work, args.keep)
    samples.take(args.keep, rng)
    while len(samples.held) < min(args.pool, args.samples):
        if not maker.is_alive() and not place(args.work, "train", samples.seen).exists():
            break
        time.sleep(0.2)
        samples.take(args.pool, rng)
    if not samples.held:
        raise SystemExit("no sample could be made to train on")
    looked_at = [v for v in (read(place(args.work, "develop", k)) for k in range(args.develop)) if v is not None]
    print(f"{parameters(network)} parameters, {len(samples.held)} samples", flush=True)
    started, logged, losses = time.monotonic(), 0.0, []
    while True:
        seconds = spent + time.monotonic() - started
        done = seconds / args.seconds if args.seconds else step / args.steps
        if done >= 1:
            break
        if step % LOOK_EVERY == 0:
            samples.take(1, rng)
        drawn = [
            window(samples.held[int(rng.integers(len(samples.held)))], args.window, rng) for _ in range(args.batch)
        ]
        x, target, weight = (torch.stack(list(v)) for v in zip(*drawn, strict=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            logit = network(x.to(memory_format=torch.channels_last_3d))
        value = loss(logit.float(), target, weight)
        step = stepped(network, average, optimiser, value, rate_at(args.rate, step, WARM_UP, done), step)
        losses.append(float(value.detach()))
        if seconds - logged > args.log_every:
            logged = seconds
            _note(folder, args, (network, average, optimiser), step, seconds, losses, samples.seen, looked_at)
            losses = []
    _note(folder, args, (network, average, optimiser), step, seconds, losses, samples.seen, looked_at)


def _note(
    folder: Path,
    args: argparse.Namespace,
    parts: tuple[FineNet, FineNet, torch.optim.Optimizer],
    step: int,
    seconds: float,
    losses: list[float],
    seen: int,
    looked_at: list[list[Tensor]],
) -> None:
    """A line of the curve, and the checkpoint."""
    network, average, optimiser = parts
    row = {"step": step, "seconds": round(seconds), "loss": round(float(np.mean(losses or [math.nan])), 5)}
    log(folder, row | {"dice": validate(average, looked_at), "samples": seen})
    state = {"network": network.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
    state |= {"step": step, "seconds": seconds, "width": args.width, "blocks": args.blocks}
    save(state, folder / "last.pt")


def validate(network: FineNet, held: list[list[Tensor]]) -> float:
    """Mean Dice of tissue over whole boxes."""
    found = []
    with torch.no_grad():
        for tensor, _, tissue, *_ in held:
            ours = network(tensor.float()[None])[0, 1] > math.log(CUT / (1 - CUT))
            true = tissue > CUT * 255
            found.append(2 * float((ours & true).sum()) / max(1.0, float(ours.sum() + true.sum())))
    return round(float(np.mean(found)), 4) if found else math.nan


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="export.fine", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--name", required=True, help="folder of the run below export/out/runs; one that exists goes on"
    )
    parser.add_argument("--label-maps", type=Path, help="head label maps; procedural heads where it is not given")
    parser.add_argument("--first", type=Path, help="the first network's ONNX file; the one that ships by default")
    parser.add_argument(
        "--start-from", type=Path, help="last.pt of another run, whose averaged weights are started from"
    )
    parser.add_argument("--seconds", type=float, help="let the clock say how the rate falls and when to stop")
    parser.add_argument("--steps", type=int, default=6000, help="where --seconds is not given")
    parser.add_argument("--samples", type=int, default=900, help="how many are made")
    parser.add_argument("--pool", type=int, default=12, help="samples that the first step waits for")
    parser.add_argument("--keep", type=int, default=200, help="samples in memory (30 MB each)")
    parser.add_argument("--develop", type=int, default=7, help="samples of the development heads")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--window", type=int, default=72)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=float, default=400.0, help="seconds")
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=torch.cpu._is_avx512_bf16_supported()
    )
    parser.add_argument("--work", type=Path, default=WORK)
    args = parser.parse_args(arguments)
    if args.window % 2:
        parser.error("--window is even: blocks of two voxels become channels")
    run(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
