"""kill -9 of the service and of its children while studies come and go over the network: nothing acknowledged is lost, and
every study has one result series at the peer."""

from __future__ import annotations

import sys

import pytest

from tests.deploy.sandbox import small_head
from tests.trials.night import pass_night

pytestmark = [
    pytest.mark.orthanc,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc"),
]


def _small_head(encoding: str, name: str) -> list:
    return small_head(name, encoding)


def test_of_a_service_killed_in_each_of_its_parts_nothing_is_lost_and_nothing_is_twice(tmp_path):
    told = pass_night(tmp_path, studies=2, kills=3, seed=7)
    assert told["lives of the service"] == 4
    assert told["at the kill"]["reader killed alone"] + told["at the kill"]["reconstruction killed alone"] == 2


@pytest.mark.trial
def test_a_night_of_ten_studies_with_twenty_kills(tmp_path, capsys):
    told = pass_night(tmp_path, studies=10, kills=20, seed=2026)
    assert told["lives of the service"] == 21
    for what in ("a peer's association open", "a reconstruction running", "a delivery under way"):
        assert told["at the kill"][what] >= 3
    with capsys.disabled():
        sys.stdout.write(f"\n{told}\n")


@pytest.mark.trial
def test_a_night_with_the_real_chain(tmp_path, capsys):
    told = pass_night(tmp_path, studies=3, kills=6, seed=5, work_s=None, make=_small_head)
    assert told["lives of the service"] == 7
    with capsys.disabled():
        sys.stdout.write(f"\n{told}\n")
