"""The axes that line and scatter charts share: grid, ticks and labels."""

from __future__ import annotations

from mads.report.scale import Scale, escape, text_width, tick_texts, ticks


def axes(x: Scale, y: Scale, x_label: str, y_label: str, small: bool = False, integer_x: bool = False) -> str:
    """SVG of a horizontal grid with its ticks, the rule at the bottom and both labels; y runs upwards from y.start."""
    parts = [f'<text class="axis" x="2" y="14">{escape(y_label)}</text>']
    values = ticks(y.low, y.high, 3 if small else 5)
    for v, text in zip(values, tick_texts(values)):
        parts.append(f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>')
        parts.append(f'<text class="tick" x="{x.start - 6:.1f}" y="{y(v) + 4:.1f}" text-anchor="end">{text}</text>')
    for v, text in _x_ticks(x, small, integer_x):
        parts.append(f'<line class="rule" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{y.start:.1f}" y2="{y.start + 4:.1f}"/>')
        parts.append(f'<text class="tick" x="{x(v):.1f}" y="{y.start + 17:.1f}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="rule" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start:.1f}" y2="{y.start:.1f}"/>')
    middle, base = (x.start + x.end) / 2, y.start + 33
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{base:.1f}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _x_ticks(x: Scale, small: bool, integer: bool) -> list[tuple[float, str]]:
    """As many ticks as fit side by side in the larger type of a narrow screen."""
    for count in range(2 if small else 6, 0, -1):
        values = ticks(x.low, x.high, count, integer)
        texts = tick_texts(values)
        room = x(values[1]) - x(values[0]) if len(values) > 1 else float("inf")
        if max(map(text_width, texts), default=0.0) * 1.12 + 8 <= room:
            break
    return list(zip(values, texts))
