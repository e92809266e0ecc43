"""What depends on who made the scanner: the sign of the phase, the direction of the field, filtered phase, mosaics."""

from __future__ import annotations

import dicom_factory as factory
import pytest

from qsm_edge.dicom import find, read_series
from qsm_edge.dicom.signal import read_signal
from qsm_edge.dicom.vendors import VENDORS
from qsm_edge.errors import InputRefused


def refusals(folder) -> list[tuple[str, str]]:
    """Code and text of what is refused; nothing can be used."""
    with find(folder) as inventory:
        assert not inventory.acquisitions
        return [(refusal.code, refusal.text) for refusal in inventory.refused]


def named(datasets, maker: str, model: str | None = None):
    for dataset in datasets:
        dataset.Manufacturer = maker
        if model is not None:
            dataset.ManufacturerModelName = model
    return datasets


# -------------------------------------------------------------------------------------- the sign


def test_every_sign_is_one_that_is_known():
    """docs: Siemens and Philips were seen to grow with the field, GE is read to fall; nobody else is known."""
    assert {v.name: v.sign for v in VENDORS if v.sign is not None} == {"siemens": 1, "philips": 1, "ge": -1}


@pytest.mark.parametrize(
    ("encoding", "maker"),
    [
        ("uih", None),
        ("uih", "United Imaging Healthcare"),
        ("canon", None),
        ("canon", "TOSHIBA_MEC"),
        ("canon", "Hitachi, Ltd."),
        ("canon", "FUJIFILM Healthcare Corporation"),
        ("canon", "Nobody"),
        ("canon", ""),
    ],
)
@pytest.mark.parametrize("rescaled", [False, True])
def test_a_sign_that_is_not_known_is_never_guessed(tmp_path, encoding, maker, rescaled):
    """Whether or not the numbers say what a turn is: they do not say which way it goes."""
    datasets = factory.scan(encoding)
    for dataset in factory.matching(datasets, parts="P") if rescaled else ():
        unsigned = dataset.PixelRepresentation == 0
        dataset.RescaleSlope, dataset.RescaleIntercept = ("2", "-4096") if unsigned else ("1", "0")
    folder = factory.write(named(datasets, maker) if maker is not None else datasets, tmp_path / "in")
    ((code, text),) = refusals(folder)
    assert code == "unknown_phase_sign"
    assert "grows or falls with the field" in text
    assert "Python" in text


def test_real_and_imaginary_images_of_nobody_known(tmp_path):
    datasets = factory.scan("canon")
    for dataset in datasets:
        part = {"M": "R", "P": "I"}[factory.component(dataset)]
        dataset.ImageType = ["ORIGINAL", "PRIMARY", part, "NONE"]
        del dataset.ComplexImageComponent
    assert [code for code, _ in refusals(factory.write(datasets, tmp_path / "in"))] == ["unknown_phase_sign"]


@pytest.mark.parametrize("scale", [None, ("1", "0"), ("2", "-4096")])
def test_ge_without_its_private_groups(tmp_path, scale):
    """Component and scale are told by standard elements; that it is GE, and chopped, is not borne out."""
    datasets = factory.scan("ge_phase_4096")
    for dataset in datasets:
        part = factory.component(dataset)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", part, "NONE"]
        dataset.remove_private_tags()
        if scale and part == "P":
            dataset.RescaleSlope, dataset.RescaleIntercept = scale
    ((code, text),) = refusals(factory.write(datasets, tmp_path / "in"))
    assert code == "unknown_phase_sign"
    assert "GE" in text
    assert "private" in text


def test_a_maker_of_unknown_sign_is_not_overruled_by_the_look_of_an_image(tmp_path):
    """FFE is what Toshiba calls its gradient echo, too."""
    datasets = factory.scan("philips_classic")
    for dataset in datasets:
        dataset.remove_private_tags()
    assert read_series(factory.write(datasets, tmp_path / "philips")).source.vendor == "philips"
    folder = factory.write(named(datasets, "TOSHIBA_MEC"), tmp_path / "toshiba")
    assert [code for code, _ in refusals(folder)] == ["unknown_phase_sign"]


def test_a_router_that_calls_itself_the_maker_does_not_hide_who_it_was(tmp_path):
    """Look and private groups agree."""
    for encoding in ("philips_classic", "siemens_xa_classic"):
        folder = factory.write(named(factory.scan(encoding), "Canon"), tmp_path / encoding)
        assert read_series(folder).source.vendor == encoding.split("_")[0]


def test_pixels_are_not_read_where_the_sign_is_open(tmp_path, monkeypatch):
    """The second lock: whoever comes past the first finds no phase."""
    folder = factory.write(factory.scan("canon"), tmp_path / "in")
    monkeypatch.setattr("qsm_edge.dicom.vendors.scanner_verdict", lambda *_: None)
    with find(folder) as inventory:
        (acquisition,) = inventory.acquisitions
    with pytest.raises(InputRefused) as refusal:
        read_signal(acquisition.plan)
    assert refusal.value.code == "unknown_phase_sign"


# -------------------------------------------------------------------------------------- the field


@pytest.mark.parametrize(
    ("encoding", "maker", "model"),
    [
        ("philips_classic", "Philips Medical Systems", "Panorama HFO"),
        ("philips_enhanced", "Philips Medical Systems", "Panorama 1.0T"),
        ("siemens_classic", "SIEMENS", "MAGNETOM Concerto"),
        ("siemens_classic", "SIEMENS", "MAGNETOM C!"),
        ("siemens_classic", "SIEMENS", "Rhapsody"),
        ("siemens_classic", "a router", "MAGNETOM C!"),
        ("ge_real_imaginary", "GE MEDICAL SYSTEMS", "Signa Ovation"),
        ("ge_real_imaginary", "GE MEDICAL SYSTEMS", "SIGNA PROFILE"),
        ("ge_real_imaginary", "GE MEDICAL SYSTEMS", "Signa OpenSpeed"),
        ("canon", "Hitachi Medical Corporation", "OASIS"),
        ("canon", "HITACHI", "AIRIS Vento"),
        ("canon", "Hitachi, Ltd.", "APERTO Lucent"),
    ],
)
def test_a_field_across_the_patient_is_refused(tmp_path, encoding, maker, model):
    folder = factory.write(named(factory.scan(encoding), maker, model), tmp_path / "in")
    ((code, text),) = refusals(folder)
    assert code == "vertical_field"
    assert "vertical" in text


@pytest.mark.parametrize(
    ("encoding", "maker", "model"),
    [
        ("siemens_classic", "SIEMENS", "MAGNETOM Vida"),
        ("siemens_classic", "SIEMENS", "MAGNETOM Cima.X"),
        ("siemens_classic", "SIEMENS", "MAGNETOM Free.Max"),
        ("philips_classic", "Philips", "Ingenia Ambition X"),
        ("ge_real_imaginary", "GE MEDICAL SYSTEMS", "SIGNA Premier"),
    ],
)
def test_a_field_along_the_bore_is_not(tmp_path, encoding, maker, model):
    folder = factory.write(named(factory.scan(encoding), maker, model), tmp_path / "in")
    assert read_series(folder).magnitude.shape == (3, *factory.SHAPE)


# -------------------------------------------------------------------------------------- phase of another kind


@pytest.mark.parametrize(
    "description",
    [
        "FILT_PHA: Ax SWAN",
        "t2_swi3d_tra_p2_Pha",
        "SWI_Pha",
        "Phase_HPF",
        "SWIp phase",
        "Pha_Images",
        "filtered phase",
        "phase filtered",
        "Phase high-pass",
    ],
)
def test_filtered_phase_by_its_name(tmp_path, description):
    datasets = factory.scan("siemens_classic")
    for dataset in factory.matching(datasets, parts="P"):
        dataset.SeriesDescription = description
    assert [code for code, _ in refusals(factory.write(datasets, tmp_path / "in"))] == ["filtered_phase"]


@pytest.mark.parametrize(
    "description", ["gre_qsm_Pha", "t2_swi3d_tra_p2", "QSM phase", "unfiltered phase", "Pha_unfiltered", "phase_noHPF"]
)
def test_phase_as_it_was_measured_by_its_name(tmp_path, description):
    """A susceptibility-weighted sequence whose phase was stored unprocessed bears the plain name of the protocol."""
    datasets = factory.scan("siemens_classic")
    for dataset in factory.matching(datasets, parts="P"):
        dataset.SeriesDescription = description
    assert read_series(factory.write(datasets, tmp_path / "in")).phase_rad.shape == (3, *factory.SHAPE)


def mosaic(datasets):
    for dataset in datasets:
        dataset.ImageType = [*list(dataset.ImageType)[:3], "MOSAIC"]
    return datasets


def test_a_mosaic_of_magnitudes_beside_an_acquisition_is_ignored(tmp_path):
    """As of functional or diffusion imaging; nobody would make a map of it."""
    factory.write(mosaic(factory.matching(factory.scan("siemens_classic", name="fmri"), parts="M")), tmp_path / "in")
    with find(factory.write(factory.scan("siemens_classic"), tmp_path / "in")) as inventory:
        assert len(inventory.acquisitions) == 1
        assert not inventory.refused
        assert [ignored.code for ignored in inventory.ignored] == ["mosaic"]


def test_a_mosaic_of_phases_is_refused(tmp_path):
    folder = factory.write(mosaic(factory.scan("siemens_classic")), tmp_path / "in")
    assert [code for code, _ in refusals(folder)] == ["mosaic"]


# -------------------------------------------------------------------------------------- nothing but strays


def unpromising(kind: str):
    if kind == "derived":
        datasets = factory.scan("siemens_classic")
        for dataset in datasets:
            dataset.ImageType = ["DERIVED", *list(dataset.ImageType)[1:]]
        return datasets
    datasets = factory.scan("ge_phase", echo_times_s=(0.02,))
    for dataset in datasets:
        dataset.SeriesInstanceUID += {"M": ".1", "P": ".2"}[factory.component(dataset)]
        dataset.remove_private_tags()
    return datasets


@pytest.mark.parametrize(("kind", "code"), [("derived", "derived_image"), ("unnamed", "unknown_component")])
def test_what_is_ignored_is_the_reason_where_there_is_nothing_else(tmp_path, kind, code):
    """A run that made nothing must not look like one that had nothing to do."""
    datasets = unpromising(kind)
    folder = factory.write(datasets, tmp_path / "in")
    with find(folder) as inventory:
        assert not inventory.ignored
        assert {refusal.code for refusal in inventory.refused} == {code}
        assert sum(len(refusal.files) for refusal in inventory.refused) == len(datasets)
    with find(factory.write(factory.scan("siemens_classic", name="good"), tmp_path / "in")) as inventory:
        assert len(inventory.acquisitions) == 1
        assert not inventory.refused
        assert {ignored.code for ignored in inventory.ignored} == {code}
