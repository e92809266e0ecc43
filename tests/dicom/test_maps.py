"""Laws of the series beside the susceptibility: what they say they are, whom they name, and what others make of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io

import judges
import numpy as np
import pydicom
import pytest
import results
from test_conformance import check_world, convert
from test_orthanc import orthanc, send, studies, uid_of  # noqa: F401
from test_write import elements

from dicom_samples.encode import ENCODINGS
from qsm_edge.dicom import parametric, seg
from qsm_edge.dicom.write import EXTRA_KINDS, KINDS, volume_of, write_extras, write_map, write_series
from qsm_edge.errors import UsageError
from qsm_edge.types import ExtraMap, Geometry, Result

SLAB = 3
QUANTITIES = {"t2star": ("113064", "ms"), "r2star": ("126395", "/s"), "chi_sd": ("126396", "[ppb]")}
WEIGHTED = [name for name in EXTRA_KINDS if name not in QUANTITIES]
IMAGE_TYPES = {
    "t2star": ["OTHER", "T2_STAR"],
    "r2star": ["OTHER", "R2_STAR"],
    "swi": ["OTHER", "SWI"],
    "smwi": ["OTHER", "SMWI"],
    "swi_mip": ["PROJECTION IMAGE", "SWI", "MIN_IP"],
    "chi_sd": ["OTHER", "QSM_SD"],
}
TITLES = {"t2star": "T2*", "r2star": "R2*", "smwi": "SMWI", "chi_sd": "QSM chi SD"}
DOI = "10.1002/mrm.20198"


def with_extras(result: Result | None = None) -> Result:
    """A result that has all maps, every one with other values in every voxel, none of them a whole number."""
    result = result or results.result()
    shape = result.series.geometry.shape
    extras = []
    for number, name in enumerate(EXTRA_KINDS):
        values = np.random.default_rng(number).permutation(int(np.prod(shape))).reshape(shape) + 0.25
        values = values / EXTRA_KINDS[name].per_unit
        volume = result.r2star_per_s if name == "r2star" else values.astype(np.float32)
        derivation = f"{result.provenance.derivation}; Map ({name}): in words [doi:{DOI}]"
        comment = "Told to whoever reads it." if name == "chi_sd" else ""
        extras.append(ExtraMap(name, volume, derivation, SLAB if name == "swi_mip" else 1, comment))
    return dataclasses.replace(result, extras=tuple(extras))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The datasets of every map, slice by slice."""
    folder = tmp_path_factory.mktemp("maps")
    write_extras(with_extras(), folder)
    assert {path.name for path in folder.iterdir()} == set(EXTRA_KINDS)
    return {name: read(folder / name) for name in EXTRA_KINDS}


def read(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


@pytest.mark.parametrize("name", EXTRA_KINDS)
def test_the_stored_integers_are_the_values_in_the_unit_of_the_series(written, name):
    volume = volume_of(with_extras(), EXTRA_KINDS[name]) * EXTRA_KINDS[name].per_unit
    stored = np.stack([d.pixel_array for d in written[name]])
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored, np.rint(volume))
    for d in written[name]:
        assert not {"RescaleSlope", "RescaleIntercept", "RescaleType"} & {e.keyword for e in elements(d)}


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_quantity_says_which_and_in_what_unit(written, name):
    quantity, unit = QUANTITIES[name]
    for d in written[name]:
        (mapping,) = d.RealWorldValueMappingSequence
        assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
        said = mapping.MeasurementUnitsCodeSequence[0]
        assert (said.CodeValue, said.CodingSchemeDesignator) == (unit, "UCUM")
        said = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
        assert (said.CodeValue, said.CodingSchemeDesignator) == (quantity, "DCM")
        assert d.SeriesDescription.endswith(f"[{unit.strip('[]')}] - research use only")


def test_the_codes_are_those_of_the_standard():
    from pydicom.sr.codedict import codes

    susceptibility = codes.DCM.MagneticSusceptibility
    for name, known in (("t2star", codes.DCM.T2Star), ("r2star", codes.DCM.R2Star), ("chi_sd", susceptibility)):
        quantity = EXTRA_KINDS[name].quantity
        assert (quantity.value, quantity.scheme, quantity.meaning) == (known.value, "DCM", known.meaning)
        assert quantity.value in {code.value for code in codes.CID7180.concepts.values()}


def test_a_standard_deviation_says_of_what_and_where_there_is_none(tmp_path):
    """Codes of the standard; infinity is the one stored value that the mapping to the real world leaves out."""
    from pydicom.sr.codedict import codes

    result = results.result()
    volume = np.full(result.series.geometry.shape, 0.012, np.float32)
    volume[:, 0] = np.inf
    extra = ExtraMap("chi_sd", volume, "how")
    write_extras(dataclasses.replace(result, extras=(extra,)), tmp_path)
    for d in read(tmp_path / "chi_sd"):
        (mapping,) = d.RealWorldValueMappingSequence
        mapped = mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped
        assert mapped == (0, 32766)
        assert set(np.unique(d.pixel_array[1:])) == {12}
        assert set(np.unique(d.pixel_array[0])) == {32767}
        what, how = mapping.QuantityDefinitionSequence
        assert what.ConceptNameCodeSequence[0].CodeValue == "246205007"
        for sequence, known in (
            (how.ConceptNameCodeSequence, codes.DCM.Derivation),
            (how.ConceptCodeSequence, codes.SCT.StandardDeviation),
        ):
            code = sequence[0].CodeValue, sequence[0].CodingSchemeDesignator, sequence[0].CodeMeaning
            assert code == (known.value, known.scheme_designator, known.meaning)


@pytest.mark.parametrize("name", WEIGHTED)
def test_an_image_of_arbitrary_units_claims_no_quantity(written, name):
    for d in written[name]:
        assert "RealWorldValueMappingSequence" not in d
        assert "[" not in d.SeriesDescription


@pytest.mark.parametrize("name", EXTRA_KINDS)
def test_a_map_says_what_it_is_how_it_was_made_and_that_it_is_for_research(written, name):
    for d in written[name]:
        assert d.ImageType == ["DERIVED", "PRIMARY", *IMAGE_TYPES[name]]
        assert d.SeriesDescription.startswith(TITLES.get(name, "SWI"))
        assert d.ImageComments.endswith("Told to whoever reads it.") == (name == "chi_sd")
        assert d.DerivationDescription.startswith(results.provenance().derivation)
        assert DOI in d.DerivationDescription
        assert "research use only" in d.SeriesDescription
        assert "research use only" in d.ImageComments.lower()
        assert "." not in d["WindowCenter"].value.original_string + d["WindowWidth"].value.original_string
        assert d.Manufacturer == "qsm-edge"
        assert not [element.tag for element in elements(d) if element.tag.is_private]


def test_a_projection_is_as_thick_as_its_slab_and_names_the_images_of_all_of_it(written):
    source, spacing = results.source(), results.geometry().voxel_mm[0]
    last = len(source.slices) - 1
    for z, (thin, thick) in enumerate(zip(written["swi"], written["swi_mip"], strict=True)):
        assert float(thick.SliceThickness) == pytest.approx(SLAB * spacing, abs=1e-3)
        assert float(thin.SliceThickness) == pytest.approx(spacing, abs=1e-3)
        assert f" {SLAB * spacing:.3g} mm " in thick.SeriesDescription
        assert (thick.SpacingBetweenSlices, thick.ImagePositionPatient) == (
            thin.SpacingBetweenSlices,
            thin.ImagePositionPatient,
        )
        for d, slab in ((thin, [z]), (thick, range(max(z - 1, 0), min(z + 1, last) + 1))):
            wanted = {image.sop_instance_uid for i in slab for image in source.slices[i]}
            assert {item.ReferencedSOPInstanceUID for item in d.SourceImageSequence} == wanted
            series = [r for s in d.ReferencedSeriesSequence for r in s.ReferencedInstanceSequence]
            assert {r.ReferencedSOPInstanceUID for r in series} == wanted


def test_no_two_series_share_a_number_or_a_uid_and_a_second_run_repeats_both(tmp_path, written):
    result = with_extras()
    for name, kind in KINDS.items():
        write_map(result, kind, tmp_path / name)
    single = [seg.write_seg(result, tmp_path / "mask.dcm"), parametric.write_parametric_map(result, tmp_path / "p.dcm")]
    objects = [read(tmp_path / name)[0] for name in KINDS] + [pydicom.dcmread(path) for path in single]
    objects += [written[name][0] for name in EXTRA_KINDS if name not in KINDS]
    for keyword in ("SeriesNumber", "SeriesInstanceUID", "SOPInstanceUID"):
        assert len({d[keyword].value for d in objects}) == len(objects), keyword
    (tmp_path / "again").mkdir()
    write_extras(result, tmp_path / "again")
    for name in EXTRA_KINDS:
        for d, again in zip(written[name], read(tmp_path / "again" / name), strict=True):
            for other in (d, again):
                other.InstanceCreationDate, other.InstanceCreationTime = "20200101", "120000"
            assert d == again


def test_the_susceptibility_series_does_not_change_with_what_lies_beside_it(tmp_path):
    write_series(results.result(), tmp_path / "alone")
    write_series(with_extras(), tmp_path / "beside")
    for one, other in zip(read(tmp_path / "alone"), read(tmp_path / "beside"), strict=True):
        for d in (one, other):
            d.InstanceCreationDate, d.InstanceCreationTime = "20200101", "120000"
        assert one == other


def test_the_susceptibility_series_is_what_it_was_before_there_were_others(tmp_path):
    """Pixels and UIDs of a grid whose numbers are exact on every machine, as version 0.1.0 wrote them."""
    grid = Geometry(results.SHAPE, np.array([[0, 0, 1, -3], [0, 1, 0, -4], [2, 0, 0, -5], [0, 0, 0, 1]]))
    chi_ppm = ((np.arange(np.prod(results.SHAPE)) * 37 % 631 - 300) / 1000).reshape(results.SHAPE).astype(np.float32)
    result = results.result(results.source(grid=grid), grid, chi_ppm)
    told = hashlib.sha256()
    for path in write_series(result, tmp_path / "chi"):
        d = pydicom.dcmread(path)
        told.update(f"{d.SOPInstanceUID} {d.SeriesInstanceUID} {d.SeriesNumber}".encode() + d.PixelData)
    assert told.hexdigest() == "6a9bd93f72b4e2920d5c5595f7a9da0893d59ec664cb6be4cf2d60221b129b0f"


def test_a_map_that_was_not_asked_for_is_not_written(tmp_path):
    write_extras(results.result(), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError) as caught:
        write_map(results.result(), EXTRA_KINDS["swi"], tmp_path / "swi")
    assert caught.value.code == "bad_call"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nothing_can_be_said_against_any_of_them(tmp_path, encoding):
    write_extras(with_extras(results.result(results.source(encoding))), tmp_path)
    for name in EXTRA_KINDS:
        for number in (1, 3):
            path = tmp_path / name / f"{number:04d}.dcm"
            assert judges.verdict(path) == [], f"{name}/{path.name}"


@pytest.mark.parametrize("name", EXTRA_KINDS)
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
@pytest.mark.parametrize("encoding", ["siemens_classic", "philips_classic", "ge_real_imaginary"])
def test_dcm2niix_reads_the_same_values_in_world_space(tmp_path, name, plane, encoding):
    grid = results.geometry(plane=plane)
    result = with_extras(results.result(results.source(encoding, grid), grid))
    kind = EXTRA_KINDS[name]
    write_map(result, kind, tmp_path / name)
    image, _, said = convert(tmp_path / name, tmp_path / "nifti")
    assert said.count("Warning") == said.count("Unable to determine manufacturer"), said  # of the scanner, on purpose
    check_world(image, np.rint(volume_of(result, kind) * kind.per_unit), grid)


@pytest.mark.orthanc
def test_a_pacs_stores_every_series(tmp_path, orthanc):  # noqa: F811
    source = results.source(name="further maps")
    result = with_extras(results.result(source))
    write_series(result, tmp_path / "chi")
    write_extras(result, tmp_path)
    paths = sorted(tmp_path.rglob("*.dcm"))
    send(orthanc, paths)
    (study,) = [s for s in map(orthanc.ask, studies(orthanc)) if uid_of(s, "Study") == source.template.StudyInstanceUID]
    series = [orthanc.ask(f"/series/{name}") for name in study["Series"]]
    assert len(series) == 1 + len(EXTRA_KINDS)
    assert {len(each["Instances"]) for each in series} == {results.SHAPE[0]}
    sent = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, paths)}
    for each in series:
        for name in each["Instances"]:
            back = pydicom.dcmread(io.BytesIO(orthanc.get(f"/instances/{name}/file")))
            assert back == sent.pop(back.SOPInstanceUID)
    assert not sent
