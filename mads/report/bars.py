"""Horizontal bars, paired bars and means with error bars as inline SVG. Every mark carries its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mads.report.scale import FONT, Scale, escape, shorten, significant, text_width, tick_texts, ticks

WIDTH = 480.0


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its length, and the text at its end."""

    name: str
    value: float
    text: str


def _open(title: str, height: float) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}">'


def _name(name: str, edge: float, y: float) -> str:
    shown = shorten(name, edge - 4)
    text = f"<title>{escape(name)}</title>{escape(shown)}"
    return f'<text class="name" x="{edge - 8:.1f}" y="{y:.1f}" text-anchor="end">{text}</text>'


def _name_room(names: list[str]) -> float:
    return min(max(map(text_width, names)) + 10, WIDTH * 0.36)


def bar_chart(title: str, bars: list[Bar], style: int = 0) -> str:
    """One bar a row. Values must not be negative."""
    edge = _name_room([b.name for b in bars])
    x = Scale(0.0, max(max(b.value for b in bars), 1e-12), edge, WIDTH - max(text_width(b.text) for b in bars) - 12)
    parts, row = [_open(title, 24 * len(bars) + 4)], 24
    for i, bar in enumerate(bars):
        y = i * row + 3
        parts.append(_name(bar.name, edge, y + 14))
        length = max(0.0, x(bar.value) - edge)
        parts.append(f'<rect class="fill s{style}" x="{edge:.1f}" y="{y}" width="{length:.1f}" height="18"/>')
        parts.append(f'<text class="value" x="{x(bar.value) + 6:.1f}" y="{y + 14}">{escape(bar.text)}</text>')
    return "".join(parts) + "</svg>"


def share_bars(title: str, rows: list[tuple[str, float, float]]) -> str:
    """Chosen share as a filled bar over the pool's share as an outlined one; rows are (label, pool, chosen), shares in [0, 1]."""
    edge = _name_room([r[0] for r in rows])
    x = Scale(0.0, max(max(p, c) for _, p, c in rows) or 1.0, edge, WIDTH - 62)
    parts, row = [_open(title, 34 * len(rows) + 4)], 34
    for i, (name, pool, chosen) in enumerate(rows):
        y = i * row + 3
        parts.append(_name(name, edge, y + 18))
        for value, css, word, top in ((chosen, "fill s0", "chosen", y), (pool, "outline", "pool", y + 15)):
            parts.append(
                f'<rect class="{css}" x="{edge:.1f}" y="{top}" width="{max(0.0, x(value) - edge):.1f}" height="11">'
                f"<title>{escape(name)}: {word} {value:.2%}</title></rect>"
            )
            parts.append(f'<text class="value tiny" x="{x(value) + 6:.1f}" y="{top + 9.5}">{value:.1%}</text>')
    return "".join(parts) + "</svg>"


def interval_chart(title: str, rows: list[tuple[str, float, float | None]], x_label: str) -> str:
    """A dot at each mean with a bar of its half-width (one standard error, say) to both sides, and a line at zero.

    rows: (label, mean, half-width); the width is None where it is not known
    """
    edge = _name_room([r[0] for r in rows])
    ends = [m + sign * (half or 0.0) for _, m, half in rows for sign in (-1, 1)]
    x = Scale.over(ends, edge + 6, WIDTH - 16, 0.04, (0.0,))
    bottom = 21.0 * len(rows) + 6
    parts = [_open(title, bottom + 40)]
    values = ticks(x.low, x.high, 4)
    for v, text in zip(values, tick_texts(values)):
        parts.append(f'<line class="grid" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="0" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(v):.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{bottom}"/>')
    for i, (name, mean, half) in enumerate(rows):
        y = i * 21 + 14
        parts.append(_name(name, edge, y + 4))
        hover = f"<title>{escape(name)}: {significant(mean)}</title>"
        if half is not None:
            parts.append(f'<line class="error s0" x1="{x(mean - half):.1f}" x2="{x(mean + half):.1f}" y1="{y}" y2="{y}"/>')
            hover = f"<title>{escape(name)}: {significant(mean)} ± {significant(half)}</title>"
        parts.append(f'<circle class="mark s0" cx="{x(mean):.1f}" cy="{y}" r="4">{hover}</circle>')
    middle, base = (x.start + x.end) / 2, bottom + 14 + FONT + 5
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{base}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts) + "</svg>"


def histogram(title: str, edges: Sequence[float], counts: Sequence[int], x_label: str) -> str:
    """Counts over [edges[i], edges[i + 1]) as upright bars on one axis; each bar's numbers are in its hover text."""
    x = Scale(float(edges[0]), float(edges[-1]), 10.0, WIDTH - 10)
    bottom, top, most = 150.0, 20.0, max(max(counts), 1)
    parts = [_open(title, bottom + 40)]
    for low, high, count in zip(edges, edges[1:], counts):
        height = (bottom - top) * count / most
        hover = f"<title>{significant(low)} to {significant(high)}: {count:,}</title>"
        width = max(x(high) - x(low) - 0.8, 0.5)
        parts.append(
            f'<rect class="fill s0" x="{x(low):.1f}" y="{bottom - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"{hover}</rect>"
        )
        if count == most:
            middle = min(max((x(low) + x(high)) / 2, 40), WIDTH - 40)
            parts.append(f'<text class="value tiny" x="{middle:.1f}" y="{top - 6}" text-anchor="middle">{count:,}</text>')
    parts.append(f'<line class="rule" x1="{x(edges[0]):.1f}" x2="{x(edges[-1]):.1f}" y1="{bottom}" y2="{bottom}"/>')
    values = ticks(float(edges[0]), float(edges[-1]), 6)
    for v, text in zip(values, tick_texts(values)):
        parts.append(f'<text class="tick" x="{x(v):.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    parts.append(f'<text class="axis" x="{WIDTH / 2}" y="{bottom + 32}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts) + "</svg>"
