"""What benchmarks/step.py makes of the seconds that it measured: ratios by round, quartiles, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

PRODUCTS = "matrix products"
PHASES = ("loader", "forward", "backward", "optimizer", "other")


def turns(names: Sequence[str], round_: int) -> list[str]:
    """The order of a round: everybody once; who begins goes on by one from round to round."""
    first = round_ % len(names)
    return [*names[first:], *names[:first]]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile)."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def seconds_of(steps: Sequence[Sequence[Mapping[str, float]]], what: str) -> float:
    """Of a turn: what a step took on average. `steps` has a list for every rank. A step is over when its slowest rank is; CPU
    time is that of all ranks."""
    each = [(sum if what == "cpu" else max)(rank[i][what] for rank in steps) for i in range(len(steps[0]))]
    return sum(each) / len(each)


def ratios(rounds: Sequence[Mapping[str, float]], name: str, reference: str) -> list[float]:
    """Seconds of `name` over those of `reference`, in every round in which both were there."""
    return [r[name] / r[reference] for r in rounds if name in r and reference in r]


def spread(values: Sequence[float], digits: int = 3) -> str:
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def row(result: Mapping[str, Any], name: str) -> str:
    """A contestant's line."""
    cell, entry, reference = result["cell"], result["contestants"][name], result["reference"]
    if "skipped" in entry:
        return f"| {name} | skipped: {entry['skipped']} |" + " |" * 7
    rounds = [r["wall"] for r in result["rounds"] if reference in r["wall"]]
    cpu = [r["cpu"] for r in result["rounds"] if reference in r["cpu"]]
    wall = [r[name] for r in rounds if name in r]
    middle = quartiles(wall)[1]
    speed = result["data"]["tokens"] / middle
    positions = cell["rows"] * cell["accumulation"] * cell["processes"] * cell["seq_length"]
    busy = quartiles([r[name] for r in cpu if name in r])[1]  # of all processes: what a core does, waiting apart
    flops = positions * result["flops_per_token"] / busy / 1e9
    share = flops / result["peak_gflops"]
    phases = " / ".join(f"{entry['phases'][p] / sum(entry['phases'].values()):.1%}" for p in PHASES)
    masks = "" if entry["masks"] or cell["documents"] == "whole" else " (attends across documents)"
    figures = [
        f"{middle:.3f}",
        f"{spread(ratios(rounds, name, reference))}",
        f"{spread(ratios(cpu, name, reference))}",
        f"{speed:,.0f}",
        f"{flops:.0f}",
        f"{share:.0%}" if share <= 1 else "?",  # the machine was too busy for its peak
        f"{entry['peak_mib']:,.0f}",
        phases,
    ]
    return f"| {name}{masks} | " + " | ".join(figures) + " |"


HEAD = (
    "| contestant | s a step | wall, ratio | CPU, ratio | tokens/s | GFLOP/s of CPU | of peak | MiB | "
    + " / ".join(PHASES)
    + " |\n|"
    + "---|" * 9
)


def table(result: Mapping[str, Any]) -> str:
    """The table of one cell, with a line above it."""
    cell, data = result["cell"], result["data"]
    what = (
        f"**{cell['size']}** ({data['parameters'] / 1e6:.1f}M parameters), rows of {cell['seq_length']}, "
        f"{cell['documents']} documents ({data['documents']:.0f} a step, {data['tokens']:.0f} tokens), "
        f"{cell['processes']} process(es) x {cell['accumulation']} micro-batch(es) of {cell['rows']} rows; "
        f"{len(result['rounds'])} rounds of {result['steps']} step(s); "
        f"matmul peak {result['peak_gflops']:.0f} GFLOP/s a core; {result['date']}"
    )
    return "\n".join([what, "", HEAD, *(row(result, name) for name in result["contestants"])])


def operators(result: Mapping[str, Any]) -> str:
    """Profiled time by kind of work, contestants side by side, in percent of each one's matrix products: these are the same work
    for all, and a busy machine stretches everything alike."""
    profiles = {name: e["profile"]["groups"] for name, e in result["contestants"].items() if "profile" in e}
    shares = {name: {g: 100 * ms / groups[PRODUCTS] for g, ms in groups.items()} for name, groups in profiles.items()}
    kinds = sorted(
        {g for p in shares.values() for g in p} - {PRODUCTS}, key=lambda g: -max(p.get(g, 0.0) for p in shares.values())
    )
    lines = ["| % of matrix products | " + " | ".join(shares) + " |", "|" + "---|" * (len(shares) + 1)]
    lines += [f"| {g} | " + " | ".join(f"{p.get(g, 0.0):.1f}" for p in shares.values()) + " |" for g in kinds]
    lines.append("| **all but products** | " + " | ".join(f"{sum(p.values()) - 100:.1f}" for p in shares.values()) + " |")
    return "\n".join(lines)


def journal(lines: Sequence[Mapping[str, Any]]) -> str:
    """Where the time of a run's loop went, by the phases of its metrics.jsonl (mads.train.journal)."""
    seconds: dict[str, float] = {}
    for line in lines:
        if line["kind"] == "phase":
            seconds[line["name"]] = seconds.get(line["name"], 0.0) + line["seconds"]
    total = sum(seconds.values())
    rows = [f"| {name} | {value:.1f} | {value / total:.2%} |" for name, value in sorted(seconds.items(), key=lambda i: -i[1])]
    return "\n".join(["| phase | seconds | share |", "|---|---|---|", *rows, f"| in all | {total:.1f} | |"])


def memory_groups(names: Sequence[str], reference: str, need: float, limit: float) -> list[list[str]]:
    """Contestants that are there at the same time, the reference in every group.

    Args:
        need: bytes of one contestant; limit: of all together.
    """
    others, size = [n for n in names if n != reference], max(1, int(limit // need) - 1)
    return [[reference, *others[i : i + size]] for i in range(0, len(others), size)] or [[reference]]
