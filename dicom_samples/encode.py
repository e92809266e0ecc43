"""Complex multi-echo images -> DICOM as each vendor writes it.

``encode(signal, geometry, echo_times_s, b0_tesla, encoding)`` returns pydicom datasets that are ready for `save`. The
conventions (where the component is told, how phase is scaled, what is shuffled, absent or misleading) follow exports
of real scanners; pixels, names and UIDs are synthetic. The same arguments give the same bytes.

Convention of the argument: phase grows with the field (Siemens, Philips). GE encodings are conjugated, and negated in
every second slice unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from dicom_samples.scan import (
    COMPONENT_NAME,
    IMAGINARY,
    MAGNITUDE,
    PHASE,
    REAL,
    Scan,
    classic,
    ds_strings,
    enhanced,
    frame_groups,
    item,
    multiframe,
    top,
)
from qsm_edge.types import Geometry

PHILIPS_PHASE_SLOPE, PHILIPS_PHASE_INTERCEPT = 1.53455433455433, -3142.0
PHILIPS_MAGNITUDE_SLOPE = 1.29157509157509
GE_RAW_DATA_TYPE = {MAGNITUDE: 0, PHASE: 1, REAL: 2, IMAGINARY: 3}


# ------------------------------------------------------------------------------------------------ Siemens


def _siemens_phase(scan: Scan) -> np.ndarray:
    """12 bits for a turn, 0 rad at 2048; +pi and -pi are the same stored value."""
    return (np.round(scan.phase() / np.pi * 2048 + 2048).astype(np.int32) % 4096).astype(np.uint16)


def _siemens(scan: Scan, *, rescale: bool) -> list[FileDataset]:
    """VB to VE11: two series; InstanceNumber starts again with every echo."""
    images = []
    for component, series, stored in ((MAGNITUDE, 11, scan.magnitude()), (PHASE, 12, _siemens_phase(scan))):
        for echo in range(len(scan.echo_times_s)):
            for z in range(scan.slices):
                d = classic(scan, z, echo, component, series=series, stored=stored)
                d.ImageType = ["ORIGINAL", "PRIMARY", component, "ND"] + ["NORM"] * (component == MAGNITUDE)
                d.Manufacturer, d.ManufacturerModelName, d.SoftwareVersions = "SIEMENS", "Prisma", "syngo MR E11"
                d.SequenceName, d.SeriesDescription, d.InstanceNumber = "*fl3d4r", "gre_qsm", z + 1
                if rescale and component == PHASE:
                    d.RescaleSlope, d.RescaleIntercept, d.RescaleType = "2", "-4096", "US"
                images.append(d)
    return images


def siemens_classic(scan: Scan) -> list[FileDataset]:
    return _siemens(scan, rescale=True)


def siemens_bare(scan: Scan) -> list[FileDataset]:
    """As de-identified: the rescale attributes are gone."""
    return _siemens(scan, rescale=False)


def siemens_xa_classic(scan: Scan) -> list[FileDataset]:
    """XA exported to classic objects: a series for every echo and component, no EchoNumbers, no RescaleType."""
    images = []
    for component, series, stored in ((MAGNITUDE, 11, scan.magnitude()), (PHASE, 21, _siemens_phase(scan))):
        for echo in range(len(scan.echo_times_s)):
            for z in range(scan.slices):
                d = classic(scan, z, echo, component, series=series + echo, stored=stored)
                del d.EchoNumbers
                d.ImageType = ["ORIGINAL", "PRIMARY", component, "DIS2D", "MFSPLIT"]
                d.Manufacturer, d.ManufacturerModelName = "Siemens Healthineers", "MAGNETOM Prisma"
                d.SoftwareVersions, d.SequenceName, d.SeriesDescription = "syngo MR XA30", "*fl3d4r", "gre_qsm"
                d.InstanceNumber = z + 1
                if component == PHASE:
                    d.RescaleSlope, d.RescaleIntercept = "2", "-4096"
                d.private_block(0x0021, "SIEMENS MR SDI 02", create=True).add_new(0x06, "LO", _siemens_index(echo, z))
                images.append(d)
    return images


def _siemens_index(echo: int, z: int) -> str:
    return f"X_{echo + 1}_1_1_1_1_1_1_1_1_{z + 1}_1_629"


def siemens_xa_enhanced(scan: Scan) -> list[FileDataset]:
    """XA: one enhanced object for every echo and component; a series for every component."""
    parts = ((MAGNITUDE, scan.magnitude()), (PHASE, _siemens_phase(scan)))
    return [
        _siemens_enhanced(scan, [(echo, component, stored)], 8 + index, echo + 1)
        for index, (component, stored) in enumerate(parts)
        for echo in range(len(scan.echo_times_s))
    ]


def siemens_xa_mixed(scan: Scan) -> list[FileDataset]:
    """XA, as some sites have it: one enhanced object for every echo with its magnitude and phase frames in turn."""
    magnitude, phase = scan.magnitude(), _siemens_phase(scan)
    return [
        _siemens_enhanced(scan, [(echo, MAGNITUDE, magnitude), (echo, PHASE, phase)], 8, echo + 1)
        for echo in range(len(scan.echo_times_s))
    ]


def _siemens_enhanced(scan: Scan, parts: list[tuple[int, str, np.ndarray]], series: int, instance: int) -> FileDataset:
    components = {component for _, component, _ in parts}
    component = components.pop() if len(components) == 1 else "MIXED"
    d = enhanced(scan, series, instance, COMPONENT_NAME.get(component, component))
    d.ImageType = ["ORIGINAL", "PRIMARY", component, "NONE"]
    d.Manufacturer, d.ManufacturerModelName = "Siemens Healthineers", "MAGNETOM Prisma Fit"
    d.SoftwareVersions, d.PulseSequenceName, d.SeriesDescription = "syngo MR XA30", "*fl3d4r", "gre_qsm"
    frames = []
    for z in range(scan.slices):
        for echo, part, _ in parts:
            frame = frame_groups(scan, z, echo, part, ["ORIGINAL", "PRIMARY", part, "NONE"])
            frame.FrameContentSequence[0].DimensionIndexValues = [1, z + 1, 1]
            slope, intercept = ("2", "-4096") if part == PHASE else ("1", "0")
            frame.PixelValueTransformationSequence = [
                item(dict(RescaleIntercept=intercept, RescaleSlope=slope, RescaleType="US"))
            ]
            private = Dataset()
            block = private.private_block(0x0021, "SIEMENS MR SDI 02", create=True)
            block.add_new(0x06, "LO", _siemens_index(echo, z))
            block.add_new(0x75, "CS", ["ORIGINAL", "PRIMARY", part, "ND"])
            frame.private_block(0x0021, "SIEMENS MR SDI 02", create=True).add_new(0xFE, "SQ", [private])
            frames.append(frame)
    pointers = ((0x00209056, 0x00209111), (0x00209057, 0x00209111), (0x00209128, 0x00209111))
    planes = [stored[echo, z] for z in range(scan.slices) for echo, _, stored in parts]
    multiframe(d, scan, frames=frames, pointers=pointers, stored=np.stack(planes))
    return d


# ------------------------------------------------------------------------------------------------ Philips

PHILIPS_TYPE = {MAGNITUDE: ["M_FFE", "M", "FFE"], PHASE: ["PHASE MAP", "P", "FFE"]}
#: (2005,100E): belongs to floating-point magnitudes; applied to phase it is nonsense.
PHILIPS_PRIVATE_SCALE = {MAGNITUDE: 0.00023798899201210588, PHASE: 651.739501953125}


def _philips_stored(scan: Scan, component: str) -> np.ndarray:
    if component == MAGNITUDE:
        return scan.magnitude()
    stored = np.round((1000 * scan.phase() - PHILIPS_PHASE_INTERCEPT) / PHILIPS_PHASE_SLOPE)
    return np.clip(stored, 0, 4095).astype(np.uint16)


def _philips_rescale(component: str) -> tuple[str, str, str]:
    if component == MAGNITUDE:
        return ds_strings(PHILIPS_MAGNITUDE_SLOPE), "0", "normalized"
    return ds_strings(PHILIPS_PHASE_SLOPE), ds_strings(PHILIPS_PHASE_INTERCEPT), "mrad"


def _philips_private(d: Dataset, component: str) -> None:
    block = d.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0D, "FL", 0.0 if component == MAGNITUDE else 2047.5001220703125)
    block.add_new(0x0E, "FL", PHILIPS_PRIVATE_SCALE[component])
    block.add_new(0x11, "CS", component)


def philips_classic(scan: Scan) -> list[FileDataset]:
    """Magnitude and phase of all echoes in one series, InstanceNumber in no order of space."""
    keys = [(c, e, z) for c in (MAGNITUDE, PHASE) for e in range(len(scan.echo_times_s)) for z in range(scan.slices)]
    keys.sort(key=lambda key: scan.uid("shuffle", *key))
    stored = {component: _philips_stored(scan, component) for component in (MAGNITUDE, PHASE)}
    images = []
    for number, (component, echo, z) in enumerate(keys, start=1):
        d = classic(scan, z, echo, component, series=401, stored=stored[component])
        d.ImageType = ["ORIGINAL", "PRIMARY", *PHILIPS_TYPE[component]]
        d.Manufacturer, d.ManufacturerModelName, d.SoftwareVersions = "Philips", "Ingenia Elition X", "5.7.1"
        d.SeriesDescription, d.InstanceNumber = "QSM", number
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = _philips_rescale(component)
        _philips_private(d, component)
        images.append(d)
    return images


def philips_enhanced(scan: Scan) -> list[FileDataset]:
    """One object: components, within them slices, within those echoes; RescaleType US throughout."""
    d = enhanced(scan, 401, 1, "MIXED")
    d.ImageType = ["ORIGINAL", "PRIMARY", "T1", "MIXED"]
    d.Manufacturer, d.ManufacturerModelName, d.SoftwareVersions = "Philips", "Ingenia Elition X", "5.7.1"
    d.PulseSequenceName, d.SeriesDescription = "T1FFE", "QSM"
    frames, planes = [], []
    for component in (MAGNITUDE, PHASE):
        stored = _philips_stored(scan, component)
        slope, intercept, unit = _philips_rescale(component)
        for z in range(scan.slices):
            for echo in range(len(scan.echo_times_s)):
                frame = frame_groups(scan, z, echo, component, ["ORIGINAL", "PRIMARY", "T1", component])
                index = [1, z + 1, 0 if component == MAGNITUDE else 3, echo + 1]
                frame.FrameContentSequence[0].DimensionIndexValues = index
                frame.PixelValueTransformationSequence = [
                    item(dict(RescaleIntercept=intercept, RescaleSlope=slope, RescaleType="US"))
                ]
                private = item(dict(ImageType=["ORIGINAL", "PRIMARY", *PHILIPS_TYPE[component]], EchoNumbers=echo + 1))
                private.RescaleSlope, private.RescaleIntercept, private.RescaleType = slope, intercept, unit
                private.ImagePositionPatient = ["0", "0", "0"]  # the private copy is of another corner of the plane
                _philips_private(private, component)
                block = frame.private_block(0x2005, "Philips MR Imaging DD 005", create=True)
                block.add_new(0x0F, "SQ", [private])
                frames.append(frame)
                planes.append(stored[echo, z])
    pointers = ((0x00209056, 0x00209111), (0x00209057, 0x00209111), (0x20051011, 0x2005140F), (0x00189082, 0x00189114))
    multiframe(d, scan, frames=frames, pointers=pointers, stored=np.stack(planes))
    return [d]


# ------------------------------------------------------------------------------------------------ GE


def _ge(scan: Scan, parts: dict[str, np.ndarray]) -> list[FileDataset]:
    """One series; every image says OTHER and echo 1, the component is in (0043,102F); no rescale."""
    images = []
    for z in range(scan.slices):
        for echo in range(len(scan.echo_times_s)):
            for component, stored in parts.items():
                d = classic(scan, z, echo, component, series=5, stored=stored, bits=16)
                d.ImageType, d.EchoNumbers, d.InstanceNumber = ["ORIGINAL", "PRIMARY", "OTHER"], 1, len(images) + 1
                d.Manufacturer, d.ManufacturerModelName = "GE MEDICAL SYSTEMS", "SIGNA Architect"
                d.SoftwareVersions, d.SeriesDescription = ["27", "LX", "MR Software release:DV27.0"], "Ax QSM"
                block = d.private_block(0x0019, "GEMS_ACQU_01", create=True)
                block.add_new(0x7E, "SS", len(scan.echo_times_s))
                block.add_new(0x9C, "LO", "EFGRE3D")
                block.add_new(0x9E, "LO", "EFGRE3D")
                parm = d.private_block(0x0043, "GEMS_PARM_01", create=True)
                parm.add_new(0x2F, "SS", GE_RAW_DATA_TYPE[component])
                images.append(d)
    return images


def _ge_complex(scan: Scan, *, chopped: bool) -> list[FileDataset]:
    signal = np.conj(scan.signal) * (20000 / top(np.abs(scan.signal)))
    if chopped:
        signal = signal * np.where(np.arange(scan.slices) % 2, -1, 1)[:, None, None]
    stored = [np.clip(np.round(part), -32767, 32767).astype(np.int16) for part in (signal.real, signal.imag)]
    return _ge(scan, {REAL: stored[0], IMAGINARY: stored[1]})


def ge_real_imaginary(scan: Scan) -> list[FileDataset]:
    return _ge_complex(scan, chopped=True)


def ge_real_imaginary_unchopped(scan: Scan) -> list[FileDataset]:
    return _ge_complex(scan, chopped=False)


def _ge_phase(scan: Scan, half_turn: float) -> list[FileDataset]:
    phase = np.round(-scan.phase() / np.pi * half_turn).astype(np.int16)
    return _ge(scan, {MAGNITUDE: scan.magnitude().astype(np.int16), PHASE: phase})


def ge_phase(scan: Scan) -> list[FileDataset]:
    """Magnitude and phase, pi at 3142 (mrad)."""
    return _ge_phase(scan, 1000 * np.pi)


def ge_phase_4096(scan: Scan) -> list[FileDataset]:
    """Magnitude and phase, pi at 4096."""
    return _ge_phase(scan, 4096.0)


# ------------------------------------------------------------------------------------------------ others


def _plain(scan: Scan, manufacturer: str, model: str, phase: np.ndarray, bits: int) -> list[FileDataset]:
    images = []
    for component, stored in ((MAGNITUDE, scan.magnitude().astype(phase.dtype)), (PHASE, phase)):
        for echo in range(len(scan.echo_times_s)):
            for z in range(scan.slices):
                d = classic(
                    scan, z, echo, component, series=3 if component == MAGNITUDE else 4, stored=stored, bits=bits
                )
                d.ImageType = ["ORIGINAL", "PRIMARY", component, "NONE"]
                d.ComplexImageComponent = COMPONENT_NAME[component]
                d.Manufacturer, d.ManufacturerModelName, d.SeriesDescription = manufacturer, model, "gre_qsm"
                d.InstanceNumber = echo * scan.slices + z + 1
                images.append(d)
    return images


def uih(scan: Scan) -> list[FileDataset]:
    """United Imaging, as far as is known: 12 bits unsigned for a turn, no rescale."""
    return _plain(scan, "UIH", "uMR 790", _siemens_phase(scan), 12)


def canon(scan: Scan) -> list[FileDataset]:
    """Canon, as far as is known: signed milliradians, no rescale."""
    return _plain(scan, "CANON_MEC", "Vantage", np.round(1000 * scan.phase()).astype(np.int16), 16)


ENCODINGS: dict[str, Callable[[Scan], list[FileDataset]]] = {
    function.__name__: function
    for function in (
        siemens_classic,
        siemens_bare,
        siemens_xa_enhanced,
        siemens_xa_mixed,
        siemens_xa_classic,
        philips_classic,
        philips_enhanced,
        ge_real_imaginary,
        ge_real_imaginary_unchopped,
        ge_phase,
        ge_phase_4096,
        uih,
        canon,
    )
}


def encode(
    signal: np.ndarray,
    geometry: Geometry,
    echo_times_s: Iterable[float],
    b0_tesla: float,
    encoding: str,
    *,
    seed_name: str = "sample",
) -> list[FileDataset]:
    """The images of one acquisition in a vendor's `encoding` (a key of `ENCODINGS`), in the order of export.

    signal: complex (echo, z, y, x), phase growing with the field. geometry: axes orthogonal, B0 along the patient's z.
    seed_name: goes into every UID, so that two acquisitions of one test differ.
    """
    times = tuple(float(t) for t in echo_times_s)
    if encoding not in ENCODINGS:
        raise ValueError(f"no encoding {encoding!r}; there are {', '.join(ENCODINGS)}")
    if signal.shape != (len(times), *geometry.shape):
        raise ValueError(f"signal has shape {signal.shape}, the echo times and the geometry say otherwise")
    return ENCODINGS[encoding](Scan(signal, geometry, times, float(b0_tesla), seed_name))


def save(datasets: Iterable[FileDataset], folder: Path) -> list[Path]:
    """Write ``IM0001.dcm`` and so on into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, dataset in enumerate(datasets, start=1):
        paths.append(folder / f"IM{number:04d}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths
