"""The continuous agent against loops over single samples."""

import json
import math

import numpy as np
import pytest
from agent_support import probes_of, scored_in_pieces, valued_pool
from fake_pool import FakePool

from mads.agents import ContinuousAgent
from mads.agents.columns import token_quantiles
from mads.agents.continuous import interpolate, isotonic, monotone
from mads.agents.rules import MadsRule, PaperRule


def _bound(pool, rule=None, **settings):
    agent = ContinuousAgent("value", **settings)
    agent.bind(pool, rule or MadsRule(0.5))
    return agent


def _loop_quantile(values, lengths, level):
    """The least value at or below which at least `level` of the tokens lie, sample by sample."""
    order = sorted((float(v), int(n)) for v, n in zip(values, lengths) if math.isfinite(v))
    total, seen = sum(n for _, n in order), 0
    for value, tokens in order:
        seen += tokens
        if seen >= min(total, max(1, math.ceil(level * total))):
            return value
    raise AssertionError("not reached")


def check_quantiles_equal_a_loop():
    levels = [0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.9, 0.999, 1.0]
    for seed in range(4):
        pool = valued_pool(300, seed, missing=9 * seed)
        values = pool.values("value")
        if seed == 3:
            values[:40] = np.array([-0.0, 0.0, 1e-40, -1e-40, 3e38, -3e38, 1.5, np.nextafter(np.float32(1.5), np.float32(2))] * 5)
        expected = [_loop_quantile(values, pool.lengths, level) for level in levels]
        for piece in (7, 100, 1 << 20):
            found = token_quantiles(pool, "value", levels, piece)
            assert found.dtype == np.float32 and found.tolist() == expected


def test_quantiles_equal_a_loop_however_the_column_is_read():
    check_quantiles_equal_a_loop()


def check_bins_and_weights_equal_loops():
    """Bins, token shares, weighted means, shrinkage and the move of the weights, by loops over samples and bins."""
    pool = valued_pool(missing=13)
    agent = _bound(pool, bins=6, shape="binned")
    values, lengths = pool.values("value").tolist(), pool.lengths.tolist()
    edges = sorted({_loop_quantile(values, lengths, b / 6) for b in range(1, 6)} - {max(v for v in values if math.isfinite(v))})
    bins = [sum(e < v for e in edges) if math.isfinite(v) else len(edges) + 1 for v in values]
    assert agent.missing == 13 and bins.count(len(edges) + 1) == 13
    assert agent.edges.tolist() == edges and agent.bin_of(pool).tolist() == bins
    tokens = [sum(n for n, b in zip(lengths, bins) if b == j) for j in range(len(edges) + 2)]
    means = [sum(n * v for n, v, b in zip(lengths, values, bins) if b == j) / tokens[j] for j in range(len(edges) + 1)]
    np.testing.assert_allclose(agent.centres, means, rtol=1e-12)
    np.testing.assert_allclose(agent.bin_shares, np.array(tokens) / sum(tokens), rtol=1e-12)

    probes = probes_of(pool, n=200)
    agent.learn(probes)
    codes = agent.bin_of(probes.view)
    mean, error = [], []
    rows = [[], []]
    for j in range(len(tokens)):
        a = [i * t for i, t, c in zip(probes.importance, probes.targets, codes) if c == j]
        r = [x for x, c in zip(probes.rewards, codes) if c == j]
        m = sum(a) ** 2 / sum(x * x for x in a)
        mean.append(sum(x * y for x, y in zip(a, r)) / sum(a))
        rows[0].append(m * sum(x * (y - mean[-1]) ** 2 for x, y in zip(a, r)) / sum(a))
        rows[1].append(m)
    pooled = sum(rows[0]) / sum(m - 1 for m in rows[1])
    error = [(4 * pooled + q) / (4 + m - 1) / m for q, m in zip(*rows)]
    between = max(0.0, np.var(mean, ddof=1) - sum(error) / len(error))
    precision = [1 / (between + e) for e in error]
    centre = sum(p * x for p, x in zip(precision, mean)) / sum(precision)
    expected = [0.5 * (centre + between * p * (x - centre)) for p, x in zip(precision, mean)]
    np.testing.assert_allclose(agent.bin_weights, expected, rtol=1e-9, atol=1e-12)


def test_bins_and_weights_equal_loops():
    check_bins_and_weights_equal_loops()


def _minmax_isotonic(values, weight):
    """Barlow's formula: max over a <= i of min over b >= i of the weighted mean of a..b."""
    n = len(values)
    mean = lambda a, b: sum(v * w for v, w in zip(values[a : b + 1], weight[a : b + 1])) / sum(weight[a : b + 1])
    return [max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


def check_isotonic_equals_the_minmax_formula():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 7, 12):
        for _ in range(10):
            values, weight = rng.normal(size=n).round(1), rng.uniform(0.1, 5, n)
            rising = np.array(_minmax_isotonic(values.tolist(), weight.tolist()))
            falling = -np.array(_minmax_isotonic((-values).tolist(), weight.tolist()))
            np.testing.assert_allclose(isotonic(values, weight), rising, atol=1e-12)
            errors = [(weight * (fit - values) ** 2).sum() for fit in (rising, falling)]
            np.testing.assert_allclose(monotone(values, weight), falling if errors[1] < errors[0] - 1e-12 else rising, atol=1e-12)


def test_isotonic_equals_the_minmax_formula_in_the_nearer_direction():
    check_isotonic_equals_the_minmax_formula()


def check_scores_lie_on_the_curve():
    """Piecewise linear, sample by sample, the same however the pool is cut; what has no value has its own weight."""
    pool = valued_pool(missing=9)
    agent = _bound(pool, bins=5)
    agent.learn(probes_of(pool, n=200, reward=lambda view: -np.nan_to_num(view.values("value"), posinf=0, neginf=0)))
    expected = []
    for v in pool.values("value").tolist():
        c, f = agent.centres.tolist(), agent.curve.tolist()
        if not math.isfinite(v):
            expected.append(float(agent.bin_weights[-1]))
        elif v <= c[0]:
            expected.append(f[0])
        elif v >= c[-1]:
            expected.append(f[-1])
        else:
            j = max(i for i in range(len(c)) if c[i] <= v)
            expected.append(f[j] + (f[j + 1] - f[j]) * (v - c[j]) / (c[j + 1] - c[j]))
    whole = agent.score(pool)
    assert whole.dtype == np.float64
    np.testing.assert_allclose(whole, expected, atol=1e-12)
    np.testing.assert_array_equal(scored_in_pieces(agent, pool), whole)
    known = np.isfinite(pool.values("value"))
    order = np.argsort(pool.values("value")[known], kind="stable")
    assert (np.diff(whole[known][order]) <= 1e-12).all() and len(np.unique(whole)) > 30  # falling, and not by steps


def test_scores_lie_on_the_curve_however_the_pool_is_cut():
    check_scores_lie_on_the_curve()


def test_a_free_curve_finds_the_middle_that_a_monotone_one_cannot():
    pool, hump = valued_pool(2000), lambda view: 2.0 - np.abs(view.values("value"))
    free, forced = _bound(pool, shape="binned"), _bound(pool, shape="monotone")
    for seed in range(4):
        free.learn(probes_of(pool, seed, 300, hump)), forced.learn(probes_of(pool, seed, 300, hump))
    at = FakePool([1, 2, 3], [9, 9, 9], {}, {"value": np.array([-5, 0, 5], np.float32)})
    low, middle, high = free.score(at)
    assert middle > low + 1 and middle > high + 1
    steps = np.diff(forced.curve)
    assert (steps >= 0).all() or (steps <= 0).all()


@pytest.mark.parametrize("rule", [MadsRule(0.5), PaperRule(0.1)])
@pytest.mark.parametrize("shape", ["monotone", "binned"])
def test_a_state_goes_on_identically(rule, shape):
    pool = valued_pool(missing=5)
    one, two = _bound(pool, rule, shape=shape), _bound(valued_pool(seed=1), rule, shape=shape)
    one.learn(probes_of(pool, 1))
    two.load_state(json.loads(json.dumps(one.state(), allow_nan=False)))
    assert [r.weight for r in two.describe()] == [r.weight for r in one.describe()] and two.missing == 5
    assert one.learn(probes_of(pool, 2)) == two.learn(probes_of(pool, 2))
    np.testing.assert_array_equal(one.score(pool), two.score(pool))


def test_a_longer_pool_keeps_bins_and_weights_and_counts_anew():
    pool, agent = valued_pool(900, missing=12), None
    agent = _bound(pool.view(slice(0, 500)))
    agent.learn(probes_of(pool.view(slice(0, 500))))
    edges, weights, score = agent.edges.copy(), agent.bin_weights.copy(), agent.score(pool)
    agent.rebind(pool)
    assert agent.missing == 12
    for now, before in ((agent.edges, edges), (agent.bin_weights, weights), (agent.score(pool), score)):
        np.testing.assert_array_equal(now, before)


def test_values_that_are_all_one_make_one_bin_without_an_opinion():
    pool = valued_pool(50)
    pool.values("value")[:] = 2.0
    agent = _bound(pool)
    agent.learn(probes_of(pool, n=20))
    assert len(agent.centres) == 1 and len(agent.edges) == 0 and len(set(agent.score(pool))) == 1
    pool.values("value")[:] = np.nan
    with pytest.raises(ValueError, match="'value' has no finite value in the pool's 50 samples"):
        _bound(pool)


def check_a_prior_is_in_the_curve():
    """Against draws of a normal variable: what has the bin's place among them. Samples without a value are not judged."""
    pool = valued_pool(3000, missing=30)
    for shape in ("binned", "monotone"):
        plain, told = _bound(pool, bins=8, shape=shape), _bound(pool, bins=8, shape=shape, prior=2.0)
        draws = np.sort(np.random.default_rng(0).standard_normal(2_000_000))
        ends = np.round(np.cumsum(told.bin_shares[:-1]) / told.bin_shares[:-1].sum() * len(draws)).astype(int)
        means = np.array([part.mean() for part in np.split(draws, ends[:-1])])
        np.testing.assert_allclose(told.curve - plain.curve, 2 * means, atol=0.02)
        values, scores = pool.values("value"), told.score(pool)
        known = np.isfinite(values)
        np.testing.assert_array_equal(scores[~known], plain.score(pool)[~known])
        expected = np.interp(values[known], plain.centres, plain.curve + 2 * means)
        np.testing.assert_allclose(scores[known], expected, atol=0.02)
        told.learn(probes_of(pool, n=200))
        assert np.argmax(told.curve) == len(means) - 1


def test_a_prior_is_in_the_curve_from_the_start():
    check_a_prior_is_in_the_curve()


def test_interpolation_needs_no_neighbours():
    centres, heights = np.array([0.0, 1.0, 3.0]), np.array([1.0, 0.0, 4.0])
    assert interpolate(np.array([-1, 0, 0.5, 1, 2, 9]), centres, heights).tolist() == [1, 1, 0.5, 0, 2, 4]


@pytest.mark.parametrize("count", [2, 3, 10, 32, 33, 90])
def test_interpolation_of_many_values_is_the_formula_bit_for_bit(count):
    """More values than a block, centres themselves among them, and numbers of centres on both sides of the search's."""
    rng = np.random.default_rng(count)
    centres, heights = np.sort(rng.standard_normal(count)), rng.standard_normal(count)
    values = rng.permutation(np.concatenate([2 * rng.standard_normal(20_000), centres, -centres, [0.0]]))
    left = np.clip(np.searchsorted(centres, values, side="right") - 1, 0, count - 2)
    part = np.clip((values - centres[left]) / (centres[left + 1] - centres[left]), 0.0, 1.0)
    expected = heights[left] * (1 - part) + heights[left + 1] * part
    assert interpolate(values, centres, heights).tobytes() == expected.tobytes()
    assert interpolate(values[:0], centres, heights).shape == (0,)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"shape": "linear"}, "shape='linear' is not one of monotone, binned"),
        ({"bins": 1}, "bins=1 must be a whole number from 2 to 256"),
        ({"bins": 2.5}, "bins=2.5 must be"),
        ({"prior": float("inf")}, "prior=inf must be a finite number"),
        ({"prior": True}, "prior=True must be"),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        ContinuousAgent("value", **settings)


def test_agents_learn_what_helps_and_are_judged_before_they_learn():
    pool = valued_pool(2000)
    agent = _bound(pool)
    help_ = lambda view: view.values("value") / 3.0
    first, second = agent.learn(probes_of(pool, 1, 300, help_)), agent.learn(probes_of(pool, 2, 300, help_))
    assert first == 0.0 and second > 0.7  # no opinion yet, then nearly the rewards' own spread
