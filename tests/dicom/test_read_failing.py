"""Disks that fail, processes that are killed: what concerns one acquisition stays there, and nothing is left behind."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import dicom_factory as factory
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from qsm_edge.dicom import find, read_series, temporary
from qsm_edge.errors import InputRefused


@pytest.fixture
def broken(monkeypatch) -> set[Path]:
    """Put files in here, and they cannot be read any more: a disk that dies, a share that goes away."""
    paths: set[Path] = set()

    def guarded(open_):
        def opened(path, *args, **options):
            if not isinstance(path, int) and Path(path) in paths:
                raise OSError(errno.EIO, "Input/output error")
            return open_(path, *args, **options)

        return opened

    monkeypatch.setattr(Path, "open", guarded(Path.open))
    monkeypatch.setattr(builtins, "open", guarded(open))
    return paths


def stored(how: str, folder: Path) -> Path:
    datasets = factory.scan("siemens_classic")
    if how == "deflated":
        return factory.rewritten(datasets, DeflatedExplicitVRLittleEndian, folder)
    for dataset in datasets if how == "compressed" else ():
        dataset.compress(RLELossless, generate_instance_uid=False)
    return factory.write(datasets, folder)


@pytest.mark.parametrize("how", ["plain", "deflated", "compressed"])
def test_pixels_that_cannot_be_read_are_the_input_s_fault(tmp_path, broken, how):
    with find(stored(how, tmp_path / "in")) as inventory:
        (acquisition,) = inventory.acquisitions
        file = acquisition.plan.images["P"][1][2].file
        broken.add(file.path)
        with pytest.raises(InputRefused) as refusal:
            acquisition.load()
    assert (refusal.value.code, refusal.value.where) == ("unreadable_file", file.shown)
    assert refusal.value.got == "Input/output error"


def test_a_header_that_cannot_be_read_again(tmp_path, broken):
    """Between looking at a file and taking its header for the output."""
    factory.write(factory.scan("siemens_classic", name="good"), tmp_path / "in" / "good")
    factory.write(factory.scan("siemens_classic"), tmp_path / "in" / "bad")
    count = 2 * 30

    def progress(done, _total):
        if done == count:
            broken.update((tmp_path / "in" / "bad").iterdir())

    with find(tmp_path / "in", progress=progress) as inventory:
        assert len(inventory.acquisitions) == 1
        assert [refusal.code for refusal in inventory.refused] == ["unreadable_file"]


def test_a_copy_that_cannot_be_read_spoils_its_acquisition_only(tmp_path, broken):
    factory.write(factory.scan("siemens_classic", name="good"), tmp_path / "in" / "good")
    bad = factory.scan("siemens_classic")
    factory.write(bad, tmp_path / "in" / "bad")
    factory.write(bad, tmp_path / "in" / "copy")
    count = 3 * 30

    def progress(done, _total):
        if done == count:
            broken.add(tmp_path / "in" / "copy" / "IM00004")

    with find(tmp_path / "in", progress=progress) as inventory:
        assert len(inventory.acquisitions) == 1
        assert [refusal.code for refusal in inventory.refused] == ["unreadable_file"]


# -------------------------------------------------------------------------------------- one image twice


def test_copies_in_different_transfer_syntaxes_are_one_image(tmp_path):
    wanted = read_series(factory.write(factory.scan("siemens_classic"), tmp_path / "in" / "plain"))
    stored("compressed", tmp_path / "in" / "compressed")
    stored("deflated", tmp_path / "in" / "deflated")
    with find(tmp_path / "in") as inventory:
        (acquisition,) = inventory.acquisitions
        assert not inventory.refused
        assert [note.code for note in acquisition.source.notes] == ["duplicate_dropped"]
        assert (acquisition.load().phase_rad == wanted.phase_rad).all()


def test_compressed_copies_that_differ_are_two_images(tmp_path):
    factory.write(factory.scan("siemens_classic"), tmp_path / "in" / "plain")
    datasets = factory.scan("siemens_classic")
    datasets[3].PixelData = bytes(reversed(datasets[3].PixelData))
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    with find(factory.write(datasets, tmp_path / "in" / "compressed")) as inventory:
        assert len(inventory.acquisitions) == 1  # of the compressed ones alone
    with find(tmp_path / "in") as inventory:
        assert not inventory.acquisitions
        assert [refusal.code for refusal in inventory.refused] == ["same_uid_other_pixels"]


def test_what_follows_the_pixels_does_not_make_another_image(tmp_path):
    """Some archives pad their files, or add elements of their own at the end."""
    datasets = factory.scan("siemens_classic")
    factory.write(datasets, tmp_path / "in" / "a")
    datasets[2].add_new(0xFFFCFFFC, "OB", bytes(64))
    factory.write(datasets, tmp_path / "in" / "b")
    with find(tmp_path / "in") as inventory:
        assert len(inventory.acquisitions) == 1
        assert not inventory.refused


# -------------------------------------------------------------------------------------- killed


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A temporary folder of our own."""
    monkeypatch.setattr(tempfile, "tempdir", str(factory.folder(tmp_path / "temporary")))
    return tmp_path / "temporary"


def owner(place: Path) -> tuple[subprocess.Popen, Path]:
    """A process that has extracted something into a folder below `place`, and the folder."""
    code = (
        "import tempfile, sys, time; from pathlib import Path; tempfile.tempdir = sys.argv[1]\n"
        "from qsm_edge.dicom.temporary import Folder\n"
        "folder = Folder(); (Path(folder.name) / '000000').write_text('patient')\n"
        "print(folder.name, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path, place):
    process, folder = owner(place)
    try:
        temporary.sweep()
        assert (folder / "000000").exists()  # its owner lives
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (folder / "000000").exists()
        with find(factory.folder(tmp_path / "nothing")):
            assert not list(place.iterdir())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_our_own_folder_is_left_alone(tmp_path, place):
    folder = factory.write(factory.scan("philips_enhanced"), tmp_path / "files")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as out:
        out.write(next(folder.iterdir()), "one")
    with find(tmp_path / "in.zip") as first:
        with find(tmp_path / "in.zip") as second:
            assert len(list(place.iterdir())) == 2
            second.acquisitions[0].load()
        first.acquisitions[0].load()
    assert not list(place.iterdir())


def test_what_is_not_clearly_an_orphan_stays(tmp_path, place, monkeypatch):
    outside = factory.folder(tmp_path / "outside")
    (outside / "owner.lock").touch()
    (place / "qsm-edge-link").symlink_to(outside)
    (place / "qsm-edge-file").touch()
    factory.folder(place / "qsm-edge-unlocked")
    factory.folder(factory.folder(place / "qsm-edge-odd") / "owner.lock")
    (factory.folder(place / "somebody-else") / "owner.lock").touch()
    before = sorted(place.iterdir())
    temporary.sweep()
    assert sorted(place.iterdir()) == before
    (factory.folder(place / "qsm-edge-theirs") / "owner.lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: os.stat(place).st_uid + 1)
        temporary.sweep()
    assert (place / "qsm-edge-theirs").exists()
    temporary.sweep()
    assert sorted(place.iterdir()) == before
