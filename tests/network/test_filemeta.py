"""Group 2: what we write is what pydicom and we read; what is no file of its own is refused with its code."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from network_world import files

from qsm_edge.dicom.filemeta import MAX_META_BYTES, file_head, read_file_meta
from qsm_edge.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_uid
from qsm_edge.errors import InputRefused


@pytest.mark.parametrize("source", ["", "PEER", "SIXTEEN-LETTERS."])
@pytest.mark.parametrize("instance", ["1.2.3", "1.2.34", "2.25." + "9" * 58])
def test_a_head_is_what_pydicom_reads_and_what_we_read(tmp_path, source, instance):
    head = file_head("1.2.840.10008.5.1.4.1.1.4", instance, "1.2.840.10008.1.2.1", source)
    path = tmp_path / "file"
    path.write_bytes(head + b"\x08\0\x05\0CS\0\0")
    meta = pydicom.filereader.read_file_meta_info(path)
    assert meta.FileMetaInformationGroupLength == len(head) - 144
    assert (meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID) == (instance, "1.2.840.10008.1.2.1")
    assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.get("SourceApplicationEntityTitle", "") == source
    read = read_file_meta(path)
    assert (read.sop_instance_uid, read.offset, read.size) == (instance, len(head), len(head) + 8)


def test_where_the_dataset_begins_is_where_pydicom_has_it(tmp_path):
    (path,) = files(tmp_path, 1)
    read = read_file_meta(path)
    with path.open("rb") as file:
        meta = pydicom.filereader.read_preamble(file, False) and pydicom.filereader._read_file_meta_info(file)
        assert read.offset == file.tell()
    assert read.sop_class_uid == meta.MediaStorageSOPClassUID


def test_what_is_no_file_of_its_own_is_refused_at_whatever_byte_it_ends(tmp_path):
    (path,) = files(tmp_path, 1)
    content, offset = path.read_bytes(), read_file_meta(path).offset
    rng = np.random.default_rng(3)
    for end in [*range(offset + 1), *rng.integers(0, offset, 20)]:
        path.write_bytes(content[:end])
        with pytest.raises(InputRefused) as caught:
            read_file_meta(path)
        assert caught.value.code == ("empty_file" if end == 0 else "not_dicom" if end < 132 else "truncated_file")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda content: content[132:], "not_dicom"),
        (lambda content: content.replace(b"1.2.840.10008.5.1.4.1.1.4", b"1.2.840.10008/5.1.4.1.1.4", 1), "unsafe_uid"),
        (lambda content: content[:138] + b"\xff\xff" + content[140:], "truncated_file"),
        (lambda content: content[:132] + b"\2\0\0\1OB\0\0\xff\xff\xff\xff" + bytes(MAX_META_BYTES), "corrupt_header"),
        (lambda content: content[:132] + b"\2\0\0\1\0\0\0\0" + content[132:], "corrupt_header"),
    ],
    ids=["no preamble", "no UID", "long", "endless", "no VR"],
)
def test_a_meta_header_that_makes_no_sense_is_refused(tmp_path, change, code):
    (path,) = files(tmp_path, 1)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputRefused) as caught:
        read_file_meta(path)
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["1.2.3", "0.0", "2.25." + "1" * 59])
def test_a_uid_is_one(text):
    assert is_uid(text)


@pytest.mark.parametrize(
    "text", ["", "1", "1.", ".1", "1..2", "1.02", "1.2/3", "../x", "1.2\n", "1.2\0", "2.25." + "1" * 60]
)
def test_anything_else_is_none(text):
    assert not is_uid(text)
