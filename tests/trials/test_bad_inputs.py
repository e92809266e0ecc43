"""Whatever the network brings: refused at the door with its reason, or held and refused by the reader with it; the good
study between it all is reconstructed and delivered, and the memory of the service stays in bounds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from qsm_edge import send
from qsm_edge.dicom.filemeta import file_head, read_file_meta
from qsm_edge.dicom.header import DEFLATED, EXPLICIT
from qsm_edge.dicom.identify import hashed
from qsm_edge.dicom.instances import MR
from qsm_edge.errors import InputRefused
from qsm_edge.spool import opened
from tests import dicom_factory
from tests.deploy.sandbox import SLICES, small_head
from tests.dicom.test_read_hostile import FILES
from tests.dicom.test_read_refused import CHANGES
from tests.network import network_world as network
from tests.orthanc_server import free_ports
from tests.trials import trial_world as world

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
GROWTH_MB = 120.0
UIDS = "1.2.826.0.1.3680043.9.7433.66"
#: What the door says of a dataset that in a file would not even be taken for one, or is in order as far as it looks.
AT_THE_DOOR = {
    "text": "truncated_file",
    "short text": "truncated_file",
    "random bytes": "truncated_file",
    "an executable": "truncated_file",
    "a preamble and nothing": "empty_file",
    "a preamble and text": "truncated_file",
    "cut inside the meta header": "empty_file",
    "65535 x 65535 pixels": "",
    "no rows": "",
}
#: A few of the spoilt acquisitions for every day; the trial takes all.
FEW = ("missing slice everywhere", "no phase", "echo time zero", "pixels too long", "constant phase")


def _as_sent(name: str, folder: Path, number: int) -> tuple[Path, str]:
    """A hostile file as something that can be sent: a right meta header before whatever its dataset is."""
    path = folder / f"{number:03d}.dcm"
    content = FILES[name][1]()
    path.write_bytes(content)
    uid = f"{UIDS}.{number}"
    syntax = DEFLATED if b"1.2.840.10008.1.2.1.99" in content[:400] else EXPLICIT
    try:
        content = content[read_file_meta(path).offset :]
    except InputRefused:
        content = content[content.index(b"DICM") + 4 :] if b"DICM" in content[:132] else content
        syntax = syntax if syntax == EXPLICIT else DEFLATED
        if content[:2] == b"\x02\0":  # group 2 with the syntax alone
            length = int.from_bytes(content[8:12], "little")
            content = content[12 + length :]
    path.write_bytes(file_head(MR, uid, syntax) + content)
    return path, hashed(uid)


def _hand_over(port: int, number: int, file: bytes) -> None:
    """Send the dataset of a file as it is, be it none: no library would."""
    offset = len(file_head(MR, f"{UIDS}.{number}", EXPLICIT))
    pieces = [file[at : at + 100_000] for at in range(offset, len(file), 100_000)] or [b""]
    with network.connected(port, 60) as connection:
        connection.sendall(network.associate_rq(calling="SCANNER"))
        assert network.answer(connection)[0] == 2
        connection.sendall(network.pdv(3, network.store_rq(number, sop_instance=f"{UIDS}.{number}")))
        for piece in pieces[:-1]:
            connection.sendall(network.pdv(0, piece))
        connection.sendall(network.pdv(2, pieces[-1]))
        assert network.answer(connection)[0] == 4


@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(CHANGES), marks=pytest.mark.trial)], ids=["few", "all"])
def test_what_is_bad_has_its_reason_and_the_good_study_arrives(tmp_path, names):
    listens, out = free_ports(2)
    config = world.site_file(
        tmp_path, listens, f'port = {out}\ncalled_ae_title = "PACS"\ncommitment = "no"\n', quiet_s=3.0
    )
    door = send.Destination(
        host="127.0.0.1", port=listens, calling_ae_title="SCANNER", called_ae_title="QSMEDGE", commitment="no"
    )
    good = dicom_factory.write(small_head("good", "philips_enhanced"), tmp_path / "good")
    spoilt = {
        name: dicom_factory.write(CHANGES[name][1](dicom_factory.scan(name=name)), tmp_path / f"spoilt{number}")
        for number, name in enumerate(names)
    }
    (tmp_path / "hostile").mkdir()
    hostile = {name: _as_sent(name, tmp_path / "hostile", number) for number, name in enumerate(FILES)}
    with world.archive(tmp_path / "pacs", out) as kept, world.serving(config, None) as service:
        before_mb = service.resident_mb()
        for number, (path, _) in enumerate(hostile.values()):
            if DEFLATED.encode() in path.read_bytes()[:400]:
                send.send([path], door)
            else:
                _hand_over(listens, number, path.read_bytes())
        for folder in spoilt.values():
            sent = send.send(sorted(folder.iterdir()), door)
            assert {one.outcome for one in sent} == {"stored"}
        assert [one.outcome for one in send.send(sorted(good.iterdir()), door)] == ["stored"]
        world.wait_until(lambda: len(kept.given) == SLICES + 1, world.PATIENCE_S * 4, 0.5)
        world.wait_until(lambda: not _open_jobs(tmp_path / "spool"), world.PATIENCE_S * 4, 0.5)
        time.sleep(0.5)
        grown_mb = service.resident_mb("VmHWM") - before_mb
        received = {fact["instance"]: fact for fact in service.events("received") if "peer" in fact}
    told = {name: received[instance].get("detail", "") for name, (_, instance) in hostile.items()}
    wanted = {name: AT_THE_DOOR.get(name, code) for name, (code, _) in FILES.items()}
    assert {name: detail.partition(" ")[2] for name, detail in told.items()} == wanted
    assert {detail.partition(" ")[0] for detail in told.values()} == {"", "0xC000"}
    assert grown_mb < GROWTH_MB
    assert set(kept.counts().values()) == {1}
    assert _codes(tmp_path / "spool", spoilt) == {name: {CHANGES[name][0]} for name in names}
    sys.stdout.write(f"\n{len(hostile)} hostile objects, {len(names)} spoilt acquisitions: +{grown_mb:.0f} MB\n")


def _open_jobs(spool: Path) -> bool:
    with opened(spool) as there:
        return bool(
            there.ledger.rows(
                "SELECT study FROM studies WHERE arrivals != looked UNION ALL "
                "SELECT job FROM jobs WHERE state IN ('ready', 'working')"
            )
        )


def _codes(spool: Path, spoilt: dict[str, Path]) -> dict[str, set[str]]:
    """What is said of each spoilt study, by the reader or by the chain."""
    import pydicom

    found = {}
    with opened(spool) as there:
        for name, folder in spoilt.items():
            study = hashed(pydicom.dcmread(min(folder.iterdir()), stop_before_pixels=True).StudyInstanceUID)
            rows = there.ledger.rows(
                "SELECT code FROM findings WHERE study = ? UNION SELECT code FROM jobs WHERE study = ?", (study, study)
            )
            found[name] = {row["code"] for row in rows}
    return found
