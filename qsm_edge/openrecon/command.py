"""The command `mrd`. Parses arguments, calls one function."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

_EPILOG = """\
Images of one multi-echo gradient echo come in (magnitude and phase, or complex), susceptibility in ppb goes out, by the
streaming protocol of MRD (ISMRMRD) that Siemens OpenRecon speaks; k-space is refused. There is no authentication in it:
listen on other addresses than the machine's own inside a container only. See deploy/openrecon.
Needs the extra `openrecon`. Ends with status 0 when asked to; 2 where it cannot listen.
"""


def add_command(command: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    sub = command("mrd", _mrd, "Serve Siemens OpenRecon: MRD images in, susceptibility images out.")
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, _EPILOG
    sub.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="where to listen (%(default)s)")
    sub.add_argument("--port", type=int, default=9002, help="0 takes one that is free (%(default)s)")
    sub.add_argument(
        "--connections", type=int, default=1, metavar="N", help="at work at once; others wait (%(default)s)"
    )
    sub.add_argument("--idle-s", type=float, default=1800.0, metavar="S", help="silence between messages (%(default)g)")
    sub.add_argument("--wall-s", type=float, default=7200.0, metavar="S", help="a whole connection (%(default)g)")
    sub.add_argument("--recipe", default="default", metavar="NAME|FILE", help="where the console chooses none")
    sub.add_argument("--set", action="append", default=[], metavar="STAGE.OPTION=VALUE", help="change one option")
    sub.add_argument("--mask", default="auto", choices=("auto", "network", "threshold"), help="likewise (auto)")
    sub.add_argument("--model", type=Path, metavar="FILE", help="the mask network, an ONNX file with its card")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (auto)")
    sub.add_argument("--log", default="plain", choices=("plain", "json"), help="form of the log (plain)")


def _mrd(args: argparse.Namespace) -> int:
    from qsm_edge import backend
    from qsm_edge.errors import UsageError
    from qsm_edge.openrecon import wire
    from qsm_edge.openrecon.parameters import wishes
    from qsm_edge.openrecon.server import Settings, serve
    from qsm_edge.openrecon.session import Task
    from qsm_edge.queue_commands import stopped_by_signals
    from qsm_edge.run import Options
    from qsm_edge.spool import logger

    for name, value in (("connections", args.connections), ("idle-s", args.idle_s), ("wall-s", args.wall_s)):
        if not value > 0:
            raise UsageError("bad_value", f"--{name}", got=value, wanted="more than 0")
    if args.model is not None and not args.model.is_file():
        raise UsageError("bad_call", "there is no such file", where=str(args.model))
    options = Options(args.recipe, tuple(args.set), args.mask, args.model, args.device)
    wishes({}, options)  # what cannot work is said now, not to the first patient
    backend.resolve_device(args.device)
    limits = wire.Limits(idle_s=args.idle_s)
    free = backend.available_bytes("cpu")
    if free is not None:  # what comes is held, and must leave room for what is made of it
        limits = replace(limits, total_bytes=min(limits.total_bytes, free // (2 * args.connections)))
    task = Task(options, limits, log_form=args.log)
    stop = threading.Event()
    with stopped_by_signals(stop):
        settings = Settings(args.bind, args.port, args.connections, args.wall_s, task)
        serve(settings, stop=stop, log=logger(sys.stderr, args.log))
    return 0
