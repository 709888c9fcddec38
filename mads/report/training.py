"""Sections about learning: the headline figures and the losses by tokens, this run and those it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mads.logging.progress import duration
from mads.report.lines import LineChart, Series, key, thin
from mads.report.page import figure, paragraph, table
from mads.report.read import SELECTION_PHASES, Point, Run
from mads.report.scale import compact, escape

TAIL = 10  # log lines behind "final" training loss: single lines are noisy
ZOOM = 4  # a second-half panel needs this many points
PANEL_START = 0.2  # small panels leave out the first fall of the loss, which hides every difference


def nats(value: float) -> str:
    """A loss for reading."""
    return f"{value:.3f}"


def tokens(value: float) -> str:
    """A number of tokens for reading."""
    return f"{compact(value)} tokens"


def final_loss(run: Run) -> float | None:
    """Mean training loss of the last log lines."""
    tail = [y for _, y in run.curve("train", "loss")[-TAIL:]]
    return sum(tail) / len(tail) if tail else None


def last(points: list[Point]) -> float | None:
    """The last value of a curve, if it has one."""
    return points[-1][1] if points else None


def overhead(run: Run) -> float | None:
    """Share of the wall time spent choosing data, rewards and all; None without timings."""
    whole = [line["selection_seconds"] for line in run.train if "selection_seconds" in line]
    if whole and run.wall_seconds:
        return sum(whole) / run.wall_seconds
    phases = run.phase_seconds()
    if not phases or not run.wall_seconds:
        return None
    return sum(phases.get(p, 0.0) for p in SELECTION_PHASES) / run.wall_seconds


def at_equal_tokens(first: list[Point], second: list[Point]) -> tuple[float, float, float] | None:
    """(tokens, first's value, second's value) at the largest token count that both curves reach.

    Two runs are evaluated at equal steps, whose token counts differ a little because rows fill differently: the curve that goes
    further is interpolated linearly. None if a curve is empty or the place is the start.
    """
    if not first or not second:
        return None
    place = min(first[-1][0], second[-1][0])
    if place <= 0:
        return None
    return place, *(float(np.interp(place, *zip(*curve))) for curve in (first, second))


def _show(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def headline(runs: list[Run]) -> str:
    """Title, what ran, and the result figures; differences to other runs at equal tokens."""
    run = runs[0]
    model = run.config.get("model") or {}
    what = [
        f"selection {run.selection or 'unknown'}",
        f"{run.steps} steps",
        tokens(run.tokens),
        f"{duration(run.wall_seconds)} wall time",
    ]
    if model.get("num_layers") and model.get("hidden_size"):
        what.insert(1, f"{model['num_layers']} layers of width {model['hidden_size']}")
    if run.environment:
        what.append(f"{run.environment.get('world_size')} × {run.environment.get('device')}")
    state = "" if run.end else paragraph("The run has no end line: it is still going on, or it was stopped.", "note")
    tiles = [
        (
            "Training loss",
            _show(final_loss(run), nats),
            f"nats per token, mean of the last {min(TAIL, len(run.train))} log lines",
        ),
        ("Held-out loss", _show(last(run.curve("eval", "heldout_mean")), nats), "nats per token, mean over domains"),
        ("Reference loss", _show(last(run.curve("eval", "references_mean")), nats), "nats per token, mean over tasks"),
        ("Time for selection", _show(overhead(run), lambda v: f"{v:.1%}"), "of the wall time"),
        ("Peak memory", _show(_peak(run), lambda v: f"{v / 1024:.2f} GiB"), "per process"),
    ]
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles)
    content = f'<h1>{escape(run.name)}</h1><p class="lead">{escape(" · ".join(what))}</p>{state}<dl class="tiles">{cells}</dl>'
    return content + (_comparison(runs) if len(runs) > 1 else "")


def _peak(run: Run) -> float | None:
    known = [v["memory_mib"] for v in run.train if v.get("memory_mib")] + [(run.end or {}).get("peak_memory_mib") or 0.0]
    return max(known) or None


def _comparison(runs: list[Run]) -> str:
    head = [
        "run",
        "selection",
        "steps",
        "tokens",
        "training loss",
        "held-out",
        "references",
        "wall time",
        "tokens/s",
        "selection time",
    ]
    rows = []
    for run in runs:
        speed = [y for _, y in run.curve("train", "tokens_per_second")]
        rows.append(
            [
                run.name,
                run.selection or "unknown",
                str(run.steps),
                compact(run.tokens),
                _show(final_loss(run), nats),
                _show(last(run.curve("eval", "heldout_mean")), nats),
                _show(last(run.curve("eval", "references_mean")), nats),
                duration(run.wall_seconds),
                _show(sum(speed) / len(speed) if speed else None, compact),
                _show(overhead(run), lambda v: f"{v:.1%}"),
            ]
        )
    sentences = []
    for other in runs[1:]:
        for word, name in (("held-out", "heldout_mean"), ("reference", "references_mean")):
            pair = at_equal_tokens(runs[0].curve("eval", name), other.curve("eval", name))
            if pair:
                place, mine, theirs = pair
                verb = "below" if mine < theirs else "above" if mine > theirs else "away from"
                sentences.append(
                    f"At {tokens(place)} the mean {word} loss of {runs[0].name} is {abs(mine - theirs):.3f} nats {verb} "
                    f"that of {other.name} ({mine:.3f} against {theirs:.3f})."
                )
    if not sentences:
        return table(head, rows) + paragraph(
            "The runs share no token count at which both were evaluated, so their losses are not compared here.", "note"
        )
    listed = "".join(f"<li>{escape(s)}</li>" for s in sentences)
    caution = paragraph("One run each: a difference between two runs is not yet a result.", "note")
    return f"{table(head, rows)}<ul>{listed}</ul>{caution}"


def keys(runs: list[Run]) -> str:
    """Which style is which run; shown above small multiples."""
    items = "".join(f"<li>{key(i)}{escape(run.name)}</li>" for i, run in enumerate(runs))
    return f'<ul class="keys">{items}</ul>' if len(runs) > 1 else ""


def _series(runs: list[Run], kind: str, *path: str) -> list[Series]:
    return [Series(run.name, run.curve(kind, *path), i) for i, run in enumerate(runs)]


def loss_chart(title: str, series: list[Series], small: bool = False) -> str:
    """A chart of losses over tokens."""
    return LineChart(title, series, "tokens", "nats per token", tokens, nats, small=small).svg()


def _late(series: list[Series], start: float) -> list[Series]:
    """The points from a share of the longest run's tokens on; a line that would vanish keeps its last point."""
    end = max((p[0] for s in series for p in s.points), default=0.0)
    return [Series(s.name, [p for p in s.points if p[0] >= start * end] or s.points[-1:], s.style) for s in series]


def _with_zoom(title: str, series: list[Series], caption: str = "") -> str:
    """The whole curve, and beside it the second half on a scale of its own, where runs can be told apart."""
    late = _late(series, 0.5)
    charts = figure(title, loss_chart(title, series), caption)
    if max(len(s.points) for s in late) >= ZOOM:
        charts += figure(
            f"{title}, second half", loss_chart(f"{title}, second half", late), "The same lines on a scale of their own."
        )
    return f'<div class="pair">{charts}</div>'


def loss_section(runs: list[Run]) -> str:
    """The training loss of every run."""
    series = _series(runs, "train", "loss")
    if not any(s.points for s in series):
        return paragraph("No log line with a finite training loss was written.")
    lost = sum(len(r.train) for r in runs) - sum(len(s.points) for s in series)
    bucket = max(thin(s.points)[1] for s in series)
    notes = ["Mean over the valid tokens of each logged global batch."]
    notes += [f"Long curves are drawn as means of {bucket} log lines."] if bucket > 1 else []
    notes += [f"{lost} log lines without a finite loss are left out."] if lost else []
    missing = [r.name for r, s in zip(runs, series) if not s.points]
    notes += [f"No training loss was logged by {', '.join(missing)}."] if missing else []
    return _with_zoom("Training loss", series, " ".join(notes))


def eval_section(runs: list[Run], group: str, mean: str, what: str, each: str) -> str:
    """Held-out loss (group "heldout") or reference loss: the mean, then one panel per domain or task."""
    names = list(dict.fromkeys(n for run in runs for n in run.eval_names(group)))
    series = _series(runs, "eval", mean)
    if not names and not any(s.points for s in series):
        return paragraph(f"No {what} was measured in {'these runs' if len(runs) > 1 else 'this run'}.")
    parts = []
    missing = [r.name for r, s in zip(runs, series) if not s.points]
    if missing:
        parts.append(paragraph(f"{', '.join(missing)} measured no mean {what}.", "note"))
    if any(s.points for s in series):
        parts.append(_with_zoom(f"Mean {what}", series, f"Equal-weight mean over {len(names)} {each}s."))
    panels = []
    for name in names:
        lines = _late(_series(runs, "eval", group, name), PANEL_START)
        panels.append(
            figure(name, loss_chart(f"{what}: {name}", lines, small=True))
            if any(s.points for s in lines)
            else figure(name, paragraph("No finite value.", "note"))
        )
    if panels:
        note = paragraph(
            f"From {PANEL_START:.0%} of the tokens on, each panel on a scale of its own; the numbers are the last values.",
            "note",
        )
        parts.append(f'<h3>By {each}</h3>{note}{keys(runs)}<div class="multiples">{"".join(panels)}</div>')
    return "".join(parts)
