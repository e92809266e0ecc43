"""The whole road on loopback: in by C-STORE, through the spool, out by C-STORE; only the chain is a stand-in."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from qsm_edge import listen, send
from qsm_edge.serve import default_parts, serve
from qsm_edge.spool import logger, opened
from qsm_edge.spool.config import load
from qsm_edge.spool.look import look_at
from tests import dicom_factory as factory
from tests.spool.spool_world import check_agreement, states

PATIENCE_S = 240.0
#: Hands two of its input images on as its result.
CHAIN = """
import json, os, shutil, sys
source, output = sys.argv[1:]
folder = os.path.join(output, "one")
os.makedirs(os.path.join(folder, "chi"))
for name in sorted(os.listdir(source))[:2]:
    shutil.copy(os.path.join(source, name), os.path.join(folder, "chi", name))
print(json.dumps({"done": [{"folder": folder, "verdict": "good"}], "refused": [], "failed": []}))
"""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_study_sent_by_c_store_comes_back_as_a_result_once_and_the_logs_know_no_patient(tmp_path):
    received: list[str] = []

    def archive_takes(part: Path, origin: listen.Origin) -> None:
        received.append(hashlib.sha256(_pixels(part)).hexdigest())
        part.unlink()

    (tmp_path / "archive").mkdir()
    archive = listen.Settings(port=0, ae_title="PACS", any_calling_ae_title=True)
    port, told, stop = _free_port(), io.StringIO(), threading.Event()
    with listen.serve(archive, tmp_path / "archive", archive_takes, lambda line: None) as pacs:
        config = tmp_path / "site.toml"
        config.write_text(
            f'[spool]\nfolder = "spool"\nquiet_s = 1\nmin_free_mb = 0\n[listen]\nport = {port}\n'
            f'calling_ae_titles = ["SCANNER"]\n[[destination]]\nname = "pacs"\nhost = "127.0.0.1"\nport = {pacs.port}\n'
            'called_ae_title = "PACS"\ncommitment = "no"\n[delivery]\nfirst_retry_s = 1\n'
        )
        site, log = load(config), logger(told, "json")
        parts = default_parts(site, log)
        parts = replace(
            parts,
            read=lambda folder: look_at(folder, lambda acquisition: 1),
            run=lambda source, output: [sys.executable, "-I", "-S", "-c", CHAIN, str(source), str(output)],
        )
        opened_ = threading.Event()
        service = threading.Thread(
            target=serve, args=(site, parts), kwargs=dict(stop=stop, log=log, on_open=lambda spool: opened_.set())
        )
        service.start()
        try:
            assert opened_.wait(PATIENCE_S)
            files = _files(tmp_path / "scanner")
            ours = send.Destination(
                host="127.0.0.1", port=port, calling_ae_title="SCANNER", called_ae_title="QSMEDGE", commitment="no"
            )
            outcomes = {one.outcome for one in send.send(files, ours)}
            stranger = replace(ours, calling_ae_title="STRANGER")
            refused = {one.outcome for one in send.send(files[:1], stranger)}
            end = time.monotonic() + PATIENCE_S
            while len(received) < 2 and time.monotonic() < end:
                time.sleep(0.1)
            time.sleep(1.0)  # a second delivery would come now
        finally:
            stop.set()
            service.join(PATIENCE_S)
    assert outcomes == {"stored"}
    assert "stored" not in refused
    assert len(received) == len(set(received)) == 2
    with opened(site.spool.folder) as spool:
        assert states(spool) == ["done"]
        assert states(spool, "instances") == ["held"] * len(files)
        assert states(spool, "deliveries") == ["done"] * 2
        (row, *_) = spool.ledger.rows("SELECT * FROM instances")
        assert (row["door"], row["caller"], row["address"]) == ("c-store", "SCANNER", "127.0.0.1")
        check_agreement(spool)
    events = [json.loads(line) for line in told.getvalue().splitlines()]
    assert sum(
        one["event"] == "received" and one["outcome"] in ("stored", "ok", "success", "0x0000") for one in events
    ) == len(files)
    assert sum(one["event"] == "sent" and one["outcome"] == "stored" for one in events) == 2
    for word in ("mustermann", "geheim"):
        assert word not in told.getvalue().lower()


def _files(folder: Path) -> list[Path]:
    datasets = factory.scan("philips_classic")
    for dataset in datasets:
        dataset.PatientName, dataset.PatientID = "Mustermann^Hans", "geheim-4711"
    return sorted(factory.write(datasets, folder).iterdir())


def _pixels(path: Path) -> bytes:
    import pydicom

    return bytes(pydicom.dcmread(path).PixelData)
