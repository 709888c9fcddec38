"""Sections about cost and provenance: time by phase, selection overhead, throughput, configuration and environment."""

from __future__ import annotations

import json

from mads.logging.progress import duration
from mads.report.bars import Bar, bar_chart
from mads.report.lines import LineChart, Series
from mads.report.page import figure, paragraph, table
from mads.report.read import SELECTION_PHASES, Run
from mads.report.scale import compact, escape
from mads.report.training import keys, overhead, tokens

_GAUGES = (
    ("tokens_per_second", "Throughput", "tokens per second", compact),
    ("mfu", "Utilisation (MFU)", "share of the dense bf16 peak", lambda v: f"{v:.1%}"),
    ("grad_norm", "Gradient norm", "norm before clipping", lambda v: f"{v:.2f}"),
    ("lr", "Learning rate", "rate", lambda v: f"{v:.1e}"),
    ("memory_mib", "Memory", "MiB per process", compact),
)


def seconds(value: float) -> str:
    """A duration for reading."""
    return f"{value:.1f} s" if value < 60 else duration(value)


def time_section(runs: list[Run]) -> str:
    """Where the wall time went, for the run itself, and the selection's share for every run."""
    run, phases = runs[0], runs[0].phase_seconds()
    if not phases:
        return paragraph("No phase timings were written.")
    wall = run.wall_seconds or sum(phases.values())
    rest = wall - sum(phases.values())
    order = sorted(phases, key=lambda p: -phases[p]) + (["not measured"] if rest > 0.005 * wall else [])
    times = {**phases, "not measured": rest}
    bars = [Bar(p, times[p], f"{seconds(times[p])} · {times[p] / wall:.1%}") for p in order]
    charts = figure("Time by phase", bar_chart("time by phase", bars), f"Of {duration(wall)} wall time on rank 0.")
    choosing = {p: phases[p] for p in SELECTION_PHASES if p in phases}
    if choosing:
        words = [Bar(p, v, f"{v / wall:.2%}") for p, v in choosing.items()]
        charts += figure(
            f"Selection overhead: {overhead(run) or 0.0:.2%} of the wall time",
            bar_chart("selection overhead", words),
            "Reference pass, probe rewards, update of agents and theta, scoring of the pool, exchange, decision. "
            "The whole holds what lies between them too.",
        )
    else:
        charts += paragraph("No time was spent on selection phases.", "note")
    return f'<div class="pair">{charts}</div>' + (_overheads(runs) if len(runs) > 1 else "")


def _overheads(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        phases, wall = run.phase_seconds(), run.wall_seconds
        rows.append(
            [
                run.name,
                *(f"{phases[p] / wall:.2%}" if p in phases and wall else "–" for p in SELECTION_PHASES),
                "–" if overhead(run) is None else f"{overhead(run):.2%}",
            ]
        )
    return "<h3>Selection overhead of every run, share of its wall time</h3>" + table(["run", *SELECTION_PHASES, "whole"], rows)


def gauge_section(runs: list[Run]) -> str:
    """Throughput, gradient norm, learning rate and memory by tokens."""
    panels = []
    for field, title, unit, text in _GAUGES:
        series = [Series(r.name, r.curve("train", field), i) for i, r in enumerate(runs)]
        if any(s.points for s in series):
            chart = LineChart(title, series, "tokens", unit, tokens, text, small=True).svg()
            panels.append(figure(title, chart))
    if not panels:
        return paragraph("No log line holds throughput, gradient norm or learning rate.")
    return keys(runs) + f'<div class="multiples">{"".join(panels)}</div>'


def provenance_section(run: Run) -> str:
    """Environment as a table, resolved configuration and the full environment collapsed."""
    parts = []
    env = run.environment
    if env is None:
        parts.append(paragraph("environment.json is missing: the code and package versions of this run are not known."))
    else:
        git = env.get("git") or {}
        code = git.get("commit", "not in a checkout") + (" with uncommitted changes" if git.get("modified") else "")
        packages = ", ".join(f"{k} {v}" for k, v in (env.get("packages") or {}).items())
        command = " ".join(env.get("command") or [])
        starts = len(env.get("earlier_starts") or [])
        rows = [
            ("code", code),
            ("packages", packages),
            ("python", f"{env.get('python')} on {env.get('system')}"),
            ("processes", f"{env.get('world_size')} × {env.get('device')}"),
            ("command", command),
        ]
        rows += [("restarts", f"{starts}, the last one from step {env.get('resume_step')}")] if starts else []
        body = "".join(f'<tr><th scope="row">{escape(a)}</th><td class="text">{escape(b)}</td></tr>' for a, b in rows)
        parts.append(f'<div class="scroll"><table><tbody>{body}</tbody></table></div>')
        parts.append(f"<details><summary>environment.json</summary><pre>{escape(json.dumps(env, indent=1))}</pre></details>")
    if run.config_text is None:
        parts.append(paragraph("config.yaml is missing: the settings of this run are not known."))
    else:
        parts.append(f"<details><summary>config.yaml, resolved</summary><pre>{escape(run.config_text)}</pre></details>")
    return "".join(parts)
