"""Where a reconstruction spends time and memory: ``python -m bench.profile CASE [--recipe ...] [--device ...]``.

One reconstruction from DICOM to DICOM in this process, with the truth mask of a case of `bench.run`. For every stage: seconds,
how many Fourier transforms, the seconds that these alone take at best (the floor: each transform timed by itself afterwards), the
iterations, and the highest resident memory while it ran. The rest is reading, writing and the report.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.run import CASES, HERE, prepared
from qsm_edge import backend, cli, fft, pipeline

#: The functions of `fft` that transform a volume.
TRANSFORMS = ("rfftn", "irfftn", "rfftn_near", "irfftn_near")
TIMES = 5  # a transform is timed; the quickest counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("case", choices=CASES, nargs="?", default="speed15")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--work", type=Path, default=HERE / "out")
    args = parser.parse_args()
    case = prepared(args.case, args.work / "cases")
    output = args.work / "results" / f"{args.case}-profile"
    shutil.rmtree(output, ignore_errors=True)
    seen = Seen(args.device)
    begin = time.perf_counter()
    with seen, contextlib.redirect_stdout(io.StringIO()):
        words = ["run", case / "dicom", output, "--mask", case / "mask_true.nii.gz", "--recipe", args.recipe]
        status = cli.main([*map(str, words), "--device", args.device, "--quiet"])
    wall = time.perf_counter() - begin
    if status:
        raise SystemExit(f"the reconstruction ended with {status}")
    print("\n".join(seen.table(wall)))
    return 0


class Seen:
    """What is noticed between `with` and its end."""

    def __init__(self, device: str) -> None:
        self.device, self.stage = device, "rest"
        self.seconds: dict[str, float] = {}
        self.peak: dict[str, int] = {}
        self.transforms: dict[str, Counter[tuple[str, tuple[int, ...]]]] = {}
        self._undo: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Seen:
        self._replace(pipeline, "run_stage", self._staged(pipeline.run_stage))
        for name in TRANSFORMS:
            function = getattr(fft, name)
            counting = self._counted(name, function)
            for module in [m for key, m in sys.modules.items() if key.startswith("qsm_edge")]:
                if getattr(module, name, None) is function:
                    self._replace(module, name, counting)
        return self

    def __exit__(self, *error: object) -> None:
        for module, name, original in reversed(self._undo):
            setattr(module, name, original)

    def _replace(self, module: Any, name: str, other: Any) -> None:
        self._undo.append((module, name, getattr(module, name)))
        setattr(module, name, other)

    def _staged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(recipe: Any, stage: str, *arguments: Any) -> Any:
            self.stage = stage
            backend.reset_peak(self.device)
            begin = time.perf_counter()
            result = function(recipe, stage, *arguments)
            self._settle(result)
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
            self.peak[stage] = max(self.peak.get(stage, 0), backend.peak_bytes(self.device))
            self.stage = "rest"
            return result

        return run

    def _settle(self, result: Any) -> None:
        """An accelerator's work is done when its result can be read."""
        cupy = backend.cupy_module() if self.device == "cuda" else None
        if cupy is not None:
            cupy.cuda.Device().synchronize()

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(x: Any, *shapes: Any) -> Any:
            size = tuple(shapes[0]) if shapes and shapes[0] is not None else tuple(x.shape)
            self.transforms.setdefault(self.stage, Counter())[name, size] += 1
            return function(x, *shapes)

        return counting

    def table(self, wall: float) -> list[str]:
        """As Markdown, a line a stage."""
        lines = ["| stage | seconds | transforms | their floor s | peak GB |", "|" + "---|" * 5]
        for stage in [*self.seconds, "rest"]:
            counts = self.transforms.get(stage, Counter())
            floor = sum(n * self._floor(name, size) for (name, size), n in counts.items())
            seconds = self.seconds.get(stage, wall - sum(self.seconds.values()))
            peak = f"{self.peak[stage] / 1e9:.2f}" if stage in self.peak else "-"
            sizes = ", ".join(sorted({"x".join(map(str, size)) for _, size in counts}))
            told = f"{sum(counts.values())} of {sizes}" if counts else "-"
            lines.append(f"| {stage} | {seconds:.2f} | {told} | {floor:.2f} | {peak} |")
        return [*lines, f"| all | {wall:.2f} | {sum(sum(c.values()) for c in self.transforms.values())} | | |"]

    def _floor(self, name: str, size: tuple[int, ...]) -> float:
        """Seconds of one transform by itself; of one of a corner, where some lines are left out, those of the whole."""
        name = name.removesuffix("_near")
        volume = backend.to_device(np.random.default_rng(0).standard_normal(size, dtype=np.float32), self.device)
        best = float("inf")
        for _ in range(TIMES):
            given = volume if name == "rfftn" else fft.rfftn(volume)
            self._settle(given)
            begin = time.perf_counter()
            self._settle(fft.rfftn(given) if name == "rfftn" else fft.irfftn(given, size))  # type: ignore[arg-type]
            best = min(best, time.perf_counter() - begin)
        return best


if __name__ == "__main__":
    raise SystemExit(main())
