"""A night of studies in a process of its own, made to be killed: doors, service and a destination.

    python -m tests.spool.killed_service ROOT SEED

Two threads hand in the files of ``ROOT/night``, each in an order of its own and every file twice. What was acknowledged
is appended to ``ROOT/acknowledged``, flushed, as a sender would remember it; what was is not handed in again. The
destination appends to ``ROOT/received`` before it answers. Reconstructions take a short or a long while and outlive the
service, so that the next life finds some of them at work. Ends by itself when all is delivered, or a job was given up.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from qsm_edge.serve import serve
from qsm_edge.spool import Spool, logger
from tests.spool.spool_world import Sent, fake_run, hand_in, parts, site

#: How long a reconstruction takes.
WORK_S = (0.3, 2.0)


def main() -> int:
    root, seed = Path(sys.argv[1]), int(sys.argv[2])
    stop, made = threading.Event(), site(root, "pacs")
    made = replace(made, spool=replace(made.spool, quiet_s=0.5))

    def sender(files: Sequence[Path]) -> list[Sent]:
        for path in files:
            _append(root / "received", f"{'/'.join(path.parts[-5:])} {hashlib.sha256(path.read_bytes()).hexdigest()}")
        return [Sent(path) for path in files]

    def doors(spool: Spool) -> None:
        threads = [threading.Thread(target=_door, args=(spool, root, seed + n), daemon=True) for n in (0, 1)]
        (root / "alive").touch()
        for thread in threads:
            thread.start()
        threading.Thread(target=_end, args=(spool, threads, root, stop), daemon=True).start()

    chance = random.Random(seed)

    def run(source: Path, output: Path) -> Sequence[str]:
        return fake_run("--sleep", str(chance.choice(WORK_S)), "--roll", str(root / "roll"))(source, output)

    made_of = replace(parts(made, run=run), read=partial(_read, root), senders={"pacs": sender})
    return serve(made, made_of, stop=stop, log=logger(io.StringIO()), on_open=doors)


def _read(root: Path, folder: Path) -> dict[str, list[dict[str, object]]]:
    """Stands in for the reader, whose imports take longer than a life here: a study is complete when all of it is there."""
    names = sorted(path.stem for path in folder.iterdir())
    if len(names) == int((root / "sizes" / folder.name).read_text()):
        return {"acquisitions": [{"names": names, "memory_bytes": 1}], "refused": [], "ignored": []}
    refused: dict[str, object] = {"code": "missing_slice", "text": "", "series": "", "names": names}
    return {"acquisitions": [], "refused": [refused], "ignored": []}


def _door(spool: Spool, root: Path, seed: int) -> None:
    known = (root / "acknowledged").read_text().split() if (root / "acknowledged").exists() else []
    files = sorted(path for path in (root / "night").iterdir() if path.name not in known)
    random.Random(seed).shuffle(files)
    for path in files:
        hand_in(spool, [path.read_bytes()])
        _append(root / "acknowledged", path.name)
        time.sleep(0.05)


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _end(spool: Spool, doors: Sequence[threading.Thread], root: Path, stop: threading.Event) -> None:
    """Stop when every study of the night has its result delivered, or one will never have one."""
    for door in doors:
        door.join()
    studies = int((root / "studies").read_text())
    while True:
        time.sleep(0.2)
        (jobs,) = spool.ledger.rows("SELECT COUNT(*) AS n FROM jobs WHERE state = 'done'")
        (left,) = spool.ledger.rows("SELECT COUNT(*) AS n FROM deliveries WHERE state != 'done'")
        (sent,) = spool.ledger.rows("SELECT COUNT(*) AS n FROM deliveries WHERE state = 'done'")
        (given_up,) = spool.ledger.rows("SELECT COUNT(*) AS n FROM jobs WHERE state IN ('failed', 'refused')")
        if given_up["n"] or (jobs["n"] == studies and not left["n"] and sent["n"] == 3 * studies):
            stop.set()
            return


if __name__ == "__main__":
    raise SystemExit(main())
