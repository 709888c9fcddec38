"""How should a group probe be made? At a checkpoint, the product's rewards by group probes for several numbers of steps and rows,
with several draws of probes each: how far draws agree with each other, and with the truth: 25 steps at the run's rate, half of
every batch from a label and half from what the run was trained on. The truth is that of benchmarks.reward_usefulness for the same
checkpoint, where given, or is measured here for domains.

    python -m benchmarks.group_design --run runs/random --data LAB/data --step 148 --truth use_148.json --out FILE
    python -m benchmarks.group_design ... --later 25 --designs "3 steps of 8 rows"      # at other moments of the same run
    python -m benchmarks.group_design --run runs/news --data LAB/data --step 250 --mix news=16 books=1 speeches=1 --out FILE

Run from the repository root; what is done is kept in --out and is not done again. The table and how to read it:
benchmarks/reward_truth.md, section F.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.kept import keeper, opened
from benchmarks.rank_statistics import spearman
from benchmarks.reward_usefulness import AGENTS, label_means, train_on
from benchmarks.trained_run import TrainedRun
from benchmarks.usefulness_tables import gains
from mads.checkpoint import canonical
from mads.config.schema import GroupRewardConfig
from mads.launch.processes import become_single_process
from mads.model.shape import flops_per_token
from mads.reward.group import GroupRewarder
from mads.reward.probes import SharedProbes, draw_probes
from mads.reward.steps import ReferenceLoss, RewardContext, take
from mads.train.reward_model import EngineRewardModel

TRUTH_STEPS, TRUTH_ROWS = 25, 16
DESIGNS = {  # steps, rows of the label, rows of the mix
    "6 steps of 2 + 2 rows": (6, 2, 2),
    "1 step of 16 rows": (1, 16, 0),
    "2 steps of 4 rows": (2, 4, 0),
    "2 steps of 8 rows": (2, 8, 0),
    "2 steps of 16 rows": (2, 16, 0),
    "2 steps of 8 + 8 rows": (2, 8, 8),
    "3 steps of 8 rows": (3, 8, 0),
    "4 steps of 4 rows": (4, 4, 0),
    "4 steps of 4 + 4 rows": (4, 4, 4),
    "4 steps of 8 rows": (4, 8, 0),
    "8 steps of 8 rows": (8, 8, 0),
}
TRAVELLING = {  # the same and rate_factor: not run unless named
    "6 steps of 8 rows": (6, 8, 0, 1),
    "12 steps of 4 rows": (12, 4, 0, 1),
    "12 steps of 1 + 1 rows": (12, 1, 1, 1),
    "12 steps of 2 + 2 rows": (12, 2, 2, 1),
    "12 steps of 4 + 4 rows": (12, 4, 4, 1),
    "24 steps of 1 + 1 rows": (24, 1, 1, 1),
    "12 steps of 2 rows, twice the rate": (12, 2, 0, 2),
    "12 steps of 1 + 1 rows, twice the rate": (12, 1, 1, 2),
    "12 steps of 2 + 2 rows, twice the rate": (12, 2, 2, 2),
    "12 steps of 4 + 4 rows, twice the rate": (12, 4, 4, 2),
}


class Study:
    """A checkpoint and samples of its mix; the model is as it was saved before everything that is measured."""

    def __init__(self, run: TrainedRun, shares: dict[str, float], probes: int, later: int):
        self.run, self.probes, self.later = run, probes, later
        self.engine = run.engine(torch.float32)
        config = run.config
        self.flops, length = flops_per_token(config.model, config.data.seq_length), config.data.seq_length
        model = EngineRewardModel(self.engine)
        self.context = RewardContext(model, run.references, run.topology, length, config.train.seed, 8, self.flops)
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

    def rewards(self, config: GroupRewardConfig, draw: int) -> dict:
        """Label means of the rewards of one draw, and the tokens of training that the round costs."""
        canonical.load(self.run.checkpoint, self.engine, self.run.topology)
        if self.later:
            train_on(self.run, self.engine, self.later, False, draw)
        probes = draw_probes(self.run.pool, SharedProbes(self.probes), {a: a for a in AGENTS}, draw, 0)
        found = GroupRewarder(self.context, config)(probes, self.run.pool.tokens(probes.positions), draw, self.rate, self.mix)
        means = label_means(self.run, probes, found.rewards, found.targets)
        return {"means": means, "tokens": found.direction["flops"] / self.flops}

    def truth(self, seed: int) -> list[float]:
        """Audit loss after more of the mix, less that after each domain beside it."""
        canonical.load(self.run.checkpoint, self.engine, self.run.topology)
        rng = np.random.default_rng(seed)
        measure, losses = ReferenceLoss(self.context, "audit", 200, seed), []
        with self.context.model.rehearsal() as rehearsal:
            for label in [None, *range(len(self.labels))]:
                drawn = self._draw(1000, rng) if label is None else rng.permutation(np.flatnonzero(self.domains == label))[:1000]
                samples = self.run.pool.tokens(drawn)
                rehearsal.rewind()
                start = beside = 0
                for _ in range(TRUTH_STEPS):
                    rows = TRUTH_ROWS * self.context.seq_length
                    own, start = take(samples, range(len(samples)), start, rows)
                    mixed, beside = take(self.mix, range(len(self.mix)), beside, rows)
                    self.context.step(rehearsal, [samples[i] for i in own] + [self.mix[i] for i in mixed], self.rate)
                losses.append(measure())
        return [losses[0] - loss for loss in losses[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a run with the checkpoint")
    parser.add_argument("--data", required=True, help="the prepared directory that it was trained on")
    parser.add_argument("--step", type=int, required=True, help="which of its checkpoints")
    parser.add_argument("--mix", nargs="*", default=[], metavar="LABEL=SHARE", help="domains that it was trained on; the pool's")
    parser.add_argument("--truth", help="file of benchmarks.reward_usefulness for the checkpoint")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2, help="of the truth that is measured here")
    parser.add_argument("--probes", type=int, default=1024)
    parser.add_argument("--examples", type=int, default=8, help="reference examples per task after each group")
    parser.add_argument("--later", type=int, default=0, help="steps on random batches before each draw, each with its own")
    parser.add_argument("--designs", nargs="+", choices=[*DESIGNS, *TRAVELLING], default=list(DESIGNS))
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data, arguments.step)
    shares = {label: float(share) for label, share in (item.split("=") for item in arguments.mix)}
    study = Study(run, shares, arguments.probes, arguments.later)
    fixed = {k: v for k, v in vars(arguments).items() if k in ("step", "mix", "probes", "examples") or (k == "later" and v)}
    labels = {a: list(run.pool.labels(a)) for a in AGENTS}
    out = Path(arguments.out)
    record = opened(out, fixed, {"labels": labels, "truth": {}, "rewards": {}}, parser.error)
    keep = keeper(record, out)
    if arguments.truth:
        record["truth"] = given_truth(json.loads(Path(arguments.truth).read_text()), labels, arguments.step)
    else:
        keep("truth", "domain", lambda: np.mean([study.truth(seed) for seed in range(arguments.seeds)], 0).tolist())
    for name in arguments.designs:
        config = config_of(name, arguments.examples)
        for draw in range(arguments.draws):
            keep("rewards", f"{name}/{draw}", lambda config=config, draw=draw: study.rewards(config, draw))
        told = agreement([record["rewards"][f"{name}/{draw}"] for draw in range(arguments.draws)], record["truth"])
        print(name, {key: round(value, 2) for key, value in told.items()}, flush=True)


def config_of(name: str, examples: int) -> GroupRewardConfig:
    """The reward of a design, with that many reference examples per task."""
    steps, rows, mix, factor = (*DESIGNS[name], 1) if name in DESIGNS else TRAVELLING[name]
    sizes = {"steps": steps, "step_rows": rows, "mix_rows": mix, "reference_examples": examples}
    return GroupRewardConfig(mode="group", rate_factor=float(factor), **sizes)


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


def agreement(found: list[dict], truth: dict[str, list[float]]) -> dict[str, float]:
    """Mean Spearman correlation of label means between draws, and of a draw with the truth: of each agent and of all that have a
    truth; the cost in tokens of training."""
    means = [{agent: np.array(draw["means"][agent]["marginal"]) for agent in truth} for draw in found]
    whole, gain = [np.concatenate(list(m.values())) for m in means], np.concatenate(list(truth.values()))
    pairs = [spearman(a, b) for i, a in enumerate(whole) for b in whole[:i]]
    told = {agent: float(np.mean([spearman(m[agent], np.array(truth[agent])) for m in means])) for agent in truth}
    told |= {"all": float(np.mean([spearman(w, gain) for w in whole])), "draws": float(np.mean(pairs)) if pairs else 1.0}
    return {**told, "tokens": float(np.mean([draw["tokens"] for draw in found]))}


if __name__ == "__main__":
    main()
