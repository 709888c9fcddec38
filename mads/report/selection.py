"""Sections about the choice of data: theta, label weights and rewards, the mix against the pool, the reward direction, notes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mads.console.record import DecisionRecord, LabelRecord
from mads.report.bars import Bar, bar_chart, interval_chart, share_bars
from mads.report.lines import LineChart, Series
from mads.report.page import figure, paragraph, table
from mads.report.read import Run
from mads.report.scale import escape, fixed, significant

COLUMNS = 12  # rounds in one table
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _by_round(title: str, series: list[Series], y_label: str, y_text: Callable[[float], str] = fixed, **options: Any) -> str:
    return LineChart(title, series, "round", y_label, lambda v: f"round {v:g}", y_text, integer_x=True, **options).svg()


def _none(run: Run) -> str:
    return paragraph(f"{run.name} recorded no decision (decisions.jsonl is missing or empty).")


def no_agents(run: Run) -> str:
    """What stands where a run without agents has nothing to show."""
    return paragraph(f"Selection {run.selection or 'without agents'} has no agents, so there are no weights to show here.")


def theta_section(run: Run) -> str:
    """Collaborative weights by round, and the agents' own rewards they follow."""
    if not run.decisions:
        return _none(run)
    agents = list(dict.fromkeys(a for d in run.decisions for a in d.theta))
    if not agents:
        return no_agents(run)
    lines = [Series(a, [(d.round, d.theta[a]) for d in run.decisions if a in d.theta], i) for i, a in enumerate(agents)]
    charts = figure(
        "Collaborative weight of each agent",
        _by_round("theta by round", lines, "theta", y_include=(0.0,)),
        "The weight with which each agent's scores entered the round's decision.",
    )
    _, scale, unit = _scaled([r for d in run.decisions for r in d.agent_rewards.values()])
    rewards = [
        Series(a, [(d.round, d.agent_rewards[a] * scale) for d in run.decisions if a in d.agent_rewards], i)
        for i, a in enumerate(agents)
    ]
    if any(s.points for s in rewards):
        charts += figure(
            "Reward of each agent",
            _by_round("agent reward by round", rewards, f"R{unit}", significant, y_include=(0.0,)),
            "How well the agent's weights agreed with the round's rewards (Eq. 7); theta moves by its difference "
            "from the agents' mean.",
        )
    else:
        charts += paragraph("No round had rewards, so theta was not moved.", "note")
    return f'<div class="pair">{charts}</div>'


def _scaled(values: list[float]) -> tuple[int, float, str]:
    """A power of ten that makes small values readable: (power, factor to multiply by, words for the axis)."""
    largest = max((abs(v) for v in values), default=0.0)
    if not largest or 0.1 <= largest < 1000:
        return 0, 1.0, ""
    power = 3 * math.floor(math.log10(largest) / 3)
    return power, 10.0**-power, f", × 10{str(power).translate(_SUPERSCRIPT)}"


def _agents(run: Run) -> list[str]:
    return list(dict.fromkeys(name for d in run.decisions for name, rows in d.labels.items() if rows))


def _rows(decision: DecisionRecord, agent: str) -> dict[str, LabelRecord]:
    return {r.label: r for r in decision.labels.get(agent, [])}


def label_section(run: Run) -> str:
    """Every label's weight by round, its last reward with its standard error, and the ranking."""
    if not run.decisions:
        return _none(run)
    if not any(d.theta for d in run.decisions):
        return no_agents(run)
    return "".join(_agent_block(run, agent) for agent in _agents(run))


def _agent_block(run: Run, agent: str) -> str:
    history: dict[str, list[tuple[float, float]]] = {}
    for d in run.decisions:
        for label, row in _rows(d, agent).items():
            history.setdefault(label, []).append((d.round, row.weight))
    order = sorted(history, key=lambda label: (-history[label][-1][1], label))
    lines = [Series(label, history[label], i) for i, label in enumerate(order)]
    charts = figure("Weights by round", _by_round(f"label weights of agent {agent}", lines, "weight"))
    rewarded = [d for d in run.decisions if any(r.reward_mean is not None for r in d.labels.get(agent, []))]
    if not rewarded:
        rows, unit, scale = _rows(run.decisions[-1], agent), "", 1.0
        charts += paragraph("No round had rewards for this agent.", "note")
    else:
        rows = _rows(rewarded[-1], agent)
        known = [r for r in rows.values() if r.reward_mean is not None]
        _, scale, unit = _scaled([r.reward_mean for r in known])
        drawn = sorted(((r.label, r.reward_mean * scale, (r.reward_se or 0.0) * scale) for r in known), key=lambda r: -r[1])
        left_out = len(rows) - len(known)
        loss = str(rewarded[-1].direction.get("mode", "")).endswith("loss")  # online mixing has losses in the rewards' place
        what, sense = ("loss", "In nats, higher is worse.") if loss else ("reward", "Positive helps the references.")
        caption = f"Dot: mean {what} of the label's probes; bar: one standard error to each side. {sense}"
        caption += f" {left_out} label{'s' if left_out > 1 else ''} without a probe not shown." if left_out else ""
        charts += figure(
            f"{'Losses' if loss else 'Rewards'} of round {rewarded[-1].round}",
            interval_chart(f"{what}{'es' if loss else 's'} of agent {agent}", drawn, what + unit),
            caption,
        )
    return f'<h3>Agent {escape(agent)}</h3><div class="pair">{charts}</div>' + _ranking(
        run, agent, order, history, rows, unit, scale
    )


def _ranking(
    run: Run, agent: str, order: list[str], history: dict, rewarded: dict[str, LabelRecord], unit: str, scale: float
) -> str:
    final = _rows(run.decisions[-1], agent)
    head = [
        "label",
        "rank",
        "weight",
        "first weight",
        f"reward{unit}",
        "± SE",
        "probes",
        "probe tokens",
        "pool share",
        "chosen share",
    ]
    body = []
    for rank, label in enumerate(order, start=1):
        row, seen = final.get(label), rewarded.get(label)
        mean = None if seen is None else seen.reward_mean
        body.append(
            [
                label,
                str(rank),
                fixed(history[label][-1][1]),
                fixed(history[label][0][1]),
                "–" if mean is None else fixed(mean * scale),
                "–" if seen is None or seen.reward_se is None else fixed(seen.reward_se * scale),
                "–" if seen is None else str(seen.probes),
                "–" if seen is None else str(seen.probe_tokens),
                "–" if row is None else f"{row.pool_share:.1%}",
                "–" if row is None else f"{row.chosen_share:.1%}",
            ]
        )
    return table(head, body)


def mix_section(run: Run) -> str:
    """What was chosen against what the pool holds, per attribute."""
    if not run.decisions:
        return _none(run)
    names = _agents(run)
    if not names:
        return paragraph("The decisions recorded no mix.")
    intro = paragraph(
        "Share of each label in what was chosen, round by round, against its share of the pool. Blue cells hold more "
        "than the pool's share and are marked +, orange cells hold less and are marked −; the stronger the colour, the "
        "larger the ratio."
    )
    bars = "".join(_mix_bars(run, name) for name in names)
    return f'<div class="pair">{bars}</div><h3>Round by round</h3>{intro}' + "".join(_mix_table(run, name) for name in names)


def _final_mix(run: Run, agent: str) -> tuple[list[DecisionRecord], list[LabelRecord]]:
    """The decisions that hold this attribute, and the last one's labels from the most chosen down."""
    decisions = [d for d in run.decisions if d.labels.get(agent)]
    return decisions, sorted(decisions[-1].labels[agent], key=lambda r: (-r.chosen_share, r.label))


def _mix_bars(run: Run, agent: str) -> str:
    decisions, rows = _final_mix(run, agent)
    title = f"{agent}, round {decisions[-1].round}"
    bars = share_bars(f"mix of {title}", [(r.label, r.pool_share, r.chosen_share) for r in rows])
    return figure(title, bars, "Filled: share of what was chosen. Outlined: share of the pool.")


def _mix_table(run: Run, agent: str) -> str:
    decisions, rows = _final_mix(run, agent)
    shown = _evenly(decisions, COLUMNS)
    note = "" if len(shown) == len(decisions) else f"{len(shown)} of {len(decisions)} rounds, evenly spaced."
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in ["label", "pool", *(f"round {d.round}" for d in shown)])
    body = []
    for row in rows:
        cells = "".join(_heat(_rows(d, agent).get(row.label)) for d in shown)
        body.append(f'<tr><th scope="row">{escape(row.label)}</th><td>{row.pool_share:.1%}</td>{cells}</tr>')
    heat = f'<div class="scroll"><table class="heat"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    return figure(agent, heat, note)


def _heat(row: LabelRecord | None) -> str:
    """A cell coloured by log2(chosen / pool), full colour at a factor of four; the sign says the same without colour."""
    if row is None:
        return "<td>–</td>"
    ratio = math.log2(max(row.chosen_share, 1e-6) / max(row.pool_share, 1e-6))
    if abs(ratio) < 0.1:
        return f"<td>{row.chosen_share:.1%}</td>"
    alpha = 0.08 + 0.42 * min(abs(ratio) / 2, 1.0)
    css, sign = ("up", "+") if ratio > 0 else ("down", "−")
    return f'<td class="{css}" style="--a:{alpha:.2f}">{row.chosen_share:.1%} {sign}</td>'


def _evenly(items: list, limit: int) -> list:
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def direction_section(run: Run) -> str:
    """Diagnostics of the reward direction v: whatever numbers the decisions hold, shares of |v|^2 as bars."""
    with_direction = [d for d in run.decisions if d.direction]
    if not with_direction:
        return paragraph("No decision recorded a reward direction (no round had rewards, or the selection uses none).")
    final = with_direction[-1]
    parts = []
    shares = {k: v for k, v in final.direction.items() if isinstance(v, dict) and v and _numbers(v)}
    for name, group in shares.items():
        if all(0 <= v <= 1.0000001 for v in group.values()):
            bars = [Bar(k, v, f"{v:.1%}") for k, v in sorted(group.items(), key=lambda item: -item[1])]
            title = (
                f"Share of |v|² by parameter group, round {final.round}" if name == "shares" else f"{name}, round {final.round}"
            )
            parts.append(figure(title, bar_chart(title, bars)))
        else:
            parts.append(
                figure(f"{name}, round {final.round}", table(["", "value"], [[k, f"{v:.4g}"] for k, v in group.items()]))
            )
    scalars = list(dict.fromkeys(k for d in with_direction for k, v in d.direction.items() if not isinstance(v, dict)))
    if scalars:
        shown = _evenly(with_direction, COLUMNS)
        rows = [[k, *(_value(d.direction.get(k)) for d in shown)] for k in scalars]
        parts.append(figure("By round", table(["quantity", *(f"round {d.round}" for d in shown)], rows)))
    return f'<div class="pair">{"".join(parts)}</div>'


def _numbers(group: dict[str, Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in group.values())


def _value(value: Any) -> str:
    number: Callable[[Any], bool] = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool)
    return "–" if value is None else f"{value:.4g}" if number(value) else str(value)


def decision_section(run: Run) -> str:
    """One row per decision, and everything that was not as asked."""
    if not run.decisions:
        return _none(run)
    head = ["round", "at step", "samples", "tokens chosen", "tokens asked for", "used before", "hash"]
    rows = [
        [
            str(d.round),
            str(d.step),
            f"{d.chosen:,}",
            f"{d.chosen_tokens:,}",
            f"{d.budget_tokens:,}",
            f"{d.reused:,}",
            f"{d.hash & (2**64 - 1):016x}",
        ]
        for d in run.decisions
    ]
    notes = "".join(f"<li>Round {d.round}: {escape(note)}</li>" for d in run.decisions for note in d.notes)
    listed = paragraph("No decision carries a note: every round got what it asked for.", "note")
    if notes:
        listed = f"<h3>Notes</h3><ul>{notes}</ul>"
    return listed + f"<details><summary>All {len(rows)} decisions</summary>{table(head, rows)}</details>"
