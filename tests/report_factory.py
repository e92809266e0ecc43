"""A head drawn from ellipsoids in patient space, and results made of its truth: for the tests of quality and report.

Tissue values are rounded from the literature at 3 T. The head is drawn in LPS mm, so that any geometry, oblique or
sagittal, cuts through the same anatomy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.fft import fast_shape, irfftn, rfftn
from qsm_edge.kernels import dipole
from qsm_edge.quality import assess
from qsm_edge.types import Geometry, GreSeries, Note, Provenance, Result, Source, StageRecord
from qsm_edge.units import rad_per_ppm

ECHOES = (0.005, 0.010, 0.015, 0.020, 0.025)
#: centre [L, P, S], semi-axes [mm], chi [ppm], R2* [1/s]; later ones overwrite earlier ones
CORTEX = ((0, 0, 0), (62, 78, 58), 0.020, 16.0)
WHITE = ((0, 0, 0), (53, 69, 49), -0.030, 21.0)
INNER = (
    ((9, 4, 14), (5, 24, 7), 0.0, 3.0),  # ventricles
    ((-9, 4, 14), (5, 24, 7), 0.0, 3.0),
    ((24, -6, 2), (6, 15, 9), 0.05, 26.0),  # putamen
    ((-24, -6, 2), (6, 15, 9), 0.05, 26.0),
    ((17, -4, -2), (4, 9, 6), 0.13, 38.0),  # pallidum
    ((-17, -4, -2), (4, 9, 6), 0.13, 38.0),
    ((5, 8, -12), (4, 4, 4), 0.13, 38.0),  # red nucleus
    ((-5, 8, -12), (4, 4, 4), 0.13, 38.0),
    ((0, 34, 10), (3, 22, 3), 0.30, 45.0),  # veins
    ((30, 10, 25), (2.5, 2.5, 22), 0.30, 45.0),
    ((-30, 10, 25), (2.5, 2.5, 22), 0.30, 45.0),
)
BLEED = ((28, 30, 4), (12, 10, 11), 0.8, 180.0)  # 5.5 mL
CALCIFICATION = ((-22, 34, -8), (9, 8, 9), -0.6, 120.0)  # 2.7 mL


def lps_mm(geometry: Geometry) -> np.ndarray:
    """Positions of all voxels, (z, y, x, 3)."""
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    return index @ geometry.affine_lps[:3, :3].T + geometry.affine_lps[:3, 3]


def geometry(
    voxel_mm: tuple[float, float, float] = (3.0, 3.0, 3.0),
    slices_along: str = "S",
    tilt_deg: tuple[float, float] = (0.0, 0.0),
    margin_mm: float = 8.0,
    mirrored: bool = False,
) -> Geometry:
    """A box around the head: slices along S, L (sagittal) or P (coronal), turned about two axes.

    Rows and columns run as scanners have them; `mirrored` reverses slices and columns.
    """
    x, y = np.deg2rad(tilt_deg)
    turn = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]) @ np.array(
        [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    )
    l, p, s = np.eye(3)
    axes = {"S": (s, p, l), "L": (l, -s, p), "P": (p, -s, l)}[slices_along]
    reach = {"S": (58, 78, 62), "L": (62, 58, 78), "P": (78, 58, 62)}[slices_along]
    if mirrored:
        axes = (-axes[0], axes[1], -axes[2])
    shape = tuple(int(np.ceil(2 * (r + margin_mm) / v)) for r, v in zip(reach, voxel_mm, strict=True))
    affine = np.eye(4)
    for column, (axis, v) in enumerate(zip(axes, voxel_mm, strict=True)):
        affine[:3, column] = turn @ axis * v
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(shape, affine)  # type: ignore[arg-type]


def head(
    geo: Geometry | None = None,
    echo_times_s: tuple[float, ...] = ECHOES,
    *,
    snr: float = 60.0,
    b0_tesla: float = 3.0,
    extras: tuple[Any, ...] = (),
    seed: int = 0,
    chi_noise_ppm: float = 0.015,
) -> dict[str, Any]:
    """What `quality.assess` takes, from the truth and noise; `snr` is that of white matter at the first echo."""
    geo = geo or geometry()
    rng = np.random.default_rng(seed)
    where = lps_mm(geo)
    chi, rate = np.zeros(geo.shape, np.float32), np.full(geo.shape, 30, np.float32)
    brain = np.zeros(geo.shape, bool)
    for centre, axes, value, r2star in (CORTEX, WHITE, *INNER, *extras):
        inside = (((where - centre) / axes) ** 2).sum(-1) < 1
        chi[inside], rate[inside] = value, r2star
        brain |= inside
    sigma = 3 / np.asarray(geo.voxel_mm)
    texture = ndi.gaussian_filter(rng.standard_normal(geo.shape), sigma)
    chi = np.where(brain, chi + 0.012 * texture / texture.std(), 0).astype(np.float32)
    rate = rate * b0_tesla / 3
    shape = fast_shape(geo.shape, 12)
    local = irfftn(dipole(shape, geo.voxel_mm, geo.b0_dir, chi) * rfftn(chi, shape), shape)
    local = local[tuple(slice(n) for n in geo.shape)]
    l, p, s = np.moveaxis(where, -1, 0) / 60
    field = local + 0.06 * (l**2 - p**2) + 0.08 * s * p + 0.05 * s  # harmonic: from outside
    times = np.asarray(echo_times_s)[:, None, None, None]
    turns = np.stack([rad_per_ppm(b0_tesla, t) * field for t in echo_times_s])
    clean = np.where(brain, 1000.0, 100.0) * np.exp(-times * rate + 1j * turns)
    sd = 1000 * float(np.exp(-21 * b0_tesla / 3 * echo_times_s[0])) / snr
    signal = clean + sd * (rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape))
    misfit = (np.abs(np.abs(signal) * np.exp(1j * turns) - signal) ** 2).sum(0) / (np.abs(signal) ** 2).sum(0)
    chi = chi + chi_noise_ppm * rng.standard_normal(geo.shape)
    strength = np.sqrt((np.abs(signal) ** 2).sum(0))
    series = GreSeries(
        np.abs(signal).astype(np.float32), np.angle(signal).astype(np.float32), echo_times_s, b0_tesla, geo, source()
    )
    several = len(echo_times_s) > 1
    return dict(
        series=series,
        chi_ppm=np.where(brain, chi - chi[brain].mean(), 0).astype(np.float32),
        mask=brain,
        brain=brain,
        field_ppm=np.where(brain, field, 0).astype(np.float32),
        local_ppm=np.where(brain, local, 0).astype(np.float32),
        residual=np.where(brain & (len(echo_times_s) > 2), np.sqrt(misfit), 0).astype(np.float32),
        weight=np.where(brain, strength / strength.max(), 0).astype(np.float32),
        r2star_per_s=np.where(brain, rate + rng.normal(0, 2, geo.shape), 0).astype(np.float32) if several else None,
    )


def source(**changes: Any) -> Source:
    facts = {"protocol": "gre_qsm", "repetition_time_ms": 35.0, "flip_angle_deg": np.float32(15)}
    given: dict[str, Any] = dict(vendor="siemens", encoding="classic", slug="gre_qsm_11", facts=facts)
    return Source(**{**given, **changes})


def provenance(**changes: Any) -> Provenance:
    stages = (
        StageRecord("unwrap", "romeo", {}, 1.5, 300_000_000, 0, "Phases were unwrapped.", ("10.1002/mrm.28563",)),
        StageRecord(
            "invert", "tv", {"weight": 5e-4, "iterations": 40}, 2.25, 500_000_000, 40, "", ("10.1002/mrm.27073",)
        ),
    )
    given: dict[str, Any] = dict(
        software="qsm-edge",
        version="1.2.3",
        recipe_name="default",
        recipe={"invert": {"method": "tv", "weight": np.float64(5e-4)}},
        digest="0f" * 32,
        stages=stages,
        environment={"python": "3.11", "numpy": "2.0"},
        methods_text="Phases were unwrapped (doi:10.1002/mrm.28563).\n\nFields were inverted (doi:10.1002/mrm.27073).",
        derivation="qsm-edge 1.2.3: romeo, tv",
    )
    return Provenance(**{**given, **changes})


def result(parts: dict[str, Any] | None = None, notes: tuple[Note, ...] = (), **changes: Any) -> Result:
    """A whole result from the parts of `head`, its quality assessed."""
    parts = dict(parts or head())
    quality = changes.pop("quality", None) or assess(**parts, notes=notes)
    made = changes.pop("provenance", None) or provenance()
    return Result(**{**parts, "quality": quality, "provenance": made, **changes})
