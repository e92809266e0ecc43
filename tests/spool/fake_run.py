"""Stands in for `qsm-edge run INPUT OUTPUT --json`: a result whose bytes differ from run to run, as a time stamp makes them.

Options: `--sleep S`, `--crash`, `--refuse CODE`, `--hang`, `--twice` (two acquisitions), `--verdict V`, `--report FOLDER` (of
which the files are part of each result), `--roll FOLDER` (it has a file there, named by its process number, locked as long
as it lives). Unlike the real one it does not end with its parent.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path


def main() -> int:
    source, output, *options = sys.argv[1:]
    names = sorted(os.listdir(source))
    if "--roll" in options:
        import fcntl

        entry = os.open(Path(options[options.index("--roll") + 1], str(os.getpid())), os.O_CREAT | os.O_WRONLY)
        fcntl.flock(entry, fcntl.LOCK_EX)
    assert names
    assert all(name.endswith(".dcm") for name in names)
    if "--crash" in options:
        os.kill(os.getpid(), 11)
    if "--hang" in options:
        time.sleep(600)
    if "--sleep" in options:
        time.sleep(float(options[options.index("--sleep") + 1]))
    document: dict[str, list[object]] = {"done": [], "refused": [], "failed": [], "ignored": []}
    if "--refuse" in options:
        code = options[options.index("--refuse") + 1]
        document["refused"].append({"code": code, "text": "as asked"})
    else:
        for slug in ("one", "two") if "--twice" in options else ("one",):
            folder = Path(output) / slug
            (folder / "chi").mkdir(parents=True)
            sops = "".join(name.partition("-")[0] for name in names)
            for number in (1, 2):
                (folder / "chi" / f"{number:04d}.dcm").write_bytes(f"{sops} {number} ".encode() + os.urandom(16))
            (folder / "mask.dcm").write_bytes(b"mask" + os.urandom(16))
            (folder / "report.html").write_text("report")
            if "--report" in options:
                shutil.copytree(options[options.index("--report") + 1], folder, dirs_exist_ok=True)
            verdict = options[options.index("--verdict") + 1] if "--verdict" in options else "good"
            document["done"].append({"folder": str(folder), "verdict": verdict})
    sys.stdout.write(json.dumps(document))
    return 3 if document["refused"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
