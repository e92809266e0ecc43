"""STOW-RS: the request is what the standard says, and the server's word on each instance is taken."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from network_world import PATIENT, certificates, files, hashed, image

from qsm_edge import send
from qsm_edge.errors import UsageError
from qsm_edge.send import Destination, stow

UIDS = [image(number).SOPInstanceUID for number in (1, 2, 3)]


@dataclass
class Service:
    """A STOW service that answers as it is told and remembers what came: paths, headers, and the parts of each body."""

    status: int = 200
    kind: str = "application/dicom+json"
    content: bytes = b""
    port: int = 0
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[list[bytes]] = field(default_factory=list)


@contextlib.contextmanager
def service(status: int = 200, content: bytes = b"", kind: str = "application/dicom+json", tls=None):
    told = Service(status, kind, content)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            boundary = re.search(r"boundary=(\S+)", self.headers["Content-Type"])[1].encode()
            assert body.endswith(b"--" + boundary + b"--\r\n")
            told.paths.append(self.path)
            told.headers.append(dict(self.headers))
            told.bodies.append(body.split(b"--" + boundary + b"\r\n")[1:])
            self.send_response(told.status)
            self.send_header("Content-Type", told.kind)
            self.send_header("Content-Length", str(len(told.content)))
            self.end_headers()
            self.wfile.write(told.content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    told.port = server.server_address[1]
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(stored=(), failed=()) -> bytes:
    """A server's word in JSON."""

    def items(uids_and_reasons):
        return [
            {
                "00081155": {"vr": "UI", "Value": [uid]},
                **({"00081197": {"vr": "US", "Value": [reason]}} if reason else {}),
            }
            for uid, reason in uids_and_reasons
        ]

    said = {}
    if stored:
        said["00081199"] = {"vr": "SQ", "Value": items((uid, 0) for uid in stored)}
    if failed:
        said["00081198"] = {"vr": "SQ", "Value": items(failed)}
    return json.dumps(said).encode()


XML = """<?xml version="1.0" encoding="UTF-8"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">
<DicomAttribute tag="00081198" vr="SQ"><Item number="1">
<DicomAttribute tag="00081155" vr="UI"><Value number="1">{}</Value></DicomAttribute>
<DicomAttribute tag="00081197" vr="US"><Value number="1">{}</Value></DicomAttribute></Item></DicomAttribute>
<DicomAttribute tag="00081199" vr="SQ"><Item number="1">
<DicomAttribute tag="00081155" vr="UI"><Value number="1">{}</Value></DicomAttribute></Item></DicomAttribute>
</NativeDicomModel>"""


def to(told: Service, scheme: str = "http", **options) -> Destination:
    return Destination(kind="stow", url=f"{scheme}://127.0.0.1:{told.port}/dicom-web/", **options)


def test_files_arrive_whole_in_one_multipart_request(tmp_path):
    paths, lines = files(tmp_path), []
    with service(200, answer(stored=UIDS)) as told:
        sent = send.send(paths, to(told), lines.append)
    assert sent == [send.Sent(path, "stored") for path in paths]
    assert told.paths == ["/dicom-web/studies"]
    assert told.headers[0]["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert told.headers[0]["Accept"] == "application/dicom+json"
    head, parts = b"Content-Type: application/dicom\r\n\r\n", told.bodies[0]
    assert [part[: len(head)] for part in parts] == [head] * 3
    ends = [part[len(head) :].partition(b"\r\n--")[0].removesuffix(b"\r\n") for part in parts]
    assert ends == [path.read_bytes() for path in paths]
    assert [line.instance for line in lines] == [hashed(uid) for uid in UIDS]
    assert not any(PATIENT.lower() in repr(line).lower() for line in lines)


def test_the_same_delivery_is_the_same_request(tmp_path):
    with service(200, answer(stored=UIDS)) as told:
        for _ in range(2):
            send.send(files(tmp_path), to(told))
    assert told.bodies[0] == told.bodies[1]
    assert told.headers[0] == told.headers[1]


@pytest.mark.parametrize(
    ("status", "content", "outcomes"),
    [
        (200, answer(stored=UIDS), [("stored", False)] * 3),
        (200, b"", [("stored", False)] * 3),
        (202, answer(stored=UIDS[:2], failed=[(UIDS[2], 0xA700)]), [("stored", False)] * 2 + [("refused", True)]),
        (
            202,
            answer(stored=UIDS[:1], failed=[(UIDS[1], 0x0122)]),
            [("stored", False), ("refused", False), ("failed", True)],
        ),
        (202, answer(stored=UIDS, failed=[(UIDS[0], 0xA900)]), [("refused", False)] + [("stored", False)] * 2),
        (409, answer(failed=[(uid, 0x0111) for uid in UIDS]), [("stored", False)] * 3),
        (409, answer(failed=[(uid, 0xC000) for uid in UIDS]), [("refused", False)] * 3),
        (409, b"not JSON", [("refused", False)] * 3),
        (202, b"[1, 2", [("failed", True)] * 3),
        (200, answer(stored=UIDS[:2]), [("stored", False)] * 2 + [("failed", True)]),
        (301, b"", [("refused", False)] * 3),
        (401, b"", [("refused", False)] * 3),
        (413, b"", [("refused", False)] * 3),
        (429, b"", [("failed", True)] * 3),
        (500, b"", [("failed", True)] * 3),
        (503, answer(stored=UIDS), [("failed", True)] * 3),
    ],
)
def test_the_server_s_word_on_each_instance_is_its_outcome(status, content, outcomes, tmp_path):
    said = stow._answer(status, "application/dicom+json", content)
    judged = [stow._judged(tmp_path, uid, said) for uid in UIDS]
    assert [(one.outcome, one.retry) for one in judged] == outcomes


def test_xml_is_understood_and_nothing_is_expanded_in_it(tmp_path):
    content = XML.format(UIDS[0], 0xA700, UIDS[1]).encode()
    with service(202, content, "application/dicom+xml") as told:
        sent = send.send(files(tmp_path), to(told))
    assert [(one.outcome, one.retry) for one in sent] == [("refused", True), ("stored", False), ("failed", True)]
    bomb = content.replace(b"<Native", b'<!DOCTYPE a [<!ENTITY b "c">]><Native', 1)
    assert not stow._answer(202, "application/dicom+xml", bomb).told


def test_a_server_that_is_not_there_or_hangs_up_is_tried_again(tmp_path):
    paths = files(tmp_path)
    with service() as told:
        pass
    assert {(one.outcome, one.retry) for one in send.send(paths, to(told))} == {("failed", True)}


def test_large_deliveries_are_several_requests(tmp_path, monkeypatch):
    paths = files(tmp_path)
    monkeypatch.setattr(stow, "REQUEST_BYTES", 2 * paths[0].stat().st_size + 100)
    with service(200, answer(stored=UIDS)) as told:
        assert [one.outcome for one in send.send(paths, to(told))] == ["stored"] * 3
    assert [len(parts) for parts in told.bodies] == [2, 1]


def test_a_token_is_sent_and_told_to_nobody_else(tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with service(401) as told:
        lines = []
        (sent,) = send.send(files(tmp_path / "out", 1), to(told, token_file=token), lines.append)
    assert told.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr((sent, lines))
    for content in ("", "two words", "line\nfeed"):
        token.write_text(content)
        with pytest.raises(UsageError) as caught:
            send.send(files(tmp_path / "out", 1), to(told, token_file=token))
        assert caught.value.code == "bad_value"


def test_https_is_for_a_server_that_the_authority_vouches_for(tmp_path):
    pem = certificates(tmp_path / "pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem["server"], pem["server_key"])
    paths = files(tmp_path / "out")
    with service(200, answer(stored=UIDS), tls=context) as told:
        good = send.send(paths, to(told, "https", tls_ca=pem["ca"]))
        bad = send.send(paths, to(told, "https", tls_ca=pem["stranger"]))
        system = send.send(paths, to(told, "https"))
    assert [one.outcome for one in good] == ["stored"] * 3
    assert {(one.outcome, one.retry) for one in [*bad, *system]} == {("failed", True)}
    assert len(told.bodies) == 1
