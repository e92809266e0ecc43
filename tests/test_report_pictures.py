"""Laws of the report's pictures: what lies at the patient's right is seen on the left, a ball is seen round."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import report_factory as factory
from PIL import Image

from qsm_edge.report import preview_png
from qsm_edge.report.pictures import Panel, View, mosaic, orientation_of, png
from qsm_edge.types import Geometry

GEOMETRIES = {
    "axial": factory.geometry(),
    "axial-mirrored": factory.geometry(mirrored=True),
    "axial-oblique": factory.geometry((3.1, 2.2, 2.6), tilt_deg=(28, -17)),
    "axial-thick": factory.geometry((6.0, 1.5, 1.5)),
    "sagittal": factory.geometry((3.0, 2.0, 2.0), "L"),
    "sagittal-oblique-mirrored": factory.geometry((4.0, 1.8, 2.2), "L", (12, 20), mirrored=True),
    "coronal": factory.geometry((5.0, 2.0, 2.0), "P"),
    "coronal-oblique": factory.geometry((4.0, 2.0, 2.4), "P", (-22, 9)),
}
TOWARDS = {"R": (-1, 0, 0), "L": (1, 0, 0), "A": (0, -1, 0), "P": (0, 1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
#: where the letters of each plane stand: left, right, top, bottom
SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def ball(geometry: Geometry, centre: tuple[float, ...] | np.ndarray, radius: float) -> np.ndarray:
    """1 inside, soft over a voxel."""
    distance = np.linalg.norm(factory.lps_mm(geometry) - np.asarray(centre), axis=-1)
    return np.clip((radius - distance) / max(geometry.voxel_mm) + 0.5, 0, 1).astype(np.float32)


def picture(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        image.verify()
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image)


def brightest(view: View, volume: np.ndarray, plane: str) -> tuple[np.ndarray, Panel]:
    """The panel of a plane that holds most of the volume, as it stands in the PNG."""
    axis = ("axial", "coronal", "sagittal").index(plane)
    turned = view.orientation.turn(volume)
    panel = Panel(plane, int(np.argmax(turned.sum(axis=tuple(a for a in range(3) if a != axis)))))
    return picture(mosaic(view, volume, (panel,), (0.0, 1.0), columns=1).png).astype(float), panel


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("plane", SIDES)
def test_a_marker_is_seen_on_the_side_that_its_letter_names(name, plane):
    geometry = GEOMETRIES[name]
    view = View.around(np.ones(geometry.shape, bool), geometry)
    for side, letter in enumerate(SIDES[plane]):
        seen, panel = brightest(view, ball(geometry, 30 * np.array(TOWARDS[letter]), 7.0), plane)
        rows, columns = np.indices(seen.shape)
        assert seen.sum() > 0
        offset_x = (columns * seen).sum() / seen.sum() - (seen.shape[1] - 1) / 2
        offset_y = (rows * seen).sum() / seen.sum() - (seen.shape[0] - 1) / 2
        towards = (-offset_x, offset_x, -offset_y, offset_y)[side]
        assert towards * view.pixel_mm == pytest.approx(30 * np.cos(np.deg2rad(view.orientation.tilt_deg)), abs=6)
        assert view.letters(panel) == tuple(SIDES[plane][:3])


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("plane", SIDES)
def test_a_ball_is_seen_round(name, plane):
    geometry = GEOMETRIES[name]
    view = View.around(np.ones(geometry.shape, bool), geometry)
    seen, _ = brightest(view, ball(geometry, (0, 0, 0), 40.0), plane)
    solid = seen > 127
    height, width = solid.any(1).sum() * view.pixel_mm, solid.any(0).sum() * view.pixel_mm
    assert height == pytest.approx(80, abs=max(geometry.voxel_mm))
    assert width == pytest.approx(80, abs=max(geometry.voxel_mm))
    assert solid.sum() * view.pixel_mm**2 == pytest.approx(np.pi * 40**2, rel=0.05)


@pytest.mark.parametrize("name", ["axial", "axial-mirrored", "sagittal", "coronal"])
@pytest.mark.parametrize(("letter", "plane"), [("S", "axial"), ("I", "axial"), ("A", "coronal"), ("R", "sagittal")])
def test_a_slice_says_where_it_lies(name, letter, plane):
    geometry = GEOMETRIES[name]
    view = View.around(np.ones(geometry.shape, bool), geometry)
    _, panel = brightest(view, ball(geometry, 30 * np.array(TOWARDS[letter]), 7.0), plane)
    text = view.position(panel)
    assert text[0] == letter
    assert int(text[1:]) == pytest.approx(30, abs=max(geometry.voxel_mm) / 2 + 0.5)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_turning_puts_each_index_along_its_patient_axis(name):
    geometry = GEOMETRIES[name]
    orientation = orientation_of(geometry)
    for axis, column in enumerate((2, 1, 0)):  # S, P, L
        along = orientation.turn(factory.lps_mm(geometry)[..., column])
        assert np.all(np.diff(along, axis=axis) > 0)
        step = orientation.spacing_mm[axis]
        assert np.diff(along, axis=axis).mean() == pytest.approx(step, rel=0.2)


def test_the_tilt_is_the_angle_to_the_patient_axes():
    assert orientation_of(factory.geometry()).tilt_deg == pytest.approx(0, abs=1e-5)
    assert orientation_of(factory.geometry(tilt_deg=(17, 0))).tilt_deg == pytest.approx(17, abs=1e-6)


def test_the_view_is_the_mask_and_a_margin():
    geometry = factory.geometry((2.0, 2.0, 2.0), margin_mm=30)
    brain = factory.head(geometry, (0.02,))["brain"]
    view = View.around(brain, geometry)
    for part, inside, mm, axis in zip(view.box, view.inside, (58, 78, 62), range(3), strict=True):
        assert (inside.stop - inside.start) * 2 == pytest.approx(2 * mm, abs=2.1)
        assert inside.start - part.start == part.stop - inside.stop == 5
        turned = view.orientation.turn(brain)
        assert np.take(turned, range(inside.start, inside.stop), axis).sum() == brain.sum()


def test_slices_are_spread_over_the_mask_and_never_repeated():
    geometry = factory.geometry((20.0, 4.0, 4.0))
    view = View.around(factory.head(geometry, (0.02,))["brain"], geometry)
    panels = view.panels("axial", tuple(i / 11 for i in range(12)))
    indices = [panel.index for panel in panels]
    assert indices == list(range(view.inside[0].start, view.inside[0].stop))


def test_grey_follows_the_window_and_stops_at_its_ends():
    geometry = Geometry.from_axes((1, 1, 7))
    ramp = np.array([-np.inf, -9.0, -0.2, 0.0, 0.2, 9.0, np.nan], np.float32).reshape(1, 1, 7)
    view = View.around(np.ones((1, 1, 7), bool), geometry)
    seen = picture(mosaic(view, ramp, (Panel("axial", 0),), (-0.2, 0.2), columns=1).png)
    assert list(seen[0]) == [0, 0, 0, 128, 255, 255, 0]


def test_outside_is_black_and_outlines_have_their_colour():
    geometry = Geometry.from_axes((3, 20, 20))
    mask = np.zeros((3, 20, 20), bool)
    mask[:, 5:15, 5:15] = True
    view = View.around(np.ones_like(mask), geometry)
    panel = (Panel("axial", 1),)
    grey = picture(mosaic(view, np.ones(mask.shape), panel, (0.0, 2.0), columns=1, within=mask).png)
    assert np.array_equal(grey > 0, mask[1])
    drawn = mosaic(view, np.ones(mask.shape), panel, (0.0, 2.0), columns=1, outlines=((mask, (255, 176, 0)),))
    with Image.open(io.BytesIO(drawn.png)) as image:
        colours = np.asarray(image.convert("RGB"))
    edge = mask[1].copy()
    edge[6:14, 6:14] = False
    assert np.array_equal((colours == (255, 176, 0)).all(-1), edge)
    assert np.ptp(colours[~edge], axis=-1).max() == 0


def test_marks_stand_at_their_slices():
    geometry = factory.geometry()
    view = View.around(np.ones(geometry.shape, bool), geometry)
    panels = view.panels("axial", (0.2, 0.5, 0.8)) + view.panels("sagittal", (0.5,))
    drawn = mosaic(view, np.ones(geometry.shape), panels, (0.0, 1.0), columns=2)
    seen = picture(drawn.png)
    assert seen.shape == (drawn.height, drawn.width)
    assert len(drawn.marks) == 3 * len(panels)
    assert all(0 <= x < 1 and 0 <= y <= 1 for _, x, y, _ in drawn.marks)
    for text, x, y, kind in drawn.marks:
        if kind == "west":
            row, column = int(y * drawn.height), round(x * drawn.width)
            assert seen[row, column] == 255  # a slice begins here,
            assert column == 0 or seen[row, column - 1] == 0  # and there is a gap before it
            assert text == ("A" if (row > drawn.height / 2 and column) else "R")


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (64, 33), (2, 300)])
def test_a_png_is_read_back_by_another_reader(shape):
    rng = np.random.default_rng(0)
    smooth = np.clip(np.cumsum(rng.integers(-2, 3, shape), axis=1) + 100, 0, 255).astype(np.uint8)
    for pixels in (rng.integers(0, 256, shape).astype(np.uint8), smooth, smooth.T.copy(), np.zeros(shape, np.uint8)):
        assert np.array_equal(picture(png(pixels)), pixels)
    palette = [(i, 255 - i, 7) for i in range(256)]
    with Image.open(io.BytesIO(png(smooth, palette))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.array(palette, np.uint8)[smooth])


def test_the_preview_shows_the_map_alone_on_the_grey_of_the_report():
    """Whatever lies outside the mask, a face or a name burned in, is black; the map's zero is the middle of the greys."""
    flat = factory.result()
    loud = np.where(flat.mask, 0, 9).astype(np.float32)
    seen = picture(preview_png(dataclasses.replace(flat, chi_ppm=loud)))
    assert set(np.unique(seen)) == {0, round(0.5 * 255)}
    flipped = picture(preview_png(dataclasses.replace(flat, chi_ppm=-flat.chi_ppm))).astype(int)
    straight = picture(preview_png(flat)).astype(int)
    inside = seen > 0
    assert np.all(np.abs(flipped + straight - 255)[inside] <= 1)
    assert not straight[~inside].any()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_preview_is_small_and_of_the_same_size_however_the_slab_lies(name):
    encoded = preview_png(factory.result(factory.head(GEOMETRIES[name])))
    rows, columns = picture(encoded).shape
    assert 70 < rows < 130
    assert 200 < columns < 360
    assert len(encoded) < 60_000
