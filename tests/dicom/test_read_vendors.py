"""Every vendor's encoding brings the same signal back: magnitude, phase that grows with the field, place, times."""

from __future__ import annotations

import json
from functools import cache

import dicom_factory as factory
import numpy as np
import pytest

from qsm_edge.dicom import find, read_series
from qsm_edge.types import SourceInstance

#: What a stored phase is worth [rad]: half of the coarsest step, and what 16 bits of a weak complex signal leave.
HALF_STEP_RAD = {"ge_real_imaginary": 1.3e-3, "ge_real_imaginary_unchopped": 1.3e-3}


#: One encoding of every family.
FEW = ("siemens_bare", "siemens_xa_enhanced", "philips_classic", "philips_enhanced", "ge_real_imaginary")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of an unspoilt acquisition, written once."""

    @cache
    def write(encoding: str, **how):
        return factory.write(factory.scan(encoding, **how), tmp_path_factory.mktemp(encoding))

    return write


def wrapped(phase: np.ndarray) -> np.ndarray:
    return np.angle(np.exp(1j * phase))


def check(series, signal: np.ndarray, geometry, half_step_rad: float = 7.8e-4) -> None:
    """The series is `signal` on `geometry`, up to the scale of the magnitude and what quantisation does."""
    magnitude = np.abs(signal)
    scale = float((series.magnitude * magnitude).sum() / (magnitude**2).sum())
    assert np.abs(series.magnitude / scale - magnitude).max() < 2e-4 * magnitude.max()
    assert np.abs(wrapped(series.phase_rad - np.angle(signal))).max() < half_step_rad
    assert series.geometry.shape == geometry.shape
    np.testing.assert_allclose(series.geometry.affine_lps, geometry.affine_lps, atol=2e-6)


@pytest.mark.parametrize(
    ("encoding", "plane"),
    [(e, "transverse") for e in factory.READABLE] + [(e, p) for e in FEW for p in ("sagittal", "coronal")],
)
def test_the_signal_comes_back(folder_of, encoding, plane):
    series = read_series(folder_of(encoding, plane=plane))
    check(series, factory.signal(), factory.geometry(plane), HALF_STEP_RAD.get(encoding, 7.8e-4))
    assert series.echo_times_s == pytest.approx(factory.ECHO_TIMES_S, abs=1e-9)
    assert series.b0_tesla == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("encoding", factory.READABLE)
def test_arrays_are_as_the_chain_wants_them(folder_of, encoding):
    series = read_series(folder_of(encoding, plane="transverse"))
    for array in (series.magnitude, series.phase_rad):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.shape == (3, *factory.SHAPE)
    assert np.float32(-np.pi) < series.phase_rad.min()
    assert series.phase_rad.max() <= np.float32(np.pi)
    assert series.magnitude.min() >= 0


@pytest.mark.parametrize("encoding", ["siemens_classic", "siemens_xa_enhanced"])
def test_b0_lies_where_the_slices_are_tilted_to(tmp_path, encoding):
    series = read_series(factory.write(factory.scan(encoding, degrees=(25, 0, 0)), tmp_path / "in"))
    z, y, x = series.geometry.b0_dir
    assert (z, abs(y), x) == pytest.approx((np.cos(np.deg2rad(25)), np.sin(np.deg2rad(25)), 0), abs=1e-6)


@pytest.mark.parametrize("encoding", ["siemens_classic", "philips_enhanced", "ge_real_imaginary", "ge_phase"])
@pytest.mark.parametrize("slices", [4, 7])
def test_even_and_odd_numbers_of_slices(tmp_path, encoding, slices):
    shape = (slices, 12, 10)
    series = read_series(factory.write(factory.scan(encoding, shape=shape), tmp_path / "in"))
    check(series, factory.signal(shape), factory.geometry(shape=shape), 1.3e-3)


@pytest.mark.parametrize("encoding", ["siemens_xa_classic", "siemens_xa_enhanced", "philips_enhanced", "ge_phase"])
@pytest.mark.parametrize("times", [(0.02,), (0.0031, 0.0102, 0.0127, 0.0255)])
def test_one_echo_and_uneven_echoes(tmp_path, encoding, times):
    series = read_series(factory.write(factory.scan(encoding, echo_times_s=times), tmp_path / "in"))
    check(series, factory.signal(echo_times_s=times), factory.geometry(), 1.5e-3)
    assert series.echo_times_s == pytest.approx(times, abs=1e-9)


@pytest.mark.parametrize("encoding", ["siemens_classic", "siemens_xa_classic", "philips_classic", "ge_real_imaginary"])
def test_names_and_instance_numbers_of_files_do_not_matter(tmp_path, folder_of, encoding):
    datasets = factory.scan(encoding)
    plain = read_series(folder_of(encoding, plane="transverse"))
    order = np.random.default_rng(3).permutation(len(datasets))
    folder = factory.write([datasets[i] for i in order], tmp_path / "shuffled", "{:x}".format)
    shuffled = read_series(folder)
    np.testing.assert_array_equal(plain.magnitude, shuffled.magnitude)
    np.testing.assert_array_equal(plain.phase_rad, shuffled.phase_rad)
    assert plain.source.slug == shuffled.source.slug


def test_shuffled_instance_numbers_do_not_shuffle_slices(tmp_path):
    datasets = factory.scan("ge_real_imaginary")
    numbers = np.random.default_rng(4).permutation(len(datasets)) + 1
    for dataset, number in zip(datasets, numbers, strict=True):
        dataset.InstanceNumber = int(number)
    check(read_series(factory.write(datasets, tmp_path / "in")), factory.signal(), factory.geometry(), 1.3e-3)


def test_classic_and_enhanced_philips_are_identical_to_the_last_bit(folder_of):
    one, other = (read_series(folder_of(f"philips_{kind}", plane="transverse")) for kind in ("classic", "enhanced"))
    for name in ("magnitude", "phase_rad"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.geometry.affine_lps, other.geometry.affine_lps)
    assert (one.echo_times_s, one.b0_tesla) == (other.echo_times_s, other.b0_tesla)


@pytest.mark.parametrize(
    ("encoding", "slug_starts", "said"),
    [
        ("siemens_classic", "0011_gre_qsm_", ("siemens", "pi at 4096", "not looked for")),
        ("siemens_bare", "0011_gre_qsm_", ("siemens", "12 bits for a turn, by range", "not looked for")),
        ("siemens_xa_classic", "0011_gre_qsm_", ("siemens", "pi at 4096", "not looked for")),
        ("philips_enhanced", "0401_qsm_", ("philips", "mrad", "not looked for")),
        ("ge_real_imaginary", "0005_ax_qsm_", ("ge", "real and imaginary", "chopped")),
        ("ge_real_imaginary_unchopped", "0005_ax_qsm_", ("ge", "real and imaginary", "smooth")),
        ("ge_phase", "0005_ax_qsm_", ("ge", "mrad, by range", "smooth")),
        ("ge_phase_4096", "0005_ax_qsm_", ("ge", "pi at 4096, by range", "smooth")),
    ],
)
def test_the_facts_say_how_it_was_read(folder_of, encoding, slug_starts, said):
    source = read_series(folder_of(encoding, plane="transverse")).source
    assert (source.vendor, source.facts["phase_scale"], source.facts["chop"]) == said
    assert source.slug.startswith(slug_starts)
    assert source.facts["echo_times_ms"] == pytest.approx([4.0, 11.5, 20.0])


@pytest.mark.parametrize("encoding", ["siemens_bare", "philips_enhanced", "ge_phase"])
def test_a_description_is_ready_for_json(folder_of, encoding):
    with find(folder_of(encoding, plane="transverse")) as inventory:
        (acquisition,) = inventory.acquisitions
        before, after = acquisition.describe(), acquisition.describe(acquisition.load())
    assert json.loads(json.dumps(before)) == before
    assert json.loads(json.dumps(after)) == after
    assert after.keys() - before.keys() == {"phase_scale", "chop", "sign"}
    assert before["matrix"] == list(factory.SHAPE)
    assert before["voxel_mm"] == pytest.approx(factory.VOXEL_MM, abs=1e-4)


@pytest.mark.parametrize("encoding", factory.READABLE)
def test_every_slice_names_all_of_its_images(folder_of, encoding):
    datasets = factory.scan(encoding)
    series = read_series(folder_of(encoding, plane="transverse"))
    assert [len(images) for images in series.source.slices] == [6] * factory.SHAPE[0]
    named = {image for images in series.source.slices for image in images}
    assert len(named) == 6 * factory.SHAPE[0]
    if "enhanced" not in encoding and "mixed" not in encoding:
        places = {str(d.SOPInstanceUID): factory.place(d) for d in datasets}
        for z, images in enumerate(series.source.slices):
            here = {round(places[image.sop_instance_uid], 2) for image in images}
            assert here == {round(factory.slice_of(datasets, z), 2)}
        assert named == {
            SourceInstance(str(d.SOPClassUID), str(d.SOPInstanceUID), str(d.SeriesInstanceUID)) for d in datasets
        }
    else:
        assert {image.frame for image in named} <= set(range(1, 1 + max(d.NumberOfFrames for d in datasets)))
        assert min(image.frame for image in named) == 1


def test_ge_with_all_four_components_is_read_from_the_complex_ones(tmp_path):
    datasets = factory.scan("ge_real_imaginary", name="a")
    others = factory.scan("ge_phase", name="a")
    for number, dataset in enumerate(others):
        dataset.SOPInstanceUID += ".9"
        dataset.InstanceNumber = 1000 + number
    series = read_series(factory.write([*datasets, *others], tmp_path / "in"))
    assert series.source.facts["components"] == ["real", "imaginary"]
    check(series, factory.signal(), factory.geometry(), 1.3e-3)


def test_a_router_that_renames_the_maker_does_not_turn_the_sign(tmp_path):
    """Philips and Siemens images that say GE, and GE tags added to them, are still what they look like."""
    for encoding in ("philips_classic", "philips_enhanced", "siemens_classic", "siemens_xa_enhanced"):
        datasets = factory.scan(encoding)
        for dataset in datasets:
            dataset.Manufacturer = "GE MEDICAL SYSTEMS"
        series = read_series(factory.write(datasets, tmp_path / encoding))
        check(series, factory.signal(), factory.geometry())


def test_a_private_creator_in_another_block(tmp_path):
    """(0043,102F) is (0043,112F) where another creator came first."""
    datasets = factory.scan("ge_real_imaginary")
    for dataset in datasets:
        value = dataset[0x0043, 0x102F].value
        del dataset[0x0043, 0x102F], dataset[0x0043, 0x0010]
        dataset.private_block(0x0043, "SOMEBODY ELSE", create=True).add_new(0x2F, "SS", 0)
        dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", value)
    check(read_series(factory.write(datasets, tmp_path / "in")), factory.signal(), factory.geometry(), 1.3e-3)


def test_the_field_comes_from_the_imaging_frequency(tmp_path):
    """A magnet that is sold as 3 T runs at 2.894 T: the difference is one of 3.6 % in every susceptibility."""
    datasets = factory.scan("siemens_classic")
    for dataset in datasets:
        dataset.ImagingFrequency = "123.254835"
    series = read_series(factory.write(datasets, tmp_path / "in"))
    assert series.b0_tesla == pytest.approx(123.254835 / 42.577478518, rel=1e-9)


@pytest.mark.parametrize(("strength", "tesla"), [("30000", 3.0), ("15000", 1.5), ("1.5", 1.5)])
def test_gauss_are_read_as_such(tmp_path, strength, tesla):
    datasets = factory.scan("siemens_classic")
    for dataset in datasets:
        dataset.MagneticFieldStrength = strength
        del dataset.ImagingFrequency
    assert read_series(factory.write(datasets, tmp_path / "in")).b0_tesla == pytest.approx(tesla)


def test_the_template_is_classic_and_holds_no_pixels_and_nothing_private(folder_of):
    for encoding in ("siemens_classic", "siemens_xa_enhanced", "philips_classic", "philips_enhanced"):
        with find(folder_of(encoding, plane="transverse")) as inventory:
            template = inventory.acquisitions[0].source.template
        assert not any(element.tag.is_private for element in template)
        assert "PixelData" not in template
        assert "PerFrameFunctionalGroupsSequence" not in template
        for keyword, value in {
            "PatientID": "SYN01",
            "StudyInstanceUID": None,
            "FrameOfReferenceUID": None,
            "AcquisitionDate": "20260105",
            "AcquisitionTime": "101510.000000",
            "PatientPosition": "HFS",
            "RepetitionTime": 40,
            "FlipAngle": 15,
            "MagneticFieldStrength": 3,
            "ImagedNucleus": "1H",
            "ScanningSequence": "GR",
            "ProtocolName": "gre_qsm",
        }.items():
            assert keyword in template, (encoding, keyword)
            assert value is None or template[keyword].value == value, (encoding, keyword)
        assert float(template.ImagingFrequency) == pytest.approx(127.732436, abs=1e-6)


@pytest.mark.parametrize("shared", ["empty", "absent"])
@pytest.mark.parametrize("encoding", ["philips_enhanced", "siemens_xa_enhanced"])
def test_every_functional_group_may_stand_in_the_frames(tmp_path, folder_of, encoding, shared):
    datasets = factory.scan(encoding)
    for dataset in datasets:
        (groups,) = dataset.SharedFunctionalGroupsSequence
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            frame.update(groups)
        dataset.SharedFunctionalGroupsSequence = []
        if shared == "absent":
            del dataset.SharedFunctionalGroupsSequence
    plain, moved = (read_series(p) for p in (folder_of(encoding), factory.write(datasets, tmp_path / "in")))
    np.testing.assert_array_equal(plain.phase_rad, moved.phase_rad)
    assert plain.b0_tesla == moved.b0_tesla
    assert plain.source.template == moved.source.template
