"""Orthanc -> qsm-edge -> Orthanc: several studies at once, interleaved and shuffled; each result arrives once, committed.

Judges: Orthanc (storage, commitment), DCMTK (dcmdump reads what came back without a word), dcm2niix (the same values at
the same places in space as the truth's).
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from dicom_samples.encode import save
from qsm_edge.spool import opened
from tests.deploy.sandbox import SLICES, small_head
from tests.orthanc_server import Orthanc, free_ports
from tests.trials import trial_world as world
from tests.trials.fuzz import ENCODINGS, SAMPLES
from tests.trials.trial_world import program

pytestmark = pytest.mark.orthanc


def round_trip(tmp_path: Path, studies: Sequence[Sequence[Path]], slices: int) -> list[Path]:
    """Send everything through; returns the folders of the susceptibility series that came back, one a study."""
    listens, *ports = free_ports(3)
    lines = f'port = {ports[0]}\ncalled_ae_title = "ORTHANC"\ncommitment = "required"\ncommitment_wait_s = 30.0\n'
    config = world.site_file(tmp_path, listens, lines, quiet_s=4.0)
    files = [file for study in studies for file in study]
    random.Random(11).shuffle(files)
    more = {"DicomScuTimeout": 60}
    with world.pacs(tmp_path / "orthanc", listens, ports, more) as server, world.serving(config, None) as service:
        sent = [server.ask("/instances", file.read_bytes())["ID"] for file in files]
        assert len(set(sent)) == len(files)
        job = server.post("/modalities/edge/store", {"Resources": sent, "Synchronous": False})["ID"]
        world.wait_until(lambda: server.ask(f"/jobs/{job}")["State"] == "Success", step_s=0.5)
        world.wait_until(lambda: world.all_done(tmp_path / "spool", len(studies)), step_s=0.5)
        folders = _came_back(server, tmp_path, len(studies), slices)
        received = [fact for fact in service.events("received") if "peer" in fact]
        assert [fact["outcome"] for fact in received] == ["stored"] * len(files)
        assert {fact["outcome"] for fact in service.events("sent")} == {"committed"}
        assert len(service.events("sent")) == len(studies) * (slices + 1)
        assert len(server.ask("/instances")) == len(files) + len(studies) * (slices + 1)
    with opened(tmp_path / "spool") as spool:
        outcomes = {row["outcome"] for row in spool.ledger.rows("SELECT outcome FROM deliveries")}
    assert outcomes == {"committed"}
    world.check_at_rest(tmp_path / "spool", jobs=len(studies), instances=len(files))
    return folders


def _came_back(server: Orthanc, tmp_path: Path, studies: int, slices: int) -> list[Path]:
    found = world.result_series(server, "research use only")
    assert len(found) == studies
    folders = []
    for number, series in enumerate(found.values()):
        kinds = {one["MainDicomTags"]["Modality"]: one for one in series}
        assert {kind: len(one["Instances"]) for kind, one in kinds.items()} == {"MR": slices, "SEG": 1}
        assert len(series) == 2
        folders.append(tmp_path / f"back{number}")
        folders[-1].mkdir()
        for name in kinds["MR"]["Instances"]:
            (folders[-1] / f"{name}.dcm").write_bytes(server.get(f"/instances/{name}/file"))
        for path in folders[-1].iterdir():
            said = subprocess.run([program("dcmdump"), "-q", str(path)], capture_output=True, check=False, timeout=60)
            assert (said.returncode, said.stderr) == (0, b"")
    return folders


def by_dcm2niix(folder: Path) -> nibabel.Nifti1Image:
    """dcm2niix's reading of a series, on the canonical axes."""
    out = folder.with_name(f"{folder.name}_nifti")
    out.mkdir()
    command = [program("dcm2niix"), "-f", "map", "-z", "n", "-o", str(out), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = out.glob("*.nii")
    return nibabel.as_closest_canonical(nibabel.load(path))


def test_two_studies_that_come_mixed_go_back_once_each_and_committed(tmp_path):
    studies = [save(small_head(f"mixed-{e}", e), tmp_path / e) for e in ("siemens_classic", "philips_enhanced")]
    one, two = (np.asarray(by_dcm2niix(f).dataobj, float) for f in round_trip(tmp_path, studies, SLICES))
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.99  # one head in two encodings


@pytest.mark.trial
def test_the_samples_of_all_encodings_that_come_mixed_go_back_once_each_and_committed(tmp_path):
    studies = [sorted((SAMPLES / encoding).iterdir()) for encoding in ENCODINGS]
    truth = nibabel.as_closest_canonical(nibabel.load(SAMPLES / "chi_true.nii.gz"))
    mask = np.asarray(nibabel.as_closest_canonical(nibabel.load(SAMPLES / "mask.nii.gz")).dataobj) > 0
    folders = round_trip(tmp_path, studies, truth.shape[2])
    assert len({pydicom.dcmread(next(folder.iterdir())).StudyInstanceUID for folder in folders}) == len(ENCODINGS)
    maps = [by_dcm2niix(folder) for folder in folders]
    inside = [np.asarray(image.dataobj, float)[mask] for image in maps]
    for image, values in zip(maps, inside, strict=True):
        assert image.shape == truth.shape
        np.testing.assert_allclose(image.affine, truth.affine, atol=2e-3)
        assert np.corrcoef(values, np.asarray(truth.dataobj, float)[mask])[0, 1] > 0.4
    agreement = np.corrcoef(inside)
    assert agreement.min() > 0.98
    sys.stdout.write(f"\nfive encodings, least correlation of two of their maps {agreement.min():.4f}\n")
