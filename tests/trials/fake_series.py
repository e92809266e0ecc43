"""Stands in for `qsm-edge run INPUT OUTPUT --json` where a trial needs DICOM results quickly.

    python -m tests.trials.fake_series INPUT OUTPUT SECONDS [FILL]

A series `chi` whose UIDs follow from the input and whose bytes differ from run to run, as the real one's time of creation
makes them; half of it is written before and half after SECONDS. It ends with its parent, as the real one does. FILL: a file
that is not there yet, which takes what is left of its disk once all is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from qsm_edge.spool.limits import end_with_parent

IMAGES = 10
DESCRIPTION = "stand-in for susceptibility"


def _uid(*words: str) -> str:
    return f"2.25.{int.from_bytes(hashlib.sha256('/'.join(words).encode()).digest()[:15], 'big')}"


def _image(of: pydicom.Dataset, series: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = _uid(series, str(number))
    d = FileDataset("", {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=True)
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID, series
    d.StudyInstanceUID, d.PatientID, d.PatientName = of.StudyInstanceUID, of.PatientID, of.PatientName
    d.Modality, d.SeriesDescription, d.InstanceNumber = "MR", DESCRIPTION, str(number)
    d.Rows = d.Columns = 64
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    d.add_new("PixelData", "OW", os.urandom(64 * 64 * 2))
    return d


def main() -> int:
    source, output, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    end_with_parent(int(os.environ["QSM_EDGE_PARENT"]))
    names = sorted(os.listdir(source))
    series = _uid(*sorted(name.partition("-")[0] for name in names))
    of = pydicom.dcmread(source / names[0], stop_before_pixels=True)
    folder = output / "one"
    (folder / "chi").mkdir(parents=True)
    for number in range(1, IMAGES + 1):
        _image(of, series, number).save_as(folder / "chi" / f"{number:04d}.dcm", enforce_file_format=True)
        if number == IMAGES // 2:
            time.sleep(seconds)
    sys.stdout.write(json.dumps({"done": [{"folder": str(folder), "verdict": "good"}], "refused": [], "failed": []}))
    sys.stdout.flush()
    if len(sys.argv) > 4 and not Path(sys.argv[4]).exists():
        fill(Path(sys.argv[4]))
    return 0


def fill(path: Path, leave: int = 0) -> None:
    """Take what is left of a disk but `leave` bytes."""
    left = shutil.disk_usage(path.parent).free - leave
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(bytes(min(left, 4096)))


if __name__ == "__main__":
    raise SystemExit(main())
