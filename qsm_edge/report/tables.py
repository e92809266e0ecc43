"""The tables and words of the report: facts (see `facts.report_dict`) to HTML, every text from outside escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

_DOI = re.compile(r"\b10\.\d{4,9}/[^\s,;\"'<>]*[^\s,;\"'<>.):\]]")

#: Facts of the reader that the table of the acquisition has from the series itself.
_SHOWN_ABOVE = {"vendor", "encoding", "echo_times_ms", "matrix", "voxel_mm", "b0_direction", "b0_tesla"}


def number(value: Any) -> str:
    """A number as a reader wants it: three digits that count, thousands apart, a dash for what was not measured."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "\u2212")
    digits = 3 if abs(value) >= 0.01 else 1
    return f"{value + 0.0:.{digits}g}".replace("-", "\u2212")


def linked(text: str, known: Iterable[str] = ()) -> str:
    """`text` escaped, its DOIs (those in `known`, and whatever looks like one) as links to doi.org."""
    names = sorted((re.escape(doi) for doi in known if doi), key=len, reverse=True)
    pattern = re.compile("|".join([*names, _DOI.pattern]))
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts.append(escape(text[end : match.start()]))
        address = "https://doi.org/" + quote(match.group(), safe="/:;().-_~")
        parts.append(f'<a href="{escape(address)}">{escape(match.group())}</a>')
        end = match.end()
    return "".join(parts) + escape(text[end:])


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], name: str, kind: str = "") -> str:
    """A table whose cells are HTML already; the first cell of a row heads it."""
    heads = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    top = f"<thead><tr>{heads}</tr></thead>" if head else ""
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    inner = f"<caption>{escape(name)}</caption>{top}<tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{inner}</table></div>'


def spelled(value: Any) -> str:
    """A value of the facts as text: options, lists and nested tables on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {spelled(item)}" for key, item in value.items())
    if isinstance(value, list):
        between = "; " if any(isinstance(item, (Mapping, list)) for item in value) else ", "
        return between.join(spelled(item) for item in value)
    return "\u2013" if value is None else str(value)


def notes(facts: dict[str, Any]) -> str:
    """The notes with their reason codes, or nothing."""
    if not facts["notes"]:
        return ""
    rows = [(f"<code>{escape(n['code'])}</code>", escape(n["text"] or n["meaning"])) for n in facts["notes"]]
    return table(("Reason code", "What was found"), rows, "Notes", "notes")


def figures(facts: dict[str, Any]) -> str:
    """Every measured number with its unit and meaning."""
    rows = [
        (f"<code>{escape(name)}</code>", number(f["value"]), escape(f["unit"]), escape(f["meaning"]))
        for name, f in facts["figures"].items()
    ]
    return table(("Figure", "Value", "Unit", "Meaning"), rows, "Measured on this result", "figures")


def acquisition(facts: dict[str, Any]) -> str:
    """What came in."""
    got, geometry = facts["acquisition"], facts["geometry"]
    voxel, shape = geometry["voxel_mm_zyx"][::-1], geometry["shape_zyx"][::-1]
    cross = " \u00d7 "
    rows = {
        "Vendor": got["vendor"],
        "Encoding": got["encoding"],
        "Images": got["images"] or None,
        "Field strength": f"{got['b0_tesla']:.4g} T",
        "Matrix": f"{cross.join(str(n) for n in shape)} (columns, rows, slices)",
        "Voxel": f"{cross.join(f'{v:.4g}' for v in voxel)} mm",
        "Field of view": f"{cross.join(f'{n * v:.0f}' for n, v in zip(shape, voxel, strict=True))} mm",
        "B0 on the array axes": f"{', '.join(f'{b:+.3f}' for b in geometry['b0_dir_zyx'])} (slice, row, column)",
        "Oblique by": f"{geometry['tilt_deg']:.1f}\u00b0",
        **{key.replace("_", " "): spelled(value) for key, value in got["facts"].items() if key not in _SHOWN_ABOVE},
    }
    lines = [(escape(name), escape(str(value))) for name, value in rows.items() if value not in (None, "")]
    return table((), lines, "What came in")


def echoes(facts: dict[str, Any]) -> str:
    """Echo times and how the signal decays over them."""
    got = facts["acquisition"]
    rows = [
        (str(i + 1), f"{t:g}", number(s))
        for i, (t, s) in enumerate(zip(got["echo_times_ms"], got["echo_signal"], strict=True))
    ]
    return table(("Echo", "TE [ms]", "Signal"), rows, "Echoes; signal over the brain, relative to the first", "echoes")


def stages(facts: dict[str, Any]) -> str:
    """What ran, with every option, and what it cost."""
    rows = [
        (
            escape(stage["stage"]),
            f"<code>{escape(stage['method'])}</code>",
            escape(spelled(stage["options"])) or "\u2013",
            number(stage["iterations"]) if stage["iterations"] else "\u2013",
            number(stage["seconds"]),
            number(stage["peak_bytes"] / 1e6) if stage["peak_bytes"] else "\u2013",
        )
        for stage in facts["stages"]
    ]
    head = ("Stage", "Method", "Options, defaults included", "Iterations", "Seconds", "Memory [MB]")
    return table(head, rows, f"Recipe {facts['recipe']['name']}", "stages")


def methods(facts: dict[str, Any]) -> str:
    """The methods paragraph, ready to be copied, and what it cites."""
    dois = facts["methods"]["dois"]
    paragraphs = "".join(
        f"<p>{linked(text, dois)}</p>" for text in facts["methods"]["text"].split("\n\n") if text.strip()
    )
    cited = "".join(f"<li>{linked(doi, dois)}</li>" for doi in dois)
    return paragraphs + (f'<h3>References</h3><ol class="dois">{cited}</ol>' if cited else "")


def provenance(facts: dict[str, Any]) -> str:
    """What made the result, to the digest of its recipe."""
    rows = {
        "Software": f"{facts['software']['name']} {facts['software']['version']}",
        "Recipe": facts["recipe"]["name"],
        "Recipe digest (SHA-256)": facts["recipe"]["digest"],
        "Derivation": facts["derivation"],
        **facts["environment"],
    }
    lines = [(escape(str(name)), escape(spelled(value))) for name, value in rows.items()]
    return table((), lines, "How the result was made", "provenance")
