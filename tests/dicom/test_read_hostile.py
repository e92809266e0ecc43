"""Files that nobody vouches for: each has a reason code; none raises anything else, hangs, or fills the memory."""

from __future__ import annotations

import io
import re
import struct
import time
import tracemalloc
import zlib

import dicom_factory as factory
import numpy as np
import pydicom
import pytest

from qsm_edge.dicom import find
from qsm_edge.dicom.header import parse
from qsm_edge.dicom.instances import read_images
from qsm_edge.errors import REASONS, InputRefused

DICM = b"\0" * 128 + b"DICM"


def content(encoding: str = "siemens_classic", index: int = 0) -> bytes:
    buffer = io.BytesIO()
    factory.scan(encoding)[index].save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def meta(syntax: bytes) -> bytes:
    uid = syntax + b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return DICM + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(element)) + element


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    if vr in (b"SQ", b"OB", b"OW", b"UN"):
        return struct.pack("<HH2sHL", group, number, vr, 0, size) + value
    return struct.pack("<HH2sH", group, number, vr, size) + value


def nested(depth: int) -> bytes:
    """Sequences of undefined length in one another."""
    head = element(8, 0x1140, b"SQ", b"", 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    tail = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return head * depth + tail * depth


def deflated(plain: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta(b"1.2.840.10008.1.2.1.99") + compressor.compress(plain) + compressor.flush()


def bomb() -> bytes:
    """A quarter of a GiB of nothing in a quarter of a MiB."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return meta(b"1.2.840.10008.1.2.1.99") + compressor.compress(bytes(256 << 20)) + compressor.flush()


def replaced(plain: bytes, tag: bytes, vr: bytes, value: bytes) -> bytes:
    """The file with another value of the same length for a top-level element."""
    at = plain.index(tag + vr + struct.pack("<H", len(value)))
    return plain[: at + 8] + value + plain[at + 8 + len(value) :]


def text_element(tag: bytes, vr: bytes, plain: bytes, value: bytes) -> bytes:
    """The file with another value of any length for a top-level element."""
    at = plain.index(tag + vr)
    (length,) = struct.unpack_from("<H", plain, at + 6)
    value += b"\0" * (len(value) % 2)
    return plain[: at + 6] + struct.pack("<H", len(value)) + value + plain[at + 8 + length :]


CHARSET = element(8, 5, b"CS", b"ISO_IR 100")
SOP, SERIES = b"\x08\x00\x18\x00", b"\x20\x00\x0e\x00"
EXPLICIT = b"1.2.840.10008.1.2.1"

FILES = {
    "empty": ("empty_file", lambda: b""),
    "text": ("not_dicom", lambda: b"This is a licence.\n" * 50),
    "short text": ("not_dicom", lambda: b"hi"),
    "random bytes": ("not_dicom", lambda: np.random.default_rng(0).bytes(4096)),
    "an executable": ("not_dicom", lambda: b"MZ" + b"\x90" * 500),
    "a preamble and nothing": ("truncated_file", lambda: DICM),
    "a preamble and text": ("corrupt_header", lambda: DICM + b"This is a licence.\n" * 50),
    "cut inside the meta header": ("truncated_file", lambda: content()[:180]),
    "cut inside the header": ("truncated_file", lambda: content()[:700]),
    "a length beyond the file": (
        "truncated_file",
        lambda: meta(EXPLICIT) + CHARSET + element(8, 8, b"OB", b"AB", 0xFFFFFFF0),
    ),
    "50 000 nested sequences": ("corrupt_header", lambda: meta(EXPLICIT) + nested(50_000)),
    "deflate bomb": ("too_large", bomb),
    "deflated rubbish": ("corrupt_header", lambda: meta(b"1.2.840.10008.1.2.1.99") + b"\xff" * 300),
    "deflated and cut": ("truncated_file", lambda: deflated(content())[:600]),
    "65535 x 65535 pixels": (
        "too_large",
        lambda: replaced(
            replaced(content(), b"\x28\x00\x10\x00", b"US", b"\xff\xff"), b"\x28\x00\x11\x00", b"US", b"\xff\xff"
        ),
    ),
    "no rows": ("corrupt_header", lambda: replaced(content(), b"\x28\x00\x10\x00", b"US", b"\0\0")),
    **{
        f"UID {name}": ("unsafe_uid", lambda uid=uid, tag=tag: text_element(tag, b"UI", content(), uid))
        for tag in (SOP, SERIES)
        for name, uid in {
            f"{tag[2]:02x} path": b"../../etc/passwd",
            f"{tag[2]:02x} absolute": b"/etc/passwd",
            f"{tag[2]:02x} NUL inside": b"1.2\x003.4",
            f"{tag[2]:02x} 300 characters": b"1." * 149 + b"11",
            f"{tag[2]:02x} empty": b"",
            f"{tag[2]:02x} device": b"CON",
            f"{tag[2]:02x} leading dot": b".1.2",
        }.items()
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_has_a_reason_and_harms_nobody(tmp_path, name):
    code, make = FILES[name]
    folder = factory.write(factory.scan("siemens_classic"), tmp_path / "in")
    (folder / "bad.dcm").write_bytes(make())
    started = time.monotonic()
    with find(folder) as inventory:
        assert [(r.code, r.files) for r in inventory.refused] == [(code, ("bad.dcm",))]
        assert len(inventory.acquisitions) == 1
    assert time.monotonic() - started < 30


def test_neither_a_bomb_nor_a_claimed_length_fills_the_memory(tmp_path):
    for name in ("a length beyond the file", "65535 x 65535 pixels", "50 000 nested sequences", "deflate bomb"):
        (tmp_path / name).write_bytes(FILES[name][1]())
        tracemalloc.start()
        with pytest.raises(InputRefused):
            read_images(tmp_path / name, name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 << 20, name


@pytest.mark.parametrize("start", [b"MZ\x90\0", b"\x7fELF", b"#!/bin/sh\n", b"II*\0"])
def test_what_stands_in_the_preamble_does_not_matter(tmp_path, start):
    """Dual-use files are legal; nothing in a preamble is ever looked at."""
    plain = content()
    (tmp_path / "dual").write_bytes(start + plain[len(start) :])
    (image,) = read_images(tmp_path / "dual", "dual")
    assert image.component == "M"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_without_preamble_and_meta_header(tmp_path, syntax):
    for number, dataset in enumerate(factory.scan("siemens_classic")):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(tmp_path / f"{number}.dcm")
        plain = (tmp_path / f"{number}.dcm").read_bytes()
        at = plain.index(b"\x08\x00\x05\x00", 132)
        (tmp_path / f"{number}.dcm").write_bytes(plain[at:])
    with find(tmp_path) as inventory:
        (acquisition,) = inventory.acquisitions
        assert not inventory.refused
        acquisition.load()


@pytest.mark.parametrize(
    ("keyword", "text", "code"),
    [
        ("EchoTime", b"4,0", "bad_echo_time"),
        ("EchoTime", b"nan", "bad_echo_time"),
        ("EchoTime", b"1e400", "bad_echo_time"),
        ("EchoTime", b"4_0", "bad_echo_time"),
        ("RescaleSlope", b"0", "bad_rescale"),
        ("RescaleSlope", b"NaN", "bad_rescale"),
        ("RescaleSlope", b"1e400", "bad_rescale"),
        ("RescaleSlope", b"2,0", "bad_rescale"),
        ("RescaleSlope", b"1e300", "bad_rescale"),
        ("RescaleIntercept", b"", "bad_rescale"),
        ("RescaleIntercept", b"-inf", "bad_rescale"),
        ("ImagePositionPatient", b"nan\\0\\0", "bad_geometry"),
        ("ImagePositionPatient", b"1\\2", "bad_geometry"),
        ("ImagePositionPatient", b"1e300\\0\\0", "bad_geometry"),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\1\\nan", "bad_geometry"),
        ("ImageOrientationPatient", b"0\\0\\0\\0\\0\\0", "bad_geometry"),
        ("ImageOrientationPatient", b"1e300\\0\\0\\0\\1\\0", "bad_geometry"),
        ("PixelSpacing", b"-1\\1", "bad_geometry"),
        ("PixelSpacing", b"1e300\\1", "bad_geometry"),
        ("PixelSpacing", b"1", "bad_geometry"),
        ("MagneticFieldStrength", b"three", "bad_field_strength"),
        ("MagneticFieldStrength", b"-3", "bad_field_strength"),
    ],
)
def test_numbers_that_are_none(tmp_path, keyword, text, code):
    tag = pydicom.tag.Tag(keyword)
    mark = struct.pack("<HH", tag.group, tag.element)
    folder = factory.write(factory.scan("siemens_classic"), tmp_path / "in")
    for file in sorted(folder.iterdir()):
        plain = file.read_bytes()
        if mark + b"DS" in plain:
            file.write_bytes(text_element(mark, b"DS", plain, text + b" " * (len(text) % 2)))
    with find(folder) as inventory:
        assert not inventory.acquisitions
        assert [refusal.code for refusal in inventory.refused] == [code]


@pytest.mark.parametrize("where", ["pixels", "header"])
def test_a_truncated_file_spoils_its_acquisition_only(tmp_path, where):
    factory.write(factory.scan("siemens_classic", name="good"), tmp_path / "in" / "good")
    bad = factory.write(factory.scan("siemens_classic", name="bad"), tmp_path / "in" / "bad")
    file = sorted(bad.iterdir())[7]
    plain = file.read_bytes()
    file.write_bytes(plain[:-50] if where == "pixels" else plain[:700])
    with find(tmp_path / "in") as inventory:
        assert len(inventory.acquisitions) == 1
        assert "truncated_file" in {refusal.code for refusal in inventory.refused}
        assert all(name.startswith("bad") for refusal in inventory.refused for name in refusal.files)


def test_a_truncated_enhanced_object(tmp_path):
    folder = factory.write(factory.scan("philips_enhanced"), tmp_path / "in")
    (file,) = folder.iterdir()
    plain = file.read_bytes()
    file.write_bytes(plain[: len(plain) - 100])
    with find(folder) as inventory:
        assert [refusal.code for refusal in inventory.refused] == ["truncated_file"]
    file.write_bytes(plain[: plain.index(b"\x20\x00\x32\x00DS") + 200])
    with find(folder) as inventory:
        assert [refusal.code for refusal in inventory.refused] == ["truncated_file"]


@pytest.mark.parametrize("encoding", ["siemens_classic", "siemens_xa_enhanced", "philips_classic", "ge_real_imaginary"])
def test_random_damage_never_raises_anything_but_a_refusal(tmp_path, encoding):
    """Bytes flipped, cut out and put in, at random but reproducibly; the reader may find sense in it or not."""
    rng = np.random.default_rng(11)
    plain = content(encoding)
    header = plain.index(b"\xe0\x7f\x10\x00")
    for _ in range(150):
        damaged = bytearray(plain)
        for _ in range(rng.integers(1, 12)):
            at = int(rng.integers(132, header + 20))
            kind = rng.integers(3)
            if kind == 0:
                damaged[at : at + 1] = rng.bytes(1)
            elif kind == 1:
                del damaged[at : at + int(rng.integers(1, 40))]
            else:
                damaged[at:at] = rng.bytes(int(rng.integers(1, 40)))
        (tmp_path / "damaged.dcm").write_bytes(damaged)
        with find(tmp_path) as inventory:
            for acquisition in inventory.acquisitions:
                acquisition.load()
            assert {refusal.code for refusal in inventory.refused} <= set(REASONS)


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", "ISO 2022 IR 87", "GB18030", "NO_SUCH_SET", ""])
def test_exotic_character_sets_and_endless_names(tmp_path, charset):
    datasets = factory.scan("siemens_classic")
    folder = factory.write(datasets, tmp_path / "in")
    for file in folder.iterdir():
        plain = text_element(b"\x08\x00\x05\x00", b"CS", file.read_bytes(), charset.encode())
        plain = text_element(b"\x10\x00\x10\x00", b"PN", plain, b"N\xe9\x1b$B;3EDXYZ^" + b"A" * 5000)
        file.write_bytes(text_element(b"\x08\x00\x3e\x10", b"LO", plain, "gre \u00e9\u4e2d".encode()))
    with find(folder) as inventory:
        (acquisition,) = inventory.acquisitions
        assert re.fullmatch(r"0011_[a-z0-9_]+_[0-9a-f]{8}", acquisition.source.slug)
        acquisition.load()


def test_a_header_without_end_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("qsm_edge.dicom.header._WINDOWS", (512, 1024))
    (tmp_path / "long").write_bytes(meta(EXPLICIT) + element(9, 0x1010, b"OB", b"\0" * 4096))
    with pytest.raises(InputRefused) as refusal:
        parse(tmp_path / "long", "long")
    assert refusal.value.code == "too_large"


def test_names_of_patients_are_in_no_slug_and_no_fact(tmp_path):
    datasets = factory.scan("siemens_classic")
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID, dataset.SeriesDescription = "DOE^JOHN", "4711-x", "gre Doe 4711-X"
    with find(factory.write(datasets, tmp_path / "in")) as inventory:
        (acquisition,) = inventory.acquisitions
        said = f"{acquisition.source.slug} {acquisition.describe()}".lower()
    for part in ("doe", "john", "4711"):
        assert part not in said
