"""Shares of joint cells that follow the label agents: the shares themselves, and decisions by either exchange."""

import dataclasses

import numpy as np
import pytest
from fake_pool import OneRank, random_pool

from mads.agents.base import ProbeRewards
from mads.agents.label import LabelAgent
from mads.agents.novelty import NoveltyAgent
from mads.agents.rules import MirrorRule, shrink
from mads.config.schema import MadsSelectionConfig
from mads.console.choose import choose
from mads.console.order import Draw, GumbelOrder, HashOrder
from mads.console.recipe import Tilt
from mads.console.strategy import build_strategy

CONFIG = MadsSelectionConfig(name="mads", share_floor=0.4, temperature=1.5)


def _agents(pool, strategy, extra=()):
    rng = np.random.default_rng(4)
    agents = [LabelAgent(name) for name in ("quality", "domain")] + list(extra)
    for agent in agents:
        agent.bind(pool, strategy.learning.rule)
        if isinstance(agent, LabelAgent):
            agent.weights = rng.normal(0, 1.5, len(agent.labels))
    return agents


def _decide(pool, config, budget, extra=(), uses=None):
    strategy = build_strategy(config)
    agents = _agents(pool, strategy, extra)
    theta = np.array([0.5, 0.3, 0.2][: len(agents)]) / sum([0.5, 0.3, 0.2][: len(agents)])
    uses = np.zeros(len(pool), np.uint16) if uses is None else uses
    recipe = strategy.recipe(True, agents)
    decision = choose(recipe, strategy.limits, Draw(3, 2), budget, pool, agents, theta, uses, OneRank(), 400, lambda line: None)
    return decision, agents, theta, recipe


def test_cells_get_the_shares_of_the_equation():
    pool = random_pool(n=6000)
    budget = int(pool.lengths.sum() // 12)
    decision, agents, theta, recipe = _decide(pool, CONFIG, budget)
    assert recipe.strata == ("quality", "domain") and recipe.shares == Tilt(0.75, 0.4) and isinstance(recipe.order, HashOrder)
    natural, tilted, chosen = {}, {}, {}
    taken = set(decision.positions.tolist())
    for i in range(len(pool)):  # a loop over single samples
        q, d, n = int(pool.codes("quality")[i]), int(pool.codes("domain")[i]), int(pool.lengths[i])
        s = theta[0] * agents[0].weights[q] + theta[1] * agents[1].weights[d]
        natural[q, d] = natural.get((q, d), 0) + n
        tilted[q, d] = tilted.get((q, d), 0) + n * np.exp(s / 0.75)
        chosen[q, d] = chosen.get((q, d), 0) + (n if i in taken else 0)
    for cell in natural:
        share = 0.6 * tilted[cell] / sum(tilted.values()) + 0.4 * natural[cell] / sum(natural.values())
        quota = min(share * budget, natural[cell])
        if share * budget < natural[cell]:  # a cell that runs out gives its rest to the others
            assert chosen[cell] >= quota - 2 * pool.lengths.max()
    full = sum(1 for cell in natural if chosen[cell] == natural[cell])
    assert full < len(natural) / 2
    found = [chosen[c] - 0.4 * natural[c] / sum(natural.values()) * budget for c in natural if chosen[c] < natural[c]]
    assert np.corrcoef(found, [tilted[c] for c in natural if chosen[c] < natural[c]])[0, 1] > 0.99


@pytest.mark.parametrize("extra", [False, True], ids=["labels", "labels and novelty"])
def test_both_exchanges_choose_the_same(extra):
    pool = random_pool(n=3000)
    uses = (np.arange(3000) % 3 == 0).astype(np.uint16)
    found = []
    for exchange in ("gather", "threshold"):
        more = [NoveltyAgent(["topic"])] if extra else []
        decision, *_, recipe = _decide(pool, dataclasses.replace(CONFIG, exchange=exchange), 20000, more, uses)
        found.append(decision.ids)
        assert isinstance(recipe.order, GumbelOrder if extra else HashOrder)
    np.testing.assert_array_equal(*found)


def test_selector_and_limits_decide_whether_there_are_shares():
    build = lambda **keys: build_strategy(dataclasses.replace(CONFIG, **keys))  # noqa: E731
    pool = random_pool(n=300)
    agents = _agents(pool, build())
    assert build(selector="gumbel").recipe(True, agents).strata == ()
    assert build(unit="shard").recipe(True, agents).strata == ()
    assert build().recipe(True, agents[:1]).order == HashOrder()
    with pytest.raises(ValueError, match="selector=shares leaves no room"):
        build(selector="shares", unit="shard")
    with pytest.raises(ValueError, match="share_floor=1.0"):
        build(share_floor=1.0)


def test_weights_of_the_exponentiated_update_add_up_shrunk_gains():
    rng = np.random.default_rng(0)
    pool, rule = random_pool(n=900), MirrorRule(0.4)
    agent = LabelAgent("domain")
    agent.bind(pool, rule)
    expected = np.zeros(len(agent.labels))
    for round_ in range(3):
        own = rng.choice(900, 200, replace=False)
        view = pool.view(np.sort(own))
        rewards = rng.standard_normal(200) + 0.8 * view.codes("domain")
        targets, importance = rng.integers(30, 100, 200), rng.uniform(0.5, 1.5, 200)
        agent.learn(ProbeRewards(view, rewards, targets, importance))
        found = agent.statistics
        gain = shrink(found.mean, found.se)
        expected += 0.4 * (gain - np.average(gain, weights=agent.shares))
        np.testing.assert_allclose(agent.weights, expected, rtol=1e-12, err_msg=str(round_))
    assert np.ptp(agent.weights) > 1  # three rounds of the same news go further than one
