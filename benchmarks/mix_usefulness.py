"""Do group rewards say what a larger weight of a label would do to this run, and does it matter where the probes are drawn?

At a checkpoint of a run of selection=mads with label agents: for every label of every agent, the gain of the reference loss when
half of every batch of 25 further steps is drawn from the label as the run would choose it now (in proportion to exp(S / T)) and
half from the current mix, over the mix alone. Against it: the labels' effects by group probes that are drawn from the pool and
from the mix, and R_A over each.

    python -m benchmarks.mix_usefulness --run RUN --data LAB/data --step 196 --out FILE

Run from the repository root. What is done is kept in --out and is not done again.
How to read it: benchmarks/reward_truth.md, section G.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.kept import keeper
from benchmarks.rank_statistics import spearman, split_half_reliability
from benchmarks.trained_run import TrainedRun
from mads.agents.rules import standardised_gain
from mads.checkpoint import canonical
from mads.config.factory import build_all
from mads.console.attribute_rewards import own_parts
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.data.ledger import Ledger
from mads.launch.processes import become_single_process
from mads.model.shape import flops_per_token
from mads.noise import gumbel, hash64
from mads.reward.build import build_rewarder
from mads.reward.probes import Probes, SharedProbes, draw_probes
from mads.reward.steps import ReferenceLoss, RewardContext, take
from mads.train.reward_model import EngineRewardModel

STEPS, ROWS, SAMPLES = 25, 16, 700  # of the truth: rows of the label and as many of the mix, samples of a label
SOURCES = ("pool", "mix")


class Study:
    """The checkpoint with its console: agents as they are, what was used, what is trained on."""

    def __init__(self, run: TrainedRun, examples: int):
        self.run, config, self.examples = run, run.config, examples
        self.engine = run.engine(torch.float32)
        state, arrays = canonical.read_state(run.checkpoint)
        self.strategy = build_strategy(config.selection)
        agents = list(build_all(config.agents.members, "agents.members").values())
        self.console = Console(run.topology, run.pool, agents, self.strategy, config.train.seed)
        self.console.load_state(state["console"], arrays["pending_ids"])
        self.uses = Ledger.load(run.checkpoint / "ledger.bin", len(run.pool)).counts
        length = config.data.seq_length
        flops = flops_per_token(config.model, length)
        self.context = RewardContext(
            EngineRewardModel(self.engine), run.references, run.topology, length, config.train.seed, 8, flops
        )
        self.rate = run.rate(self.engine.state.steps)
        self.agents = {agent.name: agent for agent in agents}
        self.codes = {agent.name: np.asarray(run.pool.codes(agent.attribute)[:]).astype(int) for agent in agents}
        # Samples of the decision in use that the run did not get to yet stand for it as well as those that it did.
        self.pending = run.pool.positions_of(self.console.pending)

    def drawn(self, source: str, count: int, seed: int) -> Probes:
        """About `count` probes of all agents: of each label any samples, or as the run would choose them now."""
        attributes = {name: agent.attribute for name, agent in self.agents.items()}
        if source == "pool":
            return draw_probes(self.run.pool, SharedProbes(count), attributes, seed, 0)
        score = sum(t * a.weights[self.codes[n]] for t, (n, a) in zip(self.console.theta, self.agents.items()))
        weight = len(self.agents) / self.strategy.temperature * score
        most = self.strategy.limits.max_uses
        may = np.flatnonzero(self.uses < (most or np.inf))
        members: dict[str, np.ndarray] = {}
        for name, agent in self.agents.items():
            # Gumbel top-k: without replacement, in proportion to exp(weight).
            order = may[np.argsort(-(weight[may] + gumbel(seed, f"benchmark/{name}", 0, self.run.pool.ids[may])), kind="stable")]
            quota = count // len(self.agents) // len(agent.labels)
            members[name] = np.concatenate([order[self.codes[name][order] == j][:quota] for j in range(len(agent.labels))])
        at = np.unique(np.concatenate(list(members.values())))
        own = {name: np.isin(at, drawn) for name, drawn in members.items()}
        codes = {name: code[at] for name, code in self.codes.items()}
        sizes = {name: len(agent.labels) for name, agent in self.agents.items()}
        return Probes(at, self.run.pool.ids[at], np.ones(len(at)), own, True, codes, sizes)

    def mix(self, seed: int) -> list[np.ndarray]:
        order = np.argsort(hash64(seed, "benchmark/mix", 0, self.run.pool.ids[self.pending]), kind="stable")
        return self.run.pool.tokens(self.pending[order][: 2 * SAMPLES])

    def effects(self, source: str, count: int, seed: int) -> dict:
        """Effects by the run's own kind of group rewards, and what each agent would earn for its weights."""
        canonical.load(self.run.checkpoint, self.engine, self.run.topology)
        probes = self.drawn(source, count, seed)
        sizes = {name: shape.numel() for name, shape in self.engine.logical_shapes.items()}
        rewarder = build_rewarder(self.context, sizes, self.run.config.optim, self.run.config.reward)
        found = rewarder(probes, self.run.pool.tokens(probes.positions), seed, self.rate, self.mix(seed))
        result = {
            "flops": found.direction["flops"],
            "explained": found.direction["explained"],
            "own": {},
            "marginal": {},
            "earned": {},
        }
        counted = probes.importance * found.targets
        sizes = [len(agent.labels) for agent in self.agents.values()]
        parts, _ = own_parts(list(probes.codes.values()), sizes, found.rewards, counted)
        for (name, agent), part in zip(self.agents.items(), parts):
            codes, size = probes.codes[name], len(agent.labels)
            total = np.bincount(codes, counted, size)
            means = [np.bincount(codes, counted * of, size) / np.maximum(total, 1e-300) for of in (part, found.rewards)]
            result["own"][name], result["marginal"][name] = (m.tolist() for m in means)
            mix = np.bincount(self.codes[name][self.pending], self.run.pool.lengths[self.pending], size)
            for over, shares in (("the mix", mix), ("the pool", agent.shares)):
                gain = standardised_gain(agent.weights, means[0] / found.scale, shares) if found.scale else 0.0
                result["earned"].setdefault(over, {})[name] = gain
        return result

    def train(self, rehearsal, samples, mix) -> None:
        start = beside_start = 0
        for _ in range(STEPS):
            batch: list[np.ndarray] = []
            if samples is not None:
                chosen, start = take(samples, range(len(samples)), start, ROWS * self.context.seq_length)
                batch = [samples[i] for i in chosen]
            rows = ROWS if samples is not None else 2 * ROWS
            beside, beside_start = take(mix, range(len(mix)), beside_start, rows * self.context.seq_length)
            self.context.step(rehearsal, batch + [mix[i] for i in beside], self.rate)

    def truth(self, seed: int) -> dict:
        """agent -> gains of its labels over the mix alone (None: a label that has nothing left to choose)."""
        canonical.load(self.run.checkpoint, self.engine, self.run.topology)
        rng, mix = np.random.default_rng(seed), self.mix(seed)
        measure, result = ReferenceLoss(self.context, "audit", self.examples, seed), {}
        most = max(len(agent.labels) for agent in self.agents.values())
        probes = self.drawn("mix", SAMPLES * most * len(self.agents), seed)
        with self.context.model.rehearsal() as rehearsal:
            self.train(rehearsal, None, mix)
            alone = measure()
            for name, agent in self.agents.items():
                gains: list[float | None] = []
                for label in range(len(agent.labels)):
                    own = np.flatnonzero(probes.members[name] & (probes.codes[name] == label))
                    samples = self.run.pool.tokens(probes.positions[rng.permutation(own)[:SAMPLES]]) if len(own) else None
                    rehearsal.rewind()
                    if samples:
                        self.train(rehearsal, samples, mix)
                    gains.append(alone - measure() if samples else None)
                result[name] = gains
        return result


def agreement(record: dict) -> dict:
    """Spearman correlation of each draw's effects with the mean truth, by agent and over all labels; draws with each other; the
    ceiling is the root of the truth's split-half reliability."""
    names = list(record["labels"])

    def rows(values: dict) -> np.ndarray:
        return np.array([np.nan if v is None else v for name in names for v in values[name]], dtype=np.float64)

    truth = np.stack([rows(t) for t in record["truth"].values()], axis=1)
    known = np.isfinite(truth).all(1)
    owner = np.repeat(np.arange(len(names)), [len(record["labels"][n]) for n in names])
    parts = {**{n: known & (owner == i) for i, n in enumerate(names)}, "all": known}
    even = truth[:, : truth.shape[1] // 2 * 2]
    result: dict = {"ceiling": {p: max(0.0, split_half_reliability(even[m])) ** 0.5 for p, m in parts.items() if m.sum() > 2}}
    mean = truth.mean(1)
    for source, kind in itertools.product(SOURCES, ("own", "marginal")):
        draws = [rows(v[kind]) for k, v in record["effects"].items() if k.startswith(f"{source}/")]
        found = {p: float(np.mean([spearman(d[m], mean[m]) for d in draws])) for p, m in parts.items() if m.sum() > 2}
        pooled = np.mean(draws, 0)
        found["all, mean of draws"] = spearman(pooled[known], mean[known])
        pairs = [spearman(a[known], b[known]) for i, a in enumerate(draws) for b in draws[:i]]
        found["draws with each other"] = float(np.mean(pairs)) if pairs else None
        result[f"{source}, {kind}"] = found
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of a run with the checkpoint")
    parser.add_argument("--data", required=True, help="the prepared directory that it was trained on")
    parser.add_argument("--step", type=int, required=True, help="which of its checkpoints")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=4, help="of the truth, an even number")
    parser.add_argument("--probes", type=int, default=1024)
    parser.add_argument("--examples", type=int, default=200, help="audit examples per task")
    parser.add_argument("--out", required=True, help="JSON file to write, or to go on with")
    arguments = parser.parse_args()
    if arguments.seeds < 2 or arguments.seeds % 2:
        parser.error(f"--seeds {arguments.seeds} must be an even number: the truth's reliability is told from two halves")
    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data, arguments.step)
    study, out = Study(run, arguments.examples), Path(arguments.out)
    labels = {name: list(agent.labels) for name, agent in study.agents.items()}
    fixed = {"step": arguments.step, "probes": arguments.probes, "examples": arguments.examples}
    fixed |= {"labels": labels, "reward": OmegaConf.to_container(run.config.reward)}
    record = json.loads(out.read_text()) if out.exists() else {**fixed, "effects": {}, "truth": {}}
    if other := [key for key, value in fixed.items() if record.get(key) != value]:
        parser.error(f"{out} was made with another {', '.join(other)}; choose another --out")

    keep = keeper(record, out)

    for draw in range(arguments.draws):
        for source in SOURCES:
            keep("effects", f"{source}/{draw}", lambda source=source, draw=draw: study.effects(source, arguments.probes, draw))
    for seed in range(arguments.seeds):
        keep("truth", str(seed), lambda seed=seed: study.truth(seed))
    record["agreement"] = agreement(record)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["agreement"], indent=1))


if __name__ == "__main__":
    main()
