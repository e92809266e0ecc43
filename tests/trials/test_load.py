"""A study that arrives over several associations while another one is reconstructed: nothing refused, memory flat."""

from __future__ import annotations

import sys
import threading

import pytest

from bench.receive import study
from qsm_edge.spool import opened
from tests.deploy.sandbox import small_head
from tests.orthanc_server import free_ports
from tests.trials import trial_world as world
from tests.trials.trial_world import Scanner

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
ASSOCIATIONS = 4
#: What the service may grow by between the first tenth of the instances and the last of them.
GROWTH_MB = 12.0


@pytest.mark.parametrize("instances", [160, pytest.param(1600, marks=pytest.mark.trial)])
def test_nothing_is_refused_and_the_listener_s_memory_is_flat(tmp_path, instances):
    listens, out = free_ports(2)
    config = world.site_file(tmp_path, listens, f'port = {out}\ncalled_ae_title = "PACS"\ncommitment = "no"\n')
    first, files = tmp_path / "head.dcm", study(tmp_path / "out", instances)
    small_head("load", "philips_enhanced")[0].save_as(first, enforce_file_format=True)
    scanners = [Scanner(listens) for _ in range(ASSOCIATIONS)]
    with world.archive(tmp_path / "pacs", out) as kept, world.serving(config, None) as service:
        scanners[0].send([first])
        world.wait_until(lambda: service.events("started"))
        begin = instances // 10
        scanners[0].send(files[:begin])
        before_mb = service.resident_mb()
        shares = [files[begin + n :: ASSOCIATIONS] for n in range(ASSOCIATIONS)]
        threads = [
            threading.Thread(target=scanner.send, args=(share, len(share)))
            for scanner, share in zip(scanners, shares, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(world.PATIENCE_S)
        grown_mb = service.resident_mb("VmHWM") - before_mb
        world.wait_until(lambda: world.all_done(tmp_path / "spool", 1))
    assert {answer for scanner in scanners for answer in scanner.answers} == {"Success"}
    acknowledged = [path for scanner in scanners for path in scanner.acknowledged]
    assert sorted(acknowledged) == sorted([first, *files])  # each at its first offer
    assert grown_mb < GROWTH_MB
    assert set(kept.counts().values()) == {1}
    with opened(tmp_path / "spool") as spool:
        (row,) = spool.ledger.rows("SELECT COUNT(*) AS n FROM instances WHERE state = 'held'")
        assert row["n"] == instances + 1
    sys.stdout.write(
        f"\n{instances} instances over {ASSOCIATIONS} associations: the service grew by {grown_mb:.1f} MB\n"
    )
