"""Layer 3: the card of a mask network, a TOML file beside the ONNX file, which says what the file must be and how it is used."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qsm_edge.errors import ModelRefused

OUTPUTS = ("probability", "logit", "signed_distance")
NORMALISATIONS = ("none", "minmax", "p99", "zscore")
CENTRES = ("volume", "head")
LARGEST_VOXELS = 512**3
KEYS = {
    "": {"name", "version", "sha256", "opset", "licence", "input", "output", "windows", "fine", "about"},
    "input": {"shape", "spacing_mm", "axes", "normalisation", "centre"},
    "windows": {"share", "overlap"},
    "output": {"kind", "threshold", "mirror", "closing_mm", "guard"},
    "fine": {"file", "sha256", "threshold", "guard", "dark", "dark_threshold"},
}
FINE_INPUTS = 4  # volumes that a second network sees, see `masking.fine`


@dataclass(frozen=True)
class Windows:
    """Overlapping windows over the volume: `share` of each axis, `overlap` of neighbours; see `masking.windows`."""

    share: tuple[float, float, float]
    overlap: float


@dataclass(frozen=True)
class Card:
    """What a model file is and how it is used.

    opset of the default ONNX domain; shape (3 voxels) and spacing_mm (3), or None for the volume's own voxels, which takes
    windows and a network of free size; axes (three patient directions, such as 'SPL'),
    normalisation and centre as `masking.grid` knows them; output 'probability', 'logit' or 'signed_distance' (mm, positive
    inside); threshold on the probability, 0.5 at a logit or distance of 0; mirror: the output is averaged with that of the
    head mirrored left to right; closing_mm: the network gives two volumes, the mask and the brain's tissue, and what counts is
    the tissue cut at the threshold and closed with a ball of this radius, where the mask's probability exceeds guard; inputs:
    volumes that the network sees; fine: a second network, of free shape, that sees the neighbourhood of the brain finely,
    in a file of its own beside this one; dark: where the magnitude is below this share of the brain's median, tissue is cut at
    dark_threshold: what is dark may be a bleed or bone, but no fluid, against which a high threshold guards.
    """

    name: str
    version: str
    sha256: str
    opset: int
    licence: str
    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    axes: str
    normalisation: str
    centre: str
    output: str
    threshold: float
    windows: Windows | None = None
    mirror: bool = False
    closing_mm: float | None = None
    guard: float = 0.0
    inputs: int = 1
    file: str = ""
    fine: Card | None = None
    dark: float = 0.0
    dark_threshold: float = 1.0

    @property
    def channels(self) -> int:
        """Volumes that the network gives."""
        return 1 if self.closing_mm is None else 2


def read_card(path: Path) -> Card:
    """The card beside a model file; raises ModelRefused model_card with what is missing, unknown or wrong."""
    card = path.with_suffix(".toml")
    try:
        table = tomllib.loads(card.read_text(encoding="utf-8"))
        grid, output, windows = table["input"], table["output"], table.get("windows")
        second = table.get("fine")
        parts = (("", table), ("input", grid), ("output", output), ("windows", windows or {}), ("fine", second or {}))
        unknown = [key for name, part in parts for key in set(part) - KEYS[name]]
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        read = Card(
            name=_text(table, "name"),
            version=_text(table, "version"),
            sha256=_text(table, "sha256").lower(),
            opset=int(table["opset"]),
            licence=_text(table, "licence"),
            shape=None if windows else _three(grid["shape"], int),
            spacing_mm=None if windows else _three(grid["spacing_mm"], float),
            axes=_text(grid, "axes"),
            normalisation=_text(grid, "normalisation"),
            centre=str(grid.get("centre", "volume")),
            output=_text(output, "kind"),
            threshold=float(output["threshold"]),
            mirror=_flag(output.get("mirror", False)),
            closing_mm=float(output["closing_mm"]) if "closing_mm" in output else None,
            guard=float(output.get("guard", 0.0)),
            windows=Windows(_three(windows["share"], float), float(windows["overlap"])) if windows else None,
        )
        if second is not None:
            read = replace(read, fine=_fine(read, second))
    except OSError:
        raise ModelRefused(
            "model_card", "the model has no card", where=card.name, wanted="a .toml beside the .onnx"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # TOML's and Unicode's errors are ValueErrors
        raise ModelRefused("model_card", where=card.name, got=f"{type(error).__name__}: {error}") from None
    for fits, got, wanted in (
        (re.fullmatch("[0-9a-f]{64}", read.sha256), "sha256", "64 hexadecimal digits"),
        (not read.shape or _plausible(read.shape), read.shape, "a plausible shape"),
        (all(0.1 <= s <= 20 for s in read.spacing_mm or ()), read.spacing_mm, "0.1 to 20 mm"),
        (not windows or not {"shape", "spacing_mm"} & set(grid), "shape and windows", "one of them"),
        (not read.windows or all(0.05 <= s <= 1 for s in read.windows.share), read.windows, "shares from 0.05 to 1"),
        (not read.windows or 0 <= read.windows.overlap <= 0.9, read.windows, "an overlap from 0 to 0.9"),
        (re.fullmatch("(?=.*[LR])(?=.*[PA])(?=.*[SI])...", read.axes), read.axes, "axes like SPL"),
        (read.normalisation in NORMALISATIONS, read.normalisation, NORMALISATIONS),
        (read.centre in CENTRES, read.centre, CENTRES),
        (read.output in OUTPUTS, read.output, OUTPUTS),
        (read.closing_mm is None or 0 < read.closing_mm <= 20, read.closing_mm, "a closing above 0 and up to 20 mm"),
        (0 <= read.guard < 1, read.guard, "a guard from 0 to 1"),
        (not read.windows or read.closing_mm is None, "windows and a closing", "one of them"),
        (0 < read.threshold < 1, read.threshold, "a probability between 0 and 1"),
        *_fits(read.fine, read.closing_mm),
    ):
        if not fits:
            raise ModelRefused("model_card", where=card.name, got=got, wanted=wanted)
    return read


def _fine(first: Card, table: Any) -> Card:
    """The card of the second network: what the first's says, but for its file, its shape and where its output is cut."""
    return replace(
        first,
        sha256=_text(table, "sha256").lower(),
        shape=None,
        spacing_mm=None,
        threshold=float(table["threshold"]),
        guard=float(table["guard"]),
        mirror=False,
        inputs=FINE_INPUTS,
        file=_text(table, "file"),
        dark=float(table.get("dark", 0.0)),
        dark_threshold=float(table.get("dark_threshold", table["threshold"])),
    )


def _fits(fine: Card | None, closing_mm: float | None) -> tuple[tuple[object, object, object], ...]:
    """What has to be true of a second network: (whether it is, got, wanted)."""
    if fine is None:
        return ()
    return (
        (closing_mm is not None, "a second network without closing_mm", "closing_mm"),
        (fine.output == "logit", fine.output, "logit where there is a second network"),
        (re.fullmatch("[0-9a-f]{64}", fine.sha256), "fine sha256", "64 hexadecimal digits"),
        (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.onnx", fine.file), "fine file", "a file name that ends in .onnx"),
        (0 < fine.threshold < 1, fine.threshold, "a probability between 0 and 1"),
        (0 <= fine.guard < 1, fine.guard, "a guard from 0 to 1"),
        (0 <= fine.dark <= 1, fine.dark, "a share of the brain's signal from 0 to 1"),
        (0 < fine.dark_threshold <= fine.threshold, fine.dark_threshold, "a dark_threshold up to the threshold"),
    )


def _plausible(shape: tuple[int, int, int]) -> bool:
    return min(shape) >= 8 and math.prod(shape) <= LARGEST_VOXELS


def _text(table: Any, key: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is no text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("mirror is neither true nor false")
    return value


def _three(values: Sequence[Any], kind: type) -> Any:
    a, b, c = (kind(v) for v in values)
    return a, b, c
