"""`qsm-edge serve` with the stand-in of `fake_series` for the chain; the reader, the doors and the senders are its own.

python -m tests.trials.service CONFIG SECONDS [FILL]
"""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from qsm_edge.serve import default_parts, serve
from qsm_edge.spool import logger
from qsm_edge.spool.config import load


def main() -> int:
    site, more = load(Path(sys.argv[1])), sys.argv[2:]
    log, stop = logger(sys.stderr, "json"), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def run(source: Path, output: Path) -> list[str]:
        return [sys.executable, "-m", "tests.trials.fake_series", str(source), str(output), *more]

    return serve(site, replace(default_parts(site, log), run=run), stop=stop, log=log)


if __name__ == "__main__":
    raise SystemExit(main())
