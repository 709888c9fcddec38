import math

import numpy as np
import pytest
from fake_pool import OneRank, random_pool

from mads.agents import LabelAgent
from mads.config.schema import MadsSelectionConfig, PaperSelectionConfig
from mads.console.collaborate import (
    AdditiveCollaboration,
    FixedCollaboration,
    MultiplicativeCollaboration,
    apply_floor,
    project_to_simplex,
)
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards


@pytest.mark.parametrize("seed", range(20))
def test_x7_additive_is_eq_8_and_stays_on_the_simplex(seed):
    rng = np.random.default_rng(seed)
    theta, rewards = rng.dirichlet(np.ones(3)), rng.normal(scale=0.5, size=3)
    updated = AdditiveCollaboration(1.0).update(theta, rewards)
    mean = sum(rewards.tolist()) / 3
    plain = [t + 1.0 * (r - mean) for t, r in zip(theta.tolist(), rewards.tolist())]
    if min(plain) >= 0:
        np.testing.assert_allclose(updated, plain, atol=1e-15)
    assert updated.min() >= 0 and updated.sum() == pytest.approx(1, abs=1e-12)


def test_projection_is_the_nearest_point_of_the_simplex():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 6):
        point = rng.normal(size=size)
        projected = project_to_simplex(point)
        assert projected.min() >= 0 and projected.sum() == pytest.approx(1, abs=1e-12)
        others = rng.dirichlet(np.full(size, 0.3), size=4000)
        assert ((others - point) ** 2).sum(1).min() >= ((projected - point) ** 2).sum() - 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_x7_multiplicative_is_hedge_with_a_floor(seed):
    rng = np.random.default_rng(seed)
    theta, rewards = rng.dirichlet(np.ones(4)), rng.normal(size=4)
    updated = MultiplicativeCollaboration(0.5, 0.0).update(theta, rewards)
    raw = [t * math.exp(0.5 * r) for t, r in zip(theta, rewards)]
    np.testing.assert_allclose(updated, np.array(raw) / sum(raw), rtol=1e-12)
    floored = MultiplicativeCollaboration(3.0, 0.1).update(theta, rewards)
    assert floored.min() >= 0.1 - 1e-15 and floored.sum() == pytest.approx(1, abs=1e-12)


def test_a_better_agent_gains_and_extreme_rewards_stay_finite():
    for rule in (AdditiveCollaboration(0.2), MultiplicativeCollaboration(0.5, 0.05)):
        updated = rule.update(np.full(3, 1 / 3), np.array([0.5, 0.0, -0.5]))
        assert updated[0] > updated[1] > updated[2]
    extreme = MultiplicativeCollaboration(1.0, 0.05).update(np.full(3, 1 / 3), np.array([1e6, -1e6, 0.0]))
    np.testing.assert_allclose(extreme, [0.9, 0.05, 0.05], atol=1e-12)
    np.testing.assert_allclose(AdditiveCollaboration(1.0).update(np.full(3, 1 / 3), np.array([9.0, 0.0, 0.0])), [1, 0, 0])


def test_floor_changes_nothing_above_it_and_cascades():
    theta = np.array([0.5, 0.3, 0.2])
    np.testing.assert_array_equal(apply_floor(theta, 0.05), theta)
    floored = apply_floor(np.array([0.88, 0.105, 0.015]), 0.1)  # scaling for the third pushes the second below
    np.testing.assert_allclose(floored, [0.8, 0.1, 0.1], atol=1e-15)
    np.testing.assert_allclose(apply_floor(np.array([0.9, 0.1]), 0.5), [0.5, 0.5])
    np.testing.assert_allclose(apply_floor(np.array([1.0]), 0.05), [1.0])
    with pytest.raises(ValueError, match="0.4 for each of 3"):
        apply_floor(theta, 0.4)


def test_bad_rewards_are_refused():
    with pytest.raises(ValueError, match="not all finite"):
        AdditiveCollaboration(1.0).update(np.full(2, 0.5), np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match="one of each per agent"):
        MultiplicativeCollaboration(1.0, 0.0).update(np.full(2, 0.5), np.zeros(3))


def check_fixed_stays():
    rule = FixedCollaboration({"topic": 1.0, "quality": 3.0})
    theta = rule.start(["quality", "topic"])
    np.testing.assert_array_equal(theta, [0.75, 0.25])
    for rewards in ([5.0, -5.0], [0.0, 0.0]):
        theta = rule.update(theta, np.array(rewards))
    np.testing.assert_array_equal(theta, [0.75, 0.25])


def test_fixed_weights_are_by_name_and_stay():
    check_fixed_stays()
    np.testing.assert_allclose(FixedCollaboration({}).start(["a", "b", "c"]), 1 / 3)
    for weights, words in (({"a": 1.0}, "names .'a'., the agents are .'a', 'b'."), ({"a": -1.0, "b": 2.0}, "not negative")):
        with pytest.raises(ValueError, match=words):
            FixedCollaboration(weights).start(["a", "b"])
    with pytest.raises(ValueError, match="not all 0"):
        FixedCollaboration({"a": 0.0, "b": 0.0}).start(["a", "b"])
    with pytest.raises(ValueError, match="not all finite"):
        FixedCollaboration({}).update(np.full(2, 0.5), np.array([np.nan, 0.0]))


@pytest.mark.parametrize("kind", [PaperSelectionConfig, MadsSelectionConfig])
def test_every_selection_with_agents_takes_every_rule(kind):
    name = {PaperSelectionConfig: "paper", MadsSelectionConfig: "mads"}[kind]
    built = {}
    for rule in ("multiplicative", "additive", "fixed"):
        config = kind(name=name, collaboration=rule, theta_rate=0.7, theta_floor=0.1, theta={"a": 1.0})
        built[rule] = build_strategy(config).learning.collaboration
    assert built == {
        "multiplicative": MultiplicativeCollaboration(0.7, 0.1),
        "additive": AdditiveCollaboration(0.7),
        "fixed": FixedCollaboration({"a": 1.0}),
    }
    default = build_strategy(kind(name=name)).learning.collaboration
    assert default == {"paper": AdditiveCollaboration(1.0), "mads": MultiplicativeCollaboration(0.5, 0.05)}[name]
    with pytest.raises(ValueError, match="collaboration='vote'"):
        build_strategy(kind(name=name, collaboration="vote"))


def test_the_console_starts_with_the_given_weights_and_keeps_them():
    pool, uses = random_pool(n=900), np.zeros(900, np.uint16)
    config = MadsSelectionConfig(name="mads", probes=80, collaboration="fixed", theta={"topic": 1.0, "quality": 3.0})
    console = Console(OneRank(), pool, [LabelAgent("quality"), LabelAgent("topic")], build_strategy(config), 0)
    for _ in range(3):
        rewards = None
        if console.needs_rewards():
            probes = console.draw_probes()
            noise = np.random.default_rng(console.round).normal(size=len(probes.positions))
            values = noise + pool.codes("topic")[probes.positions]
            rewards = RoundRewards(probes, values, pool.lengths[probes.positions].astype(np.int64))
        _, record = console.decide(rewards, uses, 3000, 0, 0)
        assert record.theta == {"quality": 0.75, "topic": 0.25}
    assert any(record.agent_rewards.values())
