"""Small studies as the bytes that a door receives."""

from __future__ import annotations

import io

from pydicom.dataset import FileDataset

from tests import dicom_factory


def content(dataset: FileDataset) -> bytes:
    """The file of a dataset."""
    held = io.BytesIO()
    dataset.save_as(held, enforce_file_format=True)
    return held.getvalue()


def contents(encoding: str = "siemens_classic", **scan: object) -> list[bytes]:
    """The files of one small acquisition."""
    return [dataset.encoded for dataset in dicom_factory.scan(encoding, **scan)]
