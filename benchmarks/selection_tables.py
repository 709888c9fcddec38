"""Prints the Markdown tables of benchmarks/selection.md from the results of cells of mads compare.

python -m benchmarks.selection_tables benchmarks/selection/fresh_13_15/results --treatment mads --primary moore_lewis
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reward_tables import markdown
from mads.compare.summary import Comparison, Metric, Roles, number, p_text, reach_text, read_results

TASKS = Metric("nine tasks", ("evaluation", "mean_bits_per_byte"), "bits per byte")
REFERENCES = Metric("reference loss", ("references_mean",), "nats per token")
HELD_OUT = Metric("held-out loss", ("heldout_mean",), "nats per token")
GIVEN_UP = [Metric(f"held-out: {domain}", ("heldout", domain), "nats per token") for domain in ("code", "latex")]


def read(folder: Path, treatment: str, primary: str, only: Sequence[str] | None = None, seeds: Sequence[int] = ()) -> Comparison:
    """The results of a folder with random as control, BoolQ outside of the mean.

    Raises:
        ValueError: a strategy or a seed that the folder does not hold.
    """
    results = [r for r in read_results(folder) if not seeds or r["seed"] in seeds]
    if missing := sorted({*(only or []), treatment, primary} - {r["strategy"] for r in results}):
        raise ValueError(f"{folder} holds no result of {', '.join(missing)}")
    kept = [r for r in results if only is None or r["strategy"] in {"random", treatment, primary, *only}]
    comparison = Comparison(kept, Roles("random", treatment, primary, ("boolq",)))
    if missing_seeds := sorted(set(seeds) - set(comparison.seeds)):
        raise ValueError(f"{folder} holds no result of seed {', '.join(map(str, missing_seeds))}")
    return comparison


def destroyed(results: Iterable[dict[str, Any]]) -> float:
    """Share of destroyed text in all tokens chosen, mean over seeds."""
    shares = [r["destroyed"]["destroyed"]["all"] for r in results]
    return sum(shares) / len(shares)


def by_seed(comparison: Comparison, strategy: str) -> str:
    """The headline of each seed of the comparison, with a dash where it was not run."""
    final = comparison.final(strategy, TASKS)
    return ", ".join(f"{final[s]:.4f}" if s in final else "–" for s in comparison.seeds)


def headline(comparison: Comparison) -> str:
    """The treatment, then the others from the best mean on: headline by seed, paired difference, what was won and given up."""
    roles = comparison.roles
    differences = {o: (number(d, sign=True).replace("−", "-"), p_text(p)) for o, d, p in comparison.treatment_table(TASKS)}
    means = {s: comparison.mean(s, TASKS).mean for s in comparison.strategies}
    rows = []
    for strategy in sorted(comparison.strategies, key=lambda s: (s != roles.treatment, means[s])):
        losses = [f"{comparison.mean(strategy, m).mean:.3f}" for m in (REFERENCES, HELD_OUT)]
        given_up = ", ".join(f"{comparison.mean(strategy, m).mean:.1f}" for m in GIVEN_UP)
        shares = [destroyed(comparison.cells[strategy].values()), comparison.cost(strategy)["selection_flops"].mean]
        reached = [comparison.reached(strategy, TASKS, compute) for compute in (False, True)]
        rows.append(
            [
                f"`{strategy}`",
                by_seed(comparison, strategy),
                f"{means[strategy]:.4f}",
                *differences.get(strategy, ("", "")),
                *losses,
                given_up,
                *(f"{share:.1%}" for share in shares),
                *("" if r is None or strategy == roles.control else reach_text(r) for r in reached),
            ]
        )
    head = [
        "strategy",
        f"seeds {', '.join(map(str, comparison.seeds))}: nine tasks",
        "mean",
        f"`{roles.treatment}` minus it",
        "p",
    ]
    head += ["reference loss", "held-out loss", "code, LaTeX", "destroyed text", "rewards", "tokens to random's end", "compute"]
    return markdown(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of a folder of results, in Markdown.")
    parser.add_argument("folder", type=Path, help="a folder of STRATEGY-SEED.json")
    parser.add_argument("--treatment", default="mads", help="the strategy whose claim is tested")
    parser.add_argument("--primary", default="moore_lewis", help="its main opponent; the others' p are Holm-corrected")
    parser.add_argument("--only", nargs="+", metavar="STRATEGY", help="these beside treatment, primary and random")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="these only")
    arguments = parser.parse_args()
    comparison = read(arguments.folder, arguments.treatment, arguments.primary, arguments.only, arguments.seeds)
    print(headline(comparison), end="")


if __name__ == "__main__":
    main()
