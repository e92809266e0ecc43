"""A brain mask without a network: from the signal that magnitude and phase agree on, and the dark line of the skull.

1. coherent signal of the first echo, on a 2 mm grid with anatomical axes   2. head, its depth, its middle
3. receive bias, fitted within   4. the cheapest closed surface through what is dark   5. down to the tissue, holes filled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage as ndi

from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.masking import grid as grids
from qsm_edge.masking.cut import cheapest_surface
from qsm_edge.masking.morphology import FAR_MM, away_mm, closed, depth_mm, filled, largest, otsu
from qsm_edge.types import Array, Geometry, OnIteration

ADULT_RADIUS_MM = 75.0
P: dict = dict(wl=.15, layer=11., kap=.03, k0=-45., kw=30., lam=1., eps=.03, knee=.8, power=2, wd=.01, hat=14, rc=6., ro=3.)


def threshold(
    magnitude: Array,
    phase_rad: Array,
    echo_times_s: Sequence[float],
    geometry: Geometry,
    *,
    grid_mm: float = 2.0,
    dark: float = 0.38,
    bridge_mm: float = 9.0,
    on_iteration: OnIteration | None = None,
) -> np.ndarray:
    first = int(np.argmin(echo_times_s))
    h = grid_mm
    lay = grids.layout(geometry, "SPL", (h, h, h))
    seen = coherent(magnitude[first], phase_rad[first], lay)
    air, depth, level = _head(seen, h)
    box = _box(~air)
    seen, air, depth = (np.ascontiguousarray(v[box]) for v in (seen, air, depth))
    at, radius = _middle(depth, h)
    relative = seen / _bias(seen, depth, at, level)
    cost, force, core = _terms(relative, depth, at, radius, h)
    inside = cheapest_surface(cost, force, core, depth_mm(air, h) > 1.5 * h, on_iteration=on_iteration) > 0.5
    brain, _ = tighten(relative, inside, depth, at, h, dark, bridge_mm)
    whole = np.zeros(lay.shape, np.float32)
    whole[box] = ndi.gaussian_filter(brain.astype(np.float32), 0.6)
    mask = grids.restore(whole, lay, geometry) > 0.5
    return filled(largest(mask))


def coherent(magnitude, phase_rad, lay):
    size = np.array(lay.native_mm)
    axis = int(2 - np.argmin(size[::-1]))
    m = grids.turn(np.asarray(magnitude, np.float32), lay.axes, lay.flips)
    p = grids.turn(np.asarray(phase_rad, np.float32), lay.axes, lay.flips)
    m = np.ascontiguousarray(m); p = np.ascontiguousarray(p)
    lo = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3)); hi = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    amp = np.zeros_like(m); ang = np.zeros_like(m)
    amp[lo] = m[lo] * m[hi]; ang[lo] = p[hi] - p[lo]
    W = grids.down_weights(lay)
    W[axis] = W[axis].copy()
    n = W[axis].shape[1]
    # products lie half a voxel further: average of both neighbours
    sh = W[axis]; W[axis] = np.concatenate([(sh[:, :-1] + sh[:, 1:]) / 2, np.zeros((len(sh), 1), np.float32)], 1)
    re = grids.apply(amp * np.cos(ang), W); im = grids.apply(amp * np.sin(ang), W)
    return np.sqrt(np.hypot(re, im))


def _box(m):
    if not m.any(): return (slice(None),) * 3
    out = []
    for a in range(3):
        w = np.flatnonzero(m.any(axis=tuple(b for b in range(3) if b != a)))
        out.append(slice(max(0, int(w[0]) - 4), min(m.shape[a], int(w[-1]) + 5)))
    return tuple(out)


def _head(seen, h):
    t = otsu(seen)
    level = float(np.median(seen[seen > t])) if (seen > t).any() else 0.0
    if level <= 0: raise InputRefused("mask_empty", "the magnitude images hold no signal")
    darkness = seen < 0.2 * level
    deep = depth_mm(np.pad(darkness, 5, mode="edge"), h)[5:-5, 5:-5, 5:-5] > 6
    pieces, count = ndi.label(deep)
    keep = np.zeros(count + 1, bool)
    for a in range(3):
        for s in (0, -1): keep[np.unique(np.take(pieces, s, a))] = True
    keep &= np.bincount(pieces.ravel(), minlength=count + 1) * h**3 > 2e4
    keep[0] = False
    air = keep[pieces]
    if not air.any(): return air, np.full(seen.shape, FAR_MM, np.float32), level
    air = (away_mm(air, h) <= 7) & darkness
    return air, away_mm(air, h), level


def _middle(depth, h):
    rows = np.flatnonzero((depth > 0).sum((1, 2)) * h * h > 2000)
    top = rows.max() if len(rows) else depth.shape[0] - 1
    d = np.minimum(depth, 90.); d[: max(0, top - round(110 / h))] = 0; d[top + 1:] = 0
    R = float(d.max()); w = np.where(d > .7 * R, d, 0.).astype(np.float64)**4
    g = np.ogrid[tuple(map(slice, depth.shape))]
    c = [float((w * x).sum() / w.sum()) for x in g]
    return [((x - ci) * h).astype(np.float32) for x, ci in zip(g, c)], R


def _bias(seen, depth, at, level):
    rad = np.sqrt(sum(a * a for a in at)); h = float(at[0][1, 0, 0] - at[0][0, 0, 0]) if len(at[0]) > 1 else 2.
    L = np.log(np.maximum(seen, .05 * level))
    G = [a / 70 for a in at]
    def basis(sub):
        a_ = [np.broadcast_to(x, seen.shape)[sub] for x in G]
        return np.stack([np.ones_like(a_[0])] + a_ + [a_[i] * a_[j] for i in range(3) for j in range(i, 3)], -1)
    sub = (slice(None, None, 2),) * 3
    wt = (seen > .3 * level) & (depth > 12) & (rad < 100)
    B = basis(sub); Ls = L[sub]; ws = wt[sub]; ok = (depth[sub] > 10) & (rad[sub] < 100)
    co = np.r_[np.log(level), np.zeros(9)]; s_ = 1.
    for _ in range(4):
        if ws.sum() < 50: break
        co, *_ = np.linalg.lstsq(B[ws], Ls[ws], rcond=None)
        res = Ls - B @ co; s_ = np.median(np.abs(res[ws] - np.median(res[ws]))) * 1.48 + 1e-3
        ws = (np.abs(res) < 2.5 * s_) & ok
    b1 = (basis((slice(None),) * 3) @ co).astype(np.float32)
    res = L - b1
    w = ((np.abs(res) < 2.5 * s_) & (depth > 10) & (rad < 100)).astype(np.float32)
    b2 = ndi.gaussian_filter(res * w, 20 / h, mode="constant") / (ndi.gaussian_filter(w, 20 / h, mode="constant") + 1e-2)
    N = seen / np.exp(b1 + b2)
    dt = (depth > 20) & (rad < 60) & (N > .4)
    cap = np.clip(np.percentile(N[dt], 20), .6, 1) if dt.any() else 1.
    return np.exp(b1 + b2) * cap


def _terms(rel, depth, at, R, h):
    rad = np.sqrt(sum(a * a for a in at))
    capped = np.minimum(rel, 1)
    k = int(round(P['hat'] / h)) | 1
    v = np.clip(capped - P['lam'] * (ndi.grey_closing(capped, size=(k, k, k)) - capped), 0, None)
    cost = (P['eps'] + np.clip(v / P['knee'], 0, 1)**P['power']).astype(np.float32)
    can = (depth_mm(v > .5, h) > P['rc']) & (depth > 15) & (rad < .8 * min(R, 80)) & (at[0] > -35)
    lb, n = ndi.label(can); cnt = np.bincount(lb[rad < .5 * R], minlength=n + 1); cnt[0] = 0
    core = (lb == cnt.argmax()) & can if cnt.any() else np.zeros_like(can)
    core |= rad < .25 * R
    f = P['wl'] * np.clip(1 - depth / P['layer'], 0, None) + P['wd'] * (v < .3) - P['kap'] * (v > .5) * np.clip((depth - 12) / 6, 0, 1) * np.clip((at[0] - P['k0']) / P['kw'], 0, 1) * (rad < R + 25)
    return cost, f.astype(np.float32), core


def tighten(N, inside, depth, at, h, dark, bridge_mm, closing_mm=4., marg=1.5, pz=-15):
    Cav = filled(largest(inside)); dc = depth_mm(Cav, h)
    N = np.minimum(N, 1.5)
    sh = Cav & (dc <= h * 1.01) & (depth > 3)
    d = float(np.clip(np.percentile(N[sh], 35), 0, .75)) if sh.any() else 0.
    thr = d + dark * (1 - d)
    T = Cav & (N > thr)
    core = largest(depth_mm(T, h) > P['ro'])
    if not core.any(): raise InputRefused("mask_empty", "no brain was found in the magnitude images")
    main = largest((away_mm(core, h) <= P['ro'] + 1.01 * h) & T)
    zz = at[0]
    if sh.any():
        far = away_mm(main, h)
        up = sh & (zz > pz - 10)
        med = float(np.median(far[up])) if up.any() else 3.
        gap = np.minimum(far, med + 1.5)
        w = ndi.gaussian_filter(sh.astype(np.float32), 12 / h); gm = (ndi.gaussian_filter((sh * gap).astype(np.float32), 12 / h) + 1e-4 * med) / (w + 1e-4)
    else: gm = np.zeros(N.shape, np.float32)
    prot = (dc > gm + marg + 1) & (zz > pz)
    out = ndi.binary_propagation(~Cav, mask=~Cav | (Cav & ~main & ~prot)) if (~Cav).any() else ~Cav
    b = filled(largest(Cav & ~out))
    b |= closed(b, closing_mm, h) & Cav
    b |= closed(b, bridge_mm, h) & (dc > gm + marg) & (zz > pz - 10)
    return filled(b), thr
