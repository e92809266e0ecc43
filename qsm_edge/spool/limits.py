"""The other side of a child process: limits that it gives itself before anything untrusted is read or computed.

    python -m qsm_edge.spool.limits MEMORY_BYTES CPU_SECONDS look FOLDER
    python -m qsm_edge.spool.limits MEMORY_BYTES CPU_SECONDS run INPUT OUTPUT --json ...

`run` is the command of that name. A limit of 0 is none. Where the system knows no such limits (Windows), the wall clock
of the parent remains.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence

#: The parent asks first (SIGXCPU), and the system ends the process this much later.
_CPU_GRACE_S = 5
_PR_SET_PDEATHSIG = 1


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Bound this process; without a core file, which would hold patient data."""
    if os.name == "nt":
        return
    import resource

    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    if cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + _CPU_GRACE_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, however that ends (Linux; elsewhere nothing)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def main(argv: Sequence[str]) -> int:
    """Bound this process, then do what is asked; returns the exit status."""
    memory, cpu, what, *rest = argv
    limit(int(memory), int(cpu))
    end_with_parent(int(os.environ.get("QSM_EDGE_PARENT", os.getppid())))
    if what == "look":
        from qsm_edge.spool.look import main as look

        return look(rest)
    from qsm_edge.cli import main as command

    return command([what, *rest])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
