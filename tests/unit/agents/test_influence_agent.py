"""The linear influence model: features and fit against loops and dense equations, leave-one-out against fits without a probe."""

import json
import math

import numpy as np
import pytest
from agent_support import probes_of, scored_in_pieces, valued_pool
from fake_pool import FakePool, OneRank

from mads.agents import InfluenceAgent, influence
from mads.agents.influence import RIDGES
from mads.agents.rules import MadsRule
from mads.config.schema import MadsSelectionConfig
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards

ATTRIBUTES, DECAY = ["quality", "domain"], 0.6


def bound(pool, **settings):
    agent = InfluenceAgent(ATTRIBUTES, values=["value"], decay=DECAY, **settings)
    agent.bind(pool, MadsRule(0.5))
    return agent


def features_by_loop(pool, view):
    """One sample at a time, with the pool's token-weighted moments by plain sums."""
    pairs = [(n, float(v)) for n, v in zip(pool.lengths.tolist(), pool.values("value")) if math.isfinite(v)]
    logs = [(n, math.log(n)) for n in pool.lengths.tolist()]
    moments = []
    for column in (pairs, logs):
        mean = sum(n * v for n, v in column) / sum(n for n, _ in column)
        moments.append((mean, math.sqrt(sum(n * (v - mean) ** 2 for n, v in column) / sum(n for n, _ in column))))
    rows = []
    for i in range(len(view)):
        row = [1.0]
        for attribute in ATTRIBUTES:
            row += [float(view.codes(attribute)[i] == j) for j in range(len(view.labels(attribute)))]
        value = float(view.values("value")[i])
        known = math.isfinite(value)
        row += [(value - moments[0][0]) / moments[0][1] if known else 0.0, float(not known)]
        row.append((math.log(view.lengths[i]) - moments[1][0]) / moments[1][1])
        rows.append(row)
    return np.array(rows)


def check_features_equal_a_loop():
    pool = valued_pool(missing=40)
    agent = bound(pool)
    np.testing.assert_allclose(agent.features(pool), features_by_loop(pool, pool), rtol=1e-9, atol=1e-9)
    agent.coefficients = np.random.default_rng(0).normal(size=len(agent.coefficients))
    np.testing.assert_allclose(agent.score(pool), features_by_loop(pool, pool) @ agent.coefficients, rtol=1e-9, atol=1e-9)
    assert np.array_equal(scored_in_pieces(agent, pool), agent.score(pool))


def test_features_equal_a_loop_and_scores_know_no_cut():
    check_features_equal_a_loop()


def weighted_fit(rows, ridge):
    """Ridge over rows (phi, a, r) with an added row per penalised coefficient, by ordinary least squares."""
    size = len(rows[0][0])
    x = np.array([math.sqrt(a) * phi for phi, a, _ in rows] + [math.sqrt(ridge) * np.eye(size)[j] for j in range(1, size)])
    y = np.array([math.sqrt(a) * r for _, a, r in rows] + [0.0] * (size - 1))
    return np.linalg.lstsq(x, y, rcond=None)[0]


def check_fit_equals_the_ridge_over_all_rounds():
    """The coefficients are those of a fit to every probe so far, older ones decayed, with the penalty that refitting without each
    of the last round's probes finds best."""
    pool = valued_pool(missing=40)
    agent, rows = bound(pool), []
    for round_ in range(3):
        probes = probes_of(pool, round_, 40, lambda view: view.codes("domain") * 0.4 + view.lengths / 64)
        agent.learn(probes)
        a = probes.importance * probes.targets
        new = list(zip(features_by_loop(pool, probes.view), (a / a.mean()).tolist(), probes.rewards.tolist()))
        rows = [(phi, DECAY * w, r) for phi, w, r in rows] + new
        errors = []
        for ridge in RIDGES:
            error = 0.0
            for i in range(len(rows) - len(new), len(rows)):
                phi, w, r = rows[i]
                error += w * (r - phi @ weighted_fit(rows[:i] + rows[i + 1 :], ridge)) ** 2
            errors.append(error)
            _, ours = influence.leave_one_out(
                agent.gram, agent.moment, agent.features(probes.view), a / a.mean(), probes.rewards, ridge
            )
            assert ours == pytest.approx(error, rel=1e-6)
        assert agent.ridge == RIDGES[int(np.argmin(errors))]
        np.testing.assert_allclose(agent.coefficients, weighted_fit(rows, agent.ridge), rtol=1e-6, atol=1e-8)


def test_the_fit_is_the_ridge_over_all_rounds_with_the_penalty_of_least_leave_one_out_error():
    check_fit_equals_the_ridge_over_all_rounds()


def test_it_foretells_what_depends_on_its_features_and_shrinks_noise_away():
    pool = valued_pool(2000)

    def truth(view):
        return view.codes("quality") - 0.5 * np.log(view.lengths) + 0.3 * np.nan_to_num(view.values("value"))

    agent = bound(pool)
    for round_ in range(4):
        agent.learn(probes_of(pool, round_, 200, truth))
    assert np.corrcoef(agent.score(pool), truth(pool))[0, 1] > 0.98
    noise = bound(pool)
    for round_ in range(4):
        noise.learn(probes_of(pool, round_, 200))
    assert noise.ridge >= 100 > agent.ridge and noise.score(pool).std() < 0.2


def check_influence_state_is_enough():
    pool, ends = valued_pool(missing=40), []
    for broken in (False, True):
        agent = bound(pool)
        for round_ in range(4):
            if broken and round_ == 2:
                state = json.loads(json.dumps(agent.state(), allow_nan=False))
                agent = bound(pool)
                agent.load_state(state)
            agent.learn(probes_of(pool, round_))
        ends.append((json.dumps(agent.state()), agent.score(pool).tolist()))
    assert ends[0] == ends[1]


def test_the_state_is_enough():
    check_influence_state_is_enough()


def test_a_new_label_starts_without_an_opinion_and_the_others_keep_theirs():
    pool = valued_pool()
    columns = {name: (pool.codes(name), pool.labels(name)) for name in pool.attributes}
    codes = columns["quality"][0].copy()
    codes[::7] = len(columns["quality"][1])
    columns["quality"] = (codes, (*columns["quality"][1], "new"))
    longer = FakePool(pool.ids, pool.lengths, columns, {"value": pool.values("value")})
    agent = bound(pool)
    agent.learn(probes_of(pool, 1))
    before, old = agent.score(pool), codes < len(columns["quality"][1]) - 1
    agent.rebind(longer)
    assert np.array_equal(agent.score(longer)[old], before[old])
    agent.learn(probes_of(longer, 2))
    fresh = bound(longer)
    assert agent.gram.shape == fresh.gram.shape and np.isfinite(agent.coefficients).all()
    fresh.load_state(agent.state())
    with pytest.raises(ValueError, match="labels"):
        bound(pool).load_state(agent.state())


def test_what_cannot_be_is_refused():
    pool = valued_pool()
    for settings in ({"attributes": []}, {"attributes": "domain"}, {"attributes": ["domain"], "values": "value"}):
        with pytest.raises(ValueError, match="must be a list"):
            InfluenceAgent(**settings)
    with pytest.raises(ValueError, match="decay=1.5"):
        InfluenceAgent(["domain"], decay=1.5)
    empty = FakePool(pool.ids, pool.lengths, {n: (pool.codes(n), pool.labels(n)) for n in pool.attributes}, {})
    empty.values = lambda name: np.full(len(pool), np.nan, np.float32)
    empty.view = lambda where: empty
    with pytest.raises(ValueError, match=r"agent 'influence': \['value'\] have no finite value"):
        bound(empty)


def test_under_selection_mads_it_moves_the_mix_to_what_it_foretells():
    pool, agent = valued_pool(3000), InfluenceAgent(["domain", "quality"], values=["value"])
    console = Console(OneRank(), pool, [agent], build_strategy(MadsSelectionConfig(name="mads", probes=200)), 3)
    means, uses = [], np.zeros(len(pool), np.uint16)
    for round_ in range(3):
        measured = None
        if console.needs_rewards():
            probes = console.draw_probes()
            view = pool.view(probes.positions)
            rewards = np.random.default_rng(round_).normal(size=len(view)) + np.nan_to_num(view.values("value"))
            measured = RoundRewards(probes, rewards, view.lengths.astype(np.int64))
        ids, record = console.decide(measured, uses, 9000, 0, 0)
        means.append(pool.values("value")[pool.positions_of(ids)].mean())
    assert means[2] > means[0] + 0.5 and record.theta == {"influence": 1.0} and set(record.labels) >= {"influence"}
