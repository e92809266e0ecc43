"""The support: the mask and the bright layer about it, whatever the storage order, and never through bone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi

from qsm_edge import support
from tests import laws, phantoms
from tests.conftest import Flavour

GEOMETRY = phantoms.oblique((33, 41, 37), (1.3, 0.9, 1.1))
REACH_MM = 4.0


def shells(*outer: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Magnitude of two echoes and a brain of 9 mm about which shells (outer radius in mm, signal at the last echo) lie."""
    offsets = phantoms.offsets(GEOMETRY, (0.0, 0.0, 0.0))
    far = np.sqrt((offsets**2).sum(axis=0))
    last = np.zeros(GEOMETRY.shape, np.float32)
    for radius, signal in sorted(outer, reverse=True):
        last[far <= radius] = signal
    mask = far <= 9
    last[mask] = 1.0
    return np.stack([np.where(far <= 40, 2, 0).astype(np.float32), last]), mask


def stage(name: str) -> laws.Stage:
    def run(arrays: tuple[Any, ...], geometry: phantoms.Geometry) -> tuple[Any, ...]:
        weakest, mask = arrays
        return laws.parts(support.METHODS[name](weakest[None, ...], mask, geometry))

    return run


def test_fluid_belongs_to_it_up_to_the_reach_and_bone_never() -> None:
    magnitude, mask = shells((16.0, 1.5))
    got = support.bright_rim(magnitude, mask, GEOMETRY, reach_mm=REACH_MM)
    far = np.sqrt((phantoms.offsets(GEOMETRY, (0.0, 0.0, 0.0)) ** 2).sum(axis=0))
    assert got[mask].all()
    assert got[far <= 9 + REACH_MM - 1.3].all()
    assert not got[far > 9 + REACH_MM + 1e-3].any()
    bone, _ = shells((16.0, 0.1))
    assert np.array_equal(support.bright_rim(bone, mask, GEOMETRY, reach_mm=REACH_MM), mask)


def test_what_decays_before_the_last_echo_stays_out() -> None:
    """Marrow and scalp are bright in the first echo; what counts is the weakest."""
    magnitude, mask = shells((16.0, 0.49))
    assert np.array_equal(support.bright_rim(magnitude, mask, GEOMETRY, least_signal=0.5), mask)
    assert support.bright_rim(magnitude, mask, GEOMETRY, least_signal=0.4).sum() > 1.2 * mask.sum()


def test_beyond_a_dark_shell_nothing_belongs_to_it() -> None:
    """The scalp lies within reach, but bone is between; and a bridge one voxel thick is no way through."""
    magnitude, mask = shells((10.5, 0.05), (18.0, 1.5))
    z, y, x = (n // 2 for n in mask.shape)
    magnitude[:, z, y, x:] = np.maximum(magnitude[:, z, y, x:], 1.0)
    got = support.bright_rim(magnitude, mask, GEOMETRY, reach_mm=8.0)
    assert np.array_equal(got, mask)


def test_a_mask_drawn_a_voxel_narrower_gives_the_same_support_within_reach() -> None:
    magnitude, mask = shells((11.0, 1.0))
    narrower = ndi.binary_erosion(mask)
    wide = support.bright_rim(magnitude, mask, GEOMETRY, reach_mm=8.0)
    assert wide.sum() > mask.sum()
    assert np.array_equal(support.bright_rim(magnitude, narrower, GEOMETRY, reach_mm=8.0) | mask, wide)


def test_a_mask_drawn_too_wide_into_bone_gives_the_support_of_the_right_one() -> None:
    magnitude, mask = shells((13.0, 0.05))
    magnitude[0] = np.where(mask, 2, 0.1)
    for wide in (ndi.binary_dilation(mask), ndi.binary_dilation(mask, iterations=2)):
        got = support.bright_rim(magnitude, wide, GEOMETRY)
        assert got[mask].all()
        assert np.array_equal(got, mask)


def test_a_bleed_at_the_surface_stays_and_one_inside_too() -> None:
    """What is dark and deep is no bone; what hangs together with it stays with it, to the surface."""
    magnitude, mask = shells((16.0, 1.5))
    offsets = phantoms.offsets(GEOMETRY, (0.0, 0.0, 0.0))
    for centre in (7.0, 0.0):
        bleed = mask & (((offsets - np.array([centre, 0, 0])[:, None, None, None]) ** 2).sum(axis=0) < 5.0**2)
        bled = np.where(bleed, np.float32(0.05), magnitude)
        assert bleed.sum() > 100
        assert support.bright_rim(bled, mask, GEOMETRY)[bleed].all()


@pytest.mark.parametrize("slices", [1, 2, 10])
def test_where_the_volume_ends_is_no_surface(slices: int) -> None:
    """A bleed that the end of a slab cuts stays, however little of it is left; bone at the rim leaves there, too."""
    magnitude, mask = shells((16.0, 0.05))
    magnitude[0] = np.where(mask, 2, 0.1)
    middle = GEOMETRY.shape[0] // 2
    slab = slice(middle, middle + slices)
    far = np.sqrt((phantoms.offsets(GEOMETRY, (0.0, 0.0, 0.0))[1:] ** 2).sum(axis=0))
    bleed = mask & (far < 3.5)
    bleed[middle + 2 :] = False
    magnitude = np.where(bleed, np.float32(0.05), magnitude)
    wide = ndi.binary_dilation(mask, iterations=2)
    geometry = phantoms.oblique((slices, *GEOMETRY.shape[1:]), GEOMETRY.voxel_mm)
    got = support.bright_rim(magnitude[:, slab], wide[slab], geometry)
    assert bleed[slab].sum() > 20
    assert got[bleed[slab]].all()
    assert np.array_equal(got, mask[slab])


def test_a_bleed_that_touches_the_bone_does_not_keep_all_of_it() -> None:
    magnitude, mask = shells((13.0, 0.05))
    magnitude[0] = np.where(mask, 2, 0.1)
    wide = ndi.binary_dilation(mask)
    offsets = phantoms.offsets(GEOMETRY, (0.0, 0.0, 0.0))
    bleed = mask & (((offsets - np.array([7.0, 0, 0])[:, None, None, None]) ** 2).sum(axis=0) < 3.0**2)
    got = support.bright_rim(np.where(bleed, np.float32(0.05), magnitude), wide, GEOMETRY, shell_mm=1.5)
    shell = wide & ~mask
    assert got[mask].all()
    assert 0 < (got & shell).sum() < 0.3 * shell.sum()


def test_what_is_dark_in_one_echo_only_is_no_bone() -> None:
    magnitude, mask = shells((9.5, 1.0))
    magnitude[1][mask & ~ndi.binary_erosion(mask, iterations=2)] = 0.01
    assert support.bright_rim(magnitude, mask, GEOMETRY)[mask].all()


@pytest.mark.parametrize("level", [0.0, 4096.0])
def test_the_scanners_scale_does_not_matter_and_no_signal_adds_nothing(level: float) -> None:
    magnitude, mask = shells((16.0, 1.5))
    got = support.bright_rim((level * magnitude).astype(np.float32), mask, GEOMETRY)
    assert np.array_equal(got, support.bright_rim(magnitude, mask, GEOMETRY) if level else mask)


def test_the_brain_alone_is_the_mask() -> None:
    magnitude, mask = shells((16.0, 1.5))
    assert support.METHODS["brain"](magnitude, mask, GEOMETRY) is mask


@pytest.mark.parametrize("name", support.METHODS)
def test_any_array_any_device(xp: Flavour, name: str) -> None:
    magnitude, mask = shells((12.0, 1.5))
    laws.devices(stage(name), (magnitude[1], mask), GEOMETRY, xp, 1e-6)


@pytest.mark.parametrize("name", support.METHODS)
def test_storage_order_and_place_do_not_matter(name: str) -> None:
    magnitude, mask = shells((12.0, 1.5))
    laws.orientation(stage(name), (magnitude[1], mask), GEOMETRY, 1e-6)
    laws.b0_sign(stage(name), (magnitude[1], mask), GEOMETRY)


def test_unknown_options_are_refused() -> None:
    laws.refuses_unknown_options(support.METHODS.values(), positional=3)
