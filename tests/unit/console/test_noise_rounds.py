"""Rounds of group probes whose outcomes are noise, beside rounds that say something: how far weights move."""

import numpy as np
from fake_pool import FakePool, OneRank

from mads.agents import LabelAgent
from mads.config.schema import MadsSelectionConfig
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.reward.outcomes import fit_outcomes
from mads.reward.probes import RoundRewards

SIZES = {"domain": 6, "topic": 10}


def _pool(rng):
    """Topics lie inside domains, but for one sample in ten."""
    topic = rng.integers(0, 10, 3000)
    domain = np.where(rng.random(3000) < 0.9, topic % 6, rng.integers(0, 6, 3000))
    columns = {name: (code, tuple(map(str, range(SIZES[name])))) for name, code in (("domain", domain), ("topic", topic))}
    return FakePool(np.arange(3000), np.full(3000, 50), columns)


def _moved(seed, signal):
    """Root mean square of all weights after one round, and the outcomes' standard deviation in units of the rewards."""
    rng = np.random.default_rng(seed)
    pool = _pool(rng)
    config = MadsSelectionConfig(name="mads", probes=400, warmup_rounds=0, agent_rate=1.0)
    console = Console(OneRank(), pool, [LabelAgent("domain"), LabelAgent("topic")], build_strategy(config), seed)
    probes, effects = console.draw_probes(), {agent: rng.standard_normal(size) for agent, size in SIZES.items()}
    members = [np.flatnonzero(probes.codes[a] == j) for a, size in SIZES.items() for j in range(size)]
    shares = {a: np.stack([np.bincount(probes.codes[a][m], minlength=n) / len(m) for m in members]) for a, n in SIZES.items()}
    outcomes = rng.standard_normal(len(members)) * (0.2 if signal else 1.0)
    if signal:
        outcomes += sum(shares[agent] @ effects[agent] for agent in SIZES)
    fit = fit_outcomes(1e-4 * outcomes, shares, probes.sizes)
    rewards = sum(fit.effects[agent][probes.codes[agent]] for agent in SIZES)
    measured = RoundRewards(probes, rewards, np.full(len(rewards), 49), errors=fit.errors, scale=fit.scale)
    _, record = console.decide(measured, np.zeros(3000, np.uint16), 10_000, 0, 0)
    weights = np.concatenate([[label.weight for label in record.labels[agent]] for agent in SIZES])
    errors = [label.reward_se for agent in SIZES for label in record.labels[agent]]
    np.testing.assert_allclose(errors, np.concatenate([fit.errors[agent] / fit.scale for agent in SIZES]), rtol=1e-9)
    return np.sqrt((weights**2).mean())


def check_noise_moves_little():
    noise, signal = ([_moved(seed, said) for seed in range(20)] for said in (False, True))
    assert np.median(signal) > 0.4
    assert np.median(noise) < 0.4 * np.median(signal), (np.median(noise), np.median(signal))


def test_a_round_of_noise_moves_weights_less_than_one_that_says_something():
    check_noise_moves_little()
