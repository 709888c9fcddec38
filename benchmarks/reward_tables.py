"""Prints the Markdown tables of benchmarks/reward_truth.md from the JSON files of the two benchmarks.

python -m benchmarks.reward_tables benchmarks/reward_truth.json benchmarks/label_truth.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

# Columns of the table of ranks: heading, form of the truth in the JSON file.
TRUTHS = (
    ("direction, real step", "direction, real, rate x1"),
    ("audit, real step", "audit, real, rate x1"),
    ("direction, real step, 10 x rate", "direction, real, rate x10"),
)
# From the truth that the rewards linearise to the whole of it, one cause at a time.
CAUSES = (
    ("linear at the weights, fixed P, no clipping", "direction, linear at the weights, fixed P, no clipping"),
    ("+ x changes the second moment", "direction, linear at the weights, x in the second moment, no clipping"),
    ("+ x changes the clipping", "direction, linear at the weights, whole update"),
    ("+ the gradient of the references after the step, 0.1 x rate", "direction, linear after the step, rate x0.1, whole update"),
    ("+ the same, rate of the run", "direction, linear after the step, rate x1, whole update"),
    ("+ the same, 10 x rate", "direction, linear after the step, rate x10, whole update"),
    ("real step, rate of the run", "direction, real, rate x1"),
    ("real step, 10 x rate", "direction, real, rate x10"),
)


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def agreement_table(record: dict) -> str:
    rows = []
    for name, a in record["estimators"].items():
        numbers = [1 - a["pearson"], a["spearman"], a["max_error_over_std"], a["median_relative_error"], a["max_relative_error"]]
        ratio = f"{a['curvature_ratio']:.2g}" if "curvature_ratio" in a else ""
        deficit = f"{numbers[0]:.1e}" if numbers[0] > 1e-6 else "< 1e-6"  # the file keeps six digits
        rows.append([name, deficit, f"{numbers[1]:.4f}", *(f"{n:.1e}" for n in numbers[2:]), ratio])
    heading = ["rewards by", "1 - Pearson", "Spearman", "max error / std", "median relative error", "max relative error"]
    return markdown([*heading, "even part / odd part"], rows)


def rank_table(record: dict) -> str:
    """Spearman [95% interval], and in brackets its share of the ceiling."""
    truth = record["truth"]
    rows = []
    for estimator in truth[TRUTHS[0][1]]["estimators"]:
        cells = []
        for _, name in TRUTHS:
            e = truth[name]["estimators"][estimator]
            low, high = e["interval"]
            cells.append(f"{e['spearman']:.3f} [{low:.2f}, {high:.2f}] ({e['of_ceiling']:.0%})")
        rows.append([estimator, *cells])
    rows.append(["reliability; ceiling", *(f"{truth[n]['reliability']:.3f}; {truth[n]['ceiling']:.3f}" for _, n in TRUTHS)])
    return markdown(["estimator of r(x)", *(heading for heading, _ in TRUTHS)], rows)


def cause_table(record: dict) -> str:
    truth = record["truth"]
    estimators = list(truth[TRUTHS[0][1]]["estimators"])
    product, plain = estimators[0], next(e for e in estimators if "plain gradient (P = I)" in e)
    undamped = next(e for e in estimators if e.endswith("damping 0"))
    rows = []
    for label, name in CAUSES:
        found = truth[name]
        values = [f"{found['estimators'][e]['spearman']:.3f}" for e in (product, undamped, plain)]
        rows.append([label, *values, f"{found['reliability']:.3f}"])
    return markdown(["truth", "product", "undamped", "plain gradient", "reliability"], rows)


def cost_table(record: dict) -> str:
    cost = record["cost"]
    rows = [["forward pass", f"{cost['forward_seconds_per_probe'] * 1e3:.1f} ms", "1"]]
    for name in ("finite difference fp32", "ghost fp32"):
        rows.append([name, f"{cost[name]['seconds_per_probe'] * 1e3:.1f} ms", f"{cost[name]['forward_passes']:.2f}"])
    rows.append(["direction, per row of references", "", f"{cost['direction']['forward_passes_per_row']:.2f}"])
    return markdown(["per probe", "CPU time", "forward passes"], rows)


def label_table(record: dict) -> str:
    rows = []
    for i, label in enumerate(record["labels"]):
        gains = [record["gain"][part][seed][i] for part in ("audit", "direction") for seed in range(len(record["gain"]["audit"]))]
        reward = f"{record['mean_reward'][i]:+.3f} +- {record['standard_error'][i]:.3f}"
        rows.append([label, reward, *(f"{1e3 * g:+.2f}" for g in gains)])
    seeds = range(len(record["gain"]["audit"]))
    columns = [f"{part}, seed {seed}" for part in ("audit", "direction") for seed in seeds]
    return markdown(["domain", "mean reward", *columns], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rewards", help="JSON file of benchmarks.reward_truth")
    parser.add_argument("labels", nargs="?", help="JSON file of benchmarks.label_truth")
    arguments = parser.parse_args()
    record = json.loads(Path(arguments.rewards).read_text())
    for table in (agreement_table, rank_table, cause_table, cost_table):
        print(table(record))
    if arguments.labels:
        record = json.loads(Path(arguments.labels).read_text())
        print(label_table(record))
        print("\n".join(f"{name}: {value:.2f}" for name, value in record["spearman"].items()))


if __name__ == "__main__":
    main()
