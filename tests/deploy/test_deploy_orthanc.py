"""The routing script in a real Orthanc: a stable study is sent once, results that come back are not, a late image is."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pydicom
import pytest
import sandbox

from qsm_edge import listen
from qsm_edge.dicom.vendors import OWN_MANUFACTURER
from tests import dicom_factory
from tests.orthanc_server import Orthanc, free_ports, running

pytestmark = pytest.mark.orthanc
PATIENCE_S = 60.0


@contextlib.contextmanager
def receiver(folder: Path, port: int) -> Iterator[list[str]]:
    """Our listener in the place of the service; the SOP instance UIDs that it was given, each time again."""
    given: list[str] = []

    def store(part: Path, origin: listen.Origin) -> None:
        given.append(pydicom.dcmread(part, stop_before_pixels=True).SOPInstanceUID)
        part.unlink()

    folder.mkdir()
    settings = listen.Settings(port=port, calling_ae_titles=("ORTHANC",))
    with listen.serve(settings, folder, store, lambda line: None, None):
        yield given


def take(server: Orthanc, *datasets: pydicom.Dataset) -> None:
    """Give Orthanc images by its REST interface."""
    for dataset in datasets:
        held = io.BytesIO()
        dataset.save_as(held, enforce_file_format=True)
        assert server.ask("/instances", held.getvalue())["Status"] == "Success"


@contextlib.contextmanager
def orthanc(folder: Path, our_port: int, ports: Sequence[int] = ()) -> Iterator[Orthanc]:
    """An Orthanc with the script that knows us at `our_port`; `ports` are its own, DICOM and HTTP."""
    more = {
        "LuaScripts": [str(sandbox.DEPLOY / "orthanc" / "qsm-edge.lua")],
        "DicomModalities": {"qsm-edge": ["QSMEDGE", "127.0.0.1", our_port]},
        "StableAge": 1,
    }
    with running(sandbox.program("Orthanc"), folder, more, ports) as server:
        yield server
    assert "Lua error" not in (folder / "log").read_text(errors="replace")


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        time.sleep(0.05)


def stable_again(server: Orthanc, before: int) -> int:
    """Wait until Orthanc has called a study stable after the change `before`; the number of that change."""
    found: list[int] = []

    def look() -> bool:
        changes = server.ask(f"/changes?since={before}&limit=1000")["Changes"]
        found[:] = [change["Seq"] for change in changes if change["ChangeType"] == "StableStudy"]
        return bool(found)

    until(look)
    return found[-1]


def ended(server: Orthanc) -> list[str]:
    """The states of all jobs that send, when none is at work any more; a storage commitment is a job too."""
    jobs: list = []

    def look() -> bool:
        jobs[:] = [job for job in server.ask("/jobs?expand") if job["Type"] == "DicomModalityStore"]
        return all(job["State"] in ("Success", "Failure") for job in jobs)

    until(look)
    return [job["State"] for job in jobs]


def returned(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """An image as it could come back from us: another series of the study, with our name as its maker."""
    dataset.Manufacturer = OWN_MANUFACTURER
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = f"{dataset.SeriesInstanceUID}.1", f"{dataset.SOPInstanceUID}.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def test_a_stable_study_goes_out_once_and_results_that_come_back_do_not(tmp_path):
    """First the door is closed; then the failed job is resubmitted, which is the README's way to reconcile."""
    study = dicom_factory.scan(name="routed")
    uids, late = {dataset.SOPInstanceUID for dataset in study}, study[-1]
    (port,) = free_ports(1)
    with orthanc(tmp_path / "orthanc", port) as server:
        take(server, *study[:-1])
        change = stable_again(server, 0)
        until(lambda: server.ask("/jobs"))
        assert ended(server) == ["Failure"]
        with receiver(tmp_path / "in", port) as given:
            (job,) = server.ask("/jobs")
            server.ask(f"/jobs/{job}/resubmit", b"")
            until(lambda: len(given) == len(study) - 1)
            assert set(given) == uids - {late.SOPInstanceUID}

            take(server, returned(dicom_factory.scan(name="routed")[0]))
            change = stable_again(server, change)
            assert ended(server) == ["Success"]
            assert len(given) == len(study) - 1, "our own output, or what was sent before, went out"

            take(server, late)
            stable_again(server, change)
            until(lambda: late.SOPInstanceUID in given)
            assert ended(server) == ["Success", "Success"]
            assert set(given) == uids
            again = [dataset for dataset in study if dataset.SeriesInstanceUID == late.SeriesInstanceUID]
            assert len(given) == len(study) - 1 + len(again), "more than the series that changed went out"


def test_a_study_goes_to_the_service_and_its_results_come_back_once(tmp_path):
    """The whole road: Orthanc, the script, `qsm-edge serve`, Orthanc; nothing goes round a second time."""
    listens, dicom, _ = ports = free_ports(3)
    site = tmp_path / "site.toml"
    site.write_text(
        f'[spool]\nfolder = "{tmp_path / "spool"}"\nquiet_s = 1.0\nmin_free_mb = 0\n'
        f'[listen]\nport = {listens}\ncalling_ae_titles = ["ORTHANC"]\n'
        '[work]\nrecipe = "fast"\nmask = "threshold"\n'
        f'[[destination]]\nname = "back"\nhost = "127.0.0.1"\nport = {dicom}\ncalled_ae_title = "ORTHANC"\n'
        'commitment = "no"\n'
    )
    study = sandbox.small_head("routed", "philips_enhanced")
    sent = len({dataset.SeriesInstanceUID for dataset in study})
    with orthanc(tmp_path / "orthanc", listens, ports[1:]) as server, service(site):
        take(server, *study)
        change = stable_again(server, 0)
        until(lambda: len(server.ask("/series")) == sent + 2)
        change = stable_again(server, change)
        assert ended(server) == ["Success"], "results that came back went out again"
        series = [server.ask(f"/series/{name}") for name in server.ask("/series")]
        ours = [one for one in series if "research use only" in one["MainDicomTags"].get("SeriesDescription", "")]
        found = {one["MainDicomTags"]["Modality"]: len(one["Instances"]) for one in ours}
        assert (len(ours), found) == (2, {"MR": sandbox.SLICES, "SEG": 1})


@contextlib.contextmanager
def service(site: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "qsm_edge", "serve", "--config", str(site)]
    with site.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=sandbox.ROOT)
        try:
            until(lambda: process.poll() is not None or b"serving" in site.with_suffix(".log").read_bytes())
            assert process.poll() is None, site.with_suffix(".log").read_text()
            yield
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, site.with_suffix(".log").read_text()
