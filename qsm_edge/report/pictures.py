"""Pictures for the report: slices in radiological convention, laid side by side, as PNG without any imaging library.

Slices run along the array's own axes, named after the patient axis that each is nearest to; nothing is interpolated
through the slices of an oblique slab. Patient right is on the left of axial and coronal pictures, anterior on the left
of sagittal ones.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.types import Geometry

#: Patient axes in the order (S, P, L): the letter towards which an index grows, and the opposite one.
_LETTERS = (("S", "I"), ("P", "A"), ("L", "R"))
_GAP = 4  # pixels between pictures
_MARGIN_MM = 10.0


@dataclass(frozen=True)
class Orientation:
    """How an array (z, y, x) becomes (S, P, L): `axes[i]` is the array axis nearest to patient axis i, see `flip`.

    `spacing_mm` is in the order (S, P, L); `tilt_deg` is the largest angle between an array axis and its patient axis.
    """

    axes: tuple[int, int, int]
    flip: tuple[bool, bool, bool]
    spacing_mm: tuple[float, float, float]
    tilt_deg: float

    def turn(self, volume: np.ndarray) -> np.ndarray:
        """A view of `volume` on the axes (S, P, L), each index growing towards its letter."""
        steps = tuple(slice(None, None, -1) if flipped else slice(None) for flipped in self.flip)
        return np.transpose(volume, self.axes)[steps]


def orientation_of(geometry: Geometry) -> Orientation:
    """The assignment of array axes to patient axes with the least total angle."""
    along = geometry.affine_lps[:3, :3] / np.linalg.norm(geometry.affine_lps[:3, :3], axis=0)
    rows = along[[2, 1, 0]]  # (S, P, L) by array axis
    axes = max(itertools.permutations(range(3)), key=lambda p: sum(abs(rows[i, p[i]]) for i in range(3)))
    cosines = [float(rows[i, axes[i]]) for i in range(3)]
    spacing = tuple(geometry.voxel_mm[a] for a in axes)
    tilt = float(np.degrees(np.arccos(min(1.0, *(abs(c) for c in cosines)))))
    return Orientation(axes, tuple(c < 0 for c in cosines), spacing, tilt)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Panel:
    """One slice: `plane` is 'axial', 'coronal' or 'sagittal', `index` counts along (S, P, L) axis `axis`."""

    plane: str
    index: int

    @property
    def axis(self) -> int:
        return ("axial", "coronal", "sagittal").index(self.plane)


@dataclass(frozen=True)
class View:
    """What all pictures of a report share: orientation, the part of the volume that is shown, the size of a pixel."""

    orientation: Orientation
    geometry: Geometry
    box: tuple[slice, slice, slice]  # in (S, P, L)
    inside: tuple[slice, slice, slice]  # the mask's extent without margin
    pixel_mm: float

    @staticmethod
    def around(mask: np.ndarray, geometry: Geometry) -> View:
        """A view of `mask` (z, y, x) with a margin of 10 mm, or of the whole volume when it is empty."""
        orientation = orientation_of(geometry)
        turned = orientation.turn(mask)
        box, inside = [], []
        for axis, mm in enumerate(orientation.spacing_mm):
            there = np.flatnonzero(turned.any(axis=tuple(a for a in range(3) if a != axis)))
            first, last = (int(there[0]), int(there[-1])) if there.size else (0, turned.shape[axis] - 1)
            margin = int(np.ceil(_MARGIN_MM / mm))
            inside.append(slice(first, last + 1))
            box.append(slice(max(0, first - margin), min(turned.shape[axis], last + 1 + margin)))
        finest = min(orientation.spacing_mm)
        return View(orientation, geometry, tuple(box), tuple(inside), float(np.clip(finest, 0.9, 1.25)))  # type: ignore[arg-type]

    def panels(self, plane: str, fractions: tuple[float, ...]) -> tuple[Panel, ...]:
        """Slices at the given fractions of the mask's extent, each once."""
        part = self.inside[("axial", "coronal", "sagittal").index(plane)]
        last = part.stop - part.start - 1
        return tuple(dict.fromkeys(Panel(plane, part.start + round(f * last)) for f in fractions))

    def cut(self, volume: np.ndarray, panel: Panel) -> np.ndarray:
        """The slice of a (z, y, x) volume as float32 rows and columns of square pixels, ready to look at."""
        where: list[slice | int] = list(self.box)
        where[panel.axis] = panel.index
        piece = np.asarray(self.orientation.turn(volume)[tuple(where)], dtype=np.float32)
        if panel.axis:
            piece = piece[::-1]  # superior on top
        spacing = [s for axis, s in enumerate(self.orientation.spacing_mm) if axis != panel.axis]
        size = [max(1, round(n * mm / self.pixel_mm)) for n, mm in zip(piece.shape, spacing, strict=True)]
        if tuple(size) == piece.shape:
            return piece
        factors = [wanted / n for wanted, n in zip(size, piece.shape, strict=True)]
        zoomed: np.ndarray = ndi.zoom(piece, factors, order=1, mode="nearest", grid_mode=True)
        return zoomed

    def letters(self, panel: Panel) -> tuple[str, str, str]:
        """Patient directions at the left, the right and the top of a slice."""
        return {"axial": ("R", "L", "A"), "coronal": ("R", "L", "S"), "sagittal": ("A", "P", "S")}[panel.plane]

    def position(self, panel: Panel) -> str:
        """Where the middle of the slice lies along its patient axis, as a letter and mm."""
        turned = [slice(s.start, s.stop) for s in self.box]
        middle = [(s.start + s.stop - 1) / 2 for s in turned]
        middle[panel.axis] = panel.index
        index = [0.0, 0.0, 0.0]
        for i, (axis, flipped) in enumerate(zip(self.orientation.axes, self.orientation.flip, strict=True)):
            index[axis] = self.geometry.shape[axis] - 1 - middle[i] if flipped else middle[i]
        patient = (self.geometry.affine_lps @ [*index, 1.0])[[2, 1, 0][panel.axis]]
        return f"{_LETTERS[panel.axis][0 if patient >= 0 else 1]}{abs(patient):.0f}"


@dataclass(frozen=True)
class Mosaic:
    """A picture of several slices: `png`, its size in pixels, and text for (left, top) fractions of it."""

    png: bytes
    width: int
    height: int
    marks: tuple[tuple[str, float, float, str], ...]  # text, x, y, kind


def mosaic(
    view: View,
    volume: np.ndarray,
    panels: tuple[Panel, ...],
    window: tuple[float, float],
    *,
    columns: int,
    outlines: tuple[tuple[np.ndarray, tuple[int, int, int]], ...] = (),
    within: np.ndarray | None = None,
) -> Mosaic:
    """The slices of `volume` (z, y, x) in rows of `columns`, grey over `window`, black outside `within`.

    `outlines` are masks (z, y, x) with a colour each, drawn in this order; values that are not finite are black.
    """
    shades = 256 - len(outlines)
    pieces = []
    for panel in panels:
        values = np.nan_to_num(view.cut(volume, panel), nan=window[0], posinf=window[1], neginf=window[0])
        grey = np.clip((values - window[0]) / (window[1] - window[0]), 0, 1)
        shown = np.round(grey * (shades - 1)).astype(np.uint8)
        if within is not None:
            shown[view.cut(within, panel) < 0.5] = 0
        for number, (mask, _) in enumerate(outlines):
            solid = view.cut(mask, panel) >= 0.5
            shown[solid & ~ndi.binary_erosion(solid, border_value=1)] = shades + number
        pieces.append(shown)
    rows = [list(range(i, min(i + columns, len(pieces)))) for i in range(0, len(pieces), columns)]
    heights = [max(pieces[i].shape[0] for i in row) for row in rows]
    width = max(sum(pieces[i].shape[1] + _GAP for i in row) for row in rows) - _GAP
    height = sum(heights) + _GAP * (len(rows) - 1)
    canvas = np.zeros((height, width), np.uint8)
    marks: list[tuple[str, float, float, str]] = []
    top = 0
    for row, tall in zip(rows, heights, strict=True):
        left = 0
        for i in row:
            high, wide = pieces[i].shape
            y = top + (tall - high) // 2
            canvas[y : y + high, left : left + wide] = pieces[i]
            west, _, north = view.letters(panels[i])
            marks.append((west, left / width, (y + high / 2) / height, "west"))
            marks.append((north, (left + wide / 2) / width, y / height, "north"))
            marks.append((view.position(panels[i]), left / width, (y + high) / height, "corner"))
            left += wide + _GAP
        top += tall + _GAP
    palette = None
    if outlines:
        levels = [round(255 * i / (shades - 1)) for i in range(shades)]
        greys = [(level, level, level) for level in levels]
        palette = [*greys, *(colour for _, colour in outlines)]
    return Mosaic(png(canvas, palette), width, height, tuple(marks))


def png(picture: np.ndarray, palette: list[tuple[int, int, int]] | None = None) -> bytes:
    """An 8-bit PNG of a (rows, columns) uint8 array, grey or by `palette`; one row filter, that with the least to pack.

    Source: W3C Portable Network Graphics Specification, 2nd edition (ISO/IEC 15948).
    """
    rows, columns = picture.shape
    bits = picture.astype(np.int16)
    west, north = np.zeros_like(bits), np.zeros_like(bits)
    west[:, 1:], north[1:] = bits[:, :-1], bits[:-1]
    lines = np.empty((rows, columns + 1), np.uint8)
    lines[:, 0], lines[:, 1:] = 0, picture
    if not palette:  # neighbours in a palette need not be alike
        filters = ((0, bits), (1, bits - west), (2, bits - north), (3, bits - (west + north) // 2))
        kind, least = min(filters, key=lambda choice: int(np.abs(choice[1]).sum()))
        lines[:, 0], lines[:, 1:] = kind, (least & 255).astype(np.uint8)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3 if palette else 0, 0, 0, 0))
    colours = chunk(b"PLTE", bytes(value for colour in palette for value in colour)) if palette else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + colours
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
