"""What MRD images are taken for: echo, component, slice and phase scale, and every way in which that cannot be told."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mrd_world import ROOT, ismrmrd

from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.openrecon import mrd
from qsm_edge.openrecon.collect import Acquisition, collect
from qsm_edge.openrecon.header import Header, read_header
from qsm_edge.openrecon.parameters import CONFIG, PARAMETERS, parameters_in, wishes
from qsm_edge.openrecon.session import Task
from qsm_edge.openrecon.wire import IMAGE_BYTES, Limits, RawImage
from qsm_edge.run import Options

SLICES, ROWS, COLUMNS, ECHOES = 5, 10, 8, 2
SPACING, STEP = (1.5, 1.2), 2.0
HEADER = Header("Siemens Healthineers", "Prisma", "gre_qsm", 3.0, 123.25, (5.0, 11.0))
ROW, COLUMN = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])
NORMAL = np.cross(ROW, COLUMN)
TURN = np.linspace(0, 1, SLICES * ROWS * COLUMNS).reshape(SLICES, ROWS, COLUMNS)


def stored_phase() -> np.ndarray:
    """12 bits for a turn, filled to both ends."""
    return np.rint(TURN * 4095).astype(np.uint16)


def one(kind: int, echo: int, values: np.ndarray, place: np.ndarray, **said: Any) -> Any:
    """An MRD image or volume of the small acquisition."""
    made = ismrmrd.Image.from_array(values, transpose=False)
    depth = 1 if values.ndim == 2 else values.shape[0]
    made.image_type, made.contrast, made.image_series_index = kind, echo, kind
    made.field_of_view = (SPACING[1] * COLUMNS, SPACING[0] * ROWS, STEP * depth)
    made.position, made.read_dir, made.phase_dir, made.slice_dir = map(tuple, (place, ROW, COLUMN, NORMAL))
    made.attribute_string = ismrmrd.Meta(said).serialize()
    return made


def images(phase: Callable[[], np.ndarray] = stored_phase, **said: Any) -> list[Any]:
    """Magnitude and phase of two echoes; `said` are attributes of the phase images."""
    made = []
    for z in range(SLICES):
        for echo in range(ECHOES):
            place = np.array([3.0, -4.0, 5.0]) + NORMAL * STEP * z
            made.append(one(1, echo, np.full((ROWS, COLUMNS), 100 * (echo + 1), np.uint16), place))
            made.append(one(2, echo, phase()[z], place, **said))
    return made


def raw(image: Any) -> RawImage:
    written = io.BytesIO()
    image.serialize_into(written.write)
    content = written.getvalue()
    length = int.from_bytes(content[IMAGE_BYTES : IMAGE_BYTES + 8], "little")
    return RawImage(content[:IMAGE_BYTES], content[IMAGE_BYTES + 8 :][:length], content[IMAGE_BYTES + 8 + length :])


def collected(came: list[Any], header: Header = HEADER) -> Acquisition:
    return collect([mrd.understood(raw(image)) for image in came], header)


def refused(came: list[Any], header: Header = HEADER) -> str:
    with pytest.raises(InputRefused) as error:
        collected(came, header).load()
    return error.value.code


def test_a_small_acquisition_is_laid_out_as_it_is():
    acquisition = collected(images()[::-1])
    series, geometry = acquisition.load(), acquisition.geometry
    assert (geometry.shape, series.echo_times_s) == ((SLICES, ROWS, COLUMNS), (0.005, 0.011))
    assert geometry.voxel_mm == pytest.approx((STEP, *SPACING))
    corner = np.array([3.0, -4.0, 5.0]) - ROW * SPACING[1] * (COLUMNS - 1) / 2 - COLUMN * SPACING[0] * (ROWS - 1) / 2
    np.testing.assert_allclose(geometry.affine_lps[:3, 3], corner, atol=1e-5)
    np.testing.assert_allclose(geometry.affine_lps[:3, 0], NORMAL * STEP, atol=1e-6)
    np.testing.assert_allclose(geometry.affine_lps[:3, 1], COLUMN * SPACING[0], atol=1e-6)
    np.testing.assert_allclose(series.magnitude[:, 0, 0, 0], (100, 200))
    expected = (stored_phase().astype(float) - 2048) / 2048 * np.pi
    expected[stored_phase() == 0] = np.pi
    np.testing.assert_allclose(series.phase_rad[1], expected, atol=1e-6)
    assert series.b0_tesla == pytest.approx(123.25e6 / 42.577478518e6)


#: How a scanner or a converter may store a phase: the values, and what the attributes say.
SCALES: dict[str, tuple[Callable[[], np.ndarray], dict[str, str]]] = {
    "12 bits": (stored_phase, {}),
    "12 bits with rescale": (stored_phase, {"RescaleSlope": "2", "RescaleIntercept": "-4096"}),
    "signed": (lambda: np.rint(TURN * 8190 - 4095).astype(np.int16), {}),
    "radians": (lambda: (TURN * 2 * np.pi - np.pi).astype(np.float32), {}),
    "radians in double": (lambda: TURN * 2 * np.pi - np.pi, {}),
    "milliradians": (lambda: np.rint(TURN * 6283 - 3141.5).astype(np.int16), {}),
}


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_that_can_be_told_gives_the_same_radians(name):
    phase, said = SCALES[name]
    read = collected(images(phase, **said)).load().phase_rad
    truth = np.broadcast_to(TURN * 2 * np.pi - np.pi, read.shape)
    assert np.abs(np.angle(np.exp(1j * (read - truth)))).max() < 2 * 2 * np.pi / 4096
    assert read.min() > -np.pi
    assert read.max() <= np.float32(np.pi)


def test_whole_numbers_of_32_bits_are_32_bits():
    """The package's own reader takes them for 64."""
    short = [raw(image) for image in images(lambda: np.rint(TURN * 8190 - 4095).astype(np.int16))]
    long = []
    for image in short:
        head = bytearray(image.head)
        head[2:4] = (4).to_bytes(2, "little")
        kind = "<i2" if image.head[2] == 2 else "<u2"
        long.append(RawImage(bytes(head), image.attributes, np.frombuffer(image.values, kind).astype("<i4").tobytes()))
    one, other = (collect([mrd.understood(image) for image in came], HEADER).load() for came in (short, long))
    assert np.array_equal(one.phase_rad, other.phase_rad)
    assert np.array_equal(one.magnitude, other.magnitude)


#: Phases that could mean two things, or nothing.
UNTOLD: dict[str, tuple[Callable[[], np.ndarray], dict[str, str], str]] = {
    "half of 12 bits": (lambda: np.rint(TURN * 2000).astype(np.uint16), {}, "unknown_phase_scale"),
    "16 bits": (lambda: np.rint(TURN * 65535).astype(np.uint16), {}, "unknown_phase_scale"),
    "degrees": (lambda: (TURN * 360 - 180).astype(np.float32), {}, "unknown_phase_scale"),
    "two turns": (
        lambda: np.rint(TURN * 4095).astype(np.uint16) * 2,
        {"RescaleSlope": "2", "RescaleIntercept": "-4096"},
        "phase_unwrapped",
    ),
    "nothing": (lambda: np.full(TURN.shape, 2048, np.uint16), {}, "phase_constant"),
    "no slope": (stored_phase, {"RescaleSlope": "0", "RescaleIntercept": "-4096"}, "bad_rescale"),
    "a slope that is none": (stored_phase, {"RescaleSlope": "two"}, "bad_rescale"),
    "an infinite one": (stored_phase, {"RescaleSlope": "inf"}, "bad_rescale"),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_phase_whose_scale_cannot_be_told_is_refused(name):
    phase, said, code = UNTOLD[name]
    assert refused(images(phase, **said)) == code


def changed(**fields: Any) -> Callable[[list[Any]], list[Any]]:
    """All images with other fields of the fixed header."""

    def change(came: list[Any]) -> list[Any]:
        for image in came:
            for name, value in fields.items():
                setattr(image, name, value)
        return came

    return change


def several(came: list[Any], which: Callable[[Any], bool], **fields: Any) -> list[Any]:
    for image in filter(which, came):
        changed(**fields)([image])
    return came


BROKEN: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "no phase": (lambda came: [i for i in came if i.image_type == 1], "no_phase"),
    "no magnitude": (lambda came: [i for i in came if i.image_type == 2], "no_magnitude"),
    "a slice less": (lambda came: [i for i in came if i.position[2] != came[8].position[2]], "missing_slice"),
    "an image less": (lambda came: came[:-1], "missing_slice"),
    "an image twice": (lambda came: [*came, came[-1]], "doubled_slice"),
    "all twice": (lambda came: came * 2, "two_acquisitions"),
    "an echo's phase less": (
        lambda came: [i for i in came if (i.image_type, i.contrast) != (2, 0)],
        "phase_difference",
    ),
    "an echo index less": (lambda came: several(came, lambda i: i.contrast == 1, contrast=2), "bad_echo_time"),
    "real images": (changed(image_type=3), "unknown_component"),
    "images of no type": (changed(image_type=0), "unknown_component"),
    "complex by name alone": (changed(image_type=5), "pixel_data_invalid"),
    "no field of view": (changed(field_of_view=(0.0, 0.0, 0.0)), "bad_geometry"),
    "a field of view without meaning": (changed(field_of_view=(float("nan"), 1.0, 1.0)), "bad_geometry"),
    "field of view as (y, x)": (changed(field_of_view=(1.5 * ROWS, 1.5 * COLUMNS, STEP)), "bad_geometry"),
    "no directions": (changed(read_dir=(0.0, 0.0, 0.0)), "bad_geometry"),
    "directions that are not perpendicular": (changed(phase_dir=(1.0, 0.0, 0.0)), "bad_geometry"),
    "all in one place": (changed(position=(0.0, 0.0, 0.0)), "two_acquisitions"),
    "magnitude turned": (
        lambda came: several(came, lambda i: i.image_type == 1, read_dir=(0.6, 0.8, 0.0), phase_dir=(-0.8, 0.6, 0.0)),
        "geometry_mismatch",
    ),
    "unevenly spaced": (
        lambda came: several(came, lambda i: i.position[2] > 12, position=(3.0, -4.0, 13.7)),
        "uneven_gaps",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_incomplete_or_contradictory_is_refused_with_the_readers_codes(name):
    change, code = BROKEN[name]
    assert refused(change(images())) == code


def test_single_coils_are_refused():
    values = np.ones((4, 1, ROWS, COLUMNS), np.uint16)
    image = ismrmrd.Image.from_array(values, transpose=False)
    assert refused([image]) == "coil_uncombined"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (dict(vendor="GE MEDICAL SYSTEMS"), "unknown_phase_sign"),
        (dict(vendor=""), "unknown_phase_sign"),
        (dict(model="MAGNETOM Concerto"), "vertical_field"),
        (dict(field_tesla=None, frequency_mhz=None), "bad_field_strength"),
        (dict(frequency_mhz=42.0), "bad_field_strength"),
        (dict(echo_times_ms=()), "bad_echo_time"),
        (dict(echo_times_ms=(0.005, 0.011)), "bad_echo_time"),
        (dict(echo_times_ms=(5.0, 5.0)), "bad_echo_time"),
        (dict(contrasts=3), "missing_echo"),
        (dict(slices=6), "missing_slice"),
    ],
)
def test_what_the_header_says_is_held_against_the_images(fields, code):
    assert refused(images(), dataclasses.replace(HEADER, **fields)) == code


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"ImageType": ["P", "FILTERED"]}, "filtered_phase"),
        ({"SeriesDescription": "Pha_Images"}, "filtered_phase"),
        ({"ImageType": ["PHASE_DIFF"]}, "phase_difference"),
        ({"EchoTime": "soon"}, "bad_echo_time"),
        ({"ImageRowDir": ["1", "0"]}, "bad_geometry"),
        ({"ImageRowDir": ["a", "b", "c"]}, "bad_geometry"),
    ],
)
def test_attributes_that_speak_against_a_phase_are_heard(said, code):
    assert refused(images(**said)) == code


def test_a_normalised_copy_of_the_magnitude_is_left_out_and_said_so():
    copies = []
    for image in images():
        if image.image_type == 1:
            copy = one(1, image.contrast, image.data[0, 0] * 7, np.array(image.position), ImageType=["NORM", "ND"])
            copies.append(copy)
    acquisition = collected([*copies, *images()])
    np.testing.assert_allclose(acquisition.load().magnitude[:, 0, 0, 0], (100, 200))
    assert [note.code for note in acquisition.notes] == ["duplicate_dropped"]
    alone = [*copies, *(image for image in images() if image.image_type == 2)]
    np.testing.assert_allclose(collected(alone).load().magnitude[:, 0, 0, 0], (700, 1400))


def test_directions_of_the_attributes_go_before_those_of_the_header():
    """An image that was turned for display keeps its acquisition's directions in the fixed header."""
    said = {"ImageRowDir": [repr(float(v)) for v in COLUMN], "ImageColumnDir": [repr(float(-v)) for v in ROW]}
    came = [one(i.image_type, i.contrast, i.data[0, 0], np.array(i.position), **said) for i in images()]
    geometry = collected(came).geometry
    np.testing.assert_allclose(geometry.affine_lps[:3, 2], COLUMN * SPACING[1], atol=1e-6)
    np.testing.assert_allclose(geometry.affine_lps[:3, 1], -ROW * SPACING[0], atol=1e-6)


def test_a_volume_whose_extent_is_that_of_one_slice_is_refused():
    volume = np.stack([np.full((ROWS, COLUMNS), 9, np.uint16)] * 40)
    came = [one(kind, 0, volume, np.zeros(3)) for kind in (1, 2)]
    for image in came:
        image.field_of_view = (SPACING[1] * COLUMNS, SPACING[0] * ROWS, STEP)
    assert refused(came) == "bad_geometry"


def test_the_header_is_read_leniently_and_without_the_patient():
    xml = (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><subjectInformation><patientName>No</patientName>'
        "</subjectInformation><acquisitionSystemInformation><systemVendor> SIEMENS </systemVendor><systemFieldStrength_T>2.89"
        "</systemFieldStrength_T></acquisitionSystemInformation><experimentalConditions><H1resonanceFrequency_Hz>123250000"
        "</H1resonanceFrequency_Hz></experimentalConditions><encoding><reconSpace><matrixSize><x>8</x><y>9</y><z>44</z>"
        "</matrixSize></reconSpace><encodingLimits><contrast><minimum>0</minimum><maximum>3</maximum></contrast>"
        "<slice><maximum>0</maximum></slice></encodingLimits></encoding><sequenceParameters><TE>5</TE><new/><TE>11.5</TE>"
        "</sequenceParameters></ismrmrdHeader>"
    )
    header = read_header(xml)
    assert header == Header("SIEMENS", "", "", 2.89, 123.25, (5.0, 11.5), 4, 44)
    assert "No" not in repr(header)


def test_texts_that_are_no_json_set_nothing_and_switches_may_be_texts():
    assert parameters_in("openrecon") is None
    assert parameters_in('{"version": "1.1.0"}') == {}
    for value, told in ((True, True), ("False", False), ("true", True), ("0", False)):
        assert wishes({"sendoriginal": value}, Options()).send_original is told
    made = wishes(
        {"recipe": "fast", "settings": "invert=tkd; invert.threshold=0.15", "config": CONFIG}, Options(mask="threshold")
    )
    assert made.options == Options("fast", ("invert=tkd", "invert.threshold=0.15"), "threshold")


@pytest.mark.parametrize(
    "text", ['{"parameters": []}', '{"parameters"', "{" * 10_000, '{"parameters": {"recipe": "fast"}']
)
def test_json_that_is_broken_is_refused(text):
    with pytest.raises(UsageError) as error:
        parameters_in(text)
    assert error.value.code == "bad_value"


def test_settings_that_contradict_one_another_are_refused():
    with pytest.raises(UsageError) as error:
        wishes({"mask": "threshold", "settings": "mask=network"}, Options())
    assert error.value.code == "bad_call"


def test_the_label_declares_the_parameters_that_there_are():
    label = json.loads((ROOT / "deploy" / "openrecon" / "label.json").read_text(encoding="utf-8"))
    assert {field["id"]: field["type"] for field in label["parameters"]} == PARAMETERS
    defaults = {field["id"]: field["default"] for field in label["parameters"]}
    assert wishes(defaults, Options()) == wishes({}, Options())
    for field in label["parameters"]:
        for value in field.get("values", []):
            wishes({field["id"]: value["id"]}, Options())


def test_a_task_reaches_its_session_as_it_is(tmp_path):
    task = Task(Options("fast", ("invert=tkd",), "network", tmp_path / "a.onnx", "cpu"), Limits(idle_s=7.0), "json")
    assert Task.from_json(task.as_json()) == task
