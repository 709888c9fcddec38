"""Scales, ticks, number formats and label placement shared by the charts."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

FONT = 12.0  # px in the drawing's own units


def escape(text: object) -> str:
    """Text safe inside HTML and inside a double-quoted attribute."""
    return html.escape(str(text), quote=True)


def text_width(text: str, size: float = FONT, bold: bool = False) -> float:
    """Width of a text in a system sans-serif font, on the safe side (DejaVu is the widest of the page's fonts)."""
    latin = 0.69 if bold else 0.61
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else latin for c in text) * size


def shorten(text: str, width: float, size: float = FONT, bold: bool = False) -> str:
    """Cut to a width, with an ellipsis; the caller keeps the full text in a <title>."""
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text + "…"


def fixed(value: float, decimals: int = 3) -> str:
    """Fixed decimals with a true minus sign and no negative zero."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def significant(value: float) -> str:
    """Three significant digits, with a true minus sign."""
    return f"{value:.3g}".replace("-", "−")


def compact(value: float, digits: int = 3) -> str:
    """1200000 -> 1.2M; the shortest form with at most `digits` significant digits."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def ticks(low: float, high: float, count: int = 5, integer: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    if integer:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_texts(values: list[float]) -> list[str]:
    """One format for all ticks of an axis, with as many decimals as their step needs."""
    largest = max((abs(v) for v in values), default=0.0)
    if largest >= 1000:
        return _told_apart(values, lambda v, extra: compact(v, 3 + extra))
    step = min((b - a for a, b in zip(values, values[1:])), default=abs(largest))
    if largest and step < 1e-3:
        return _told_apart(values, lambda v, extra: f"{v:.{extra}e}".replace("-", "−") if v else "0")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    return [fixed(v, decimals) for v in values]


def _told_apart(values: list[float], text: Callable[[float, int], str]) -> list[str]:
    """The shortest texts that differ wherever the values do."""
    for extra in range(12):
        texts = [text(v, extra) for v in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


@dataclass(frozen=True)
class Scale:
    """Linear map from data [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: list[float], start: float, end: float, pad: float = 0.0, include: tuple[float, ...] = ()) -> Scale:
        low, high = min([*values, *include]), max([*values, *include])
        room = (high - low) * pad if high > low else max(abs(high) * 0.05, 1e-12 if high else 1.0)
        if high > low:
            return cls(low - (0 if low in include else room), high + (0 if high in include else room), start, end)
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions nearest the wanted ones, in the same order, at least `gap` apart and inside [low, high] where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap if placed else low))
    limit = high
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = limit = min(placed[k], limit)
        limit -= gap
    result = [0.0] * len(wanted)
    for i, y in zip(order, placed):
        result[i] = y
    return result
