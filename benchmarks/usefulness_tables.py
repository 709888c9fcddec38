"""Prints the tables of section E of benchmarks/reward_truth.md from files of benchmarks.reward_usefulness, one a checkpoint.

python -m benchmarks.usefulness_tables use_98.json use_196.json use_392.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.reward_tables import markdown

COLUMNS = ("domain", "quality", "topic", "all")


def agreement_table(records: list[dict]) -> str:
    """Spearman of a kind's label means with the truth: the mean over checkpoints, in brackets each of them."""
    rows = []
    for kind in records[0]["agreement"]:
        found = {c: [r["agreement"][kind][c] for r in records] for c in COLUMNS}
        cost = records[0]["agreement"][kind].get("tokens of training that a round costs")
        cells = [f"{np.mean(v):.2f} ({', '.join(f'{x:.2f}' for x in v)})" for v in found.values()]
        rows.append([kind, *cells, "" if cost is None else f"{cost / 1e3:.0f}k"])
    return markdown(["kind", *COLUMNS, "tokens a round"], rows)


def truth_table(records: list[dict]) -> str:
    """Gain of every label in thousandths of a nat, mean and standard error over seeds, a column a checkpoint."""
    rows = []
    for agent, labels in records[0]["labels"].items():
        for label in labels:
            rows.append([agent, label, *(gain_text(gains(record, agent, label)) for record in records)])
    return markdown(["agent", "label", *(f"step {r['steps_trained']}" for r in records)], rows)


def gains(record: dict, agent: str, label: str) -> np.ndarray:
    seeds = sorted({key.split("/")[0] for key in record["gain"]})
    of = lambda seed, key: record["gain"][f"{seed}/{key}"]["audit"]  # noqa: E731
    return np.array([of(s, "none") - of(s, f"{agent}/{label}") for s in seeds])


def gain_text(values: np.ndarray) -> str:
    error = values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean() * 1e3:+.0f} ± {error * 1e3:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    records = [json.loads(Path(name).read_text()) for name in parser.parse_args().files]
    print(agreement_table(records))
    print(truth_table(records))


if __name__ == "__main__":
    main()
