"""F/compare.html and F/compare.md, both from the results alone."""

from __future__ import annotations

from collections.abc import Callable

from mads.compare.charts import cooled_chart, forest, learning_chart, mean_curve, reach_bars, trade_chart
from mads.compare.statistics import estimate
from mads.compare.summary import Comparison, Metric, number, reach_text
from mads.compare.tables import (
    Rows,
    all_metrics_table,
    cost_table,
    digits,
    headline_table,
    markdown,
    mix_table,
    treatment_rows,
)
from mads.report.bars import Bar, bar_chart, share_bars
from mads.report.lines import LineChart, key
from mads.report.page import document, figure, paragraph, table
from mads.report.scale import compact, escape

PANEL_START = 0.2  # small panels leave out the first fall of the loss, which hides every difference
ONE_SEED = "One seed: differences are of single runs, without an interval, and are no result yet."
INTERVALS = "± is half of a 95% t interval over seeds of the mean, or of the paired differences (same seed); below 0 is better."
TIMED = (
    "Selection FLOPs are those that a selection counted; of one that did not, its seconds at the speed of training, which counts "
    "scoring and deciding too."
)


def render(comparison: Comparison, title: str) -> str:
    """The page."""
    metrics = comparison.metrics()
    sections = [
        ("headline", "Result", _result(comparison, metrics[0])),
        ("differences", "Paired differences", _differences(comparison, metrics)),
        ("reach", "Tokens and compute to the control's final value", _reach(comparison, metrics)),
        ("curves", "Learning curves", _curves(comparison)),
        ("metrics", "Every metric", _table(all_metrics_table(comparison, metrics)) + _note("Mean over seeds at the end.")),
        ("mix", "What was chosen", _mix(comparison)),
        ("cost", "Cost", _table(cost_table(comparison)) + _note(TIMED)),
        ("provenance", "Provenance", _provenance(comparison)),
    ]
    if any(r["destroyed"] for own in comparison.cells.values() for r in own.values()):
        sections.insert(6, ("destroyed", "Destroyed text", _destroyed(comparison)))
    return document(title, _head(comparison, metrics[0], title), sections)


def render_markdown(comparison: Comparison, title: str) -> str:
    """The same numbers for a Markdown file."""
    metrics = comparison.metrics()
    roles = comparison.roles
    parts = [f"# {title}", _what(comparison), INTERVALS if len(comparison.seeds) > 1 else ONE_SEED, *_warnings(comparison)]
    parts.append(markdown(headline_table(comparison, metrics[0])))
    if treated := treatment_rows(comparison, metrics[0])[1]:
        parts += [f"## {roles.treatment} against each opponent", markdown((treatment_rows(comparison, metrics[0])[0], treated))]
    parts += ["## Every metric", markdown(all_metrics_table(comparison, metrics))]
    for attribute in comparison.one["mix"]:
        parts += [f"## Chosen tokens by {attribute} (times read)", markdown(mix_table(comparison, attribute))]
    if (rows := _destroyed_rows(comparison))[1]:
        parts += ["## Share of destroyed text in what was chosen", markdown(rows)]
    parts += ["## Cost", markdown(cost_table(comparison)), TIMED, "Code: " + "; ".join(_commits(comparison))]
    return "\n\n".join(parts) + "\n"


def _table(rows: Rows) -> str:
    return table(*rows)


def _note(text: str) -> str:
    return paragraph(text, "note")


def _what(comparison: Comparison) -> str:
    one = comparison.one
    return (
        f"{len(comparison.strategies)} strategies, seeds {', '.join(map(str, comparison.seeds))}, {one['steps']:,} steps, "
        f"{compact(one['steps'] * one['tokens_per_step'])} tokens each"
    )


def _warnings(comparison: Comparison) -> list[str]:
    """What keeps the numbers from being compared as they are."""
    by_reason: dict[str, dict[str, list[str]]] = {}
    for cell, why in comparison.missing.items():
        strategy, seed = cell.rsplit("-", 1)
        by_reason.setdefault(why, {}).setdefault(strategy, []).append(seed)
    found = []
    for why, strategies in by_reason.items():
        cells = "; ".join(
            f"{strategy} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})" for strategy, seeds in strategies.items()
        )
        found.append(f"No result ({why}): {cells}.")
    if comparison.roles.control not in comparison.cells:
        found.append(f"The control {comparison.roles.control} has no result, so nothing is compared with it.")
    if len(_commits(comparison)) > 1:
        found.append(f"The cells are of different code: {'; '.join(_commits(comparison))}.")
    return found


def _commits(comparison: Comparison) -> list[str]:
    found = {}
    for own in comparison.cells.values():
        for result in own.values():
            git = result["git"] or {}
            commit = git.get("commit", "")[:12] or "not in a checkout"
            found[commit + (" with uncommitted changes" if git.get("modified") else "")] = None
    return list(found)


def _head(comparison: Comparison, metric: Metric, title: str) -> str:
    roles, n = comparison.roles, digits(metric)
    tiles = []
    subject = roles.treatment if roles.treatment in comparison.cells else None
    for opponent in dict.fromkeys([roles.control, roles.primary]):
        if subject and opponent in comparison.cells:
            difference = comparison.against(subject, opponent, metric)
            tiles.append((f"{subject} minus {opponent}", number(difference, n, sign=True), f"{metric.unit}, {metric.name}"))
    if subject:
        reached = reach_text(comparison.reached(subject, metric))
        tiles.append((f"{subject} reaches {roles.control}'s final value at", reached, "of its tokens, cooled"))
        share = comparison.cost(subject)["selection_time"]
        tiles.append(("Selection", "–" if share is None else f"{share.mean:.1%}", f"of the wall time of {subject}"))
    cells = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles)
    warnings = "".join(paragraph(text) for text in _warnings(comparison))
    return f'<h1>{escape(title)}</h1><p class="lead">{escape(_what(comparison))}</p>{warnings}' + (
        f'<dl class="tiles">{cells}</dl>' if cells else ""
    )


def _keys(comparison: Comparison) -> str:
    items = "".join(f"<li>{key(i)}{escape(name)}</li>" for i, name in enumerate(comparison.strategies))
    return f'<ul class="keys">{items}</ul>'


def _result(comparison: Comparison, metric: Metric) -> str:
    parts = [_note(INTERVALS if len(comparison.seeds) > 1 else ONE_SEED), _table(headline_table(comparison, metric))]
    charts = []
    if chart := cooled_chart(comparison, metric):
        caption = "Each point is a run cooled down to there. Bands: one standard error over seeds."
        charts.append(figure(f"{metric.name} of cooled runs", chart, caption))
    given = next((m for m in comparison.metrics() if m.path == ("heldout_mean",)), None)
    title = "What is won and what is given up"
    if given is not None and (chart := trade_chart(comparison, title, metric, given)):
        caption = "Ends, each a mean over its seeds; bars: one standard error. Nothing beats in both what the line joins."
        charts.append(figure(title, chart, caption))
    return "".join(parts) + f'<div class="pair">{"".join(charts)}</div>'


def _differences(comparison: Comparison, metrics: list[Metric]) -> str:
    parts = []
    if treated := treatment_rows(comparison, metrics[0])[1]:
        parts.append(_table((treatment_rows(comparison, metrics[0])[0], treated)))
    elif comparison.roles.treatment is None:
        parts.append(_note("No treatment is named, so no hypothesis is tested."))
    charts = []
    for opponent in dict.fromkeys([comparison.roles.control, comparison.roles.primary]):
        if opponent not in comparison.cells:
            continue
        for metric in _means(metrics):
            found = [(s, comparison.against(s, opponent, metric)) for s in comparison.strategies if s != opponent]
            rows = [(s, e.mean, e.half) for s, e in found if e is not None]
            if rows:
                title = f"{metric.name}: minus {opponent}"
                charts.append(figure(title, forest(title, rows, metric.unit)))
    note = "Lines are 95% t intervals of single comparisons, not corrected." if len(comparison.seeds) > 1 else ONE_SEED
    return "".join(parts) + _note(note) + f'<div class="pair">{"".join(charts)}</div>'


def _means(metrics: list[Metric]) -> list[Metric]:
    return [m for m in metrics if len(m.path) == 1 or m.path[-1] == "mean_bits_per_byte"]


def _reach(comparison: Comparison, metrics: list[Metric]) -> str:
    charts = []
    for metric in _means(metrics):
        for compute, what in ((False, "tokens"), (True, "compute")):
            found = {s: comparison.reached(s, metric, compute) for s in comparison.strategies if s != comparison.roles.control}
            if any(found.values()):
                title = f"{metric.name}: share of the control's {what}"
                charts.append(figure(title, reach_bars(title, found)))
    if not charts:
        return _note(
            "Only ends at all tokens were evaluated; branches=[0.4, 0.5, 0.6, 0.75] would show where the value is reached."
        )
    note = (
        "Where straight lines between a strategy's cooled ends first come down to the control's final value of the same seed. "
        "What is not reached is not extrapolated."
    )
    return _note(note) + f'<div class="pair">{"".join(charts)}</div>'


def _curves(comparison: Comparison) -> str:
    parts = []
    for group, word in (("references", "Reference loss"), ("heldout", "Held-out loss")):
        names = list(dict.fromkeys(n for own in comparison.cells.values() for r in own.values() for n in r["curve"][group]))
        whole = [
            (f"{word}, mean{text}", learning_chart(comparison, f"{word}, mean{text}", group, None, start, False))
            for start, text in ((0.0, ""), (0.5, ", second half"))
        ]
        panels = [(n, learning_chart(comparison, f"{word}: {n}", group, n, PANEL_START, True)) for n in names]
        for kind, charts in (("pair", whole), ("multiples", panels)):
            if drawn := "".join(figure(t, c) for t, c in charts if c):
                parts.append(f'<div class="{kind}">{drawn}</div>')
    if not parts:
        return _note("Every trunk was evaluated once only; a smaller train.eval_interval would draw how the losses fall.")
    note = "Of the trunks, before any cooldown; mean over seeds, bands of one standard error where there are several."
    return _keys(comparison) + _note(note) + "".join(parts)


def _mix(comparison: Comparison) -> str:
    parts = [_note("Shares of all chosen tokens, mean over seeds; in brackets how often a label's tokens were read.")]
    subject = next((s for s in (comparison.roles.treatment, *comparison.strategies[::-1]) if s in comparison.cells), None)
    for attribute, labels in comparison.one["mix"].items():
        parts.append(f"<h3>{escape(attribute)}</h3>" + _table(mix_table(comparison, attribute)))
        own = [r["mix"][attribute] for r in comparison.cells[subject].values() if attribute in r["mix"]]
        rows = [
            (label, v["pool"], sum(m[label]["all"] for m in own) / len(own))
            for label, v in sorted(labels.items(), key=lambda item: -item[1]["pool"])
            if own and all(label in m for m in own)
        ]
        if rows:
            parts.append(figure(f"{attribute}: chosen by {subject}", share_bars(f"{attribute} of {subject}", rows)))
    return "".join(parts)


def _destroyed_rows(comparison: Comparison) -> Rows:
    rows = []
    for strategy in comparison.strategies:
        results = comparison.cells[strategy].values()
        for attribute in dict.fromkeys(a for r in results for a in r["destroyed"]):
            own = [r["destroyed"][attribute] for r in results if attribute in r["destroyed"]]
            pool, last = own[0]["pool"], [o["rounds"][-1] for o in own if o["rounds"]]
            chosen = estimate([o["all"] for o in own])
            ratio = f"{chosen.mean / pool:.2f}" if pool else "–"
            final = estimate(last)
            rows.append([strategy, f"{pool:.2%}", _share(chosen), "–" if final is None else _share(final), ratio])
    return ["strategy", "of the pool", "of all chosen tokens", "of the last decision", "chosen over pool"], rows


def _share(value) -> str:
    return f"{value.mean:.2%}" + ("" if value.half is None else f" ± {value.half:.2%}")


def _destroyed(comparison: Comparison) -> str:
    series, bars = [], []
    for i, strategy in enumerate(comparison.strategies):
        own = [next(iter(r["destroyed"].values())) for r in comparison.cells[strategy].values() if r["destroyed"]]
        if own:
            series.append(mean_curve(strategy, [list(enumerate(o["rounds"])) for o in own], i))
            bars.append(Bar(strategy, sum(o["all"] for o in own) / len(own), f"{sum(o['all'] for o in own) / len(own):.2%}"))
    charts = figure("Over the run", bar_chart("destroyed text", bars))
    percent: Callable[[float], str] = lambda v: f"{v:.2%}"
    if any(len(s.points) > 1 for s in series):
        chart = LineChart(
            "by round", series, "decision", "share", lambda v: f"{v:.0f}", percent, integer_x=True, y_include=(0.0,)
        )
        charts += figure("By decision", chart.svg())
    return _table(_destroyed_rows(comparison)) + f'<div class="pair">{charts}</div>'


def _provenance(comparison: Comparison) -> str:
    one = comparison.one
    rows = [
        ["code", "; ".join(_commits(comparison))],
        ["packages", ", ".join(f"{k} {v}" for k, v in (one["packages"] or {}).items())],
        ["python", f"{one['python']} on {one['system']}, {one['device']}"],
        ["data", str(one["settings"].get("data"))],
    ]
    body = "".join(f'<tr><th scope="row">{escape(a)}</th><td class="text">{escape(b)}</td></tr>' for a, b in rows)
    differing = _differing(comparison)
    return (
        f'<div class="scroll"><table><tbody>{body}</tbody></table></div>'
        f"<details><summary>Settings in which the strategies differ</summary>{_table(differing)}</details>"
    )


def _differing(comparison: Comparison) -> Rows:
    own = {s: next(iter(comparison.cells[s].values()))["settings"] for s in comparison.strategies}
    names = sorted({k for settings in own.values() for k in settings} - {"train.seed"})
    rows = []
    for name in names:
        values = [settings.get(name, "–") for settings in own.values()]
        if any(v != values[0] for v in values):
            rows.append([name, *(str(v) for v in values)])
    return ["key", *comparison.strategies], rows
