"""Seconds of every kind of reward beside those of training steps of the same engine (a part of benchmarks.selection_cost)."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.cells import on_ranks

LENGTH, ROWS = 128, 16
OWN = {
    "group": ["reward.steps=2"],
    "displacement": ["reward.steps=2"],
}  # fewer than by default: what counts is seconds over FLOPs
KINDS = ("finite_difference", "ghost", "displacement", "group")
PROBES = {"finite_difference": (64, 256), "ghost": (64, 256), "displacement": (64, 256), "group": (64,)}
MODEL = ["model=nano", "model.hidden_size=128", "model.ffn_hidden_size=384", "model.num_layers=4", "model.vocab_size=4096"]
MODEL += ["model.num_attention_heads=4", "model.num_key_value_heads=2"]
LABELS = {"quality": 5, "domain": 7, "topic": 13}
TASKS, EXAMPLES, EXAMPLE_TOKENS = 3, 8, 100


def measure(rounds: int = 2) -> dict:
    """One process: training steps and rewards in turn, `rounds` times; medians of CPU seconds."""
    import torch

    from mads.config.compose import compose
    from mads.data.batch import make_batch
    from mads.model.shape import flops_per_token
    from mads.reward.build import build_rewarder, mix_tokens
    from mads.reward.probes import Probes
    from mads.reward.reference import PARTS, ReferenceTask
    from mads.reward.steps import RewardContext
    from mads.topology import Grid, Topology
    from mads.train.reward_model import EngineRewardModel
    from mads.train.setup import build_engine

    common = [*MODEL, "data=jsonl", "data.paths=[none]", "data.dir=none", "run_dir=none", f"data.seq_length={LENGTH}"]
    common += ["parallel=zero1", f"train.micro_batch_size={ROWS // 2}", f"train.global_batch_size={ROWS}"]
    configs = {kind: compose([*common, f"reward={kind}", *OWN.get(kind, [])]) for kind in KINDS}
    config, rng = configs["group"], np.random.default_rng(0)
    topology = Topology(Grid())
    engine = build_engine(config, topology, torch.float32, torch.device("cpu"))
    draw = lambda length: rng.integers(0, 4096, length)  # noqa: E731
    batches = [make_batch([[draw(LENGTH)] for _ in range(ROWS // 2)], LENGTH) for _ in range(2)]
    valid = sum(b.valid_tokens for b in batches)
    examples = lambda: [[draw(EXAMPLE_TOKENS)] for _ in range(4 * EXAMPLES)]  # noqa: E731
    references = [ReferenceTask(f"task{i}", {part: examples() for part in PARTS}) for i in range(TASKS)]
    sizes = {name: shape.numel() for name, shape in engine.logical_shapes.items()}
    flops = flops_per_token(config.model, LENGTH)
    cases = []
    for kind, own in configs.items():
        context = RewardContext(EngineRewardModel(engine), references, topology, LENGTH, 0, own.reward.rows_per_batch, flops)
        rewarder = build_rewarder(context, sizes, own.optim, own.reward)
        wanted = mix_tokens(own.reward, LENGTH)
        for count in PROBES[kind]:
            samples, positions = [draw(LENGTH) for _ in range(count)], np.arange(count)
            codes = {agent: rng.integers(0, size, count) for agent, size in LABELS.items()}
            members = dict.fromkeys(LABELS, np.ones(count, bool))
            probes = Probes(positions, positions, np.ones(count), members, True, codes, LABELS)
            cases.append((kind, count, rewarder, probes, samples, [draw(LENGTH) for _ in range(wanted // LENGTH)]))
    steps, spent, costs = [], [[] for _ in cases], [0.0] * len(cases)
    for round_ in range(-1, rounds):  # the first warms up
        for i, (_, _, rewarder, probes, samples, mix) in enumerate(cases):
            start = time.process_time()
            for _ in range(2):
                engine.train_step(batches, valid, 1e-4)
            between = time.process_time()
            costs[i] = rewarder(probes, samples, round_ + 1, 1e-4, mix).direction["flops"] / flops
            if round_ >= 0:
                steps.append((between - start) / 2 / (ROWS * LENGTH))
                spent[i].append(time.process_time() - between)
    rows = [
        {"kind": kind, "probes": count, "seconds": float(np.median(s)), "flop_tokens": cost}
        for (kind, count, *_), s, cost in zip(cases, spent, costs)
    ]
    return {"seconds_per_token": float(np.median(steps)), "parameters": sum(sizes.values()), "rows": rows}


def reward_cell() -> dict:
    """Measured in a process of its own."""
    return on_ranks(1, measure)[0]
