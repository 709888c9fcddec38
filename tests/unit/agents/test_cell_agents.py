"""Agents over joint cells: the joint one against dense mixed-model equations, novelty against a loop over decisions."""

import json

import numpy as np
import pytest
from agent_support import probes_of, scored_in_pieces, valued_pool
from fake_pool import FakePool, random_pool

from mads.agents import JointCellAgent, NoveltyAgent
from mads.agents.joint import CellMeans, _variances, fit_additive
from mads.agents.rules import MadsRule, PaperRule

SIZES = (3, 4)


def _bound(agent, pool, rule=None):
    agent.bind(pool, rule or MadsRule(0.5))
    return agent


def _means(seed=0, missing=3, main=(0.8, 0.5), joint=0.3):
    """Cell means with known effects: 3 x 4 cells, some without probes."""
    rng = np.random.default_rng(seed)
    cells = np.sort(rng.choice(12, 12 - missing, replace=False))
    codes = np.stack(np.unravel_index(cells, SIZES))
    effects = [rng.normal(size=n) * s for n, s in zip(SIZES, main)]
    size = rng.uniform(1, 40, len(cells))
    truth = effects[0][codes[0]] + effects[1][codes[1]] + joint * rng.normal(size=len(cells))
    return CellMeans(cells, truth + rng.normal(size=len(cells)) / np.sqrt(size), size, 1.0, 1.5), codes


def _dense(means, codes, tau, tau_g):
    """Henderson's mixed-model equations with every effect and every interaction unknown, solved at once."""
    n = len(means.mean)
    design = np.zeros((n, 1 + sum(SIZES) + n))
    for i in range(n):
        design[i, [0, 1 + codes[0, i], 1 + SIZES[0] + codes[1, i], 1 + sum(SIZES) + i]] = 1
    precision = np.diag(means.size / means.noise)
    penalty = np.diag([0.0, *np.repeat(1 / np.asarray(tau), SIZES), *np.full(n, 1 / tau_g)])
    solution = np.linalg.solve(design.T @ precision @ design + penalty, design.T @ precision @ means.mean)
    return solution[: 1 + sum(SIZES)], solution[1 + sum(SIZES) :]


def _likelihood(means, codes, tau, tau_g):
    """Restricted log likelihood of the variances, from the dense covariance of the means."""
    covariance = np.diag(tau_g + means.noise / means.size)
    for a in range(2):
        covariance += tau[a] * (codes[a][:, None] == codes[a][None])
    inverse, ones = np.linalg.inv(covariance), np.ones(len(means.mean))
    information = ones @ inverse @ ones
    left = means.mean - (ones @ inverse @ means.mean) / information
    return -0.5 * (np.linalg.slogdet(covariance)[1] + np.log(information) + left @ inverse @ left)


def check_fit_equals_dense_equations():
    for seed in range(5):
        means, codes = _means(seed)
        tau, tau_g = _variances(means, codes, SIZES, 40)
        effects, interaction = fit_additive(means, codes, SIZES)
        dense, dense_joint = _dense(means, codes, tau, tau_g)
        np.testing.assert_allclose(effects, dense, atol=1e-8)
        np.testing.assert_allclose(interaction, dense_joint, atol=1e-8)


def test_the_fit_equals_dense_mixed_model_equations():
    check_fit_equals_dense_equations()


def check_variances_climb_in_likelihood():
    for seed in range(5):
        means, codes = _means(seed)
        climb = [_likelihood(means, codes, *_variances(means, codes, SIZES, steps)) for steps in (0, 1, 2, 5, 10, 40)]
        assert all(b >= a - 1e-9 for a, b in zip(climb, climb[1:])), climb
        assert climb[-1] > climb[0] + 1e-3


def test_each_step_of_the_variances_climbs_in_likelihood():
    check_variances_climb_in_likelihood()


def _additive_reward(view):
    return 0.8 * (view.codes("quality") - 2.0) - 0.3 * view.codes("domain")


def check_small_cells_fall_back_on_their_labels():
    """A cell without probes gets the sum of its labels' effects, so it is ranked right although nothing is known of it."""
    pool = random_pool(3000)
    agent = _bound(JointCellAgent(["quality", "domain"]), pool)
    hidden = (pool.codes("quality") == 4) & (pool.codes("domain") == 0)
    seen = np.flatnonzero(~hidden)
    rest = FakePool(pool.ids[seen], pool.lengths[seen], {a: (pool.codes(a)[seen], pool.labels(a)) for a in ("quality", "domain")})
    for seed in range(3):
        agent.learn(probes_of(rest, seed, 300, _additive_reward))
    truth = np.array([0.8 * (q - 2.0) - 0.3 * d for q in range(5) for d in range(7)])
    assert agent.counted[4 * 7] == 0
    assert np.abs((agent.table - truth) - (agent.table - truth).mean()).max() < 0.25
    assert agent.table.argmax() == 4 * 7


def test_small_cells_fall_back_on_their_labels():
    check_small_cells_fall_back_on_their_labels()


def test_a_cell_that_is_unlike_its_labels_is_learned_where_there_is_evidence():
    pool = random_pool(3000)
    odd = lambda view: _additive_reward(view) + 3.0 * ((view.codes("quality") == 1) & (view.codes("domain") == 2))
    agent = _bound(JointCellAgent(["quality", "domain"], decay=0.9), pool)
    for seed in range(4):
        agent.learn(probes_of(pool, seed, 600, odd))
    here, beside = agent.table[1 * 7 + 2], agent.table[1 * 7 + 1]
    assert here - beside > 2.0  # of 2.7


def check_sums_equal_a_loop():
    pool, agent = random_pool(), _bound(JointCellAgent(["quality", "domain"], decay=0.7), random_pool())
    expected = {key: {} for key in agent.memory}
    for seed in range(3):
        probes = probes_of(pool, seed)
        agent.learn(probes)
        for key in expected:
            forget = 0.49 if key == "squared" else 0.7
            expected[key] = {c: forget * v for c, v in expected[key].items()}
        rows = zip(probes.view.codes("quality"), probes.view.codes("domain"), probes.rewards, probes.targets, probes.importance)
        for q, d, r, t, i in rows:
            for key, value in (("counted", i * t), ("squared", (i * t) ** 2), ("rewarded", i * t * r), ("spread", i * t * r * r)):
                cell = int(q) * 7 + int(d)
                expected[key][cell] = expected[key].get(cell, 0.0) + value
    for key in agent.memory:
        np.testing.assert_allclose(getattr(agent, key), [expected[key].get(c, 0.0) for c in range(35)], rtol=1e-12)
    np.testing.assert_array_equal(scored_in_pieces(agent, pool), agent.score(pool))


def test_sums_by_cell_equal_a_loop():
    check_sums_equal_a_loop()


def test_records_show_token_means_of_the_first_attribute():
    pool, agent = random_pool(), _bound(JointCellAgent(["quality", "domain"]), random_pool())
    agent.learn(probes_of(pool))
    score = agent.score(pool)
    expected = [np.average(score[pool.codes("quality") == j], weights=pool.lengths[pool.codes("quality") == j]) for j in range(5)]
    np.testing.assert_allclose([r.weight for r in agent.describe()], expected, rtol=1e-10)
    assert agent.describe()[0].reward_mean is not None and agent.name == "quality+domain"


# ---------------------------------------------------------------- novelty


def check_novelty_equals_a_loop():
    pool = random_pool()
    agent = _bound(NoveltyAgent(["domain"], strength=0.5, decay=0.8, prior=0.2), pool)
    assert not agent.score(pool).any()
    decisions = [np.arange(0, 60), np.arange(50, 200), np.flatnonzero(pool.codes("domain") < 2)]
    taken = dict.fromkeys(range(7), 0.0)
    for positions in decisions:
        agent.chosen(pool.view(positions))
        taken = {c: 0.8 * v for c, v in taken.items()}
        for p in positions:
            taken[int(pool.codes("domain")[p])] += int(pool.lengths[p])
    held = {c: int(pool.lengths[pool.codes("domain") == c].sum()) / int(pool.lengths.sum()) for c in range(7)}
    share = {c: v / sum(taken.values()) for c, v in taken.items()}
    expected = [-0.5 * np.log(0.8 * share[int(c)] / held[int(c)] + 0.2) for c in pool.codes("domain")]
    np.testing.assert_allclose(agent.score(pool), expected, rtol=1e-10)
    weights = [r.weight for r in agent.describe()]
    assert max(weights[:2]) < 0 < min(weights[2:])  # the last decision took two labels only


def test_novelty_equals_a_loop_over_decisions():
    check_novelty_equals_a_loop()


@pytest.mark.parametrize("rule", [MadsRule(0.5), PaperRule(0.1)])
@pytest.mark.parametrize("kind", [JointCellAgent, NoveltyAgent])
def test_a_state_goes_on_identically(kind, rule):
    pool = random_pool()
    one, two = (_bound(kind(["quality", "topic"]), pool, rule) for _ in range(2))

    def live(agent, seed):
        reward = agent.learn(probes_of(pool, seed))
        if kind is NoveltyAgent:
            agent.chosen(pool.view(np.arange(seed * 20, seed * 90)))
        return reward

    live(one, 1)
    two.load_state(json.loads(json.dumps(one.state(), allow_nan=False)))
    assert two.describe() == one.describe()
    assert live(one, 2) == live(two, 2)
    np.testing.assert_array_equal(one.score(pool), two.score(pool))
    other = _bound(kind(["quality", "domain"]), pool, rule)
    with pytest.raises(ValueError, match="holds .* cells, this one 35 cells of \\['quality', 'domain'\\]"):
        other.load_state(one.state())


@pytest.mark.parametrize("kind", [JointCellAgent, NoveltyAgent])
def test_labels_that_are_added_move_the_cells(kind):
    before, after = random_pool(500), random_pool(500)
    for name in ("quality", "domain"):
        codes, labels = after._columns[name]
        after._columns[name] = (codes, (*labels, "new"))
    agent = _bound(kind(["quality", "domain"]), before)
    agent.learn(probes_of(before))
    if kind is NoveltyAgent:
        agent.chosen(before.view(np.arange(0, 90)))
    score = agent.score(before)
    agent.rebind(after)
    assert agent.labels[-1] == "new" and len(agent.table) == 6 * 8
    # Labels without evidence change no likelihood, but the steps toward its maximum.
    np.testing.assert_allclose(agent.score(after), score, atol=0.02 if kind is JointCellAgent else 1e-12)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: JointCellAgent(["quality"]), "joint cells need two or more"),
        (lambda: JointCellAgent(["quality", "quality"]), "must list one or several different attributes"),
        (lambda: JointCellAgent(["quality", "domain"], decay=1.0), "decay=1.0 must lie in"),
        (lambda: NoveltyAgent([]), "must list one or several"),
        (lambda: NoveltyAgent("topic", prior=0.0), "prior=0.0 in"),
        (lambda: NoveltyAgent("topic", strength=-1.0), "strength=-1.0 must be positive"),
    ],
)
def test_settings_out_of_range_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_too_many_cells_are_refused_with_their_number():
    pool = FakePool([1, 2], [5, 5], {a: (np.zeros(2, np.uint16), tuple(map(str, range(300)))) for a in ("a", "b")})
    with pytest.raises(ValueError, match="300x300 = 90000 joint cells, at most 65536"):
        _bound(NoveltyAgent(["a", "b"]), pool)


def test_rewards_that_are_all_zero_leave_no_opinion():
    pool = valued_pool()
    agent = _bound(JointCellAgent(["quality", "domain"]), pool)
    assert agent.learn(probes_of(pool, reward=lambda view: np.zeros(len(view)))) == 0.0
    probes = probes_of(pool)
    probes.rewards[:] = 0
    fresh = _bound(JointCellAgent(["quality", "domain"]), pool)
    assert fresh.learn(probes) == 0.0 and not fresh.score(pool).any()
