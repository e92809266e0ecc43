"""The service as a process on loopback, a scanner (DCMTK's storescu) that remembers what was acknowledged, and judges."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom

from qsm_edge import listen
from qsm_edge.dicom.filemeta import read_file_meta
from qsm_edge.dicom.identify import hashed
from qsm_edge.spool import Spool, opened
from tests.orthanc_server import Orthanc, program, running
from tests.spool.spool_world import check_agreement

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 150.0


def wait_until(done: Callable[[], object], seconds: float = PATIENCE_S, step_s: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(step_s)


def site_file(
    folder: Path,
    port: int,
    destination: str = "",
    *,
    disk: Path | None = None,
    min_free_mb: int = 0,
    quiet_s: float = 1.0,
) -> Path:
    """A configuration that waits for little. `destination`: the lines of its table; `disk`: where the spool lies."""
    path = folder / "site.toml"
    path.write_text(
        f'[spool]\nfolder = "{(disk or folder) / "spool"}"\nquiet_s = {quiet_s}\nmin_free_mb = {min_free_mb}\n'
        f'[listen]\nport = {port}\ncalling_ae_titles = ["SCANNER", "ORTHANC"]\n'
        '[work]\nrecipe = "fast"\nmask = "threshold"\nretry_s = 0.05\nattempts = 10\nmemory_mb = 4000\n'
        '[delivery]\nfirst_retry_s = 0.5\nlongest_retry_s = 2.0\n[log]\nformat = "json"\n'
        + (f'[[destination]]\nname = "pacs"\nhost = "127.0.0.1"\n{destination}' if destination else "")
    )
    return path


@dataclass
class Service:
    """One life of the service."""

    process: subprocess.Popen[bytes]
    log: Path
    since: int

    def events(self, event: str) -> list[dict]:
        """What this life has told so far of an event."""
        with self.log.open("rb") as told:
            told.seek(self.since)
            lines = told.read().split(b"\n")[:-1]
        return [fact for fact in map(json.loads, lines) if fact["event"] == event]

    def children(self, word: str) -> list[int]:
        """Processes below the service with `word` on their command line."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            numbers: list[str] = []
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                numbers = task.read_text().split()
            for number in numbers:
                with contextlib.suppress(OSError):
                    if word.encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                        found.append(int(number))
        return found

    def kill(self) -> None:
        """kill -9 of the service alone."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def stop(self) -> None:
        """SIGTERM, as a machine that is shut down says."""
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0

    def resident_mb(self, which: str = "VmRSS") -> float:
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith(f"{which}:"))


def started(config: Path, seconds: float | None = 0.5, fill: Path | None = None) -> Service:
    """The service with the stand-in for the chain that takes `seconds` (and fills the disk), or, None, as it is; ready."""
    module = ["qsm_edge", "serve", "--config"] if seconds is None else ["tests.trials.service"]
    words = [sys.executable, "-m", *module, str(config), *([] if seconds is None else [str(seconds)])]
    words += [] if fill is None else [str(fill)]
    log = config.with_suffix(".log")
    since = log.stat().st_size if log.exists() else 0
    with log.open("ab") as told:
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(words, cwd=ROOT, stdout=told, stderr=told, env={**os.environ, **quiet})
    service = Service(process, log, since)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        return bool(service.events("serving"))

    try:
        wait_until(ready)
    except BaseException:
        process.kill()
        raise
    return service


@contextlib.contextmanager
def serving(config: Path, seconds: float | None = 0.5, fill: Path | None = None) -> Iterator[Service]:
    """A life of the service that ends with the test."""
    service = started(config, seconds, fill)
    try:
        yield service
        service.stop()
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait(PATIENCE_S)


@dataclass
class Scanner:
    """Sends files with storescu, a few to an association, until each was acknowledged; knows which were, and what else
    it was told."""

    port: int
    acknowledged: list[Path] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    sending: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, files: Sequence[Path]) -> list[Path]:
        """One association; returns what was acknowledged of it."""
        words = [program("storescu"), "-v", "-to", "10", "-ta", "30", "-td", "60", "-aet", "SCANNER", "-aec", "QSMEDGE"]
        command = [*words, "127.0.0.1", str(self.port), *map(str, files)]
        good: list[Path] = []
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            current = None
            for line in process.stderr:
                if found := re.match(r"I: Sending file: (.*)", line):
                    current = Path(found[1])
                elif found := re.match(r"I: Received Store Response \((.*)\)", line):
                    with self.lock:
                        self.answers.append(found[1])
                        if found[1] == "Success":
                            good.append(current)
                            self.acknowledged.append(current)
        return good

    def send(self, files: Sequence[Path], at_a_time: int = 12, pause_s: float = 0.0) -> None:
        """Send until all are acknowledged."""
        left, end = list(files), time.monotonic() + PATIENCE_S
        while left:
            self.sending = True
            good = set(self.offer(left[:at_a_time]))
            self.sending = False
            left = [file for file in left if file not in good]
            assert time.monotonic() < end, f"{len(left)} files are never acknowledged: {self.answers[-5:]}"
            time.sleep(pause_s if good else 0.1)


@contextlib.contextmanager
def pacs(folder: Path, our_port: int, ports: Sequence[int] = (), more: Mapping[str, object] | None = None):
    """An Orthanc that commits itself to us, and never replaces what it has."""
    known = {"edge": {"AET": "QSMEDGE", "Host": "127.0.0.1", "Port": our_port}}
    with running(program("Orthanc"), folder, {"DicomModalities": known, **(more or {})}, ports) as server:
        yield server


@dataclass
class Archive:
    """Our own listener in the place of a PACS: what it was given, each time again, as SOP instance UID and digest."""

    given: list[tuple[str, str]] = field(default_factory=list)
    answer: Callable[[str], None] = lambda uid: None

    def counts(self) -> Counter[str]:
        return Counter(uid for uid, _ in self.given)


@contextlib.contextmanager
def archive(folder: Path, port: int, kept: Archive | None = None) -> Iterator[Archive]:
    """An archive without storage commitment. `answer` may raise what the listener answers with a failure."""
    kept = Archive() if kept is None else kept
    folder.mkdir(exist_ok=True)

    def store(part: Path, origin: listen.Origin) -> None:
        dataset = pydicom.dcmread(part)
        content = hashlib.sha256(part.read_bytes()[read_file_meta(part).offset :]).hexdigest()
        kept.answer(dataset.SOPInstanceUID)
        kept.given.append((str(dataset.SOPInstanceUID), content))
        part.unlink()

    settings = listen.Settings(port=port, ae_title="PACS", any_calling_ae_title=True)
    with listen.serve(settings, folder, store, lambda line: None):
        yield kept


def result_series(server: Orthanc, description: str) -> dict[str, list[dict[str, object]]]:
    """The result series at a peer, by study instance UID."""
    found: dict[str, list[dict[str, object]]] = {}
    for name in server.ask("/series"):
        series = server.ask(f"/series/{name}")
        if description in series["MainDicomTags"].get("SeriesDescription", ""):
            study = server.ask(f"/series/{name}/study")["MainDicomTags"]["StudyInstanceUID"]
            found.setdefault(study, []).append(series)
    return found


def dataset_of(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def delivered(config_spool: Path) -> dict[str, int]:
    """Deliveries and jobs by state."""
    with opened(config_spool) as spool:
        rows = spool.ledger.rows(
            "SELECT 'job ' || state AS s, COUNT(*) AS n FROM jobs GROUP BY state UNION ALL "
            "SELECT 'delivery ' || state, COUNT(*) FROM deliveries GROUP BY state"
        )
        return {row["s"]: row["n"] for row in rows}


def all_done(spool: Path, jobs: int) -> bool:
    """Whether so many jobs are done and nothing is due anywhere."""
    counts = delivered(spool)
    return counts.get("job done", 0) == jobs and "delivery pending" not in counts and "delivery done" in counts


def check_acknowledged(spool: Path, files: Sequence[Path]) -> None:
    """Every acknowledged file is in the ledger and on the disk with its pixels, whatever state the spool is in."""
    with opened(spool) as there:
        rows = there.ledger.rows("SELECT * FROM instances WHERE state = 'held'")
        by_sop = {row["sop"]: there.instance(row["study"], row["name"]) for row in rows}
    for file in set(files):
        sent = pydicom.dcmread(file)
        kept = pydicom.dcmread(by_sop[hashed(sent.SOPInstanceUID)])
        assert kept.PixelData == sent.PixelData
        assert kept.SOPInstanceUID == sent.SOPInstanceUID


def check_at_rest(spool_folder: Path, *, jobs: int, instances: int) -> None:
    """A spool after its service was stopped: nothing to put right, no file that nobody knows, all entered and done."""
    from qsm_edge.spool.recover import recover

    with opened(spool_folder) as spool:
        told = recover(spool)
        assert (told.parts, told.adopted, told.deleted, told.requeued, told.missing) == (0, 0, 0, 0, [])
        check_agreement(spool)
        assert [row["state"] for row in spool.ledger.rows("SELECT state FROM jobs")] == ["done"] * jobs
        assert [row["state"] for row in spool.ledger.rows("SELECT state FROM instances")] == ["held"] * instances
        check_nothing_else(spool)


def check_nothing_else(spool: Spool) -> None:
    """The spool holds its folders, ledger and lock, and nothing beside them."""
    names = {path.name for path in spool.root.iterdir()}
    extra = {"ledger.sqlite-wal", "ledger.sqlite-shm"}
    folders = {"incoming", "held", "ready", "working", "done", "refused", "failed"}
    assert names - extra == folders | {"ledger.sqlite", "service.lock"}
