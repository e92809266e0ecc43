"""Plain records of sending: to whom, and what became of each file."""

from __future__ import annotations

import ipaddress
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsm_edge.bounds import bounded, check_bounds
from qsm_edge.errors import UsageError
from qsm_edge.listen import check_ae_title

KINDS, COMMITMENTS = ("dicom", "stow"), ("no", "if_offered", "required")
STORED, COMMITTED, REFUSED, FAILED = "stored", "committed", "refused", "failed"


def _choice(default: str, names: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"names": names})


@dataclass(frozen=True)
class Destination:
    """Who gets files. kind `dicom`: host, port and AE titles; kind `stow`: url, of which ``/studies`` is the service.

    commitment: whether the peer is asked to commit what it stored, and for how long its report is waited for.
    tls_ca: TLS, with a peer that shows a certificate of this authority for its name (`tls_name`, by default the host);
    tls_certificate, tls_key: our own, where the peer wants one. For `stow`, https is TLS and without tls_ca the system's
    authorities are trusted. token_file: holds a bearer token, read at each sending.
    connect_timeout_s: for a connection; answer_timeout_s: for each answer.
    """

    kind: str = _choice("dicom", KINDS)
    host: str = ""
    port: int = bounded(104, 1, 65535)
    called_ae_title: str = "ANY-SCP"
    calling_ae_title: str = "QSMEDGE"
    commitment: str = _choice("if_offered", COMMITMENTS)
    commitment_wait_s: float = bounded(60.0, 0.0, 86400.0)
    url: str = ""
    token_file: Path | None = None
    tls_ca: Path | None = None
    tls_name: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    connect_timeout_s: float = bounded(10.0, 0.1, 3600.0)
    answer_timeout_s: float = bounded(60.0, 0.1, 3600.0)


@dataclass(frozen=True)
class Sent:
    """What became of a file. outcome: `stored`, `committed` (and stored), `refused` by the peer, `failed`: not known to be
    stored. retry: whether the same file may be taken at another time."""

    path: Path
    outcome: str
    detail: str = ""
    retry: bool = False


def check(destination: Destination) -> None:
    """Raise UsageError bad_value for a destination that cannot work."""
    check_bounds(destination)
    for one in destination.__dataclass_fields__.values():
        value = getattr(destination, one.name)
        if "names" in one.metadata and value not in one.metadata["names"]:
            raise UsageError("bad_value", where=one.name, got=value, wanted=", ".join(one.metadata["names"]))
    if destination.tls_key is not None and destination.tls_certificate is None:
        raise UsageError("bad_value", where="tls_certificate", got="none", wanted="the certificate of tls_key")
    if destination.kind == "stow":
        _check_url(destination)
        return
    if not destination.host:
        raise UsageError("bad_value", where="host", got="none", wanted="the host's name or address")
    check_ae_title(destination.called_ae_title)
    check_ae_title(destination.calling_ae_title)
    if destination.tls_certificate is not None and destination.tls_ca is None:
        raise UsageError(
            "bad_value", where="tls_ca", got="none", wanted="the authority that the peer's certificate is of"
        )


def _check_url(destination: Destination) -> None:
    wanted = "http://host/path or https://host/path, without a name, password, query or fragment"
    try:
        url = urllib.parse.urlsplit(destination.url)
        usable = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable or url.username or url.password or url.query or url.fragment:
        raise UsageError("bad_value", where="url", wanted=wanted)
    if destination.token_file is not None and url.scheme != "https" and not is_loopback(str(url.hostname)):
        raise UsageError("bad_value", "a token is sent over https only", where="url", got=url.scheme, wanted="https")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
