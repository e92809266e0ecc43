"""Layer 5: the commands of the service: serve, queue, send. Parses arguments, calls one function, shows what came out."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qsm_edge import __version__
from qsm_edge.errors import UsageError

Adder = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]

_SERVE_EPILOG = """\
exit status: 0 stopped as asked, or --once: all done and delivered · 3 --once: something is held, refused, failed or not
delivered, see `qsm-edge queue list` · 2 the configuration is wrong · 1 our fault
"""
_QUEUE_EPILOG = """\
list      studies that wait and why, jobs, deliveries that are due or refused
retry     ITEM a failed or refused job is reconstructed again; of a job that is done, refused and waiting deliveries are
          due at once; of a study, the reader looks again. A job that is done is never made again
release   ITEM a held study is looked at now, without waiting for quiet. An incomplete one is refused (exit 3) with its
          reason: no map is ever made of an incomplete grid. With --force it is given up instead: it stops waiting
purge     forgets what the configuration's retention allows, now; never what is not delivered
ITEM is the beginning of a study's or job's name in the list, six digits or more.
"""


def add_commands(command: Adder) -> None:
    """Add the commands to the command line."""
    sub = command("serve", _serve, "Receive, reconstruct and send, unattended, as a configuration says.")
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, _SERVE_EPILOG
    _add_config(sub)
    sub.add_argument("--check", action="store_true", help="only check the configuration")
    sub.add_argument("--once", action="store_true", help="do what there is to do, deliver, and end; nothing listens")

    sub = command("queue", _queue, "See and steer what the service has in its spool.")
    sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, _QUEUE_EPILOG
    sub.add_argument("action", choices=("list", "retry", "release", "purge"))
    sub.add_argument("item", nargs="?", metavar="ITEM", default="", help="for retry and release")
    sub.add_argument("--force", action="store_true", help="release: give up a study that is not complete")
    _add_config(sub)

    sub = command("send", _send, "Send the DICOM files of a folder to a destination of a configuration.")
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="a result folder, or any folder of DICOM files")
    sub.add_argument("destination", metavar="DEST", help="the name of a [[destination]]")
    _add_config(sub)


def _add_config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="site.toml; see deploy/site.example.toml"
    )


def _serve(args: argparse.Namespace) -> int:
    from qsm_edge.serve import default_parts, serve
    from qsm_edge.spool import logger
    from qsm_edge.spool.config import bind, load
    from qsm_edge.status import Settings

    site = load(args.config)
    log = logger(sys.stderr, site.log.format)
    parts = default_parts(site, log)
    if args.check:
        doors = [*(["network"] if site.listen is not None else []), *(["folder"] * len(site.watch))]
        facts = {"doors": doors, "destinations": [one.name for one in site.destinations], "recipe": site.work.recipe}
        page = None if site.status is None else bind(Settings, site.status)
        facts["page"] = "" if page is None else f"{page.address} port {page.port}"
        _show(args, "serve", {"valid": True, **facts}, f"the configuration is valid: {_words(facts)}\n")
        return 0
    stop = threading.Event()
    with stopped_by_signals(stop):
        return serve(site, parts, once=args.once, stop=stop, log=log)


@contextlib.contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """A request to end sets `stop`: what is at work is put back, and nothing is torn apart."""

    def ask(number: int, frame: object) -> None:
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = [(number, signal.signal(number, ask)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _words(facts: Mapping[str, Any]) -> str:
    shown = ((name, ", ".join(value) if isinstance(value, list) else str(value)) for name, value in facts.items())
    return "; ".join(f"{name} {value or 'none'}" for name, value in shown)


def _queue(args: argparse.Namespace) -> int:
    from qsm_edge.spool import logger, opened, queue
    from qsm_edge.spool.config import load
    from qsm_edge.spool.purge import purge

    site = load(args.config)
    wants_item = args.action in ("retry", "release")
    if wants_item != bool(args.item) or (args.force and args.action != "release"):
        wanted = f"queue {args.action} {'ITEM ' if wants_item else ''}--config FILE"
        raise UsageError("bad_call", "these arguments do not go together", wanted=wanted)
    if not site.spool.folder.is_dir():
        raise UsageError("bad_call", "there is no spool yet", where=str(site.spool.folder))
    with opened(site.spool.folder) as spool:
        if args.action == "list":
            listed = queue.listing(spool)
            _show(args, "queue", listed, queue.text_of(listed, time.time()))
            return 0
        if args.action == "purge":
            gone = purge(spool, site.spool, log=logger(sys.stderr, site.log.format))
            _show(args, "queue", {"purged": gone}, f"{len(gone)} studies purged\n")
            return 0
        retries = args.action == "retry"
        told = queue.retry(spool, args.item) if retries else queue.release(spool, args.item, force=args.force)
        _show(args, "queue", {"item": args.item, "told": told}, f"{told}\n")
        return 0


def _send(args: argparse.Namespace) -> int:
    from qsm_edge.serve import sender_of
    from qsm_edge.spool import logger
    from qsm_edge.spool.config import load

    site = load(args.config)
    named = {one.name: one for one in site.destinations}
    if args.destination not in named:
        raise UsageError("unknown_name", "no such destination", got=args.destination, wanted=", ".join(named) or "none")
    if not args.folder.is_dir():
        raise UsageError("bad_call", "there is no such folder", where=str(args.folder))
    files = sorted(path for path in args.folder.rglob("*.dcm") if path.is_file())
    if not files:
        raise UsageError("bad_call", "there is no DICOM file (.dcm) in the folder")
    sent = sender_of(named[args.destination], None, logger(sys.stderr, site.log.format))(files)
    counts: dict[str, int] = {}
    for one in sent:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    told = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    details = sorted({one.detail for one in sent if one.detail})
    document = {"destination": args.destination, "files": len(files), "outcomes": counts, "details": details}
    _show(args, "send", document, f"{told}{': ' + ', '.join(details) if details else ''}\n")
    return 0 if set(counts) <= {"stored", "committed"} else 3


def _show(args: argparse.Namespace, command: str, facts: Mapping[str, Any], text: str) -> None:
    if args.json:
        whole = {"software": "qsm-edge", "version": __version__, "command": command, **facts}
        text = json.dumps(whole, indent=1) + "\n"
    sys.stdout.write(text)
