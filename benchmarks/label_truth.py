"""Does a label's mean reward say what training on more of it does? Ranks the domains by mean reward, and by what happens to the
reference loss when half of every batch of a few dozen further steps comes from one domain.

    python -m benchmarks.label_truth --run runs/mads --data data/demo --out benchmarks/label_truth.json

Run from the repository root. The table and how to read it: benchmarks/reward_truth.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.exact_model import ReferenceSet
from benchmarks.rank_statistics import spearman
from benchmarks.trained_run import TrainedRun
from mads.checkpoint import canonical
from mads.config.schema import FiniteDifferenceRewardConfig
from mads.launch.processes import become_single_process
from mads.logging.environment import environment
from mads.train.engine import TrainEngine
from mads.train.reward_model import EngineRewardModel


def label_rewards(run: TrainedRun, engine: TrainEngine, probes: int) -> tuple[np.ndarray, np.ndarray]:
    """(token-weighted mean reward of every domain, its standard error) from the product's finite differences."""
    reward = run.config.reward
    settings = FiniteDifferenceRewardConfig(
        mode="finite_difference",
        reference_examples=reward.reference_examples,
        damping=reward.damping,
        rows_per_batch=reward.rows_per_batch,
    )
    positions, domains = run.probes(probes, seed=2)
    rewarder = run.rewarder(engine, settings)
    rewards, targets = rewarder.rewards(rewarder.direction(0), run.pool.tokens(positions))
    means, errors = [], []
    for domain in range(len(run.pool.labels("domain"))):
        r, n = rewards[domains == domain], targets[domains == domain]
        mean = np.average(r, weights=n)
        means.append(mean)
        errors.append(np.sqrt((n**2 * (r - mean) ** 2).sum()) / n.sum())
    return np.array(means), np.array(errors)


def reference_loss(model: EngineRewardModel, references: ReferenceSet) -> float:
    return sum(float((model.sample_losses([batch])[0] * weight).sum()) for batch, weight in references.batches)


def losses_after(
    run: TrainedRun, engine: TrainEngine, references: dict, steps: int, seed: int, only: np.ndarray | None
) -> dict[str, float]:
    """Reference losses by part after `steps` further steps from the checkpoint at its learning rate. Half of every batch is drawn
    from the whole pool, the same rows for every label; the other half from the positions `only` (None: the whole pool too)."""
    canonical.load(run.checkpoint, engine, run.topology)
    half = run.config.train.global_batch_size // 2
    common = run.batches(steps, 100 + seed, rows=half)
    other = run.batches(steps, 200 + seed, only=only, rows=half)
    rate = run.rate(engine.state.steps)
    for _ in range(steps):
        first, second = common.next(), other.next()
        engine.train_step(first.micro_batches + second.micro_batches, first.valid_tokens + second.valid_tokens, rate)
    model = EngineRewardModel(engine)
    return {part: reference_loss(model, r) for part, r in references.items()}


def summary(means: np.ndarray, gains: dict[str, np.ndarray]) -> dict:
    """Rank correlations over the domains. gains: by part, float64 [seeds, domains]."""
    result = {f"mean reward against gain, {part}": spearman(means, g.mean(0)) for part, g in gains.items()}
    first, second = gains["audit"][0], gains["audit"][1]
    return result | {
        "audit gain of seed 0 against seed 1": spearman(first, second),
        "audit gain against direction gain": spearman(gains["audit"].mean(0), gains["direction"].mean(0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a run of `mads train`; its newest checkpoint is studied")
    parser.add_argument("--data", required=True, help="the prepared directory that it was trained on")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--probes", type=int, default=256, help="equally many of every domain")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2, help="at least 2")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds {arguments.seeds}: without a second seed nothing says how much of a ranking is chance")

    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data)
    engine = run.engine(torch.float32)
    means, errors = label_rewards(run, engine, arguments.probes)
    reward, data = run.config.reward, run.config.data
    references = {
        part: ReferenceSet(
            run.references, part, reward.reference_examples, run.config.train.seed, data.seq_length, reward.rows_per_batch
        )
        for part in ("direction", "audit")
    }
    labels = run.pool.labels("domain")
    gains = {part: np.zeros((arguments.seeds, len(labels))) for part in references}
    for seed in range(arguments.seeds):
        base = losses_after(run, engine, references, arguments.steps, seed, None)
        for domain, label in enumerate(labels):
            only = np.flatnonzero(np.asarray(run.pool.codes("domain")) == domain)
            after = losses_after(run, engine, references, arguments.steps, seed, only)
            for part in references:
                gains[part][seed, domain] = base[part] - after[part]
            print(
                f"{time.process_time():7.1f} s  seed {seed} {label}: audit {gains['audit'][seed, domain]:+.5f}", file=sys.stderr
            )
    record = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(1, "cpu", ["benchmarks/label_truth.py"]),
        "arguments": {k: v for k, v in vars(arguments).items() if k not in ("run", "data", "out")},
        "rate": run.rate(engine.state.steps),
        "labels": list(labels),
        "mean_reward": means.tolist(),
        "standard_error": errors.tolist(),
        "gain": {part: g.tolist() for part, g in gains.items()},
        "spearman": summary(means, gains),
        "cpu_seconds": time.process_time(),
    }
    Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
