"""The other side of a child process: limits that it gives itself before anything untrusted is read or computed.

    python -m qsm_edge.spool.limits MEMORY_BYTES CPU_SECONDS look FOLDER
    python -m qsm_edge.spool.limits MEMORY_BYTES CPU_SECONDS run INPUT OUTPUT --json ...

`run` is the command of that name. A limit of 0 is none. Where the system knows no such limits (Windows), the wall clock
of the parent remains. A process that `child` started ends with its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
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


def end_with_parent(parent: int) -> bool:
    """Have the system kill this process when its parent ends, however that ends; False where it does not (Linux does)."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    asked = False
    with contextlib.suppress(OSError, AttributeError):
        asked = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)
    return asked


def take_input() -> int:
    """Take standard input away from everything else in this process, which finds it empty; returns its descriptor.

    Nothing is ever written into that pipe: a library that asked would wait for ever. And on Windows a second use of a pipe
    that is being read hangs.
    """
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return pipe


def end_with_pipe(pipe: int) -> None:
    """End this process at the end of file of a pipe that only its parent can write into.

    A computation that holds the interpreter's lock is ended when it lets go of it.
    """
    threading.Thread(target=_end_at_end_of, args=(pipe,), daemon=True).start()


def _end_at_end_of(pipe: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(pipe, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)  # neither can be refused


def main(argv: Sequence[str]) -> int:
    """Bound this process, then do what is asked; returns the exit status."""
    memory, cpu, what, *rest = argv
    limit(int(memory), int(cpu))
    parent = os.environ.get("QSM_EDGE_PARENT")  # set by `child`; without it, standard input is somebody else's
    if parent is not None:
        pipe = take_input()
        if not end_with_parent(int(parent)):
            end_with_pipe(pipe)
    if what == "look":
        from qsm_edge.spool.look import main as look

        return look(rest)
    from qsm_edge.cli import main as command

    return command([what, *rest])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
