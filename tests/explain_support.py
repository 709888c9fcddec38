"""Run folders for tests of `mads explain`: as training writes them, but for the model, whose rewards are made up."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fake_pool import OneRank
from run_support import run_config

from mads.config.compose import to_yaml
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.data.ledger import Ledger
from mads.data.loader import Loader
from mads.data.pool import Pool
from mads.logging.metrics import MetricsWriter
from mads.reward.probes import RoundRewards
from mads.train.growth import PoolEntry, PoolHistory
from mads.train.members import build_agent


@dataclass
class Seen:
    """What a round got and gave: use counts before it, the ids, the ids of each step's batch, by step."""

    uses: np.ndarray
    ids: np.ndarray
    steps: dict[int, set[int]]


def made_up(console, pool):
    probes = console.draw_probes()
    view, rng = pool.view(probes.positions), np.random.default_rng(console.round)
    rewards = 1e-3 * (view.codes("domain") - 0.8 + 0.4 * view.codes("quality") + rng.normal(size=len(probes.positions)))
    return RoundRewards(probes, rewards, view.lengths.astype(np.int64) - 1)


def light_run(run: Path, directory: Path, *overrides: str, rounds: int = 4, shards: tuple[int | None, ...] = ()) -> list[Seen]:
    """Decide, pack and count `rounds` rounds. shards: how many the run knows in the first rounds; later it knows all."""
    config = run_config(directory, run, *overrides)
    opened = [Pool.open(directory, shards=shards[r] if r < len(shards) else None) for r in range(rounds)]
    pool, strategy = opened[0], build_strategy(config.selection)
    members = config.agents.members if strategy.learning else {}
    agents = [build_agent(name, node, pool) for name, node in members.items()]
    console = Console(OneRank(), pool, agents, strategy, config.train.seed)
    ledger, history = Ledger(len(pool)), PoolHistory(run, [])
    batch, length = config.train.global_batch_size, config.data.seq_length
    loader = Loader(pool, length, batch, batch, 0, 1)
    writer = MetricsWriter(run)
    history.append(PoolEntry.of(0, pool, 1))
    (run / "config.yaml").write_text(to_yaml(config))
    seen, step, tokens = [], 0, 0
    for round_, longer in enumerate(opened):
        if len(longer) > len(pool):
            console.rebind(longer)
            loader.rebind(longer)
            counts, ledger, pool = ledger.counts, Ledger(len(longer)), longer
            ledger.counts[: len(counts)] = counts
            history.append(PoolEntry.of(round_, pool, 1))
        rewards = made_up(console, pool) if console.needs_rewards() else None
        budget = int(config.selection.interval * batch * length * (1 + config.selection.margin))
        uses = ledger.counts.copy()
        ids, record = console.decide(rewards, ledger.counts, budget, step, tokens)
        writer.decision(record, ids)
        loader.begin_round(round_, ids)
        taken = {}
        while len(taken) < config.selection.interval and not loader.exhausted:
            due = loader.next()
            ledger.consume(due.sample_positions)
            step, tokens = step + 1, tokens + due.tokens
            taken[step] = set(due.sample_ids.tolist())
            writer.write("train", step=step, tokens=tokens)
        seen.append(Seen(uses, ids, taken))
    writer.close()
    return seen
