"""The mask without a network, on a made-up head: brain in dark bone in bright scalp, with eyes, neck, noise and bias."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.ndimage as ndi
from phantoms import turned

from qsm_edge import masking
from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.masking.grid import layout
from qsm_edge.masking.morphology import filled
from qsm_edge.masking.signal import coherent
from qsm_edge.types import Geometry

SHAPE, VOXEL_MM = (56, 76, 60), (3.2, 2.8, 3.0)
TIMES = (0.006, 0.014)
MIDDLE_MM = (12.0, 0.0, 0.0)  # of the cranium, from the middle of the volume: the neck is in the volume, too


def at_mm(geometry, middle=MIDDLE_MM):
    lines = [
        (np.arange(n) - (n - 1) / 2) * v - m for n, v, m in zip(geometry.shape, geometry.voxel_mm, middle, strict=True)
    ]
    return np.meshgrid(*lines, indexing="ij")


def egg(at, radii, centre=(0.0, 0.0, 0.0)):
    return np.sqrt(sum(((a - c) / r) ** 2 for a, r, c in zip(at, radii, centre, strict=True)))


def make_head(*, shape=SHAPE, voxel_mm=VOXEL_MM, bleeds=(), scalp=900.0, noise=12.0, seed=0):
    """Complex echoes, brain (bool) and bleeds (list of bool) of a head whose axes run to S, P and L."""
    geometry = Geometry.from_axes(shape, voxel_mm)
    draw = np.random.default_rng(seed)
    at = at_mm(geometry)
    brain = (egg(at, (64, 82, 68)) < 1) & (at[0] > -48 - 8 * np.cos(at[1] / 20))
    signal = np.zeros(shape)
    signal[(egg(at, (78, 96, 82)) < 1) | (np.hypot(at[1], at[2]) < 55) & (at[0] < -30)] = scalp
    signal[(egg(at, (72, 90, 76)) < 1) & (at[0] > -58)] = 30.0  # bone
    for side in (-1, 1):
        signal[egg(at, (13, 13, 13), (-42, -85, side * 32)) < 1] = 1000.0  # eyes
    signal[brain] = 700 + 120 * np.sign(np.sin(at[0] / 7) * np.sin(at[1] / 9) * np.sin(at[2] / 8))[brain]
    signal[(egg(at, (14, 30, 7), (4, 0, 12)) < 1) | (egg(at, (14, 30, 7), (4, 0, -12)) < 1)] = 350.0  # ventricles
    where = [(egg(at, (radius,) * 3, centre) < 1) & brain for centre, radius in bleeds]
    for bleed in where:
        signal[bleed] = 90.0
    field = 4e-4 * (at[1] * at[0]) + np.sin(at[2] / 25)
    echoes = []
    for time in TIMES:
        blurred = ndi.gaussian_filter(signal, 0.45) * np.exp(-18 * time)
        wave = noise * (draw.standard_normal(shape) + 1j * draw.standard_normal(shape))
        echoes.append(blurred * np.exp(1j * (0.5 + 300 * time * field)) + wave)
    stack = np.stack(echoes).astype(np.complex64)
    return np.abs(stack), np.angle(stack), geometry, brain, where


def mask_of(magnitude, phase, geometry, **options):
    return masking.threshold(magnitude, phase, TIMES[: len(magnitude)], geometry, **{"grid_mm": 3.0} | options)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def head():
    magnitude, phase, geometry, brain, _ = make_head()
    return magnitude, phase, geometry, brain, mask_of(magnitude, phase, geometry)


def solid_and_alone(mask):
    return bool(mask.any()) and ndi.label(mask)[1] == 1 and np.array_equal(filled(mask), mask)


def test_the_brain_is_found_whole_and_nothing_far_outside(head):
    magnitude, _, geometry, brain, mask = head
    assert mask.dtype == bool
    assert mask.shape == magnitude.shape[1:]
    assert solid_and_alone(mask)
    assert dice(mask, brain) > 0.94
    assert mask[brain].mean() > 0.985
    away = ndi.distance_transform_edt(~brain, sampling=geometry.voxel_mm)
    assert (mask & (away > 9)).sum() < 0.005 * brain.sum()


def test_eyes_scalp_and_neck_are_outside(head):
    *_, geometry, _, mask = head
    at = at_mm(geometry)
    for side in (-1, 1):
        assert mask[egg(at, (9, 9, 9), (-42, -88, side * 32)) < 1].mean() < 0.02
    assert not mask[(egg(at, (76, 94, 80)) > 1) & (at[0] > -20)].any()
    assert not mask[at[0] < -72].any()


@pytest.mark.parametrize(
    ("order", "flip"),
    [
        ((0, 1, 2), (False, True, False)),
        ((2, 0, 1), (True, False, False)),
        ((1, 0, 2), (True, False, True)),
        ((2, 1, 0), (True,) * 3),
    ],
)
def test_however_the_volume_is_stored_the_mask_is_the_same(head, order, flip):
    magnitude, phase, geometry, _, mask = head

    def stored(volume):
        moved = volume.transpose(*range(volume.ndim - 3), *(volume.ndim - 3 + a for a in order))
        return np.ascontiguousarray(moved[(..., *(slice(None, None, -1 if f else 1) for f in flip))])

    other = turned(geometry, order, flip)
    assert np.array_equal(mask_of(stored(magnitude), stored(phase), other), stored(mask))


def test_the_scale_of_the_magnitude_and_the_order_of_the_echoes_do_not_matter(head):
    magnitude, phase, geometry, _, mask = head
    assert np.array_equal(mask_of(magnitude * np.float32(2**-14), phase, geometry), mask)
    swapped = masking.threshold(magnitude[::-1], phase[::-1], TIMES[::-1], geometry, grid_mm=3.0)
    assert np.array_equal(swapped, mask)


def test_wraps_and_a_phase_offset_do_not_matter(head):
    magnitude, phase, geometry, _, mask = head
    shifted = np.angle(np.exp(1j * (phase + np.float32(2.0)))).astype(np.float32)
    assert dice(mask_of(magnitude, shifted, geometry), mask) > 0.999


@pytest.mark.parametrize("shape", ["tilt", "centre bright", "centre dark", "surface coil"])
def test_the_receive_bias_does_not_matter(head, shape):
    magnitude, phase, geometry, brain, mask = head
    z, y, x = (a / 90 for a in at_mm(geometry))
    bias = {
        "tilt": np.exp(0.9 * x - 0.4 * z),
        "centre bright": np.exp(-0.8 * (x**2 + y**2 + z**2)),
        "centre dark": np.exp(0.8 * (x**2 + y**2 + z**2)),
        "surface coil": 0.15 + np.exp(-((y - 1) ** 2 + 0.3 * x**2 + 0.3 * z**2) / 0.6),
    }[shape]
    found = mask_of((magnitude * bias).astype(np.float32), phase, geometry)
    assert dice(found, mask) > 0.985
    assert found[brain].mean() > 0.98


def test_bleeds_stay_inside_where_they_lie_deep_and_where_they_touch_the_surface():
    bleeds = (((10, 10, 35), 11), ((45, -40, 20), 9), ((30, 0, -58), 8))
    magnitude, phase, geometry, brain, where = make_head(bleeds=bleeds)
    mask = mask_of(magnitude, phase, geometry, grid_mm=2.0)
    assert solid_and_alone(mask)
    deep, *surface = (mask[bleed].mean() for bleed in where)
    assert deep == 1
    assert min(surface) > 0.8  # without bridge_mm the second keeps 0.65
    assert dice(mask, brain) > 0.93


@pytest.mark.parametrize("echoes", [1, 2])
def test_noise_costs_little_and_one_echo_is_enough(head, echoes):
    *_, brain, mask = head
    magnitude, phase, geometry, _, _ = make_head(noise=110.0, seed=5)
    found = mask_of(magnitude[:echoes], phase[:echoes], geometry)
    assert dice(found, mask) > 0.97
    assert found[brain].mean() > 0.97


def test_a_slab_that_cuts_the_brain_gets_the_brain_that_is_in_it(head):
    magnitude, phase, geometry, brain, _ = head
    box = (slice(24, 40), slice(0, 76), slice(0, 60))
    mask = mask_of(magnitude[(slice(None), *box)], phase[(slice(None), *box)], geometry.crop(box))
    assert dice(mask, brain[box]) > 0.94
    assert mask[brain[box]].mean() > 0.985
    assert mask[0].any()
    assert mask[-1].any()


def test_a_bleed_that_the_end_of_a_slab_cuts_open_stays_inside():
    magnitude, phase, geometry, _, (bleed,) = make_head(bleeds=(((10, 10, 35), 12),))
    first = int(np.argwhere(bleed)[:, 0].mean())
    box = (slice(first, 50), slice(0, 76), slice(0, 60))
    mask = mask_of(magnitude[(slice(None), *box)], phase[(slice(None), *box)], geometry.crop(box))
    assert mask[bleed[box]].all()


def test_a_head_without_scalp_and_a_brain_without_a_head(head):
    magnitude, phase, geometry, brain, _ = make_head(scalp=40.0)
    assert dice(mask_of(magnitude, phase, geometry), brain) > 0.93
    magnitude, phase, geometry, brain, _ = head
    stripped = magnitude * brain
    mask = mask_of(stripped, phase * brain, geometry)
    assert mask[brain].mean() > 0.95
    assert dice(mask, brain) > 0.95


def test_a_block_of_tissue_without_air_is_taken_whole():
    draw = np.random.default_rng(2)
    geometry = Geometry.from_axes((20, 24, 22), (1.0, 0.5, 0.5))
    magnitude = (0.35 + 0.02 * draw.standard_normal((1, 20, 24, 22))).astype(np.float32)
    phase = np.zeros_like(magnitude)
    assert masking.threshold(magnitude, phase, (0.004,), geometry).all()


def test_a_bright_ball_in_the_air_is_taken_whole():
    geometry = Geometry.from_axes((40, 44, 42), (3.0, 3.0, 3.0))
    inside = egg(at_mm(geometry, (0, 0, 0)), (45, 45, 45)) < 1
    magnitude = (1000 * inside + 5).astype(np.float32)[None]
    mask = masking.threshold(magnitude, np.zeros_like(magnitude), (0.01,), geometry, grid_mm=3.0)
    assert dice(mask, inside) > 0.94
    assert mask[egg(at_mm(geometry, (0, 0, 0)), (42, 42, 42)) < 1].all()


def test_the_inputs_are_left_alone_and_what_is_not_finite_is_no_signal(head):
    magnitude, phase, geometry, _, mask = head
    spoilt, angle = magnitude.copy(), phase.copy()
    spoilt[:, :2], angle[:, :3] = np.nan, np.inf
    spoilt.setflags(write=False)
    angle.setflags(write=False)
    assert dice(mask_of(spoilt, angle, geometry), mask) > 0.99


def test_phase_without_information_falls_back_on_the_magnitude(head):
    magnitude, _, geometry, _, mask = head
    rubbish = np.random.default_rng(1).uniform(-np.pi, np.pi, magnitude.shape).astype(np.float32)
    assert dice(mask_of(magnitude, rubbish, geometry), mask) > 0.97
    assert dice(mask_of(magnitude, np.zeros_like(magnitude), geometry), mask) > 0.97


def test_the_coherent_signal_is_the_signal_whatever_the_field_and_less_than_half_the_noise():
    geometry = Geometry.from_axes((40, 40, 40))
    lay = layout(geometry, "SPL", (4.0, 4.0, 4.0))
    half = np.arange(40)[:, None, None] < 20
    steep = np.angle(np.exp(1j * 1.9 * np.arange(40) * np.ones((40, 40, 1)))).astype(np.float32)
    draw = np.random.default_rng(0)
    wave = np.where(
        half, 50 * np.exp(1j * steep), draw.standard_normal((40, 40, 40)) + 1j * draw.standard_normal((40, 40, 40))
    )
    seen = coherent(np.abs(wave).astype(np.float32), np.angle(wave).astype(np.float32), lay)
    assert seen[:4, 1:-1, 1:-1] == pytest.approx(50, rel=1e-3)
    assert seen[6:].mean() < 0.5 * np.abs(wave[24:]).mean()


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_no_signal_is_no_brain(value):
    empty = np.full((1, 12, 14, 13), value, np.float32)
    with pytest.raises(InputRefused) as caught:
        masking.threshold(empty, empty, (0.01,), Geometry.from_axes((12, 14, 13)))
    assert caught.value.code == "mask_empty"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"grid_mm": 0.0}, "bad_value"),
        ({"dark": 1.0}, "bad_value"),
        ({"closing_mm": -1.0}, "bad_value"),
        ({"bridge_mm": 99.0}, "bad_value"),
    ],
)
def test_options_out_of_range_are_refused(options, code):
    volume = np.ones((1, 12, 14, 13), np.float32)
    with pytest.raises(UsageError) as caught:
        masking.threshold(volume, volume, (0.01,), Geometry.from_axes((12, 14, 13)), **options)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("magnitude", "phase", "times"),
    [
        ((1, 9, 9, 9), (1, 9, 9, 8), 1),
        ((2, 9, 9, 9), (2, 9, 9, 9), 1),
        ((9, 9, 9), (9, 9, 9), 1),
        ((0, 9, 9, 9), (0, 9, 9, 9), 0),
    ],
)
def test_arrays_that_do_not_fit_are_refused(magnitude, phase, times):
    with pytest.raises(UsageError) as caught:
        masking.threshold(np.ones(magnitude), np.ones(phase), (0.01,) * times, Geometry.from_axes((9, 9, 9)))
    assert caught.value.code == "bad_call"


@pytest.mark.parametrize("shape", [s for s in itertools.product((1, 2, 9), repeat=3) if max(s) > 1])
def test_volumes_of_any_size_are_survived(shape):
    volume = np.random.default_rng(0).uniform(90, 110, (1, *shape)).astype(np.float32)
    mask = masking.threshold(volume, np.zeros_like(volume), (0.01,), Geometry.from_axes(shape, (2.0, 2.0, 2.0)))
    assert mask.shape == shape
    assert mask.all()


def test_progress_is_told_and_may_stop_it(head):
    magnitude, phase, geometry, *_ = head

    class Stopped(Exception):
        pass

    def stop(count, _):
        assert count > 0
        raise Stopped

    with pytest.raises(Stopped):
        mask_of(magnitude, phase, geometry, on_iteration=stop)


@pytest.mark.shared
def test_the_real_head(shared):
    """A volunteer's head at 3 mm, 3 T: the volume of a cranial cavity, and neither eye nor scalp nor nose."""
    import nibabel

    folder = shared / "data" / "dicom" / "philips_classic_reference"
    stem = "2001_WIP_fcMRI_Field_Mapping_cl_e"
    images = [nibabel.load(folder / f"{stem}{e}{part}.nii.gz") for part in ("", "_ph") for e in (1, 2)]
    volumes = [np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0) for image in images]
    affine = (np.diag([-1.0, -1, 1, 1]) @ images[0].affine)[:, [2, 1, 0, 3]]
    geometry = Geometry(volumes[0].shape, affine)
    magnitude, phase = np.stack(volumes[:2]), np.stack(volumes[2:])
    mask = masking.threshold(magnitude, phase, (0.0023, 0.0046), geometry, grid_mm=3.0)
    assert solid_and_alone(mask)
    assert 1350 < mask.sum() * geometry.voxel_ml < 1750
    air = filled(magnitude[0] > 0.1 * np.median(magnitude[0][mask]))
    depth = ndi.distance_transform_edt(air, sampling=geometry.voxel_mm)
    assert np.percentile(depth[mask], 1) > 6


@pytest.mark.shared
def test_a_real_crop_of_a_brain_is_taken(shared):
    import nibabel

    folder = shared / "data" / "nifti" / "romeo"
    magnitude = np.asarray(nibabel.load(folder / "Mag.nii").dataobj, dtype=np.float32).transpose(3, 2, 1, 0)
    phase = np.asarray(nibabel.load(folder / "Phase.nii").dataobj.get_unscaled(), dtype=np.float32).transpose(
        3, 2, 1, 0
    )
    geometry = Geometry.from_axes(magnitude.shape[1:], (1.0, 0.47, 0.47))
    assert masking.threshold(magnitude, phase, (0.004, 0.008, 0.012), geometry).mean() > 0.9
