"""Layer 5: is this installation sound? Versions, devices, codecs, memory, disk, and numbers with a known answer."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from importlib import metadata
from typing import Any

from qsm_edge import __version__
from qsm_edge.errors import QsmEdgeError
from qsm_edge.progress import Progress

FFT_SHAPE = (160, 256, 256)
#: A float32 transform there and back misses values of standard deviation 1 by some 1e-6.
FFT_ERROR = 1e-5
LOW_MEMORY_BYTES = 3e9
LOW_DISK_BYTES = 1e9


def examine(progress: Progress) -> dict[str, Any]:
    """Everything worth knowing about this installation, as plain values for JSON; ``healthy`` is the verdict.

    ``errors`` are sentences about what makes results wrong or impossible, ``warnings`` about what is worth mending.
    """
    errors: list[str] = []
    warnings: list[str] = []
    progress("looking", 0.0, "versions, devices, memory")
    report: dict[str, Any] = {
        "qsm_edge": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
        "packages": _packages(errors),
        "runtimes": _runtimes(errors, warnings),
        "codecs": _codecs(warnings),
        "devices": _devices(),
        "memory": _memory(warnings),
        "disk": _disk(errors, warnings),
    }
    progress("timing", 0.0, "Fourier transforms")
    report["fft"] = _fft(errors)
    report["self_test"] = _self_test(progress, errors)
    return report | {"errors": errors, "warnings": warnings, "healthy": not errors}


def text_of(report: dict[str, Any]) -> str:
    """The same for a person, one fact a line."""
    lines = [f"qsm-edge {report['qsm_edge']}, {report['python']}, {report['system']}", ""]
    lines += [f"{name:<20}{version or 'not installed'}" for name, version in report["packages"].items()]
    lines.append("")
    for key in ("devices", "runtimes", "codecs", "memory", "disk", "fft"):
        facts = report[key]
        pairs = [str(fact) for fact in facts] if isinstance(facts, list) else [f"{k}: {v}" for k, v in facts.items()]
        lines += [f"{key if number == 0 else '':<20}{pair}" for number, pair in enumerate(pairs)]
    lines.append("")
    for test in report["self_test"]:
        lines.append(
            f"self-test on {test['device']}: a ball of {test['chi_true_ppm']:.3f} ppm reads "
            f"{test['chi_read_ppm']:.3f} ppm; field within {1000 * test['field_error_ppm']:.2f} ppb; "
            f"{100 * test['mask_kept']:.0f} % of the mask kept; {test['seconds']:.1f} s; "
            f"{1000 * test['largest_difference_from_cpu_ppm']:.3f} ppb from the CPU at most"
        )
    lines += [f"warning: {text}" for text in report["warnings"]]
    lines += [f"ERROR: {text}" for text in report["errors"]]
    lines.append("healthy" if report["healthy"] else "NOT healthy: do not trust results of this installation")
    return "".join(f"{line}\n" for line in lines)


def _packages(errors: list[str]) -> dict[str, str | None]:
    """Versions of all that the package asks for, extras included, by the names that it asks for them."""
    try:
        wanted = metadata.requires("qsm-edge") or []
    except metadata.PackageNotFoundError:
        errors.append("qsm-edge itself is not installed (it runs from a folder): pip install it")
        return {}
    found: dict[str, str | None] = {}
    for line in wanted:
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
            if "extra ==" not in line:
                errors.append(f"the package {name} is missing: pip install it")
    return found


def _runtimes(errors: list[str], warnings: list[str]) -> dict[str, Any]:
    """ONNX runtimes: two wheels that overwrite each other's files can both be 'installed'."""
    from qsm_edge import network

    installed = network.installed_runtimes()
    if len(installed) > 1:
        errors.append(
            f"{' and '.join(sorted(installed))} overwrite each other: uninstall all of them, then install one extra, "
            "qsm-edge[cpu] or qsm-edge[gpu]"
        )
    elif not installed:
        warnings.append("no ONNX runtime: masks are made by threshold; pip install 'qsm-edge[cpu]'")
    providers = ", ".join(network.available_providers())
    return {"installed": ", ".join(sorted(installed)) or "none", "providers": providers or "none"}


def _codecs(warnings: list[str]) -> dict[str, str]:
    from qsm_edge.dicom import codecs

    readable = codecs.readable()
    missing = [name for name, is_readable in readable.items() if not is_readable]
    if missing:
        warnings.append(f"no codec for {', '.join(missing)}: pip install 'qsm-edge[codecs]' if such files come in")
    return {name: "readable" if is_readable else "not readable" for name, is_readable in readable.items()}


def _devices() -> list[str]:
    from qsm_edge import backend

    return backend.devices()


def _memory(warnings: list[str]) -> dict[str, str]:
    from qsm_edge import backend

    available = backend.available_bytes("cpu")
    if available is None:
        warnings.append(
            "the system does not say how much memory is free; what does not fit cannot be refused beforehand"
        )
    elif available < LOW_MEMORY_BYTES:
        warnings.append(f"only {available / 1e9:.1f} GB of memory are free; large acquisitions will be refused")
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ}
    room = "unknown" if available is None else f"{available / 1e9:.1f} GB"
    return {"available": room, "threads": f"{backend.threads()} usable", **threads}


def _disk(errors: list[str], warnings: list[str]) -> dict[str, str]:
    """Zip archives are unpacked into the system's temporary folder."""
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"qsm-edge")
    except OSError as error:
        errors.append(f"the temporary folder {folder} cannot be written to: {error.strerror}")
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK_BYTES:
        warnings.append(f"only {free / 1e9:.1f} GB are free in the temporary folder {folder}")
    return {"temporary folder": f"{folder}, {free / 1e9:.1f} GB free"}


def _fft(errors: list[str]) -> dict[str, Any]:
    """One forward and one backward transform of a usual volume by every library at hand: the best of three times, the worst
    error; and which of them is in use."""
    import numpy as np

    from qsm_edge import backend, fft

    volume = np.random.default_rng(1).standard_normal(FFT_SHAPE, dtype=np.float32)
    chosen = os.environ.get(backend.FFT_VARIABLE)
    report: dict[str, Any] = {}
    times: dict[str, float] = {}
    try:
        used = backend.fft_engine()
        backend.fft_module(used)
    except QsmEdgeError as error:
        errors.append(str(error))
        return {"in use": f"none: {error}"}
    try:
        for engine in backend.FFT_ENGINES:
            os.environ[backend.FFT_VARIABLE] = engine
            try:
                backend.fft_module(engine)
            except QsmEdgeError:
                continue  # not installed, and not asked for
            best, off = float("inf"), 0.0
            for _ in range(3):
                begin = time.perf_counter()
                back = fft.irfftn(fft.rfftn(volume), FFT_SHAPE)
                best = min(best, time.perf_counter() - begin)
                off = float(np.maximum(off, np.abs(back - volume).max()))  # NaN stays
            if not off <= FFT_ERROR and engine == used:
                errors.append(
                    f"a Fourier transform there and back is off by {off:.1g} (at most {FFT_ERROR:.0e} is sound)"
                )
            times[engine] = best
            report[engine] = (
                f"{1000 * best:.0f} ms there and back for {'x'.join(map(str, FFT_SHAPE))} float32, off by {off:.1g}"
            )
    finally:
        os.environ.pop(backend.FFT_VARIABLE)
        if chosen is not None:
            os.environ[backend.FFT_VARIABLE] = chosen
    quickest = min(times, key=lambda name: times[name])
    advice = "" if quickest == used else f"; {backend.FFT_VARIABLE}={quickest} would be quicker here"
    return {"in use": used + advice, **report}


def _self_test(progress: Progress, errors: list[str]) -> list[dict[str, Any]]:
    from qsm_edge import backend, selftest

    records: list[dict[str, Any]] = []
    devices = ["cpu", *(["cuda"] if len(backend.devices()) > 1 else [])]
    try:
        for record in selftest.self_test(devices, progress):
            records.append(record)  # one by one: what the CPU said stays if the accelerator then breaks
    except QsmEdgeError as error:
        errors.append(f"the self-test was refused: {error}")
    except Exception as error:  # a broken library may raise anything, and saying so is what this command is for
        errors.append(f"the self-test broke: {type(error).__name__}: {error}")
    for record in records:
        errors += [f"self-test on {record['device']}: {text}" for text in record["problems"]]
    return records
