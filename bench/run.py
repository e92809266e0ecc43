"""Accuracy, time and memory of every chain on simulated heads with truth: ``python -m bench.run [--help]``.

Needs the folder `shared` beside the checkout (its simulator, its scorer and its label maps); simulates what is not there
yet. Every reconstruction is a process of its own, from DICOM to DICOM, with the truth mask, so that its wall time and
peak memory are a user's. Writes one JSON line a run to `bench/out/rows.jsonl` and prints the table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "bench"
CASES = ("siemens15", "ge15", "philips16", "bleed16", "bleed15_1p5T", "single16", "speed15")

#: Name of a chain -> arguments of `qsm-edge run`.
CHAINS = {
    "default": ("--recipe", "default"),
    "fast": ("--recipe", "fast"),
    "reference": ("--recipe", "reference"),
    "default, linear_fit": ("--set", "echoes=linear_fit"),
    "default, laplacian": ("--set", "unwrap=laplacian"),
    "default, pdf": ("--set", "background=pdf"),
    "default, vsharp": ("--set", "background=vsharp", "--set", "rim=none"),
    "default, resharp": ("--set", "background=resharp", "--set", "rim=none"),
    "default, lbv": ("--set", "background=lbv"),
    "default, ismv": ("--set", "background=ismv", "--set", "rim=none"),
    "default, no rim weights": ("--set", "rim=none"),
    "default, brain alone": ("--set", "support=brain"),
    "default, no strong sources": ("--set", "strong_sources=none"),
    "default, no edges": ("--set", "edges=none"),
    "default, hdqsm": ("--set", "invert=hdqsm"),
    "default, rts": ("--set", "invert=rts"),
    "default, tkd": ("--set", "invert=tkd"),
    "default, tikhonov": ("--set", "invert=tikhonov"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, metavar="CASE")
    parser.add_argument("--chains", nargs="+", default=tuple(CHAINS), choices=tuple(CHAINS), metavar="CHAIN")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--work", type=Path, default=HERE / "out", help="where cases and results are kept")
    args = parser.parse_args()
    if not SHARED.is_dir():
        parser.error("the folder `shared` with the simulator is not beside the checkout")
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.cases:
        case = prepared(name, args.work / "cases")
        for chain in args.chains:
            output = args.work / "results" / f"{name}-{chain.replace(', ', '-').replace(' ', '_')}"
            row = measured(case, chain, output, device=args.device)
            rows.append(row)
            with (args.work / "rows.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + markdown(rows))
    return 0


def prepared(name: str, cases: Path, table: Path | None = None) -> Path:
    """The folder of a simulated case, made when it is not there; `table`: the file that describes it, if not the usual one."""
    case = cases / name
    described = [] if table is None else ["--cases", table]
    if not (case / "mask_true.nii.gz").exists():
        subprocess.run([sys.executable, SHARED / "simulate.py", name, case, *described], check=True)
        subprocess.run([sys.executable, SHARED / "nifti.py", case], check=True, stdout=subprocess.DEVNULL)
    return case


def measured(
    case: Path, chain: str, output: Path, *, mask: str | Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """One reconstruction, timed and scored; with the truth mask where no other is given."""
    shutil.rmtree(output, ignore_errors=True)  # what an earlier run with other options left there
    words = [sys.executable, "-m", "qsm_edge", "run", case / "dicom", output, "--json"]
    words += (
        [] if case.name == "speed15" else ["--nifti"]
    )  # there is no field to score; DICOM to DICOM is what is timed
    words += ["--mask", mask or case / "mask_true.nii.gz", "--device", device, *CHAINS[chain]]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".log").open("wb") as log:
        cost = timed([str(w) for w in words], log)
    if cost.exit_status != 0:
        raise SystemExit(f"{case.name}, {chain}: see {output.with_suffix('.log')}")
    report = json.loads(next(output.glob("*/report.json")).read_text(encoding="utf-8"))
    (folder,) = (path.parent for path in output.glob("*/report.json"))
    scores = scored(case, "--dicom", folder / "chi", "--seg", folder / "mask.dcm")
    field = scored(case, "--field", folder / "nifti" / "field_ppm.nii.gz") if case.name != "speed15" else {}
    stages = {s["stage"]: round(s["seconds"], 2) for s in report["stages"]}
    # A reconstruction sets the system's mark back at every stage, so that the process's own tells of the last one alone.
    peak_gb = max(cost.peak_gb, *(s["peak_bytes"] / 1e9 for s in report["stages"]))
    return {
        "case": case.name,
        "chain": chain,
        "wall_s": round(cost.wall_s, 1),
        "cpu_s": round(cost.cpu_s, 1),
        "peak_gb": round(peak_gb, 2),
        "stages_s": stages,
        **scores,
        **field,
    }


class Cost(NamedTuple):
    """What a process took, its start included; the least is the quickest."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    exit_status: int


def timed(words: list[str], output: IO[bytes] | int) -> Cost:
    """Run a process, what it says going to `output`."""
    start = time.perf_counter()
    child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - start
    cpu_s, peak_gb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9
    return Cost(wall_s, cpu_s, peak_gb, os.waitstatus_to_exitcode(status))


def scored(case: Path, *arguments: str | Path) -> dict[str, Any]:
    """What the scorer says, as it says it."""
    words = [sys.executable, SHARED / "score.py", case, *arguments]
    done = subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of RESULTS.md."""
    head = [
        "case",
        "chain",
        "field err ppb (core)",
        "off by wrap",
        "core NRMSE %",
        "full NRMSE %",
        "core XSIM",
        "deep grey err ppb",
    ]
    head += [
        "slope",
        "cover",
        "lesion slope / r2",
        "unwrap+fit s",
        "background s",
        "inversion s",
        "wall s",
        "CPU s",
        "peak GB",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        s = r["stages_s"]
        field = 1000 * r["field_err_std_ppm"] if "field_err_std_ppm" in r else None
        lesion = f"{r['lesion_slope']:.2f} / {r['lesion_r2']:.2f}" if "lesion_slope" in r else "-"
        cells = [r["case"], r["chain"], "-" if field is None else f"{field:.2f}", r.get("off_by_wrap", "-")]
        cells += [
            f"{r['core_nrmse']:.1f}",
            f"{r['full_nrmse']:.1f}",
            f"{r['core_xsim']:.2f}",
            f"{r['core_dgm_err_ppb']:.1f}",
        ]
        cells += [f"{r['core_dgm_slope']:.2f}", f"{r['cover']:.3f}", lesion, f"{s['unwrap'] + s['echoes']:.1f}"]
        cells += [f"{s['background']:.1f}", f"{s['invert']:.1f}", r["wall_s"], r["cpu_s"], r["peak_gb"]]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
