"""Every agent on 1 and 2 gloo ranks: the same ids, theta, records and states, by either exchange; and through a checkpoint."""

import dataclasses
import json

import numpy as np
from agent_support import valued_pool
from harness import run_ranks
from topologies import topology as topology_of

from mads.agents import ContinuousAgent, JointCellAgent, LabelAgent, NoveltyAgent
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
ROUNDS, BUDGET = 4, 5000


def _console(config, pool, topology):
    agents = [
        LabelAgent("quality"),
        ContinuousAgent("value", "rising"),
        ContinuousAgent("value", "free", shape="binned", bins=7),
        JointCellAgent(["domain", "quality"]),
        NoveltyAgent(["topic"], "novelty"),
    ]
    return Console(topology, pool, agents, build_strategy(config), 3, piece=100)


def rounds(dp, config, stop=None):
    """What each round decided; with `stop`, a new console takes over from the first one's saved state before that round."""
    topology, pool = topology_of(dp=dp), valued_pool(701, missing=20)
    own, uses, result = slice(*own_slice(pool, topology)), np.zeros(len(pool), np.uint16), []
    console = _console(config, pool, topology)
    for round_ in range(ROUNDS):
        if round_ == stop:
            state = json.loads(json.dumps(console.state(), allow_nan=False))
            pending, console = console.pending, _console(config, pool, topology)
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


def check_states_are_enough(config):
    whole = rounds(1, config)
    for stop in range(1, ROUNDS):
        assert rounds(1, config, stop) == whole


def test_one_and_two_ranks_decide_the_same_and_a_state_is_enough():
    for config in CONFIGS:
        [alone] = run_ranks(1, rounds, 1, config, timeout=120)
        ids = [set(ids) for ids, *_ in alone]
        assert len({frozenset(i) for i in ids}) == ROUNDS
        assert len(set(alone[-1][3]["theta"].values())) > 2  # the agents were judged, and not alike
        for rank, both in enumerate(run_ranks(2, rounds, 2, config, timeout=120)):
            assert [r[:3] for r in both] == [r[:3] for r in alone]
            assert rank > 0 or [r[3] for r in both] == [r[3] for r in alone]
    assert [r[0] for r in alone] == [r[0] for r in run_ranks(1, rounds, 1, CONFIGS[1])[0]]  # gather and threshold agree
    run_ranks(1, check_states_are_enough, CONFIGS[1], timeout=120)
