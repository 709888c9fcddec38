"""agents=priors as it is configured: its first decision, before any reward, against sampling with NumPy."""

from statistics import NormalDist

import numpy as np
import pytest
from fake_pool import FakePool, OneRank, random_pool

from mads.config.compose import compose
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.train.members import build_agent

SAMPLES, BUDGET = 6000, 20_000
LOWEST, BINS, SLOPE = -20.0, 50, 8.0  # what conf/agents/priors.yaml believes


def _pool():
    plain, values = random_pool(n=SAMPLES), np.random.default_rng(1).gumbel(size=SAMPLES).astype(np.float32)
    tenths = np.searchsorted(np.quantile(values, np.arange(1, 10) / 10), values).astype(np.uint16)
    columns = {name: (plain.codes(name), plain.labels(name)) for name in ("quality", "domain")}
    columns["likeness"] = tenths, tuple(f"tenth{j}" for j in range(10))
    return FakePool(plain.ids, plain.lengths, columns, {"likeness": values})


def _first_decision(pool, selector, temperature=1, budget=BUDGET):
    data = ["data=prepared", "data.dir=unused", "run_dir=unused"]
    choice = [f"selection.selector={selector}", f"selection.temperature={temperature}"]
    config = compose([*data, "selection=mads", *choice, "agents=priors"])
    agents = [build_agent(name, node, pool) for name, node in config.agents.members.items()]
    console = Console(OneRank(), pool, agents, build_strategy(config.selection), 3)
    ids, _ = console.decide(None, np.zeros(len(pool), np.uint16), budget, 0, 0)
    return np.isin(pool.ids, ids)


def _sampled(pool, seed, temperature=1, budget=BUDGET):
    """Without replacement, by e^(-20 of the lowest quality + 8 z of the bin of likeness), z by the normal density."""
    normal, edges = NormalDist(), np.linspace(0, 1, BINS + 1)
    height = [0.0, *(normal.pdf(normal.inv_cdf(e)) for e in edges[1:-1]), 0.0]
    z = BINS * (np.array(height[:-1]) - np.array(height[1:]))
    values = pool.values("likeness")
    order = np.argsort(values)
    place = np.empty(len(values))
    place[order] = (np.cumsum(pool.lengths[order]) - pool.lengths[order] / 2) / pool.lengths.sum()
    weight = (SLOPE * z[(place * BINS).astype(int)] + LOWEST * (pool.codes("quality") == 0)) / temperature
    first = np.argsort(-(weight + np.random.default_rng([seed, 7]).gumbel(size=len(values))))
    taken = np.zeros(len(values), bool)
    taken[first[: np.searchsorted(np.cumsum(pool.lengths[first]), budget) + 1]] = True
    return taken


@pytest.mark.parametrize("selector", ["auto", "gumbel"])
def test_the_first_decision_follows_both_priors(selector):
    pool = _pool()
    chosen, likeness, quality = _first_decision(pool, selector), pool.values("likeness"), pool.codes("quality")
    assert (quality == 0).mean() > 0.05 and not (quality[chosen] == 0).any()
    sampled = [_sampled(pool, seed) for seed in range(20)]
    means = [likeness[taken].mean() for taken in sampled]
    assert abs(likeness[chosen].mean() - np.mean(means)) < 4 * np.std(means)
    common = [(chosen & taken).sum() / chosen.sum() for taken in sampled]
    among = [(a & b).sum() / a.sum() for a, b in zip(sampled, sampled[1:])]
    assert abs(np.mean(common) - np.mean(among)) < 0.05
    assert likeness[chosen].min() > np.quantile(likeness, 0.8)
    domain = pool.codes("domain")
    for label in range(len(pool.labels("domain"))):
        share = np.mean([(domain[taken] == label).mean() for taken in sampled])
        assert abs((domain[chosen] == label).mean() - share) < 0.06


def test_softened_by_the_temperature_they_keep_their_sizes():
    """At 1 little but the order of samples is seen; at 8 a prior of another size gives other shares."""
    pool = _pool()
    chosen, likeness, lowest = _first_decision(pool, "auto", 8, 2 * BUDGET), pool.values("likeness"), pool.codes("quality") == 0
    sampled = [_sampled(pool, seed, 8, 2 * BUDGET) for seed in range(40)]
    for column in (likeness, lowest.astype(float)):
        means = [column[taken].mean() for taken in sampled]
        assert abs(column[chosen].mean() - np.mean(means)) < 4 * np.std(means)
    assert 0 < lowest[chosen].mean() < lowest.mean() / 4


def test_shares_may_still_be_chosen_beside_a_curve_with_a_prior():
    """Then cells have a floor, and the lowest quality keeps its part of it."""
    pool = _pool()
    chosen, lowest = _first_decision(pool, "shares"), pool.codes("quality") == 0
    assert 0 < pool.lengths[chosen & lowest].sum() / pool.lengths[chosen].sum() < 0.05
