"""Datasets of one series -> the bytes of their files, for hundreds of files that differ in a dozen elements.

The files are those of pydicom's own writer, byte for byte. What the datasets share is encoded once; of the rest, UIDs
and the nesting of sequences are laid out here and every other value is left to pydicom, once for each distinct one.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_data_element

from qsm_edge.dicom.filemeta import file_head
from qsm_edge.errors import InternalError

_ITEM = 0xFFFE, 0xE000


class Encoder:
    """Encodes the files of one series, explicit VR little endian: those whose datasets hold the very same elements."""

    def __init__(self) -> None:
        self._charset: Any = None
        self._shared: dict[int, tuple[DataElement, bytes]] = {}  # the element, so that its id stays its own
        self._known: dict[tuple[int, str, str], bytes] = {}

    def file(self, dataset: FileDataset) -> bytes:
        """The whole file. Its dataset has the character set of the first."""
        if not self._shared:
            self._charset = dataset.get("SpecificCharacterSet")
            self._shared = {id(element): (element, self._by_pydicom(element)) for element in dataset}
        meta = dataset.file_meta
        head = file_head(
            str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), str(meta.TransferSyntaxUID)
        )
        return head + self._dataset(dataset)

    def _dataset(self, dataset: Dataset) -> bytes:
        return b"".join([self._element(element) for _, element in sorted(dataset.items())])

    def _element(self, element: Any) -> bytes:
        shared = self._shared.get(id(element))
        if shared is not None:
            return shared[1]
        vr, value = element.VR, element.value
        if vr == "SQ":
            items = [self._dataset(item) for item in value]
            content = b"".join([struct.pack("<HHL", *_ITEM, len(item)) + item for item in items])
            return _head(element, 0) + struct.pack("<L", len(content)) + content
        if not isinstance(value, str):
            return self._by_pydicom(element)
        if vr == "UI":
            content = value.encode("latin-1")
            content += b"\0" * (len(content) % 2)
            return _head(element, len(content)) + content
        key = int(element.tag), vr, str(value)
        if key not in self._known:
            self._known[key] = self._by_pydicom(element)
        return self._known[key]

    def _by_pydicom(self, element: DataElement) -> bytes:
        if " or " in element.VR:  # pydicom would look for the answer in other elements
            raise InternalError("internal", "an element without a value representation", got=str(element.tag))
        stream = DicomIO(BytesIO())
        stream.is_little_endian, stream.is_implicit_VR = True, False
        write_data_element(stream, element, self._charset)
        return bytes(stream.parent.getvalue())


def _head(element: DataElement, length: int) -> bytes:
    return struct.pack("<HH2sH", element.tag.group, element.tag.element, element.VR.encode("ascii"), length)
