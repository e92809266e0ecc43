"""Small charts as inline SVG: nothing to load, sharp in print."""

from __future__ import annotations

from html import escape

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 220, 12, 12, 26, 34


def histogram(
    values: np.ndarray,
    limits: tuple[float, float],
    *,
    label: str,
    ticks: tuple[float, ...],
    marks: tuple[tuple[float, str], ...] = (),
    description: str = "",
    bins: int = 120,
) -> str:
    """An SVG histogram of `values` within `limits`, with named vertical `marks`; what lies outside is said in words."""
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite, bins=bins, range=limits)
    low, high = limits
    outside = 100 * (1 - counts.sum() / finite.size) if finite.size else 0.0
    tallest = max(int(counts.max(initial=0)), 1)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    base = _HEIGHT - _BOTTOM
    heights = base - (base - _TOP) * counts / tallest
    steps = "".join(f"V{h:.1f}H{x(e):.1f}" for h, e in zip(heights, edges[1:], strict=True))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="chart">',
        f"<title>{escape(label)}</title><desc>{escape(description)}</desc>",
        f'<path class="area" d="M{x(low):.1f} {base}{steps}V{base}Z"/>',
        f'<path class="axis" d="M{_LEFT} {base}H{_WIDTH - _RIGHT}"/>',
    ]
    for tick in ticks:
        anchor = "start" if tick <= low else "end" if tick >= high else "middle"
        parts.append(f'<path class="axis" d="M{x(tick):.1f} {base}v4"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{base + 16}" text-anchor="{anchor}">{tick:g}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(label)}</text>')
    for value, name in marks:
        if low <= value <= high:
            outward = value > (low + high) / 2 if x(value) > 120 else True  # the name stands clear of the other marks
            side = ("start", 3) if outward and x(value) < _WIDTH - 120 else ("end", -3)
            parts.append(f'<path class="mark" d="M{x(value):.1f} {base}V{_TOP - 12}"/>')
            place = f'x="{x(value) + side[1]:.1f}" y="{_TOP - 6}" text-anchor="{side[0]}"'
            parts.append(f'<text class="name" {place}>{escape(name)}</text>')
    if outside >= 0.05:
        text = f"{outside:.1f} % lie outside"
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_TOP + 10}" text-anchor="end">{text}</text>')
    return "".join(parts) + "</svg>"


def grey_bar(window: tuple[float, float], unit: str, number: int) -> str:
    """A grey bar with the ends of its window; `number` makes its gradient's name unique on the page."""
    low, high = (f"{value:+g}" if window[0] < 0 else f"{value:g}" for value in window)
    low, high = (text.replace("-", "\u2212") for text in (low, high))
    return (
        f'<span class="scale">{low} <svg viewBox="0 0 110 12" class="bar" aria-hidden="true"><defs>'
        f'<linearGradient id="grey{number}"><stop offset="0" stop-color="#000"/><stop offset="1" stop-color="#fff"/>'
        f'</linearGradient></defs><rect x=".5" y=".5" width="109" height="11" fill="url(#grey{number})" stroke="#888"/>'
        f"</svg> {escape(f'{high} {unit}'.strip())}</span>"
    )
