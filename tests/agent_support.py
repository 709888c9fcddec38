"""Pools with a value column, and probes of them, for tests of agents."""

import numpy as np
from fake_pool import FakePool, random_pool

from mads.agents.base import ProbeRewards


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
