"""TLS both ways: whoever is not vouched for gets nowhere, and nobody else waits for his handshake."""

from __future__ import annotations

import contextlib
import re
import ssl
import time

import pytest
from network_world import (
    answer,
    associate_rq,
    associated,
    certificates,
    connected,
    files,
    listening,
    program,
    run,
    wait_until,
)

from qsm_edge import listen, send
from qsm_edge.errors import UsageError
from qsm_edge.send import Destination


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("tls") / "pem")


@pytest.fixture
def mutual(pem):
    return dict(tls_certificate=pem["server"], tls_key=pem["server_key"], tls_ca=pem["ca"])


def to(port: int, **options) -> Destination:
    names = {"called_ae_title": "QSMEDGE", "calling_ae_title": "PEER", "commitment": "no"}
    return Destination(host="127.0.0.1", port=port, **names, **options)


def test_files_travel_under_tls_with_certificates_on_both_sides(tmp_path, pem, mutual):
    paths = files(tmp_path / "out")
    own = dict(tls_certificate=pem["client"], tls_key=pem["client_key"])
    with listening(tmp_path, **mutual) as world:
        assert [one.outcome for one in send.send(paths, to(world.port, tls_ca=pem["ca"], **own))] == ["stored"] * 3
        (nameless,) = send.send(paths[:1], to(world.port, tls_ca=pem["ca"]))
        (stranger,) = send.send(
            paths[:1],
            to(world.port, tls_ca=pem["ca"], tls_certificate=pem["stranger"], tls_key=pem["stranger_key"]),
        )
        (distrusting,) = send.send(paths[:1], to(world.port, tls_ca=pem["stranger"], **own))
        (elsewhere,) = send.send(paths[:1], to(world.port, tls_ca=pem["ca"], tls_name="pacs.example", **own))
        (plain,) = send.send(paths[:1], to(world.port, answer_timeout_s=5.0))
        for refused in (nameless, stranger, distrusting, elsewhere, plain):
            assert (refused.outcome, refused.retry) == ("failed", True)
        assert len(world.stored) == 3
        assert set(world.outcomes("connection")) <= {("failed", "")}


def test_without_an_authority_the_listener_asks_nobody_for_a_certificate(tmp_path, pem, mutual):
    paths = files(tmp_path / "out", 1)
    with listening(tmp_path, **{**mutual, "tls_ca": None}) as world:
        assert send.send(paths, to(world.port, tls_ca=pem["ca"]))[0].outcome == "stored"


def test_a_handshake_that_does_not_end_holds_up_nobody_and_is_cut_off(tmp_path, pem, mutual):
    context = ssl.create_default_context(cafile=str(pem["ca"]))
    context.load_cert_chain(pem["client"], pem["client_key"])
    options = {**mutual, "association_timeout_s": 3.0}
    with listening(tmp_path, **options) as world, connected(world.port, 60) as idle:
        assoc = associated(world.port, tls_args=(context, "127.0.0.1"))
        assert assoc.is_established
        assoc.release()
        assert answer(idle) == (0, b"")
        wait_until(lambda: not world.listener._server.connections)


def test_a_handshake_that_comes_in_drops_is_cut_off(tmp_path, mutual):
    with listening(tmp_path, **mutual, association_timeout_s=1.0) as world, connected(world.port, 60) as connection:
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x01\x40\x00")
            while time.monotonic() - begun < 20 and world.listener._server.connections:
                connection.sendall(b"\1")
                time.sleep(0.1)
        wait_until(lambda: not world.listener._server.connections)
        assert time.monotonic() - begun < 15


def test_plain_dicom_on_a_tls_port_and_tls_on_a_plain_port_end_both(tmp_path, pem, mutual):
    with (
        listening(tmp_path, **mutual) as world,
        connected(world.port) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(associate_rq())
        while connection.recv(4096):  # an alert, and the end
            pass
    paths = files(tmp_path / "out", 1)
    with listening(tmp_path) as world:
        (sent,) = send.send(paths, to(world.port, tls_ca=pem["ca"], answer_timeout_s=5.0))
        assert (sent.outcome, sent.retry) == ("failed", True)


def test_tls_older_than_1_2_is_not_spoken(mutual):
    context = listen.tls.server_context(mutual["tls_certificate"], mutual["tls_key"], mutual["tls_ca"])
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_dcmtk_s_tls_is_understood(tmp_path, pem, mutual):
    (path,) = files(tmp_path / "out", 1)
    tls = ["+tls", pem["client_key"], pem["client"], "+cf", pem["ca"]]
    command = [program("storescu"), "-v", *tls, "-aet", "PEER", "-aec", "QSMEDGE", "127.0.0.1"]
    if "+tls" not in run([program("storescu"), "--help"]).stdout:
        pytest.skip("this DCMTK was built without TLS")
    with listening(tmp_path, **mutual) as world:
        ran = run([*command, world.port, path])
        assert ran.returncode == 0, ran.stderr
        assert re.search("Received Store Response .Success", ran.stdout + ran.stderr)
        assert len(world.stored) == 1


def test_files_that_are_no_certificates_are_told(tmp_path, pem):
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for options in (dict(tls_certificate=junk), dict(tls_certificate=tmp_path / "absent")):
        with pytest.raises(UsageError) as caught:
            listen.serve(listen.Settings(port=0, **options), tmp_path, print, print)
        assert caught.value.code == "bad_value"
    with pytest.raises(UsageError) as caught:
        send.send(files(tmp_path / "out", 1), to(1, tls_ca=junk))
    assert caught.value.code == "bad_value"
