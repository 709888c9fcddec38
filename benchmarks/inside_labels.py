"""Do rewards tell the samples of one label apart? The samples of a domain are ranked, and the model trained with half of every
batch from the better half of them, or from the worse: how much lower does the reference loss end?

    python -m benchmarks.inside_labels --run runs/mads --data LAB/data --step 196 --out benchmarks/inside_labels/step_196.json

Run from the repository root, on a run with a checkpoint and a pool with the column `likeness`. What is done is kept in --out and
is not done again, so that it may be stopped. The table and how to read it: benchmarks/reward_truth.md, section E.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.kept import keeper, opened
from benchmarks.label_truth import losses_after
from benchmarks.reward_tables import markdown
from benchmarks.reward_usefulness import LATER, rewards_of
from benchmarks.trained_run import TrainedRun, checkpoint_parser
from mads.launch.processes import become_single_process
from mads.logging.environment import environment
from mads.noise import hash64
from mads.reward.probes import Probes
from mads.train.engine import TrainEngine

BINS = 20  # of likeness, inside of which rewards are compared when what likeness says is to be left out


def rewards(run: TrainedRun, engine: TrainEngine, drawn: np.ndarray, seed: int, kind: str) -> np.ndarray:
    """Rewards of `kind` of single samples at these positions, float64 [n]."""
    probes = Probes(drawn, run.pool.ids[drawn], np.ones(len(drawn)), {}, True)
    return rewards_of(run, engine, kind, probes, run.pool.tokens(drawn), seed)[0]


def beside(values: np.ndarray, column: np.ndarray) -> np.ndarray:
    """`values` less their mean over the samples whose `column` is in the same of BINS quantiles, [n]."""
    place = np.argsort(np.argsort(column, kind="stable"), kind="stable")
    bins = place * min(BINS, len(column)) // len(column)
    return values - (np.bincount(bins, values) / np.bincount(bins))[bins]


def likeness(run: TrainedRun, drawn: np.ndarray) -> np.ndarray:
    return np.asarray(run.pool.values("likeness")[drawn], np.float64)


RANKINGS = {
    "one step": lambda run, engine, drawn, seed: rewards(run, engine, drawn, seed, "one step"),
    "likeness": lambda run, engine, drawn, seed: likeness(run, drawn),
    "one step beside likeness": lambda run, engine, drawn, seed: beside(
        rewards(run, engine, drawn, seed, "one step"), likeness(run, drawn)
    ),
    **{name: lambda run, engine, drawn, seed, name=name: rewards(run, engine, drawn, seed, name) for name in LATER},
    "displacement, 8 steps": lambda run, engine, drawn, seed: rewards(run, engine, drawn, seed, "displacement, 8 steps"),
}


def draw(run: TrainedRun, domain: int, steps: int, seed: int) -> tuple[np.ndarray, float]:
    """(positions of samples of the domain, as many as two trainings of `steps` need; tokens that a half of them is to hold).

    Raises ValueError if the domain has too few."""
    of_domain = np.flatnonzero(np.asarray(run.pool.codes("domain")) == domain)
    order = of_domain[np.argsort(hash64(seed, "benchmark/halves", 0, run.pool.ids[of_domain]), kind="stable")]
    needed = 1.1 * steps * run.config.train.global_batch_size // 2 * run.config.data.seq_length  # rows are not full
    held = np.cumsum(np.asarray(run.pool.lengths)[order])
    if held[-1] < 2 * needed:  # no sample is used twice
        raise ValueError(f"{run.pool.labels('domain')[domain]!r} holds {held[-1]:,} tokens; two halves need {2 * needed:,.0f}")
    return np.sort(order[: int(np.searchsorted(held, 2 * needed)) + 1]), needed


def halves(
    run: TrainedRun, engine: TrainEngine, references: dict, steps: int, seed: int, domain: int, ranking: str
) -> list[dict]:
    """Reference losses after training with half the batch from the better and from the worse half, by tokens, of the samples."""
    drawn, needed = draw(run, domain, steps, seed)
    ranked = drawn[np.argsort(RANKINGS[ranking](run, engine, drawn, seed))]
    below = np.cumsum(np.asarray(run.pool.lengths)[ranked]) <= needed
    return [losses_after(run, engine, references, steps, seed, part) for part in (ranked[~below], ranked[below])]


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0])
    parser.add_argument("--rankings", nargs="+", choices=list(RANKINGS), default=list(RANKINGS))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--reference-examples", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data, arguments.step)
    engine = run.engine(torch.float32)
    out = Path(arguments.out)
    fixed = {k: v for k, v in vars(arguments).items() if k in ("step", "steps", "reference_examples")}
    record = opened(out, fixed, {"halves": {}}, parser.error)
    record["date"], record["environment"] = datetime.date.today().isoformat(), environment(1, "cpu", [])
    record["steps_trained"] = engine.state.steps
    references = run.reference_sets(arguments.reference_examples)
    keep = keeper(record, out)
    for ranking in arguments.rankings:
        for seed in range(arguments.seeds):
            for j, label in enumerate(run.pool.labels("domain")):
                keep(
                    "halves",
                    f"{ranking}/{seed}/{label}",
                    lambda j=j, seed=seed, ranking=ranking: halves(run, engine, references, arguments.steps, seed, j, ranking),
                )
    print(table(record, arguments.rankings))


def won(record: dict) -> dict[str, dict[str, list[float]]]:
    """ranking -> domain -> how much lower the audit loss ends with the better half than with the worse, one figure a seed."""
    result: dict = {}
    for key, (better, worse) in record["halves"].items():
        ranking, _, label = key.split("/")
        result.setdefault(ranking, {}).setdefault(label, []).append(worse["audit"] - better["audit"])
    return result


def table(record: dict, rankings: Sequence[str]) -> str:
    """A row for each of `rankings`, all of them done: mean over domains and its standard error over seeds, then each domain's
    mean, in thousandths of a nat."""
    rows, measured = [], won(record)
    for ranking in rankings:
        of = measured[ranking]
        seeds = min(map(len, of.values()))
        whole = 1e3 * np.array([values[:seeds] for values in of.values()])
        level = whole.mean(0)
        error = f" ± {level.std(ddof=1) / seeds**0.5:.0f}" if seeds > 1 else ""
        better = f"{int((whole > 0).sum())} of {whole.size}"
        rows.append([ranking, str(seeds), f"{level.mean():+.0f}{error}", better, *(f"{v:+.0f}" for v in whole.mean(1))])
    return markdown(["ranked by", "seeds", "won", "better half ahead", *measured[rankings[0]]], rows)


if __name__ == "__main__":
    main()
