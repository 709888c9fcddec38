"""One frame of the view: a run in a terminal of some width and height. Text of the files is shown, never obeyed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mads.console.record import LabelRecord
from mads.logging.progress import count, duration, printable
from mads.watch.follow import Follower, number

QUIET_S = 120.0  # longer without a line: said
PHASES = 5
LEVELS = {True: "▁▂▃▄▅▆▇█", False: "_.:-=+*#"}  # with Unicode, without
FULL = {True: "█", False: "#"}


def word(text: Any) -> str:
    """Text of a file on one line, control characters spelt out."""
    return printable(str(text)).replace("\n", "\\n")


def bar(share: float | None, width: int, unicode: bool) -> str:
    """`share` of `width` characters; at least one for what is not 0."""
    if not share or share < 0:
        return ""
    return FULL[unicode] * min(width, max(1, round(share * width)))


def signed_bar(value: float | None, scale: float, half: int, unicode: bool) -> str:
    """Left of the middle for negative values, right of it for others; `scale` fills a half."""
    share = 0.0 if value is None or not scale else value / scale
    return f"{bar(-share, half, unicode):>{half}}|{bar(share, half, unicode):<{half}}"


def spark(values: Sequence[float], width: int, unicode: bool, low: float | None = None, high: float | None = None) -> str:
    """A line of characters by height, each the mean of its part of the values; from `low` to `high`, or theirs."""
    if not values:
        return ""
    width = min(width, len(values))
    cuts = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:])]
    low, high = min(means) if low is None else low, max(means) if high is None else high
    levels = LEVELS[unicode]
    place = [(m - low) / (high - low) if high > low else 0.5 for m in means]
    return "".join(levels[min(len(levels) - 1, max(0, int(p * len(levels))))] for p in place)


def show(value: Any, form: str = ".4f", unit: str = "") -> str:
    """A number, or a dash for what is none."""
    found = number(value)
    return "-" if found is None else f"{found:{form}}{unit}"


def frame(run: Follower, now: float, height: int | None = None, unicode: bool = True) -> RenderableType:
    """The run as it is in `run`.

    Args:
        now: seconds since 1970.
        height: lines that there is room for; labels in the middle of long lists are left out. None: 12 of each agent.
    """
    parts: list[RenderableType] = [_head(run, now, unicode), "", _numbers(run, unicode), "", _phases(run, unicode)]
    if run.decision is not None:
        agents = run.decision.labels
        used = 14 + min(PHASES, len(run.metrics.seconds)) + len(run.theta) + len(run.decision.notes)
        rows = 12 if height is None else max(2, (height - used) // max(1, len(agents)) - 1)
        parts += ["", _decision(run, unicode), _labels(run, rows, unicode)]
        parts += [Text(f"note: {word(note)}", overflow="ellipsis", no_wrap=True) for note in run.decision.notes]
    return Group(*parts)


def _state(run: Follower, now: float) -> str:
    if run.metrics.end is not None:
        return "finished"
    if run.written is None:
        return "no line yet"
    age = max(0.0, now - run.written)
    return f"last line {duration(age)} ago" + (": stopped, or in a long phase" if age > QUIET_S else "")


def _head(run: Follower, now: float, unicode: bool) -> RenderableType:
    metrics, total = run.metrics, number(run.setting("train", "steps"))
    selection = run.setting("selection", "name") or (run.decision.selection if run.decision else "unknown")
    title = Text(word(run.name), style="bold", overflow="ellipsis", no_wrap=True)
    state = Text(f"{_state(run, now)}, selection {word(selection)}", overflow="ellipsis", no_wrap=True)
    share = metrics.step / total if total else None
    eta = metrics.eta_seconds(total)
    progress = (
        f"step {metrics.step:.0f}/{show(total, '.0f')}  {bar(share, 20, unicode):<20} {show(share, '.0%')}  "
        f"{count(metrics.tokens)} tokens  {duration(max(metrics.wall_seconds, number((metrics.end or {}).get('seconds')) or 0))}"
        + (f"  ETA {duration(eta)}" if eta is not None else "")
    )
    return Group(title, state, Text(progress, overflow="ellipsis", no_wrap=True))


def _numbers(run: Follower, unicode: bool) -> RenderableType:
    metrics, train, evaluation = run.metrics, run.metrics.train, run.metrics.evaluation
    recent = metrics.losses[-10:]
    memory = number(train.get("memory_mib"))
    speed = [
        f"{count(number(train.get('tokens_per_second')) or 0.0)} tokens/s",
        f"{show(train.get('step_seconds'), '.3g')} s a step",
        *([f"MFU {train['mfu']:.1%}"] if number(train.get("mfu")) is not None else []),
        *([f"{memory / 1024:.2f} GiB"] if memory is not None else []),
    ]
    means = f"held-out {show(evaluation.get('heldout_mean'))}  references {show(evaluation.get('references_mean'))}"
    mean = show(sum(recent) / len(recent) if recent else None)
    rows = [
        ("loss", f"{show(train.get('loss'))}  mean of the last {len(recent)}: {mean}  {spark(metrics.losses, 30, unicode)}"),
        ("evaluation", means + (f"  at step {show(evaluation.get('step'), '.0f')}" if evaluation else "")),
        ("speed", "  ".join(speed)),
        ("optimizer", f"lr {show(train.get('lr'), '.2e')}  gradient norm {show(train.get('grad_norm'), '.3f')}"),
        ("checkpoint", f"step {show(metrics.saved_step, '.0f')}"),
    ]
    return _grid(rows)


def _phases(run: Follower, unicode: bool) -> RenderableType:
    """Where the wall time went; what no phase counts (loading, waiting between them) is not shown."""
    metrics = run.metrics
    wall = max(metrics.wall_seconds, sum(metrics.seconds.values()))
    longest = sorted(metrics.seconds.items(), key=lambda item: -item[1])[:PHASES]
    rows = [(word(name), f"{s / wall if wall else 0:>6.1%} {bar(s / wall if wall else 0, 30, unicode)}") for name, s in longest]
    whole = f"selection, rewards and all, {metrics.selection_seconds / wall:.1%} of the time" if wall else "no time yet"
    return Group(Text(f"phases ({whole})", style="bold"), _grid(rows))


def _decision(run: Follower, unicode: bool) -> RenderableType:
    record = run.decision
    title = (
        f"round {show(record.round, '.0f')} at step {show(record.step, '.0f')}: {show(record.chosen, ',.0f')} samples, "
        f"{count(number(record.chosen_tokens) or 0.0)} tokens, {show(record.reused, ',.0f')} used before"
    )
    rows = [
        (f"theta {word(agent)}", f"{by_round[-1]:.3f} {bar(by_round[-1], 20, unicode):<20} {spark(by_round, 24, unicode, 0, 1)}")
        for agent, by_round in run.theta.items()
        if agent in record.theta
    ]
    return Group(Text(title, style="bold", overflow="ellipsis", no_wrap=True), _grid(rows))


def _labels(run: Follower, rows: int, unicode: bool) -> RenderableType:
    """Every agent's labels: weight, share of the chosen tokens, share of the pool; from high to low, both ends of long lists."""
    by = "weight" if run.decision.theta else "chosen_share"
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=28)
    for _ in range(2):
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    for agent, labels in run.decision.labels.items():
        heads = (f"labels of {word(agent)}", "weight", "", "chosen", "", "pool")
        table.add_row(*(Text(head, style="bold") for head in heads))
        scale = max((abs(number(r.weight) or 0.0) for r in labels), default=0.0)
        ordered = sorted(labels, key=lambda r: (-(number(getattr(r, by)) or 0.0), str(r.label)))
        for row in _ends(ordered, rows):
            table.add_row(*_label_cells(row, scale, unicode))
    return table


def _label_cells(row: LabelRecord | int, scale: float, unicode: bool) -> Iterable[Text]:
    if isinstance(row, int):
        return [Text(f"  ... {row} more", style="dim")]
    weight, chosen = number(row.weight), number(row.chosen_share)
    colour = "green" if (weight or 0.0) > 0 else "red" if (weight or 0.0) < 0 else ""
    return [
        Text(f"  {word(row.label)}"),
        Text(show(weight, "+.3f")),
        Text(signed_bar(weight, scale, 6, unicode), style=colour),
        Text(show(chosen, ".1%")),
        Text(f"{bar(chosen, 12, unicode):<12}"),
        Text(show(row.pool_share, ".1%")),
    ]


def _ends(rows: list[LabelRecord], limit: int) -> list[LabelRecord | int]:
    """All, or the first and the last ones around the number of those left out: `limit` rows at most."""
    if len(rows) <= limit:
        return list(rows)
    kept = limit - 1
    first = (kept + 1) // 2
    last = kept - first
    return [*rows[:first], len(rows) - kept, *(rows[-last:] if last else [])]


def _grid(rows: Iterable[tuple[str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=24, min_width=12)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, text in rows:
        table.add_row(Text(name), Text(text, overflow="ellipsis", no_wrap=True))
    return table
