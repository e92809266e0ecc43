"""A night of studies over the network with kill -9 in it, told as counts: the body of the short and of the long trial.

    python -m tests.trials.night FOLDER [STUDIES [SERVICE_KILLS [SEED [real]]]]

A scanner (storescu) sends studies in pairs, shuffled; Orthanc takes the results and commits itself to them. The service is
killed while it receives, while its worker is at work and while it sends, and so is, by itself, each of its children. What
was acknowledged is looked for right after each kill, before anything was put right.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qsm_edge.spool import Spool, opened
from tests import dicom_factory
from tests.orthanc_server import Orthanc, free_ports
from tests.trials import trial_world as world
from tests.trials.fake_series import DESCRIPTION, IMAGES
from tests.trials.trial_world import Scanner, Service

ENCODINGS = ("siemens_classic", "philips_enhanced", "ge_real_imaginary", "siemens_xa_enhanced", "philips_classic")
AIMS = ("listener", "worker", "sender")
#: Of the stand-in; the real chain takes as long as it takes.
WORK_S = 1.0


@dataclass
class Night:
    """What is going on: the pairs of studies, what was hit, and what the processes under trial were doing."""

    spool: Path
    config: Path
    scanner: Scanner
    waves: list[list[Path]]
    work_s: float | None
    aimed: Counter[str] = field(default_factory=Counter)
    hit: Counter[str] = field(default_factory=Counter)


def study_files(folder: Path, count: int, make: Callable[[str, str], list] | None = None) -> list[list[Path]]:
    """The files of `count` studies, in all encodings in turn."""
    made = []
    for number in range(count):
        encoding = ENCODINGS[number % len(ENCODINGS)]
        datasets = (make or _scan)(encoding, f"night-{number}")
        here = folder / f"{number}-{encoding}"
        here.mkdir(parents=True)
        for image, dataset in enumerate(datasets):
            dataset.save_as(here / f"{image:04d}.dcm", enforce_file_format=True)
        made.append(sorted(here.iterdir()))
    return made


def _scan(encoding: str, name: str) -> list:
    return dicom_factory.scan(encoding, name=name, shape=(9, 12, 10))


def pass_night(
    folder: Path, *, studies: int, kills: int, seed: int, work_s: float | None = WORK_S, make: Callable | None = None
) -> dict[str, object]:
    """Let it be night; returns what was done and found. Any loss is an AssertionError."""
    chance = random.Random(seed)
    listens, *ports = free_ports(3)
    groups = study_files(folder / "night", studies, make)
    waves = [[file for group in groups[n : n + 2] for file in group] for n in range(0, studies, 2)]
    for wave in waves:
        chance.shuffle(wave)
    lines = f'port = {ports[0]}\ncalled_ae_title = "ORTHANC"\ncommitment = "required"\ncommitment_wait_s = 5.0\n'
    config = world.site_file(folder, listens, lines)
    night = Night(folder / "spool", config, Scanner(listens), waves, work_s)
    with world.pacs(folder / "orthanc", listens, ports) as server:
        lives = _lives(night, kills, chance)
        _check_peer(server, night, studies, by_stand_in=work_s is not None)
        instances_at_peer = len(server.ask("/instances"))
    files = sum(len(wave) for wave in waves)
    world.check_acknowledged(night.spool, night.scanner.acknowledged)
    world.check_at_rest(night.spool, jobs=studies, instances=files)
    return {
        "studies": studies,
        "instances sent": files,
        "acknowledgements": len(night.scanner.acknowledged),
        "lives of the service": lives,
        "kills aimed at": dict(sorted(night.aimed.items())),
        "at the kill": dict(sorted(night.hit.items())),
        "result instances at the peer": instances_at_peer,
    }


def _lives(night: Night, kills: int, chance: random.Random) -> int:
    """Run the service, kill it at what is aimed at, run it again, to the end of the night; returns how often it ran."""
    plan = list(_plan(len(night.waves), kills, chance))
    service, lives = world.started(night.config, night.work_s), 1
    sender, wave = None, -1
    try:
        for number, aim in plan:
            while wave < number:  # the next pair comes when the kills of the one before it are spent
                if sender is not None:
                    sender.join(world.PATIENCE_S)
                wave += 1
                sender = threading.Thread(target=night.scanner.send, args=(night.waves[wave], 8, 0.3), daemon=True)
                sender.start()
            night.aimed[aim] += 1
            if aim in AIMS:
                _await(aim, service, night, chance)
                _note(service, night)
                service.kill()
                world.check_acknowledged(night.spool, list(night.scanner.acknowledged))
                service, lives = world.started(night.config, night.work_s), lives + 1
            else:
                _kill_child(aim, service, night, chance)
        sender.join(world.PATIENCE_S)
        assert not sender.is_alive()
        world.wait_until(
            lambda: world.all_done(night.spool, sum(len({f.parent for f in w}) for w in night.waves)), step_s=0.5
        )
        service.stop()
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
    return lives


def _plan(waves: int, kills: int, chance: random.Random) -> Iterator[tuple[int, str]]:
    """Wave and aim of each kill: in every wave each part of the service in turn, and the children by themselves."""
    each = [kills // waves + (n < kills % waves) for n in range(waves)]
    for number in range(waves):
        aims = [AIMS[n] if n < len(AIMS) else chance.choice(AIMS) for n in range(each[number])]
        aims = sorted(aims, key=AIMS.index)
        first = aims.count("listener")
        yield from ((number, aim) for aim in [*aims[:first], "reader", "reconstruction", *aims[first:]])


def _await(aim: str, service: Service, night: Night, chance: random.Random) -> None:
    """Wait for the moment of a kill: a random one inside what is aimed at, or of the rest of the night."""
    begin, patience = len(night.scanner.acknowledged), 20.0 if night.work_s is not None else 120.0
    wanted, work_s = chance.randrange(1, 12), night.work_s or 8.0
    end = time.monotonic() + patience
    with opened(night.spool) as spool:
        moments = {
            "listener": (lambda: len(night.scanner.acknowledged) >= begin + wanted, 0.05),
            "worker": (lambda: service.events("started"), work_s),
            "sender": (lambda: _is_sending(spool), 0.5),
        }
        condition, spread_s = moments[aim]
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
    time.sleep(chance.uniform(0.0, spread_s))


def _is_sending(spool: Spool) -> bool:
    """Whether a delivery was begun and its outcome is not entered."""
    question = "SELECT 1 FROM deliveries WHERE state = 'pending' AND attempts > 0 AND outcome = '' LIMIT 1"
    return bool(spool.ledger.rows(question))


def _note(service: Service, night: Night) -> None:
    """Count what the service is doing at the moment of the kill."""
    night.hit["a peer's association open"] += night.scanner.sending
    night.hit["a reconstruction running"] += bool(service.children("fake_series") or service.children("\0run\0"))
    night.hit["the reader running"] += bool(service.children("\0look\0"))
    with opened(night.spool) as spool:
        night.hit["a delivery under way"] += _is_sending(spool)


def _kill_child(aim: str, service: Service, night: Night, chance: random.Random) -> None:
    """Kill one child of the service, where one comes in time."""
    words = ("\0look\0",) if aim == "reader" else ("fake_series", "\0run\0")
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        if found := [child for word in words for child in service.children(word)]:
            time.sleep(chance.uniform(0.0, 0.5))
            try:
                os.kill(found[0], signal.SIGKILL)
            except ProcessLookupError:
                continue  # it was quicker; the next one
            night.hit[f"{aim} killed alone"] += 1
            return
        time.sleep(0.005)


def _check_peer(server: Orthanc, night: Night, studies: int, *, by_stand_in: bool) -> None:
    """One result series of each study at the peer, whole, and the very bytes that the ledger vouches for."""
    found = world.result_series(server, DESCRIPTION if by_stand_in else "QSM")
    assert len(found) == studies
    maps = [[one for one in series if one["MainDicomTags"]["Modality"] == "MR"] for series in found.values()]
    assert [len(series) for series in maps] == [1] * studies
    if by_stand_in:
        assert {len(one["Instances"]) for series in found.values() for one in series} == {IMAGES}
    with opened(night.spool) as spool:
        rows = spool.ledger.rows("SELECT job, path FROM deliveries WHERE state = 'done'")
        made = [world.dataset_of((spool.job("done", row["job"]) / row["path"]).read_bytes()) for row in rows]
    at_peer = {}
    for name in server.ask("/instances"):
        dataset = world.dataset_of(server.get(f"/instances/{name}/file"))
        at_peer[dataset.SOPInstanceUID] = dataset
    assert len(at_peer) == len(made)
    assert all(at_peer[dataset.SOPInstanceUID] == dataset for dataset in made)


def main() -> int:
    folder, *numbers = sys.argv[1:]
    real = "real" in numbers
    studies, kills, seed = [*(int(n) for n in numbers if n != "real"), 10, 20, 1][:3] if numbers else (10, 20, 1)
    make = None
    if real:
        from tests.deploy.sandbox import small_head

        def make(encoding: str, name: str) -> list:
            return small_head(name, encoding)

    Path(folder).mkdir(parents=True)
    told = pass_night(Path(folder), studies=studies, kills=kills, seed=seed, work_s=None if real else WORK_S, make=make)
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
