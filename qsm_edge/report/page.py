"""The report as one HTML page that loads nothing: pictures and style are inside it, and there is no script."""

from __future__ import annotations

import base64
import itertools
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from qsm_edge.report import tables
from qsm_edge.report.charts import grey_bar, histogram
from qsm_edge.report.facts import report_dict
from qsm_edge.report.pictures import Mosaic, Panel, View, mosaic
from qsm_edge.report.tables import number, section
from qsm_edge.types import Result
from qsm_edge.units import PPB_PER_PPM, hz_per_ppm

_BRAIN_COLOUR, _MAP_COLOUR, _DOUBT_COLOUR = (255, 176, 0), (64, 200, 255), (255, 96, 144)
_VERDICTS = {
    "good": ("Good", "No measure asks for attention."),
    "review": ("Review", "Look at the points below before using the map."),
    "poor": ("Poor", "Do not use this map before the points below are understood."),
}
_NAMES = {
    "brain_volume": "Brain volume",
    "cover": "Cover",
    "snr": "SNR, first echo",
    "field_noise": "Field noise",
    "residual": "Echo-fit residual",
    "unreliable": "Unreliable",
    "chi_spread": "Susceptibility spread",
    "sign_index": "Sign index",
    "clipped": "Clipped",
}
_EXTRAS = {
    "t2star": "T2*",
    "swi": "Susceptibility-weighted image",
    "smwi": "Susceptibility-map-weighted image",
    "swi_mip": "Minimum-intensity projection of the susceptibility-weighted image",
    "chi_sd": "Uncertainty of the susceptibility by noise",
}
_TILES = ("brain_volume", "cover", "snr", "field_noise", "residual", "unreliable", "chi_spread", "sign_index")


def report_html(result: Result) -> str:
    """The whole page. Text from outside is escaped, the patient is not named (see `report_dict`)."""
    facts = report_dict(result)
    acquisition = facts["acquisition"]
    style = files("qsm_edge.report").joinpath("style.css").read_text(encoding="utf-8")
    title = f"Susceptibility map: {acquisition['slug']}"
    body = (
        _head(facts),
        tables.notes(facts),
        _tiles(facts),
        *_pictures(result, facts),
        section("Distributions", f'<div class="pair">{_chi_chart(result, facts)}{_residual_chart(result)}</div>'),
        section("Figures", tables.figures(facts)),
        section("Acquisition", f'<div class="pair">{tables.acquisition(facts)}{tables.echoes(facts)}</div>'),
        section("Processing", tables.stages(facts)),
        section("Methods", tables.methods(facts)),
        section("Provenance", tables.provenance(facts)),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>"
        + "\n".join(body)
        + f"</main>\n<footer>{escape(facts['software']['name'])} {escape(facts['software']['version'])} \u00b7 "
        f"{escape(facts['use'])} \u00b7 names no patient</footer></body></html>\n"
    )


def _head(facts: dict[str, Any]) -> str:
    acquisition, geometry = facts["acquisition"], facts["geometry"]
    times = acquisition["echo_times_ms"]
    echoes = (
        f"{len(times)} echoes, {times[0]:g} to {times[-1]:g} ms" if len(times) > 1 else f"one echo at {times[0]:g} ms"
    )
    voxel = " \u00d7 ".join(f"{v:.3g}" for v in reversed(geometry["voxel_mm_zyx"]))
    shape = " \u00d7 ".join(str(n) for n in reversed(geometry["shape_zyx"]))
    scanner = f"{acquisition['vendor']}, {acquisition['b0_tesla']:.3g} T"
    line = " \u00b7 ".join((scanner, echoes, f"voxel {voxel} mm", f"matrix {shape}"))
    word, advice = _VERDICTS[facts["verdict"]]
    return (
        f'<header><p class="over">{escape(facts["software"]["name"])} quality report</p>'
        f'<h1>Quantitative susceptibility map</h1><p class="sub"><strong>{escape(acquisition["slug"])}</strong> '
        f'\u00b7 {escape(line)}</p></header><div class="verdict {escape(facts["verdict"])}" role="status">'
        f'<strong>{word}</strong><span>{advice}</span><span class="use">{escape(facts["use"])}</span></div>'
    )


def _tiles(facts: dict[str, Any]) -> str:
    tiles = []
    for key in _TILES:
        figure = facts["figures"].get(key)
        if figure is not None:
            value = f"{number(figure['value'])} <small>{escape(figure['unit'])}</small>"
            meaning = escape(figure["meaning"])
            tiles.append(f'<div title="{meaning}"><dt>{escape(_NAMES[key])}</dt><dd>{value}</dd></div>')
    seconds = sum(stage["seconds"] or 0 for stage in facts["stages"])
    memory = max((stage["peak_bytes"] or 0 for stage in facts["stages"]), default=0)
    if facts["stages"]:
        tiles.append(f"<div><dt>Computed in</dt><dd>{number(seconds)} <small>s</small></dd></div>")
    if memory:
        tiles.append(f"<div><dt>Peak memory</dt><dd>{number(memory / 1e9)} <small>GB</small></dd></div>")
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _figure(picture: Mosaic, alt: str, title: str, caption: str) -> str:
    """A mosaic with its letters laid over it, which print and zoom as text."""
    marks = "".join(
        f'<span class="{kind}" style="left:{100 * x:.2f}%;top:{100 * y:.2f}%">{escape(text)}</span>'
        for text, x, y, kind in picture.marks
    )
    source = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><figcaption><strong>{escape(title)}</strong> {caption}</figcaption><div class="mosaic">'
        f'<img width="{picture.width}" height="{picture.height}" alt="{escape(alt)}" '
        f'src="data:image/png;base64,{source}"><div aria-hidden="true">{marks}</div></div></figure>'
    )


def _pictures(result: Result, facts: dict[str, Any]) -> tuple[str, ...]:
    """The map in full, the same few slices of everything that it was made from, and of the further maps."""
    series, counter = result.series, itertools.count()
    brain, mask = np.asarray(result.brain, dtype=bool), np.asarray(result.mask, dtype=bool)
    view = View.around(brain | mask, series.geometry)
    shades = {name: tuple(window) for name, window in facts["windows"].items()}

    def figure(  # one call a picture, so that they cannot differ but in what they show
        title: str,
        volume: np.ndarray,
        window: tuple[float, float],
        panels: tuple[Panel, ...],
        *,
        ends: tuple[tuple[float, float], str] | None = None,
        caption: str = "",
        columns: int = 6,
        within: np.ndarray | None = None,
        outlines: tuple[tuple[np.ndarray, tuple[int, int, int]], ...] = (),
    ) -> str:
        picture = mosaic(view, volume, panels, window, columns=columns, outlines=outlines, within=within)
        bar = grey_bar(*ends, next(counter)) if ends else ""
        planes = ", ".join(
            f"{sum(p.plane == plane for p in panels)} {plane}" for plane in dict.fromkeys(p.plane for p in panels)
        )
        alt = f"{title}: {planes} slices" + (f", grey from {ends[0][0]:g} to {ends[0][1]:g} {ends[1]}" if ends else "")
        return _figure(picture, alt, title, f"{bar} {caption}")

    axial = view.panels("axial", tuple(0.1 + 0.82 * i / 11 for i in range(12)))
    upright = view.panels("coronal", (0.3, 0.5, 0.7)) + view.panels("sagittal", (0.3, 0.5, 0.7))
    few = (
        view.panels("axial", (0.3, 0.45, 0.6, 0.75)) + view.panels("coronal", (0.5,)) + view.panels("sagittal", (0.5,))
    )
    tilt = facts["geometry"]["tilt_deg"]
    how = "Slices lie on the array's own axes. Patient right is on the left, anterior is on top or on the left; "
    how += "numbers are positions in mm at the middle of a slice."
    if tilt > 1:
        how += f" The slab is oblique by {tilt:.0f}\u00b0: letters name the nearest patient axis."
    chi_ends = (tuple(PPB_PER_PPM * v for v in shades["chi_ppm"]), "ppb")
    chi = figure("Axial", result.chi_ppm, shades["chi_ppm"], axial, ends=chi_ends, within=mask)  # type: ignore[arg-type]
    chi += figure("Coronal and sagittal", result.chi_ppm, shades["chi_ppm"], upright, within=mask)
    first = np.asarray(series.magnitude)[0]
    hz = hz_per_ppm(series.b0_tesla)
    field, local = shades["field_ppm"], shades["local_ppm"]
    local_ends = (tuple(PPB_PER_PPM * v for v in local), "ppb")
    rest = [
        figure("Magnitude", first, _bright(first, brain), few, caption="first echo, black to the 99.5th percentile"),
        figure(
            "Mask",
            first,
            _bright(first, brain),
            few,
            caption='<i class="key brain"></i>brain mask <i class="key map"></i>where the map has a value, if smaller',
            outlines=((mask, _MAP_COLOUR), (brain, _BRAIN_COLOUR)),
        ),
        figure(
            "Total field",
            result.field_ppm,
            field,
            few,
            ends=(field, f"ppm (\u00b1{field[1] * hz:.0f} Hz)"),
            within=brain,
        ),
        figure("Local field", result.local_ppm, local, few, ends=local_ends, within=mask),  # type: ignore[arg-type]
        figure("Susceptibility", result.chi_ppm, shades["chi_ppm"], few, ends=chi_ends, within=mask),  # type: ignore[arg-type]
    ]
    if result.r2star_per_s is not None:
        rates = shades["r2star_per_s"]
        rest.append(figure("R2*", result.r2star_per_s, rates, few, ends=(rates, "1/s"), within=brain))
    if len(series.echo_times_s) > 2:
        misfit = shades["residual"]
        rest.append(
            figure("Echo-fit residual", result.residual, misfit, few, ends=(misfit, "of the signal"), within=brain)
        )
    further = []
    for extra in result.extras:  # R2* is among the others already
        title = _EXTRAS.get(extra.name, extra.name)
        caption = f"series <code>{escape(extra.name)}/</code>"
        if extra.name == "t2star":
            times = shades["t2star_ms"]
            ends = (times, "ms")
            further.append(figure(title, extra.volume, times, few, ends=ends, caption=caption, within=brain))
        elif extra.name == "chi_sd":
            least, most = shades["chi_sd_ppm"]
            unknown = mask & ~np.isfinite(extra.volume)
            further.append(
                figure(
                    title,
                    np.where(unknown, most, extra.volume),
                    (least, most),
                    few,
                    ends=((PPB_PER_PPM * least, PPB_PER_PPM * most), "ppb"),
                    caption=f'{caption} <i class="key doubt"></i>not determined by the data. {escape(extra.comment)}',
                    within=mask,
                    outlines=((unknown, _DOUBT_COLOUR),),
                )
            )
        elif extra.name != "r2star":
            further.append(figure(title, extra.volume, _bright(extra.volume, brain), few, caption=caption))
    sections = [
        section("Susceptibility", f'<p class="how">{escape(how)}</p>{chi}'),
        section("From signal to susceptibility", "".join(rest)),
    ]
    return (*sections, section("Further maps", "".join(further))) if further else tuple(sections)


def _bright(magnitude: np.ndarray, brain: np.ndarray) -> tuple[float, float]:
    values = magnitude[brain] if brain.any() else magnitude
    top = float(np.percentile(np.nan_to_num(values), 99.5))
    return 0.0, top if top > 0 else 1.0


def _chi_chart(result: Result, facts: dict[str, Any]) -> str:
    values = PPB_PER_PPM * np.asarray(result.chi_ppm)[np.asarray(result.mask, dtype=bool)]
    figures = facts["figures"]
    marks = tuple((figures[k]["value"], name) for k, name in (("chi_p05", "5 %"), ("chi_p95", "95 %")) if k in figures)
    return histogram(
        values,
        (-200, 200),
        label="susceptibility [ppb]",
        ticks=(-200, -100, 0, 100, 200),
        marks=tuple(mark for mark in marks if mark[0] is not None),
        description="how often each susceptibility occurs in the map",
    )


def _residual_chart(result: Result) -> str:
    if len(result.series.echo_times_s) < 3:
        return '<p class="none">The echo-fit residual needs three echoes: fewer always fit a line.</p>'
    values = np.asarray(result.residual)[np.asarray(result.brain, dtype=bool)]
    median = ((float(np.median(values)), "median"),) if values.size else ()
    return histogram(
        values,
        (0, 0.5),
        label="echo-fit residual, relative to the signal",
        ticks=(0, 0.1, 0.2, 0.3, 0.4, 0.5),
        marks=(*median, (0.3, "unreliable beyond")),
        description="how often each echo-fit residual occurs in the brain",
    )
