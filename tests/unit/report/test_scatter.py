"""Scatter charts: the frontier against every pair of dots, places and names read back from the markup."""

import re

import numpy as np
import pytest

from mads.report.scatter import HEIGHT, WIDTH, Dot, frontier, scatter_chart


def _dots(seed, n=12, whole=False):
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 4, (n, 2)) if whole else rng.normal(size=(n, 2))
    return [Dot(f"strategy{i}", float(a), float(b)) for i, (a, b) in enumerate(places)]


def check_frontier(whole):
    for seed in range(30):
        dots = _dots(seed, whole=whole)
        beaten = {d.name for d in dots for e in dots if e.x <= d.x and e.y <= d.y and (e.x < d.x or e.y < d.y)}
        best = frontier(dots)
        assert {d.name for d in best} == {d.name for d in dots} - beaten
        assert [d.x for d in best] == sorted(d.x for d in best)


@pytest.mark.parametrize("whole", [False, True])
def test_the_frontier_holds_what_nothing_beats(whole):
    """whole: places that many dots share, in one coordinate or both."""
    check_frontier(whole)


def _marks(svg):
    """Name -> place of its mark, in px, by the middle of the shape's corners; hover text tells the name."""
    found = {}
    for shape, title in re.findall(r"<((?:circle|rect|polygon) class=\"mark[^>]*)><title>([^<]*)</title>", svg):
        name, numbers = title.split(":")[0], [float(v) for v in re.findall(r'(?:cx|cy|x|y|width|height|r)="([-\d.]+)"', shape)]
        if shape.startswith("circle"):
            found[name] = numbers[0], numbers[1]
        elif shape.startswith("rect"):
            found[name] = numbers[0] + numbers[2] / 2, numbers[1] + numbers[3] / 2
        else:
            corners = np.array([p.split(",") for p in re.search(r'points="([^"]*)"', shape)[1].split()], float)
            found[name] = tuple((corners.min(axis=0) + corners.max(axis=0)) / 2)
    return found


def test_dots_lie_where_the_axes_have_their_numbers():
    dots = _dots(1)
    svg = scatter_chart("two costs", dots, "x", "y")
    places = _marks(svg)
    assert set(places) == {d.name for d in dots}
    for axis in (0, 1):
        values = np.array([(d.x, d.y)[axis] for d in dots])
        px = np.array([places[d.name][axis] for d in dots])
        slope, start = np.polyfit(values, px, 1)
        assert np.abs(slope * values + start - px).max() < 1.5  # corners of triangles are not around their middle
        assert (slope > 0) == (axis == 0)
        pattern = (
            r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">([^<]*)<'
            if axis == 0
            else (r'class="tick" x="[\d.]+" y="([\d.]+)" text-anchor="end">([^<]*)<')
        )
        ticks = [(float(place), float(text.replace("−", "-"))) for place, text in re.findall(pattern, svg)]
        below = 4 * axis  # a tick's text on the upright axis stands so far below its line
        assert len(ticks) >= 3 and all(abs(slope * value + start + below - place) < 1.5 for place, value in ticks)


@pytest.mark.parametrize("seed", range(10))
def test_names_stay_inside_and_off_each_other(seed):
    svg = scatter_chart("two costs", _dots(seed), "x", "y")
    names = re.findall(r'class="label s\d" x="([-\d.]+)" y="([-\d.]+)">([^<]*)<', svg)
    assert len(names) == 12
    boxes = [(float(x), float(y) - 10, float(x) + 6.0 * len(name), float(y)) for x, y, name in names]  # what the letters take
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left and right <= WIDTH and 0 <= top and bottom <= HEIGHT
        for other in boxes[:i]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def test_error_bars_are_drawn_only_where_there_are_errors():
    with_bars = [Dot("a", 1.0, 1.0, 0.5, 0.25), Dot("b", 3.0, 2.0)]
    svg = scatter_chart("two costs", with_bars, "x", "y")
    bars = re.findall(r'class="leader s0" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', svg)
    assert len(bars) == 2 and 'class="leader s1"' not in svg
    a, b = _marks(svg)["a"], _marks(svg)["b"]
    wide, high = [float(v) for v in bars[0]], [float(v) for v in bars[1]]
    assert wide[1] - wide[0] == pytest.approx((b[0] - a[0]) / 2, abs=0.8)
    assert abs(high[3] - high[2]) == pytest.approx((a[1] - b[1]) / 2, abs=0.8)


def test_one_dot_is_a_chart_and_none_is_an_error():
    assert 'data-frontier="only"' in scatter_chart("one", [Dot("only", 2.0, 2.0)], "x", "y")
    with pytest.raises(ValueError, match="no dots"):
        scatter_chart("none", [], "x", "y")


def test_names_are_escaped():
    assert "a&lt;b" in scatter_chart("a", [Dot("a<b", 1.0, 1.0)], "x", "y")
