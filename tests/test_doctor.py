"""The self-test's case is right, and a broken installation does not pass for a sound one."""

from __future__ import annotations

import functools
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qsm_edge import cli, doctor, fft, kernels, selftest
from qsm_edge.types import Geometry

GRID = Geometry.from_axes((40, 44, 48), (1.5, 1.2, 1.0), (0.8, 0.36, 0.48))


def test_the_share_of_voxels_has_the_volume_of_the_ball():
    share, _ = selftest.ball(GRID, (1.0, -2.0, 3.0), 8.0)
    assert share.sum() * GRID.voxel_ml == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.002)
    assert share.min() == 0
    assert share.max() == 1


def test_the_field_on_the_axis_of_b0_and_beside_it():
    geometry = Geometry.from_axes((41, 41, 41), b0_dir=(1.0, 0.0, 0.0))
    _, field = selftest.ball(geometry, (-0.5, -0.5, -0.5), 5.0)  # the middle of the grid of 41 is at 20.5
    assert field[30, 20, 20] == pytest.approx(2 / 3 * (5 / 10) ** 3)
    assert field[20, 30, 20] == pytest.approx(-1 / 3 * (5 / 10) ** 3)
    assert field[20, 20, 20] == 0


def test_the_formula_agrees_with_the_dipole_convolution_on_an_oblique_grid():
    share, field = selftest.ball(GRID, (1.0, -2.0, 3.0), 8.0)
    shape = fft.fast_shape(GRID.shape, 60)
    spectrum = fft.rfftn(share.astype(np.float32), shape)
    spectrum *= kernels.dipole(shape, GRID.voxel_mm, GRID.b0_dir, np.zeros(1, np.float32))
    convolved = fft.crop(fft.irfftn(spectrum, shape), GRID.shape)
    away = np.abs(np.sqrt(sum(o**2 for o in selftest.offsets_mm(GRID, (1.0, -2.0, 3.0)))) - 8.0) > 3.0
    assert np.linalg.norm((convolved - field)[away]) < 0.06 * np.linalg.norm(field[away])


def test_the_case_is_oblique_wraps_and_has_its_sinus_outside_the_head():
    series, mask, field, chi = phantom()
    assert series.phase_rad.dtype == np.float32
    assert series.magnitude.shape == (5, *selftest.SHAPE)
    assert min(abs(b) for b in series.geometry.b0_dir) > 0.1
    assert np.ptp(field[mask]) * 2 * math.pi * 42.577 * 3 * 0.025 > 2 * math.pi
    assert chi[mask].max() == pytest.approx(selftest.BALL_CHI_PPM)
    assert chi[~mask].max() == 0
    away = math.dist(selftest.AIR_CENTRE_MM, (0, 0, 0))
    assert away > selftest.HEAD_RADIUS_MM + selftest.AIR_RADIUS_MM


phantom = functools.cache(selftest.phantom)


def perfect(scale: float = 1.0) -> Any:
    """A stand-in for the chain that knows the answer, off by a factor."""
    _, _, field, chi = phantom()

    def reconstruct(series, *, mask, device, progress):
        return SimpleNamespace(series=series, chi_ppm=scale * chi, field_ppm=field, mask=mask)

    return reconstruct


def test_a_perfect_chain_has_no_errors(monkeypatch):
    monkeypatch.setattr("qsm_edge.pipeline.reconstruct", perfect())
    monkeypatch.setattr(selftest, "phantom", phantom)
    (record,) = selftest.self_test(["cpu"], lambda *_: None)
    assert record["field_error_ppm"] == 0
    assert record["chi_error_ppm"] < 1e-12
    assert record["chi_nrmse_percent"] == 0
    assert record["mask_kept"] == 1
    assert record["problems"] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("field_error_ppm", 1.0), ("chi_error_ppm", float("nan")), ("largest_difference_from_cpu_ppm", 0.1)],
)
def test_each_measure_has_a_bound_and_nan_is_beyond_it(name, value):
    sound = {"field_error_ppm": 0.001, "chi_error_ppm": 0.01, "largest_difference_from_cpu_ppm": 0.0}
    assert selftest.problems(sound) == []
    assert len(selftest.problems({**sound, name: value})) == 1


@pytest.fixture
def quick(monkeypatch):
    """The doctor with a chain that knows the answer and a small transform, so that only the doctor is tested."""
    monkeypatch.setattr("qsm_edge.pipeline.reconstruct", perfect())
    monkeypatch.setattr(selftest, "phantom", phantom)
    monkeypatch.setattr(doctor, "FFT_SHAPE", (8, 8, 8))
    return monkeypatch


def examine(capsys) -> tuple[int, dict[str, Any]]:
    status = cli.main(["doctor", "--json", "--quiet"])
    return status, json.loads(capsys.readouterr().out)


def test_a_sound_installation_is_healthy(quick, capsys):
    status, report = examine(capsys)
    assert (status, report["healthy"], report["errors"]) == (0, True, [])
    import numpy

    assert report["packages"]["numpy"] == numpy.__version__
    assert {"onnxruntime", "highdicom", "pydicom", "nibabel", "scipy"} <= set(report["packages"])
    assert report["devices"]
    assert "ms there and back" in report["fft"]["scipy"]
    assert report["fft"]["in use"].split(";")[0] == "scipy"
    assert report["codecs"]


def test_a_chain_that_computes_something_else_is_not(quick, capsys):
    quick.setattr("qsm_edge.pipeline.reconstruct", perfect(scale=1.3))
    status, report = examine(capsys)
    assert (status, report["healthy"]) == (1, False)
    assert "susceptibility of the ball" in report["errors"][0]


def test_a_chain_that_breaks_is_not(quick, capsys):
    def broken(*args, **options):
        raise ImportError("libomp.so")

    quick.setattr("qsm_edge.pipeline.reconstruct", broken)
    status, report = examine(capsys)
    assert (status, report["healthy"]) == (1, False)
    assert "libomp.so" in report["errors"][0]


def test_an_accelerator_that_disagrees_is_not(quick, capsys):
    right, wrong = perfect(), perfect(scale=1.02)

    def reconstruct(*args, device, **options):
        return (wrong if device == "cuda" else right)(*args, device=device, **options)

    quick.setattr("qsm_edge.pipeline.reconstruct", reconstruct)
    quick.setattr("qsm_edge.backend.devices", lambda: ["cpu (2 threads)", "cuda:0 Some GPU"])
    status, report = examine(capsys)
    assert status == 1
    assert [record["device"] for record in report["self_test"]] == ["cpu", "cuda"]
    assert report["self_test"][1]["largest_difference_from_cpu_ppm"] == pytest.approx(0.004)
    assert "another map than the CPU" in report["errors"][0]


def test_what_the_cpu_said_stays_when_the_accelerator_breaks(quick, capsys):
    right = perfect()

    def reconstruct(*args, device, **options):
        if device == "cuda":
            raise RuntimeError("no kernel image")
        return right(*args, device=device, **options)

    quick.setattr("qsm_edge.pipeline.reconstruct", reconstruct)
    quick.setattr("qsm_edge.backend.devices", lambda: ["cpu (2 threads)", "cuda:0 Some GPU"])
    status, report = examine(capsys)
    assert status == 1
    assert [record["device"] for record in report["self_test"]] == ["cpu"]
    assert "no kernel image" in report["errors"][0]


def test_rival_wheels_are_an_error(quick, capsys):
    quick.setattr("qsm_edge.network.installed_runtimes", lambda: ("onnxruntime", "onnxruntime-gpu"))
    status, report = examine(capsys)
    assert status == 1
    assert "overwrite each other" in report["errors"][0]


def test_no_runtime_at_all_is_a_warning(quick, capsys):
    quick.setattr("qsm_edge.network.installed_runtimes", lambda: ())
    status, report = examine(capsys)
    assert status == 0
    assert any("qsm-edge[cpu]" in text for text in report["warnings"])


def test_little_memory_is_a_warning(quick, capsys):
    quick.setattr("qsm_edge.backend.available_bytes", lambda device: 500_000_000)
    status, report = examine(capsys)
    assert status == 0
    assert any("0.5 GB" in text for text in report["warnings"])


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_a_transform_that_does_not_come_back_is_an_error(quick, capsys, error):
    right = fft.irfftn
    quick.setattr(fft, "irfftn", lambda spectrum, shape: right(spectrum, shape) + np.float32(error))
    status, report = examine(capsys)
    assert status == 1
    assert any("Fourier transform" in text for text in report["errors"])


def test_the_text_says_the_same(quick, capsys):
    assert cli.main(["doctor", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "a ball of 0.200 ppm reads 0.200 ppm" in text
    assert text.endswith("\nhealthy\n")


def test_the_real_chain_passes():
    """The whole chain, on a head in an oblique field with a sinus beside it, against a formula."""
    (record,) = selftest.self_test(["cpu"], lambda *_: None)
    assert record["problems"] == []
    assert record["mask_kept"] > 0.9
