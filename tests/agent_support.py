"""Pools with a value column, probes of them, and rounds of a console with every agent, for tests of agents."""

import dataclasses
import json

import numpy as np
from fake_pool import FakePool, random_pool

from mads.agents import ContinuousAgent, JointCellAgent, LabelAgent, NoveltyAgent
from mads.agents.base import ProbeRewards
from mads.config.schema import MadsSelectionConfig, PaperSelectionConfig
from mads.console.choose import own_slice
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards

CONFIGS = [
    PaperSelectionConfig(name="paper", probes_per_agent=60, exchange="gather"),
    MadsSelectionConfig(name="mads", probes=150, exchange="gather"),
    MadsSelectionConfig(name="mads", probes=150, exchange="threshold"),
]


def valued_pool(n=600, seed=0, missing=0):
    """`random_pool` with the column `value`, some of it repeated and `missing` values NaN or infinite; labels q0..q3."""
    rng = np.random.default_rng([seed, 7])
    pool = random_pool(n, seed)
    value = np.round(rng.normal(size=n) * 3, 2).astype(np.float32)
    value[rng.choice(n, n // 5, replace=False)] = np.float32(1.5)
    gone = rng.choice(n, missing, replace=False)
    value[gone] = np.array([np.nan, np.inf, -np.inf], np.float32)[np.arange(missing) % 3]
    codes = np.clip(np.nan_to_num(value, nan=0.0, posinf=9, neginf=-9) + 2, 0, 3).astype(np.uint16)
    columns = {name: (pool.codes(name), pool.labels(name)) for name in pool.attributes}
    columns["value"] = (codes, ("q0", "q1", "q2", "q3"))
    return FakePool(pool.ids, pool.lengths, columns, {"value": value})


def probes_of(pool, seed=0, n=90, reward=None):
    """n probes; rewards are noise, or reward(view) and a little noise."""
    rng = np.random.default_rng(seed)
    view = pool.view(np.sort(rng.choice(len(pool), n, replace=False)))
    rewards = rng.normal(size=n) if reward is None else reward(view) + 0.1 * rng.normal(size=n)
    return ProbeRewards(view, rewards, rng.integers(5, 100, n), rng.uniform(0.5, 2, n))


def scored_in_pieces(agent, pool):
    """The agent's scores of the pool, cut at odd places."""
    cuts = (0, 1, 7, 7, 100, len(pool))
    return np.concatenate([agent.score(pool.view(slice(a, b))) for a, b in zip(cuts, cuts[1:])])


ROUNDS, BUDGET = 4, 5000


def console_of(config, pool, topology):
    agents = [
        LabelAgent("quality"),
        ContinuousAgent("value", "rising"),
        ContinuousAgent("value", "free", shape="binned", bins=7),
        JointCellAgent(["domain", "quality"]),
        NoveltyAgent(["topic"], "novelty"),
    ]
    return Console(topology, pool, agents, build_strategy(config), 3, piece=100)


def rounds(topology, config, stop=None):
    """What each round decided; with `stop`, a new console takes over from the first one's saved state before that round."""
    pool = valued_pool(701, missing=20)
    own, uses, result = slice(*own_slice(pool, topology)), np.zeros(len(pool), np.uint16), []
    console = console_of(config, pool, topology)
    for round_ in range(ROUNDS):
        if round_ == stop:
            state = json.loads(json.dumps(console.state(), allow_nan=False))
            pending, console = console.pending, console_of(config, pool, topology)
            console.load_state(state, pending)
        rewards = None
        if console.needs_rewards():
            probes = console.draw_probes()
            view = pool.view(probes.positions)
            noise = np.random.default_rng(round_).normal(size=len(view))
            values = noise + view.codes("domain") + np.nan_to_num(view.values("value"), posinf=0.0, neginf=0.0)
            rewards = RoundRewards(probes, values, view.lengths.astype(np.int64))
        ids, record = console.decide(rewards, uses[own], BUDGET, 0, 0)
        uses[np.searchsorted(pool.ids, ids)] += 1
        told = None if record is None else dataclasses.asdict(dataclasses.replace(record, seconds={}))
        result.append((ids.tolist(), console.theta.tolist(), json.dumps(console.state()), told))
    return result
