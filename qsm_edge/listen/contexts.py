"""What is accepted from the network: the one table of SOP classes, and the transfer syntaxes that we can read."""

from __future__ import annotations

#: What a router sends along with an MR study. Raw Data is not among them: nobody could use it, and it is large.
STORAGE: dict[str, str] = {
    "MR Image Storage": "1.2.840.10008.5.1.4.1.1.4",
    "Enhanced MR Image Storage": "1.2.840.10008.5.1.4.1.1.4.1",
    "MR Spectroscopy Storage": "1.2.840.10008.5.1.4.1.1.4.2",
    "Enhanced MR Color Image Storage": "1.2.840.10008.5.1.4.1.1.4.3",
    "Legacy Converted Enhanced MR Image Storage": "1.2.840.10008.5.1.4.1.1.4.4",
    "Secondary Capture Image Storage": "1.2.840.10008.5.1.4.1.1.7",
    "Multi-frame Single Bit Secondary Capture Image Storage": "1.2.840.10008.5.1.4.1.1.7.1",
    "Multi-frame Grayscale Byte Secondary Capture Image Storage": "1.2.840.10008.5.1.4.1.1.7.2",
    "Multi-frame Grayscale Word Secondary Capture Image Storage": "1.2.840.10008.5.1.4.1.1.7.3",
    "Multi-frame True Color Secondary Capture Image Storage": "1.2.840.10008.5.1.4.1.1.7.4",
    "Grayscale Softcopy Presentation State Storage": "1.2.840.10008.5.1.4.1.1.11.1",
    "Color Softcopy Presentation State Storage": "1.2.840.10008.5.1.4.1.1.11.2",
    "Blending Softcopy Presentation State Storage": "1.2.840.10008.5.1.4.1.1.11.4",
    "Parametric Map Storage": "1.2.840.10008.5.1.4.1.1.30",
    "Segmentation Storage": "1.2.840.10008.5.1.4.1.1.66.4",
    "Basic Text SR Storage": "1.2.840.10008.5.1.4.1.1.88.11",
    "Enhanced SR Storage": "1.2.840.10008.5.1.4.1.1.88.22",
    "Comprehensive SR Storage": "1.2.840.10008.5.1.4.1.1.88.33",
    "Comprehensive 3D SR Storage": "1.2.840.10008.5.1.4.1.1.88.34",
    "Key Object Selection Document Storage": "1.2.840.10008.5.1.4.1.1.88.59",
    "Encapsulated PDF Storage": "1.2.840.10008.5.1.4.1.1.104.1",
}
VERIFICATION = "1.2.840.10008.1.1"
PLAIN = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


def transfer_syntaxes() -> tuple[str, ...]:
    """The transfer syntaxes in which objects are accepted, the plainest first; depends on the codecs installed."""
    from qsm_edge.dicom.filemeta import readable_syntaxes

    return readable_syntaxes()
