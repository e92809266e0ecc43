"""How the status page is served: the keys of ``[status]``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from qsm_edge.bounds import bounded
from qsm_edge.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """Where to listen and for whom. The page names no patient, and still is for this machine alone unless it is told.

    port: 0 takes a free one. allow_network: `address` may be another than this machine's own loopback. hosts: names that
    browsers may ask for beside `localhost` and addresses; another name in a request is refused, because a page of
    somebody else's could have led there (DNS rebinding). timeout_s: for a whole request and its answer.
    """

    address: str = "127.0.0.1"
    port: int = bounded(11180, 0, 65535)
    allow_network: bool = False
    hosts: tuple[str, ...] = ()
    refresh_s: int = bounded(10, 1, 3600)
    maximum_connections: int = bounded(16, 1, 200)
    timeout_s: float = bounded(10.0, 0.1, 600.0)


def check(settings: Settings) -> None:
    """Raise UsageError bad_value for settings that cannot work; ranges are held where the table is read."""
    try:
        address = ipaddress.ip_address(settings.address)
    except ValueError:
        raise UsageError("bad_value", where="address", got=settings.address, wanted="an IP address") from None
    if not (address.is_loopback or settings.allow_network):
        wanted = "an address of this machine alone (127.0.0.1, ::1), or allow_network = true"
        raise UsageError("bad_value", "others could see the page", where="address", got=address, wanted=wanted)
    for name in settings.hosts:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", name):
            raise UsageError("bad_value", where="hosts", got=name, wanted="host names, without a port")


def is_asked_for(settings: Settings, host: str) -> bool:
    """Whether the text of a request's Host field names this server: its port may be another's that leads here."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+))(?::\d{1,5})?", host.strip())
    if match is None:
        return False
    name = (match[1] or match[2]).lower().removesuffix(".")
    if name in ("localhost", *(one.lower() for one in settings.hosts)):
        return True
    try:
        asked, own = ipaddress.ip_address(name), ipaddress.ip_address(settings.address)
    except ValueError:
        return False
    return asked == own or own.is_unspecified or (own.is_loopback and asked.is_loopback)
