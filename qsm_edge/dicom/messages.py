"""The small datasets that network services exchange: a status, a storage commitment's request and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

#: Of the Storage Commitment Push Model: its SOP class and the one instance that everybody talks to.
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"


@dataclass(frozen=True)
class Report:
    """A storage commitment's report: SOP instance UIDs that are committed, and those that are not, each with its reason."""

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int]


def status(code: int, comment: str = "") -> Dataset:
    """The status of a DIMSE response; `comment` becomes its ErrorComment, at most 64 characters."""
    d = Dataset()
    d.Status = code
    if comment:
        d.ErrorComment = comment[:64]
    return d


def commitment_request(transaction_uid: str, objects: Iterable[tuple[str, str]]) -> Dataset:
    """What an N-ACTION asks to be committed; `objects`: (SOP class UID, SOP instance UID) of each."""
    d = Dataset()
    d.TransactionUID = transaction_uid
    d.ReferencedSOPSequence = [_reference(*names) for names in objects]
    return d


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def commitment_report(information: Any) -> Report:
    """An N-EVENT-REPORT's information as a `Report`. Whatever pydicom raises for one that makes no sense is raised."""
    committed = {str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence", None) or ()}
    failed = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", None) or 0)
        for item in information.get("FailedSOPSequence", None) or ()
    }
    return Report(str(information.TransactionUID), frozenset(committed - failed.keys()), failed)
