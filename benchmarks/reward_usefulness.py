"""Do rewards say what training on more of a label does? For every label of the three agents, the gain of the reference loss when
half of every batch of 25 further steps is drawn from it (the counterfactual), against each kind of reward's mean for the label.
Inside of labels: benchmarks.inside_labels.

    python -m benchmarks.reward_usefulness --run runs/mads --data data/demo --out benchmarks/reward_usefulness.json

Run from the repository root, on a run with a checkpoint. What is done is kept in --out and is not done again, so that it may be
stopped. The table and how to read it: benchmarks/reward_truth.md.
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.kept import keeper, opened
from benchmarks.label_truth import losses_after
from benchmarks.rank_statistics import spearman, split_half_reliability
from benchmarks.trained_run import TrainedRun, checkpoint_parser
from mads.checkpoint import canonical
from mads.config.schema import BlendRewardConfig, DisplacementRewardConfig, FiniteDifferenceRewardConfig, GroupRewardConfig
from mads.console.attribute_rewards import own_parts
from mads.launch.processes import become_single_process
from mads.logging.environment import environment
from mads.model.shape import flops_per_token
from mads.reward.build import build_rewarder
from mads.reward.probes import Probes, SharedProbes, draw_probes
from mads.reward.steps import RewardContext
from mads.train.engine import TrainEngine
from mads.train.reward_model import EngineRewardModel

AGENTS = ("quality", "domain", "topic")


def _group(steps: int, rows: int, mix: int, examples: int = 8) -> GroupRewardConfig:
    return GroupRewardConfig(mode="group", steps=steps, step_rows=rows, mix_rows=mix, reference_examples=examples)


KINDS = {
    "one step": FiniteDifferenceRewardConfig(mode="finite_difference"),
    **{f"displacement, {k} steps": DisplacementRewardConfig(mode="displacement", steps=k) for k in (1, 4, 8, 16)},
    "displacement, 8 steps of 32 rows": DisplacementRewardConfig(mode="displacement", step_rows=32),
    "group, 1 step of 8 rows, 32 examples": _group(1, 8, 0, 32),
    "group, 1 step of 8 rows": _group(1, 8, 0),
    "group, 2 steps of 4 rows": _group(2, 4, 0),
    "group, 6 steps of 2 + 2 rows": _group(6, 2, 2),
    "group, 6 steps of 8 + 8 rows": _group(6, 8, 8),
    "blend, 6 steps of 2 + 2 rows": BlendRewardConfig(mode="blend", steps=6, step_rows=2, mix_rows=2),
}
# One-step rewards where the run is 25 steps on random batches later: at its rate, or at a rate that falls to 0.
LATER = {"one step, 25 steps later": False, "one step, 25 steps of a falling rate later": True}
LATER_STEPS = 25
DRAWS, DRAWS_LATER = 2, 6  # of probes; where steps come first, each draw also takes its own


def train_on(run: TrainedRun, engine: TrainEngine, steps: int, falling: bool, seed: int) -> int:
    """`steps` more steps on random batches; returns their tokens."""
    batches, rate = run.batches(steps, 900 + seed), run.rate(engine.state.steps)
    for step in range(steps):
        batch = batches.next()
        share = 1 - (step + 0.5) / steps if falling else 1.0
        engine.train_step(batch.micro_batches, batch.valid_tokens, rate * share)
    return steps * run.config.train.global_batch_size * run.config.data.seq_length


def rewards_of(run: TrainedRun, engine: TrainEngine, name: str, probes: Probes, samples: list, round_: int):
    """(rewards, targets, FLOPs, seconds) of one of KINDS or LATER on the checkpoint."""
    canonical.load(run.checkpoint, engine, run.topology)
    started, config, later = time.process_time(), run.config, 0
    if name in LATER:
        later = train_on(run, engine, LATER_STEPS, LATER[name], round_)
    kind = KINDS["one step" if name in LATER else name]
    sizes = {name: shape.numel() for name, shape in engine.logical_shapes.items()}
    flops = flops_per_token(config.model, config.data.seq_length)
    context = RewardContext(
        EngineRewardModel(engine), run.references, run.topology, config.data.seq_length, config.train.seed, 8, flops
    )
    found = build_rewarder(context, sizes, config.optim, kind)(probes, samples, round_, run.rate(engine.state.steps))
    return found.rewards, found.targets, found.direction["flops"] + flops * later, time.process_time() - started


def label_means(run: TrainedRun, probes: Probes, rewards: np.ndarray, targets: np.ndarray) -> dict:
    """agent -> mean reward of each label as it is ("marginal"), and of its own part ("joint")."""
    counted = probes.importance * targets
    codes = [np.asarray(run.pool.codes(a)[probes.positions]).astype(int) for a in AGENTS]
    sizes = [len(run.pool.labels(a)) for a in AGENTS]
    own, _ = own_parts(codes, sizes, rewards, counted)
    result = {}
    for agent, code, size, part in zip(AGENTS, codes, sizes, own):
        total = np.maximum(np.bincount(code, counted, size), 1e-12)
        result[agent] = {
            "marginal": (np.bincount(code, counted * rewards, size) / total).tolist(),
            "joint": (np.bincount(code, counted * part, size) / total).tolist(),
        }
    return result


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0])
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=4, help="an even number")
    parser.add_argument("--reference-examples", type=int, default=200)
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS, *LATER], default=[*KINDS, *LATER], help="of rewards; default: all")
    arguments = parser.parse_args()
    if arguments.seeds < 2 or arguments.seeds % 2:
        parser.error(f"--seeds {arguments.seeds}: an even number, whose halves say how far the truth can be trusted")
    torch.set_num_threads(1)
    become_single_process()
    run = TrainedRun.open(arguments.run, arguments.data, arguments.step)
    engine = run.engine(torch.float32)
    out = Path(arguments.out)
    fixed = {k: v for k, v in vars(arguments).items() if k not in ("run", "data", "out", "seeds", "kinds")}
    record = opened(out, fixed, {"gain": {}, "kinds": {}}, parser.error)
    record["date"], record["environment"] = datetime.date.today().isoformat(), environment(1, "cpu", [])
    record["steps_trained"] = engine.state.steps
    record["flops_per_token"] = flops_per_token(run.config.model, run.config.data.seq_length)
    record["labels"] = {a: list(run.pool.labels(a)) for a in AGENTS}

    keep = keeper(record, out)

    def means(name: str, seed: int) -> dict:
        probes = draw_probes(run.pool, SharedProbes(arguments.probes), {a: a for a in AGENTS}, seed, 0)
        rewards, targets, flops, seconds = rewards_of(run, engine, name, probes, run.pool.tokens(probes.positions), seed)
        return {"means": label_means(run, probes, rewards, targets), "flops": flops, "seconds": seconds}

    references = run.reference_sets(arguments.reference_examples)
    for name in arguments.kinds:
        for seed in range(DRAWS_LATER if name in LATER else DRAWS):
            keep("kinds", f"{name}/{seed}", lambda name=name, seed=seed: means(name, seed))
    for seed in range(arguments.seeds):
        keep("gain", f"{seed}/none", lambda seed=seed: losses_after(run, engine, references, arguments.steps, seed, None))
        for agent in AGENTS:
            for j, label in enumerate(run.pool.labels(agent)):
                only = np.flatnonzero(np.asarray(run.pool.codes(agent)) == j)
                keep(
                    "gain",
                    f"{seed}/{agent}/{label}",
                    lambda only=only, seed=seed: losses_after(run, engine, references, arguments.steps, seed, only),
                )
    record["agreement"] = agreement(record, arguments.seeds)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["agreement"], indent=1))


def agreement(record: dict, seeds: int) -> dict:
    """Spearman correlations of every kind's label means (of each draw of probes) with the audit gains, by agent and over all
    labels; the ceiling is the root of the gains' split-half reliability."""
    labels = record["labels"]

    def gains(agent: str) -> np.ndarray:
        value = lambda key: record["gain"][key]["audit"]  # noqa: E731
        return np.array([[value(f"{s}/none") - value(f"{s}/{agent}/{l}") for s in range(seeds)] for l in labels[agent]])

    by_agent = {agent: gains(agent) for agent in labels}
    result: dict = {"ceiling": {a: max(0.0, split_half_reliability(g)) ** 0.5 for a, g in by_agent.items()}}
    everything = np.concatenate(list(by_agent.values()))
    result["ceiling"]["all"] = max(0.0, split_half_reliability(everything)) ** 0.5
    for name in dict.fromkeys(key.rsplit("/", 1)[0] for key in record["kinds"]):
        draws = [drawn["means"] for key, drawn in record["kinds"].items() if key.rsplit("/", 1)[0] == name]
        found = {}
        for agent, g in by_agent.items():
            found[agent] = float(np.mean([spearman(np.array(d[agent]["marginal"]), g.mean(1)) for d in draws]))
        whole = [np.concatenate([d[a]["marginal"] for a in labels]) for d in draws]
        found["all"] = float(np.mean([spearman(w, everything.mean(1)) for w in whole]))
        found["tokens of training that a round costs"] = record["kinds"][f"{name}/0"]["flops"] / record["flops_per_token"]
        result[name] = found
    return result


if __name__ == "__main__":
    main()
