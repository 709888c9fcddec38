"""Synthetic run folders with the shape of real ones, for the report and whatever else reads run folders."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mads.console.record import DecisionRecord, LabelRecord
from mads.logging import MetricsWriter, environment, write_environment

LABELS = {
    "domain": ["news", "health tweets", "parliament", "speeches", "newsgroups", "dialogue", "books", "code"],
    "quality": ["[0,1)", "[1,2)", "[2,3)", "[3,4)", "[4,5]"],
    "topic": [
        "activity",
        "education",
        "entertainment",
        "finance",
        "health",
        "business and industrial",
        "infrastructure",
        "literature and art",
        "nature",
        "others",
        "law and government",
        "networking",
        "technology",
    ],
}
TASKS = ["lambada", "squad", "jeopardy"]
TOKENS_PER_STEP = 4096
DIRECTION = {
    "mode": "finite_difference",
    "shares": {"embedding": 0.41, "attention": 0.22, "mlp": 0.33, "norm": 0.04},
    "top_share": 0.51,
}
SHORT = "asked for 215040 tokens and only 201311 fresh ones were left: 13729 come from samples used before"
CONFIG = """run_dir: {name}
data:
  dir: data/demo
  seq_length: 128
model: {{hidden_size: 96, num_layers: 4, num_attention_heads: 4, vocab_size: 4096}}
selection: {{name: {selection}, interval: {interval}}}
train: {{steps: {steps}, global_batch_size: 32}}
"""


def _labels(rng, agent, names, round_, agents, rewards) -> list[LabelRecord]:
    pool = np.random.default_rng(len(agent)).dirichlet(np.full(len(names), 3.0))
    drift = np.linspace(0.6, -0.6, len(names)) * min(round_, 5) * 0.4 if agents else np.zeros(len(names))
    chosen = pool * np.exp(drift + rng.normal(0, 0.03, len(names)))
    chosen /= chosen.sum()
    rows = []
    for i, name in enumerate(names):
        seen = rewards and not (agent == "topic" and i == 9)
        rows.append(
            LabelRecord(
                name,
                float(drift[i] + rng.normal(0, 0.05)) if agents else 0.0,
                float(drift[i] * 2e-3 + rng.normal(0, 4e-4)) if seen else None,
                float(rng.uniform(2e-4, 6e-4)) if seen else None,
                64 if seen else 0,
                64 * 100 if seen else 0,
                float(pool[i]),
                float(chosen[i]),
            )
        )
    return rows


def _decision(rng, selection, round_, step, labels) -> DecisionRecord:
    agents = selection in ("mads", "paper")
    rewards = agents and round_ > 0
    theta = np.exp(np.array([0.12, -0.02, -0.10]) * round_)
    theta /= theta.sum()
    seconds = {"exchange": 0.05, "decision": 0.4}
    if agents:
        seconds |= {"reference": 2.1, "probes": 5.2, "update": 0.1, "scoring": 0.9}
    return DecisionRecord(
        round=round_,
        step=step,
        consumed_tokens=step * TOKENS_PER_STEP,
        selection=selection,
        theta=dict(zip(labels, theta.tolist())) if agents else {},
        agent_rewards={a: float(rng.normal(0.01 * (2 - i), 0.004)) for i, a in enumerate(labels)} if rewards else {},
        labels={a: _labels(rng, a, names, round_, agents, rewards) for a, names in labels.items()},
        chosen=2150,
        chosen_tokens=215_040,
        budget_tokens=215_040,
        reused=12 * round_,
        hash=4711 + round_,
        notes=[SHORT] if round_ == 5 else [],
        direction=DIRECTION | {"norm": 0.8 + 0.1 * round_} if rewards else {},
        seconds={k: float(v * rng.uniform(0.9, 1.1)) for k, v in seconds.items()},
    )


def make_run(
    folder: str | Path,
    selection: str = "mads",
    steps: int = 300,
    seed: int = 0,
    interval: int = 50,
    log_interval: int = 5,
    eval_interval: int = 50,
    labels: dict[str, list[str]] | None = None,
    gain: float = 0.0,
) -> Path:
    """Write a run folder as a training run would. gain: how many nats lower the losses end (a better selection)."""
    folder, labels, rng = Path(folder), labels or LABELS, np.random.default_rng(seed)

    def loss(step: int, offset: float = 0.0) -> float:
        return float(4.2 + offset + 4.1 * math.exp(-step / (steps * 0.13)) - (0.5 + gain) * step / steps + rng.normal(0, 0.02))

    with MetricsWriter(folder) as writer:
        write_environment(folder, environment(2, "cpu", ["mads", "train", f"selection={selection}"]))
        (folder / "config.yaml").write_text(CONFIG.format(name=folder.name, selection=selection, interval=interval, steps=steps))
        for step in range(steps + 1):
            if step % eval_interval == 0:
                heldout = {d: loss(step, 0.25 * (i - 3)) for i, d in enumerate(labels["domain"])}
                references = {t: loss(step, 0.3 + 0.2 * i) for i, t in enumerate(TASKS)}
                writer.write(
                    "eval",
                    step=step,
                    tokens=step * TOKENS_PER_STEP,
                    heldout=heldout,
                    references=references,
                    heldout_mean=float(np.mean(list(heldout.values()))),
                    references_mean=float(np.mean(list(references.values()))),
                )
                writer.write("phase", name="evaluation", step=step, seconds=3.0)
            if step % interval == 0 and step < steps:
                record = _decision(rng, selection, step // interval, step, labels)
                writer.decision(record)
                for name, seconds in record.seconds.items():
                    writer.write("phase", name=name, step=step, seconds=seconds)
            if step and step % log_interval == 0:
                writer.write(
                    "train",
                    step=step,
                    tokens=step * TOKENS_PER_STEP,
                    loss=loss(step),
                    lr=1e-3 * min(1, step / 20),
                    grad_norm=float(1.0 + 2 * math.exp(-step / 20) + rng.normal(0, 0.05)),
                    seconds=log_interval * 0.5,
                    tokens_per_second=TOKENS_PER_STEP / 0.42,
                    round=(step - 1) // interval,
                    memory_mib=812.0,
                    step_seconds=0.42,
                )
                writer.write("phase", name="train", step=step, seconds=log_interval * 0.42)
            if step and step % 100 == 0:
                writer.write("phase", name="checkpoint", step=step, seconds=1.2)
        writer.write("end", steps=steps, tokens=steps * TOKENS_PER_STEP, seconds=steps * 0.5 + 60.0, peak_memory_mib=930.0)
    return folder
