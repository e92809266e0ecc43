"""Layer 3: phase unwrapping. `METHODS[name](phase_rad, magnitude, mask, geometry, **options) -> unwrapped phase [rad]`.

Input and output are (z, y, x) float32, valid inside `mask`, zero outside.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from qsm_edge.backend import namespace, on_host
from qsm_edge.fft import crop, fast_shape, irfftn, pad, rfftn
from qsm_edge.kernels import laplacian as laplacian_kernel
from qsm_edge.solvers import neighbours
from qsm_edge.types import Array, Geometry, OnIteration

_TWO_PI = np.float32(2 * np.pi)


@on_host
def quality_tree(
    phase_rad: Array, magnitude: Array, mask: Array, geometry: Geometry, *, on_iteration: OnIteration | None = None
) -> Array:
    """Exact quality-guided unwrapping along the maximum spanning tree of the voxel graph.

    Region growing that always takes the most reliable border voxel next (ROMEO, best path) is Prim's algorithm, and its
    result is the phase summed along a maximum spanning tree. Neighbours are joined by edges whose quality is the product
    of phase coherence, 1 - |wrapped difference| / pi, and of the weaker magnitude relative to the local maximum of the
    two, so that a tree path goes round dropout and noise. The result is congruent: it differs from the input by
    multiples of 2 pi. Every connected piece of the mask is set to the multiple that brings its median nearest to zero.

    Parameters: phase_rad (z, y, x) [rad]; magnitude (z, y, x) >= 0, any scale; mask bool.
    Source: Dymerska et al., MRM 2021, doi:10.1002/mrm.28563; Abdul-Rahman et al., Appl Opt 2007,
    doi:10.1364/AO.46.006623. NOT checked: that the phase holds a signal at all.
    """
    del geometry
    mask = np.asarray(mask, dtype=bool)
    count = int(mask.sum())
    number = np.zeros(mask.shape, np.int32)
    number[mask] = np.arange(count, dtype=np.int32)
    with np.errstate(invalid="ignore", over="ignore"):  # of what is not finite, outside the mask for example
        costs = _edge_costs(np.asarray(phase_rad, np.float32), np.asarray(magnitude, np.float32), mask)
    kept = _without_dearest(costs)
    first = np.concatenate([number[neighbours(axis)[0]][kept[axis]] for axis in range(3)])
    second = np.concatenate([number[neighbours(axis)[1]][kept[axis]] for axis in range(3)])
    cost = np.concatenate([costs[axis][kept[axis]] for axis in range(3)])
    del costs, kept
    phase = np.asarray(phase_rad)[mask].astype(np.float32)
    if on_iteration:
        on_iteration(0, 1.0)
    order, parent = _spanning_forest(first, second, cost, count)
    turns = np.zeros(count, np.int32)
    turns[order] = -np.rint((phase[order] - phase[parent[order]]) / _TWO_PI).astype(np.int32)
    turns, root = _sum_to_root(turns, parent)
    unwrapped = phase + _TWO_PI * turns
    unwrapped -= _TWO_PI * np.rint(_piece_medians(unwrapped, root) / _TWO_PI)
    out = np.zeros(mask.shape, np.float32)
    out[mask] = unwrapped
    return out


def _edge_costs(phase: np.ndarray, strength: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Cost of the edge from each voxel to the next along each axis: one minus the quality, 1 (perfect) to 2 (worthless).

    Shifted because 0 means no edge; infinite where a voxel is outside.
    """
    tiny = np.finfo(np.float32).tiny
    typical = np.float32(max(float(np.median(strength[mask])), float(tiny))) if mask.any() else np.float32(1)
    costs = []
    for axis in range(3):
        near, far = neighbours(axis)
        step = phase[near] - phase[far]
        step -= _TWO_PI * np.rint(step * (1 / _TWO_PI))
        coherence = np.abs(step, out=step)
        coherence *= np.float32(-1 / np.pi)
        coherence += 1
        weaker = np.minimum(strength[near], strength[far])
        likeness = weaker / np.maximum(np.maximum(strength[near], strength[far]), tiny)
        weaker *= 1 / (np.float32(0.5) * typical)
        presence = np.minimum(weaker, 1, out=weaker)
        cost: np.ndarray = 2 - coherence * (0.5 + 0.5 * likeness) * (0.1 + 0.9 * presence)
        cost[~(mask[near] & mask[far] & np.isfinite(cost))] = np.inf
        costs.append(cost)
    return costs


def _without_dearest(costs: list[np.ndarray]) -> list[np.ndarray]:
    """Which edges may be in a minimum spanning tree: no ring has its dearest edge there, and so has no square of four.

    This leaves about half of the edges, which are then quicker to sort.
    """
    kept = [np.isfinite(cost) for cost in costs]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        sides = [(one, *neighbours(other)), (other, *neighbours(one))]
        dearest = [np.maximum(costs[axis][near], costs[axis][far]) for axis, near, far in sides]
        for (axis, near, far), across in zip(sides, dearest[::-1], strict=True):
            low, high = costs[axis][near], costs[axis][far]
            kept[axis][near] &= (low <= high) | (low <= across)
            kept[axis][far] &= (high <= low) | (high <= across)
    return kept


def _spanning_forest(
    first: np.ndarray, second: np.ndarray, cost: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Minimum spanning forest as (voxels that have a parent, parent of every voxel; a root is its own parent)."""
    graph = sparse.coo_array((cost, (first, second)), shape=(count, count)).tocsr()
    tree = csgraph.minimum_spanning_tree(graph, overwrite=True)
    pieces, label = csgraph.connected_components(tree, directed=False)
    start = 0
    if pieces > 1:  # a hub that touches every piece once, so that one search walks them all, be they thousands
        start, tops = count, np.unique(label, return_index=True)[1]
        spokes = sparse.coo_array((np.ones(pieces), (np.full(pieces, count), tops)), shape=(count + 1, count + 1))
        tree.resize(count + 1, count + 1)
        tree = (tree + spokes).tocsr()
    order, before = csgraph.breadth_first_order(tree, start, directed=False, return_predecessors=True)
    parent = np.arange(count, dtype=np.int32)
    reached = order[before[order] >= 0]
    joined = reached[before[reached] < count]
    parent[joined] = before[joined]
    return joined, parent


def _piece_medians(values: np.ndarray, root: np.ndarray) -> np.ndarray:
    """For every voxel the median over its connected piece, which its root names."""
    if (root == root[0]).all():  # a solid mask is one piece
        return np.asarray(np.median(values))
    _, piece, sizes = np.unique(root, return_inverse=True, return_counts=True)
    ranked = values[np.lexsort((values, piece))]
    ends = np.cumsum(sizes)
    middles = (ranked[ends - sizes + (sizes - 1) // 2] + ranked[ends - sizes + sizes // 2]) / 2
    medians: np.ndarray = middles[piece]
    return medians


def _sum_to_root(steps: np.ndarray, parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of `steps` along the path from each node to its root, and that root, by pointer jumping."""
    total, ahead = steps.copy(), parent.copy()
    while True:
        further = ahead[ahead]
        if np.array_equal(further, ahead):
            return total, ahead
        total = total + total[ahead]
        ahead = further


def laplacian(
    phase_rad: Array, magnitude: Array, mask: Array, geometry: Geometry, *, on_iteration: OnIteration | None = None
) -> Array:
    """Laplacian unwrapping: solves lap(u) = cos(p) lap(sin p) - sin(p) lap(cos p) with the phase mirrored at no edge.

    Fast and smooth, but not congruent: it also takes away part of the background. For pictures, for a first look and for
    a single noisy echo; the consensus paper advises against it for quantification (doi:10.1002/mrm.30006).

    Source: Schofield & Zhu, Opt Lett 2003, doi:10.1364/OL.28.001194. `magnitude` is not used.
    """
    del magnitude
    xp = namespace(phase_rad)
    shape = fast_shape(phase_rad.shape, margin=8)
    kernel = laplacian_kernel(shape, geometry.voxel_mm, phase_rad)
    sine, cosine = pad(xp.sin(phase_rad), shape), pad(xp.cos(phase_rad), shape)
    source = cosine * irfftn(kernel * rfftn(sine), shape) - sine * irfftn(kernel * rfftn(cosine), shape)
    at_zero = kernel == 0
    inverse = xp.where(at_zero, xp.zeros_like(kernel), 1 / xp.where(at_zero, xp.ones_like(kernel), kernel))
    solution = crop(irfftn(inverse * rfftn(source), shape), phase_rad.shape)
    if on_iteration:
        on_iteration(1, 0.0)
    inside = xp.astype(mask, solution.dtype)
    return (solution - xp.sum(solution * inside) / xp.sum(inside)) * inside


METHODS = {"romeo": quality_tree, "laplacian": laplacian}
