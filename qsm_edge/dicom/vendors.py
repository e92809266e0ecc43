"""What vendors do differently: one table for who they are, one for what must not be used, one for phase scales.

A new quirk is a new row. Component names, signs, scales and traps were seen in real exports or read in public sources;
where neither holds, the rows leave the images unrecognised, or the sign open, and the reader refuses them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache

from qsm_edge.dicom.header import Header, Private
from qsm_edge.dicom.records import IMAGINARY, MAGNITUDE, PHASE, REAL, UNKNOWN, Verdict

#: How our own objects name their maker.
OWN_MANUFACTURER = "qsm-edge"

_IMAGE_TYPE, _FRAME_TYPE, _COMPLEX = 0x00080008, 0x00089007, 0x00089208
_MANUFACTURER, _MODEL = 0x00080070, 0x00081090
_DESCRIPTION, _PROTOCOL, _SEQUENCE, _PULSE = 0x0008103E, 0x00181030, 0x00180024, 0x00189005
_CREATOR_GROUPS = (0x0019, 0x0021, 0x0029, 0x0043, 0x2001, 0x2005)
_RESCALE_TYPE, _REAL_WORLD, _UNITS_CODE, _CODE_VALUE = 0x00281054, 0x00409096, 0x004008EA, 0x00080100


@dataclass(frozen=True)
class Vendor:
    """How a vendor is recognised, and what holds for its images.

    manufacturer: pattern of Manufacturer. tokens: ImageType values that only this vendor writes. creators: of private
    groups, asked where both say nothing. borne_out: Manufacturer alone is not believed, the private groups must agree.
    sign: +1 where the stored phase grows with the field, -1 where it falls, None where that is not known. chopped:
    every second slice may be negated. prefer: the pair of components to use where there are all four. full_range:
    without rescale tags, an unsigned 12-bit phase that fills its range is one turn, 0 rad at 2048. component,
    echo_index, slices, echoes: private elements that tell them; protocol: those that hold the protocol as text.
    """

    name: str
    manufacturer: str
    tokens: frozenset[str] = frozenset()
    creators: frozenset[str] = frozenset()
    borne_out: bool = False
    sign: int | None = None
    chopped: bool = False
    prefer: str = MAGNITUDE + PHASE
    full_range: bool = False
    component: Private | None = None
    components: dict[str, str] = field(default_factory=dict)
    echo_index: Private | None = None
    slices: Private | None = None
    echoes: Private | None = None
    image_type: Private | None = None
    protocol: tuple[Private, ...] = ()


VENDORS: tuple[Vendor, ...] = (
    Vendor(
        "siemens",
        r"siemens",
        tokens=frozenset({"ND", "DIS2D", "DIS3D", "MFSPLIT"}),
        creators=frozenset({"SIEMENS MR HEADER", "SIEMENS CSA HEADER", "SIEMENS MR SDI 02"}),
        sign=1,
        full_range=True,
        echo_index=Private(0x0021, "SIEMENS MR SDI 02", 0x06),  # X_<echo>_...
        image_type=Private(0x0021, "SIEMENS MR SDI 02", 0x75, b"CS"),
        protocol=(
            Private(0x0029, "SIEMENS CSA HEADER", 0x20, b"OB"),
            Private(0x0021, "SIEMENS MR SDS 01", 0x19, b"OB"),
        ),
    ),
    Vendor(
        "philips",
        r"philips",
        tokens=frozenset({"M_FFE", "PHASE MAP", "R_FFE", "I_FFE", "FFE"}),
        creators=frozenset({"Philips Imaging DD 001", "Philips MR Imaging DD 001"}),
        sign=1,
        component=Private(0x2005, "Philips MR Imaging DD 001", 0x11, b"CS"),
        components={"M": MAGNITUDE, "P": PHASE, "R": REAL, "I": IMAGINARY},
        slices=Private(0x2001, "Philips Imaging DD 001", 0x18, b"SL"),
        echoes=Private(0x2001, "Philips Imaging DD 001", 0x14, b"SL"),
    ),
    Vendor(
        "ge",
        r"^ge\b|general electric",
        creators=frozenset({"GEMS_PARM_01", "GEMS_ACQU_01", "GEMS_IDEN_01"}),
        borne_out=True,
        sign=-1,
        chopped=True,
        prefer=REAL + IMAGINARY,
        component=Private(0x0043, "GEMS_PARM_01", 0x2F, b"SS"),
        components={"0": MAGNITUDE, "1": PHASE, "2": REAL, "3": IMAGINARY},
        slices=Private(0x0021, "GEMS_RELA_01", 0x4F, b"SS"),
        echoes=Private(0x0019, "GEMS_ACQU_01", 0x7E, b"SS"),
    ),
    Vendor("uih", r"^uih|united imaging"),
    Vendor("canon", r"canon|toshiba"),
    Vendor("hitachi", r"hitachi|fujifilm"),
    Vendor("unknown", r""),
)

#: Manufacturer and model of magnets whose field lies across the patient: the dipole kernel would point the wrong way.
VERTICAL_FIELD: tuple[tuple[str, str], ...] = (
    (r"hitachi|fujifilm", r"airis|aperto|oasis|altaire|mrp[ _-]?\d"),
    (r"philips|marconi|picker", r"panorama|outlook|proview"),
    (r"^ge\b|general electric", r"ovation|profile|open[ _-]?speed"),
    (r"siemens", r"concerto|rhapsody|magnetom[ _-]?(open|viva|p8)|(magnetom[ _-]?|^)c!"),
    (r"canon|toshiba", r"opart|access"),
)

#: ImageType, FrameType and ComplexImageComponent values that name a component.
COMPONENT_TOKENS: dict[str, str] = {
    **dict.fromkeys(("M", "M_FFE", "MAG", "MAGNITUDE"), MAGNITUDE),
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE_MAP"), PHASE),
    **dict.fromkeys(("R", "R_FFE", "REAL"), REAL),
    **dict.fromkeys(("I", "I_FFE", "IMAGINARY", "IMAG"), IMAGINARY),
}


@dataclass(frozen=True)
class Trap:
    """Images to leave alone: where `where` matches `pattern` (and the component is one of `of`, '' for any)."""

    code: str
    where: str
    pattern: str
    text: str
    of: str = ""
    refuse: bool = True


#: `where` is 'type' (any value of ImageType), 'sequence', 'description', 'unit' or 'private'; the first match counts.
TRAPS: tuple[Trap, ...] = (
    Trap("field_map", "type", r"^(field[ _]?map|b0([ _]map)?)$", "the series holds a B0 map in Hz, which is no phase"),
    Trap("field_map", "unit", r"^(hz|s-1|1/s|rad/s)$", "the series holds a map in Hz, which is no phase"),
    Trap("field_map", "private", r"^b0(map|rf)$", "a B0-mapping sequence: its map in Hz is no phase"),
    Trap("field_map", "description", r"^b0[ _-]?map", "the series is called a B0 map; that is no phase", of="?MR"),
    Trap("phase_difference", "type", r"^phase[ _]?diff(erence)?$", "a phase difference is no phase of an echo"),
    Trap(
        "phase_difference",
        "sequence",
        r"^\*?fm2d",
        "the vendor's field-mapping sequence stores the phase difference of its echoes, not their phase",
        of="P",
    ),
    Trap("phase_difference", "description", r"phase[ _-]?diff", "the series is called a phase difference", of="P"),
    Trap(
        "filtered_phase", "type", r"^(fil|filtered|filt_pha(se)?|hpf|swi)$", "the phase was high-pass filtered", of="P"
    ),
    Trap(
        "filtered_phase",
        "description",
        # Siemens' Pha_Images and ..._swi3d_..._Pha, GE's FILT_PHA: the phase as taken for susceptibility weighting. That
        # of the same sequence which was stored as it was measured bears the plain name of the protocol.
        r"\bpha_images|swi.*pha|pha.*swi|(?<!un)(?<!un[ _-])filt(er)?(ed)?[ _:-]*pha|pha(se|s)?[ _:-]*filt"
        r"|(?<!no)(?<!no[ _-])(hpf|high[ _-]?pass)",
        "the phase comes out of susceptibility-weighted processing and was high-pass filtered",
        of="P",
    ),
    Trap("mosaic", "type", r"^(mosaic|vframe)$", "the phase is tiled into a mosaic", of="PRI"),
    Trap("mosaic", "type", r"^(mosaic|vframe)$", "the slices are tiled into a mosaic", refuse=False),
    Trap("not_gre", "type", r"^(velocity map|pca|m_pca|phase contrast m)$", "velocity-encoded images", refuse=False),
    Trap("not_gre", "sequence", r"_v\d+", "velocity-encoded images", of="P"),
    Trap("derived_image", "type", r"^derived$", "derived, not acquired", refuse=False),
    Trap("derived_image", "type", r"^secondary$", "a secondary image, not an acquired one", refuse=False),
    Trap(
        "derived_image",
        "type",
        r"^(m(i|in)?ip|mnip|max_ip|min_ip|projection image|mpr|subtraction|swi|qsm|adc|fa|tracew"
        r"|t[12][ _]?map|t2_?star[ _]map|r2[ _]?map"
        r"|water|fat|in_phase|opp_phase|synthetic)$",
        "computed from other images",
        refuse=False,
    ),
    Trap("localizer", "type", r"^localizer$", "a localizer", refuse=False),
    Trap(
        "localizer",
        "description",
        r"localizer|localiser|\bscout|\bsurvey|plan[ _]?scan|3[ -]?plane|\bloc\b",
        "a localizer",
        of="M?",
        refuse=False,
    ),
)

#: Half a turn in stored units after rescale, as (name, lowest and highest number that stand for it, radians per unit).
PHASE_SCALES: tuple[tuple[str, float, float, float], ...] = (
    ("pi at 4096", 4090.0, 4098.0, math.pi / 4096),
    ("mrad", 3141.0, 3143.5, 1e-3),
    ("rad", 3.141, 3.1435, 1.0),
)

VENDORS_BY_NAME = {vendor.name: vendor for vendor in VENDORS}


def image_type(header: Header) -> list[str]:
    """The type of one image: FrameType of its frame where it has one, else ImageType. Upper case."""
    return [value.upper() for value in header.texts(_FRAME_TYPE) or header.texts(_IMAGE_TYPE)]


def vendor_of(header: Header) -> Vendor:
    """The vendor by what the images look like, then by Manufacturer, then by the private groups.

    The look comes first because routers rewrite Manufacturer and add tags of their own kind; not so where Manufacturer
    names somebody whose images may look alike and whose phase may turn the other way. GE, whose phase does, is believed
    only where its private groups bear it out.
    """
    types, named = set(image_type(header)[2:]), _named(header)
    looks = [v for v in VENDORS if types & v.tokens]
    if len(looks) == 1 and (named.sign is not None or named.name == "unknown"):
        return looks[0]
    creators = header.creators(_CREATOR_GROUPS)
    marked = [v for v in VENDORS if creators & v.creators]
    if looks and looks == marked:
        return looks[0]
    if named.name == "unknown" or (named.borne_out and named not in marked):
        return marked[0] if len(marked) == 1 else VENDORS_BY_NAME["unknown"]
    return named


def _named(header: Header) -> Vendor:
    maker = header.text(_MANUFACTURER)
    return next(v for v in VENDORS if re.search(v.manufacturer, maker, re.IGNORECASE))


def scanner_verdict(header: Header, vendor: Vendor) -> Verdict | None:
    """Why no map can be made of anything that this scanner stores, None where it can."""
    return verdict_on_scanner(header.text(_MANUFACTURER), header.text(_MODEL), _named(header).name, vendor.name)


@lru_cache(maxsize=64)  # the images of a series say the same
def verdict_on_scanner(maker: str, model: str, named: str, vendor: str) -> Verdict | None:
    """The same of a maker and a model as texts; named, vendor: names of VENDORS, by the maker and by the images."""
    for makers, models in VERTICAL_FIELD:
        made = any(re.search(makers, text, re.IGNORECASE) for text in (maker, vendor))
        if made and re.search(models, model, re.IGNORECASE):
            what = "this magnet's field is vertical, across the patient; maps are made for a field along the bore only"
            return Verdict("vertical_field", what, refuse=True)
    if VENDORS_BY_NAME[vendor].sign is not None:
        return None
    if VENDORS_BY_NAME[named].borne_out:
        what = (
            f"it cannot be told which way the phase turns: the images name {named.upper()} and lack its private elements"
            "; export them again, with the private groups (0019, 0021, 0043) kept"
        )
    else:
        of = "of an unknown manufacturer" if vendor == "unknown" else f"of {vendor.upper()} scanners"
        what = (
            f"it is not known whether the phase {of} grows or falls with the field, and the images do not tell; a guess"
            " could turn the sign of the map. Where you have established it, reconstruct arrays from Python (GreSeries)"
        )
    return Verdict("unknown_phase_sign", what, refuse=True)


def slices_in_protocol(header: Header, vendor: Vendor) -> int:
    """The number of slices of one volume that the protocol asks for, 0 where it does not tell.

    Siemens: slices of a 2-D protocol, or images of the slab of a 3-D one; several slabs may overlap, and tell nothing.
    """
    for where in vendor.protocol:
        text = header.private_bytes(where)
        slices, slab = (_entry(text, name) for name in (b"sSliceArray.lSize", b"sKSpace.lImagesPerSlab"))
        dimension = _entry(text, b"sKSpace.ucDimension")
        if dimension == 2 and slices:
            return slices
        if dimension == 4 and slices == 1:
            return slab
    return 0


def _entry(protocol: bytes, name: bytes) -> int:
    """The value of a line `name = value`, decimal or hexadecimal; 0 where there is none."""
    at = protocol.find(b"\n" + name)
    start = at + 1 + len(name)
    match = re.match(rb"[ \t]*=[ \t]*(0x[0-9a-fA-F]{1,4}|\d{1,6})\s", protocol[start : start + 40])
    return int(match[1], 0) if at >= 0 and match is not None else 0


def component_of(header: Header, vendor: Vendor) -> str:
    """M, P, R, I, or '?' where the image does not say, or says two things."""
    told = {COMPONENT_TOKENS[v] for v in image_type(header)[2:] if v in COMPONENT_TOKENS}
    told |= {COMPONENT_TOKENS[v] for v in map(str.upper, header.texts(_COMPLEX)) if v in COMPONENT_TOKENS}
    if vendor.component is not None:
        private = header.private_texts(vendor.component)
        told |= {vendor.components[v] for v in private[:1] if v in vendor.components}
    return told.pop() if len(told) == 1 else UNKNOWN


def trap_of(header: Header, component: str) -> Verdict | None:
    """The verdict on an image that must not be used as what it seems, None for an honest one."""
    values = {
        "type": image_type(header),
        "sequence": header.texts(_SEQUENCE) + header.texts(_PULSE),
        "description": header.texts(_DESCRIPTION) + header.texts(_PROTOCOL),
        "unit": header.texts(_RESCALE_TYPE)[:1] + _units(header),
        "private": [text for e in (0x9C, 0x9E) for text in header.private_texts(Private(0x0019, "GEMS_ACQU_01", e))],
    }
    return trap_in(component, tuple((where, text) for where, texts in values.items() for text in texts))


@lru_cache(maxsize=256)  # the images of a series say the same
def trap_in(component: str, values: tuple[tuple[str, str], ...]) -> Verdict | None:
    """The same of texts, each with where it was found (`Trap.where`)."""
    for trap in TRAPS:
        if trap.of and component not in trap.of:
            continue
        if any(where == trap.where and re.search(trap.pattern, text, re.IGNORECASE) for where, text in values):
            return Verdict(trap.code, trap.text, trap.refuse)
    return None


def _units(header: Header) -> list[str]:
    codes = (unit for mapping in header.sequence(_REAL_WORLD) for unit in Header([mapping]).sequence(_UNITS_CODE))
    return [value for code in codes for value in Header([code]).texts(_CODE_VALUE)]
