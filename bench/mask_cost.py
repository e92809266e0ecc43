"""What a brain mask costs: ``python -m bench.mask_cost VOLUME.nii.gz [--tool NAME=COMMAND ...] [--model NAME=FILE.onnx ...]``.

Every tool is a process of its own, so that its wall time, CPU time and peak memory are a user's: starting, reading the
NIfTI magnitude and writing the mask included. COMMAND is a shell line in which {in} and {out} stand for the volume and the
mask to write. Ours runs by `qsm-edge mask`, with the network that ships and with every FILE.onnx. What the networks alone
take, loaded and warm, is measured in a process apart; a second network on a box of a brain on 1 mm.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.run import timed
from qsm_edge.modelcard import read_card
from qsm_edge.network import default_model

ALONE = """
import sys, time, numpy as np
from pathlib import Path
from qsm_edge import network
path = Path(sys.argv[1]) if len(sys.argv) > 1 else network.default_model()
loaded = network.load(path)
rng = np.random.default_rng(0)
seconds = 0.0
for one, shape in ((loaded, loaded.card.shape or (176, 256, 256)), (loaded.fine, (150, 190, 150))):
    if one is not None:
        tensor = rng.random((1, one.card.inputs, *shape), dtype=np.float32)
        one.segment(tensor)
        start = time.perf_counter()
        one.segment(tensor)
        seconds += time.perf_counter() - start
print(seconds)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("volume", type=Path)
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many runs is told")
    args = parser.parse_args()
    models = [("the one that ships", "")] + [tuple(text.split("=", 1)) for text in args.model]
    print("| tool | wall s | CPU s | peak GB | network alone s | file MB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models:
            extra = ["--mask", "network", *(["--model", path] if path else [])]
            words = [sys.executable, "-m", "qsm_edge", "mask", args.volume, "{out}", "--quiet", *extra]
            row = least([str(w) for w in words], args, Path(folder))
            alone = subprocess.run(
                [sys.executable, "-c", ALONE, *([path] if path else [])], check=True, capture_output=True, text=True
            )
            size = files_mb(Path(path or str(default_model())))
            print(f"| qsm-edge mask, {name} | {row} | {float(alone.stdout):.2f} | {size:.1f} |", flush=True)
        for text in args.tool:
            name, command = text.split("=", 1)
            print(f"| {name} | {least(shlex.split(command), args, Path(folder))} | - | - |", flush=True)
    return 0


def files_mb(path: Path) -> float:
    """Of a network, and of the second one that its card names."""
    second = read_card(path).fine
    files = [path] + ([path.with_name(second.file)] if second else [])
    return sum(file.stat().st_size for file in files) / 1e6


def least(words: list[str], args: argparse.Namespace, folder: Path) -> str:
    """Wall seconds, CPU seconds and peak memory of the quickest run."""
    found = []
    for number in range(args.repeats):
        out = folder / f"{len(list(folder.iterdir()))}-{number}"
        made = [word.replace("{in}", str(args.volume)).replace("{out}", str(out)) for word in words]
        found.append(timed(made, subprocess.DEVNULL))
        if found[-1].exit_status not in (0, 3):
            raise SystemExit(f"failed: {shlex.join(made)}")
    cost = min(found)
    return f"{cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_gb:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
