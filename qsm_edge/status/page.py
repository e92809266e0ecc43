"""The status page: one HTML document that loads nothing and runs nothing, and makes itself anew by itself.

For the radiographer beside the scanner: did my study arrive, is it being worked on, is the map good, is it in the archive,
and if not, what is to be done. Names no patient: studies and jobs are shown by the first digits of hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from qsm_edge import __version__
from qsm_edge.errors import REASONS
from qsm_edge.status import attention
from qsm_edge.status.attention import Item
from qsm_edge.status.facts import Facts, Picture, Result, Row
from qsm_edge.status.health import Health
from qsm_edge.status.metrics import worst
from qsm_edge.status.remedies import REMEDIES
from qsm_edge.status.words import ago, capital, duration, marked, moment, name, plural, size, text, thousands

_DAY_S = 86400.0
#: Matters that are shown without being asked for.
_OPEN = 5
_BADGES = {"good": ("\u2713", "Good"), "review": ("!", "Review"), "poor": ("\u2715", "Poor")}
_SIGNS = {"good": "\u2713", "review": "\u2026", "poor": "\u2715"}
_DOT = " \u00b7 "
_VENDORS = {"siemens": "Siemens", "philips": "Philips", "ge": "GE"}


def style() -> str:
    """The style sheet, as it stands in the page."""
    return files("qsm_edge.status").joinpath("style.css").read_text(encoding="utf-8")


def policy() -> str:
    """The page's Content-Security-Policy: this very style sheet, pictures inside the page, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def html(facts: Facts, health: Health, *, refresh_s: int, keep_held_days: float, memory: int | None = None) -> str:
    """The whole page. memory: bytes in use by service and reconstructions, None where it is not known."""
    matters, earlier = attention.items(facts, health)
    body = (
        _head(facts, refresh_s),
        _banner(facts, health, matters),
        _road(facts),
        _matters(facts, matters),
        _working(facts),
        _results(facts),
        _held(facts, keep_held_days),
        _destinations(facts),
        _earlier(facts, earlier),
        _machine(health, memory),
    )
    title = f"({len(matters)}) qsm-edge" if matters else "qsm-edge"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{refresh_s}"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{style()}</style></head>\n<body><main>"
        + "\n".join(part for part in body if part)
        + f"</main>\n<footer><p>qsm-edge {text(__version__)} \u00b7 research use only \u00b7 names no patient</p>"
        '<p><a href="/health">health</a> <a href="/metrics">metrics</a></p></footer></body></html>\n'
    )


def _head(facts: Facts, refresh_s: int) -> str:
    made = moment(facts.now_s, facts.now_s, seconds=True)
    return (
        "<header><div><h1>qsm-edge</h1><p>Susceptibility maps from multi-echo GRE</p></div>"
        f"<p>As of {made}, refreshed every {refresh_s}\u202fs</p></header>"
    )


def _banner(facts: Facts, health: Health, matters: Sequence[Item]) -> str:
    if not health.is_well:
        kind, word, rest = "poor", "The service needs help", "New studies may not be taken in or worked on."
    elif matters:
        verb = "needs" if len(matters) == 1 else "need"
        kind, word = "review", f"{plural(len(matters), 'thing')} {verb} attention"
        rest = "Everything else goes on by itself."
    else:
        kind, word, rest = "good", "The service is well", "Nothing needs you."
        recent = [result for result in facts.results if facts.now_s - result.changed_s < _DAY_S]
        if unsure := sum(_verdict(result) != "good" for result in recent):
            rest = f"{plural(unsure, 'map')} of the last 24 hours should be looked at before use."
    sign = _BADGES[kind][0]
    return (
        f'<div class="banner {kind}" role="status"><span class="sign" aria-hidden="true">{sign}</span>'
        f"<p><strong>{word}</strong> {rest}</p></div>"
    )


def _road(facts: Facts) -> str:
    """The five stations that a study passes, with how much is at each."""
    due = dict.fromkeys(("pending", "refused"), 0)
    for row in (row for rows in facts.destinations.values() for row in rows):
        due[row["state"]] += row["files"]
    sending = f"files, {due['refused']} refused" if due["refused"] else "files"
    held, arriving = facts.totals["held"], facts.totals["arriving"]
    stations = (
        ("Arriving", arriving, f"{held} held" if held else "studies on their way in", ""),
        ("Waiting", facts.jobs.get("ready", 0), "for their turn", ""),
        ("Reconstructing", facts.jobs.get("working", 0), "now", "now" if facts.working else ""),
        ("Done", facts.done_today, "in the last 24 hours", ""),
        ("To be sent", due["pending"], sending if facts.destinations else "no destination is set up", ""),
    )
    cells = (
        f'<li class="{kind}"><span>{label}</span><b>{thousands(number)}</b><small>{what}</small></li>'
        for label, number, what, kind in stations
    )
    return f'<ol class="road" aria-label="Where studies are">{"".join(cells)}</ol>'


def _section(title: str, content: str, note: str = "") -> str:
    told = f" <small>{note}</small>" if note else ""
    return f"<section><h2>{title}{told}</h2>{content}</section>"


def _matters(facts: Facts, matters: Sequence[Item]) -> str:
    if not matters:
        return ""
    shown = "".join(_matter(facts, item) for item in matters[:_OPEN])
    rest = "".join(_matter(facts, item) for item in matters[_OPEN:])
    more = (
        f'<details><summary>{len(matters) - _OPEN} more</summary><ul class="matters">{rest}</ul></details>'
        if rest
        else ""
    )
    return _section("Needs attention", f'<ul class="matters">{shown}</ul>{more}')


def _earlier(facts: Facts, earlier: Sequence[Item]) -> str:
    """What asked for a look longer ago; of the rest only the list of the command line tells."""
    rows = "".join(_matter(facts, item) for item in earlier)
    left = sum(facts.totals[key] - len(some) for key, some in (("failed", facts.failed), ("refused", facts.refused)))
    more = f'<p class="more">and {left} more: <code>qsm-edge queue list</code></p>' if left else ""
    shown = (
        f'<details><summary>{plural(len(earlier), "thing")}</summary><ul class="matters">{rows}</ul></details>'
        if rows
        else ""
    )
    return _section("Earlier", shown + more) if shown or more else ""


def _matter(facts: Facts, item: Item) -> str:
    about = [moment(item.since_s, facts.now_s)] if item.since_s is not None else []
    about += [name(item.name)] if item.name else []
    about += [f"<code>{text(item.code)}</code>"] if item.code else []
    means = f"{capital(item.means)}. " if item.means else ""
    said = (
        f'<p>{text(means)}<span class="detail">{text(capital(item.detail))}</span></p>' if means or item.detail else ""
    )
    helps = f'<p class="helps"><b>What helps</b> {marked(item.helps)}</p>' if item.helps else ""
    command = f'<p class="command">then <code>qsm-edge {text(item.command)}</code></p>' if item.command else ""
    return (
        f'<li class="{item.level}"><div class="top"><h3>{text(item.title)}</h3><p class="about">{_DOT.join(about)}</p></div>'
        f"{said}{helps}{command}</li>"
    )


def _working(facts: Facts) -> str:
    usual = f", usually {duration(facts.usual_s)}" if facts.usual_s else ""
    cards = [_at_work(facts, row, usual) for row in facts.working]
    cards += [_waiting(facts, row) for row in facts.ready[:5]]
    left = facts.totals["ready"] - len(facts.ready[:5])
    more = f'<p class="more">and {left} more waiting</p>' if left > 0 else ""
    return _section("At work", f'<ul class="jobs">{"".join(cards)}</ul>{more}') if cards else ""


def _at_work(facts: Facts, row: Row, usual: str) -> str:
    seconds = max(0.0, facts.now_s - row["changed_s"])
    bar = ""
    if facts.usual_s:
        bar = f'<progress max="100" value="{min(97, 100 * seconds / facts.usual_s):.0f}">of its usual time</progress>'
    again = f", try {row['attempts'] + 1}" if row["attempts"] else ""
    return f"<li>{name(row['job'])}<span>reconstructing for {duration(seconds)}{usual}{again}</span>{bar}</li>"


def _waiting(facts: Facts, row: Row) -> str:
    since = ago(facts.now_s - row["created_s"])
    why = f"tried, <code>{text(row['code'])}</code>; again " if row["code"] else "waits for its turn, arrived "
    wait = row["not_before_s"] - facts.now_s
    when = (f"in {duration(wait)}" if wait > 0 else "soon") if row["code"] else since
    return f"<li>{name(row['job'])}<span>{why}{when}</span></li>"


def _results(facts: Facts) -> str:
    if not facts.results:
        return _section("Results", '<p class="none">No map has been made yet.</p>')
    count = facts.jobs.get("done", 0)
    note = f"the last {len(facts.results)} of {count}" if count > len(facts.results) else ""
    cards = "".join(_card(facts, result) for result in facts.results)
    return _section("Results", f'<div class="results">{cards}</div>', note)


def _card(facts: Facts, result: Result) -> str:
    verdict = _verdict(result)
    sign, word = _BADGES[verdict]
    pictures = "".join(_picture(one) for one in result.pictures) or _picture(Picture())
    sent = "".join(
        _delivered(where, result.deliveries) for where in dict.fromkeys(d["destination"] for d in result.deliveries)
    )
    beside = ""
    if result.code:
        beside = f'<p class="beside">Part of it was not used: {text(REASONS.get(result.code, result.code))}.</p>'
    return (
        f'<article class="{verdict}">{pictures}<div class="line"><span class="badge"><i aria-hidden="true">{sign}</i>{word}'
        f"</span><span>{moment(result.changed_s, facts.now_s)}</span></div>{_notes(result.pictures)}{beside}"
        f'<ul class="sent">{sent}</ul><p class="foot">{name(result.job)} took {duration(result.seconds)}</p></article>'
    )


def _verdict(result: Result) -> str:
    return worst([picture.verdict for picture in result.pictures if picture.verdict] or result.verdict.split(","))


def _picture(picture: Picture) -> str:
    facts = [_VENDORS.get(picture.vendor, picture.vendor)] if picture.vendor else []
    facts += [f"{picture.b0_tesla:.3g}\u202fT"] if picture.b0_tesla else []
    facts += [plural(picture.echoes, "echo", "echoes")] if picture.echoes else []
    facts += [" \u00d7 ".join(f"{side:.2g}" for side in picture.voxel_mm) + "\u202fmm"] if picture.voxel_mm else []
    told = text(_DOT.join(facts))
    if not picture.png:
        return f'<figure><div class="blank">no picture</div><figcaption>{told}</figcaption></figure>'
    source = base64.b64encode(picture.png).decode("ascii")
    alt = "Susceptibility map: an axial, a coronal and a sagittal slice"
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{source}"><figcaption>{told}</figcaption></figure>'


def _notes(pictures: Sequence[Picture]) -> str:
    """The reason codes that come with a result, except those that nothing is to be done about."""
    codes = dict.fromkeys(code for picture in pictures for code in picture.codes)
    told = [code for code in codes if code in REASONS and REMEDIES.get(code, "nothing") != "nothing"]
    lines = (f"<li><b>{text(capital(REASONS[c]))}</b>: {marked(REMEDIES[c])} <code>{text(c)}</code></li>" for c in told)
    return f'<ul class="notes">{"".join(lines)}</ul>' if told else ""


def _delivered(where: str, deliveries: Sequence[Row]) -> str:
    counts = {row["state"]: row["files"] for row in deliveries if row["destination"] == where}
    whole = sum(counts.values())
    kind, what = "good", "has it"
    if counts.get("refused"):
        kind, what = "poor", f"refused {counts['refused']} of {whole}"
    elif counts.get("pending"):
        kind, what = "review", f"has {counts.get('done', 0)} of {plural(whole, 'file')}"
    return f'<li class="{kind}"><i aria-hidden="true">{_SIGNS[kind]}</i>{text(where)} {what}</li>'


def _held(facts: Facts, keep_days: float) -> str:
    if not facts.held:
        return ""
    head = "<tr>" + "".join(
        f'<th scope="col">{word}</th>' for word in ("Study", "Waits because", "What helps", "Last image")
    )
    rows = "".join(_held_row(facts, row, keep_days) for row in facts.held)
    left = facts.totals["held"] - len(facts.held)
    more = f'<p class="more">and {left} more</p>' if left else ""
    caption = (
        "<caption>Images of these acquisitions are missing. As soon as they come, the map is made by itself.</caption>"
    )
    table = f'<div class="scroll"><table>{caption}<thead>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return _section("Held", table + more)


def _held_row(facts: Facts, row: Row, keep_days: float) -> str:
    code = str(row["code"])
    means = REASONS.get(code, code)
    more = attention.beyond(row["text"], means)
    detail = f'<br><span class="detail">{text(capital(more))}</span>' if more else ""
    left_s = row["received_s"] + keep_days * _DAY_S - facts.now_s
    kept = f"kept for {duration(left_s)} more" if left_s > 0 else "goes soon"
    return (
        f'<tr><th scope="row">{name(row["study"])}<br><small>{plural(row["instances"], "image")}</small></th>'
        f"<td>{text(capital(means))} <code>{text(code)}</code>{detail}</td><td>{marked(capital(REMEDIES.get(code, '')))}</td>"
        f"<td>{moment(row['received_s'], facts.now_s)}<br><small>{kept}</small></td></tr>"
    )


def _destinations(facts: Facts) -> str:
    if not facts.destinations:
        return ""
    words = ("Destination", "State", "Files waiting", "Refused", "Oldest", "Next try")
    head = "".join(f'<th scope="col">{word}</th>' for word in words)
    rows = "".join(_destination(facts, where, due) for where, due in facts.destinations.items())
    caption = "<caption>What each destination does not have yet</caption>"
    table = f'<div class="scroll"><table class="wide">{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return _section("Deliveries", table)


def _destination(facts: Facts, where: str, due: Sequence[Row]) -> str:
    pending = [row for row in due if row["state"] == "pending"]
    waiting, refused = (sum(row["files"] for row in due if row["state"] == state) for state in ("pending", "refused"))
    failing = [row for row in pending if row["outcome"]]
    kind, word = ("good", "has everything") if not due else ("review", "being sent")
    if failing:
        word = f"tried {plural(max(row['attempts'] for row in failing), 'time')}"
    if refused:
        kind, word = "poor", "refused some"
    oldest = ago(facts.now_s - facts.oldest_s[where]) if where in facts.oldest_s else "\u2013"
    wait = min((row["not_before_s"] for row in pending), default=0.0) - facts.now_s
    following = "\u2013" if not pending else f"in {duration(wait)}" if wait > 1 else "now"
    state = f'<td class="{kind}"><i aria-hidden="true">{_SIGNS[kind]}</i>{word}</td>'
    return (
        f'<tr><th scope="row">{text(where)}</th>{state}<td>{waiting}</td>'
        f"<td>{refused}</td><td>{oldest}</td><td>{following}</td></tr>"
    )


def _machine(health: Health, memory: int | None) -> str:
    room = f"{size(health.free_bytes)} free"
    facts = [("Disk", room), ("Running for", duration(health.uptime_s))]
    facts += [("Memory in use", size(memory))] if memory is not None else []
    parts = "".join(_part(part, is_) for part, is_ in health.parts.items())
    cells = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    parts = f'<div><dt>Parts</dt><dd><ul class="parts">{parts}</ul></dd></div>'
    return _section("This machine", f'<dl class="machine">{cells}{parts}</dl>')


def _part(part: str, is_: str) -> str:
    if is_ == "alive":
        return f'<li class="good"><i aria-hidden="true">{_SIGNS["good"]}</i>{text(part)}</li>'
    return f'<li class="poor"><i aria-hidden="true">{_SIGNS["poor"]}</i>{text(part)} {text(is_)}</li>'
