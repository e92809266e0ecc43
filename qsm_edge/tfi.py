"""Layer 3: background field by linear total-field inversion, coarse to fine (a member of `background.METHODS`)."""

from __future__ import annotations

import math

import numpy as np

from qsm_edge import kernels
from qsm_edge.backend import namespace
from qsm_edge.fft import Triple, covering, fast_shape, irfftn, irfftn_near, pad, rfftn, rfftn_near, wavenumbers
from qsm_edge.solvers import dot
from qsm_edge.types import Array, Geometry, OnIteration


def tfi(
    field_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    inside_ppm: float = 0.02,
    outside_ppm: float = 3.0,
    noise_ppm: float = 0.002,
    length_mm: float = 3.0,
    doubtful_weight: float = 0.5,
    loosest: float = 20.0,
    margin_mm: float = 24.0,
    coarse_mm: float = 2.0,
    iterations: int = 70,
    on_iteration: OnIteration | None = None,
) -> tuple[Array, Array]:
    """Background as the outside part of the most probable sources of the whole field, keeping the whole mask.

    PDF explains the field by sources outside alone and lets the local field pass as noise; near the surface that fails,
    because outside sources can mimic inside ones. Here both are estimated together: chi = s_out y outside the mask and
    chi = s_in H v inside it, with y and v white, H a low-pass of correlation length `length_mm` (tissue is smooth at that
    scale), and s_out, s_in the spreads `outside_ppm` (bone and air) and `inside_ppm`. Where the weight is below
    `doubtful_weight`, s_in grows in proportion, up to `loosest` times: a signal that decays that fast is a bleed or a
    calcification, whose susceptibility is far from tissue's; without that, its field at the surface is taken for a
    background. Minimises

        |W (D chi - f)|^2 / noise_ppm^2 + |y|^2 + |v|^2

    by conjugate gradients, and only D chi_out is subtracted. The spreads act as the preconditioner, outside lowered a
    little towards the surface. The background is smooth: it is solved on a grid of about `coarse_mm`, then interpolated.

    Source: joint estimation after Liu et al., MRM 2017, doi:10.1002/mrm.26331 (preconditioned total-field inversion),
    and Liu et al., NMR Biomed 2011, doi:10.1002/nbm.1670 (PDF); the correlated inner prior is ours.
    """
    xp = namespace(field_ppm)
    inside = xp.astype(mask, xp.float32)
    centre = xp.sum(field_ppm * inside * weight) / xp.sum(inside * weight)
    centred = (field_ppm - centre) * inside
    factors = tuple(max(1, int(coarse_mm / v + 0.25)) for v in geometry.voxel_mm)
    spreads = (inside_ppm, outside_ppm, noise_ppm, length_mm)
    field, trust, part = _coarse(centred, weight * inside, inside, factors)
    loose = 1 / xp.clip(trust / doubtful_weight, 1 / loosest, 1.0)
    voxel = tuple(v * f for v, f in zip(geometry.voxel_mm, factors, strict=True))
    model = _Model(part, loose, voxel, geometry.b0_dir, spreads, margin_mm)
    outside = model.solve(field, trust, iterations, on_iteration)
    background = _refined(model.field(outside), factors, field_ppm.shape)
    return (centred - background) * inside, mask


class _Model:
    """The joint prior and the dipole response on one grid.

    Sources outside are `out` [ppm], zero inside; those inside are `inner` times a white volume that the low-pass smooths,
    which is carried as its half spectrum on a smaller grid. The field counts on the unpadded grid alone.
    """

    def __init__(
        self,
        inside: Array,
        loose: Array,
        voxel_mm: tuple[float, ...],
        b0_dir: tuple[float, float, float],
        spreads: tuple[float, float, float, float],
        margin_mm: float,
    ) -> None:
        xp = namespace(inside)
        inside_ppm, self.outside_ppm, self.noise_ppm, length_mm = spreads
        voxel = (float(voxel_mm[0]), float(voxel_mm[1]), float(voxel_mm[2]))
        self.small: Triple = tuple(inside.shape)  # type: ignore[assignment]
        self.shape = fast_shape(self.small, covering(margin_mm, voxel))
        self.response = kernels.dipole(self.shape, voxel, b0_dir, inside)
        # Correlation falls to 5 % over three lengths: beyond, the two ends of this grid do not know of each other.
        self.near = fast_shape(self.small, covering(3 * length_mm, voxel))
        k = wavenumbers(self.near, voxel, inside)
        lowpass = 1 / xp.sqrt(1 + (2 * math.pi * length_mm) ** 2 * (k[0] ** 2 + k[1] ** 2 + k[2] ** 2))
        power = lowpass**2  # summed over the whole spectrum, so that the prior's spread stays inside_ppm on any grid
        total = 2 * xp.sum(power) - xp.sum(power[:, :, 0]) - xp.sum(power[:, :, -1])  # the shape is even
        self.lowpass = lowpass / math.sqrt(float(total) / math.prod(self.near))
        self.inner = inside_ppm * inside * loose
        self.outside = 1 - pad(inside, self.shape)

    def field(self, sources: Array) -> Array:
        """Field of sources on the padded grid, on the unpadded one."""
        return irfftn_near(self.response * rfftn(sources), self.shape, self.small)

    def _missed(self, weighted: Array) -> Array:
        """The adjoint of `field`."""
        return irfftn(self.response * rfftn_near(weighted, self.shape), self.shape)

    def solve(self, field: Array, weight: Array, iterations: int, tell: OnIteration | None) -> Array:
        """The sources outside that explain `field` at the weights together with those inside."""
        xp = namespace(field)
        power = (weight / self.noise_ppm) ** 2
        near = tuple(slice(n) for n in self.small)

        def adjoint(weighted: Array) -> tuple[Array, Array]:
            miss = self._missed(weighted)
            return miss, self.lowpass * rfftn_near(self.inner * miss[near], self.near)

        scale = self._preconditioner(power)
        residual = adjoint(power * field)
        out, step = xp.zeros_like(scale), (scale * residual[0], residual[1])
        left = self._product(step, residual)
        goal = 1e-10 * left
        for number in range(1, iterations + 1):
            if left <= goal:
                break
            sources = step[0] + 0
            sources[near] += self.inner * irfftn_near(self.lowpass * step[1], self.near, self.small)
            miss, smooth = image = adjoint(power * self.field(sources))
            miss += step[0] * (1 / self.outside_ppm**2)
            smooth += step[1]
            length = left / max(self._product(step, image), 1e-300)
            out += length * step[0]
            residual = (residual[0] - length * miss, residual[1] - length * smooth)
            steepest = (scale * residual[0], residual[1])
            before, left = left, self._product(steepest, residual)
            if tell:
                tell(number, left**0.5)
            step = (steepest[0] + (left / before) * step[0], steepest[1] + (left / before) * step[1])
        return out

    def _product(self, one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
        """Inner product of two pairs of sources outside and half a spectrum inside."""
        xp = namespace(one[0])
        # The first and the last plane are in the whole spectrum once, all others twice; lengths are even.
        parts = ((2, slice(None)), (-1, slice(0, 1)), (-1, slice(-1, None)))
        twice = sum(
            times * float(xp.sum(xp.real(xp.vecdot(one[1][:, :, part], other[1][:, :, part])), dtype=xp.float64))
            for times, part in parts
        )
        return dot(one[0], other[0]) + twice / math.prod(self.near)

    def _preconditioner(self, power: Array) -> Array:
        """Variance of the sources outside, somewhat less where the field tells more of a source: next to the surface.

        How much it tells is the diagonal of the normal equations. Its power of -0.1 halves the iterations; more of it leaves
        the core behind, because what little many far sources tell together is worth more than one of them (bench/NOTES.md).
        """
        xp = namespace(power)
        one = irfftn(xp.astype(self.response, xp.complex64), self.shape)
        told = irfftn(rfftn(one**2) * rfftn_near(power, self.shape), self.shape) * self.outside_ppm**2
        return self.outside_ppm**2 * self.outside * (1 + xp.maximum(told, xp.zeros_like(told))) ** -0.1


def _coarse(field: Array, weight: Array, inside: Array, factors: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Weighted block means of the field, the blocks' root-mean-square weights and which blocks are inside."""
    xp = namespace(field)
    if max(factors) == 1:
        return field, weight, inside
    shape = tuple(-(-n // f) * f for n, f in zip(field.shape, factors, strict=True))
    split: list[int] = []
    for n, f in zip(shape, factors, strict=True):
        split += [n // f, f]

    def blocks(x: Array) -> Array:
        return xp.mean(xp.reshape(pad(x, shape), tuple(split)), axis=(1, 3, 5))  # type: ignore[arg-type]

    # A block counts as inside when most of it is: the rim between is read off neither side wrongly for long, while
    # demanding whole blocks or taking any costs 2 % and 30 % of accuracy in the core (bench/NOTES.md).
    power = blocks(weight**2)
    within = xp.astype(blocks(inside) >= 0.5, field.dtype)
    tiny = 1e-12
    return blocks(field * weight**2) / (power + tiny), xp.sqrt(power) * within, within


def _refined(x: Array, factors: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Block-centred volume brought to the fine grid by cubic (Catmull-Rom) interpolation, one axis at a time."""
    xp = namespace(x)
    for axis, (factor, n) in enumerate(zip(factors, shape, strict=True)):
        if factor == 1:
            x = x[tuple(slice(n) if a == axis else slice(None) for a in range(3))]
            continue
        at = (np.arange(n) + 0.5) / factor - 0.5
        base = np.floor(at).astype(np.int64)
        t = (at - base).astype(np.float32)
        taps = (
            (-t + 2 * t**2 - t**3) / 2,
            (2 - 5 * t**2 + 3 * t**3) / 2,
            (t + 4 * t**2 - 3 * t**3) / 2,
            (-(t**2) + t**3) / 2,
        )
        line = [1, 1, 1]
        line[axis] = -1
        total = 0
        for offset, tap in zip((-1, 0, 1, 2), taps, strict=True):
            index = xp.asarray(np.clip(base + offset, 0, x.shape[axis] - 1), device=x.device)
            total = total + xp.take(x, index, axis=axis) * xp.reshape(xp.asarray(tap, device=x.device), tuple(line))
        x = total
    return x
