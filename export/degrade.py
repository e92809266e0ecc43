"""What coils, noise and reconstruction do to a magnitude image: sensitivity, noise, ringing, ghosts, wrap-around, zeroed air."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft
import scipy.ndimage as ndi


def smooth_field(
    shape: Sequence[int], step_mm: Sequence[float], width_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Random, smooth over `width_mm`, mean about 0, standard deviation about 1; float32. Made coarse, then interpolated."""
    coarse = [max(2, int(np.ceil(n * s / width_mm)) + 2) for n, s in zip(shape, step_mm, strict=True)]
    out = rng.standard_normal(coarse).astype(np.float32) * np.float32(1.6)  # interpolation takes variance away
    for axis, (n, m) in enumerate(zip(shape, coarse, strict=True)):
        at = np.linspace(0.5, m - 1.5, n) if m > 2 else np.linspace(0, 1, n)
        low = np.clip(np.floor(at).astype(int), 0, m - 2)
        share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        share = share * share * (3 - 2 * share)
        out = np.take(out, low, axis) * (1 - share) + np.take(out, low + 1, axis) * share
    return np.asarray(out, np.float32)


def coil_sensitivity(
    points: Sequence[np.ndarray], rng: np.random.Generator, plain: bool, depth: float | None = None
) -> np.ndarray:
    """Receive (and transmit) profile at the points [mm from the brain's middle; z, y, x], about 1, float32.

    Random; the usual one where `plain`; with a given `depth` the profile of that depth, see `world.Protocol`.
    """
    fixed = plain or depth is not None
    z, y, x = (p.reshape([-1 if a == axis else 1 for a in range(3)]) for axis, p in enumerate(points))

    def bell(centre: Sequence[float], widths: Sequence[float]) -> np.ndarray:
        square = sum(((p - c) / w) ** 2 for p, c, w in zip((z, y, x), centre, widths, strict=True))
        return np.asarray(np.exp(-np.asarray(square, np.float32)))

    style = 0.3 if fixed else float(rng.random())
    if style < 0.2:  # normalised by the scanner
        profile = np.ones((z.size, y.size, x.size), np.float32)
    elif style < 0.6:
        deep = depth if depth is not None else 0.7 if plain else float(rng.uniform(0.2, 1.0))
        move = np.zeros(3) if fixed else rng.normal(0, 20, 3)
        profile = 1.3 - deep * bell(np.add(move, (0, 30 if fixed else 0, 0)), (160, 140, 150))
    elif style < 0.85:  # a few elements around the head, as sum of squares
        total = np.full((z.size, y.size, x.size), 0.02, np.float32)
        for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(4, 10))):
            centre = (rng.uniform(-60, 90), 120 * np.sin(angle), 100 * np.cos(angle))
            total += rng.uniform(0.4, 1) * bell(centre, np.full(3, rng.uniform(60, 120)))
        profile = np.sqrt(total)
        profile /= profile.mean()
    else:  # dielectric: bright in the middle
        profile = 0.35 + rng.uniform(0.4, 1.2) * bell(rng.normal(0, 15, 3), rng.uniform(60, 130, 3))
    if not fixed and rng.random() < 0.4:
        steps = [float(p[1] - p[0]) for p in points]
        profile = profile * np.exp(smooth_field(profile.shape, steps, 70.0, rng) * np.float32(rng.uniform(0, 0.25)))
    return np.asarray(profile, np.float32)


def degraded(signal: np.ndarray, noise: float, rng: np.random.Generator, plain: bool) -> np.ndarray:
    """Magnitude (echo, z, y, x) of a real signal with noise of standard deviation `noise` a component, and artefacts."""
    artefacts = not plain
    shape = signal.shape[1:]
    window = _window(shape, rng) if artefacts and rng.random() < 0.5 else None
    ghost = _ghost(rng) if artefacts and rng.random() < 0.12 else None
    wrap = (int(rng.integers(1, 3)), int(rng.integers(5, 25))) if artefacts and rng.random() < 0.08 else None
    echoes = []
    for echo in signal:
        clean = echo
        if window is not None:
            spectrum = scipy.fft.rfftn(clean)
            for part in window:
                spectrum *= part
            clean = scipy.fft.irfftn(spectrum, shape, overwrite_x=True)
        if ghost is not None:
            axis, shift, strength = ghost
            clean = clean + strength * np.roll(clean, shift, axis)
        if wrap is not None:
            axis, width = wrap
            edge = [slice(None)] * 3
            edge[axis] = slice(-width, None)
            other = [slice(None)] * 3
            other[axis] = slice(0, width)
            clean = clean.copy()
            clean[tuple(other)] += 0.8 * clean[tuple(edge)]
        real = clean + noise * rng.standard_normal(shape, dtype=np.float32)
        echoes.append(np.hypot(real, noise * rng.standard_normal(shape, dtype=np.float32)))
    magnitude = np.stack(echoes).astype(np.float32)
    if artefacts and rng.random() < 0.15:  # scanners blank the air
        smooth = ndi.uniform_filter(magnitude[0], 3)
        magnitude *= smooth > max(3 * noise, float(rng.uniform(0.01, 0.06)) * float(np.percentile(magnitude[0], 99)))
    if artefacts and rng.random() < 0.06:  # zero-filled edges
        axis, width = int(rng.integers(3)), int(rng.integers(2, 8))
        magnitude = np.moveaxis(magnitude, axis + 1, 1).copy()
        magnitude[:, :width] = 0
        magnitude[:, -width:] = 0
        magnitude = np.ascontiguousarray(np.moveaxis(magnitude, 1, axis + 1))
    return magnitude


def _window(shape: Sequence[int], rng: np.random.Generator) -> list[np.ndarray]:
    """A factor for each axis of the half spectrum: cut sharply (ringing), or filtered."""
    kept, taper = float(rng.uniform(0.65, 1.0)), float(rng.choice([0.0, rng.uniform(0.1, 0.8)]))
    parts = []
    for axis, n in enumerate(shape):
        k = np.abs(scipy.fft.rfftfreq(n) if axis == 2 else scipy.fft.fftfreq(n)) / (0.5 * kept)
        fall = np.clip((k - (1 - taper)) / max(taper, 1e-6), 0, 1) if taper else (k > 1).astype(float)
        part = 0.5 * (1 + np.cos(np.pi * fall)) * (k <= 1)
        parts.append(part.reshape([-1 if a == axis else 1 for a in range(3)]).astype(np.float32))
    return parts


def _ghost(rng: np.random.Generator) -> tuple[int, int, float]:
    return int(rng.integers(0, 3)), int(rng.integers(15, 60)), float(rng.uniform(0.01, 0.06))
