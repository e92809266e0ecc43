"""Receiving beside DCMTK's storescp: a study of some 200 MB over several associations at once, `python -m bench.receive`.

Both receivers get the same files from the same senders (DCMTK's storescu) in turn, in one run, on one machine, onto one
disk. What stands for us is the service as it is installed: every instance is looked at, hashed, flushed to the disk and
entered in the ledger before it is acknowledged; storescp writes files. Prints a row a receiver for RESULTS.md: time by the
clock, which means something on an idle machine only, and processor time of the receiver.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset

from dicom_samples.encode import encode
from qsm_edge.types import Geometry

ROOT = Path(__file__).resolve().parents[1]
SIDE = 256
STORESCP, STORESCU = Path("/usr/bin/storescp"), Path("/usr/bin/storescu")  # pynetdicom installs namesakes


@dataclass(frozen=True)
class Receiver:
    """A receiver at work: its port, its process, and how many instances it has kept."""

    port: int
    pid: int
    kept: Callable[[], int]


@dataclass(frozen=True)
class Row:
    """What one receiver took for one study."""

    name: str
    instances: int
    megabytes: float
    wall_s: float
    cpu_s: float


def study(folder: Path, count: int) -> list[Path]:
    """A study of `count` classic images of 256 x 256."""
    grid = Geometry((1, SIDE, SIDE), np.diag([1.0, 1.0, 1.0, 1.0])[:, [2, 1, 0, 3]])
    noise = np.random.default_rng(1).normal(size=(1, 1, SIDE, SIDE, 2)).astype(np.float32)
    (image, _) = encode(noise[..., 0] + 1j * noise[..., 1], grid, (0.005,), 3.0, "siemens_classic", seed_name="receive")
    folder.mkdir(parents=True)
    return [_numbered(image, folder, number) for number in range(count)]


def _numbered(image: FileDataset, folder: Path, number: int) -> Path:
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.9.7433.9.{number}"
    image.ImagePositionPatient = [0, 0, number]
    path = folder / f"{number:05d}.dcm"
    image.save_as(path, enforce_file_format=True)
    return path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def process(words: Sequence[str], port: int, log: Path) -> Iterator[int]:
    """A receiver in a group of its own, from when its port answers to its end."""
    with log.open("wb") as told:
        running = subprocess.Popen(words, stdout=told, stderr=told, cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if running.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the receiver did not come up: {log.read_text()[-1000:]}")
            time.sleep(0.1)
        yield running.pid
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(60)


@contextlib.contextmanager
def dcmtk(folder: Path) -> Iterator[Receiver]:
    """storescp with a process for each association, keeping the bytes as they come."""
    kept, port = folder / "kept", free_port()
    kept.mkdir(parents=True)
    words = [str(STORESCP), "--fork", "+B", "-aet", "QSMEDGE", "-od", str(kept), str(port)]
    with process(words, port, folder / "log") as pid:
        yield Receiver(port, pid, lambda: len(os.listdir(kept)))


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Receiver]:
    """The service, which looks at nothing while images come."""
    port, spool = free_port(), folder / "spool"
    folder.mkdir(parents=True)
    (folder / "site.toml").write_text(
        f'[spool]\nfolder = "spool"\nquiet_s = 3600\nmin_free_mb = 0\n'
        f'[listen]\nport = {port}\ncalling_ae_titles = ["SCANNER"]\n'
    )
    words = [sys.executable, "-m", "qsm_edge", "serve", "--config", str(folder / "site.toml")]
    with process(words, port, folder / "log") as pid:
        yield Receiver(port, pid, lambda: len(list((spool / "held").rglob("*.dcm"))))


def send(port: int, files: Sequence[Path], associations: int) -> float:
    """Send over several associations at once; returns the seconds by the clock. RuntimeError where a file is refused."""
    command = [str(STORESCU), "-v", "-aet", "SCANNER", "-aec", "QSMEDGE", "127.0.0.1", str(port)]
    begun = time.monotonic()
    senders = [
        subprocess.Popen(
            [*command, *map(str, files[n::associations])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for n in range(associations)
    ]
    told = [sender.communicate()[1] for sender in senders]
    took = time.monotonic() - begun
    good = sum(text.count("Received Store Response (Success)") for text in told)
    if good != len(files):
        raise RuntimeError(f"{good} of {len(files)} files were acknowledged")
    return took


def cpu_s(pid: int) -> float:
    """Processor time of a process, its threads and its children that have ended."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def measured(name: str, start: Callable[[Path], object], files: Sequence[Path], work: Path, associations: int) -> Row:
    """Send a study to a receiver and check that it kept every instance."""
    shutil.rmtree(work, ignore_errors=True)
    with start(work) as receiver:  # type: ignore[attr-defined]
        send(receiver.port, files[:4], 1)
        before = cpu_s(receiver.pid)
        took = send(receiver.port, files[4:], associations)
        time.sleep(0.5)
        spent = cpu_s(receiver.pid) - before
        if receiver.kept() != len(files):
            raise RuntimeError(f"{name} kept {receiver.kept()} of {len(files)}")
    total = sum(path.stat().st_size for path in files[4:]) / 1e6
    return Row(name, len(files) - 4, total, took, spent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--associations", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="where the receivers write; on the disk in question")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        files = study(Path(folder) / "study", args.instances)
        rows: dict[str, list[Row]] = {}
        for _ in range(args.rounds):
            for name, start in (("storescp", dcmtk), ("qsm-edge", ours)):
                row = measured(name, start, files, Path(folder) / name, args.associations)
                rows.setdefault(name, []).append(row)
    best = {name: min(found, key=lambda row: row.wall_s) for name, found in rows.items()}
    print("| receiver | instances | MB | wall s | MB/s | CPU s | CPU ms an instance |")
    print("|---|---|---|---|---|---|---|")
    for row in best.values():
        speed, each = row.megabytes / row.wall_s, 1e3 * row.cpu_s / row.instances
        print(
            f"| {row.name} | {row.instances} | {row.megabytes:.0f} | {row.wall_s:.1f} | {speed:.0f} "
            f"| {row.cpu_s:.1f} | {each:.1f} |"
        )
    ratio = best["storescp"].wall_s / best["qsm-edge"].wall_s
    load = os.getloadavg()[0]
    print(f"\nthroughput of qsm-edge / storescp: {ratio:.2f} (the load of the machine at the end: {load:.1f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
