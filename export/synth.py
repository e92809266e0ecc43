"""Synthetic gradient-echo heads with their brain masks: ``python -m export.synth --help`` (writes samples and a contact sheet).

A head (`anatomy.Anatomy`) is deformed, tilted and cut to a random slab, painted with random tissue values, dephased by the
field of its own air, bone and bleeds, seen by random coils, made noisy and artefacted. Variety beats realism (Billot et al.,
Med Image Anal 2023, doi:10.1016/j.media.2023.102789; Hoopes et al., NeuroImage 2022, doi:10.1016/j.neuroimage.2022.119474).
Everything follows from one seed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from export.anatomy import (
    BRAIN,
    CLASSES,
    CODE,
    FIELD_STEP,
    FIRST_LESION,
    LESIONS,
    OUTSIDE,
    TISSUE,
    Anatomy,
    closed,
    codes,
)
from export.degrade import coil_sensitivity, degraded, smooth_field
from export.world import Protocol, World, random_protocol
from qsm_edge.fft import fast_shape, irfftn, rfftn
from qsm_edge.kernels import dipole
from qsm_edge.types import Geometry
from qsm_edge.units import hz_per_ppm

LOOKUPS = 5  # points of the label map that are read a voxel: partial volume
BRAIN_LIKE = ("grey", "cerebellar_grey", "hippocampus", "accumbens", "caudate", "putamen")


@dataclass(frozen=True)
class Sample:
    """magnitude (echo, z, y, x) float32; mask, tissue, lesion, foreign: shares 0..1 of each voxel (tissue: brain, ventricles
    and lesions, whose closing is the mask; foreign: scalp, bone, eyes, dural sinuses); geometry: axes S, P, L of the slab;
    protocol: how it was made; head: whose label map."""

    magnitude: np.ndarray
    mask: np.ndarray
    tissue: np.ndarray
    lesion: np.ndarray
    foreign: np.ndarray
    geometry: Geometry
    protocol: Protocol
    head: str


def sample(anatomies: list[Anatomy], seed: int, protocol: Protocol | None = None, *, plain: bool = False) -> Sample:
    """One head, one acquisition. The same seed gives the same bits. `plain`: the tissue values and the coil of `TISSUE`,
    no artefacts (noise stays), for evaluation under a given `protocol`."""
    rng = np.random.default_rng(seed)
    anatomy = anatomies[int(rng.integers(len(anatomies)))]
    how = protocol or random_protocol(rng)
    index, hull, strengths = _with_lesions(anatomy, rng)
    world = World.draw(anatomy, how, hull, rng, plain)
    box_mm, step_mm, shape = world.field_of_view(how, rng)
    points = [
        start + (np.arange(n, dtype=np.float32) + 0.5) * step
        for (start, _), step, n in zip(box_mm, step_mm, shape, strict=True)
    ]
    at = world.label_points(points)

    values = _appearance(how, rng, plain, strengths)  # (echo, class)
    chi_lesion = np.zeros(256, np.float32)
    chi_lesion[FIRST_LESION : FIRST_LESION + len(strengths)] = [s[0] for s in strengths]
    foreign_codes, brain_codes = codes(*OUTSIDE, "sinus"), codes(*BRAIN)
    brain_codes[FIRST_LESION:] = True
    signal = np.zeros((len(how.te_s), *shape), np.float32)
    mask, tissue, lesion, foreign, blood = (np.zeros(shape, np.float32) for _ in range(5))
    for number in range(LOOKUPS):
        jitter = [
            ((number * phi + float(rng.random())) % 1 - 0.5) * s
            for phi, s in zip((0.2, 0.4, 0.6), step_mm, strict=True)
        ]
        flat = world.flat(at, jitter, index.shape)
        found = np.where(flat >= 0, index.ravel()[flat], 0)
        inside = np.where(flat >= 0, hull.ravel()[flat], False)
        for echo, table in enumerate(values):
            signal[echo] += table[found]
        mask += inside
        tissue += brain_codes[found]
        lesion += found >= FIRST_LESION
        foreign += foreign_codes[found] & ~inside
        if strengths:
            blood += chi_lesion[found]
    signal, mask, tissue, lesion, foreign, blood = (
        volume / LOOKUPS for volume in (signal, mask, tissue, lesion, foreign, blood)
    )

    hertz = _field(world, anatomy, at, blood, mask, step_mm, rng, plain) * np.float32(hz_per_ppm(how.b0_tesla))
    signal *= _dephasing(hertz, how, step_mm)
    signal *= _texture(shape, step_mm, rng)
    signal *= coil_sensitivity(points, rng, plain, how.coil_depth)
    spread = float(np.prod([min(1.0, v / s) for v, s in zip(how.voxel_mm, step_mm, strict=True)]))
    dark = (signal[0] < 2.5 * how.noise) & (lesion < 0.3)
    lost = ndi.binary_propagation(mask < 0.5, mask=(mask < 0.5) | dark) & (mask >= 0.5)
    mask, tissue = np.where(lost, 0, mask), np.where(lost, 0, tissue)
    magnitude = degraded(signal, how.noise * spread**0.5, rng, plain)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, step_mm[2]], [0, step_mm[1], 0], [step_mm[0], 0, 0]])
    geometry = Geometry(shape, affine, tuple(world.b0))
    return Sample(magnitude, mask, tissue, lesion, foreign, geometry, how, anatomy.name)


def _with_lesions(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[tuple[float, ...]]]:
    """Label map and mask with up to LESIONS lesions, and what each is: (chi, proton density, R2* at 3 T, T1)."""
    count = int(rng.integers(1, LESIONS + 1)) if rng.random() < 0.55 else 0
    if not count:
        return anatomy.index, anatomy.hull, []
    index, hull = anatomy.index.copy(), anatomy.hull.copy()
    brain = codes(*CLASSES[1:15])
    room = codes(*CLASSES[1:15], "csf")
    strengths = []
    for number in range(count):
        where = anatomy.shallow if rng.random() < 0.55 else anatomy.deep
        at = where[int(rng.integers(len(where)))].astype(float)
        volume = float(np.exp(rng.uniform(np.log(200), np.log(25000)))) * (0.3 if rng.random() < 0.5 else 1)
        radii = (volume * 3 / (4 * np.pi)) ** (1 / 3) * np.exp(rng.normal(0, 0.2, 3)) / anatomy.spacing_mm
        reach = np.ceil(radii.max() * 1.3).astype(int) + 12
        low = np.maximum(at.astype(int) - reach, 0)
        high = np.minimum(at.astype(int) + reach + 1, index.shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        offsets = (
            np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"))
            - at[:, None, None, None]
        )
        turned = np.tensordot(np.linalg.qr(rng.standard_normal((3, 3)))[0], offsets, axes=1)
        bumps = ndi.zoom(
            rng.normal(0, 0.25, (4, 4, 4)), [n / 4 for n in offsets.shape[1:]], order=1, grid_mode=True, mode="nearest"
        )
        blob = ((turned / radii[:, None, None, None]) ** 2).sum(0) < 1 + bumps
        blob &= room[index[box]]
        index[box][blob] = FIRST_LESION + number
        solid = closed(brain[index[box]] | (index[box] >= FIRST_LESION), anatomy.spacing_mm)
        inner = tuple(
            slice(8 if a > 0 else 0, -8 if b < n else None) for a, b, n in zip(low, high, index.shape, strict=True)
        )
        hull[box][inner] |= (solid & ~anatomy.barred[box])[inner]
        kind = rng.random()
        if kind < 0.65:  # a bleed, from fresh to old
            chi = float(rng.uniform(0.2, 1.4))
            strengths.append((chi, float(rng.uniform(0.3, 0.8)), 150 + 100 * chi * float(rng.uniform(0.5, 2)), 1.2))
        elif kind < 0.82:  # a calcification
            strengths.append(
                (-float(rng.uniform(0.5, 3)), float(rng.uniform(0.1, 0.6)), float(rng.uniform(80, 400)), 0.8)
            )
        else:  # a cavity, filled
            strengths.append((0.0, float(rng.uniform(0.7, 1)), float(rng.uniform(2, 30)), float(rng.uniform(1, 4))))
    return index, hull, strengths


def _appearance(how: Protocol, rng: np.random.Generator, plain: bool, strengths: list[tuple[float, ...]]) -> np.ndarray:
    """Signal (echo, 256) float32 of each class before coils, dephasing and noise."""
    table = np.array([TISSUE[name] for name in CLASSES] + list(strengths))
    rho, r2s, t1 = table[:, 1].copy(), table[:, 2].copy(), table[:, 3].copy()
    weight = np.ones(len(table))
    foreign = np.array(
        [name in (*OUTSIDE, "sinus", "artery", "nerve", "cord") for name in CLASSES] + [False] * len(strengths)
    )
    if not plain:
        style = rng.random()
        spread = np.where(foreign, 0.35, 0.08)
        rho *= np.exp(rng.normal(0, 1, len(rho)) * spread)
        r2s *= np.exp(rng.normal(0, 1, len(rho)) * np.where(foreign, 0.5, 0.25)) * float(rng.uniform(0.8, 1.3))
        t1 *= np.exp(rng.normal(0, 0.15, len(rho)))
        if style > 0.35:  # spoiled steady state: fat and white matter bright, CSF dark, blood bright by inflow
            tr, flip = float(rng.uniform(0.01, 0.06)), np.deg2rad(rng.uniform(4, 35))
            e1 = np.exp(-tr / (t1 * (how.b0_tesla / 3) ** 0.35))
            weight = np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1)
            weight /= weight[CODE["grey"]]
            weight[CODE["artery"]] *= float(rng.uniform(0.5, 3))
            weight[CODE["sinus"]] *= float(rng.uniform(0.5, 2))
        if style > 0.75:  # any contrast at all; what is alike in the brain stays roughly alike
            level = rng.uniform(0.05, 1.0, len(rho))
            grey = rng.uniform(0.2, 1.0)
            for name in BRAIN_LIKE:
                level[CODE[name]] = grey * np.exp(rng.normal(0, 0.08))
            white = rng.uniform(0.2, 1.0) if rng.random() < 0.7 else grey
            for name in ("white", "cerebellar_white", "brainstem", "thalamus", "pallidum", "ventral_dc"):
                level[CODE[name]] = white * np.exp(rng.normal(0, 0.1))
            level[CODE["ventricle"]] = level[CODE["csf"]] * np.exp(rng.normal(0, 0.1))
            level[CODE["bone"]] = rng.uniform(0, 0.25) if rng.random() < 0.85 else level[CODE["bone"]]
            level[FIRST_LESION:] = rng.uniform(0, 1.2, len(strengths))
            level[0] = 0
            rho, weight = level, np.ones(len(rho))
    signal = np.zeros((len(how.te_s), 256), np.float32)
    for echo, te in enumerate(how.te_s):
        signal[echo, : len(rho)] = rho * weight * np.exp(-te * r2s * how.b0_tesla / 3)
    return signal


def _field(
    world: World, anatomy: Anatomy, at: list[np.ndarray], blood: np.ndarray, mask: np.ndarray,
    step_mm: tuple[float, ...], rng: np.random.Generator, plain: bool,
) -> np.ndarray:  # fmt: skip
    """Relative field [ppm] without its mean gradient over the brain: air and bone from the anatomy's products, lesions anew."""
    label_b0 = world.matrix @ world.b0
    b = label_b0 / np.linalg.norm(label_b0)
    factors = (b[0] ** 2, b[1] ** 2, b[2] ** 2, b[0] * b[1], b[0] * b[2], b[1] * b[2])
    total = sum(np.float32(-f) * p.astype(np.float32) for f, p in zip(factors, anatomy.products, strict=True))
    where = np.stack([(p + 0.5) / FIELD_STEP - 0.5 for p in at])
    field = ndi.map_coordinates(total, where, order=1, mode="nearest", output=np.float32) * np.float32(world.air_scale)
    if blood.any():
        padded = fast_shape(blood.shape, 8)
        kernel = dipole(padded, step_mm, tuple(world.b0), blood)  # type: ignore[arg-type]
        field += irfftn(rfftn(blood, padded) * kernel, padded)[tuple(slice(n) for n in blood.shape)]
    inside = mask > 0.5
    if inside.sum() > 1000:
        spots = np.argwhere(inside)[:: max(1, int(inside.sum()) // 4000)]
        design = np.c_[np.ones(len(spots)), spots]
        shim = np.linalg.lstsq(design, field[tuple(spots.T)].astype(float), rcond=None)[0]
        lines = [shim[1 + a] * np.arange(n) for a, n in enumerate(field.shape)]
        field -= (shim[0] + lines[0][:, None, None] + lines[1][None, :, None] + lines[2][None, None, :]).astype(
            np.float32
        )
    if not plain and rng.random() < 0.5:  # a poor shim
        field += smooth_field(field.shape, step_mm, 60.0, rng) * np.float32(rng.uniform(0, 0.6))
    return field


def _dephasing(hertz: np.ndarray, how: Protocol, step_mm: tuple[float, ...]) -> np.ndarray:
    """What is left of the signal when the field varies linearly in the acquired voxel: (echo, z, y, x)."""
    out = np.ones((len(how.te_s), *hertz.shape), np.float32)
    for slope, voxel, step in zip(np.gradient(hertz), how.voxel_mm, step_mm, strict=True):
        across = slope * np.float32(voxel / step)
        for echo, te in enumerate(how.te_s):
            out[echo] *= np.abs(np.sinc(across * np.float32(te)))
    return out


def _texture(shape: tuple[int, ...], step_mm: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Tissue is not uniform: a factor about 1."""
    return np.exp(smooth_field(shape, step_mm, float(rng.uniform(3, 12)), rng) * np.float32(rng.uniform(0, 0.08)))


def main(arguments: list[str] | None = None) -> int:
    """A contact sheet of random samples, for a person to judge."""
    from export.data import WORK, Source, made
    from export.pictures import Panel, sheet

    parser = argparse.ArgumentParser(
        prog="export.synth", description="a contact sheet of synthetic heads with their masks"
    )
    parser.add_argument("out", type=Path, help="the .png to write")
    parser.add_argument(
        "--label-maps", type=Path, help="folder with head label maps; procedural heads where it is not given"
    )
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the first sample; the others follow")
    args = parser.parse_args(arguments)
    heads = Source(args.label_maps, "train", WORK).anatomies
    panels = []
    for seed in range(args.seed, args.seed + args.samples):
        one = sample(heads, seed)
        pair = made(one)
        how = one.protocol
        caption = f"{seed}: {one.head}, {how.b0_tesla:g} T, {how.te_s[0] * 1e3:.0f} ms, " + " x ".join(
            f"{v:.1f}" for v in how.voxel_mm
        )
        panels.append(
            Panel(
                pair.tensor.astype(np.float32),
                (2.0, 2.0, 2.0),
                {"red": pair.mask > 127, "cyan": pair.lesion > 127},
                caption,
            )
        )
    sheet(panels, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
