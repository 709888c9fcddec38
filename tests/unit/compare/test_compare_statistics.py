"""The comparison's statistics against scipy and against loops written anew."""

import itertools

import numpy as np
import pytest
from scipy import stats

import mads.compare.statistics as statistics
from mads.compare.statistics import (
    beta_fraction,
    estimate,
    holm,
    paired,
    reach,
    reach_over_seeds,
    t_quantile,
    t_tail,
    value_at,
)


def check_t_distribution():
    for freedom in (1, 2, 3, 4, 9, 30, 200):
        assert t_quantile(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
        for t in (-40.0, -2.5, -1e-3, 0.0, 0.3, 1.0, 2.0, 7.0, 300.0):
            assert t_tail(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-7, abs=1e-9)


def test_students_t_is_that_of_scipy():
    check_t_distribution()


def test_the_incomplete_beta_function_is_that_of_scipy():
    for a, b, x in itertools.product((0.5, 1, 4.5, 60), (0.5, 2, 33), (0.0, 1e-6, 0.1, 0.5, 0.93, 1.0)):
        assert beta_fraction(a, b, x) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-9, abs=1e-12)


def check_paired_differences():
    """Seeds that only one side has do not count; everything else is scipy's paired t test."""
    ours = {3: 1.10, 0: 1.02, 7: 1.31, 9: 5.0}
    theirs = {0: 1.00, 3: 1.15, 7: 1.40, 4: 0.0}
    found = paired(ours, theirs)
    x, y = [ours[s] for s in (0, 3, 7)], [theirs[s] for s in (0, 3, 7)]
    expected = stats.ttest_rel(x, y)
    low, high = expected.confidence_interval(0.95)
    assert found.n == 3 and found.mean == pytest.approx(np.mean(np.subtract(x, y)))
    assert found.se == pytest.approx(stats.sem(np.subtract(x, y)))
    assert found.interval == pytest.approx((low, high)) and found.p == pytest.approx(expected.pvalue)


def check_paired_from_module():
    """Seeds in another order on the two sides."""
    found = statistics.paired({0: 1.0, 1: 5.0}, {1: 4.0, 0: 1.5})
    assert found.mean == pytest.approx(0.25) and found.se == pytest.approx(0.75)


def test_differences_are_taken_within_a_seed():
    check_paired_from_module()


def test_a_paired_difference_is_scipys_paired_t_test():
    check_paired_differences()


def test_one_seed_has_no_interval_and_no_p():
    one = estimate([2.5])
    assert (one.n, one.mean, one.se, one.half, one.p, one.interval) == (1, 2.5, None, None, None, None)
    assert estimate([]) is None and paired({0: 1.0}, {1: 1.0}) is None


def test_equal_values_have_an_interval_of_no_width():
    same = estimate([0.25, 0.25, 0.25])
    assert same.half == 0 and same.p == 0.0 and estimate([0.0, 0.0]).p == 1.0


def check_holm(seed=0):
    """By the definition: the smallest level at which step-down testing rejects a hypothesis."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        p = {f"h{i}": float(v) for i, v in enumerate(rng.uniform(0, 0.3, int(rng.integers(1, 7))))}
        found = holm(p)
        for name in p:
            level = found[name]
            for alpha, rejected in ((level * 1.0001, True), (level * 0.9999, False)):
                if level < 1:
                    assert (name in step_down(p, alpha)) == rejected


def step_down(p, alpha):
    rejected = []
    for k, name in enumerate(sorted(p, key=p.get)):
        if p[name] > alpha / (len(p) - k):
            break
        rejected.append(name)
    return rejected


def test_holm_is_step_down_testing():
    check_holm()
    assert holm({}) == {} and holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def check_reach():
    curve = [(0.4, 3.0), (0.5, 2.0), (0.6, 2.4), (1.0, 1.0)]
    fine = np.linspace(0.4, 1.0, 600_001)
    for level in (2.9, 2.2, 2.0, 1.5, 1.0):
        first = fine[np.argmax(np.interp(fine, *zip(*curve)) <= level + 1e-12)]
        found = reach(curve, level)
        assert found.kind == "at" and found.place == pytest.approx(first, abs=2e-6), level
    assert reach(curve, 0.99).kind == "never" and reach(curve, 0.99).place is None
    assert (reach(curve, 3.0).kind, reach(curve, 3.5).kind, reach(curve, 3.5).place) == ("before", "before", 0.4)


def test_a_level_is_reached_where_the_curve_first_comes_down_to_it_and_nowhere_beyond():
    check_reach()
    with pytest.raises(ValueError, match="without points"):
        reach([], 1.0)


def check_place_over_seeds():
    curves = {0: [(0.5, 2.0), (1.0, 1.0)], 1: [(0.5, 3.0), (1.0, 1.0)]}
    both = reach_over_seeds(curves, {0: 1.5, 1: 1.5, 2: 9.0})
    places = [0.75, 0.875]
    assert both.place.mean == pytest.approx(np.mean(places))
    assert both.place.half == pytest.approx(stats.t.ppf(0.975, 1) * stats.sem(places))
    one = reach_over_seeds(curves, {0: 0.5, 1: 1.5})
    assert one.place is None and (one.count("never"), one.count("at")) == (1, 1)
    assert reach_over_seeds(curves, {5: 1.0}) is None


def test_the_place_over_seeds_is_a_mean_only_if_every_seed_crosses():
    check_place_over_seeds()


def test_a_curves_value_is_interpolated_and_never_extrapolated():
    curve = [(0.5, 2.0), (0.8, 1.4), (1.1, 1.0)]
    assert value_at(curve, 1.0) == pytest.approx(np.interp(1.0, *zip(*curve)))
    assert value_at(curve, 0.8) == 1.4 and value_at(curve, 1.2) is None and value_at(curve, 0.49) is None
    assert value_at([(1.0, 3.0)], 1.0) == 3.0 and value_at([(1.0, 3.0)], 0.9) is None
