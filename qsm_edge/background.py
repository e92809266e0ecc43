"""Layer 3: background field removal. `METHODS[name](field_ppm, mask, geometry, weight, **options) -> (local_ppm, mask)`.

field_ppm: total relative field (z, y, x) float32. mask: bool, one solid piece. weight: relative reliability of each
voxel, about 1 where the field is good, 0 where it says nothing. The mask that comes back is where the local field has a
value, and the local field is zero outside it. Radii are in mm and never below a voxel.
"""

from __future__ import annotations

from collections.abc import Callable

from qsm_edge import kernels
from qsm_edge.backend import namespace
from qsm_edge.distance import depth_mm
from qsm_edge.fft import covering, crop, fast_shape, irfftn, pad, rfftn
from qsm_edge.solvers import cg
from qsm_edge.tfi import tfi
from qsm_edge.types import Array, Geometry, OnIteration


def _margin(geometry: Geometry, radius_mm: float) -> tuple[int, int, int]:
    z, y, x = (n + 1 for n in covering(radius_mm, geometry.voxel_mm))
    return z, y, x


def _radius(geometry: Geometry, radius_mm: float) -> float:
    return max(float(radius_mm), *geometry.voxel_mm)


def vsharp(
    field_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    radius_mm: float = 12.0,
    step_mm: float = 1.5,
    threshold: float = 0.05,
    on_iteration: OnIteration | None = None,
) -> tuple[Array, Array]:
    """V-SHARP: the largest sphere that fits decides the mean value that is taken off; truncated deconvolution.

    Spheres from `radius_mm` down to a voxel in steps of `step_mm` (never below a voxel); kernel values below `threshold`
    are not inverted. The outermost voxel of the mask is lost. `weight` is not used.
    Source: Li et al., NeuroImage 2011, doi:10.1016/j.neuroimage.2010.11.088; Wu et al., MRM 2012, doi:10.1002/mrm.23000.
    """
    del weight
    xp = namespace(field_ppm)
    smallest = max(geometry.voxel_mm)
    step = max(step_mm, smallest)
    radii = [smallest + i * step for i in range(max(1, int((radius_mm - smallest) / step) + 1))][::-1]
    shape = fast_shape(field_ppm.shape, _margin(geometry, radii[0]))
    spectrum = rfftn(field_ppm * xp.astype(mask, xp.float32), shape)
    depth = depth_mm(mask, geometry)
    sharp = xp.zeros_like(field_ppm)
    largest = None
    done = xp.zeros_like(mask)
    for number, radius in enumerate(radii, 1):
        deviation = 1 - kernels.sphere(shape, geometry.voxel_mm, radius, field_ppm)
        largest = deviation if largest is None else largest
        here = (depth > radius) & ~done
        sharp = xp.where(here, crop(irfftn(deviation * spectrum, shape), field_ppm.shape), sharp)
        done = done | here
        if on_iteration:
            on_iteration(number, radius)
    assert largest is not None
    usable = xp.abs(largest) > threshold
    inverse = xp.where(usable, 1 / xp.where(usable, largest, xp.ones_like(largest)), xp.zeros_like(largest))
    local = crop(irfftn(inverse * rfftn(sharp, shape), shape), field_ppm.shape)
    return xp.where(done, local, xp.zeros_like(local)), done


def resharp(
    field_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    radius_mm: float = 6.0,
    regularisation: float = 1e-3,
    iterations: int = 60,
    tolerance: float = 1e-3,
    on_iteration: OnIteration | None = None,
) -> tuple[Array, Array]:
    """RESHARP: one sphere, and a Tikhonov-regularised deconvolution over the mask eroded by its radius.

    Minimises |M C (x - f)|^2 + regularisation |x|^2 with C = 1 - sphere mean. `weight` is not used.
    Source: Sun & Wilman, MRM 2014, doi:10.1002/mrm.24765.
    """
    del weight
    xp = namespace(field_ppm)
    radius = _radius(geometry, radius_mm)
    shape = fast_shape(field_ppm.shape, _margin(geometry, radius))
    deviation = 1 - kernels.sphere(shape, geometry.voxel_mm, radius, field_ppm)
    inner = depth_mm(mask, geometry) > radius
    valid = pad(xp.astype(inner, xp.float32), shape)

    def convolve(x: Array) -> Array:
        return irfftn(deviation * rfftn(x), shape)

    right = convolve(valid * convolve(pad(field_ppm * xp.astype(mask, xp.float32), shape)))
    solution = cg(
        lambda x: convolve(valid * convolve(x)) + regularisation * x,
        right,
        iterations=iterations,
        tolerance=tolerance,
        on_iteration=on_iteration,
    )
    return crop(solution * valid, field_ppm.shape), inner


def ismv(
    field_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    radius_mm: float = 5.0,
    iterations: int = 300,
    tolerance: float = 1e-3,
    on_iteration: OnIteration | None = None,
) -> tuple[Array, Array]:
    """Iterative spherical mean value: the background is its own sphere mean inside, and the field at the rim.

    Repeats b <- mean(b) over the mask eroded by `radius_mm`, with b held at the field in the rim, until it changes by
    less than `tolerance` of its spread. `weight` is not used.
    Source: Wen et al., MRM 2014, doi:10.1002/mrm.24998.
    """
    del weight
    xp = namespace(field_ppm)
    radius = _radius(geometry, radius_mm)
    shape = fast_shape(field_ppm.shape, _margin(geometry, radius))
    mean = kernels.sphere(shape, geometry.voxel_mm, radius, field_ppm)
    inner = depth_mm(mask, geometry) > radius
    held = field_ppm * xp.astype(mask, xp.float32)
    background = held
    spread = max(float(xp.std(field_ppm[mask])), 1e-12) if bool(xp.any(mask)) else 1.0
    for number in range(1, iterations + 1):
        smooth = crop(irfftn(mean * rfftn(background, shape), shape), field_ppm.shape)
        change = xp.where(inner, smooth - background, xp.zeros_like(smooth))
        background = background + change
        moved = float(xp.max(xp.abs(change))) / spread
        if on_iteration:
            on_iteration(number, moved)
        if moved < tolerance:
            break
    return xp.where(inner, field_ppm - background, xp.zeros_like(field_ppm)), inner


def lbv(
    field_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    peel: int = 1,
    iterations: int = 400,
    tolerance: float = 1e-4,
    on_iteration: OnIteration | None = None,
) -> tuple[Array, Array]:
    """Laplacian boundary value: the background is the harmonic function that equals the field at the mask's surface.

    Solved by conjugate gradients on the 7-point Laplacian over the voxels inside; the surface layer itself is lost, and
    `peel` - 1 more layers before it (a noisy rim would speak for the whole inside). `weight` is not used.
    Source: Zhou et al., NMR Biomed 2014, doi:10.1002/nbm.3064.
    """
    del weight
    xp = namespace(field_ppm)
    outer = mask
    for _ in range(peel - 1):
        outer = _eroded(outer)
    inner = _eroded(outer)
    inside = xp.astype(inner, xp.float32)
    fixed = xp.where(outer & ~inner, field_ppm, xp.zeros_like(field_ppm))

    def minus_laplacian(x: Array) -> Array:
        out = xp.zeros_like(x)
        for axis, v in enumerate(geometry.voxel_mm):
            out = out + (2 * x - xp.roll(x, 1, axis=axis) - xp.roll(x, -1, axis=axis)) * (1 / v**2)
        return out

    harmonic = cg(
        lambda x: inside * minus_laplacian(x),
        -inside * minus_laplacian(fixed),
        start=inside * field_ppm,  # close to the answer: the background is most of the field
        iterations=iterations,
        tolerance=tolerance,
        on_iteration=on_iteration,
    )
    return inside * (field_ppm - harmonic), inner


def _eroded(mask: Array) -> Array:
    """The mask without its outermost layer (6-neighbourhood); what touches the volume's border goes too."""
    xp = namespace(mask)
    out = mask
    for axis in range(3):
        index = xp.arange(mask.shape[axis], device=mask.device)
        shape = [1, 1, 1]
        shape[axis] = -1
        middle = xp.reshape((index > 0) & (index < mask.shape[axis] - 1), tuple(shape))
        out = out & xp.roll(mask, 1, axis=axis) & xp.roll(mask, -1, axis=axis) & middle
    return out


def pdf(
    field_ppm: Array,
    mask: Array,
    geometry: Geometry,
    weight: Array,
    *,
    doubtful_weight: float = 0.5,
    doubtful_share: float = 0.5,
    iterations: int = 60,
    tolerance: float = 1e-3,
    on_iteration: OnIteration | None = None,
) -> tuple[Array, Array]:
    """Projection onto dipole fields: the weighted least-squares fit of sources outside the mask, together with sources in voxels
    of little weight inside it, whose field stays.

    As published, outside alone: the field of a bleed near the surface is then fitted by sources beside it and taken off, because
    its own phase is lost and nothing says where the field comes from. Here voxels whose weight is below `doubtful_weight` may be
    sources as well, those without any weight at `doubtful_share` of the amplitude of one outside (0: as published). Conjugate
    gradients on the normal equations, stopped after `iterations`, which is what regularises it.
    Source: Liu et al., NMR Biomed 2011, doi:10.1002/nbm.1670; the sources inside are ours.
    """
    xp = namespace(field_ppm)
    inside = xp.astype(mask, xp.float32)
    mean = xp.sum(field_ppm * inside * weight) / xp.sum(inside * weight)
    centred = (field_ppm - mean) * inside
    shape = fast_shape(field_ppm.shape, _margin(geometry, 30.0))
    response = kernels.dipole(shape, geometry.voxel_mm, geometry.b0_dir, field_ppm)
    outside = 1 - pad(inside, shape)
    free = outside + pad(doubtful_share * xp.clip(1 - weight / doubtful_weight, 0.0, 1.0) * inside, shape)
    power = pad((weight * inside) ** 2, shape)

    def convolve(x: Array) -> Array:
        return irfftn(response * rfftn(x), shape)

    sources = cg(
        lambda x: free * convolve(power * convolve(free * x)),
        free * convolve(power * pad(centred, shape)),
        iterations=iterations,
        tolerance=tolerance,
        on_iteration=on_iteration,
    )
    return (centred - crop(convolve(outside * sources), field_ppm.shape)) * inside, mask


METHODS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "tfi": tfi,
    "pdf": pdf,
    "vsharp": vsharp,
    "resharp": resharp,
    "lbv": lbv,
    "ismv": ismv,
}
