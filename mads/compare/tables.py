"""The comparison's tables as rows of plain text, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence

from mads.compare.summary import Comparison, Metric, number, p_text, reach_text
from mads.logging.progress import duration

Rows = tuple[list[str], list[list[str]]]


def digits(metric: Metric) -> int:
    """Decimals of a metric."""
    return 4 if metric.unit == "bits per byte" else 3


def headline_table(comparison: Comparison, metric: Metric) -> Rows:
    """A row for each strategy: mean, differences to control and primary opponent, where it reaches the control's final value."""
    control, primary = comparison.roles.control, comparison.roles.primary
    opponents = [name for name in dict.fromkeys([control, primary]) if name in comparison.cells]
    head = ["strategy", "seeds", f"{metric.name}, {metric.unit}", "standard error", *(f"minus {o}" for o in opponents)]
    head += [f"minus {control} at equal compute", f"tokens to {control}'s final value", f"compute to {control}'s final value"]
    rows = []
    for strategy in comparison.strategies:
        final = comparison.mean(strategy, metric)
        n = digits(metric)
        rows.append(
            [
                strategy,
                str(final.n if final else 0),
                "–" if final is None else f"{final.mean:.{n}f}",
                "–" if final is None or final.se is None else f"{final.se:.{n}f}",
                *("" if strategy == o else number(comparison.against(strategy, o, metric), n, sign=True) for o in opponents),
                "" if strategy == control else number(comparison.at_equal_compute(strategy, metric), n, sign=True),
                reach_text(comparison.reached(strategy, metric)),
                reach_text(comparison.reached(strategy, metric, compute=True)),
            ]
        )
    return head, rows


def treatment_rows(comparison: Comparison, metric: Metric) -> Rows:
    """The treatment against every opponent, with p."""
    roles = comparison.roles
    rows = []
    for opponent, difference, p in comparison.treatment_table(metric):
        kind = "primary, as it is" if opponent == roles.primary else "Holm-corrected"
        rows.append([opponent, str(difference.n), number(difference, digits(metric), sign=True), p_text(p), kind])
    return ["opponent", "seeds", f"{roles.treatment} minus opponent, {metric.unit}", "p", "correction"], rows


def all_metrics_table(comparison: Comparison, metrics: Sequence[Metric]) -> Rows:
    """Every metric at the end of all tokens, mean over seeds, a column for each strategy."""
    rows = []
    for metric in metrics:
        finals = [comparison.mean(s, metric) for s in comparison.strategies]
        rows.append([metric.name, *("–" if f is None else f"{f.mean:.{digits(metric)}f}" for f in finals), metric.unit])
    return ["metric", *comparison.strategies, "unit"], rows


def cost_table(comparison: Comparison) -> Rows:
    """What a strategy's run of all tokens took, mean over seeds."""
    rows = []
    for strategy in comparison.strategies:
        cost = comparison.cost(strategy)
        results = list(comparison.cells[strategy].values())
        chosen = sum(d["chosen"] for r in results for d in r["rounds"])
        reused = sum(d["reused"] for r in results for d in r["rounds"])
        starts = sum(s["starts"] for r in results for s in r["stages"].values())
        rows.append(
            [
                strategy,
                *("–" if cost[k] is None else duration(cost[k].mean) for k in ("seconds", "cpu_seconds")),
                *("–" if cost[k] is None else f"{cost[k].mean:.2%}" for k in ("selection_time", "selection_flops")),
                "counted" if all(r["points"][-1]["selection_flops_counted"] for r in results) else "by time",
                f"{reused / chosen:.1%}" if chosen else "–",
                str(starts),
            ]
        )
    head = ["strategy", "wall time of the whole run", "CPU time of the cell with all branches", "selection, of wall time"]
    return [*head, "selection, of training FLOPs", "FLOPs are", "chosen before", "starts"], rows


def mix_table(comparison: Comparison, attribute: str) -> Rows:
    """Share of all chosen tokens by label, mean over seeds, beside the pool's; behind it how often each label was read."""
    head, rows = ["label", "pool", *comparison.strategies], []
    labels = comparison.one["mix"].get(attribute, {})
    for label, own in sorted(labels.items(), key=lambda item: -item[1]["pool"]):
        cells = []
        for strategy in comparison.strategies:
            found = [r["mix"].get(attribute, {}).get(label) for r in comparison.cells[strategy].values()]
            found = [f for f in found if f is not None]
            epochs = [f["epochs"] for f in found if f["epochs"] is not None]
            text = f"{sum(f['all'] for f in found) / len(found):.1%}" if found else "–"
            cells.append(text + (f" ({sum(epochs) / len(epochs):.2f}×)" if epochs else ""))
        rows.append([label, f"{own['pool']:.1%}", *cells])
    return head, rows


def markdown(rows: Rows) -> str:
    """A table in Markdown."""
    head, body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body)])
