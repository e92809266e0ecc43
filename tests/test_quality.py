"""Laws of the quality measures, on a head whose truth is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import report_factory as factory

from qsm_edge.errors import REASONS, InternalError
from qsm_edge.quality import assess
from qsm_edge.quality.measures import cone_balance, noise_sd, sign_index
from qsm_edge.types import Geometry, GreSeries, Note, Source
from qsm_edge.units import rad_per_ppm

GEOMETRIES = {
    "axial": factory.geometry(),
    "oblique": factory.geometry((2.5, 2.5, 2.5), tilt_deg=(23, -14)),
    "anisotropic": factory.geometry((4.0, 2.0, 2.2)),
    "sagittal": factory.geometry((3.0, 2.4, 2.4), "L"),
    "coronal-mirrored": factory.geometry((3.0, 2.4, 2.4), "P", (10, 0), mirrored=True),
}
LESIONS = {
    "none": (),
    "bleed": (factory.BLEED,),
    "calcification": (factory.CALCIFICATION,),
    "both": (factory.BLEED, factory.CALCIFICATION),
}


@pytest.fixture(scope="module")
def healthy():
    return factory.head()


def codes(quality):
    return [note.code for note in quality.notes]


def negated(parts):
    return parts | {"chi_ppm": -parts["chi_ppm"], "field_ppm": -parts["field_ppm"], "local_ppm": -parts["local_ppm"]}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_healthy_head_is_good_however_it_was_cut(name):
    quality = assess(**factory.head(GEOMETRIES[name]))
    assert codes(quality) == []
    assert quality.verdict == "good"
    assert quality.figures["sign_index"].value > 0.5
    analytic = 4 / 3 * math.pi * 62 * 78 * 58 / 1000
    assert quality.figures["brain_volume"].value == pytest.approx(analytic, rel=0.01)
    assert quality.figures["cover"].value == 100
    assert quality.figures["edge_contact"].value == 0


@pytest.mark.parametrize("name", ["oblique", "anisotropic", "sagittal"])
@pytest.mark.parametrize("echoes", [factory.ECHOES, (0.020,)], ids=["five", "one"])
def test_an_inverted_phase_is_suspected_however_it_was_cut(name, echoes):
    quality = assess(**negated(factory.head(GEOMETRIES[name], echoes)))
    assert "sign_suspect" in codes(quality)
    assert quality.verdict == "poor"


@pytest.mark.parametrize("name", LESIONS)
@pytest.mark.parametrize("echoes", [factory.ECHOES, (0.020,)], ids=["five", "one"])
@pytest.mark.parametrize("b0", [1.5, 7.0])
def test_lesions_do_not_decide_on_the_sign(name, echoes, b0):
    """A dark, diamagnetic stone of 2.7 mL leaves less to see, but never turns a right map into a suspect."""
    parts = factory.head(echo_times_s=echoes, extras=LESIONS[name], b0_tesla=b0)
    right, wrong = assess(**parts), assess(**negated(parts))
    assert right.figures["sign_index"].value > 0
    assert "sign_suspect" not in codes(right)
    assert wrong.figures["sign_index"].value < 0
    assert ("sign_suspect" in codes(wrong)) or name == "calcification"


def test_the_sign_index_is_odd_and_knows_neither_scale_nor_reference(healthy):
    def index(chi):
        parts = healthy
        last = parts["series"].magnitude[-1]
        return sign_index(chi, parts["mask"], parts["r2star_per_s"], last, parts["series"].geometry)

    right = index(healthy["chi_ppm"])
    assert index(-healthy["chi_ppm"]) == pytest.approx(-right, abs=1e-6)
    assert index(3 * healthy["chi_ppm"] + 0.2) == pytest.approx(right, abs=1e-3)


def test_noise_has_no_sign(healthy):
    chi = np.random.default_rng(3).normal(0, 0.03, healthy["mask"].shape).astype(np.float32) * healthy["mask"]
    quality = assess(**healthy | {"chi_ppm": chi})
    assert abs(quality.figures["sign_index"].value) < 0.2
    assert "sign_suspect" not in codes(quality)


def test_the_sign_of_a_thin_slab_is_left_open():
    parts = negated(factory.head(factory.geometry()))
    thin = parts["brain"].copy()
    thin[: thin.shape[0] // 2 - 2] = thin[thin.shape[0] // 2 + 2 :] = False
    quality = assess(**parts | {"mask": thin, "brain": thin})
    assert "sign_index" not in quality.figures
    assert "sign_suspect" not in codes(quality)


@pytest.mark.parametrize("echoes", [factory.ECHOES, (0.004, 0.012, 0.020), (0.005, 0.015), (0.020,)])
@pytest.mark.parametrize("snr", [8.0, 40.0])
def test_the_noise_is_measured(echoes, snr):
    parts = factory.head(echo_times_s=echoes, snr=snr)
    series = parts["series"]
    truth = 1000 * math.exp(-21 * echoes[0]) / snr
    tolerance = 0.05 if len(echoes) > 2 else 0.15  # edges of the anatomy leak into the wavelets
    assert noise_sd(series.magnitude, parts["brain"], echoes) == pytest.approx(truth, rel=tolerance)
    assert noise_sd(7 * series.magnitude, parts["brain"], echoes) == pytest.approx(
        7 * noise_sd(series.magnitude, parts["brain"], echoes), rel=1e-3
    )


def test_the_noise_is_measured_where_the_background_was_blanked_and_the_grid_interpolated():
    fine, geo = 2, Geometry.from_axes((24, 24, 24))
    rng = np.random.default_rng(1)
    clean = 1000 * np.exp(-30 * np.asarray(factory.ECHOES))[:, None, None, None] * np.ones((1, *geo.shape))
    coarse = np.abs(clean + rng.normal(0, 20, clean.shape) + 1j * rng.normal(0, 20, clean.shape))
    magnitude = np.repeat(np.repeat(coarse, fine, axis=2), fine, axis=3)
    mask = np.zeros(magnitude.shape[1:], bool)
    mask[4:-4, 8:-8, 8:-8] = True
    assert noise_sd(magnitude * mask, mask, factory.ECHOES) == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize(("snr", "verdict"), [(30.0, "good"), (8.0, "review"), (3.0, "poor")])
def test_a_weak_signal_is_named(snr, verdict):
    quality = assess(**factory.head(snr=snr))
    assert ("low_snr" in codes(quality)) == (verdict != "good")
    assert quality.verdict == verdict


@pytest.mark.parametrize("echoes", [(0.010,), (0.004, 0.007), (0.004, 0.012, 0.014, 0.030)])
def test_the_field_noise_is_that_of_a_straight_line_through_noisy_phases(echoes):
    """Against the scatter of fitted slopes; no decay, so that every echo weighs the same."""
    sd, b0, rng = 20.0, 3.0, np.random.default_rng(5)
    geo = Geometry.from_axes((60, 60, 60), (2, 2, 2))
    shape = (len(echoes), *geo.shape)
    signal = 1000 + rng.normal(0, sd, shape) + 1j * rng.normal(0, sd, shape)
    phase = np.angle(signal).reshape(len(echoes), -1)
    slope = phase[0] / echoes[0] if len(echoes) == 1 else np.polyfit(echoes, phase, 1)[0]
    truth = 1000 * slope.std() / rad_per_ppm(b0, 1.0)
    mask, zero = np.ones(geo.shape, bool), np.zeros(geo.shape, np.float32)
    series = GreSeries(np.abs(signal).astype(np.float32), np.angle(signal).astype(np.float32), echoes, b0, geo)
    quality = assess(
        series=series,
        chi_ppm=zero,
        mask=mask,
        brain=mask,
        field_ppm=zero,
        local_ppm=zero,
        residual=zero,
        weight=zero + 1,
        r2star_per_s=None,
    )
    assert quality.figures["field_noise"].value == pytest.approx(truth, rel=0.03)


def test_a_flat_field_map_is_named_as_such_even_with_a_good_signal():
    """Two echoes so close that the phase between them is noise."""
    quality = assess(**factory.head(echo_times_s=(0.0020, 0.0026), snr=40.0))
    assert quality.figures["snr"].value > 30
    assert "low_snr" in codes(quality)


def test_noise_alone_is_no_misfit_of_the_echoes():
    quality = assess(**factory.head(snr=6.0))
    assert quality.figures["residual"].value > 0.1
    assert codes(quality) == ["low_snr"]


@pytest.mark.parametrize(
    ("residual", "expected", "verdict"),
    [
        (0.05, [], "good"),
        (0.15, ["high_residual"], "review"),
        (0.40, ["high_residual", "many_unreliable"], "poor"),
        (math.nan, ["high_residual", "many_unreliable"], "poor"),
    ],
)
def test_echoes_that_fit_no_frequency_are_named(healthy, residual, expected, verdict):
    quality = assess(**healthy | {"residual": np.full(healthy["brain"].shape, residual)})
    assert codes(quality) == expected
    assert quality.verdict == verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.05, "good"), (0.3, "review"), (0.7, "poor")])
def test_voxels_without_reliable_phase_are_counted(healthy, share, verdict):
    weight = np.where(np.random.default_rng(0).random(healthy["brain"].shape) < share, 0.0, healthy["weight"])
    quality = assess(**healthy | {"weight": weight})
    assert quality.figures["unreliable"].value == pytest.approx(100 * share, abs=1)
    assert quality.verdict == verdict
    assert ("many_unreliable" in codes(quality)) == (verdict != "good")


def test_fewer_than_three_echoes_have_no_residual():
    quality = assess(**factory.head(echo_times_s=(0.005, 0.020)))
    assert "residual" not in quality.figures
    assert quality.verdict == "good"


def test_one_echo_is_told_and_asks_for_nothing():
    quality = assess(**factory.head(echo_times_s=(0.020,)))
    assert codes(quality) == ["single_echo"]
    assert quality.verdict == "good"


def test_a_brain_cut_off_at_the_edge_is_named(healthy):
    cut = healthy["series"].geometry.shape[0] // 2
    box = (
        slice(cut, healthy["brain"].shape[0]),
        slice(0, healthy["brain"].shape[1]),
        slice(0, healthy["brain"].shape[2]),
    )
    series = healthy["series"]
    part = dataclasses.replace(
        series,
        magnitude=series.magnitude[:, *box],
        phase_rad=series.phase_rad[:, *box],
        geometry=series.geometry.crop(box),
    )
    quality = assess(**{name: v[box] for name, v in healthy.items() if name != "series"}, series=part)
    area = math.pi * 62 * 78 / 100
    assert quality.figures["edge_contact"].value == pytest.approx(area, rel=0.02)
    assert codes(quality) == ["mask_touches_edge", "mask_implausible"]
    assert quality.verdict == "review"


@pytest.mark.parametrize(
    ("scale", "verdict"), [(1.0, "good"), (0.8, "review"), (0.45, "poor"), (1.22, "review"), (1.35, "poor")]
)
def test_a_mask_that_is_no_brain_is_named(scale, verdict):
    geo = factory.geometry()
    larger = dataclasses.replace(geo, affine_lps=geo.affine_lps @ np.diag([scale, scale, scale, 1]))
    parts = factory.head(geo)
    parts["series"] = dataclasses.replace(parts["series"], geometry=larger)
    quality = assess(**parts)
    assert ("mask_implausible" in codes(quality)) == (verdict != "good")
    assert quality.verdict == verdict


def test_an_empty_map_is_poor(healthy):
    nothing = np.zeros_like(healthy["mask"])
    for parts in (healthy | {"mask": nothing}, healthy | {"mask": nothing, "brain": nothing}):
        quality = assess(**parts)
        assert "mask_empty" in codes(quality)
        assert quality.verdict == "poor"


@pytest.mark.parametrize(("share", "verdict"), [(0.3, "good"), (0.5, "review"), (0.7, "poor")])
def test_a_map_of_a_part_of_the_brain_is_named(healthy, share, verdict):
    mask = healthy["mask"].copy()
    mask[healthy["series"].geometry.shape[0] - round(share * mask.shape[0]) :] = False
    quality = assess(**healthy | {"mask": mask, "chi_ppm": healthy["chi_ppm"] * mask})
    assert quality.figures["cover"].value == pytest.approx(100 * mask.sum() / healthy["brain"].sum())
    assert ("many_unreliable" in codes(quality)) == (verdict != "good")
    assert quality.verdict == verdict


@pytest.mark.parametrize("factor", [0.05, 10.0])
def test_a_wrong_scale_is_named(healthy, factor):
    """Echo times ten times off, a phase that is not in radians."""
    quality = assess(**healthy | {"chi_ppm": factor * healthy["chi_ppm"]})
    assert codes(quality) == ["chi_implausible"]
    assert quality.verdict == "poor"


def test_values_beyond_the_output_are_counted(healthy):
    chi = healthy["chi_ppm"].copy()
    at = np.argwhere(healthy["mask"])[1000:1003]
    chi[tuple(at.T)] = (33.0, -40.0, 32.0)
    quality = assess(**healthy | {"chi_ppm": chi})
    assert codes(quality) == ["values_clipped"]
    voxels = healthy["mask"].sum()
    assert quality.figures["clipped"].value == pytest.approx(100 * 2 / voxels)
    assert quality.figures["outliers"].value == pytest.approx(100 * 3 / voxels)


def test_values_that_are_no_numbers_are_poor_and_do_not_spoil_the_rest(healthy):
    chi = healthy["chi_ppm"].copy()
    chi[tuple(np.argwhere(healthy["mask"])[5])] = np.nan
    quality = assess(**healthy | {"chi_ppm": chi})
    assert codes(quality) == ["chi_implausible"]
    assert quality.verdict == "poor"
    assert all(math.isfinite(figure.value) for figure in quality.figures.values())


def test_streaks_and_smoothing_show_on_the_cone(healthy):
    from qsm_edge.fft import fast_shape, irfftn, rfftn
    from qsm_edge.kernels import dipole

    geo, mask, chi = healthy["series"].geometry, healthy["mask"], healthy["chi_ppm"]
    shape = fast_shape(chi.shape, 12)
    kernel = dipole(shape, geo.voxel_mm, geo.b0_dir, chi)
    noisy = rfftn(healthy["local_ppm"] + np.random.default_rng(0).normal(0, 0.01, chi.shape).astype(np.float32), shape)

    def balance(inverse):
        inverted = irfftn((noisy * inverse).astype(np.complex64), shape)[tuple(slice(n) for n in chi.shape)]
        return cone_balance(np.where(mask, inverted, 0), mask, geo)

    assert cone_balance(chi, mask, geo) == pytest.approx(1, abs=0.25)
    assert balance(kernel / (kernel**2 + 0.05)) < 0.6
    assert balance(np.where(np.abs(kernel) < 0.02, 0, 1 / np.where(kernel == 0, 1, kernel))) > 3


def test_notes_that_came_in_come_first_and_once():
    parts = factory.head(snr=8.0)
    source = Source("x", "y", notes=(Note("duplicate_dropped", "two"),))
    parts["series"] = dataclasses.replace(parts["series"], source=source)
    quality = assess(**parts, notes=(Note("low_snr", "said before"), Note("mask_by_threshold", "no network")))
    assert codes(quality) == ["duplicate_dropped", "low_snr", "mask_by_threshold"]
    assert quality.notes[1].text == "said before"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("single_echo", "good"),
        ("offset_correction", "good"),
        ("device_fallback", "good"),
        ("mask_by_threshold", "review"),
    ],
)
def test_a_note_that_informs_asks_for_nothing(healthy, code, verdict):
    assert assess(**healthy, notes=[Note(code, "")]).verdict == verdict


def test_every_code_is_in_the_vocabulary_and_every_figure_finite(healthy):
    worst = negated(healthy) | {"residual": healthy["residual"] + 1, "chi_ppm": -1000 * healthy["chi_ppm"]}
    quality = assess(**worst)
    assert {"high_residual", "many_unreliable", "values_clipped", "chi_implausible", "sign_suspect"} <= set(
        codes(quality)
    )
    assert set(codes(quality)) <= set(REASONS)
    assert all(math.isfinite(figure.value) and figure.meaning for figure in quality.figures.values())


def test_inputs_are_untouched(healthy):
    frozen = {}
    for name, value in healthy.items():
        frozen[name] = value
        if isinstance(value, np.ndarray):
            frozen[name] = value.copy()
            frozen[name].setflags(write=False)
    assert assess(**frozen) == assess(**healthy)


def test_volumes_of_another_shape_are_our_own_fault(healthy):
    with pytest.raises(InternalError) as caught:
        assess(**healthy | {"weight": healthy["weight"][1:]})
    assert caught.value.code == "internal"
    assert "weight" in caught.value.got
