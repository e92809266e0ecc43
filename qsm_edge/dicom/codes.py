"""The coded concepts of the output, and how a code becomes a sequence item."""

from __future__ import annotations

from typing import NamedTuple

from pydicom.dataset import Dataset


class Code(NamedTuple):
    """A coded concept."""

    value: str
    scheme: str
    meaning: str


QUANTITY = Code("246205007", "SCT", "Quantity")
MAGNETIC_SUSCEPTIBILITY = Code("126396", "DCM", "Magnetic Susceptibility")
FIELD_MAP = Code("110807", "DCM", "Field Map MR Signal Intensity")
R2_STAR = Code("126395", "DCM", "R2*")
T2_STAR = Code("113064", "DCM", "T2*")

DERIVATION = Code("121401", "DCM", "Derivation")
STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")

PPB = Code("[ppb]", "UCUM", "ppb")
PPM = Code("[ppm]", "UCUM", "ppm")
PER_SECOND = Code("/s", "UCUM", "/s")
MILLISECOND = Code("ms", "UCUM", "ms")

SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")

ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
BRAIN = Code("12738006", "SCT", "Brain")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
MORPHOLOGICAL_OPERATIONS = Code("123104", "DCM", "Morphological Operations")
MANUAL_PROCESSING = Code("123109", "DCM", "Manual Processing")


def code_item(code: Code) -> Dataset:
    """A code as an item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def quantity_item(quantity: Code, name: Code = QUANTITY) -> Dataset:
    """A content item that says which quantity the numbers are, or what of it (`name`)."""
    item = Dataset()
    item.ValueType = "CODE"
    item.ConceptNameCodeSequence = [code_item(name)]
    item.ConceptCodeSequence = [code_item(quantity)]
    return item
