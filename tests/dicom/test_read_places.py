"""Where images can come from: folders at any depth, single files, a DICOMDIR's folder, archives, links."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import dicom_factory as factory
import numpy as np
import pytest

from qsm_edge.dicom import archive, find, read_series
from qsm_edge.errors import InputRefused, UsageError


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A folder with one acquisition."""
    return factory.write(factory.scan("siemens_classic"), tmp_path_factory.mktemp("scan"))


def zipped(folder: Path, target: Path, prefix: str = "study/series/") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for number, file in enumerate(sorted(folder.iterdir())):
            out.write(file, f"{prefix}{number:03x}")
    return target


def test_a_folder_at_any_depth_and_names_without_meaning(tmp_path, scan):
    for number, file in enumerate(sorted(scan.iterdir())):
        deep = tmp_path / "in" / f"disc {number % 3}" / "a" / "b" / "c"
        deep.mkdir(parents=True, exist_ok=True)
        (deep / f"{number * 7919 % 1000}.{number}").hardlink_to(file)
    np.testing.assert_array_equal(read_series(tmp_path / "in").phase_rad, read_series(scan).phase_rad)


def test_a_single_enhanced_file(tmp_path):
    (file,) = factory.write(factory.scan("philips_enhanced"), tmp_path / "in").iterdir()
    assert read_series(file).magnitude.shape == (3, *factory.SHAPE)


def test_a_dicomdir_stands_for_its_folder(tmp_path, scan):
    (tmp_path / "in" / "IMAGES").mkdir(parents=True)
    for file in scan.iterdir():
        (tmp_path / "in" / "IMAGES" / file.name).hardlink_to(file)
    (tmp_path / "in" / "DICOMDIR").write_bytes(b"points/../../outside")
    for path in (tmp_path / "in", tmp_path / "in" / "DICOMDIR"):
        with find(path) as inventory:
            assert len(inventory.acquisitions) == 1
            assert [ignored.files for ignored in inventory.ignored] == [("DICOMDIR",)]


def test_progress_counts_every_file(scan):
    calls = []
    find(scan, progress=lambda done, total: calls.append((done, total))).close()
    count = len(list(scan.iterdir()))
    assert calls == [(n, count) for n in range(1, count + 1)]


def test_to_stop_raise(scan):
    class Stop(Exception):
        pass

    def stop(done, _total):
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        find(scan, progress=stop)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError) as error:
        find(tmp_path / "nowhere")
    assert error.value.code == "bad_call"
    with find(tmp_path) as inventory:
        assert (inventory.acquisitions, inventory.refused, inventory.ignored) == ((), (), ())
    with pytest.raises(InputRefused) as refusal:
        read_series(tmp_path)
    assert refusal.value.code == "not_gre"


def test_links_that_lead_outside_are_not_followed(tmp_path, scan):
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "folder").symlink_to(scan)
    (inside / "file").symlink_to(next(scan.iterdir()))
    (inside / "dangling").symlink_to(tmp_path / "nothing")
    (inside / "loop").symlink_to(inside)
    os.mkfifo(inside / "pipe")
    with find(inside) as inventory:
        assert not inventory.acquisitions
        (ignored,) = inventory.ignored
    assert set(ignored.files) == {"folder", "file", "dangling", "loop", "pipe"}


def test_links_inside_are_followed(tmp_path, scan):
    store, view = tmp_path / "in" / "store", tmp_path / "in" / "view"
    store.mkdir(parents=True)
    view.mkdir()
    for file in scan.iterdir():
        (store / file.name).hardlink_to(file)
    (view / "IM00001").symlink_to(store / "IM00001")
    with find(tmp_path / "in") as inventory:
        (acquisition,) = inventory.acquisitions
        assert [note.code for note in acquisition.source.notes] == ["duplicate_dropped"]


def test_a_file_that_may_not_be_read_is_refused(tmp_path, scan, monkeypatch):
    for file in scan.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    forbidden = tmp_path / "IM00003"
    opened = Path.open

    def open_(self, *args, **options):
        if self == forbidden:
            raise PermissionError
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", open_)
    with find(tmp_path) as inventory:
        assert {refusal.code for refusal in inventory.refused} == {"unreadable_file", "missing_slice"}


# ------------------------------------------------------------------------------------------------ archives


def test_an_archive_is_read_like_its_folder(tmp_path, scan):
    inventory = find(zipped(scan, tmp_path / "in.ZIP"))
    (acquisition,) = inventory.acquisitions
    np.testing.assert_array_equal(acquisition.load().phase_rad, read_series(scan).phase_rad)
    extracted = acquisition.plan.images["M"][0][0].file.path
    assert extracted.exists()
    inventory.close()
    assert not extracted.exists()


def test_files_of_an_archive_are_called_by_their_names_in_it(tmp_path, scan):
    path = zipped(scan, tmp_path / "in.zip")
    with zipfile.ZipFile(path, "a") as out:
        out.writestr("study/README.txt", "text")
        out.writestr("study/broken.dcm", "text")
    with find(path) as inventory:
        assert [ignored.files for ignored in inventory.ignored] == [("study/README.txt",)]
        assert [(r.code, r.files) for r in inventory.refused] == [("not_dicom", ("study/broken.dcm",))]


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "a/../../escaped", "C:\\escaped", "..\\escaped"])
def test_names_that_lead_outside(tmp_path, scan, name):
    path = zipped(scan, tmp_path / "deep" / "in.zip") if (tmp_path / "deep").mkdir() is None else None
    with zipfile.ZipFile(path, "a") as out:
        out.writestr(name, "text")
    with pytest.raises(InputRefused) as refusal:
        find(path)
    assert refusal.value.code == "unsafe_archive"
    assert not list(tmp_path.rglob("*escaped*"))


def test_links_in_an_archive(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as out:
        out.writestr(link, "/etc/passwd")
    with pytest.raises(InputRefused) as refusal:
        find(tmp_path / "in.zip")
    assert refusal.value.code == "unsafe_archive"


def test_an_archive_that_expands_without_end(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.writestr("zeros", bytes(80 << 20))
    with pytest.raises(InputRefused) as refusal:
        find(tmp_path / "in.zip")
    assert refusal.value.code == "unsafe_archive"


def test_an_archive_with_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as out:
        for number in range(4):
            out.writestr(str(number), "")
    with pytest.raises(InputRefused) as refusal:
        find(tmp_path / "in.zip")
    assert refusal.value.code == "unsafe_archive"


@pytest.mark.parametrize("damage", ["cut", "text", "garbled"])
def test_an_archive_that_is_none(tmp_path, scan, damage):
    path = zipped(scan, tmp_path / "in.zip")
    plain = path.read_bytes()
    if damage == "cut":
        path.write_bytes(plain[: len(plain) // 2])
    elif damage == "text":
        path.write_text("this is no archive")
    else:
        middle = len(plain) // 4
        path.write_bytes(plain[:middle] + b"\x55" * 2000 + plain[middle + 2000 :])
    with pytest.raises(InputRefused) as refusal:
        find(path)
    assert refusal.value.code == "truncated_file"


def test_nothing_is_left_behind_when_an_archive_is_refused(tmp_path, scan, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = zipped(scan, tmp_path / "in.zip")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputRefused):
        find(path)
    assert not list((tmp_path / "temporary").iterdir())


def test_an_archive_in_a_folder_is_a_stray(tmp_path, scan):
    folder = tmp_path / "in"
    folder.mkdir()
    zipped(scan, folder / "study.zip")
    with find(folder) as inventory:
        assert [ignored.code for ignored in inventory.ignored] == ["not_dicom"]
