"""Laws of the sample series: what is shipped is what the generator makes, and every encoding holds the same signal."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from dicom_samples import generate
from dicom_samples.encode import ENCODINGS, encode, save
from dicom_samples.head import dipole_field, ellipsoid
from qsm_edge.types import Geometry

FOLDER = Path(generate.__file__).parent
ECHO_TIMES_S, B0_TESLA = (0.004, 0.011, 0.0185), 3.0


def oblique(shape=(5, 8, 7)) -> Geometry:
    a = np.deg2rad(20)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = turn[:, ::-1] * (3.0, 1.25, 1.5)
    affine[:3, 3] = (-40.125, -50.5, 12.0625)
    return Geometry(shape, affine)


def signal(shape=(5, 8, 7)) -> np.ndarray:
    random = np.random.default_rng(5)
    magnitude = random.uniform(0.2, 1.0, (len(ECHO_TIMES_S), *shape))
    return magnitude * np.exp(1j * random.uniform(-np.pi, np.pi, magnitude.shape))


def images(datasets):
    """(component, echo time [ms], position, orientation, rescaled plane) of every image, classic or enhanced."""
    for d in datasets:
        frames = d.get("PerFrameFunctionalGroupsSequence")
        if frames is None:
            raw = d.get((0x0043, 0x102F))
            component = "MPRI"[raw.value] if raw is not None else next(c for c in "PM" if c in d.ImageType[2:])
            scale = float(d.get("RescaleSlope", 1)), float(d.get("RescaleIntercept", 0))
            position, orientation = d.ImagePositionPatient, d.ImageOrientationPatient
            yield component, float(d.EchoTime), position, orientation, d.pixel_array * scale[0] + scale[1]
            continue
        for groups, plane in zip(frames, d.pixel_array, strict=True):
            transformation = groups.PixelValueTransformationSequence[0]
            component = groups.MRImageFrameTypeSequence[0].ComplexImageComponent[0]
            scale = float(transformation.RescaleSlope), float(transformation.RescaleIntercept)
            position = groups.PlanePositionSequence[0].ImagePositionPatient
            orientation = groups.PlaneOrientationSequence[0].ImageOrientationPatient
            echo_time = float(groups.MREchoSequence[0].EffectiveEchoTime)
            yield component, echo_time, position, orientation, plane * scale[0] + scale[1]


def turn_of_phase(encoding: str) -> float:
    """The rescaled value of a full turn."""
    if encoding in ("siemens_bare", "uih"):
        return 4096.0
    if encoding.startswith("siemens") or encoding == "ge_phase_4096":
        return 8192.0
    return 2000 * np.pi


def decoded(datasets, geometry, echo_times_s, encoding):
    """The complex signal (echo, z, y, x) that the headers describe, up to one factor."""
    parts: dict[str, np.ndarray] = {}
    inverse = np.linalg.inv(geometry.affine_lps)
    unit = geometry.affine_lps[:3, :3] / geometry.voxel_mm
    for component, echo_time, position, orientation, plane in images(datasets):
        index = inverse @ [*map(float, position), 1.0]
        z, echo = round(index[0]), int(np.argmin(np.abs(np.asarray(echo_times_s) * 1e3 - echo_time)))
        assert np.abs(index - [z, 0, 0, 1]).max() < 1e-6
        assert np.abs(np.asarray(orientation, float) - [*unit[:, 2], *unit[:, 1]]).max() < 1e-9
        assert abs(echo_time - 1e3 * echo_times_s[echo]) < 1e-9
        if component not in parts:
            parts[component] = np.full((len(echo_times_s), *geometry.shape), np.nan)
        assert np.isnan(parts[component][echo, z]).all(), "the same image twice"
        parts[component][echo, z] = plane
    assert not any(np.isnan(volume).any() for volume in parts.values())
    if "R" in parts:
        values = parts["R"] + 1j * parts["I"]
    else:
        offset = 2048 if encoding in ("siemens_bare", "uih") else 0
        values = parts["M"] * np.exp(2j * np.pi * (parts["P"] - offset) / turn_of_phase(encoding))
    if encoding.startswith("ge"):
        values = values.conj()
    if encoding == "ge_real_imaginary":
        values = values * np.where(np.arange(geometry.shape[0]) % 2, -1, 1)[:, None, None]
    return values


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_holds_the_signal_that_went_in(encoding):
    values = decoded(encode(signal(), oblique(), ECHO_TIMES_S, B0_TESLA, encoding), oblique(), ECHO_TIMES_S, encoding)
    step = 2 * np.pi / 4096
    assert np.abs(np.angle(values * signal().conj())).max() < 0.51 * step + (encoding.startswith("ge_real")) * step
    ratio = np.abs(values) / np.abs(signal())
    assert np.ptp(ratio) / ratio.mean() < 0.01


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_same_signal_gives_the_same_bytes_and_another_name_other_uids(tmp_path, encoding):
    shape = (2, 4, 6)
    one, two, other = (
        save(encode(signal(shape), oblique(shape), ECHO_TIMES_S, B0_TESLA, encoding, seed_name=seed), tmp_path / folder)
        for folder, seed in (("one", "a"), ("two", "a"), ("other", "b"))
    )
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    uids = [{pydicom.dcmread(p).SOPInstanceUID for p in paths} for paths in (one, other)]
    assert uids[0].isdisjoint(uids[1])
    assert len(uids[0]) == len(one)


def test_what_vendors_do_to_confuse_is_there():
    made = {name: encode(signal(), oblique(), ECHO_TIMES_S, B0_TESLA, name) for name in ENCODINGS}
    assert {d.EchoNumbers for d in made["ge_real_imaginary"]} == {1}
    assert all("EchoNumbers" not in d for d in made["siemens_xa_classic"])
    assert len({d.SeriesNumber for d in made["siemens_xa_classic"]}) == 2 * len(ECHO_TIMES_S)
    assert not any("RescaleSlope" in d for d in made["siemens_bare"])
    assert len({d.SeriesInstanceUID for d in made["philips_classic"]}) == 1
    places = [float(d.SliceLocation) for d in made["philips_classic"]]
    assert places != sorted(places)
    (enhanced,) = made["philips_enhanced"]
    kinds = {g.PixelValueTransformationSequence[0].RescaleType for g in enhanced.PerFrameFunctionalGroupsSequence}
    assert kinds == {"US"}
    assert enhanced.ComplexImageComponent == "MIXED"
    assert len(made["siemens_xa_enhanced"]) == 2 * len(ECHO_TIMES_S)


def test_an_unknown_encoding_or_a_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match="no encoding"):
        encode(signal(), oblique(), ECHO_TIMES_S, B0_TESLA, "bruker")
    with pytest.raises(ValueError, match="shape"):
        encode(signal()[:2], oblique(), ECHO_TIMES_S, B0_TESLA, "siemens_classic")


def test_the_phantom_obeys_the_physics_of_a_sphere():
    """Outside a sphere of chi in vacuum the relative field is chi/3 (a/r)^3 (3 cos^2 - 1); inside it is zero."""
    grid = oblique((61, 67, 63))
    grid = Geometry(grid.shape, grid.affine_lps @ np.diag([1 / 3.0, 1 / 1.25, 1 / 1.5, 1.0]))
    centre = grid.affine_lps @ [30, 33, 31, 1]
    index = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    points = [
        sum(grid.affine_lps[i, j] * index[j] for j in range(3)) + grid.affine_lps[i, 3] - centre[i] for i in range(3)
    ]
    radius = 9.0
    sphere = np.clip(0.5 - ellipsoid(points, (0, 0, 0), (radius,) * 3), 0, 1)
    field = dipole_field(sphere, grid)
    distance = np.sqrt(sum(p * p for p in points))
    analytic = (radius / distance.clip(1)) ** 3 / 3 * (3 * (points[2] / distance.clip(1)) ** 2 - 1)
    shell = (distance > radius + 2.5) & (distance < 20)
    error = (field - analytic)[shell]
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(analytic[shell] ** 2))
    assert np.abs(error).max() < 0.02
    assert np.abs(field[distance < radius - 2.5]).max() < 0.02


# ------------------------------------------------------------------------------------------------ what is shipped


def test_the_checksums_are_those_of_the_files():
    wanted = dict(reversed(line.split("  ", 1)) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    files = [p for name in generate.ENCODED for p in (FOLDER / name).iterdir()]
    files += [FOLDER / "chi_true.nii.gz", FOLDER / "mask.nii.gz"]
    assert {p.relative_to(FOLDER).as_posix() for p in files} == set(wanted)
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted[path.relative_to(FOLDER).as_posix()], path


def test_all_samples_together_are_small():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) < 25e6


@cache
def shipped(encoding):
    return [pydicom.dcmread(path) for path in sorted((FOLDER / encoding).iterdir())]


def test_nobody_is_in_them():
    for encoding in generate.ENCODED:
        for d in shipped(encoding)[::40]:
            assert (str(d.PatientName), d.PatientID, d.PatientBirthDate) == ("SYNTHETIC^HEAD", "SYN01", "")


def test_every_encoding_is_a_study_of_its_own():
    assert len({shipped(encoding)[0].StudyInstanceUID for encoding in generate.ENCODED}) == len(generate.ENCODED)


def test_the_encodings_hold_the_same_signal_up_to_their_quantisation():
    grid = generate.sample_geometry()
    volumes = {name: decoded(shipped(name), grid, generate.ECHO_TIMES_S, name) for name in generate.ENCODED}
    first = volumes.pop("siemens_classic")
    np.testing.assert_array_equal(
        first, decoded(shipped("siemens_xa_enhanced"), grid, generate.ECHO_TIMES_S, "siemens")
    )
    bright = np.abs(first) > 0.1 * np.percentile(np.abs(first), 99)
    for name, values in volumes.items():
        assert np.abs(np.angle(values * first.conj()))[bright].max() < 1.3 * 2 * np.pi / 4096, name


def test_the_generator_makes_what_is_shipped():
    """Within one unit of the stored values, because Fourier transforms round differently from machine to machine."""
    values, chi_ppm, mask = generate.sample_signal()
    for made, there in zip(generate.sample(values, "philips_enhanced"), shipped("philips_enhanced"), strict=True):
        difference = made.pixel_array.astype(int) - there.pixel_array
        difference = np.where(np.abs(difference) > 4000, 0, difference)  # a phase may round across the end of its range
        assert np.abs(difference).max() <= 1
        assert [e for e in made if e.keyword != "PixelData"] == [e for e in there if e.keyword != "PixelData"]
    assert (
        np.abs(np.asarray(nibabel.load(FOLDER / "chi_true.nii.gz").dataobj).transpose(2, 1, 0) - chi_ppm).max() < 1e-3
    )
    stored = np.asarray(nibabel.load(FOLDER / "mask.nii.gz").dataobj).transpose(2, 1, 0) > 0
    assert (stored != mask).mean() < 1e-4


def test_the_truth_lies_on_the_grid_of_the_images_and_looks_like_a_head():
    grid = generate.sample_geometry()
    mask = nibabel.load(FOLDER / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, grid.affine_ras_xyz, atol=1e-4)
    inside = np.asarray(mask.dataobj).transpose(2, 1, 0) > 0
    assert 1200 < inside.sum() * grid.voxel_ml < 1600
    chi_ppm = np.asarray(nibabel.load(FOLDER / "chi_true.nii.gz").dataobj).transpose(2, 1, 0)
    assert chi_ppm[inside].max() == pytest.approx(0.8, abs=0.01)  # the bleed
    assert np.median(chi_ppm[inside]) == pytest.approx(-0.01, abs=0.03)
    assert grid.b0_dir[0] < 0.98  # oblique
    assert grid.shape[0] % 2 == 1
