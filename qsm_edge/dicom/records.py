"""What the reader's steps hand to one another: plain records, nothing computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAGNITUDE, PHASE, REAL, IMAGINARY, UNKNOWN = "M", "P", "R", "I", "?"

#: What a component is called in a message.
COMPONENT_NAMES = {MAGNITUDE: "magnitude", PHASE: "phase", REAL: "real", IMAGINARY: "imaginary", UNKNOWN: "unknown"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an image or a file is not to be used. `refuse`: it must be pointed out (exit 3), else it is only listed."""

    code: str
    text: str
    refuse: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that looks like (part of) an acquisition and cannot be used. `files` are names below the input."""

    code: str
    text: str
    series: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ignored:
    """Files that are no acquisition at all: listed, and no reason to fail."""

    code: str
    text: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file on disk and how its pixels are stored there. `shown` is its name below the input.

    renamed: the file's meta header names another object than its dataset, as some de-identification leaves it.
    """

    path: Path
    shown: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: str
    offset: int
    length: int
    frames: int
    rows: int
    columns: int
    bits_stored: int
    signed: bool
    renamed: bool


@dataclass(frozen=True, slots=True)
class Image:
    """One two-dimensional image: a classic object, or a frame of an enhanced one (`frame` from 1, else 0).

    Everything that decides where it belongs, as read and not yet believed. None and '' stand for absent; `fault` is
    what is wrong with the file or its numbers, `verdict` what the image is if it is nothing to be used, `scanner` why
    nothing that its scanner stores can be used.
    """

    file: StoredFile = field(compare=False)
    frame: int
    vendor: str
    encoding: str
    component: str
    verdict: Verdict | None
    fault: Verdict | None
    scanner: Verdict | None
    study_uid: str
    series_uid: str
    frame_of_reference: str
    patient: tuple[str, str, str]
    series_number: int
    description: str
    protocol: str
    sequence_name: str
    gradient_echo: bool | None
    echo_time_ms: float | None
    echo_number: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float | None
    intercept: float | None
    started_s: float | None
    acquisition: int
    temporal: int
    coil: str
    distortion: str
    normalised: bool
    instance_number: int
    declared_echoes: int
    declared_slices: int
    declared_images: int
    field_tesla: float | None
    frequency_mhz: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which image goes where: ``images[component][echo][slice]``, complete, on one grid."""

    images: Mapping[str, tuple[tuple[Image, ...], ...]]
    echo_times_ms: tuple[float, ...]
