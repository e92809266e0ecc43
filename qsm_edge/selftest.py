"""Layer 5: the whole chain on a case whose answer is a formula, and the accelerator against the processor.

The case: a ball of water as a head, oblique in the field and sampled unevenly; in it a ball of known susceptibility,
outside it an air-filled one, as a sinus is; the fields of both are analytic.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsm_edge import units
from qsm_edge.progress import Progress
from qsm_edge.types import Geometry, GreSeries

if TYPE_CHECKING:
    from qsm_edge.types import Result

SHAPE = (60, 72, 80)
VOXEL_MM = (1.5, 1.2, 1.0)
TILT_RAD = (0.35, -0.2)
HEAD_RADIUS_MM = 34.0
BALL_RADIUS_MM = 9.0
BALL_CENTRE_MM = (4.0, -6.0, 5.0)
BALL_CHI_PPM = 0.2
AIR_RADIUS_MM = 6.0
AIR_CENTRE_MM = (-6.0, -40.0, 12.0)
AIR_CHI_PPM = 9.4
B0_TESLA = 3.0
ECHO_TIMES_S = (0.005, 0.010, 0.015, 0.020, 0.025)
NOISE = 0.005

#: What a sound installation keeps to. The field is limited by noise; chi by regularisation and background removal.
FIELD_ERROR_PPM = 0.002
CHI_ERROR_PPM = 0.04
DEVICE_DIFFERENCE_PPM = 0.002


def oblique_geometry() -> Geometry:
    """The grid of the case: two tilts, so that B0 lies along none of its axes."""
    a, b = TILT_RAD
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    x, y, z = (about_x @ about_y).T
    affine = np.eye(4)
    affine[:3, :3] = np.stack([z, y, x], axis=1) * VOXEL_MM
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) / 2)
    return Geometry(SHAPE, affine)


def offsets_mm(geometry: Geometry, centre_mm: tuple[float, float, float]) -> list[np.ndarray]:
    """Offsets (z, y, x) [mm] of every voxel from a point given in mm from the middle of the grid, to broadcast."""
    axes = [
        (np.arange(n) - n / 2) * voxel - centre
        for n, voxel, centre in zip(geometry.shape, geometry.voxel_mm, centre_mm, strict=True)
    ]
    return [axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]]


def ball(
    geometry: Geometry, centre_mm: tuple[float, float, float], radius_mm: float, samples: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Share of each voxel inside a ball, and the ball's field per unit of susceptibility, both (z, y, x) float64.

    Outside ``(a / r)^3 (cos^2 - 1 / 3)``, inside 0 (Lorentz-corrected). Voxels that the surface may cut are averaged
    over samples^3 points: a hard-edged ball on an oblique grid misses the formula by a tenth.

    Source: Haacke et al., Magnetic Resonance Imaging: Physical Principles and Sequence Design, 1999, chapter 25.
    """
    at = np.stack(np.broadcast_arrays(*offsets_mm(geometry, centre_mm)))
    share, field = _ball_at(at, radius_mm, geometry.b0_dir)
    voxel = np.array(geometry.voxel_mm)
    cut = np.abs(np.sqrt((at**2).sum(axis=0)) - radius_mm) <= np.linalg.norm(voxel)
    steps = (np.arange(samples) + 0.5) / samples - 0.5
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, 1, -1) * voxel[:, None, None]
    cut_share, cut_field = _ball_at(at[:, cut][:, :, None] + points, radius_mm, geometry.b0_dir)
    share[cut], field[cut] = cut_share.mean(axis=1), cut_field.mean(axis=1)
    return share, field


def _ball_at(at: np.ndarray, radius_mm: float, b0_dir: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Inside (1.0) or not (0.0), and the field per unit of susceptibility, at the points `at` (3, ...) in mm."""
    r2 = (at**2).sum(axis=0)
    outside = r2 > radius_mm**2
    safe = np.where(outside, r2, 1.0)
    cos2 = np.tensordot(np.array(b0_dir), at, axes=1) ** 2 / safe
    return (~outside).astype(float), np.where(outside, radius_mm**3 / safe**1.5 * (cos2 - 1 / 3), 0.0)


def phantom() -> tuple[GreSeries, np.ndarray, np.ndarray, np.ndarray]:
    """The series, and its truth: mask (bool), total field [ppm] and susceptibility [ppm], all (z, y, x)."""
    geometry = oblique_geometry()
    head, _ = ball(geometry, (0.0, 0.0, 0.0), HEAD_RADIUS_MM)
    inner, inner_field = ball(geometry, BALL_CENTRE_MM, BALL_RADIUS_MM)
    _, air_field = ball(geometry, AIR_CENTRE_MM, AIR_RADIUS_MM)
    mask = head > 0.5
    field = BALL_CHI_PPM * inner_field + AIR_CHI_PPM * air_field
    draw = np.random.default_rng(20260101)
    echoes = []
    for echo_time in ECHO_TIMES_S:
        phase = 0.4 + units.rad_per_ppm(B0_TESLA, echo_time) * field
        signal = np.where(mask, np.exp(-20.0 * echo_time), 0.0) * np.exp(1j * phase)
        echoes.append(signal + NOISE * (draw.standard_normal(SHAPE) + 1j * draw.standard_normal(SHAPE)))
    signal = np.stack(echoes).astype(np.complex64)
    series = GreSeries(1000 * np.abs(signal), np.angle(signal), ECHO_TIMES_S, B0_TESLA, geometry)
    return series, mask, field, BALL_CHI_PPM * inner


def measure(result: Result, mask: np.ndarray, field: np.ndarray, chi: np.ndarray) -> dict[str, float]:
    """Errors of a result on the phantom: field [ppm, standard deviation], susceptibility of the ball [ppm], cover."""
    away = np.sqrt(sum(offset**2 for offset in offsets_mm(result.series.geometry, BALL_CENTRE_MM)))
    inside = (away < BALL_RADIUS_MM - 2) & result.mask
    around = (away > BALL_RADIUS_MM + 3) & (away < BALL_RADIUS_MM + 10) & result.mask
    reads = float(result.chi_ppm[inside].mean() - result.chi_ppm[around].mean())
    where = result.mask & mask
    return {
        "field_error_ppm": float(np.std((result.field_ppm - field)[where])),
        "chi_true_ppm": BALL_CHI_PPM,
        "chi_read_ppm": reads,
        "chi_error_ppm": abs(reads - BALL_CHI_PPM),
        "chi_nrmse_percent": float(100 * np.linalg.norm((result.chi_ppm - chi)[where]) / np.linalg.norm(chi[where])),
        "mask_kept": float(where.sum() / mask.sum()),
    }


def self_test(devices: Sequence[str], progress: Progress) -> Iterator[dict[str, Any]]:
    """Run recipe `default` on the phantom on each of `devices`, the CPU first, and compare with formula and CPU.

    Yields a record for each: device, seconds, what `measure` says, the largest difference from the CPU, and `problems`.
    """
    from qsm_edge.pipeline import reconstruct

    series, mask, field, chi = phantom()
    on_cpu: np.ndarray | None = None
    for device in devices:
        progress.label = f"self-test on {device}"
        begin = time.perf_counter()
        result = reconstruct(series, mask=mask, device=device, progress=progress)
        record: dict[str, Any] = {"device": device, "seconds": round(time.perf_counter() - begin, 2)}
        record |= measure(result, mask, field, chi)
        on_cpu = result.chi_ppm if on_cpu is None else on_cpu
        record["largest_difference_from_cpu_ppm"] = float(np.abs(result.chi_ppm - on_cpu).max())
        record["problems"] = problems(record)
        progress.label = ""
        yield record


def problems(record: dict[str, Any]) -> list[str]:
    """Sentences about the measures of a record that are out of bounds; NaN is out of bounds."""
    bounds = {
        "field_error_ppm": (FIELD_ERROR_PPM, "the field map misses the analytic field"),
        "chi_error_ppm": (CHI_ERROR_PPM, "the susceptibility of the ball is wrong"),
        "largest_difference_from_cpu_ppm": (DEVICE_DIFFERENCE_PPM, "the device computes another map than the CPU"),
    }
    return [
        f"{text}: {record[name]:.4g} ppm, at most {bound:g}"
        for name, (bound, text) in bounds.items()
        if not record[name] <= bound
    ]
