"""Spoilt files in great number: each is accepted or has a reason code, in bounds of time and memory."""

from __future__ import annotations

import struct
import sys

import pytest

from qsm_edge.dicom.instances import read_images
from tests.spool.studies import contents
from tests.trials.fuzz import ENCODINGS, KINDS, mutated, places, trial


def test_the_same_number_of_the_same_seed_is_the_same_file_and_every_kind_is_among_them():
    made = [mutated(5, number) for number in range(120)]
    assert made == [mutated(5, number) for number in range(120)]
    assert {encoding for encoding, _, _ in made} == set(ENCODINGS)
    assert {kind for _, kind, _ in made} == set(KINDS)
    assert len({content for _, _, content in made}) > 110


def test_200_spoilt_files_have_their_reasons_and_harm_nobody(tmp_path):
    told = trial(200, 3, tmp_path)
    assert sum(told["at the door"].values()) == sum(told["by the intake"].values()) == 200
    assert 20 < told["at the door"]["accepted"] < 180  # neither all spoilt nor all harmless


@pytest.mark.trial
def test_2000_spoilt_files_have_their_reasons_and_harm_nobody(tmp_path, capsys):
    told = trial(2000, 1, tmp_path)
    with capsys.disabled():
        sys.stdout.write(f"\n{told}\n")


def test_an_item_that_is_longer_than_its_sequence_makes_frames_that_cannot_be_told_apart(tmp_path):
    (plain,) = contents("philips_enhanced")
    made, found = bytearray(plain), places(plain)
    per_frame = next(p for p in found if plain[p.tag_at : p.tag_at + 4] == struct.pack("<HH", 0x5200, 0x9230))
    item = plain.index(struct.pack("<HH", 0xFFFE, 0xE000), per_frame.value_at)
    inner = next(p for p in found if p.tag_at > item and plain[p.tag_at + 4 : p.tag_at + 6] == b"SQ")
    at = plain.index(struct.pack("<HH", 0xFFFE, 0xE000), inner.value_at) + 4
    made[at : at + 4] = struct.pack("<L", 0x7FFFFFF0)
    (tmp_path / "long.dcm").write_bytes(made)
    (image,) = read_images(tmp_path / "long.dcm", "long.dcm")
    assert image.fault.code == "corrupt_header"
