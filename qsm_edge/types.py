"""Layer 0: the frozen dataclasses at the seams. Nothing is computed here but derived geometry.

Arrays are (echo, z, y, x) or (z, y, x), C order, float32. Every triple is in array-axis order (z, y, x). Positions are
in the patient system LPS, in mm, as in DICOM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: An array of the array-API standard: NumPy, CuPy, array_api_strict, ... (there is no static type for it yet).
Array = Any

#: Called as ``on_iteration(number, relative_change_or_residual)``; to stop a computation, raise from it.
OnIteration = Callable[[int, float], None]


@dataclass(frozen=True)
class Lay:
    """How the voxels of one grid fall on another: `turn` brings a volume to the other axes, where it begins at `start`.

    order: for each axis the axis that comes to lie on it. flip: which of them then run backwards. miss_mm: the largest
    distance between a voxel and the one that it falls on, infinite where the axes or the voxel sizes differ.
    """

    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]
    start: tuple[int, int, int]
    miss_mm: float

    def turn(self, volume: np.ndarray) -> np.ndarray:
        """A view of `volume` along the other grid's axes."""
        turned: np.ndarray = volume.transpose(self.order)[tuple(slice(None, None, -1 if f else 1) for f in self.flip)]
        return turned


@dataclass(frozen=True)
class Geometry:
    """Where the voxels lie. `affine_lps` maps homogeneous array indices (z, y, x, 1) to LPS mm (4x4, float64).

    Voxel size and the direction of B0 on the array axes are derived, so that they cannot disagree. B0 runs along the
    patient's z axis in a horizontal magnet with the patient lying in it, whatever the slice orientation.
    """

    shape: tuple[int, int, int]
    affine_lps: np.ndarray
    b0_dir_lps: tuple[float, float, float] = (0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        affine = np.array(self.affine_lps, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine_lps", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel size along (z, y, x) in mm."""
        z, y, x = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def b0_dir(self) -> tuple[float, float, float]:
        """Unit vector of B0 on the array axes (z, y, x)."""
        axes = self.affine_lps[:3, :3] / np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        b0 = axes.T @ (np.asarray(self.b0_dir_lps) / np.linalg.norm(self.b0_dir_lps))
        z, y, x = b0 / np.linalg.norm(b0)
        return float(z), float(y), float(x)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return float(np.prod(self.voxel_mm)) / 1000.0

    @property
    def affine_ras_xyz(self) -> np.ndarray:
        """The NIfTI affine for arrays transposed to (x, y, z)."""
        return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine_lps[:, [2, 1, 0, 3]])

    def crop(self, box: tuple[slice, slice, slice]) -> Geometry:
        """The geometry of ``array[box]``; the slices have explicit non-negative bounds and step 1."""
        start = [s.start or 0 for s in box]
        affine = np.array(self.affine_lps)
        affine[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=np.float64)
        shape = tuple((n if s.stop is None else s.stop) - i for n, s, i in zip(self.shape, box, start, strict=True))
        return Geometry(shape, affine, self.b0_dir_lps)  # type: ignore[arg-type]

    def lay(self, affine_lps: np.ndarray, shape: tuple[int, int, int]) -> Lay:
        """How another grid (affine and shape in z, y, x order) falls on this one, voxel upon voxel."""
        into = np.linalg.inv(self.affine_lps) @ np.asarray(affine_lps, dtype=np.float64)
        if not np.isfinite(into).all():
            return Lay((0, 1, 2), (False, False, False), (0, 0, 0), float("inf"))
        turn, offset = np.rint(into[:3, :3]), np.rint(into[:3, 3])
        if not np.array_equal(np.abs(turn) @ np.abs(turn).T, np.eye(3)):
            return Lay((0, 1, 2), (False, False, False), (0, 0, 0), float("inf"))
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
        miss = self.affine_lps[:3, :3] @ (into[:3, :3] @ corners + into[:3, 3:] - turn @ corners - offset[:, None])
        z, y, x = np.argmax(np.abs(turn), axis=1)
        flip_z, flip_y, flip_x = turn.sum(axis=1) < 0
        first_z, first_y, first_x = (turn @ corners + offset[:, None]).min(axis=1)
        return Lay(
            (int(z), int(y), int(x)),
            (bool(flip_z), bool(flip_y), bool(flip_x)),
            (int(first_z), int(first_y), int(first_x)),
            float(np.linalg.norm(miss, axis=0).max()),
        )

    @staticmethod
    def from_axes(
        shape: tuple[int, int, int],
        voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        b0_dir: tuple[float, float, float] = (1.0, 0.0, 0.0),
    ) -> Geometry:
        """A geometry for tests and simulations, given by voxel size and B0 direction on the array axes (z, y, x)."""
        affine = np.zeros((4, 4))
        affine[3, 3] = 1.0
        affine[[2, 1, 0], [0, 1, 2]] = voxel_mm  # z -> S, y -> P, x -> L: right-handed LPS
        z, y, x = b0_dir
        return Geometry(shape, affine, (x, y, z))


@dataclass(frozen=True)
class Note:
    """Something a reader of the result should know: a reason code of `errors.REASONS` and a sentence."""

    code: str
    text: str


@dataclass(frozen=True)
class SourceInstance:
    """One image that went into a slice. `frame` is 1-based in an enhanced object, 0 in a classic one."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    frame: int = 0


@dataclass(frozen=True)
class Source:
    """Where a series came from, as much of it as the output must repeat.

    `template` is a `pydicom.Dataset` (classic layout, no pixels, no private attributes) that only `qsm_edge.dicom`
    looks into, or None for data that did not come from DICOM. `slices[z]` names every image of slice z.
    """

    vendor: str
    encoding: str
    slices: tuple[tuple[SourceInstance, ...], ...] = ()
    template: Any = None
    slug: str = "acquisition"
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class GreSeries:
    """A multi-echo gradient-echo acquisition.

    magnitude (any linear scale, >= 0) and phase [rad], both (echo, z, y, x) float32, in the order of the echo times, which
    ascend. Nothing is checked here but by who computes with it (`checks.checked_series`).
    """

    magnitude: Array
    phase_rad: Array
    echo_times_s: tuple[float, ...]
    b0_tesla: float
    geometry: Geometry
    source: Source = field(default_factory=lambda: Source("unknown", "arrays"))


@dataclass(frozen=True)
class Figure:
    """A measured number for the report, with its unit and what it means."""

    value: float
    unit: str
    meaning: str


@dataclass(frozen=True)
class Quality:
    """What was measured on a result; `verdict` is 'good', 'review' or 'poor'."""

    figures: Mapping[str, Figure]
    notes: tuple[Note, ...]
    verdict: str


@dataclass(frozen=True)
class StageRecord:
    """What one stage ran: its method, every option that it ran with, and what it cost."""

    stage: str
    method: str
    options: Mapping[str, Any]
    seconds: float
    peak_bytes: int
    iterations: int
    sentence: str
    dois: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """How a result was made. `recipe` is what ran, defaults included; `digest` is its SHA-256 in hex.

    The mask is in it as it was really made: by which method, with the name and checksums of the network, or given, with a
    checksum of its voxels.
    """

    software: str
    version: str
    recipe_name: str
    recipe: Mapping[str, Any]
    digest: str
    stages: tuple[StageRecord, ...]
    environment: Mapping[str, str]
    methods_text: str
    derivation: str


@dataclass(frozen=True)
class ExtraMap:
    """A map that was asked for beside the susceptibility, (z, y, x) on the grid of its series, in the unit of its name.

    name: 't2star' [ms], 'r2star' [1/s], 'swi', 'smwi' or 'swi_mip' (arbitrary units), 'chi_sd' [ppm; infinite where the
    field does not determine the susceptibility]. derivation: how it was made, with DOIs. slab: the slices that went into
    each slice of it. comment: what a reader of the images has to know.
    """

    name: str
    volume: np.ndarray
    derivation: str
    slab: int = 1
    comment: str = ""


@dataclass(frozen=True)
class Result:
    """A reconstruction on the grid of `series`, host arrays (z, y, x). `series` is what came in, with 0 for what was not finite.

    chi_ppm: susceptibility, zero outside `mask`. mask: bool, where chi has a value. brain: bool, the mask that came in.
    field_ppm: total field. local_ppm: field of the sources inside. r2star_per_s: None for one echo.
    residual: echo-fit residual relative to the signal (0 perfect). weight: 0..1, the reliability that the stages used.
    extras: further maps, only those that were asked for (`maps.with_maps`).
    """

    series: GreSeries
    chi_ppm: np.ndarray
    mask: np.ndarray
    brain: np.ndarray
    field_ppm: np.ndarray
    local_ppm: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    r2star_per_s: np.ndarray | None
    quality: Quality
    provenance: Provenance
    extras: tuple[ExtraMap, ...] = ()
