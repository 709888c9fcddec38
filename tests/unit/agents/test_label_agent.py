import json

import numpy as np
import pytest
from fake_pool import FakePool, random_pool
from hydra.utils import instantiate

from mads.agents import LabelAgent
from mads.agents.base import ProbeRewards
from mads.agents.label import normal_scores
from mads.agents.rules import MadsRule, MirrorRule, PaperRule


def _probes(pool, seed=0, n=80):
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(len(pool), n, replace=False))
    return ProbeRewards(pool.view(positions), rng.normal(size=n), rng.integers(5, 100, n), rng.uniform(0.5, 2, n))


def test_hydra_builds_it_and_start_weights_are_token_shares():
    pool = random_pool()
    agent = instantiate({"_target_": "mads.agents.LabelAgent", "attribute": "domain"})
    agent.bind(pool, PaperRule(0.1))
    assert agent.name == "domain" and LabelAgent("domain", name="d").name == "d"
    codes = pool.codes("domain")
    expected = [sum(int(n) for n, c in zip(pool.lengths, codes) if c == j) / int(pool.lengths.sum()) for j in range(7)]
    np.testing.assert_allclose([r.weight for r in agent.describe()], expected, rtol=1e-12)
    assert sum(r.pool_share for r in agent.describe()) == pytest.approx(1)


def check_a_prior_is_in_start_weights():
    """Against draws of a normal variable, cut where the pool's labels end."""
    pool, plain, told = random_pool(), LabelAgent("quality"), LabelAgent("quality", prior=2.0)
    for rule in (MadsRule(0.5), PaperRule(0.1)):
        plain.bind(pool, rule), told.bind(pool, rule)
        draws = np.sort(np.random.default_rng(0).standard_normal(2_000_000))
        ends = np.round(np.cumsum(plain.shares) * len(draws)).astype(int)
        means = [part.mean() for part in np.split(draws, ends[:-1])]
        np.testing.assert_allclose(told.weights - plain.weights, 2 * np.array(means), atol=0.02)
        assert (plain.shares * (told.weights - plain.weights)).sum() == pytest.approx(0, abs=1e-12)
        assert np.all(np.diff(told.weights - plain.weights) > 0)


def test_a_prior_is_in_the_start_weights():
    check_a_prior_is_in_start_weights()


def test_normal_scores_of_labels_that_hold_nothing_are_those_of_their_place():
    scores = normal_scores(np.array([0.0, 0.5, 0.0, 0.5, 0.0]))
    assert scores[[1, 3]].tolist() == pytest.approx([-0.797885, 0.797885], abs=1e-6)
    assert scores[0] < -6 and scores[2] == pytest.approx(0, abs=1e-9) and scores[4] > 6


def check_a_prior_of_each_label_is_in_start_weights():
    pool, plain = random_pool(), LabelAgent("quality")
    told = instantiate(
        {"_target_": "mads.agents.LabelAgent", "attribute": "quality", "prior": [-6, 0, 0.5, 0, 0]}, _convert_="all"
    )
    for rule in (MadsRule(0.5), PaperRule(0.1)):
        plain.bind(pool, rule), told.bind(pool, rule)
        np.testing.assert_array_equal(told.weights, plain.weights + [-6, 0, 0.5, 0, 0])


def test_a_prior_of_each_label_is_in_the_start_weights():
    check_a_prior_of_each_label_is_in_start_weights()


def test_a_prior_of_more_labels_than_there_are_is_refused():
    pool = random_pool()
    with pytest.raises(ValueError) as error:
        LabelAgent("quality", prior=[1.0] * 6).bind(pool, MadsRule(0.5))
    labels = ", ".join(pool.labels("quality"))
    assert f"prior has 6 numbers, the attribute 'quality' only 5 labels, {labels}:" in str(error.value)


def test_labels_behind_those_of_the_prior_begin_without_one():
    """So that a run goes on with a pool that has grown by a label."""
    pool, agent = random_pool(), LabelAgent("quality", prior=[-1, 2])
    agent.bind(pool, MadsRule(0.5))
    assert agent.weights.tolist() == [-1, 2, 0, 0, 0]


@pytest.mark.parametrize("prior", [float("nan"), float("inf"), True, "2", None, [1, float("nan")], [True, 0], ["1"]])
def test_a_prior_that_is_no_number_is_refused(prior):
    with pytest.raises(ValueError, match="prior=.* must be a finite number"):
        LabelAgent("quality", prior=prior)


def test_rewards_correct_a_prior():
    """What the prior believes least of is what helps."""
    pool, agent = random_pool(), LabelAgent("quality", prior=1.0)
    agent.bind(pool, MirrorRule(1.0))
    worst = np.argmin(agent.weights)
    for seed in range(6):
        probes = _probes(pool, seed)
        codes = probes.view.codes("quality")
        agent.learn(ProbeRewards(probes.view, 1.0 * (codes == worst), probes.targets, probes.importance))
    assert np.argmax(agent.weights) == worst


def test_x1_score_is_the_label_weight_however_the_pool_is_cut():
    pool, agent = random_pool(), LabelAgent("topic")
    agent.bind(pool, PaperRule(0.1))
    whole = agent.score(pool)
    assert whole.dtype == np.float64 and whole.tolist() == [agent.weights[c] for c in pool.codes("topic")]
    pieces = [agent.score(pool.view(slice(a, b))) for a, b in ((0, 7), (7, 8), (8, 8), (8, len(pool)))]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("rule", [PaperRule(0.1), MadsRule(0.5)])
def test_state_round_trip_continues_identically(rule):
    pool, one, two = random_pool(), LabelAgent("quality"), LabelAgent("quality")
    one.bind(pool, rule), two.bind(pool, rule)
    one.learn(_probes(pool, 1))
    two.load_state(json.loads(json.dumps(one.state(), allow_nan=False)))
    assert two.describe() == one.describe()
    assert one.learn(_probes(pool, 2)) == two.learn(_probes(pool, 2))
    np.testing.assert_array_equal(one.weights, two.weights)


def test_fresh_state_round_trip_has_no_rewards():
    pool, one, two = random_pool(), LabelAgent("quality"), LabelAgent("quality")
    one.bind(pool, PaperRule(0.1)), two.bind(pool, PaperRule(0.1))
    two.learn(_probes(pool))
    two.load_state(json.loads(json.dumps(one.state())))
    assert two.describe() == one.describe() and two.describe()[0].reward_mean is None


def test_state_of_other_labels_is_refused():
    pool, agent, other = random_pool(), LabelAgent("quality"), LabelAgent("domain", name="quality")
    agent.bind(pool, PaperRule(0.1)), other.bind(pool, PaperRule(0.1))
    with pytest.raises(ValueError, match="'quality'.*domain0"):
        other.load_state(agent.state())


def test_code_without_a_name_is_named():
    pool = FakePool([1, 2], [5, 5], {"domain": (np.array([0, 3], np.uint16), ("a", "b"))})
    with pytest.raises(ValueError, match="'domain' has code 3, but only 2 labels"):
        LabelAgent("domain").bind(pool, PaperRule(0.1))
