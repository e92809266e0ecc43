"""The whole chain: an analytic head, the second device, its order, its memory and its refusals."""

from __future__ import annotations

import dataclasses

import array_api_strict
import numpy as np
import pytest
import scipy.ndimage as ndi

from qsm_edge import backend, background, network
from qsm_edge.errors import InputRefused, ResourceError, UsageError
from qsm_edge.fft import crop, fast_shape, irfftn, rfftn
from qsm_edge.kernels import dipole
from qsm_edge.pipeline import chain, reconstruct
from qsm_edge.polarity import align_polarity
from qsm_edge.provenance import Recorder
from qsm_edge.recipe import Recipe
from qsm_edge.stages import STAGES
from qsm_edge.strong_sources import Sources
from qsm_edge.types import Geometry, GreSeries
from qsm_edge.units import rad_per_ppm
from tests import network_factory

SHAPE = (38, 47, 42)
TIMES = (0.004, 0.0095, 0.014, 0.021)


def head(*, times=TIMES, noise=0.002, seed=3, bleed_ppm=0.0):
    """A ball of tissue with two spheres inside, a bleed that has no signal, if it is told how strong, and a strong source
    outside; oblique, anisotropic, uneven echoes."""
    rng = np.random.default_rng(seed)
    geometry = Geometry.from_axes(SHAPE, (1.4, 1.0, 1.1), (0.9, -0.3, 0.31))
    at = np.stack(
        np.meshgrid(*[(np.arange(n) - n / 2) * v for n, v in zip(SHAPE, geometry.voxel_mm, strict=True)], indexing="ij")
    )

    def ball(centre, radius):
        far = np.sqrt(sum((a - c) ** 2 for a, c in zip(at, centre, strict=True)))
        return np.clip(radius - far + 0.5, 0, 1)  # edges of one voxel, or the field rings

    mask = ball((0, 0, 0), 17) >= 0.5
    chi = 0.15 * ball((4, -5, 3), 4) - 0.08 * ball((-5, 6, -2), 4.5)
    bleed = ball((0, -5, -8), 4)
    chi = np.where(bleed > 0, bleed_ppm * bleed, chi) if bleed_ppm else chi
    outer = chi + 6.0 * ball((0, 24, 0), 4)
    shape = fast_shape(SHAPE, 24)
    response = dipole(shape, geometry.voxel_mm, geometry.b0_dir, chi.astype(np.float32))
    field = crop(irfftn(response * rfftn(outer.astype(np.float32), shape), shape), SHAPE)
    dark = bleed > 0 if bleed_ppm else ~mask
    strength = np.where(mask & ~dark, 1.0, 0.001 if bleed_ppm else 0.02) * (1.2 - 0.3 * at[2] / 25)
    signal = np.stack(
        [strength * np.exp(-20 * t) * np.exp(1j * (0.7 + 0.02 * at[1] + rad_per_ppm(3.0, t) * field)) for t in times]
    )
    signal += noise * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))
    series = GreSeries(np.abs(signal).astype(np.float32), np.angle(signal).astype(np.float32), times, 3.0, geometry)
    return series, mask, np.where(mask, chi, 0).astype(np.float32), field


@pytest.mark.parametrize("name", Recipe.names())
def test_the_chain_finds_the_sources_of_an_analytic_head(name):
    series, mask, truth, field = head()
    result = reconstruct(series, name, mask=mask, device="cpu")
    inner = result.mask
    error = result.field_ppm - field
    assert np.std(error[mask] - np.median(error[mask])) < 0.002
    assert np.corrcoef(result.chi_ppm[inner], truth[inner])[0, 1] > 0.8
    for sphere in (truth > 0.14, truth < -0.075):
        ratio = (result.chi_ppm[sphere].mean() - np.median(result.chi_ppm[inner])) / truth[sphere].mean()
        assert 0.5 < ratio < 1.2
    assert not result.chi_ppm[~inner].any()
    assert not (inner & ~mask).any()
    assert inner.sum() > (0.99 if name == "default" else 0.7) * mask.sum()
    assert [r.stage for r in result.provenance.stages] == [
        "mask", "support", "unwrap", "echoes", "weight", "background", "strong_sources", "rim", "edges", "invert",
        "reference", "quality",
    ]  # fmt: skip


def test_a_bleed_without_signal_is_told_and_what_the_stage_no_longer_knows_has_no_weight(monkeypatch):
    """The bone that a mask holds there stays in it, with a value but no say."""
    series, mask, truth, _ = head(bleed_ppm=1.0)
    bone = ndi.binary_dilation(truth > 0.9, iterations=6) & mask & ~ndi.binary_erosion(mask, iterations=2)

    def with_bone(field, local, mask, geometry, weight, background):
        rest, known = background(field, bone)
        assert not known[bone].any()
        return Sources(0.1 * (local != 0), 0 * local, rest, known)

    found = reconstruct(series, mask=mask, device="cpu")
    shrunk = reconstruct(series, Recipe.load("default", ["strong_sources=none"]), mask=mask, device="cpu")
    bleed = truth > 0.9
    error = [abs(result.chi_ppm[bleed].mean() - truth[bleed].mean()) for result in (found, shrunk)]
    assert error[0] < 0.5 * error[1]
    said, silent = ({n.code: n.text for n in result.quality.notes} for result in (found, shrunk))
    assert "strong_sources" not in silent
    volume, wanted = float(said["strong_sources"].split(" mL")[0].split()[-1]), bleed.sum() * series.geometry.voxel_ml
    assert wanted < volume < 4 * wanted  # with the voxels beside it
    assert "bone" not in said["strong_sources"]
    monkeypatch.setitem(STAGES["strong_sources"], "superposed", with_bone)
    cut = reconstruct(series, mask=mask, device="cpu")
    assert bone.any()
    assert np.array_equal(cut.mask, mask)
    assert not cut.weight[bone].any()
    assert not cut.local_ppm[bone].any()
    assert np.isfinite(cut.chi_ppm).all()
    beside = ndi.binary_dilation(bone) & mask & ~bone & ndi.binary_erosion(mask, iterations=2) & (truth < 0.1)
    assert np.median(cut.weight[beside] / shrunk.weight[beside]) < 0.5  # it is the surface now
    (note,) = (n.text for n in cut.quality.notes if n.code == "strong_sources")
    assert f"{bone.sum() * series.geometry.voxel_ml:.1f} mL of the mask there were left out" in note


@pytest.mark.parametrize(("name", "bleed_ppm"), [*((name, 0.0) for name in Recipe.names()), ("default", 1.0)])
def test_the_whole_chain_stays_on_the_device_of_its_arrays(name, bleed_ppm):
    series, mask, _, _ = head(bleed_ppm=bleed_ppm)
    recipe = Recipe.load(name, ["background.iterations=8", "invert.iterations=5"] if name == "default" else [])
    quiet = lambda stage, fraction, text: None  # noqa: E731
    host, notes = chain(series, mask, recipe, Recorder("cpu"), quiet)
    assert ("strong_sources" in {note.code for note in notes}) is (bleed_ppm > 0)
    device = array_api_strict.Device("device1")
    put = lambda a: array_api_strict.asarray(a, device=device, copy=True)  # noqa: E731
    moved = dataclasses.replace(series, magnitude=put(series.magnitude), phase_rad=put(series.phase_rad))
    away, _ = chain(moved, put(mask), recipe, Recorder("cpu"), quiet)
    assert set(away) == set(host)
    for key, array in away.items():
        assert array.device == device, key
        np.testing.assert_allclose(backend.to_host(array), host[key], atol=2e-3 * max(np.abs(host[key]).max(), 1e-6))


def test_a_mask_drawn_too_narrow_moves_the_map_less_when_the_field_is_known_beyond_it():
    """And nothing outside the mask gets a value."""
    series, mask, _, _ = head()
    narrow = ndi.binary_erosion(mask, iterations=3)
    moved = {}
    for method in ("brain", "bright_rim"):
        recipe = Recipe.load("default", [f"support={method}"])
        wide, tight = (reconstruct(series, recipe, mask=m, device="cpu") for m in (mask, narrow))
        for part in (tight.chi_ppm, tight.field_ppm, tight.local_ppm, tight.weight, tight.residual):
            assert not part[~narrow].any()
        assert np.array_equal(tight.mask, narrow)
        difference = (tight.chi_ppm - wide.chi_ppm)[narrow]
        moved[method] = np.std(difference)
    assert moved["bright_rim"] < 0.7 * moved["brain"]


def test_inputs_are_read_only_and_two_runs_agree_to_the_bit():
    series, mask, _, _ = head()
    for array in (series.magnitude, series.phase_rad, mask):
        array.setflags(write=False)
    first, second = (reconstruct(series, "default", mask=mask, device="cpu") for _ in range(2))
    assert np.array_equal(first.chi_ppm, second.chi_ppm)
    assert first.provenance.digest == second.provenance.digest


def test_a_bipolar_train_gives_the_map_of_a_monopolar_one():
    times = (0.004, 0.009, 0.014, 0.019, 0.024)
    series, mask, _, _ = head(times=times)
    ramp = 0.6 + 0.05 * (np.arange(SHAPE[2]) - SHAPE[2] / 2)
    bent = series.phase_rad.copy()
    bent[1::2] += ramp.astype(np.float32)
    bent = np.angle(np.exp(1j * bent)).astype(np.float32)
    plain = reconstruct(series, mask=mask, device="cpu")
    bipolar = reconstruct(dataclasses.replace(series, phase_rad=bent), mask=mask, device="cpu")
    assert "offset_correction" in {note.code for note in bipolar.quality.notes}
    assert "offset_correction" not in {note.code for note in plain.quality.notes}
    assert np.abs(bipolar.chi_ppm - plain.chi_ppm)[mask].max() < 0.01


def test_a_train_whose_spacing_breaks_later_is_left_as_it_is():
    """The ramp shows in the first three echoes, but which of the later ones ran backwards is then not known."""
    even, broken = (0.004, 0.009, 0.014, 0.019), (0.004, 0.009, 0.014, 0.021)
    ramp = (0.6 + 0.05 * (np.arange(SHAPE[2]) - SHAPE[2] / 2)).astype(np.float32)
    for times, corrected in ((even, True), (broken, False)):
        series, mask, _, _ = head(times=times)
        bent = series.phase_rad.copy()
        bent[1::2] += ramp
        phase, notes = align_polarity(bent, series.magnitude, mask, times, series.geometry)
        assert bool(notes) is corrected
        assert (phase is bent) is not corrected


def test_one_echo_is_reconstructed_and_says_so():
    series, mask, truth, _ = head(times=(0.018,))
    result = reconstruct(series, mask=mask, device="cpu")
    assert "single_echo" in {note.code for note in result.quality.notes}
    assert result.r2star_per_s is None
    assert np.corrcoef(result.chi_ppm[mask], truth[mask])[0, 1] > 0.7


def test_a_mask_that_does_not_fit_or_is_empty_is_refused():
    series, mask, _, _ = head()
    with pytest.raises(InputRefused) as caught:
        reconstruct(series, mask=mask[1:])
    assert caught.value.code == "mask_grid"
    with pytest.raises(InputRefused) as caught:
        reconstruct(series, mask=np.zeros(SHAPE, bool))
    assert caught.value.code == "mask_empty"
    with pytest.raises(UsageError):
        reconstruct(series, mask="magic")


def test_too_little_memory_is_refused_with_numbers_before_anything_runs(monkeypatch):
    series, mask, _, _ = head()
    monkeypatch.setattr(backend, "available_bytes", lambda device: 10**6)
    stages = []
    with pytest.raises(ResourceError) as caught:
        reconstruct(series, mask=mask, progress=lambda stage, fraction, text: stages.append(stage))
    assert caught.value.code == "out_of_memory"
    assert "GB" in caught.value.got
    assert "unwrap" not in stages


def test_progress_rises_and_raising_from_it_stops_the_run():
    series, mask, _, _ = head()
    seen = []
    reconstruct(series, mask=mask, progress=lambda stage, fraction, text: seen.append(fraction))
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 1

    class Stop(Exception):
        pass

    def stop(stage, fraction, text):
        if stage == "invert":
            raise Stop

    with pytest.raises(Stop):
        reconstruct(series, mask=mask, progress=stop)


def test_every_stage_that_ran_is_in_the_methods_paragraph_with_its_source():
    series, mask, _, _ = head()
    provenance = reconstruct(series, mask=mask, device="cpu").provenance
    for record in provenance.stages:
        for doi in record.dois:
            assert doi in provenance.methods_text
    assert (
        provenance.recipe["invert"]["regularisation"]
        == Recipe.load("default").choices["invert"].options["regularisation"]
    )


@pytest.mark.parametrize("method", ["resharp", "ismv", "vsharp", "lbv"])
def test_a_mask_that_background_removal_eats_up_is_refused(method):
    series, _, _, _ = head(times=TIMES[:2])
    speck = np.zeros(SHAPE, bool)
    speck[18:21, 20:23, 20:23] = True
    options = {"vsharp": [], "lbv": ["background.peel=3"]}.get(method, ["background.radius_mm=40"])
    thin = speck if method == "lbv" else speck & (np.indices(SHAPE)[0] == 19)
    recipe = Recipe.load("fast", [f"background={method}", *options])
    with pytest.raises(InputRefused) as caught:
        reconstruct(series, recipe, mask=thin, device="cpu")
    assert caught.value.code == "mask_empty"
    assert method in caught.value.what


class Broken(Exception):
    """An error of the library behind the accelerator."""

    __module__ = "cupy_backends.cuda.api.runtime"


@pytest.mark.parametrize("error", [MemoryError(), Broken("no kernel image"), ImportError("libnvrtc")])
def test_what_the_accelerator_cannot_do_the_processor_does_and_a_note_says_so(monkeypatch, error):
    series, mask, _, _ = head()
    plain = reconstruct(series, "fast", mask=mask, device="cpu")
    monkeypatch.setattr(backend, "resolve_device", lambda name: "cpu" if name == "cpu" else "cuda")
    devices = []

    def to_device(array, device):
        devices.append(device)
        if device == "cuda":
            raise error
        return array

    monkeypatch.setattr(backend, "to_device", to_device)
    result = reconstruct(series, "fast", mask=mask)
    assert devices == ["cuda", "cpu", "cpu", "cpu"]
    assert np.array_equal(result.chi_ppm, plain.chi_ppm)
    assert [n.code for n in result.quality.notes if n.code == "device_fallback"] == ["device_fallback"]
    assert [r.stage for r in result.provenance.stages] == [r.stage for r in plain.provenance.stages]
    assert result.provenance.environment["device"].startswith("cpu")
    with pytest.raises(type(error)):
        reconstruct(series, "fast", mask=mask, device="cuda")


def test_an_accelerator_without_room_is_not_tried(monkeypatch):
    series, mask, _, _ = head()
    monkeypatch.setattr(backend, "resolve_device", lambda name: "cpu" if name == "cpu" else "cuda")
    monkeypatch.setattr(backend, "available_bytes", lambda device: 0 if device == "cuda" else 2**40)
    monkeypatch.setattr(backend, "to_device", lambda array, device: {"cpu": array}[device])
    result = reconstruct(series, "fast", mask=mask)
    assert "device_fallback" in {note.code for note in result.quality.notes}
    with pytest.raises(ResourceError) as caught:
        reconstruct(series, "fast", mask=mask, device="cuda")
    assert caught.value.code == "out_of_memory"


def test_an_error_of_ours_on_the_accelerator_is_no_reason_to_fall_back(monkeypatch):
    series, mask, _, _ = head()

    def wrong(*args, **options):
        raise ZeroDivisionError

    recipe = Recipe.load("fast")
    monkeypatch.setattr(backend, "resolve_device", lambda name: "cuda")
    monkeypatch.setattr(backend, "to_device", lambda array, device: array)
    monkeypatch.setitem(background.METHODS, "vsharp", wrong)
    with pytest.raises(ZeroDivisionError):
        reconstruct(series, recipe, mask=mask)


def test_a_note_of_the_mask_network_reaches_the_result(tmp_path, monkeypatch):
    """A provider that was wanted and did not run: from the network's door through masking and pipeline to the reader."""
    magnitude, _, _, geometry = network_factory.series()
    phase = np.random.default_rng(1).uniform(-3, 3, magnitude.shape).astype(np.float32)
    series = GreSeries(magnitude, phase, (0.01,), 3.0, geometry)
    monkeypatch.setattr(network, "_runtime", pretending(network._runtime()))
    recipe = Recipe.load("fast", ["mask=network", 'mask.providers="tensorrt,cpu"'])
    result = reconstruct(series, recipe, model=str(network_factory.installed(tmp_path)), device="cpu")
    (note,) = [note for note in result.quality.notes if note.code == "network_fallback"]
    assert "Tensorrt" in note.text


def pretending(runtime):
    """onnxruntime without any provider but the CPU's, whatever is installed."""

    class Runtime:
        def __getattr__(self, name):
            return getattr(runtime, name)

        def get_available_providers(self):
            return [network.CPU]

    return Runtime
