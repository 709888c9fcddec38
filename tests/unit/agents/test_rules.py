"""Learning rules against transcriptions of their equations, one label at a time in plain Python."""

import math

import numpy as np
import pytest

from mads.agents.rules import MadsRule, PaperRule, scale_rewards, shrink, standardised_gain


def _probes(seed=0, n=60, labels=4):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, labels, n)
    return codes, rng.normal(size=n) + 0.5 * codes, rng.integers(5, 128, n), rng.uniform(0.2, 3.0, n)


def test_rms_scale_keeps_sign_and_ratio():
    _, rewards, targets, importance = _probes()
    scaled = scale_rewards(rewards * 1e-9, targets, importance, "rms")
    a = targets * importance
    assert np.average(scaled**2, weights=a) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(scaled / scaled[0], rewards / rewards[0], rtol=1e-12)
    assert (np.sign(scaled) == np.sign(rewards)).all()


def test_zscore_scale_is_invariant_to_affine_changes():
    _, rewards, targets, importance = _probes()
    scaled = scale_rewards(rewards, targets, importance, "zscore")
    a = targets * importance
    mean = np.average(rewards, weights=a)
    np.testing.assert_allclose(scaled, (rewards - mean) / np.sqrt(np.average((rewards - mean) ** 2, weights=a)), atol=1e-12)
    np.testing.assert_allclose(scale_rewards(7 * rewards + 3, targets, importance, "zscore"), scaled, atol=1e-10)


@pytest.mark.parametrize("mode", ["rms", "zscore"])
def test_a_given_spread_is_the_unit(mode):
    _, rewards, targets, importance = _probes()
    centre = np.average(rewards, weights=targets * importance) if mode == "zscore" else 0.0
    scaled = scale_rewards(rewards * 1e-9, targets, importance, mode, spread=4e-9)
    np.testing.assert_allclose(scaled, (rewards - centre) / 4, atol=1e-12)
    assert not scale_rewards(rewards, targets, importance, mode, spread=0.0).any()


def test_degenerate_rewards_have_defined_scales():
    targets, ones = np.array([10, 20, 30]), np.ones(3)
    equal = np.full(3, 0.1)
    assert scale_rewards(equal, targets, ones, "zscore").tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(scale_rewards(equal, targets, ones, "rms"), 1.0)
    assert scale_rewards(np.zeros(3), targets, ones, "rms").tolist() == [0.0, 0.0, 0.0]
    assert scale_rewards(np.array([5.0]), targets[:1], ones[:1], "zscore").tolist() == [0.0]
    assert np.isfinite(scale_rewards(np.array([1e-200, -3e-200, 2e-200]), targets, ones, "zscore")).all()
    assert np.abs(scale_rewards(np.array([1e-200, -3e-200, 2e-200]), targets, ones, "rms")).max() > 1


def test_x5_non_finite_rewards_name_count_and_ids():
    rewards = np.array([1.0, np.nan, 2.0, -np.inf])
    with pytest.raises(ValueError, match=r"2 of 4 rewards.*\[11, 13\]"):
        scale_rewards(rewards, np.ones(4), np.ones(4), "rms", ids=np.array([10, 11, 12, 13]))
    with pytest.raises(ValueError, match="without probes"):
        scale_rewards(np.zeros(0), np.zeros(0), np.zeros(0), "rms")
    with pytest.raises(ValueError, match="positive in sum"):
        scale_rewards(np.ones(2), np.zeros(2), np.ones(2), "rms")
    with pytest.raises(ValueError, match="'robust'"):
        scale_rewards(np.ones(2), np.ones(2), np.ones(2), "robust")


def test_paper_rule_equals_eq_4_5_7():
    codes, rewards, targets, importance = _probes()
    weights, eta = np.array([0.4, 0.3, 0.2, 0.1]), 0.1
    rule = PaperRule(eta)
    statistics = rule.statistics(codes, 4, rewards, targets, importance)
    updated, own = rule.step(weights, weights, statistics)
    expected_w, expected_r = [], []
    for j in range(4):
        mine = [r for r, c in zip(rewards.tolist(), codes.tolist()) if c == j]
        r_j = sum(mine) / len(mine)
        se = math.sqrt(sum((r - r_j) ** 2 for r in mine) / (len(mine) - 1) / len(mine))
        assert statistics.se[j] == pytest.approx(se, rel=1e-12)
        assert statistics.probes[j] == len(mine) and statistics.tokens[j] == targets[codes == j].sum()
        expected_w.append((1 - eta) * weights[j] + eta * r_j)
        expected_r.append(r_j)
    np.testing.assert_allclose(updated, expected_w, rtol=1e-12)
    assert own == pytest.approx(sum(w * r for w, r in zip(expected_w, expected_r)) / 4, rel=1e-12)
    assert weights.tolist() == [0.4, 0.3, 0.2, 0.1]


def test_paper_rule_does_not_depend_on_the_order_of_probes():
    codes, rewards, targets, importance = _probes()
    rule, weights, order = PaperRule(0.1), np.full(4, 0.25), np.random.default_rng(1).permutation(60)
    one, r_one = rule.step(weights, weights, rule.statistics(codes, 4, rewards, targets, importance))
    two, r_two = rule.step(weights, weights, rule.statistics(codes[order], 4, rewards[order], targets[order], importance[order]))
    np.testing.assert_allclose(one, two, rtol=1e-13)
    assert r_one == pytest.approx(r_two, rel=1e-13)


@pytest.mark.parametrize("rule", [PaperRule(0.1), MadsRule(0.5)])
def test_labels_without_probes_keep_their_weight_and_do_not_count(rule):
    codes, rewards, targets, importance = _probes()
    weights = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    statistics = rule.statistics(codes, 5, rewards, targets, importance)
    updated, own = rule.step(weights, weights, statistics)
    assert np.isnan(statistics.mean[4]) and statistics.probes[4] == 0 and updated[4] == 0.15
    without, own_without = rule.step(weights[:4], weights[:4], rule.statistics(codes, 4, rewards, targets, importance))
    np.testing.assert_array_equal(updated[:4], without)
    assert own == pytest.approx(own_without, rel=1e-12)


@pytest.mark.parametrize("rule", [PaperRule(0.1), MadsRule(0.5)])
def test_no_probe_at_all_changes_nothing(rule):
    empty = np.zeros(0)
    statistics = rule.statistics(np.zeros(0, np.int64), 3, empty, empty, empty)
    updated, own = rule.step(np.array([0.5, 0.3, 0.2]), np.full(3, 1 / 3), statistics)
    assert updated.tolist() == [0.5, 0.3, 0.2] and own == 0.0


def _mads_reference(codes, rewards, targets, importance, weights, shares, rate):
    """The mads rule written out label by label (docs/selection.md)."""
    labels = sorted(set(codes.tolist()))
    a = (importance * targets).tolist()
    mean, size, squares = {}, {}, {}
    for j in labels:
        pairs = [(x, r) for x, r, c in zip(a, rewards.tolist(), codes.tolist()) if c == j]
        total = sum(x for x, _ in pairs)
        mean[j] = sum(x * r for x, r in pairs) / total
        size[j] = total**2 / sum(x * x for x, _ in pairs)
        squares[j] = size[j] * sum(x * (r - mean[j]) ** 2 for x, r in pairs) / total
    pooled = sum(squares.values()) / sum(size[j] - 1 for j in labels)
    se2 = {j: (4 * pooled + squares[j]) / (4 + size[j] - 1) / size[j] for j in labels}
    plain = sum(mean.values()) / len(labels)
    tau2 = max(0.0, sum((mean[j] - plain) ** 2 for j in labels) / (len(labels) - 1) - sum(se2.values()) / len(labels))
    centre = sum(mean[j] / (tau2 + se2[j]) for j in labels) / sum(1 / (tau2 + se2[j]) for j in labels)
    shrunk = {j: centre + tau2 / (tau2 + se2[j]) * (mean[j] - centre) for j in labels}
    updated = [(1 - rate) * weights[j] + rate * shrunk[j] if j in mean else weights[j] for j in range(len(weights))]
    p = {j: shares[j] / sum(shares[i] for i in labels) for j in labels}
    wbar, rbar = sum(p[j] * weights[j] for j in labels), sum(p[j] * mean[j] for j in labels)
    std = math.sqrt(sum(p[j] * (weights[j] - wbar) ** 2 for j in labels))
    return updated, sum(p[j] * (weights[j] - wbar) * (mean[j] - rbar) for j in labels) / std, [math.sqrt(se2[j]) for j in labels]


@pytest.mark.parametrize("seed", range(5))
def test_mads_rule_equals_its_transcription(seed):
    codes, rewards, targets, importance = _probes(seed)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    weights = np.random.default_rng(seed).normal(size=4)
    rule = MadsRule(0.5)
    statistics = rule.statistics(codes, 4, rewards, targets, importance)
    updated, own = rule.step(weights, shares, statistics)
    expected, expected_own, expected_se = _mads_reference(codes, rewards, targets, importance, weights, shares, 0.5)
    np.testing.assert_allclose(updated, expected, rtol=1e-11)
    np.testing.assert_allclose(statistics.se, expected_se, rtol=1e-11)
    assert own == pytest.approx(expected_own, rel=1e-11)


def test_mads_agent_is_judged_out_of_sample():
    """With rewards that are pure noise the gain has mean 0; judged by updated weights it would be positive every time."""
    rule, shares = MadsRule(0.5), np.full(4, 0.25)
    gains = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        codes = np.repeat(np.arange(4), 20)
        statistics = rule.statistics(codes, 4, rng.normal(size=80), np.full(80, 50), np.ones(80))
        gains.append(rule.step(rng.normal(size=4), shares, statistics)[1])
    assert abs(np.mean(gains)) < 4 * np.std(gains) / math.sqrt(len(gains))


def test_gain_does_not_grow_with_the_number_of_labels_or_the_size_of_weights():
    weights, mean, shares = np.array([1.0, -1.0]), np.array([0.3, -0.3]), np.array([0.5, 0.5])
    one = standardised_gain(weights, mean, shares)
    assert one == pytest.approx(0.3)
    assert standardised_gain(10 * weights + 5, mean, shares) == pytest.approx(one)
    assert standardised_gain(np.repeat(weights, 5), np.repeat(mean, 5), np.repeat(shares, 5)) == pytest.approx(one)
    assert standardised_gain(np.full(2, 0.1), mean, shares) == 0.0


def test_shrinking_follows_the_noise():
    mean = np.array([1.0, -1.0, 0.5])
    np.testing.assert_allclose(shrink(mean, np.full(3, 1e-9)), mean, atol=1e-12)  # no noise: nothing moves
    np.testing.assert_allclose(shrink(mean, np.full(3, 10.0)), mean.mean(), atol=1e-12)  # all noise: one value
    moved = shrink(mean, np.array([0.1, 0.1, 1.0]))
    assert abs(moved[2] - mean[2]) > 5 * abs(moved[0] - mean[0]) > 0
    assert shrink(np.array([2.0]), np.array([0.3])).tolist() == [2.0]
    np.testing.assert_allclose(shrink(mean, np.array([0.1, np.nan, 0.1])), mean.mean())
    np.testing.assert_allclose(shrink(np.full(3, 0.2), np.zeros(3)), 0.2)


def test_shrunk_means_are_nearer_to_the_truth():
    """The reason for shrinking: squared error over labels with known means, few probes each."""
    raw = shrunk = 0.0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        truth, codes = rng.normal(scale=0.2, size=10), np.repeat(np.arange(10), 6)
        rewards = truth[codes] + rng.normal(size=60)
        statistics = MadsRule(0.5).statistics(codes, 10, rewards, np.full(60, 40), np.ones(60))
        raw += ((statistics.mean - truth) ** 2).sum()
        shrunk += ((shrink(statistics.mean, statistics.se) - truth) ** 2).sum()
    assert shrunk < 0.5 * raw


def test_one_probe_per_label_is_shrunk_completely():
    rule = MadsRule(1.0)
    statistics = rule.statistics(np.arange(3), 3, np.array([1.0, 2.0, 6.0]), np.full(3, 10), np.ones(3))
    assert np.isnan(statistics.se).all()
    updated, _ = rule.step(np.zeros(3), np.full(3, 1 / 3), statistics)
    np.testing.assert_allclose(updated, 3.0)
