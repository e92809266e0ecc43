"""The door: what is acknowledged is on the disk and in the ledger, what is hostile has its code, and nothing is left over."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import zlib

import pytest

from qsm_edge.dicom.identify import hashed, identify
from qsm_edge.errors import InputRefused, ResourceError
from qsm_edge.spool import logger, opened
from qsm_edge.spool.folders import speaking_of_disk
from qsm_edge.spool.intake import intake as door
from qsm_edge.spool.intake import part_path
from tests import dicom_factory as factory
from tests.spool.spool_world import NETWORK, check_agreement, hand_in, states
from tests.spool.studies import content, contents


def _refusal(spool, file: bytes, **options: object) -> str:
    part = part_path(spool)
    part.write_bytes(file)
    with pytest.raises(InputRefused) as caught:
        door(spool, part, NETWORK, min_free_bytes=0, **options)
    assert not part.exists()
    return caught.value.code


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    long = vr in (b"OB", b"OW", b"SQ", b"UN")
    head = struct.pack("<HH2s", group, element, vr)
    return head + (b"\0\0" + struct.pack("<L", len(value)) if long else struct.pack("<H", len(value))) + value


def _file(body: bytes, syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    meta = _element(2, 0x10, b"UI", syntax.encode().ljust(len(syntax) + len(syntax) % 2, b"\0"))
    return b"\0" * 128 + b"DICM" + meta + body


def test_a_file_has_hashes_for_names_and_nothing_else(tmp_path):
    dataset = factory.scan()[0]
    path = tmp_path / "one"
    path.write_bytes(content(dataset))
    found = identify(path, max_bytes=1 << 20)
    assert (found.sop, found.series) == (hashed(dataset.SOPInstanceUID), hashed(dataset.SeriesInstanceUID))
    assert (found.study, found.mr, found.ours) == (hashed(dataset.StudyInstanceUID), True, False)
    with opened(tmp_path / "spool") as spool:
        hand_in(spool, [content(dataset)])
        names = {part for p in (tmp_path / "spool").rglob("*") for part in p.relative_to(tmp_path / "spool").parts}
        allowed = {"incoming", "held", "ready", "working", "done", "refused", "failed"}
        ours = {name for name in names - allowed if not name.startswith("ledger.sqlite")}
        assert all(set(name.removesuffix(".dcm")) <= set("0123456789abcdef-") for name in ours)
        assert len(ours) == 2
        check_agreement(spool)


@pytest.mark.parametrize("encoding", factory.READABLE)
def test_every_encoding_is_identified_as_the_reader_does(tmp_path, encoding):
    path = tmp_path / "one"
    for dataset in factory.scan(encoding)[:2]:
        path.write_bytes(dataset.encoded)
        found = identify(path, max_bytes=1 << 28)
        uids = (dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID)
        assert (found.sop, found.series, found.study) == tuple(map(hashed, uids))


def test_hostile_files_are_refused_with_their_code_and_leave_nothing(tmp_path):
    whole = contents()[0]
    uids = {tag: _element(*tag, b"UI", b"1.2.3\0") for tag in ((8, 0x18), (0x20, 0xD), (0x20, 0xE))}
    mr = _element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.4\0")
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    inflates = bomb.compress(_element(9, 0x1001, b"OB", b"\0" * (20 << 20))) + bomb.flush()

    def with_sop(uid: bytes) -> bytes:
        rest = uids[0x20, 0xD] + uids[0x20, 0xE]
        return _file(mr + _element(8, 0x18, b"UI", uid) + rest + _element(0x7FE0, 0x10, b"OW", b"\0\0"))

    deep = b"".join(
        struct.pack("<HH2sHLHHL", 8, 0x1111, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF) for _ in range(5000)
    )
    expected = {
        "empty_file": [b""],
        "not_dicom": [b"this is text, and no DICOM object at all" * 10, os.urandom(0) + b"MZ" + b"\x90" * 600],
        "truncated_file": [
            whole[:300],
            whole[: len(whole) // 2],
            whole[:-1],
            whole[:140],
            _file(mr + b"".join(uids.values())),
        ],
        "corrupt_header": [_file(_element(8, 0x20, b"DA", b"20260101")), _file(deep)],
        "unsafe_uid": [
            with_sop(uid) for uid in (b"../../x\0", b"", b"1.2\x00.3\0", b"CON\0", b"1." * 150 + b"1\0", b"01.2")
        ],
        "too_large": [_file(inflates, "1.2.840.10008.1.2.1.99")],
    }
    with opened(tmp_path / "spool") as spool:
        found = {code: {_refusal(spool, file) for file in files} for code, files in expected.items()}
        assert found == {code: {code} for code in expected}
        assert _refusal(spool, whole, max_bytes=1000) == "too_large"
        assert states(spool, "instances") == []
        check_agreement(spool)


def test_mutated_files_are_taken_or_refused_and_never_anything_else(tmp_path):
    chance, whole, codes = random.Random(5), contents()[0], set()
    with opened(tmp_path / "spool") as spool:
        for _ in range(150):
            file = bytearray(whole)
            for _ in range(chance.choice((1, 3, 20))):
                file[chance.randrange(min(len(file), 1500))] = chance.randrange(256)
            try:
                assert hand_in(spool, [bytes(file)])[0] in ("held", "ignored", "duplicate")
            except InputRefused as refusal:
                codes.add(refusal.code)
        check_agreement(spool)
    assert codes <= {"not_dicom", "truncated_file", "corrupt_header", "unsafe_uid", "too_large"}


def test_two_versions_under_one_uid_stand_beside_one_another(tmp_path):
    dataset = factory.scan()[0]
    other = dataset.encoded[:-2] + b"\x01\x02"
    with opened(tmp_path / "spool") as spool:
        assert hand_in(spool, [dataset.encoded, other]) == ["held", "held"]
        assert states(spool, "instances") == ["held", "held"]
        check_agreement(spool)


def test_what_is_no_image_of_ours_is_acknowledged_and_not_kept(tmp_path):
    dataset = factory.scan()[0]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    with opened(tmp_path / "spool") as spool:
        assert hand_in(spool, [content(dataset)]) == ["ignored"]
        assert list(spool.folder("held").iterdir()) == []


def test_no_line_of_the_log_tells_who_the_patient_is_and_each_instance_has_one(tmp_path):
    told, files = io.StringIO(), []
    for dataset in factory.scan()[:2]:
        dataset.PatientName, dataset.PatientID = "Mustermann^Hans", "geheim-4711"
        files.append(content(dataset))
    with opened(tmp_path / "spool") as spool:
        hand_in(spool, files, log=logger(told, "plain"))
        part = spool.folder("incoming") / "x.part"
        part.write_bytes(files[0][:-10])
        with pytest.raises(InputRefused):
            door(spool, part, NETWORK, log=logger(told, "json"))
    lines = told.getvalue().splitlines()
    assert len(lines) == 3
    assert all("SCANNER" in line and "192.0.2.7" in line for line in lines)
    assert hashed(factory.scan()[0].SOPInstanceUID) in lines[0]
    for word in ("mustermann", "hans", "geheim", "4711", factory.scan()[0].SOPInstanceUID):
        assert word not in told.getvalue().lower()


def test_a_log_line_cannot_be_forged_by_a_peer(tmp_path):
    told = io.StringIO()
    logger(told)("received", {"caller": "A\n2026 received caller=B", "x": 'a "b'})
    assert len(told.getvalue().splitlines()) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", where], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system here, and this is not it")
    yield where
    subprocess.run(["umount", where], check=True)


def test_a_full_disk_refuses_keeps_what_was_acknowledged_and_goes_on_when_there_is_room(small_disk):
    files, taken = contents("siemens_classic", shape=(5, 96, 96)), 0
    filler, code = small_disk / "filler", ""
    with opened(small_disk / "spool") as spool:
        filler.write_bytes(b"\0" * 2_000_000)
        for file in files:
            part = part_path(spool)
            try:
                with speaking_of_disk(spool.root):
                    part.write_bytes(file)
                door(spool, part, NETWORK, min_free_bytes=0)
            except ResourceError as error:
                part.unlink(missing_ok=True)
                code = error.code
                break
            taken += 1
        assert code == "out_of_disk"
        assert 0 < taken < len(files)
        assert len(states(spool, "instances")) == taken
        filler.unlink()
        assert hand_in(spool, files) == ["duplicate"] * taken + ["held"] * (len(files) - taken)
        check_agreement(spool)


def test_the_door_closes_before_the_disk_is_full(tmp_path):
    with opened(tmp_path / "spool") as spool:
        part = spool.folder("incoming") / "one.part"
        part.write_bytes(contents()[0])
        with pytest.raises(ResourceError) as caught:
            door(spool, part, NETWORK, min_free_bytes=1 << 60)
        assert caught.value.code == "out_of_disk"
        assert not part.exists()
        assert states(spool, "instances") == []
