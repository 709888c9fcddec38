"""Group outcomes regressed on what groups are made of, against Henderson's equations solved anew and against a simulation."""

import numpy as np
import pytest

from mads.reward.outcomes import fit_outcomes, winsorised


def _groups(seed, noise, slope=0.0):
    rng = np.random.default_rng(seed)
    sizes = {"domain": 6, "topic": 9}
    truth = {"domain": rng.normal(0, 1.0, 6), "topic": rng.normal(0, 0.05, 9)}
    rows = {agent: [] for agent in sizes}
    for agent, size in sizes.items():
        for label in range(size):  # a group of each label: all of it, and a mixture of the other agent's labels
            for other, count in sizes.items():
                rows[other].append(np.eye(count)[label] if other == agent else rng.dirichlet(np.ones(count)))
    shares = {agent: np.array(r) for agent, r in rows.items()}
    means = rng.standard_normal(15)
    y = 0.3 + slope * means + sum(shares[a] @ truth[a] for a in sizes) + noise * rng.standard_normal(15)
    return y, shares, sizes, truth, means


def test_effects_solve_the_mixed_model_equations_at_their_variances():
    y, shares, sizes, _, _ = _groups(3, 0.2)
    effects = np.concatenate(list(fit_outcomes(y, shares, sizes).effects.values()))
    x = np.concatenate([shares[a] - shares[a].mean(0) for a in sizes], axis=1)
    c = y - y.mean()
    # At the fixed point tau_A^2 and sigma^2 reproduce themselves; Henderson: (X'X / s + D) e = X'y / s.
    best = None
    for ratio in np.geomspace(1e-4, 1e4, 400):  # of the two agents' variances, profiled
        prior = np.repeat([1.0, ratio], [6, 9])
        for s in np.geomspace(1e-4, 1e2, 200):
            cov = (x * prior) @ x.T + s * np.eye(15)
            quad = c @ np.linalg.solve(cov, c)
            value = 15 * np.log(quad) + np.linalg.slogdet(cov)[1]
            if best is None or value < best[0]:
                best = value, prior, s
    _, prior, s = best
    likeliest = np.linalg.solve(x.T @ x / s + np.diag(1 / prior), x.T @ c / s)
    assert np.corrcoef(effects, likeliest)[0, 1] > 0.97
    np.testing.assert_allclose(effects, likeliest, atol=0.3 * np.abs(likeliest).max())


def test_an_agent_that_makes_no_difference_is_shrunk_away():
    agreement, sizes_of = [], {"domain": [], "topic": []}
    for seed in range(20):
        y, shares, sizes, truth, _ = _groups(seed, 0.1)
        effects = fit_outcomes(y, shares, sizes).effects
        agreement.append(np.corrcoef(effects["domain"], truth["domain"])[0, 1])
        for agent in sizes:
            sizes_of[agent].append(effects[agent].std())
    assert np.mean(agreement) > 0.97
    assert np.mean(sizes_of["topic"]) < 0.1 * np.mean(sizes_of["domain"])  # with one variance for both it is above 0.11


def test_errors_cover_the_truth_as_often_as_they_say():
    inside = []
    for seed in range(40):
        y, shares, sizes, truth, _ = _groups(seed, 0.5)
        found = fit_outcomes(y, shares, sizes)
        centre = truth["domain"] - truth["domain"].mean()
        inside += (
            np.abs(found.effects["domain"] - found.effects["domain"].mean() - centre) < 2 * found.errors["domain"]
        ).tolist()
    assert 0.85 < np.mean(inside) <= 1.0


def test_given_means_count_as_far_as_outcomes_agree_with_them():
    slopes = {True: [], False: []}
    for seed in range(20):
        for agrees in slopes:
            y, shares, sizes, _, means = _groups(seed, 0.1, 2.0 if agrees else -2.0)
            slopes[agrees].append(fit_outcomes(y, shares, sizes, means).slope)
    assert np.mean(slopes[True]) == pytest.approx(2.0, abs=0.3) and max(slopes[False]) == 0.0


def test_outcomes_that_are_equal_say_nothing():
    _, shares, sizes, _, means = _groups(0, 0.0)
    found = fit_outcomes(np.full(15, 0.7), shares, sizes, means)
    assert found.scale == 0
    assert found.slope == 0 and found.explained == 0 and not any(e.any() for e in found.effects.values())


def test_outcomes_far_from_the_others_are_drawn_in_and_stay_the_worst():
    y = np.array([1.0, 2.0, 3.0, 4.0, 5.0, -400.0])
    found = winsorised(y)
    assert found[:5].tolist() == y[:5].tolist()
    assert found[5] == pytest.approx(2.5 - 3 * 1.4826 * 1.5) and found.argmin() == 5  # median 2.5, median distance 1.5
    np.testing.assert_allclose(winsorised(7 * y + 3), 7 * found + 3)
    equal = np.array([1.0, 1.0, 1.0, 9.0])
    assert winsorised(equal).tolist() == equal.tolist()
