"""docs/dicom-conformance.md says what the code does: its tables are the code's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from pydicom.uid import UID

from qsm_edge import __version__
from qsm_edge.dicom import filemeta, messages, parametric, seg, write
from qsm_edge.dicom.header import NATIVE
from qsm_edge.dicom.instances import LOSSLESS
from qsm_edge.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from qsm_edge.errors import REASONS
from qsm_edge.listen import Settings, contexts, guard, receive, server
from qsm_edge.send import Destination, store, stow

TEXT = (Path(__file__).parents[2] / "docs" / "dicom-conformance.md").read_text(encoding="utf-8")


def table(*head: str) -> list[tuple[str, ...]]:
    """The rows of the table that has these headings."""
    line = "| " + " | ".join(head) + " |"
    assert TEXT.count(line) == 1, f"there is one table {line}"
    rows = []
    for row in TEXT.partition(line)[2].strip("\n").split("\n")[1:]:
        if not row.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in row.strip("|").split("|")))
    assert {len(row) for row in rows} == {len(head)}
    return rows


def test_the_version_and_the_names_of_the_implementation():
    assert f"qsm-edge {__version__.rpartition('.')[0]}," in TEXT
    assert f"| {IMPLEMENTATION_CLASS_UID} |" in TEXT
    assert f"| {IMPLEMENTATION_VERSION_NAME} |" in TEXT


def test_the_accepted_classes_are_those_that_are_negotiated():
    rows = table("SOP class", "UID", "role")
    negotiated = [context.abstract_syntax for context in server._contexts()]
    assert sorted(uid for _, uid, _ in rows) == sorted(negotiated)
    assert all(UID(uid).name == name for name, uid, _ in rows)
    assert {uid for _, uid, role in rows if role == "SCU"} == {messages.STORAGE_COMMITMENT}
    assert {(name, uid) for name, uid, role in rows if uid.startswith("1.2.840.10008.5")} == set(
        contexts.STORAGE.items()
    )


def test_the_transfer_syntaxes_are_those_that_the_reader_reads_in_their_order():
    rows = table("transfer syntax", "UID", "needs")
    listed = [uid for _, uid, _ in rows]
    assert set(listed) == {*NATIVE, *LOSSLESS}
    assert all(UID(uid).name == name for name, uid, _ in rows)
    readable = filemeta.readable_syntaxes()
    assert [uid for uid in listed if uid in readable] == list(readable)
    assert {uid for _, uid, needs in rows if not needs} <= set(readable)
    assert UID("1.2.840.10008.1.2.4.50") not in readable


@pytest.mark.parametrize(
    ("kind", "before"), [(Settings, "The table `[listen]`"), (Destination, "Each `[[destination]]`")]
)
def test_the_keys_and_their_defaults(kind, before):
    part = TEXT.partition(before)[2].partition("| key | default |")[2].strip("\n").split("\n\n")[0]
    rows = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in part.split("\n")[1:]]
    assert rows == [(field.name, str(field.default)) for field in dataclasses.fields(kind)]


def test_the_rejections():
    rows = table("A-ASSOCIATE-RJ: result, source, reason", "when")
    told = [tuple(map(int, numbers.split(","))) for numbers, _ in rows]
    assert told == [server.CALLED_UNKNOWN, server.CALLING_UNKNOWN, server.TOO_MANY]


def test_the_statuses_that_we_answer():
    rows = table("C-STORE status", "when", "error comment")
    known = [0, receive.OUT_OF_RESOURCES, receive.CANNOT_UNDERSTAND, receive.NO_SUCH_CLASS, receive.FAILED]
    assert [int(status, 16) for status, _, _ in rows] == known
    codes = {code for _, _, comment in rows for code in re.findall("`(\\w+)`", comment)}
    assert codes <= set(REASONS)
    for status in ("_NO_SUCH_INSTANCE", "_INVALID_ARGUMENT", "_UNRECOGNISED_OPERATION"):
        assert f"0x{getattr(server, status):04X}" in TEXT


def test_what_becomes_of_answers_to_us():
    rows = table("answer to a C-STORE", "outcome", "tried again")
    said: dict[int, tuple[str, bool]] = {}
    for statuses, outcome, again in rows:
        for first, last in re.findall(r"0x(\w{4})(?: to 0x(\w{4}))?", statuses):
            for status in range(int(first, 16), int(last or first, 16) + 1):
                said[status] = (outcome.split(":")[0].split(",")[0], again == "yes")
    for status in range(0x10000):
        judged = store._judged(Path("x"), status)
        assert (judged.outcome, judged.retry) == said.get(status, ("refused", False)), f"0x{status:04X}"


def test_the_limits():
    for number, unit in (
        (guard.MAX_NEGOTIATION_BYTES >> 10, "KiB"),
        (guard.MAX_COMMAND_BYTES >> 10, "KiB"),
        (guard.MAX_MESSAGE_BYTES >> 20, "MiB"),
        (stow.REQUEST_BYTES >> 20, "MiB"),
    ):
        assert re.search(rf"\b{number}\s+{unit}\b", TEXT)
    for number in (store.RECEIVED_PDU_BYTES, guard.SENT_PDU_BYTES):
        assert re.search(rf"\b{number}\b", TEXT)
    assert {"408", "425", "429"} == {str(status) for status in stow._TRANSIENT if status < 500}


def test_the_objects_that_are_written():
    head = ("object", "SOP class", "ImageType after DERIVED\\PRIMARY", "unit of the real-world value", "offset")
    rows = {row[0]: row[1:] for row in table(*head)}
    maps = {**write.KINDS, **write.EXTRA_KINDS}
    expected = {
        name: (
            "MR Image Storage",
            "\\".join(kind.image_type),
            kind.unit.meaning if kind.unit else "",
            str(kind.series_offset),
        )
        for name, kind in maps.items()
    }
    expected["mask"] = ("Segmentation Storage", "", "", str(seg.SERIES_OFFSET))
    expected["mask by itself"] = ("Segmentation Storage", "", "", str(seg.ALONE_OFFSET))
    expected["parametric_map"] = ("Parametric Map Storage", "", "ppm", str(parametric.SERIES_OFFSET))
    assert rows == expected
    assert f"plus {write.SERIES_NUMBER_STEP} plus" in TEXT
    assert f"±{write.LIMIT}" in TEXT
