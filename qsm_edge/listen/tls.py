"""TLS contexts for both directions: 1.2 or newer, nobody trusted but the given authority."""

from __future__ import annotations

import ssl
from pathlib import Path

from qsm_edge.errors import UsageError


def server_context(certificate: Path, key: Path | None, ca: Path | None) -> ssl.SSLContext:
    """For a listener. With `ca`, peers must show a certificate signed by it. Raises UsageError bad_value for bad files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, certificate, key, ca)
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(certificate: Path | None, key: Path | None, ca: Path) -> ssl.SSLContext:
    """For a sender: the peer must show a certificate for its name, signed by `ca`. Raises UsageError bad_value."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, certificate, key, ca)
    return context


def _load(context: ssl.SSLContext, certificate: Path | None, key: Path | None, ca: Path | None) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        if ca is not None:
            context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        what = "the certificate, key or authority for TLS cannot be used"
        raise UsageError("bad_value", what, where=str(certificate or ca), got=type(error).__name__) from error
