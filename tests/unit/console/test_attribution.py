"""Rewards told apart between agents, against least squares written anew and against the truth of a simulation."""

import numpy as np
import pytest
from fake_pool import FakePool, OneRank

from mads.agents import ContinuousAgent, LabelAgent
from mads.config.schema import MadsSelectionConfig
from mads.console.attribute_rewards import own_parts
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards


def _confounded(n, seed, noise):
    """Labels of two attributes that go together, and rewards that are additive in them."""
    rng = np.random.default_rng(seed)
    domain = rng.integers(0, 3, n)
    quality = np.where(rng.random(n) < 0.8, domain, rng.integers(0, 3, n))  # follows the domain four times in five
    truth = [np.array([1.0, 0.0, -1.0]), np.array([0.0, 0.5, -0.5])]
    rewards = truth[0][domain] + truth[1][quality] + noise * rng.standard_normal(n)
    return [domain, quality], rewards, truth, rng


def _means(codes, values, weights, size):
    return np.array([np.average(values[codes == j], weights=weights[codes == j]) for j in range(size)])


def test_each_agent_gets_its_own_effect_where_labels_go_together():
    codes, rewards, truth, rng = _confounded(6000, 0, 0.5)
    counted = rng.uniform(0.5, 1.5, 6000)
    own, _ = own_parts(codes, [3, 3], rewards, counted)
    for code, part, effect in zip(codes, own, truth):
        found = _means(code, part, counted, 3)
        np.testing.assert_allclose(found - found.mean(), effect - effect.mean(), atol=0.08)
        marginal = _means(code, rewards, counted, 3)
        assert np.abs(marginal - marginal.mean() - (effect - effect.mean())).max() > 0.2  # what it would learn otherwise


def test_without_noise_own_parts_are_least_squares_to_the_shrinkage():
    codes, rewards, _, rng = _confounded(4000, 1, 0.05)
    counted = rng.uniform(0.5, 1.5, 4000)
    design = np.concatenate([np.eye(3)[c] for c in codes], axis=1) * np.sqrt(counted)[:, None]
    solution = np.linalg.lstsq(design, rewards * np.sqrt(counted), rcond=None)[0]
    own, _ = own_parts(codes, [3, 3], rewards, counted)
    for k, (code, part) in enumerate(zip(codes, own)):
        expected, found = solution[3 * k : 3 * k + 3], _means(code, part, counted, 3)
        np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=5e-3)


def test_scale_is_the_spread_between_labels_and_one_agent_keeps_its_rewards():
    rng = np.random.default_rng(2)
    codes, rewards, counted = rng.integers(0, 4, 500), rng.standard_normal(500), rng.uniform(0.5, 2, 500)
    own, scale = own_parts([codes], [4], rewards, counted)
    np.testing.assert_array_equal(own[0], rewards)
    means = _means(codes, rewards, counted, 4)
    share = np.array([counted[codes == j].sum() for j in range(4)]) / counted.sum()
    assert scale == pytest.approx(np.sqrt(share @ (means - share @ means) ** 2), rel=1e-12)


@pytest.mark.parametrize("rewards", [np.zeros(40), np.full(40, 2.5)])
def test_rewards_that_say_nothing_have_no_scale(rewards):
    codes = [np.arange(40) % 4, np.arange(40) % 3]
    own, scale = own_parts(codes, [4, 3], rewards, np.ones(40))
    assert np.isfinite(own).all() and scale == pytest.approx(0.0, abs=1e-6)


def _spreads(truth):
    """Standard deviation of (a label agent's weights, a curve) over the pool after one round. Domains go with the score four
    times in five; rewards are the `truth`'s part, "domain" or "score", and noise."""
    rng = np.random.default_rng(3)
    score = rng.standard_normal(6000).astype(np.float32)
    tenth = np.searchsorted(np.quantile(score, np.arange(1, 10) / 10), score)
    domain = np.where(rng.random(6000) < 0.8, tenth // 4, rng.integers(0, 3, 6000))
    columns = {"domain": (domain.astype(np.uint16), ("a", "b", "c"))}
    columns["score"] = tenth.astype(np.uint16), tuple(f"tenth{j}" for j in range(10))
    pool = FakePool(np.arange(6000), rng.integers(4, 129, 6000), columns, {"score": score})
    agents = [LabelAgent("domain"), ContinuousAgent("score", shape="binned")]
    console = Console(OneRank(), pool, agents, build_strategy(MadsSelectionConfig(name="mads", probes=3000)), 3)
    uses = np.zeros(6000, np.uint16)
    console.decide(None, uses, 4000, 0, 0)
    probes = console.draw_probes()
    view = pool.view(probes.positions)
    part = view.codes("domain") - 1.0 if truth == "domain" else view.codes("score") / 4.5 - 1
    rewards = 1e-3 * (part + 0.1 * rng.standard_normal(len(part)))
    console.decide(RoundRewards(probes, rewards, view.lengths.astype(np.int64) - 1, {}, {}), uses, 4000, 1, 1)
    return [agent.score(pool).std() for agent in agents]


@pytest.mark.parametrize("truth", ["domain", "score"])
def test_a_curve_and_a_label_agent_do_not_claim_each_others_part(truth):
    domain, score = _spreads(truth)
    mine, other = (domain, score) if truth == "domain" else (score, domain)
    assert mine > 0.3 and other < 0.05 * mine
