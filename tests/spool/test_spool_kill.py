"""kill -9 at any point of a night: what was acknowledged is there, every study has one result, nothing else is left."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from qsm_edge.dicom.identify import hashed
from qsm_edge.spool import opened
from qsm_edge.spool.recover import recover
from tests.spool.spool_world import check_agreement, site, states, until
from tests.spool.studies import contents

fcntl = pytest.importorskip("fcntl", reason="there is no kill -9 on Windows")

PATIENCE_S = 300.0
ROOT = Path(__file__).resolve().parents[2]
STUDIES = ("siemens_classic", "philips_classic", "philips_enhanced", "siemens_xa_enhanced")


def _until_alive(root: Path, service: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not (root / "alive").exists():
        assert service.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    (root / "alive").unlink()


def _study(content: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(content), specific_tags=["StudyInstanceUID"]).StudyInstanceUID)


@contextlib.contextmanager
def _life(root: Path, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """One life of the service, which is over when this is, whatever the test came to."""
    words = [sys.executable, "-m", "tests.spool.killed_service", str(root), str(seed)]
    service = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    try:
        yield service
    finally:
        service.kill()
        service.wait()


def _orphans(root: Path) -> list[int]:
    """Reconstructions of lives that have ended which are still at work."""
    found = []
    for path in (root / "roll").iterdir():
        with path.open() as entry:
            try:
                fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(int(path.name))
    return found


@pytest.fixture
def root(tmp_path):
    """A folder for a night; when the test has ended, however, so has every process of it."""
    for name in ("night", "sizes", "roll"):
        (tmp_path / name).mkdir()
    yield tmp_path
    for number in _orphans(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def _told(root: Path) -> str:
    """What state the spool is in, for who reads that the test has failed."""
    told = {
        "jobs": "SELECT job, state, code, text, attempts, interruptions FROM jobs",
        "findings": "SELECT study, state, code, files FROM findings",
        "deliveries": "SELECT job, path, state, attempts, outcome FROM deliveries",
        "instances": "SELECT state, COUNT(*) AS files FROM instances GROUP BY state",
        "studies": "SELECT study, arrivals, looked FROM studies",
    }
    lines = [
        f"acknowledged: {len(set((root / 'acknowledged').read_text().split()))} of {len(os.listdir(root / 'night'))}"
    ]
    with opened(site(root).spool.folder) as spool:
        for what, question in told.items():
            lines += [f"{what}:", *(f"  {dict(row)}" for row in spool.ledger.rows(question))]
    return "\n".join(lines)


def test_a_service_killed_again_and_again_loses_nothing_and_delivers_one_result_of_each_study(root):
    chance, kills = random.Random(20), int(os.environ.get("QSM_EDGE_TEST_KILLS", "10"))
    studies = int(os.environ.get("QSM_EDGE_TEST_STUDIES", "4"))
    names = [(encoding, f"{encoding}{number}") for number in range(studies) for encoding in STUDIES][:studies]
    for encoding, name in names:
        files = contents(encoding, name=name, echo_times_s=(0.004, 0.0115))
        for number, content in enumerate(files):
            (root / "night" / f"{encoding}-{name}-{number}").write_bytes(content)
        (root / "sizes" / hashed(_study(files[0]))).write_text(str(len(files)))
    (root / "studies").write_text(str(studies))
    died = 0
    for number in range(kills):
        with _life(root, number) as service:
            _until_alive(root, service)
            try:
                assert service.wait(chance.uniform(0.0, 0.8)) == 0
                break
            except subprocess.TimeoutExpired:
                os.kill(service.pid, signal.SIGKILL)  # the service alone: what it started has to be made up for
                service.wait()
                died += 1
                _check_acknowledged(root)
    else:
        with _life(root, kills) as last:
            try:
                assert last.wait(PATIENCE_S) == 0
            except subprocess.TimeoutExpired:
                pytest.fail(f"not ended within {PATIENCE_S:.0f} s; {_told(root)}", pytrace=False)
    _check_acknowledged(root)
    until(lambda: not _orphans(root))  # one may make its folder again after all has been put right
    with opened(site(root).spool.folder) as spool:
        assert states(spool) == ["done"] * studies, _told(root)
        assert recover(spool).requeued == 0
        check_agreement(spool)
        assert states(spool, "instances") == ["held"] * len(list((root / "night").iterdir()))
        entered = {f"done/{r['job']}/{r['path']}": r["sha256"] for r in spool.ledger.rows("SELECT * FROM results")}
    received = defaultdict(set)
    for line in (root / "received").read_text().splitlines():
        path, digest = line.split()
        received[path.removeprefix("done/").split("/out/")[0].split("/")[-1], path.split("/out/")[1]].add(digest)
    assert all(len(digests) == 1 for digests in received.values())  # repeated perhaps, never another
    wanted = {(k.split("/")[1], k.split("/out/")[1]): {v} for k, v in entered.items() if k.endswith(".dcm")}
    assert received == wanted
    assert died >= min(kills, 3)


def _check_acknowledged(root: Path) -> None:
    """Whatever a sender was told, right after the kill, before anything was put right."""
    if not (root / "acknowledged").exists():
        return
    with opened(site(root).spool.folder) as spool:
        held = {row["name"] for row in spool.ledger.rows("SELECT name FROM instances WHERE state = 'held'")}
        entered = {name.partition("-")[2] for name in held}
        there = {path.read_bytes() for path in spool.folder("held").rglob("*.dcm")}
    for name in set((root / "acknowledged").read_text().split("\n")[:-1]):
        content = (root / "night" / name).read_bytes()
        assert content in there
        assert hashlib.sha256(content).hexdigest()[:16] in entered
