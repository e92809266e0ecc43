"""Plain records of the network: how to listen, where an instance came from, a line of the audit trail."""

from __future__ import annotations

import ipaddress
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsm_edge.bounds import bounded, check_bounds
from qsm_edge.errors import UsageError

LOOPBACK = ("127.0.0.0/8", "::1/128")


@dataclass(frozen=True)
class Settings:
    """How to listen. Nobody is let in who is not named: no calling AE title and no address but this machine's own.

    port: 0 takes a free one. calling_ae_titles: who may call, or `any_calling_ae_title`. addresses: from where, networks
    such as 10.1.0.0/16. association_timeout_s: for TLS and the association's request; network_timeout_s: for what is
    left of a PDU; idle_timeout_s: between PDUs. tls_ca: peers must show a certificate signed by it.
    """

    port: int = bounded(11112, 0, 65535)
    bind: str = "127.0.0.1"
    ae_title: str = "QSMEDGE"
    calling_ae_titles: tuple[str, ...] = ()
    any_calling_ae_title: bool = False
    addresses: tuple[str, ...] = LOOPBACK
    maximum_associations: int = bounded(8, 1, 100)
    maximum_pdu_bytes: int = bounded(128 << 10, 4 << 10, 1 << 20)
    maximum_instance_bytes: int = bounded(4 << 30, 1 << 10, 1 << 40)
    association_timeout_s: float = bounded(10.0, 0.1, 3600.0)
    network_timeout_s: float = bounded(30.0, 0.1, 3600.0)
    idle_timeout_s: float = bounded(60.0, 0.1, 86400.0)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None


@dataclass(frozen=True)
class Origin:
    """Where a received instance came from, and as what; `address` without its port."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Audit:
    """One line of the audit trail: what happened (`event`: received, sent, association, connection, commitment) when,
    with which peer (address, AE titles), to which instance (a hash of its UID), and with what `outcome`."""

    event: str
    outcome: str
    peer: str
    calling: str = ""
    called: str = ""
    instance: str = ""
    detail: str = ""
    at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def check(settings: Settings) -> None:
    """Raise UsageError bad_value for settings that cannot work; numbers are held against the ranges of their fields."""
    check_bounds(settings)
    for title in (settings.ae_title, *settings.calling_ae_titles):
        check_ae_title(title)
    try:
        ipaddress.ip_address(settings.bind)
        networks(settings.addresses)
    except ValueError as error:
        raise UsageError("bad_value", where="bind, addresses", got=error, wanted="IP addresses and networks") from None
    if (settings.tls_key is not None or settings.tls_ca is not None) and settings.tls_certificate is None:
        raise UsageError("bad_value", where="tls_certificate", got="none", wanted="the certificate that goes with it")


def check_ae_title(title: str) -> None:
    """Raise UsageError bad_value for what is no AE title: 1 to 16 printable ASCII characters, no backslash."""
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title) or title != title.strip():
        wanted = "1 to 16 printable characters, no backslash"
        raise UsageError("bad_value", "this is no AE title", got=title, wanted=wanted)


def networks(addresses: tuple[str, ...]) -> tuple[Any, ...]:
    """Addresses and networks in text as networks; ValueError for one that is none."""
    return tuple(ipaddress.ip_network(address, strict=False) for address in addresses)


def is_allowed(address: str, allowed: tuple[Any, ...]) -> bool:
    """Whether a peer's address lies in one of the networks; an IPv4 address in an IPv6 one's clothes is an IPv4 address."""
    found: Any = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found.version == network.version and found in network for network in allowed)
