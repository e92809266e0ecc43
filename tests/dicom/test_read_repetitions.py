"""Repetitions of a protocol: magnitude and phase of one are never joined with those of another."""

from __future__ import annotations

import itertools

import dicom_factory as factory
import pytest

from qsm_edge.dicom import find

TIMES = ("AcquisitionTime", "AcquisitionDate", "AcquisitionDateTime")


def repetitions(encoding="siemens_classic", *, count=2, times="none", numbered="MP", keyword="AcquisitionNumber"):
    """The same protocol several times, in the same series; UIDs of the second one end with .2."""
    out = []
    for number in range(1, count + 1):
        for dataset in factory.scan(encoding):
            if number > 1:
                dataset.SOPInstanceUID += f".{number}"
            if factory.component(dataset) in numbered:
                setattr(dataset, keyword, number)
            elif keyword in dataset:
                delattr(dataset, keyword)
            for time in TIMES:
                if time in dataset and times == "none":
                    delattr(dataset, time)
            if times == "apart":
                dataset.AcquisitionTime = f"{101510 + 100 * number:06d}.000000"
            out.append(dataset)
    return out


def repetition(dataset) -> int:
    tail = str(dataset.SOPInstanceUID).rsplit(".", 1)[1]
    return int(tail) if len(tail) == 1 else 1


def found(datasets, folder):
    """The repetitions that every acquisition is made of, what is refused, what is ignored."""
    owner = {str(d.SOPInstanceUID): repetition(d) for d in datasets}
    with find(factory.write(datasets, folder)) as inventory:
        made = [
            sorted({owner[i.sop_instance_uid] for images in a.source.slices for i in images})
            for a in inventory.acquisitions
        ]
        return sorted(made), sorted(r.code for r in inventory.refused), [i.code for i in inventory.ignored]


@pytest.mark.parametrize("times", ["none", "equal", "apart"])
@pytest.mark.parametrize("order", list(itertools.permutations([("M", 1), ("M", 2), ("P", 1), ("P", 2)]))[::3])
def test_magnitude_and_phase_in_whatever_order_files_are_listed(tmp_path, order, times):
    datasets = repetitions(times=times)
    listed = [d for key in order for d in datasets if (factory.component(d), repetition(d)) == key]
    assert found(listed, tmp_path / "in") == ([[1], [2]], [], [])


@pytest.mark.parametrize("times", ["none", "equal"])
def test_what_neither_times_nor_numbers_decide_is_refused(tmp_path, times):
    """Numbers in the magnitudes and temporal positions in the phases: each tells its own repetitions apart."""
    datasets = repetitions(times=times, numbered="M")
    for dataset in factory.matching(datasets, parts="P"):
        dataset.TemporalPositionIdentifier = repetition(dataset)
    assert found(datasets, tmp_path / "in") == ([], ["two_acquisitions", "two_acquisitions"], [])


@pytest.mark.parametrize("times", ["none", "equal"])
@pytest.mark.parametrize("part", ["M", "P"])
def test_a_repetition_without_its_partner_stands_alone(tmp_path, part, times):
    datasets = [d for d in repetitions(times=times) if (factory.component(d), repetition(d)) != (part, 2)]
    lacking = {"M": "no_magnitude", "P": "no_phase"}[part]
    assert found(datasets, tmp_path / "in") == ([[1]], [lacking], [])


def test_a_single_phase_of_another_number_belongs_to_nobody(tmp_path):
    """Magnitude of the first repetition, phase of the second, each in a series of its own, and no times."""
    datasets = [d for d in repetitions() if (factory.component(d), repetition(d)) in (("M", 1), ("P", 2))]
    assert found(datasets, tmp_path / "in") == ([], ["no_magnitude", "no_phase"], [])


def test_numbers_do_not_part_what_was_acquired_at_one_time(tmp_path):
    """Where magnitude and phase are numbered as two acquisitions of one run, their common time joins them."""
    datasets = factory.scan("siemens_classic")
    for dataset in factory.matching(datasets, parts="P"):
        dataset.AcquisitionNumber = 2
    assert found(datasets, tmp_path / "in") == ([[1]], [], [])


def test_numbers_that_count_slices_part_nothing(tmp_path):
    datasets = factory.scan("siemens_classic")
    for dataset in datasets:
        dataset.AcquisitionNumber = 1 + round(factory.place(dataset) - factory.slice_of(datasets, 0))
        del dataset.AcquisitionTime
    magnitudes, phases = (factory.matching(datasets, parts=part) for part in "MP")
    assert found([*magnitudes, *reversed(phases)], tmp_path / "in") == ([[1]], [], [])


@pytest.mark.parametrize("encoding", ["siemens_xa_enhanced", "philips_enhanced"])
@pytest.mark.parametrize("keyword", ["FrameAcquisitionNumber", "TemporalPositionIndex"])
def test_repetitions_of_enhanced_objects(tmp_path, encoding, keyword):
    """Told by the frames alone."""
    datasets = []
    for number in (1, 2):
        for dataset in factory.scan(encoding):
            dataset.SOPInstanceUID += ".2" * (number - 1)
            del dataset.AcquisitionNumber
            for frame in dataset.PerFrameFunctionalGroupsSequence:
                setattr(frame.FrameContentSequence[0], keyword, number)
            datasets.append(dataset)
    assert found(datasets, tmp_path / "in") == ([[1], [2]], [], [])
