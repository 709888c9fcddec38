"""How should a group probe be made? At a checkpoint, the outcomes of groups of every label for several numbers of steps, rows and
rates, with several draws of probes each: how far draws agree with each other, and with the truth: 25 steps at the run's rate,
half of every batch from a label and half from what the run was trained on. The truth is that of benchmarks.reward_usefulness for
the same checkpoint, where given, or is measured here for domains.

    python -m benchmarks.group_design --run runs/random --data LAB/data --step 148 --truth use_148.json --out FILE
    python -m benchmarks.group_design --run runs/news --data LAB/data --step 250 --mix news=16 books=1 speeches=1 --out FILE

Run from the repository root. The table and how to read it: benchmarks/reward_truth.md, section F.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.rank_statistics import spearman
from benchmarks.trained_run import TrainedRun
from benchmarks.usefulness_tables import gains
from mads.checkpoint import canonical
from mads.config.schema import GroupRewardConfig
from mads.launch.processes import become_single_process
from mads.model.shape import flops_per_token
from mads.reward.group import GroupRewarder
from mads.reward.probes import Probes, SharedProbes, draw_probes
from mads.reward.steps import ReferenceLoss, RewardContext, take
from mads.train.reward_model import EngineRewardModel

AGENTS = ("quality", "domain", "topic")
TRUTH_STEPS, TRUTH_ROWS = 25, 16


@dataclass(frozen=True)
class Design:
    """rows: of the label; mix: rows of what the run was trained on; falling: whether rates fall linearly to rate / steps"""

    steps: int
    rows: int
    mix: int = 0
    falling: bool = True
    factor: float = 1.0

    def rate(self, rate: float, step: int) -> float:
        return rate * self.factor * (1 - step / self.steps if self.falling else 1.0)


DESIGNS = {
    "6 steps of 2 + 2 rows": Design(6, 2, 2),
    "1 step of 8 rows": Design(1, 8),
    "1 step of 16 rows": Design(1, 16),
    "2 steps of 4 rows": Design(2, 4),
    "2 steps of 8 rows": Design(2, 8),
    "2 steps of 8 rows, constant rate": Design(2, 8, falling=False),
    "2 steps of 8 rows, twice the rate": Design(2, 8, factor=2.0),
    "2 steps of 8 + 8 rows": Design(2, 8, 8),
    "3 steps of 4 rows": Design(3, 4),
    "4 steps of 4 rows": Design(4, 4),
    "4 steps of 4 + 4 rows": Design(4, 4, 4),
    "4 steps of 8 + 8 rows": Design(4, 8, 8),
    "8 steps of 2 rows": Design(8, 2),
}


class Study:
    """A checkpoint and samples of its mix; the model is rewound before everything that is measured."""

    def __init__(self, run: TrainedRun, shares: dict[str, float], examples: int):
        self.run, self.examples = run, examples
        self.engine = run.engine(torch.float32)
        config = run.config
        flops, length = flops_per_token(config.model, config.data.seq_length), config.data.seq_length
        model = EngineRewardModel(self.engine)
        self.context = RewardContext(model, run.references, run.topology, length, config.train.seed, 8, flops)
        self.rate = run.rate(self.engine.state.steps)
        self.domains, self.labels = np.asarray(run.pool.codes("domain")), list(run.pool.labels("domain"))
        self.shares = shares
        self.mix = run.pool.tokens(self._draw(1500, np.random.default_rng(1)))

    def _draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        if not self.shares:
            return rng.permutation(len(self.domains))[:count]
        total, drawn = sum(self.shares.values()), []
        for label, share in self.shares.items():
            drawn.append(rng.choice(np.flatnonzero(self.domains == self.labels.index(label)), int(count * share / total)))
        return rng.permutation(np.concatenate(drawn))

    def train(self, rehearsal, samples, order, design: Design) -> None:
        start = mix_start = 0
        for step in range(design.steps):
            chosen, start = take(samples, order, start, design.rows * self.context.seq_length)
            beside = []
            if design.mix:
                beside, mix_start = take(self.mix, range(len(self.mix)), mix_start, design.mix * self.context.seq_length)
            batch = [samples[i] for i in chosen] + [self.mix[i] for i in beside]
            self.context.step(rehearsal, batch, design.rate(self.rate, step))

    def outcomes(self, design: Design, draw: int, probes: Probes) -> list[float]:
        canonical.load(self.run.checkpoint, self.engine, self.run.topology)
        groups = GroupRewarder(self.context, GroupRewardConfig(mode="group"))._groups(probes, draw)
        measure, samples = ReferenceLoss(self.context, "direction", self.examples, draw), self.run.pool.tokens(probes.positions)
        found = []
        with self.context.model.rehearsal() as rehearsal:
            start = measure()
            for order in groups:
                rehearsal.rewind()
                self.train(rehearsal, samples, order, design)
                found.append(start - measure())
        return found

    def truth(self, seed: int) -> list[float]:
        """Audit loss after more of the mix, less that after each domain beside it."""
        canonical.load(self.run.checkpoint, self.engine, self.run.topology)
        rng, design = np.random.default_rng(seed), Design(TRUTH_STEPS, TRUTH_ROWS, TRUTH_ROWS, falling=False)
        measure, losses = ReferenceLoss(self.context, "audit", 200, seed), []
        with self.context.model.rehearsal() as rehearsal:
            for label in [None, *range(len(self.labels))]:
                drawn = self._draw(1000, rng) if label is None else rng.permutation(np.flatnonzero(self.domains == label))[:1000]
                samples = self.run.pool.tokens(drawn)
                rehearsal.rewind()
                self.train(rehearsal, samples, range(len(samples)), design)
                losses.append(measure())
        return [losses[0] - loss for loss in losses[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a run with the checkpoint")
    parser.add_argument("--data", required=True, help="the prepared directory that it was trained on")
    parser.add_argument("--step", type=int, required=True, help="which of its checkpoints")
    parser.add_argument("--mix", nargs="*", default=[], metavar="LABEL=SHARE", help="domains that it was trained on; the pool's")
    parser.add_argument("--truth", help="file of benchmarks.reward_usefulness for the checkpoint")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2, help="of the truth that is measured here")
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--examples", type=int, default=8, help="reference examples per task after each group")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data, arguments.step)
    shares = {label: float(share) for label, share in (item.split("=") for item in arguments.mix)}
    study = Study(run, shares, arguments.examples)
    labels = {a: list(run.pool.labels(a)) for a in AGENTS}
    record = {"arguments": vars(arguments), "labels": labels, "outcomes": {}, "agreement": {}}
    if arguments.truth:
        record["truth"] = given_truth(json.loads(Path(arguments.truth).read_text()), labels, arguments.step)
    else:
        record["truth"] = {"domain": np.mean([study.truth(seed) for seed in range(arguments.seeds)], 0).tolist()}
    for name, design in DESIGNS.items():
        drawn = [
            draw_probes(run.pool, SharedProbes(arguments.probes), {a: a for a in AGENTS}, draw, 0)
            for draw in range(arguments.draws)
        ]
        found = [study.outcomes(design, draw, probes) for draw, probes in enumerate(drawn)]
        record["outcomes"][name] = found
        record["agreement"][name] = told = agreement(found, labels, record["truth"])
        print(name, {key: round(value, 2) for key, value in told.items()}, file=sys.stderr, flush=True)
        Path(arguments.out).write_text(json.dumps(record) + "\n")


def given_truth(record: dict, labels: dict[str, list[str]], step: int) -> dict[str, list[float]]:
    """agent -> mean gain of every label over the seeds of a file of reward_usefulness.

    Raises:
        ValueError: if the file is of another checkpoint or of other labels.
    """
    if record["steps_trained"] != step or record["labels"] != labels:
        raise ValueError(
            f"--truth is of step {record['steps_trained']} with the labels {record['labels']}, not of {step}, {labels}"
        )
    return {agent: [float(gains(record, agent, label).mean()) for label in own] for agent, own in labels.items()}


def agreement(found: list[list[float]], labels: dict[str, list[str]], truth: dict[str, list[float]]) -> dict[str, float]:
    """Mean correlation of outcomes between draws; Spearman of a draw's outcomes with the truth, mean over draws: of each agent,
    and of all agents that have a truth."""
    ends = np.cumsum([len(own) for own in labels.values()])
    outcomes = np.array(found)[:, : ends[-1]]
    by_agent = dict(zip(labels, np.split(outcomes, ends[:-1], axis=1)))
    told = {"draws": float(np.corrcoef(outcomes)[np.triu_indices(len(found), 1)].mean())}
    for agent, gain in truth.items():
        told[agent] = float(np.mean([spearman(row, np.array(gain)) for row in by_agent[agent]]))
    whole, gain = np.concatenate([by_agent[a] for a in truth], axis=1), np.concatenate(list(truth.values()))
    return {**told, "all": float(np.mean([spearman(row, gain) for row in whole]))}


if __name__ == "__main__":
    main()
