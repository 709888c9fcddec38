"""How should a group probe be made? At a checkpoint, the outcomes of groups of every label for several numbers of steps, rows and
rates, with three draws of probes each: how far draws agree with each other, and with the truth: 25 steps at the run's rate, half
of every batch from a domain and half from what the run was trained on.

    python -m benchmarks.group_design --run runs/random --data LAB/data --step 148 --out FILE
    python -m benchmarks.group_design --run runs/news --data LAB/data --step 250 --mix news=16 books=1 speeches=1 --out FILE

Run from the repository root. The table and how to read it: benchmarks/reward_truth.md, section F.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.trained_run import TrainedRun
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
    "1 step of 8 rows": Design(1, 8),
    "1 step of 32 rows": Design(1, 32),
    "4 steps of 2 rows, constant rate": Design(4, 2, falling=False),
    "4 steps of 8 rows, constant rate": Design(4, 8, falling=False),
    "4 steps of 8 rows": Design(4, 8),
    "8 steps of 2 rows": Design(8, 2),
    "8 steps of 2 rows, a quarter of the rate": Design(8, 2, factor=0.25),
    "8 steps of 4 rows": Design(8, 4),
    "4 steps of 4 + 4 rows": Design(4, 4, 4),
    "8 steps of 2 + 2 rows": Design(8, 2, 2),
    "6 steps of 2 + 2 rows": Design(6, 2, 2),
    "4 steps of 4 + 12 rows": Design(4, 4, 12),
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
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2, help="of the truth")
    parser.add_argument("--probes", type=int, default=2000)
    parser.add_argument("--examples", type=int, default=6, help="reference examples per task after each group")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data)
    run = replace(run, checkpoint=Path(arguments.run) / "checkpoints" / f"step-{arguments.step:08d}")
    shares = {label: float(share) for label, share in (item.split("=") for item in arguments.mix)}
    study = Study(run, shares, arguments.examples)
    record = {"arguments": vars(arguments), "labels": {a: list(run.pool.labels(a)) for a in AGENTS}, "outcomes": {}}
    record["truth"] = [study.truth(seed) for seed in range(arguments.seeds)]
    truth = np.mean(record["truth"], 0)
    print("truth", dict(zip(study.labels, truth.round(4).tolist())), file=sys.stderr, flush=True)
    first = len(record["labels"]["quality"])
    for name, design in DESIGNS.items():
        found = []
        for draw in range(arguments.draws):
            probes = draw_probes(run.pool, SharedProbes(arguments.probes), {a: a for a in AGENTS}, draw, 0)
            found.append(study.outcomes(design, draw, probes))
        record["outcomes"][name] = found
        labels = np.array(found)[:, : sum(map(len, record["labels"].values()))]
        between = np.corrcoef(labels)[np.triu_indices(len(found), 1)]
        agreement = [np.corrcoef(row[first : first + len(truth)], truth)[0, 1] for row in labels]
        print(f"{name}: draws agree {between.mean():.2f}, with the truth {np.mean(agreement):.2f}", file=sys.stderr, flush=True)
        Path(arguments.out).write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
