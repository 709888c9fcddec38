"""Scatter charts of two costs as inline SVG: every dot carries its name, and a line joins those that nothing beats in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mads.report.axes import axes
from mads.report.lines import colour, marker
from mads.report.scale import FONT, Scale, escape, fixed, text_width

WIDTH, HEIGHT = 600.0, 400.0
_GAP = 7.0  # px between a dot and its name


@dataclass(frozen=True)
class Dot:
    """A point with the half-widths of its error bars; None: no bar."""

    name: str
    x: float
    y: float
    x_error: float | None = None
    y_error: float | None = None


@dataclass(frozen=True)
class _Box:
    """A rectangle in px, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        """Common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)


def frontier(dots: Sequence[Dot]) -> list[Dot]:
    """The dots that no other one beats: one that is as small in both and smaller in one. In the order of x."""
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda d: (d.x, d.y)):
        if not found or dot.y < found[-1].y or (dot.x, dot.y) == (found[-1].x, found[-1].y):
            found.append(dot)
    return found


def scatter_chart(title: str, dots: Sequence[Dot], x_label: str, y_label: str) -> str:
    """The chart as SVG; of both axes less is better. Equal places in `dots` have equal colours and marks as lines have.

    Raises:
        ValueError: without dots.
    """
    if not dots:
        raise ValueError(f"chart {title!r} has no dots; say so in words instead of drawing it")
    left, top, bottom, right = 50.0, 28.0, HEIGHT - 40, WIDTH - 14
    x = Scale.over([d.x + sign * (d.x_error or 0.0) for d in dots for sign in (-1, 1)], left, right, 0.08)
    y = Scale.over([d.y + sign * (d.y_error or 0.0) for d in dots for sign in (-1, 1)], bottom, top, 0.08)
    best = frontier(dots)
    edge = _edge([(x(d.x), y(d.y)) for d in best])
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in edge)
    line = f'<polyline class="outline" data-frontier="{escape(" ".join(d.name for d in best))}" points="{path}"/>'
    parts = [axes(x, y, x_label, y_label), line]
    centres = [(x(d.x), y(d.y)) for d in dots]
    boxes = _places(centres, [d.name for d in dots], edge, _Box(left, 18.0, WIDTH, bottom))
    for i, dot in enumerate(dots):
        parts += _bars(dot, i, x, y)
        parts.append(marker(i, x(dot.x), y(dot.y), f"{dot.name}: {fixed(dot.x, 4)}, {fixed(dot.y, 4)}", 4.0))
    for i, (dot, box, centre) in enumerate(zip(dots, boxes, centres)):
        parts.append(_leader(box, centre, i))
        parts.append(f'<text class="label {colour(i)}" x="{box.left:.1f}" y="{box.bottom - 3.5:.1f}">{escape(dot.name)}</text>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _edge(best: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The edge of what is beaten: from one place of the frontier to the right, then down to the next."""
    corners = [best[0]]
    for a, b in best[1:]:
        corners += [(a, corners[-1][1]), (a, b)]
    return corners


def _bars(dot: Dot, style: int, x: Scale, y: Scale) -> Iterator[str]:
    css = f'class="leader {colour(style)}"'
    if dot.x_error:
        low, high = x(dot.x - dot.x_error), x(dot.x + dot.x_error)
        yield f'<line {css} x1="{low:.1f}" x2="{high:.1f}" y1="{y(dot.y):.1f}" y2="{y(dot.y):.1f}"/>'
    if dot.y_error:
        low, high = y(dot.y - dot.y_error), y(dot.y + dot.y_error)
        yield f'<line {css} x1="{x(dot.x):.1f}" x2="{x(dot.x):.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'


def _leader(box: _Box, centre: tuple[float, float], style: int) -> str:
    """A line from a dot to a name that does not stand next to it."""
    (a, b), end = centre, (box.top + box.bottom) / 2
    if abs(end - b) < 1.5 * FONT:
        return ""
    side = min((box.left, box.right, (box.left + box.right) / 2), key=lambda place: abs(place - a))
    return f'<line class="leader {colour(style)}" x1="{a:.1f}" y1="{b:.1f}" x2="{side:.1f}" y2="{end:.1f}"/>'


def _places(
    centres: Sequence[tuple[float, float]], names: Sequence[str], edge: Sequence[tuple[float, float]], room: _Box
) -> list[_Box]:
    """Where each name goes: of the places around its dot the one that covers least of dots, of the edge, of names before it, and
    of what lies outside; the first of equal ones."""
    taken = [_Box(a - 5, b - 5, a + 5, b + 5) for a, b in centres]
    taken += [_Box(a - 1, min(b, d) - 1, c + 1, max(b, d) + 1) for (a, b), (c, d) in zip(edge, edge[1:])]
    found = []
    for (a, b), name in zip(centres, names):
        options = list(_around(a, b, text_width(name, bold=True)))
        cost = [sum(box.overlap(t) for t in taken) + (box.area - box.overlap(room)) for box in options]
        best = options[cost.index(min(cost))]
        found.append(best)
        taken.append(best)
    return found


def _around(a: float, b: float, width: float) -> Iterator[_Box]:
    height = FONT + 2
    for level in (0.0, -0.8, 0.8, -1.6, 1.6, -2.4, 2.4, -3.2, 3.2, -4.0, 4.0):  # beside the dot, then higher or lower
        middle = b + level * height
        yield _Box(a + _GAP, middle - height / 2, a + _GAP + width, middle + height / 2)
        yield _Box(a - _GAP - width, middle - height / 2, a - _GAP, middle + height / 2)
        if abs(level) > 0.5:  # above, below
            yield _Box(a - width / 2, middle - height / 2, a + width / 2, middle + height / 2)
