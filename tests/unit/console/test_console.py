"""The console over several rounds in one process: against a NumPy transcription of the paper's loop, and through a checkpoint."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from decide_support import select_random
from fake_pool import FakePool, OneRank, random_pool
from support import make_pool

from mads.agents import ContinuousAgent, LabelAgent
from mads.agents.label import normal_scores
from mads.agents.novelty import NoveltyAgent
from mads.config.schema import MadsSelectionConfig, PaperSelectionConfig, RandomSelectionConfig, StratifiedSelectionConfig
from mads.console.console import Console
from mads.console.decide import Candidates
from mads.console.order import HashOrder
from mads.console.recipe import Recipe
from mads.console.record import DecisionHeader, DecisionRecord
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards

PAPER = PaperSelectionConfig(name="paper", probes_per_agent=60)
MADS = MadsSelectionConfig(name="mads", probes=120)
MEANS = dataclasses.replace(MADS, attribution="marginal", agent_update="mean", selector="gumbel")
BUDGET = 4000


def _console(config, pool, seed=3, **extra):
    agents = [LabelAgent(a) for a in ("quality", "domain", "topic")]
    return Console(OneRank(), pool, agents, build_strategy(config), seed, **extra)


def _measure(console, pool, salt=0):
    """Rewards that depend on labels, plus noise: a pure function of the round's probes."""
    probes = console.draw_probes()
    rng = np.random.default_rng([salt, console.round])
    view = pool.view(probes.positions)
    rewards = 1e-3 * (view.codes("domain") - 2.0 + 0.3 * view.codes("quality") + rng.normal(size=len(probes.positions)))
    return RoundRewards(probes, rewards, view.lengths.astype(np.int64) - 1, {"mode": "test"}, {"probes": 1.5})


def _run(console, pool, rounds, uses):
    records = []
    for _ in range(rounds):
        rewards = _measure(console, pool) if console.needs_rewards() else None
        ids, record = console.decide(rewards, uses, BUDGET, step=50 * console.round, consumed_tokens=123)
        uses[np.searchsorted(pool.ids, ids)] += 1
        records.append(record)
    return records


def test_x7_paper_rounds_equal_a_numpy_transcription():
    """Eq. 4-8 over five rounds, written out with dictionaries: theta, weights and R_A to 1e-12."""
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(PAPER, pool)
    names = ["quality", "domain", "topic"]
    weights = {}
    for name in names:
        tokens = np.array([pool.lengths[pool.codes(name) == j].sum() for j in range(len(pool.labels(name)))])
        weights[name] = (tokens / tokens.sum()).tolist()
    theta = dict.fromkeys(names, 1 / 3)
    for round_ in range(5):
        assert console.needs_rewards() == (round_ > 0)
        measured, own = None, {}
        if round_ > 0:
            measured = _measure(console, pool)
            a = measured.targets * measured.probes.importance
            r = measured.rewards / np.sqrt((a * measured.rewards**2).sum() / a.sum())
            for name in names:
                mine = measured.probes.members[name]
                codes = pool.codes(name)[measured.probes.positions]
                products = []
                for j in range(len(weights[name])):
                    r_j = r[mine & (codes == j)].mean()  # Eq. 4
                    weights[name][j] = 0.9 * weights[name][j] + 0.1 * r_j  # Eq. 5
                    products.append(weights[name][j] * r_j)
                own[name] = sum(products) / len(products)  # Eq. 7
            for name in names:
                theta[name] += 1.0 * (own[name] - sum(own.values()) / 3)  # Eq. 8
            assert min(theta.values()) > 0, "the transcription has no projection: choose rewards that need none"
        ids, record = console.decide(measured, uses, BUDGET, round_ * 50, 0)
        for name in names:
            np.testing.assert_allclose([l.weight for l in record.labels[name]], weights[name], atol=1e-12)
        np.testing.assert_allclose(list(record.theta.values()), list(theta.values()), atol=1e-12)
        np.testing.assert_allclose([record.agent_rewards[n] for n in own], list(own.values()), atol=1e-12)
        if round_ > 0:
            s = sum(theta[n] * np.array(weights[n])[pool.codes(n)] for n in names)
            s = (s - s.min()) / (s.max() - s.min()) / (1 + 0.1 * uses)
            chosen = np.isin(pool.ids, ids)
            assert s[chosen].min() >= s[~chosen].max() - 1e-12
        uses[np.searchsorted(pool.ids, ids)] += 1


def test_x7_mads_judges_before_learning_and_moves_theta_by_hedge():
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(MEANS, pool)
    _run(console, pool, 2, uses)  # the warm-up, and a first round of rewards: before it no agent has an opinion
    before, theta = {a.name: a.weights.copy() for a in console.agents}, console.theta.copy()
    measured, chosen = _measure(console, pool), np.searchsorted(pool.ids, console.pending)
    a = measured.targets * measured.probes.importance
    z = measured.rewards - np.average(measured.rewards, weights=a)
    z /= np.sqrt(np.average(z**2, weights=a))
    _, record = console.decide(measured, uses, BUDGET, 100, 0)
    own = []
    for name, w in before.items():
        codes, labels = pool.codes(name)[measured.probes.positions], len(w)
        r = np.array([np.average(z[codes == j], weights=a[codes == j]) for j in range(labels)])
        taken = pool.codes(name)[chosen]
        p = np.array([pool.lengths[chosen[taken == j]].sum() for j in range(labels)]) / pool.lengths[chosen].sum()
        cov = (p * (w - p @ w) * (r - p @ r)).sum()
        spread = np.sqrt((p * (w - p @ w) ** 2).sum())
        own.append(cov / spread if spread > 1e-12 else 0.0)  # labels that differ by noise alone were shrunk to one weight
    assert np.count_nonzero(own) >= 2
    np.testing.assert_allclose(list(record.agent_rewards.values()), own, rtol=1e-10)
    hedge = theta * np.exp(0.5 * np.array(own))
    np.testing.assert_allclose(list(record.theta.values()), hedge / hedge.sum(), rtol=1e-10)


def test_x2_what_nobody_takes_earns_an_agent_nothing():
    """Domain 0 is bad and was left behind; among what is taken only quality matters. Over the pool domain would earn most."""
    pool, uses = random_pool(n=3000), np.zeros(3000, np.uint16)
    console = _console(dataclasses.replace(MADS, probes=600, share_floor=0.0), pool)
    quality, domain, _ = console.agents
    quality.weights, domain.weights = 0.5 * np.arange(5), np.r_[-30.0, 0.01 * np.arange(6)]
    recipe, console.strategy = console.strategy, dataclasses.replace(console.strategy, warmup_rounds=0)
    silent = console.draw_probes()
    quiet = RoundRewards(silent, np.zeros(len(silent.ids)), np.full(len(silent.ids), 9))
    console.decide(quiet, uses, BUDGET, 0, 0)  # by the weights as they are: rewards that are all equal teach nothing
    assert (pool.codes("domain")[np.searchsorted(pool.ids, console.pending)] > 0).all()
    before = {agent.name: agent.weights.copy() for agent in console.agents}
    console.strategy, probes = recipe, console.draw_probes()
    view = pool.view(probes.positions)
    rewards = np.where(view.codes("domain") == 0, -6.0, 0.3 * view.codes("quality"))
    _, record = console.decide(RoundRewards(probes, rewards, view.lengths.astype(np.int64)), uses, BUDGET, 1, 0)
    earned = record.agent_rewards
    assert earned["quality"] > 0.02 and abs(earned["domain"]) < 0.1 * earned["quality"]
    # The same by the shares of the pool, from what the records show of the labels.
    over_pool = {}
    for name, weights in before.items():
        mean = np.array([label.reward_mean for label in record.labels[name]])
        p = np.array([label.pool_share for label in record.labels[name]])
        deviation = weights - p @ weights
        over_pool[name] = (p * deviation * mean).sum() / np.sqrt(p @ deviation**2) if np.ptp(weights) else 0.0
    assert over_pool["domain"] > 2 * over_pool["quality"]


@pytest.mark.parametrize("config", [PAPER, MADS], ids=["paper", "mads"])
def test_good_rewards_raise_the_weights_of_what_helps(config):
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(config, pool)
    last = _run(console, pool, 5, uses)[-1]
    weights = [l.weight for l in last.labels["domain"]]
    assert np.corrcoef(weights, np.arange(7))[0, 1] > 0.9  # the reward rises with the domain's code
    assert last.theta["domain"] == max(last.theta.values())
    if config is MADS:
        assert sum(l.chosen_share for l in last.labels["domain"][5:]) > sum(l.pool_share for l in last.labels["domain"][5:])


@pytest.mark.parametrize("config", [PAPER, MADS], ids=["paper", "mads"])
def test_x4_state_round_trip_continues_identically(config):
    pool = random_pool(n=1500)
    straight, uses = _console(config, pool), np.zeros(1500, np.uint16)
    _run(straight, pool, 3, uses)
    state, pending, uses_then = json.loads(json.dumps(straight.state(), allow_nan=False)), straight.pending.copy(), uses.copy()
    resumed = _console(config, pool)
    resumed.load_state(state, pending)
    np.testing.assert_array_equal(resumed.pending, straight.pending)
    for one, two in zip(_run(straight, pool, 2, uses), _run(resumed, pool, 2, uses_then)):
        one.seconds, two.seconds = {}, {}
        assert one.to_json() == two.to_json()
    np.testing.assert_array_equal(resumed.pending, straight.pending)
    assert resumed.state() == straight.state()


def test_state_of_another_run_is_refused():
    pool = random_pool(n=1500)
    console, uses = _console(PAPER, pool), np.zeros(1500, np.uint16)
    _run(console, pool, 1, uses)
    state, pending = console.state(), console.pending
    with pytest.raises(ValueError, match="selection is 'paper', this run's is 'mads'"):
        _console(MADS, pool).load_state(state, pending)
    with pytest.raises(ValueError, match="seed is 3, this run's is 4"):
        _console(PAPER, pool, seed=4).load_state(state, pending)
    with pytest.raises(ValueError, match="pending ids"):
        _console(PAPER, pool).load_state(state, pending[::-1])
    two = Console(OneRank(), pool, [LabelAgent("quality"), LabelAgent("domain")], build_strategy(PAPER), 3)
    with pytest.raises(ValueError, match="agents are .*'topic'.*resume with the same agents"):
        two.load_state(state, pending)


def test_x1_pieces_and_exchanges_do_not_matter_and_progress_is_reported():
    pool, lines = random_pool(n=1500), []
    whole = _run(_console(MEANS, pool), pool, 3, np.zeros(1500, np.uint16))
    for exchange in ("gather", "threshold"):
        config, lines = dataclasses.replace(MEANS, exchange=exchange), []
        pieces = _run(_console(config, pool, piece=97, progress=lines.append), pool, 3, np.zeros(1500, np.uint16))
        assert [r.hash for r in whole] == [r.hash for r in pieces]
        assert sum("samples of this slice" in line for line in lines) >= 2


def test_first_rounds_follow_their_rule():
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    ids, record = _console(PAPER, pool).decide(None, uses, BUDGET, 0, 0)
    np.testing.assert_array_equal(ids, select_random(Candidates(pool.ids, pool.lengths, uses), 3, 0, BUDGET).ids)
    assert record.theta == dict.fromkeys(["quality", "domain", "topic"], 1 / 3) and record.agent_rewards == {}
    assert all(l.reward_mean is None and l.probes == 0 for records in record.labels.values() for l in records)
    warm = _console(MADS, pool)
    _, record = warm.decide(None, uses, 10 * BUDGET, 0, 0)
    for records in record.labels.values():  # stratified over joint cells: every mix is the pool's to within a few samples
        assert max(abs(l.chosen_share - l.pool_share) for l in records) < 0.02
    assert warm.needs_rewards()


def check_the_warm_up_follows_a_prior():
    """Round 0 has shares n_c exp(w_c) where an agent has a prior, and rewards only after it."""
    pool, uses = random_pool(n=6000), np.zeros(6000, np.uint16)
    agents = [LabelAgent("quality", prior=1.5), LabelAgent("domain")]
    console = Console(OneRank(), pool, agents, build_strategy(MADS), 3)
    assert not console.needs_rewards()
    _, record = console.decide(None, uses, 4 * BUDGET, 0, 0)
    natural = np.array([l.pool_share for l in record.labels["quality"]])
    expected = natural * np.exp(1.5 * normal_scores(natural))
    found = np.array([l.chosen_share for l in record.labels["quality"]])
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.02)
    assert max(abs(l.chosen_share - l.pool_share) for l in record.labels["domain"]) < 0.06
    assert console.needs_rewards()


def test_the_warm_up_follows_a_prior():
    check_the_warm_up_follows_a_prior()


def test_the_warm_up_follows_the_prior_of_a_curve():
    """Of samples that differ in nothing else, those with the greatest values are taken, before any reward."""
    plain, uses = random_pool(n=6000), np.zeros(6000, np.uint16)
    values = np.random.default_rng(0).standard_normal(6000).astype(np.float32)
    columns = {"score": (plain.codes("quality"), plain.labels("quality"))}
    pool = FakePool(plain.ids, plain.lengths, columns, {"score": values})
    agents = [ContinuousAgent("score", bins=40, prior=30.0)]
    console = Console(OneRank(), pool, agents, build_strategy(MADS), 3)
    assert not console.needs_rewards()
    ids, _ = console.decide(None, uses, 4 * BUDGET, 0, 0)
    taken = np.isin(pool.ids, ids)
    assert 0 < taken.mean() < 0.2
    assert values[taken].min() > np.quantile(values, 0.9 * (1 - taken.mean()))


def test_what_another_agent_calls_a_prior_does_not_count():
    """NoveltyAgent's is a mix: the warm-up stays what it is without one."""
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    agents = [LabelAgent("quality"), NoveltyAgent(["topic"])]
    assert agents[1].prior > 0
    strategy = build_strategy(MADS)
    console = Console(OneRank(), pool, agents, strategy, 3)
    assert strategy.recipe(False, agents) == Recipe(HashOrder(), ("quality", "topic"))
    _, record = console.decide(None, uses, 10 * BUDGET, 0, 0)
    assert max(abs(l.chosen_share - l.pool_share) for l in record.labels["topic"]) < 0.03


@pytest.mark.parametrize(
    "config", [RandomSelectionConfig(name="random"), StratifiedSelectionConfig(name="stratified")], ids=lambda c: c.name
)
def test_selections_without_agents_record_every_attribute(config):
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(config, pool)
    first, second = _run(console, pool, 2, uses)
    assert uses.max() == 1 and second.reused == 0
    assert first.theta == {} and set(first.labels) == {"quality", "domain", "topic"}
    for records in first.labels.values():
        assert sum(l.chosen_share for l in records) == pytest.approx(1) == sum(l.pool_share for l in records)
    if config.name == "stratified":
        assert max(l.chosen_share for l in first.labels["domain"]) < 1 / 7 + 0.05
        natural = _console(StratifiedSelectionConfig(name="stratified", shares="natural"), pool)
        mix = _run(natural, pool, 1, np.zeros(1500, np.uint16))[0].labels["domain"]
        assert max(abs(l.chosen_share - l.pool_share) for l in mix) < 0.03


def test_record_is_complete_json():
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(MADS, pool)
    record = _run(console, pool, 2, uses)[1]
    again = DecisionRecord.from_json(record.to_json())
    assert again == record
    assert set(record.seconds) == {"probes", "update", "exchange", "decision"} and record.seconds["probes"] == 1.5
    assert record.direction == {"mode": "test"} and record.step == 50 and record.consumed_tokens == 123
    chosen = console.pending
    assert record.hash == DecisionHeader.of(1, chosen).hash and record.chosen == len(chosen)
    lengths = dict(zip(pool.ids.tolist(), pool.lengths.tolist()))
    assert record.chosen_tokens == sum(lengths[i] for i in chosen.tolist()) >= record.budget_tokens == BUDGET
    for name, records in record.labels.items():
        codes = dict(zip(pool.ids.tolist(), pool.codes(name).tolist()))
        for j, l in enumerate(records):
            share = sum(lengths[i] for i in chosen.tolist() if codes[i] == j) / record.chosen_tokens
            assert l.chosen_share == pytest.approx(share, abs=1e-12) and l.probes > 0 and l.probe_tokens > 0 and l.reward_se > 0


def test_x5_defined_errors():
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(PAPER, pool)
    with pytest.raises(ValueError, match="budget is 0"):
        console.decide(None, uses, 0, 0, 0)
    assert console.round == 0
    console.decide(None, uses, BUDGET, 0, 0)
    with pytest.raises(ValueError, match="round 1 of selection 'paper' needs rewards"):
        console.decide(None, uses, BUDGET, 0, 0)
    measured = _measure(console, pool)
    measured.rewards[:2] = np.nan
    first = pool.ids[measured.probes.positions[0]]
    with pytest.raises(ValueError, match=f"2 of {len(measured.rewards)} rewards are NaN.*{first}"):
        console.decide(measured, uses, BUDGET, 0, 0)
    with pytest.raises(ValueError, match="needs agents"):
        Console(OneRank(), pool, [], build_strategy(PAPER), 0)
    with pytest.raises(ValueError, match="two agents have one name"):
        Console(OneRank(), pool, [LabelAgent("quality"), LabelAgent("domain", name="quality")], build_strategy(PAPER), 0)
    with pytest.raises(ValueError, match="'best' is not one of"):
        build_strategy(SimpleNamespace(name="best"))
    with pytest.raises(ValueError, match="shares='even'"):
        build_strategy(StratifiedSelectionConfig(name="stratified", shares="even"))
    with pytest.raises(ValueError, match="temperature=0.0"):
        build_strategy(MadsSelectionConfig(name="mads", temperature=0.0))


@pytest.mark.parametrize("exchange", ["gather", "threshold"])
def test_x5_fewer_candidates_than_asked_takes_all_and_says_so(exchange):
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(dataclasses.replace(MADS, exchange=exchange), pool)
    for round_ in range(2):
        measured = _measure(console, pool) if round_ else None
        ids, record = console.decide(measured, uses, 10**9, 0, 0)
        assert np.sort(ids).tolist() == pool.ids.tolist() and record.chosen_tokens == pool.lengths.sum()
        assert any("tokens for a budget of 1000000000 tokens; every eligible one is chosen" in note for note in record.notes)
    with pytest.raises(ValueError, match="the pool is empty"):
        _console(dataclasses.replace(MADS, exchange=exchange), pool.view(slice(0, 0)))
    nothing = Console(
        OneRank(), pool.view(slice(0, 0)), [], build_strategy(RandomSelectionConfig("random", exchange=exchange)), 3
    )
    with pytest.raises(ValueError, match="there are no candidates: the pool holds no sample"):
        nothing.decide(None, uses[:0], BUDGET, 0, 0)


@pytest.mark.parametrize("exchange", ["gather", "threshold"])
def test_x5_a_score_that_is_not_finite_names_its_agent(exchange):
    class Broken(LabelAgent):
        def score(self, view):
            scores = super().score(view)
            scores[:3] = np.nan
            return scores

    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    strategy = build_strategy(dataclasses.replace(PAPER, exchange=exchange))
    console = Console(OneRank(), pool, [LabelAgent("quality"), Broken("domain")], strategy, 3)
    console.decide(None, uses, BUDGET, 0, 0)
    with pytest.raises(ValueError, match="agent 'domain' gave 3 of 1500"):
        console.decide(_measure(console, pool), uses, BUDGET, 50, 0)


def test_the_prepared_pool_on_disk_serves_the_console(tmp_path):
    """The same rounds on a pool read from files and on a copy of it in memory."""
    pool = make_pool(tmp_path, documents=400)
    copy = FakePool(pool.ids, pool.lengths, {a: (np.array(pool.codes(a)), pool.labels(a)) for a in pool.attributes})
    on_disk, in_memory = (_run(_console(MADS, p), p, 3, np.zeros(len(p), np.uint16)) for p in (pool, copy))
    assert [r.hash for r in on_disk] == [r.hash for r in in_memory] and len(set(r.hash for r in on_disk)) == 3


def _longer(pool, extra, labels=()):
    """The pool with `extra` samples behind it; a domain with more labels if `labels` are given."""
    more = random_pool(n=extra, seed=9)
    columns = {}
    for name in pool.attributes:
        codes = np.concatenate([pool.codes(name), more.codes(name)])
        columns[name] = (codes, pool.labels(name))
    if labels:
        codes = columns["domain"][0].copy()
        codes[-50:] = len(pool.labels("domain"))
        columns["domain"] = (codes, pool.labels("domain") + labels)
    ids = np.concatenate([pool.ids, more.ids + (1 << 40)])
    return FakePool(ids, np.concatenate([pool.lengths, more.lengths]), columns)


@pytest.mark.parametrize("config", [PAPER, MADS], ids=["paper", "mads"])
def test_a_longer_pool_between_rounds_keeps_what_was_learned(config):
    pool, uses = random_pool(n=1500), np.zeros(1500, np.uint16)
    console = _console(config, pool)
    _run(console, pool, 3, uses)
    weights, theta = {a.name: a.weights.copy() for a in console.agents}, console.theta.copy()
    longer = _longer(pool, 700, ("added",))
    console.rebind(longer)
    for agent in console.agents:
        known = len(weights[agent.name])
        np.testing.assert_array_equal(agent.weights[:known], weights[agent.name])
        codes, tokens = longer.codes(agent.attribute), longer.lengths.astype(float)
        shares = np.bincount(codes, weights=tokens, minlength=len(agent.labels)) / tokens.sum()
        np.testing.assert_allclose(agent.shares, shares, rtol=1e-12)
        if agent.name == "domain":
            assert agent.labels[known:] == ("added",) and len(agent.weights) == known + 1
            assert agent.weights[known] == (shares[known] if config is PAPER else 0)
            assert agent.describe()[known].reward_mean is None and agent.describe()[known].probes == 0
    np.testing.assert_array_equal(console.theta, theta)
    grown = np.concatenate([uses, np.zeros(700, np.uint16)])
    probes = console.draw_probes()
    assert probes.positions.max() >= 1500
    records = _run(console, longer, 2, grown)
    assert grown[1500:].sum() > 0 and {r.label for r in records[0].labels["domain"]} >= {"added"}
    state, pending = json.loads(json.dumps(console.state())), console.pending
    resumed = _console(config, longer)
    resumed.load_state(state, pending)
    assert resumed.state() == console.state()


def test_parts_of_natural_shares_are_those_of_the_longer_pool():
    """A number as bounds is a part of what the pool holds now, a label that was added included."""
    pool = random_pool(n=1500)
    longer = _longer(pool, 700, ("added",))
    config = dataclasses.replace(MADS, bounds={"domain": 0.9})
    console = _console(config, pool)
    _run(console, pool, 2, np.zeros(1500, np.uint16))
    console.rebind(longer)
    ids, _ = console.decide(_measure(console, longer), np.zeros(len(longer), np.uint16), BUDGET, step=100, consumed_tokens=1)
    domains, chosen = longer.codes("domain"), np.searchsorted(longer.ids, ids)
    tokens = np.bincount(domains, weights=longer.lengths)
    tokens_chosen = np.bincount(domains[chosen], weights=longer.lengths[chosen], minlength=len(tokens))
    assert (tokens_chosen >= 0.9 * tokens / tokens.sum() * BUDGET).all()


def test_a_pool_that_is_not_a_longer_one_is_refused():
    pool = random_pool(n=1500)
    console = _console(MADS, pool)
    with pytest.raises(ValueError, match="cannot shrink from 1500 to 900"):
        console.rebind(random_pool(n=900))
    with pytest.raises(ValueError, match="attribute 'topic' had the labels .* labels may be added at the end, not changed"):
        console.rebind(random_pool(n=1600, sizes=(("quality", 5), ("domain", 7), ("topic", 12))))
