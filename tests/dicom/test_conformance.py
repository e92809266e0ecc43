"""What other people's programs make of our objects: dciodvfy finds nothing, dcm2niix the same ppb in the same place."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import judges
import nibabel
import numpy as np
import pydicom
import pytest
import results
from pydicom.dataset import Dataset

from dicom_samples.encode import ENCODINGS
from qsm_edge.dicom.parametric import write_parametric_map
from qsm_edge.dicom.seg import write_seg
from qsm_edge.dicom.write import KINDS, write_map, write_series
from qsm_edge.types import Geometry, Source, SourceInstance

#: The judge calls a name without "^" an old form; a name is repeated as it was.
OLD_NAME = "Retired Person Name form"


def all_objects(result, folder):
    """Everything that can be written of a result."""
    for name, kind in KINDS.items():
        yield from write_map(result, kind, folder / name)
    yield write_seg(result, folder / "mask.dcm")
    yield write_parametric_map(result, folder / "map.dcm")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nothing_can_be_said_against_any_series_and_mask(tmp_path, encoding):
    result = results.result(results.source(encoding))
    chi = write_series(result, tmp_path / "chi")
    for path in (chi[0], chi[3], write_seg(result, tmp_path / "mask.dcm")):
        assert judges.verdict(path) == [], path.name


@pytest.mark.parametrize("encoding", ["siemens_xa_enhanced", "philips_classic"])
def test_nothing_can_be_said_against_any_other_map(tmp_path, encoding):
    for path in all_objects(results.result(results.source(encoding)), tmp_path):
        if path.parent == tmp_path or path.name == "0002.dcm":
            assert judges.verdict(path) == [], path.name


@pytest.mark.parametrize("name", ["Müller^Jürgen", "王^小东=Wang^XiaoDong", "Yamada^Tarou=山田^太郎=やまだ^たろう"])
def test_nothing_can_be_said_against_names_of_the_world(tmp_path, name):
    source = results.source()
    source.template.SpecificCharacterSet, source.template.PatientName = "ISO_IR 192", name
    (tmp_path / "out").mkdir()
    for path in all_objects(results.result(source), tmp_path / "out"):
        if path.name != "0002.dcm":
            continue
        assert judges.verdict(path) == []


def test_arrays_without_dicom_lack_only_a_date(tmp_path):
    for path in all_objects(results.result(Source("unknown", "arrays")), tmp_path):
        if path.name == "0002.dcm" or path.parent == tmp_path:
            complaints = judges.verdict(path)
            assert [c for c in complaints if "StudyDate" not in c and "StudyTime" not in c] == []


def from_folder(folder, pattern="*"):
    """A source out of a real classic series: its first image is the template."""
    images = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob(pattern)) if path.is_file()]
    template = Dataset()
    for element in images[0]:
        if element.VR != "SQ" and not element.tag.is_private:
            template[element.tag] = element
    used = tuple(SourceInstance(d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID) for d in images[:8])
    return Source("real", "classic", (used,) * results.SHAPE[0], template)


@pytest.mark.shared
@pytest.mark.parametrize("series", ["philips_classic", "siemens_e11_phasediff", "ge_b0map"])
def test_nothing_but_its_name_can_be_said_of_a_real_patient(tmp_path, shared, series):
    source = from_folder(shared / "data" / "dicom" / series, "[!L]*")
    for path in all_objects(results.result(source), tmp_path):
        if path.parent == tmp_path or path.name == "0003.dcm":
            # GE's phantom was stripped of its study time; what is empty stays empty
            complaints = [c for c in judges.verdict(path) if OLD_NAME not in c and "DICOMDIR" not in c]
            assert complaints == [], path.name


@pytest.mark.shared
@pytest.mark.parametrize("vendor", ["siemens", "siemens_bare", "philips", "ge"])
def test_nothing_can_be_said_against_maps_of_the_benchmark(tmp_path, shared, vendor):
    spec = importlib.util.spec_from_file_location("simulate", shared / "bench" / "simulate.py")
    simulate = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(simulate)
    finally:
        sys.dont_write_bytecode = before
    axes = dict(iop=np.array([1.0, 0, 0, 0, 1, 0]), normal=np.array([0.0, 0, 1]))
    case = dict(vendor=vendor, te=[0.005, 0.01], b0=3.0)
    (tmp_path / "dicom").mkdir()
    signal = np.ones((2, *results.SHAPE), np.complex64)
    simulate.write_dicom(signal, axes, dict(voxel=np.ones(3)), case, "case", tmp_path / "dicom")
    (tmp_path / "out").mkdir()
    for path in all_objects(results.result(from_folder(tmp_path / "dicom")), tmp_path / "out"):
        if path.parent.name == "out" or path.name == "0003.dcm":
            assert judges.verdict(path) == [], path.name


def convert(folder, out):
    """dcm2niix's reading of a folder: values (z, y, x), RAS affine for (x, y, z), and its notes."""
    out.mkdir()
    command = [judges.program("dcm2niix"), "-f", "map", "-z", "n", "-o", str(out), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = out.glob("*.nii")
    image = nibabel.load(path)
    return image, json.loads(path.with_suffix(".json").read_text()), ran.stdout


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dcm2niix_reads_the_same_ppb_whoever_made_the_scanner(tmp_path, encoding):
    result = results.result(results.source(encoding))
    write_series(result, tmp_path / "chi")
    image, notes, said = convert(tmp_path / "chi", tmp_path / "nifti")
    assert "Manufacturer" not in notes  # of a maker that it knows by the first letters, it would say which
    assert notes["ManufacturersModelName"] == "QSM"
    assert "Philips" not in said
    check_world(image, np.rint(result.chi_ppm * 1000), result.series.geometry)


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (21.0, -13.0, 8.0)])
def test_dcm2niix_reads_the_same_ppb_in_world_space(tmp_path, plane, angles):
    grid = results.geometry(plane=plane, angles=angles)
    result = results.result(results.source("philips_classic", grid), grid)
    write_series(result, tmp_path / "chi")
    image, _, _ = convert(tmp_path / "chi", tmp_path / "nifti")
    check_world(image, np.rint(result.chi_ppm * 1000), grid)


def check_world(image, values, grid: Geometry):
    """Every voxel of `values` (z, y, x) is found in `image` at its position in space."""
    read = np.asarray(image.dataobj)
    assert read.shape[:3] == tuple(np.asarray(image.shape)[:3])
    assert read.size == values.size
    indices = np.indices(grid.shape).reshape(3, -1)
    world = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine_lps @ np.vstack([indices, np.ones(indices.shape[1])])
    at = np.linalg.inv(image.affine) @ world
    nearest = np.rint(at[:3]).astype(int)
    assert np.abs(at[:3] - nearest).max() < 2e-3
    np.testing.assert_array_equal(read[tuple(nearest)], values[tuple(indices)])
