"""Slices that are missing at an end of every stack leave no gap in space: only numbers that count images tell."""

from __future__ import annotations

import dicom_factory as factory
import pytest

from qsm_edge.dicom import find

CSA, SDS = (0x0029, "SIEMENS CSA HEADER", 0x20), (0x0021, "SIEMENS MR SDS 01", 0x19)
SHAPE = (9, 12, 10)
FULL = SHAPE[0]


def codes(datasets, folder) -> tuple[int, list[str]]:
    with find(factory.write(datasets, folder)) as inventory:
        return len(inventory.acquisitions), [refusal.code for refusal in inventory.refused]


def check(tmp_path, make, ends=((0,), (FULL - 1,), (FULL - 2, FULL - 1))):
    """The whole acquisition is used; without slices at either end it is refused."""
    assert codes(make(), tmp_path / "whole") == (1, [])
    for gone in ends:
        datasets = make()
        lost = {id(d) for z in gone for d in factory.matching(datasets, slice_=z)}
        keep = [d for d in datasets if id(d) not in lost]
        assert codes(keep, tmp_path / f"{gone}") == (0, ["missing_slice"]), gone


def protocol(dimension: int, slices: int, slab: int) -> bytes:
    lines = [
        "<XProtocol>",
        '<ParamLong."lImagesPerSlab"> { 999 }',
        "### ASCCONV BEGIN object=MrProtDataImpl@MrProtocolData version=51130001 ###",
        f"sSliceArray.lSize\t = \t{slices}",
        f"sKSpace.lPartitions\t = \t{slab + 2}",
        f"sKSpace.lImagesPerSlab\t = \t{slab}",
        f"sKSpace.ucDimension\t = \t{dimension}",
        "### ASCCONV END ###",
    ]
    return "\n".join(lines).encode() + b"\0"


def numbered(datasets):
    """Numbers from 1 in every series and echo, as if nothing had been before."""
    seen: dict[tuple, int] = {}
    for d in sorted(datasets, key=factory.place):
        key = d.SeriesInstanceUID, factory.component(d), d.EchoTime
        d.InstanceNumber = seen[key] = seen.get(key, 0) + 1
    return datasets


@pytest.mark.parametrize("text", [(4, 1, FULL), (2, FULL, 32)], ids=["3-D", "2-D"])
@pytest.mark.parametrize(("encoding", "where"), [("siemens_classic", CSA), ("siemens_xa_classic", SDS)])
def test_siemens_by_its_protocol(tmp_path, encoding, where, text):
    def make():
        datasets = factory.scan(encoding, shape=SHAPE)
        for d in datasets:
            d.private_block(where[0], where[1], create=True).add_new(where[2], "OB", protocol(*text))
        return datasets

    assert codes(make(), tmp_path / "whole") == (1, [])
    for gone in (0, FULL - 1):
        datasets = factory.without(make(), slice_=gone)
        assert codes(numbered(datasets), tmp_path / f"{gone}") == (0, ["missing_slice"])


@pytest.mark.parametrize("text", [(4, 2, FULL), (8, 1, FULL + 3), (4, 1, 0)], ids=["two slabs", "no dimension", "zero"])
def test_a_protocol_that_does_not_tell(tmp_path, text):
    datasets = factory.scan("siemens_classic", shape=SHAPE)
    for d in datasets:
        d.private_block(CSA[0], CSA[1], create=True).add_new(CSA[2], "OB", protocol(*text))
    assert codes(datasets, tmp_path / "in") == (1, [])


@pytest.mark.parametrize("images", [None, FULL * 6])
def test_ge_by_its_locations(tmp_path, images):
    def make():
        datasets = factory.scan("ge_real_imaginary", shape=SHAPE)
        for d in datasets:
            d.private_block(0x0021, "GEMS_RELA_01", create=True).add_new(0x4F, "SS", FULL)
            if images:
                d.ImagesInAcquisition = images
        return datasets

    check(tmp_path, make)


def test_ge_whose_counts_contradict_one_another(tmp_path):
    """Locations of which the images are no multiple mean something else."""
    datasets = factory.scan("ge_real_imaginary", shape=SHAPE)
    for d in datasets:
        d.private_block(0x0021, "GEMS_RELA_01", create=True).add_new(0x4F, "SS", FULL + 2)
        d.ImagesInAcquisition = FULL * 6
    assert codes(datasets, tmp_path / "in") == (1, [])


@pytest.mark.parametrize("encoding", ["ge_phase", "philips_classic", "siemens_classic", "siemens_xa_classic"])
@pytest.mark.parametrize("times", [1, 6])
def test_any_vendor_by_the_images_of_the_acquisition(tmp_path, encoding, times):
    """(0020,1002), whether it counts those of one echo or of all echoes and components."""

    def make():
        datasets = factory.scan(encoding, shape=SHAPE)
        for d in datasets:
            d.ImagesInAcquisition = FULL * times
        return numbered(datasets) if encoding.startswith("siemens") else datasets

    ends = ((FULL - 1,), (FULL - 2, FULL - 1)) if times == 6 or encoding == "siemens_xa_classic" else ()
    check(tmp_path, make, ends)


def test_numbers_that_run_through_one_echo_after_the_other(tmp_path):
    """Without the last slice of every echo there is a gap where the next one starts."""

    def make():
        datasets = factory.scan("ge_phase", shape=SHAPE)
        order = sorted(datasets, key=lambda d: (factory.component(d), factory.echo_time_ms(d), factory.place(d)))
        for number, d in enumerate(order, start=1):
            d.InstanceNumber = number
        return datasets

    check(tmp_path, make, ((FULL - 1,), (FULL - 2, FULL - 1)))


def test_whole_stacks_may_be_left_out(tmp_path):
    """Of magnitude, phase, real and imaginary images two are enough: their numbers, and the total, count the others."""
    datasets = factory.scan("ge_phase", shape=SHAPE)
    order = sorted(datasets, key=lambda d: (factory.component(d), factory.echo_time_ms(d), factory.place(d)))
    for number, d in enumerate(order):
        d.InstanceNumber = 1 + number + (number // FULL) * FULL
        d.ImagesInAcquisition = 12 * FULL
    assert codes(datasets, tmp_path / "in") == (1, [])
