"""Which compressed transfer syntaxes can be read with what is installed."""

from __future__ import annotations

#: Lossless syntaxes that scanners and archives use; lossy ones are refused whatever is installed.
LOSSLESS = {
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}


def readable() -> dict[str, bool]:
    """Name of each lossless syntax, and whether its frames can be decoded here."""
    from pydicom.pixels import get_decoder

    return {name: bool(get_decoder(uid).is_available) for name, uid in LOSSLESS.items()}
