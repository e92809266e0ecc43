"""How much memory there is, on every system, and that only what is still to come is asked of it."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from qsm_edge import backend, doctor, memory
from qsm_edge.errors import ResourceError
from qsm_edge.pipeline import reconstruct
from qsm_edge.recipe import Recipe
from tests.test_pipeline import SHAPE, TIMES, head

GB = 10**9


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """A machine with 16 GB free, and a folder for a container's files."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {16 * GB // 1024} kB\n")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backend, "_MEMINFO", meminfo)
    monkeypatch.setattr(backend, "_CGROUP", tmp_path)
    return tmp_path


def container(folder, limit, used, cache=None):
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    if cache is not None:
        (folder / "memory.stat").write_text(f"anon 123\nfile {2 * cache}\ninactive_file {cache}\nactive_file {cache}\n")


def test_without_a_container_the_machine_decides(linux):
    assert backend.available_bytes("cpu") == pytest.approx(16 * GB, abs=1024)
    container(linux, "max", 3 * GB)
    assert backend.available_bytes("cpu") == pytest.approx(16 * GB, abs=1024)


def test_a_containers_page_cache_is_free(linux):
    container(linux, 4 * GB, 3 * GB)
    assert backend.available_bytes("cpu") == 1 * GB
    container(linux, 4 * GB, 3 * GB, cache=2 * GB)
    assert backend.available_bytes("cpu") == 3 * GB
    container(linux, 4 * GB, 5 * GB, cache=0)
    assert backend.available_bytes("cpu") == 0


def test_a_machine_that_says_nothing_is_unknown_and_not_endless(linux, monkeypatch):
    monkeypatch.setattr(backend, "_MEMINFO", linux / "absent")
    monkeypatch.setattr(backend.os, "sysconf_names", {})
    assert backend.available_bytes("cpu") is None
    warnings: list[str] = []
    assert doctor._memory(warnings)["available"] == "unknown"
    assert len(warnings) == 1
    memory.require(2**62, "cpu")


@pytest.mark.parametrize(("free", "commit", "answers", "said"), [(6, 9, 1, 6), (6, 2, 1, 2), (6, 9, 0, None)])
def test_windows_tells_by_its_own_call(monkeypatch, free, commit, answers, said):
    def call(reference):
        status = reference._obj
        assert status.length == 64, "the size that Windows knows the structure by"
        status.total, status.free, status.free_page = 16 * GB, free * GB, commit * GB
        return answers

    monkeypatch.setattr(sys, "platform", "win32")
    kernel = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=call))
    monkeypatch.setattr(ctypes, "windll", kernel, raising=False)
    assert backend.available_bytes("cpu") == (None if said is None else said * GB)


TOLD = {
    b"hw.memsize": 16 * GB,
    b"hw.pagesize": 16384,
    b"vm.page_free_count": 1000,
    b"vm.page_speculative_count": 200,
    b"vm.page_purgeable_count": 30,
    b"vm.page_pageable_external_count": 4,
}


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ((), 1234 * 16384),
        ((b"vm.page_purgeable_count",), 1204 * 16384),
        ((b"vm.page_free_count",), 16 * GB),
        (tuple(TOLD), None),
    ],
)
def test_a_mac_tells_by_its_own_call(monkeypatch, absent, said):
    def call(name, value, size, new, new_size):
        if name not in TOLD or name in absent:
            return -1
        assert size._obj.value == 8
        value._obj.value = TOLD[name]
        return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace(sysctlbyname=call))
    assert backend.available_bytes("cpu") == said


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_a_system_without_its_own_call_is_unknown(monkeypatch, system):
    def nothing(path):
        raise OSError("no such library")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", nothing)
    monkeypatch.delattr(ctypes, "windll", raising=False)
    assert backend.available_bytes("cpu") is None


def test_images_that_are_held_already_are_not_asked_for_again(monkeypatch):
    series, mask, _, _ = head()
    recipe = Recipe.load("fast")
    box = tuple(int(np.ptp(np.flatnonzero(mask.any(axis=axes)))) + 5 for axes in ((1, 2), (0, 2), (0, 1)))
    needed = memory.estimate_bytes(SHAPE, len(TIMES), box, recipe) - memory.estimate_bytes(
        SHAPE, len(TIMES), (0, 0, 0), recipe
    )
    free = needed + 8 * mask.size  # the chain on the box, and the results
    monkeypatch.setattr(backend, "available_bytes", lambda device: free)
    reconstruct(series, recipe, mask=mask, device="cpu")
    monkeypatch.setattr(backend, "available_bytes", lambda device: free - 10**6)
    with pytest.raises(ResourceError) as caught:
        reconstruct(series, recipe, mask=mask, device="cpu")
    assert caught.value.code == "out_of_memory"


def test_an_accelerator_is_asked_for_the_chain_and_the_host_for_the_rest(monkeypatch):
    asked = {}
    monkeypatch.setattr(backend, "available_bytes", lambda device: asked.setdefault(device, 2**62))
    memory.require_for_chain((100, 200, 200), 5, (80, 150, 140), Recipe.load("default"), "cuda")
    assert set(asked) == {"cpu", "cuda"}


def test_a_stage_that_removes_the_background_again_is_counted_with_it():
    def needed(*options):
        return memory.estimate_bytes((100, 200, 200), 3, (80, 150, 140), Recipe.load("default", options))

    least = "invert=tkd", "unwrap=laplacian"
    plain, again = (needed(*least, "background=pdf", f"strong_sources={method}") for method in ("none", "superposed"))
    assert again > plain
    assert needed(*least, "background=lbv") < again


def test_reading_asks_for_what_reading_holds(monkeypatch):
    voxels, echoes = 100 * 200 * 200, 5
    monkeypatch.setattr(backend, "available_bytes", lambda device: 12 * echoes * voxels)
    with pytest.raises(ResourceError) as caught:
        memory.require_to_read((100, 200, 200), echoes)
    assert caught.value.code == "out_of_memory"
    monkeypatch.setattr(backend, "available_bytes", lambda device: (8 * echoes + 56) * voxels + 200_000_000)
    memory.require_to_read((100, 200, 200), echoes)
