"""A scanner's conversation with the real server: what comes back is what the DICOM road makes, voxel for voxel in space."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
from mrd_world import ROOT, Answer, config_file, directions, header, image, middle, sample, scan, serving, text_message

from dicom_samples.encode import encode, save
from dicom_samples.head import simulate
from qsm_edge import cli
from qsm_edge.types import Geometry

#: The series index after those of magnitude and phase, 11 and 12.
CHI = 13


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), "--connections", "2") as running:
        yield running


@pytest.fixture(scope="module")
def small() -> list[pydicom.Dataset]:
    """A coarse oblique head, three echoes, as a Siemens scanner exports it; not square in plane."""
    a = np.deg2rad(12.0)
    axes = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])[:, ::-1]
    affine = np.eye(4)
    affine[:3, :3] = axes * (6.0, 4.8, 4.6)
    grid, times = Geometry((25, 44, 36), affine), (0.006, 0.013, 0.020)
    signal, _, _ = simulate(grid, times, 3.0)
    return list(encode(signal, grid, times, 3.0, "siemens_classic", seed_name="mrd"))


def by_dicom(folder: Path, source: Path, *options: str) -> dict[tuple[float, ...], pydicom.Dataset]:
    """The susceptibility that the command `run` makes, by where each slice's middle lies."""
    assert cli.main(["run", str(source), str(folder), "--quiet", *options]) == 0
    read = [pydicom.dcmread(path) for path in folder.glob("*/chi/*.dcm")]
    return {tuple(middle(d)): d for d in read}


def assert_same_place_and_values(answer: Answer, expected: dict[tuple[float, ...], pydicom.Dataset]) -> None:
    """Every voxel of every slice, found by its position in the patient, to 1 ppb (of which none is needed)."""
    chi = answer.series(CHI)
    assert len(chi) == len(expected)
    places = np.array(list(expected))
    for one in chi:
        away = np.linalg.norm(places - np.array(one.position), axis=1)
        assert away.min() < 1e-3, "no slice of the DICOM result lies there"
        d = expected[tuple(places[away.argmin()])]
        row, column = directions(d)
        np.testing.assert_allclose(one.read_dir, row, atol=1e-6)
        np.testing.assert_allclose(one.phase_dir, column, atol=1e-6)
        np.testing.assert_allclose(
            np.array(one.field_of_view)[:2], np.multiply(d.PixelSpacing, d.pixel_array.shape)[::-1]
        )
        assert one.data.dtype == np.int16
        assert np.abs(one.data[0, 0].astype(int) - d.pixel_array).max() <= 1
    assert max(np.abs(one.data).max() for one in chi) > 100, "an empty map equals nothing"


def test_the_sample_comes_back_as_the_dicom_road_makes_it(server, tmp_path):
    datasets = sample()
    images = [image(d) for d in datasets]
    random.Random(1).shuffle(images)
    answer = scan(server.port, images, header(datasets), {"sendoriginal": "false", "config": "qsmedge"})
    assert answer.closed
    assert answer.texts[0].startswith("verdict ")
    expected = by_dicom(tmp_path / "out", ROOT / "dicom_samples" / "siemens_classic")
    assert len(answer.images) == len(expected)
    assert_same_place_and_values(answer, expected)


def test_another_head_recipe_and_mask_do_too(server, small, tmp_path):
    wishes = {"recipe": "fast", "mask": "threshold", "settings": "invert=tkd; invert.threshold=0.15"}
    answer = scan(server.port, [image(d) for d in small], header(small), wishes)
    save(small, tmp_path / "in")
    options = ("--recipe", "fast", "--mask", "threshold", "--set", "invert=tkd", "--set", "invert.threshold=0.15")
    assert_same_place_and_values(answer, by_dicom(tmp_path / "out", tmp_path / "in", *options))


def test_what_a_scanner_makes_of_it_is_told_in_header_and_attributes(server, small):
    answer = scan(server.port, [image(d) for d in small], header(small), {"recipe": "fast", "sendoriginal": True})
    chi = answer.series(CHI)
    assert [one.image_index for one in chi] == list(range(1, 26))
    along = [np.array(one.position) @ np.array(one.slice_dir) for one in chi]
    np.testing.assert_allclose(np.diff(along), 6.0, atol=1e-3)
    for one in chi:
        said = dict(one.meta)
        assert "Quantitative" in said["DataRole"]
        assert (said["WindowCenter"], said["WindowWidth"]) == ("0", "400")
        assert (said["RescaleSlope"], said["RescaleIntercept"]) == ("1", "0")
        assert (said["Keep_image_geometry"], said["ImageType"]) == ("1", "QSM")
        assert "[ppb]" in said["ImageComments"][0]
        assert "research use only" in said["ImageComments"]
        assert "ppb" in said["SequenceDescriptionAdditional"]
        assert "EchoTime" not in said, "a map has no echo"
        assert (one.image_type, one.contrast, one.channels) == (1, 0, 1)
    row, _ = directions(small[0])
    np.testing.assert_allclose([float(v) for v in chi[0].meta["ImageRowDir"]], row, atol=1e-12)


def test_the_images_that_came_go_back_as_they_came_but_marked(server, small):
    came = [image(d) for d in small]
    answer = scan(server.port, came, header(small), {"recipe": "fast"})
    back = [one for one in answer.images if one.image_series_index != CHI]
    assert len(back) == len(came)
    for before, after in zip(came, back, strict=True):
        assert np.array_equal(before.data, after.data)
        assert {**before.meta, "Keep_image_geometry": "1"} == dict(after.meta)
        one, other = before.getHead(), after.getHead()
        one.attribute_string_len = other.attribute_string_len = 0
        assert bytes(one) == bytes(other)


@pytest.fixture(scope="module")
def reference(server, small) -> dict[int, np.ndarray]:
    """The map of the small head, as it is sent when nothing is special, by slice."""
    answer = scan(server.port, [image(d) for d in small], header(small), {"recipe": "fast", "sendoriginal": "0"})
    return {one.slice: one.data[0, 0] for one in answer.series(CHI)}


def test_fixed_headers_alone_are_enough_and_parameters_may_come_as_the_configuration(server, small, reference):
    """Directions and echo times without attributes; the phase's scale by the range that it fills."""
    config = text_message(json.dumps({"parameters": {"recipe": "fast", "sendoriginal": False}}), 2)
    bare = [image(d, attributes=False) for d in small]
    answer = scan(server.port, bare, header(small), config=config)
    assert len(answer.images) == len(reference)
    worst = max(np.abs(one.data[0, 0].astype(int) - reference[one.slice]).max() for one in answer.images)
    assert worst <= 1


def test_a_complex_series_is_magnitude_and_phase(server, small, reference):
    """Complex images hold the same signal; their phase has other rounding, which is a thousandth of a turn here."""
    magnitude = {(d.EchoNumbers, d.InstanceNumber): d for d in small if d.ImageType[2] == "M"}
    made = []
    for d in small:
        if d.ImageType[2] == "P":
            m = magnitude[d.EchoNumbers, d.InstanceNumber]
            one = image(m)
            phase = (d.pixel_array * 2.0 - 4096) / 4096 * np.pi
            signal = (m.pixel_array * np.exp(1j * phase)).astype(np.complex64)
            copy = type(one).from_array(signal, transpose=False)
            head = one.getHead()
            head.data_type, head.image_type = 7, 5
            head.attribute_string_len = 0
            copy.setHead(head)
            copy.data[:] = signal
            copy.attribute_string = one.attribute_string
            made.append(copy)
    answer = scan(server.port, made, header(small), {"recipe": "fast", "sendoriginal": "false"})
    assert [one.data.dtype for one in answer.images] == [np.int16] * len(reference)
    differences = [one.data[0, 0].astype(int) - reference[one.slice] for one in answer.images]
    assert np.abs(differences).max() <= 1


def test_a_volume_an_echo_comes_back_as_one_volume(server, small, reference):
    volumes = []
    for part in ("M", "P"):
        for echo in (1, 2, 3):
            slices = [d for d in small if (d.ImageType[2], d.EchoNumbers) == (part, echo)]
            slices.sort(key=lambda d: d.InstanceNumber)
            first, last = image(slices[0]), image(slices[-1])
            volume = type(first).from_array(np.stack([d.pixel_array for d in slices]), transpose=False)
            for name in ("image_type", "read_dir", "phase_dir", "contrast", "image_series_index"):
                setattr(volume, name, getattr(first, name))
            step = np.array(last.position) - np.array(first.position)
            volume.position = tuple(np.array(first.position) + step / 2)
            volume.slice_dir = tuple(step / np.linalg.norm(step))
            volume.field_of_view = (*list(first.field_of_view)[:2], 6.0 * len(slices))
            volume.attribute_string = first.attribute_string
            volumes.append(volume)
    answer = scan(server.port, volumes, header(small), {"recipe": "fast", "sendoriginal": "false"})
    (chi,) = answer.images
    assert chi.data.shape == (1, 25, 44, 36)
    assert list(chi.position) == list(volumes[0].position)
    assert max(np.abs(chi.data[0, z].astype(int) - reference[z]).max() for z in range(25)) <= 1


def test_a_refusal_has_its_code_and_costs_nobody_the_images(server, small):
    magnitudes = [image(d) for d in small if d.ImageType[2] == "M"]
    answer = scan(server.port, magnitudes, header(small))
    assert (answer.code, answer.closed) == ("no_phase", True)
    assert len(answer.images) == len(magnitudes)
    answer = scan(server.port, magnitudes, header(small), {"sendoriginal": "false"})
    assert (answer.code, answer.closed, answer.images) == ("no_phase", True, [])


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"recipy": "fast"}, "unknown_name"),
        ({"recipe": "../../etc/passwd.toml"}, "unknown_name"),
        ({"recipe": 3}, "bad_value"),
        ({"mask": "everything"}, "unknown_name"),
        ({"config": "invertcontrast"}, "unknown_name"),
        ({"settings": "invert.treshold=1"}, "unknown_name"),
        ({"sendoriginal": "perhaps"}, "bad_value"),
    ],
)
def test_a_parameter_that_cannot_be_honoured_is_refused(server, small, parameters, code):
    answer = scan(server.port, [image(d) for d in small[:2]], header(small), parameters)
    assert (answer.code, answer.closed, len(answer.images)) == (code, True, 2)


def test_parameters_that_are_not_json_are_refused(server, small):
    answer = scan(
        server.port, [image(small[0])], header(small), config=config_file() + text_message('{"parameters": 3}')
    )
    assert (answer.code, answer.closed) == ("bad_value", True)


def test_a_stream_without_images_is_closed_without_a_word(server, small):
    answer = scan(server.port, [], header(small))
    assert (answer.texts, answer.images, answer.closed) == ([], [], True)


def test_two_scanners_at_once_get_their_own_answers(server, small, reference):
    from concurrent.futures import ThreadPoolExecutor

    shifted = [image(d) for d in small]
    for one in shifted:
        one.image_series_index += 20
    wishes = {"recipe": "fast", "sendoriginal": "false"}
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(scan, server.port, images, header(small), wishes)
            for images in ([image(d) for d in small], shifted)
        ]
        first, second = (job.result() for job in jobs)
    assert {one.image_series_index for one in first.images} == {CHI}
    assert {one.image_series_index for one in second.images} == {CHI + 20}
    for answer in (first, second):
        assert all(np.array_equal(one.data[0, 0], reference[one.slice]) for one in answer.images)
