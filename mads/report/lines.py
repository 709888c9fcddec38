"""Line charts as inline SVG: direct labels at the line ends, so that no reader depends on colour or on a legend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mads.report.axes import axes
from mads.report.read import Point
from mads.report.scale import FONT, Scale, escape, shorten, spread, text_width

STYLES = 7  # colours of the style sheet
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKERS = ("circle", "square", "triangle", "diamond")
MARKED = 24  # a line with at most this many points shows each of them
DRAWN = 800  # a longer line is thinned to bucket means


@dataclass(frozen=True)
class Series:
    """One line: its label, (x, y) points in the order of x, and the number of its style (equal numbers look alike everywhere).

    band: (x, low, high) of an area around the line, in the order of x
    """

    name: str
    points: list[Point]
    style: int = 0
    band: list[tuple[float, float, float]] = field(default_factory=list)


def thin(points: list[Point], limit: int = DRAWN) -> tuple[list[Point], int]:
    """At most `limit` points, each the mean of k neighbours; returns them and k (1: untouched)."""
    k = -(-len(points) // limit)
    if k <= 1:
        return points, 1
    buckets = [points[i : i + k] for i in range(0, len(points), k)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets], k


def colour(style: int) -> str:
    """CSS class of the n-th series."""
    return f"s{style % STYLES}"


def dash(style: int) -> str:
    """A dash pattern that goes with the style: lines of one colour still differ."""
    pattern = DASHES[(style % STYLES + style // STYLES) % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def marker(style: int, x: float, y: float, title: str = "", size: float = 3.2) -> str:
    """A small symbol, filled in the series' colour; `title` is shown on hover."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    shape = MARKERS[(style % STYLES + style // STYLES) % len(MARKERS)]
    css = f'class="mark {colour(style)}"'
    if shape == "circle":
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="{size}">{inner}</circle>'
    if shape == "square":
        return f'<rect {css} x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}">{inner}</rect>'
    r = size * 1.35
    corners = [(0, -r), (r, r * 0.8), (-r, r * 0.8)] if shape == "triangle" else [(0, -r), (r, 0), (0, r), (-r, 0)]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon {css} points="{points}">{inner}</polygon>'


def key(style: int) -> str:
    """The sample of a style, for use in running text and table cells."""
    line = f'<line class="line {colour(style)}" x1="1" y1="6" x2="29" y2="6"{dash(style)}/>'
    return f'<svg class="key" width="30" height="12" viewBox="0 0 30 12" aria-hidden="true">{line}{marker(style, 15, 6)}</svg>'


@dataclass(frozen=True)
class LineChart:
    """A chart of `series`; `svg()` gives the markup.

    x_label, y_label: axes with units
    x_text, y_text: values for readers (hover texts and end labels)
    small: a panel of small multiples: end labels carry the value only, and the key stands outside
    y_include: values the y axis must reach (0 for shares)
    """

    title: str
    series: list[Series]
    x_label: str
    y_label: str
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    small: bool = False
    integer_x: bool = False
    y_include: tuple[float, ...] = ()

    def svg(self) -> str:
        """The chart as SVG.

        Raises:
            ValueError: if no series has a point.
        """
        drawn = [s for s in self.series if s.points]
        if not drawn:
            raise ValueError(f"chart {self.title!r} has no points; say so in words instead of drawing it")
        width = 240.0 if self.small else 480.0
        labels = [self._label(s) for s in drawn]
        right = min(max(text_width(t, bold=True) for t in labels), width * 0.4) + 18
        height = 170.0 if self.small else max(280.0, 70 + 15.5 * len(drawn))
        left, top, bottom = 46.0, 28.0, height - 40
        x = Scale.over([p[0] for s in drawn for p in s.points], left, width - right)
        values = [p[1] for s in drawn for p in s.points] + [v for s in drawn for b in s.band for v in b[1:]]
        y = Scale.over(values, bottom, top, 0.05, self.y_include)
        parts = [axes(x, y, self.x_label, self.y_label, self.small, self.integer_x)]
        parts += [self._band(s, x, y) for s in drawn if s.band]
        parts += [self._line(s, x, y) for s in drawn]
        parts += self._end_labels(drawn, labels, x, y, width - right, right - 18)
        return (
            f'<svg class="chart{" small" if self.small else ""}" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-label="{escape(self.title)}">{"".join(parts)}</svg>'
        )

    def _label(self, series: Series) -> str:
        value = self.y_text(series.points[-1][1])
        return value if self.small else f"{series.name} {value}"

    def _band(self, series: Series, x: Scale, y: Scale) -> str:
        edge = [(a, high) for a, _, high in series.band] + [(a, low) for a, low, _ in reversed(series.band)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in edge)
        return f'<polygon class="band {colour(series.style)}" data-series="{escape(series.name)}" points="{path}"/>'

    def _line(self, series: Series, x: Scale, y: Scale) -> str:
        points, k = thin(series.points)
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        out = [
            f'<polyline class="line {colour(series.style)}" data-series="{escape(series.name)}" data-mean-of="{k}" '
            f'points="{path}"{dash(series.style)}><title>{escape(series.name)}</title></polyline>'
        ]
        shown = points if len(points) <= MARKED else points[-1:]
        for a, b in shown:
            out.append(
                marker(
                    series.style, x(a), y(b), f"{series.name}: {self.y_text(b)} at {self.x_text(a)}", 2.4 if self.small else 3.2
                )
            )
        return "".join(out)

    def _end_labels(self, drawn: list[Series], labels: list[str], x: Scale, y: Scale, edge: float, room: float) -> list[str]:
        places = spread([y(s.points[-1][1]) for s in drawn], FONT + 1.5, y.end - 4, y.start)
        parts = []
        for series, text, place in zip(drawn, labels, places):
            end_x, end_y = x(series.points[-1][0]), y(series.points[-1][1])
            parts.append(
                f'<line class="leader {colour(series.style)}" x1="{end_x + 4:.1f}" y1="{end_y:.1f}" '
                f'x2="{edge + 12:.1f}" y2="{place:.1f}"/>'
            )
            parts.append(
                f'<text class="label {colour(series.style)}" x="{edge + 14:.1f}" y="{place + 4:.1f}">'
                f"<title>{escape(text)}</title>{escape(self._fit(series, text, room))}</text>"
            )
        return parts

    def _fit(self, series: Series, text: str, room: float) -> str:
        """The label within its room: the name is cut before the value is."""
        if text_width(text, bold=True) <= room or self.small:
            return text
        value = self.y_text(series.points[-1][1])
        return f"{shorten(series.name, room - text_width(' ' + value, bold=True), bold=True)} {value}"
