"""A full disk at every stage, a real one: refused with OutOfResources, resumed when there is room, nothing lost or twice.

The spool lies on a file system of a few MB in memory, which takes the right to mount one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import dicom_factory
from tests.deploy.sandbox import small_head
from tests.orthanc_server import free_ports
from tests.trials import trial_world as world
from tests.trials.fake_series import IMAGES, fill
from tests.trials.trial_world import Scanner

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file system in memory is mounted")


@pytest.fixture
def disk(tmp_path):
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here: it takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _files(folder: Path, datasets: list) -> list[Path]:
    folder.mkdir()
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())


def _to(port: int) -> str:
    return f'port = {port}\ncalled_ae_title = "PACS"\ncommitment = "no"\n'


def _check_once(kept: world.Archive, images: int) -> None:
    assert len(kept.given) == images
    assert set(kept.counts().values()) == {1}


@pytest.mark.parametrize("min_free_mb", [0, 4], ids=["to the last byte", "with a reserve"])
def test_a_disk_that_is_full_while_receiving_refuses_and_resumes(tmp_path, disk, min_free_mb):
    files = _files(tmp_path / "out", dicom_factory.scan("philips_enhanced", shape=(5, 120, 100)))
    files += _files(tmp_path / "more", dicom_factory.scan("siemens_classic", name="more"))
    listens, out = free_ports(2)
    config = world.site_file(tmp_path, listens, _to(out), disk=disk, min_free_mb=min_free_mb)
    scanner = Scanner(listens)
    with world.archive(tmp_path / "pacs", out) as kept, world.serving(config, 0.0):
        fill(disk / "ballast", leave=200_000 + min_free_mb * 1_000_000)
        assert files[0].stat().st_size > 200_000
        for _ in range(2):
            assert scanner.offer(files[:1]) == []
        assert set(scanner.answers) == {"Refused: OutOfResources"}
        assert list((disk / "spool" / "incoming").iterdir()) == []
        (disk / "ballast").unlink()
        scanner.send(files)
        world.wait_until(lambda: world.all_done(disk / "spool", 2))
    _check_once(kept, 2 * IMAGES)
    world.check_acknowledged(disk / "spool", scanner.acknowledged)
    world.check_at_rest(disk / "spool", jobs=2, instances=len(files))


def test_a_disk_that_fills_while_results_are_written_costs_the_run_and_not_the_job(tmp_path, disk):
    """The real chain, which has to say so over a disk that has no room for its words."""
    files = _files(tmp_path / "out", small_head("full", "philips_enhanced"))
    listens, out = free_ports(2)
    config = world.site_file(tmp_path, listens, _to(out), disk=disk)
    scanner = Scanner(listens)
    with world.archive(tmp_path / "pacs", out) as kept, world.serving(config, None) as service:
        scanner.send(files)
        world.wait_until(lambda: service.events("started"))
        fill(disk / "ballast", leave=60_000)
        world.wait_until(lambda: len(service.events("ended")) >= 2)
        assert {(e["state"], e["code"]) for e in service.events("ended")} == {("ready", "out_of_disk")}
        assert kept.given == []
        (disk / "ballast").unlink()
        world.wait_until(lambda: world.all_done(disk / "spool", 1))
    assert set(kept.counts().values()) == {1}
    world.check_acknowledged(disk / "spool", scanner.acknowledged)
    world.check_at_rest(disk / "spool", jobs=1, instances=len(files))


def test_a_ledger_without_room_for_the_results_enters_them_later_and_once(tmp_path, disk):
    files = _files(tmp_path / "out", dicom_factory.scan("siemens_classic"))
    listens, out = free_ports(2)
    config = world.site_file(tmp_path, listens, _to(out), disk=disk)
    scanner, ballast = Scanner(listens), disk / "ballast"
    with world.archive(tmp_path / "pacs", out) as kept, world.serving(config, 0.0, ballast) as service:
        scanner.send(files)
        world.wait_until(lambda: ballast.exists() and shutil.disk_usage(disk).free == 0)
        time.sleep(3.0)
        assert scanner.offer(_files(tmp_path / "more", dicom_factory.scan("philips_enhanced", name="more"))) == []
        assert service.process.poll() is None
        ballast.write_bytes(b"")  # there, but empty: it is not filled a second time
        world.wait_until(lambda: world.all_done(disk / "spool", 1))
    _check_once(kept, IMAGES)
    assert set(scanner.answers) == {"Success", "Refused: OutOfResources"}
    world.check_acknowledged(disk / "spool", scanner.acknowledged)
    world.check_at_rest(disk / "spool", jobs=1, instances=len(files))


def test_a_full_disk_holds_up_deliveries_and_repeats_none(tmp_path, disk):
    files = _files(tmp_path / "out", dicom_factory.scan("siemens_classic"))
    listens, out = free_ports(2)
    config = world.site_file(tmp_path, listens, _to(out), disk=disk)
    scanner = Scanner(listens)
    with world.serving(config, 0.0) as service:
        scanner.send(files)
        world.wait_until(lambda: service.events("delivery"))  # nobody is there to take it
        fill(disk / "ballast")
        with world.archive(tmp_path / "pacs", out) as kept:
            time.sleep(6.0)
            assert service.process.poll() is None
            (disk / "ballast").unlink()
            world.wait_until(lambda: world.all_done(disk / "spool", 1))
            time.sleep(2.0)
    assert {digest for _, digest in kept.given} == set(_sent_digests(disk / "spool"))
    assert len(set(kept.given)) == IMAGES  # repeated perhaps, where the answer could not be entered; never other bytes
    world.check_at_rest(disk / "spool", jobs=1, instances=len(files))


def _sent_digests(spool: Path) -> list[str]:
    import hashlib

    from qsm_edge.dicom.filemeta import read_file_meta

    paths = sorted((spool / "done").rglob("*.dcm"))
    return [hashlib.sha256(path.read_bytes()[read_file_meta(path).offset :]).hexdigest() for path in paths]


def test_a_spool_that_cannot_be_written_to_is_told_at_the_start(tmp_path, disk, capsys):
    from qsm_edge import cli

    config = tmp_path / "site.toml"
    config.write_text(f'[spool]\nfolder = "{disk / "spool"}"\nquiet_s = 0\nmin_free_mb = 0\n')
    command = ["serve", "--once", "--config", str(config)]
    assert cli.main(command) == 0
    capsys.readouterr()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "[bad_call]" in said
    assert "cannot be written to" in said
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert cli.main(command) == 0
