"""Layer 1: which arrays, on which device, with how much memory. The only file that names an accelerator library.

Stages ask `namespace(x)` for the functions of the array at hand and never for a device. What runs on the host only
(graphs, distance transforms, connected pieces) crosses through `on_host`, here and nowhere else.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import array_api_compat as compat
import numpy as np

from qsm_edge.errors import ResourceError, UsageError
from qsm_edge.types import Array

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Value = TypeVar("_Value")

#: Where Linux tells of the machine's memory and of the container's.
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def namespace(*arrays: Array) -> Any:
    """The array-API namespace that `arrays` belong to; mixed namespaces raise TypeError."""
    return compat.array_namespace(*arrays)


def is_numpy(x: Array) -> bool:
    """Whether `x` is a NumPy array."""
    return isinstance(x, np.ndarray)


def is_array(x: object) -> bool:
    """Whether `x` is an array of any namespace that `namespace` knows."""
    return bool(compat.is_array_api_obj(x))


def to_host(x: Array) -> np.ndarray:
    """`x` as a NumPy array, from any namespace and device."""
    if is_numpy(x):
        return np.asarray(x)
    if compat.is_cupy_array(x):
        return np.asarray(x.get())
    if compat.is_torch_array(x):
        return np.asarray(x.detach().cpu().numpy())
    host = x.__array_namespace__().__array_namespace_info__().default_device()
    return np.asarray(x.to_device(host))


def median(values: Array) -> float:
    """The middle value of a line of numbers (the upper one of two), 0 of none."""
    middle = values.shape[0] // 2
    if not values.shape[0]:
        return 0.0
    if is_numpy(values):  # the standard has sorting alone, which takes ten times as long
        return float(np.partition(values, middle)[middle])
    return float(namespace(values).sort(values)[middle])


def like(host: np.ndarray, reference: Array) -> Array:
    """A host array, moved to where `reference` lives."""
    if is_numpy(reference):
        return host
    return namespace(reference).asarray(host, device=compat.device(reference), copy=True)


def on_host(function: _Function) -> _Function:
    """Let a NumPy/SciPy function take and return arrays of any namespace: the one crossing between device and host.

    The result, an array or a tuple of arrays, goes back to where the first array argument lives.
    """

    @functools.wraps(function)
    def crossing(*args: Any, **options: Any) -> Any:
        arrays = [a for a in (*args, *options.values()) if compat.is_array_api_obj(a)]
        if all(is_numpy(a) for a in arrays):
            return function(*args, **options)

        def fetch(a: Any) -> Any:
            return to_host(a) if compat.is_array_api_obj(a) else a

        out = function(*map(fetch, args), **{k: fetch(v) for k, v in options.items()})
        if isinstance(out, tuple):
            return tuple(like(o, arrays[0]) if isinstance(o, np.ndarray) else o for o in out)
        return like(out, arrays[0]) if isinstance(out, np.ndarray) else out

    return crossing  # type: ignore[return-value]


def cupy_module() -> Any | None:
    """CuPy when it is installed and sees a device, else None."""
    try:
        import cupy

        return cupy if cupy.cuda.runtime.getDeviceCount() > 0 else None
    except Exception:  # a missing driver surfaces as many different exceptions
        return None


def resolve_device(name: str) -> str:
    """'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'. Raises no_device when 'cuda' is asked for and absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError("unknown_name", "no such device", got=name, wanted="auto, cpu, cuda")
    if name == "cpu":
        return "cpu"
    found = cupy_module() is not None
    if name == "cuda" and not found:
        raise ResourceError("no_device", "no CUDA device that CuPy can use", got=name, wanted="cpu, or cupy installed")
    return "cuda" if found else "cpu"


def to_device(host: np.ndarray, device: str) -> Array:
    """A host array on 'cpu' (itself) or 'cuda' (a CuPy array)."""
    if device == "cpu":
        return host
    cupy = cupy_module()
    if cupy is None:
        raise ResourceError("no_device", got=device, wanted="cpu")
    return cupy.asarray(host)


#: FFT libraries with SciPy's interface that may do a host's transforms. Which is quickest is a matter of the machine (`qsm-edge
#: doctor` measures); none is chosen by itself, because their results differ in the last digits and a site compares over time.
FFT_ENGINES = ("scipy", "fftw", "mkl")
FFT_VARIABLE = "QSM_EDGE_FFT"


def fft_engine() -> str:
    """The FFT library that the environment variable QSM_EDGE_FFT names, 'scipy' where it names none.

    Raises unknown_name for one that is not in FFT_ENGINES.
    """
    name = os.environ.get(FFT_VARIABLE, "") or "scipy"
    if name not in FFT_ENGINES:
        raise UsageError(
            "unknown_name", f"{FFT_VARIABLE} names no FFT library", got=name, wanted=", ".join(FFT_ENGINES)
        )
    return name


@functools.cache
def fft_module(engine: str) -> Any:
    """The module of an engine. Raises unknown_name where it is not installed."""
    try:
        if engine == "fftw":
            from pyfftw.interfaces import cache, scipy_fft

            cache.enable()  # the plans of a chain's few grid sizes are worth keeping while it runs
            cache.set_keepalive_time(30.0)
            return scipy_fft
        if engine == "mkl":
            from mkl_fft.interfaces import scipy_fft

            return scipy_fft
    except ImportError as error:
        raise UsageError(
            "unknown_name", f"{FFT_VARIABLE} asks for an FFT library that is not installed", got=engine, wanted="scipy"
        ) from error
    import scipy.fft

    return scipy.fft


def scipy_fft_for(x: Array) -> Any | None:
    """A module with SciPy's FFT interface for the array at hand, or None where its namespace has to do."""
    if is_numpy(x):
        return fft_module(fft_engine())
    if compat.is_cupy_array(x):
        import cupyx.scipy.fft

        return cupyx.scipy.fft
    return None


def devices() -> list[str]:
    """Human-readable names of the devices at hand, the CPU first."""
    names = [f"cpu ({threads()} threads)"]
    cupy = cupy_module()
    if cupy is not None:
        for number in range(cupy.cuda.runtime.getDeviceCount()):
            names.append(f"cuda:{number} {cupy.cuda.runtime.getDeviceProperties(number)['name'].decode()}")
    return names


def threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


#: A slab of one array that stays in a core's cache with a few others of its kind.
_SLAB_BYTES = 500_000


def by_slabs(function: Callable[[slice], _Value], reference: Array) -> list[_Value]:
    """`function` of every slab of the first axis of `reference`, its results in their order.

    On the host slabs that fit the cache, on all threads: what `function` writes must lie in its own slab, and what it reads
    must not be written by another. On an accelerator the whole at once.
    """
    count = int(reference.shape[0])
    if not is_numpy(reference):
        return [function(slice(0, count))]
    planes = max(1, _SLAB_BYTES // max(reference[0].nbytes, 1))
    slabs = [slice(start, min(start + planes, count)) for start in range(0, count, planes)]
    workers = min(threads(), len(slabs))
    if workers < 2:
        return [function(slab) for slab in slabs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, slabs))


def is_device_failure(error: BaseException) -> bool:
    """Whether an error is the accelerator's own (memory, driver, compiler), so that the CPU may do what it could not."""
    ours = type(error).__module__.split(".")[0] in ("cupy", "cupyx", "cupy_backends")
    return ours or isinstance(error, (MemoryError, ImportError, ResourceError))


def available_bytes(device: str) -> int | None:
    """Memory that a computation may still take, in bytes: free memory on a GPU, on the CPU the system's or container's.

    None where the system does not tell.
    """
    if device == "cuda":
        cupy = cupy_module()
        if cupy is not None:
            return int(cupy.cuda.runtime.memGetInfo()[0])
    known = {"win32": _windows_bytes, "darwin": _mac_bytes}.get(sys.platform, _linux_bytes)
    try:
        return known()
    except (OSError, ValueError, AttributeError):  # a system that lacks what others of its kind have
        return None


def _linux_bytes() -> int | None:
    limits = []
    try:
        with _MEMINFO.open(encoding="ascii") as lines:
            limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        pages = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
        limits += [pages * os.sysconf("SC_PAGE_SIZE")] if pages > 0 else []
    try:  # inside a container the system's figure is not ours
        text = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if text != "max":
            used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
            limits.append(max(int(text) - used + _cgroup_cache(), 0))
    except (OSError, ValueError):
        pass
    return min(limits) if limits else None


def _cgroup_cache() -> int:
    """File contents that the kernel keeps in the container's memory only until somebody needs it [bytes]."""
    try:
        with (_CGROUP / "memory.stat").open(encoding="ascii") as lines:
            return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError):
        return 0


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "free", "total_page", "free_page", "total_virtual")),
        ("free_virtual", ctypes.c_uint64),
        ("free_extended_virtual", ctypes.c_uint64),
    )


def _windows_bytes() -> int | None:
    """Free physical memory, and no more than what may still be committed."""
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(min(status.free, status.free_page))


def _mac_bytes() -> int | None:
    """Pages that are free or can be had without compressing another program's memory; all memory where that is not told."""
    library = ctypes.CDLL("/usr/lib/libSystem.dylib")

    def told(name: str) -> int | None:
        value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
        failed = library.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return None if failed else int(value.value)

    page, free = told("hw.pagesize"), told("vm.page_free_count")
    if page is None or free is None:
        return told("hw.memsize")
    spare = ("vm.page_speculative_count", "vm.page_purgeable_count", "vm.page_pageable_external_count")
    return page * (free + sum(told(name) or 0 for name in spare))


def reset_peak(device: str) -> None:
    """Let the next `peak_bytes` speak of what comes from here on, where the system can (Linux)."""
    if device == "cuda":
        return
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
            control.write("5")
    except OSError:
        pass


def peak_bytes(device: str) -> int:
    """Peak resident memory [bytes] of the process since `reset_peak` (CPU), or what CuPy's pool holds (CUDA)."""
    if device == "cuda":
        cupy = cupy_module()
        if cupy is not None:
            return int(cupy.get_default_memory_pool().total_bytes())
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return _peak_by_rusage()


def _peak_by_rusage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
