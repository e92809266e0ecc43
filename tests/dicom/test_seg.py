"""Laws of the written mask and map objects: where their frames lie, what they refer to, that they repeat."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pydicom
import pytest
import results

from dicom_samples.encode import encode, save
from qsm_edge.dicom.maskfile import read_seg_mask
from qsm_edge.dicom.parametric import write_parametric_map
from qsm_edge.dicom.seg import first_echo, write_mask, write_seg
from qsm_edge.dicom.write import write_series
from qsm_edge.errors import InternalError
from qsm_edge.types import Source, SourceInstance

ENCODED = ("siemens_classic", "siemens_xa_enhanced", "philips_enhanced", "ge_real_imaginary")
WRITERS = {"seg": write_seg, "map": write_parametric_map}


def on_grid(dataset, grid):
    """Frames of a multi-frame object laid on the grid by their positions, and how far they are off at most [mm]."""
    volume, off = np.zeros(grid.shape), 0.0
    frames = dataset.pixel_array.reshape(-1, *grid.shape[1:])
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        index = np.linalg.inv(grid.affine_lps) @ [*position, 1.0]
        z = round(index[0])
        off = max(off, np.abs((grid.affine_lps @ [z, 0, 0, 1])[:3] - position).max())
        volume[z] = frame
    return volume, off


@pytest.mark.parametrize("encoding", [*ENCODED, None])
@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_the_mask_lies_where_the_images_lie(tmp_path, encoding, plane):
    grid = results.geometry(plane=plane)
    source = results.source(encoding, grid) if encoding else Source("unknown", "arrays")
    dataset = pydicom.dcmread(write_seg(results.result(source, grid), tmp_path / "mask.dcm"))
    volume, off = on_grid(dataset, grid)
    assert off < 1e-6
    np.testing.assert_array_equal(volume, results.brain())
    shared = dataset.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [grid.voxel_mm[1], grid.voxel_mm[2]]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    unit = grid.affine_lps[:3, :3] / grid.voxel_mm
    np.testing.assert_allclose(orientation, [*unit[:, 2], *unit[:, 1]], atol=1e-9)


@pytest.mark.parametrize("encoding", [*ENCODED, None])
def test_a_written_mask_is_read_back_exactly(tmp_path, encoding):
    source = results.source(encoding) if encoding else Source("unknown", "arrays")
    path = write_seg(results.result(source), tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_seg_mask(path, results.geometry()), results.brain())


def test_the_map_holds_the_floats_themselves(tmp_path):
    result = results.result(chi_ppm=np.random.default_rng(3).normal(0, 0.1, results.SHAPE).astype(np.float32))
    dataset = pydicom.dcmread(write_parametric_map(result, tmp_path / "map.dcm"))
    volume, off = on_grid(dataset, results.geometry())
    assert off < 1e-6
    np.testing.assert_array_equal(volume.astype(np.float32), result.chi_ppm)
    mapping = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[ppm]"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "126396"


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("encoding", ENCODED)
def test_the_frames_refer_to_the_written_series_and_to_nothing_else(tmp_path, kind, encoding):
    result = results.result(results.source(encoding))
    chi = [pydicom.dcmread(path) for path in write_series(result, tmp_path / "chi")]
    dataset = pydicom.dcmread(WRITERS[kind](result, tmp_path / "object.dcm"))
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == chi[0].SeriesInstanceUID
    at = {tuple(d.ImagePositionPatient): d.SOPInstanceUID for d in chi}
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        (image,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == at[tuple(groups.PlanePositionSequence[0].ImagePositionPatient)]
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (
        chi[0].StudyInstanceUID,
        chi[0].FrameOfReferenceUID,
    )
    assert dataset.SeriesInstanceUID != chi[0].SeriesInstanceUID
    assert dataset.SeriesNumber != chi[0].SeriesNumber
    assert dataset.file_meta.ImplementationVersionName == chi[0].file_meta.ImplementationVersionName


def test_the_segment_says_that_it_is_a_brain_and_what_found_it(tmp_path):
    for method, kind in (("threshold", "AUTOMATIC"), ("network", "AUTOMATIC"), ("given", "SEMIAUTOMATIC")):
        result = results.result(provenance=results.provenance(mask_method=method))
        (segment,) = pydicom.dcmread(write_seg(result, tmp_path / f"{method}.dcm")).SegmentSequence
        assert segment.SegmentLabel == "Brain"
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "12738006"
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
        assert segment.SegmentAlgorithmType == kind
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert method in algorithm.AlgorithmName
        assert algorithm.AlgorithmVersion == "0.1.0"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_second_run_writes_the_same_bytes_but_for_the_time_of_creation(tmp_path, kind):
    written = []
    for name, seconds in (("a", 1.0), ("b", 9.0)):
        result = results.result(provenance=results.provenance(seconds=seconds))
        dataset = pydicom.dcmread(WRITERS[kind](result, tmp_path / f"{name}.dcm"))
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = "20260105", "000000"
        dataset.save_as(tmp_path / f"{name}.dcm")
        written.append((tmp_path / f"{name}.dcm").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("kind", WRITERS)
def test_names_survive_and_no_vendor_comes_along(tmp_path, kind):
    source = results.source("philips_enhanced")
    source.template.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    source.template.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    dataset = pydicom.dcmread(WRITERS[kind](results.result(source), tmp_path / "object.dcm"))
    assert str(dataset.PatientName) == str(source.template.PatientName)
    makers = [e.value for e in dataset.iterall() if e.keyword == "Manufacturer"]
    assert makers.count("qsm-edge") == 2
    assert not any(m.upper().startswith(("PH", "GE", "SI")) for m in makers)
    assert not [e.tag for e in dataset.iterall() if e.tag.is_private]


def test_no_mask_is_our_fault(tmp_path):
    with pytest.raises(InternalError):
        write_seg(results.result(brain=np.zeros(results.SHAPE, bool)), tmp_path / "mask.dcm")
    assert not list(tmp_path.iterdir())


def by_component(components: list[str], frames: bool = False) -> Source:
    """A source as the reader makes it: in every slice the echoes of one component after the other."""
    names = [f"{component}{echo}" for component in components for echo in range(2)]
    slices = tuple(
        tuple(
            SourceInstance("1.2.3", f"2.25.{i if frames else 100 * z + i}", f"2.25.9{i}", (z + 1) * frames)
            for i, _ in enumerate(names, 1)
        )
        for z in range(results.SHAPE[0])
    )
    return Source("vendor", "made", slices, results.source().template, facts={"components": components})


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize(
    ("components", "first"), [(["magnitude", "phase"], 1), (["phase", "magnitude"], 3), (["real", "imaginary"], 1)]
)
def test_a_mask_by_itself_refers_to_the_first_echo_that_it_was_made_on(tmp_path, components, first, frames):
    result = results.result(by_component(components, frames))
    path = write_mask(result.series, result.brain, result.provenance, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_seg_mask(path, results.geometry()), results.brain())
    dataset = pydicom.dcmread(path)
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == f"2.25.9{first}"
    assert len(series.ReferencedInstanceSequence) == len(dataset.SourceImageSequence) == (1 if frames else 5)
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        (image,) = groups.DerivationImageSequence[0].SourceImageSequence
        position = [*map(float, groups.PlanePositionSequence[0].ImagePositionPatient), 1.0]
        z = round(float((np.linalg.inv(results.geometry().affine_lps) @ position)[0]))
        assert image.ReferencedSOPInstanceUID == f"2.25.{first if frames else 100 * z + first}"
        assert image.get("ReferencedFrameNumber") == (z + 1 if frames else None)
        assert image.SpatialLocationsPreserved == "YES"
    beside = pydicom.dcmread(write_seg(result, tmp_path / "beside.dcm"))
    assert (beside.StudyInstanceUID, beside.FrameOfReferenceUID) == (
        dataset.StudyInstanceUID,
        dataset.FrameOfReferenceUID,
    )
    assert beside.SOPInstanceUID != dataset.SOPInstanceUID
    assert beside.SeriesInstanceUID != dataset.SeriesInstanceUID
    assert beside.SeriesNumber != dataset.SeriesNumber


def test_a_mask_without_the_images_it_was_made_on_is_our_fault(tmp_path):
    result = results.result(by_component(["phase", "imaginary"]))
    assert first_echo(result.series.source, 2) == []
    assert first_echo(by_component(["magnitude", "phase"]), 3) == []
    with pytest.raises(InternalError):
        write_mask(result.series, result.brain, result.provenance, tmp_path / "mask.dcm")
    assert not list(tmp_path.iterdir())


def test_one_slice_with_brain_is_enough(tmp_path):
    brain = np.zeros(results.SHAPE, bool)
    brain[2, 3, 4] = True
    path = write_seg(results.result(brain=brain), tmp_path / "mask.dcm")
    np.testing.assert_array_equal(read_seg_mask(path, results.geometry()), brain)


@pytest.mark.shared
def test_the_benchmark_reads_what_we_write(tmp_path, shared):
    spec = importlib.util.spec_from_file_location("score", shared / "bench" / "score.py")
    score = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(score)
    finally:
        sys.dont_write_bytecode = before
    grid = results.geometry()
    signal = np.ones((2, *grid.shape), complex)
    save(
        encode(signal, grid, results.ECHO_TIMES_S, 3.0, "siemens_classic", seed_name="writer"), tmp_path / "case/dicom"
    )
    result = results.result()
    (tmp_path / "out").mkdir()
    write_series(result, tmp_path / "out" / "chi")
    write_seg(result, tmp_path / "out" / "mask.dcm")
    chi_ppm = score.read_dicom(str(tmp_path / "out"))
    np.testing.assert_allclose(chi_ppm, result.chi_ppm, atol=0.00051)
    mask = score.read_seg(str(tmp_path / "out" / "mask.dcm"), str(tmp_path / "case"))
    np.testing.assert_array_equal(mask, result.brain)
