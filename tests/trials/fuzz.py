"""Mutated DICOM files, the same for the same seed, and what the reader and the intake must make of each.

    python -m tests.trials.fuzz [COUNT [SEED]]

A file is spoilt in its header (bytes, lengths, tags, VRs, values, transfer syntax), cut, or filled with what does not
belong there. Whatever it is then, it is accepted or refused with a reason code, within bounds of time and memory, and the
study that lies beside it is found whole. One number of one seed makes one file: `mutated(seed, number)`.
"""

from __future__ import annotations

import json
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from qsm_edge.dicom import find
from qsm_edge.dicom.identify import identify
from qsm_edge.dicom.instances import read_images
from qsm_edge.errors import REASONS, InputRefused, QsmEdgeError
from qsm_edge.spool import opened
from tests import dicom_factory
from tests.spool.spool_world import NETWORK
from tests.spool.studies import contents

SAMPLES = Path(__file__).resolve().parents[2] / "dicom_samples"
ENCODINGS = ("siemens_classic", "siemens_xa_enhanced", "philips_classic", "philips_enhanced", "ge_real_imaginary")
#: Processor time of one file, all judges together, and what the process may grow by.
MAX_FILE_S, MAX_GROWTH_MB = 20.0, 400
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_VRS = (*_LONG, b"US", b"SS", b"UL", b"FD", b"FL", b"DS", b"IS", b"UI", b"PN", b"AT", b"\0\0", b"ZZ")
_LENGTHS = (0, 1, 2, 3, 7, 255, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
_VALUES = (b"", b"nan", b"1e400", b"-1", b"0", b"1,5", b"9" * 40, b"../../x", b"\0", b"\xff" * 9, b"1\\2\\3\\4", b"CON")
_SYNTAXES = (
    *(b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.5"),
    *(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.50", b"1.2.3", b""),
)


@dataclass(frozen=True)
class Place:
    """Where an element of an explicit little endian file lies: its tag, its value, and the bytes of its length."""

    tag_at: int
    value_at: int
    length: int
    length_bytes: int


def places(content: bytes) -> list[Place]:
    """The elements of a file, those inside sequences too; pixel data are the last."""
    return list(_places(content, 132, len(content)))


def _places(content: bytes, at: int, end: int) -> Iterator[Place]:
    while at + 8 <= end:
        group, _, vr, short = struct.unpack_from("<HH2sH", content, at)
        if group == 0xFFFE:  # an item, or the end of one
            at += 8
            continue
        wide = vr in _LONG
        length = struct.unpack_from("<L", content, at + 8)[0] if wide else short
        value_at = at + (12 if wide else 8)
        yield Place(at, value_at, length, 4 if wide else 2)
        at = value_at if vr == b"SQ" or length == 0xFFFFFFFF else value_at + length


@cache
def _sources(encoding: str) -> tuple[tuple[str, bytes], ...]:
    """Files to spoil: a few of the sample, and a small study's."""
    sample = sorted((SAMPLES / encoding).iterdir())
    chosen = [sample[n * (len(sample) - 1) // 3] for n in range(4)] if len(sample) > 3 else sample
    return tuple(("sample", path.read_bytes()) for path in chosen) + tuple(("small", c) for c in contents(encoding))


def mutated(seed: int, number: int) -> tuple[str, str, bytes]:
    """Encoding, kind of spoiling, and the spoilt file."""
    rng = np.random.default_rng([seed, number])
    encoding = ENCODINGS[number % len(ENCODINGS)]
    sources = _sources(encoding)
    if encoding == "philips_enhanced" and rng.integers(4):
        sources = sources[1:]  # the sample is large
    _, content = sources[int(rng.integers(len(sources)))]
    kind = KINDS[int(rng.integers(len(KINDS)))]
    made = bytearray(content)
    for _ in range(int(rng.choice((1, 1, 1, 2, 4)))):
        made = bytearray(_SPOIL[kind](rng, made, places(content)))
        if len(made) != len(content):
            break
    return encoding, kind, bytes(made)


def _some(rng: np.random.Generator, found: list[Place]) -> Place:
    return found[int(rng.integers(len(found)))]


def _bytes(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    for at in rng.integers(0, found[-1].value_at, int(rng.integers(1, 9))):
        made[at] = int(rng.integers(256))
    return made


def _lengths(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    place = _some(rng, found)
    value = int(rng.choice(_LENGTHS)) if rng.integers(2) else int(rng.integers(2**32))
    size = place.length_bytes
    made[place.value_at - size : place.value_at] = (value % 256**size).to_bytes(size, "little")
    return made


def _truncation(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    end = found[-1].value_at if rng.integers(3) else len(made)
    return made[: int(rng.integers(0, end + 1))]


def _tag_swap(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    one, two = _some(rng, found), _some(rng, found)
    a, b = one.tag_at, two.tag_at
    made[a : a + 4], made[b : b + 4] = made[b : b + 4], made[a : a + 4]
    return made


def _vr_flip(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    place = _some(rng, found)
    made[place.tag_at + 4 : place.tag_at + 6] = _VRS[int(rng.integers(len(_VRS)))]
    return made


def _insertion(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    at = int(rng.integers(0, found[-1].value_at + 1))
    made[at:at] = rng.bytes(int(rng.choice((1, 2, 8, 100, 5000))))
    return made


def _deletion(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    at = int(rng.integers(0, found[-1].value_at))
    del made[at : at + int(rng.choice((1, 2, 8, 100, 1000)))]
    return made


def _value(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    """Another value of a right length; those around it stay in their places or move with it."""
    short = [place for place in found if place.length_bytes == 2]
    place, value = _some(rng, short), _VALUES[int(rng.integers(len(_VALUES)))]
    value += b" " * (len(value) % 2)
    if len(value) > place.length or rng.integers(2):
        head = made[: place.value_at - 2] + struct.pack("<H", len(value))
        return head + value + made[place.value_at + place.length :]
    made[place.value_at : place.value_at + place.length] = value.ljust(place.length)
    return made


def _repetition(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    """A piece of the header over again, somewhere."""
    one, two = _some(rng, found), _some(rng, found)
    piece = made[one.tag_at : min(one.value_at + 200, found[-1].value_at)]
    return made[: two.tag_at] + piece * int(rng.choice((1, 2, 200))) + made[two.tag_at :]


def _syntax(rng: np.random.Generator, made: bytearray, found: list[Place]) -> bytearray:
    place = next(p for p in found if made[p.tag_at : p.tag_at + 4] == b"\x02\0\x10\0")
    value = _SYNTAXES[int(rng.integers(len(_SYNTAXES)))]
    value += b"\0" * (len(value) % 2)
    head = made[: place.value_at - 2] + struct.pack("<H", len(value))
    return head + value + made[place.value_at + place.length :]


_SPOIL = {
    "bytes": _bytes,
    "lengths": _lengths,
    "truncation": _truncation,
    "tag swap": _tag_swap,
    "VR flip": _vr_flip,
    "insertion": _insertion,
    "deletion": _deletion,
    "value": _value,
    "repetition": _repetition,
    "transfer syntax": _syntax,
}
KINDS = tuple(_SPOIL)


def judged(path: Path, encoding: str, folder: Path) -> list[str]:
    """What the door, the parser and the reader make of a file, each as a reason code or `accepted`.

    folder : holds one good study of another encoding; the spoilt file is put into it for the reader. Raises whatever is
    no `QsmEdgeError` with a known code, and AssertionError where the good study is not found whole.
    """
    outcomes = [_coded(lambda: identify(path, max_bytes=1 << 30)), _coded(lambda: read_images(path, path.name))]
    beside = folder / "spoilt.dcm"
    shutil.copyfile(path, beside)
    try:
        with find(folder) as inventory:
            assert not [r for r in inventory.refused if "cannot be understood" in r.text], inventory.refused
            assert {r.code for r in inventory.refused} <= REASONS.keys()
            loaded = [_coded(acquisition.load) for acquisition in inventory.acquisitions]
    finally:
        beside.unlink()
    assert "accepted" in loaded, f"the study beside it is gone: {loaded}"
    return outcomes


def _coded(call) -> str:
    try:
        call()
    except InputRefused as refusal:
        return {code: code for code in REASONS}[refusal.code]
    return "accepted"


def taken_in(spool_folder: Path, files: list[bytes]) -> Counter[str]:
    """What the intake makes of files: refused files leave nothing, the others are held or ignored, nothing is raised but
    refusals."""
    from qsm_edge.spool.intake import intake, part_path
    from tests.spool.spool_world import check_agreement

    outcomes: Counter[str] = Counter()
    with opened(spool_folder) as spool:
        for file in files:
            part = part_path(spool)
            part.write_bytes(file)
            try:
                outcomes[intake(spool, part, NETWORK, min_free_bytes=0)] += 1
            except QsmEdgeError as refusal:
                outcomes[refusal.code] += 1
            assert not part.exists()
        check_agreement(spool)
    return outcomes


def trial(count: int, seed: int, folder: Path) -> dict[str, object]:
    """Judge `count` files; returns what became of them. The first that breaks a promise is named in an AssertionError."""
    good = {}
    for encoding in ENCODINGS:
        other = ENCODINGS[(ENCODINGS.index(encoding) + 2) % len(ENCODINGS)]
        good[encoding] = folder / f"beside_{encoding}"
        dicom_factory.write(dicom_factory.scan(other, name="beside"), good[encoding])
        with find(good[encoding]) as inventory:  # the first reading is what everything is imported for
            inventory.acquisitions[0].load()
    door, parser, worst_s, path = Counter[str](), Counter[str](), 0.0, folder / "spoilt"
    intake_outcomes = Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch: list[bytes] = []
    for number in range(count):
        encoding, kind, content = mutated(seed, number)
        path.write_bytes(content)
        begun = time.process_time()
        try:
            at_door, at_parser = judged(path, encoding, good[encoding])
        except Exception as error:
            raise AssertionError(f"seed {seed}, file {number} ({encoding}, {kind})") from error
        took = time.process_time() - begun
        assert took < MAX_FILE_S, f"seed {seed}, file {number} ({encoding}, {kind}) took {took:.1f} s"
        worst_s = max(worst_s, took)
        door[at_door] += 1
        parser[at_parser] += 1
        batch.append(content)
        if len(batch) == 100 or number == count - 1:
            intake_outcomes += taken_in(folder / "spool", batch)
            batch = []
    growth_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert growth_mb < MAX_GROWTH_MB, f"the process grew by {growth_mb:.0f} MB"
    return {
        "files": count,
        "at the door": dict(door.most_common()),
        "by the parser": dict(parser.most_common()),
        "by the intake": dict(intake_outcomes.most_common()),
        "longest, processor time [s]": round(worst_s, 2),
        "growth of the process [MB]": round(growth_mb),
    }


def main() -> int:
    count, seed = [*map(int, sys.argv[1:]), 2000, 1][: max(2, len(sys.argv) - 1)][:2] if sys.argv[1:] else (2000, 1)
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(trial(count, seed, Path(folder)), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
