"""Does the map of uncertainty tell the truth? ``python -m bench.uncertainty [--help]``.

Simulates heads once each, draws their noise again and again, reconstructs every draw, and asks how often a draw lies within
1.96 of the stated standard deviations of the mean of the others (corrected for their number: 95 % were right), over the
mask, in its parts, and by tenths of the stated standard deviation. The map is that of one draw at a time, as a user has
it. A second table asks how often the truth lies within the same interval, and how large the error is where the map says
that the data do not determine a value. Needs the folder `shared` beside the checkout.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage as ndi

from bench.run import HERE, SHARED
from qsm_edge import uncertainty
from qsm_edge.pipeline import reconstruct
from qsm_edge.types import Geometry, GreSeries, Result

FIVE, FOUR = [0.005, 0.010, 0.015, 0.020, 0.025], [0.004, 0.010, 0.016, 0.022]


def _case(
    head: int, tilt: list[int], te: list[float], lesions: int, noise: float, b0: float, voxel_mm: float = 2
) -> dict[str, Any]:
    names = dict(head=head, tilt=tilt, te=te, lesions=lesions, noise=noise, b0=b0)
    return {**names, "vox": [voxel_mm] * 3, "vendor": "siemens"}


#: Two heads, bleeds, 1.5 T, one echo; 2 mm, so that a draw takes seconds, and one at 1 mm.
CASES = {
    "u15": _case(15, [14, -5], FIVE, 0, 0.015, 3.0),
    "u03b": _case(3, [8, 3], FOUR, 4, 0.01, 3.0),
    "u03_15": _case(3, [0, -9], FOUR, 4, 0.02, 1.5),
    "u15s": _case(15, [6, -4], [0.020], 0, 0.015, 3.0),
    "u16_1mm": _case(16, [-10, 5], FOUR, 2, 0.015, 3.0, 1),
}
DEEP_GREY = (10, 11, 12, 13, 49, 50, 51, 52)


class Head(NamedTuple):
    """A simulated head: signal (echo, z, y, x) without noise, the noise's standard deviation and seed, the truth."""

    name: str
    signal: np.ndarray
    noise_sd: float
    seed: int
    truth: dict[str, Any]

    def drawn(self, number: int) -> GreSeries:
        """The series with the noise of draw `number`, which the simulator's noise_seed gives too."""
        signal = self.signal + _noise(self.signal.shape, self.noise_sd, self.seed, number)
        voxel, b0_dir = (tuple(float(v) for v in self.truth[key]) for key in ("voxel", "b0_dir"))
        geometry = Geometry.from_axes(signal.shape[1:], voxel, b0_dir)  # type: ignore[arg-type]
        parts = (np.abs(signal).astype(np.float32), np.angle(signal).astype(np.float32))
        return GreSeries(*parts, tuple(map(float, self.truth["te"])), float(self.truth["b0"]), geometry)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", nargs="+", default=tuple(CASES), choices=tuple(CASES), metavar="CASE")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--maps", type=int, default=2, help="of how many draws the map is made and checked")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--work", type=Path, default=HERE / "out" / "uncertainty", help="where draws are kept")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[list[str], list[str]]] = []
    for name in args.cases:
        head = simulated(name, args.work)
        cost, results = [], []
        draws = []
        for number in range(args.draws):
            chi, result, cpu_s = reconstructed(head, number, args.recipe, args.work, whole=number < args.maps)
            draws.append(chi)
            results += [result] if result is not None else []
            cost += [cpu_s] if cpu_s else []
        for number, result in enumerate(results):
            start = time.process_time()
            sd = uncertainty.chi_sd(result)
            factor = (time.process_time() - start) / cost[number]
            rows.append(judged(head, number, result, sd, np.stack(draws), factor))
            print(" | ".join(rows[-1][0]), "||", " | ".join(rows[-1][1]), flush=True)
    for kind, title in enumerate((HEAD, TRUTH_HEAD)):
        print("\n| " + " | ".join(title) + " |\n|" + "---|" * len(title))
        print("\n".join("| " + " | ".join(row[kind]) + " |" for row in rows))
    return 0


def simulated(name: str, work: Path) -> Head:
    """The head of a case, from `work` where it was simulated before."""
    kept = work / f"{name}.npz"
    case, seed = CASES[name], sum(map(ord, name))
    noise_sd = case["noise"] * 0.7
    if not kept.exists():
        spec = importlib.util.spec_from_file_location("simulate", SHARED / "simulate.py")
        assert spec is not None
        assert spec.loader is not None
        simulator = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(simulator)
        signal, _, truth = simulator.simulate(name, case, SHARED.parent / "data" / "heads")
        clean = signal - _noise(signal.shape, noise_sd, seed, 0)
        np.savez(kept, signal=clean.astype(np.complex64), **truth)
    with np.load(kept) as stored:
        truth = {key: stored[key] for key in stored.files if key != "signal"}
        return Head(name, stored["signal"], noise_sd, seed, truth)


def _noise(shape: tuple[int, ...], sd: float, seed: int, number: int) -> np.ndarray:
    """The simulator's noise on its own way: drawn before rows and columns are turned."""
    draw = np.random.default_rng([seed, number])
    noise = sd * (draw.standard_normal(shape) + 1j * draw.standard_normal(shape)).astype(np.complex64)
    return np.asarray(noise[..., ::-1, ::-1])


def reconstructed(
    head: Head, number: int, recipe: str, work: Path, *, whole: bool
) -> tuple[np.ndarray, Result | None, float]:
    """Susceptibility of a draw, kept in `work`; where the `whole` result is wanted, that and its CPU time."""
    kept = work / f"{head.name}-{recipe}-{number}.npy"
    if kept.exists() and not whole:
        return np.load(kept), None, 0.0
    start = time.process_time()
    result = reconstruct(head.drawn(number), recipe, mask=head.truth["mask"], device="cpu")
    cpu_s = time.process_time() - start
    np.save(kept, result.chi_ppm)
    return result.chi_ppm, result if whole else None, cpu_s


HEAD = ("case", "map of draw", "cost", "all", "core", "rim", "deep grey", "lesions", "by tenths of sd")
HEAD += ("by tenths of other draws' sd", "sd ppb", "draws' sd ppb")
TRUTH_HEAD = ("case", "map of draw", "truth covered %", "error ppb", "sd ppb", "bias ppb", "marked %")
TRUTH_HEAD += ("error in marked ppb", "marked of lesions %")


def judged(
    head: Head, number: int, result: Result, sd: np.ndarray, draws: np.ndarray, factor: float
) -> tuple[list[str], list[str]]:
    """A row of either table."""
    truth = head.truth
    mask, marked = result.mask, result.mask & ~np.isfinite(sd)
    known = mask & ~marked
    depth = ndi.distance_transform_edt(np.pad(mask, 1), sampling=truth["voxel"])[1:-1, 1:-1, 1:-1]
    lesions = truth["lesions"] > 0
    parts = (known, known & (depth > 5), known & (depth <= 5), known & np.isin(truth["labels"], DEEP_GREY))
    parts += (known & lesions,)
    count = len(draws)
    off = draws - draws.mean(0)
    # What is stated is checked on draws that it was not made of; the others, too, lie off a mean that they are part of.
    others = [n for n in range(count) if n != number]
    limit = 1.96 * np.where(known, sd, 0) * np.sqrt((count - 1) / count)

    def covered(part: np.ndarray, of: Sequence[int] = others) -> str:
        within = [np.abs(off[n][part]) <= limit[part] for n in of]
        return f"{100 * float(np.mean(within)):.1f}" if part.any() else "-"

    def tenths(by: np.ndarray, of: Sequence[int] = others) -> str:
        edges = np.quantile(by[known], np.linspace(0, 1, 11))
        groups = [known & (by >= low) & (by <= high) for low, high in itertools.pairwise(edges)]
        return " ".join(covered(group, of).split(".")[0] for group in groups)

    spread = draws.std(0, ddof=1)
    half = others[
        : len(others) // 2
    ]  # sorted by some draws, asked about the others: luck in the one is none in the other
    sorted_by = draws[half].std(0, ddof=1)
    row = [head.name, str(number), f"{factor:.2f}", *map(covered, parts), tenths(np.where(known, sd, 0))]
    row += [tenths(sorted_by, others[len(half) :]), _rms(sd[known]), _rms(spread[known])]
    chi_true = truth["chi"] - truth["chi"][mask].mean()
    error, bias = result.chi_ppm - chi_true, draws.mean(0) - chi_true
    reached = float(np.mean(np.abs(error[known]) <= 1.96 * sd[known]))
    second = [head.name, str(number), f"{100 * reached:.0f}", _rms(error[known]), _rms(sd[known]), _rms(bias[known])]
    second += [f"{100 * marked.sum() / mask.sum():.2f}", _rms(error[marked])]
    inside = mask & lesions
    return row, [*second, f"{100 * (marked & inside).sum() / inside.sum():.0f}" if inside.any() else "-"]


def _rms(values: np.ndarray) -> str:
    return f"{1e3 * float(np.sqrt(np.mean(values**2))):.1f}" if values.size else "-"


if __name__ == "__main__":
    raise SystemExit(main())
