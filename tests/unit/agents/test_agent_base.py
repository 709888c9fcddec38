"""What every agent has from its base: the judgement, records, states, and what is said of classes that are no agents."""

import json
from dataclasses import replace

import numpy as np
import pytest
from agent_support import CONFIGS, ROUNDS, probes_of, rounds
from fake_pool import OneRank, random_pool

from mads.agents import AgentBase, ContinuousAgent, JointCellAgent, LabelAgent, NoveltyAgent
from mads.agents.check import check_agent, checked_reward
from mads.agents.rules import MadsRule, PaperRule
from mads.config.compose import ConfigError, compose
from mads.config.factory import build
from mads.config.schema import MadsSelectionConfig
from mads.config.validate import attributes_of, validate
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards


class Slope(AgentBase):
    memory = ("slope", "seen")

    def start(self, view):
        self.slope, self.seen = 1.0, np.zeros(3, np.int64)

    def score(self, view):
        return self.slope * (view.lengths - 60.0)

    def update(self, probes):
        self.slope, self.seen = self.slope * -0.3, self.seen + 1


def _bound(rule=None, pool=None):
    agent = Slope("domain", "slope")
    agent.bind(pool or random_pool(), rule or MadsRule(0.5))
    return agent


def check_judged_by_earlier_scores():
    """R_A by a loop over the probes, with the scores from before the update; under both rules."""
    pool, probes = random_pool(), probes_of(random_pool())
    a = [i * t for i, t in zip(probes.importance, probes.targets)]
    s, r = [n - 60.0 for n in probes.view.lengths], probes.rewards.tolist()
    mean = lambda x: sum(w * v for w, v in zip(a, x)) / sum(a)
    covariance = mean([(x - mean(s)) * (y - mean(r)) for x, y in zip(s, r)])
    spread = mean([(x - mean(s)) ** 2 for x in s]) ** 0.5
    assert _bound(MadsRule(0.5), pool).learn(probes) == pytest.approx(covariance / spread, rel=1e-10)
    assert _bound(PaperRule(0.1), pool).learn(probes) == pytest.approx(sum(x * y for x, y in zip(s, r)) / len(s), rel=1e-10)


def test_an_agent_is_judged_by_its_scores_from_before_the_update():
    check_judged_by_earlier_scores()


def test_any_agent_is_judged_over_what_was_chosen():
    """By a loop: a probe counts with its label's share of the chosen tokens over its share of the pool's."""
    pool, rng = random_pool(), np.random.default_rng(4)
    chosen = pool.view(
        np.flatnonzero((pool.codes("domain") != 2) & (rng.random(len(pool)) < 0.3 * (pool.codes("domain") + 1) / 3))
    )
    probes = replace(probes_of(pool), chosen=chosen)

    def share(view, code):
        return sum(n for n, c in zip(view.lengths.tolist(), view.codes("domain").tolist()) if c == code) / view.lengths.sum()

    taken = [share(chosen, code) / share(pool, code) for code in range(7)]
    codes = probes.view.codes("domain").tolist()
    a = [i * t * taken[c] for i, t, c in zip(probes.importance, probes.targets, codes)]
    s, r = [n - 60.0 for n in probes.view.lengths], probes.rewards.tolist()
    mean = lambda x: sum(w * v for w, v in zip(a, x)) / sum(a)
    covariance = mean([(x - mean(s)) * (y - mean(r)) for x, y in zip(s, r)])
    spread = mean([(x - mean(s)) ** 2 for x in s]) ** 0.5
    assert _bound(MadsRule(0.5), pool).learn(probes) == pytest.approx(covariance / spread, rel=1e-10)
    assert taken[2] == 0 and max(taken) > 1.3


def test_a_label_agent_would_be_judged_alike_by_probes_and_by_labels():
    """Where the probes' weights are the labels' shares, both sums are one."""
    pool, agent = random_pool(), LabelAgent("domain")
    agent.bind(pool, MadsRule(1.0))
    agent.learn(probes_of(pool, 1))
    probes = probes_of(pool, 2)
    codes, counted = probes.view.codes("domain"), probes.importance * probes.targets
    by_probe = agent.rule.judge(agent.score(probes.view), probes.rewards, counted)
    agent.shares = np.bincount(codes, counted, 7) / counted.sum()
    assert agent.learn(probes) == pytest.approx(by_probe, rel=1e-9)


def test_records_show_the_new_scores_by_label():
    pool, agent = random_pool(), _bound()
    probes = probes_of(pool)
    agent.learn(probes)
    codes, a = probes.view.codes("domain"), probes.importance * probes.targets
    expected = [np.average(-0.3 * (probes.view.lengths[codes == j] - 60.0), weights=a[codes == j]) for j in range(7)]
    np.testing.assert_allclose([r.weight for r in agent.describe()], expected, rtol=1e-10)
    rewards = [np.average(probes.rewards[codes == j], weights=a[codes == j]) for j in range(7)]
    np.testing.assert_allclose([r.reward_mean for r in agent.describe()], rewards, rtol=1e-10)
    assert sum(r.probes for r in agent.describe()) == len(codes)


def test_memory_comes_back_with_its_types():
    pool, one, two = random_pool(), _bound(), _bound()
    one.learn(probes_of(pool))
    two.load_state(json.loads(json.dumps(one.state(), allow_nan=False)))
    assert two.slope == one.slope == -0.3 and two.seen.dtype == np.int64 and two.seen.tolist() == [1, 1, 1]
    assert two.learn(probes_of(pool, 1)) == one.learn(probes_of(pool, 1)) and two.describe() == one.describe()
    with pytest.raises(ValueError, match="remembers \\['slope'\\], Slope remembers \\['seen', 'slope'\\]"):
        two.load_state(one.state() | {"memory": {"slope": 1.0}})


# ---------------------------------------------------------------- classes that are no agents


class Half:
    def __init__(self, name, attribute):
        self.name = name

    def bind(self, view):
        return None

    def score(self, view, positions):
        return None


def test_a_class_that_is_no_agent_hears_all_its_faults():
    with pytest.raises(ValueError) as caught:
        check_agent(Half("x", "y"), "agents.members.x")
    for words in (
        "agents.members.x: Half is no agent",
        "bind(view, rule) cannot be called, it is bind(view)",
        "score(view) cannot be called, it is score(view, positions)",
        "learn(probes) is absent",
        "attribute is None",
        "mads.agents.AgentBase",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "agent",
    [
        LabelAgent("domain"),
        ContinuousAgent("domain"),
        JointCellAgent(["domain", "topic"]),
        NoveltyAgent("topic"),
        Slope("domain", "s"),
    ],
)
def test_the_agents_that_are_there_pass(agent):
    assert check_agent(agent, "agents.members.x") is agent


class Silent(AgentBase):
    """Has no scores."""


def test_a_class_without_scores_is_no_agent_before_it_is_built():
    node = {"_target_": f"{__name__}.Silent", "attribute": "domain"}
    with pytest.raises(ConfigError, match="agents.members.x: .*Silent.*score"):
        build(node, "agents.members.x", name="x")


@pytest.mark.parametrize(
    "memory, value, words",
    [
        (("slope", "slip"), 1.0, "Slope.memory names 'slip', which Slope.start\\(view\\) does not set"),
        (("slope",), {1, 2}, "Slope.slope is in its memory, but no checkpoint can hold it: Object of type set"),
        (("slope",), np.array([1.0, np.nan]), "Slope.slope is in its memory, but no checkpoint can hold it: .*float"),
    ],
)
def test_a_memory_that_no_checkpoint_could_hold_is_told_at_the_start(monkeypatch, memory, value, words):
    monkeypatch.setattr(Slope, "memory", memory)
    monkeypatch.setattr(Slope, "start", lambda self, view: setattr(self, "slope", value))
    with pytest.raises(ValueError, match=f"agent 'slope': {words}"):
        _bound()


@pytest.mark.parametrize("reward", [None, float("nan"), "much", [1.0, 2.0], float("inf")])
def test_what_learn_returns_must_be_a_number(reward):
    with pytest.raises(ValueError, match="agent 'slope': Slope.learn\\(probes\\) returned .* a finite number"):
        checked_reward(_bound(), reward)
    assert checked_reward(_bound(), np.float32(0.5)) == 0.5


@pytest.mark.parametrize(
    "node, words",
    [
        (
            {"_target_": "mads.agents.ContinuousAgent", "attribute": "quality", "bin": 3},
            "'bin'; it takes attribute .*shape, bins",
        ),
        ({"_target_": "mads.agents.ContinuousAgent"}, "'attribute'; it takes attribute \\(required\\), name, shape, bins"),
        ({"_target_": "mads.agents.ContinuousAgent", "attribute": "quality", "shape": "curve"}, "shape='curve' is not one of"),
    ],
)
def test_the_signature_is_the_schema(node, words):
    with pytest.raises(ConfigError, match=f"agents.members.x.*{words}"):
        build(node, "agents.members.x", name="x")


def test_attributes_of_joint_agents_are_checked_too():
    config = compose(["agents=joint", "agents.members.joint.attributes=[domain,region]"])
    with pytest.raises(ConfigError, match="agents.members.joint.attributes\\[1\\]='region' is not one of"):
        validate(config)
    assert attributes_of("joint", config.agents.members.joint) == {
        "agents.members.joint.attributes[0]": "domain",
        "agents.members.joint.attributes[1]": "region",
    }


class Hears(Slope):
    def start(self, view):
        super().start(view)
        self.told = []

    def chosen(self, view):
        self.told.append(np.asarray(view.ids).tolist())


def check_agents_hear_every_decision():
    pool, agent = random_pool(), Hears("domain", "hears")
    config = MadsSelectionConfig(name="mads", probes=60)
    console, ids = Console(OneRank(), pool, [agent, LabelAgent("topic")], build_strategy(config), 0), []
    for _ in range(3):
        measured = None
        if console.needs_rewards():
            probes = console.draw_probes()
            n = len(probes.positions)
            measured = RoundRewards(probes, np.random.default_rng(0).normal(size=n), np.full(n, 9))
        ids.append(console.decide(measured, np.zeros(len(pool), np.uint16), 3000, 0, 0)[0].tolist())
    assert agent.told == ids and len(ids[0]) > 10


def test_agents_hear_every_decision_in_training_order():
    check_agents_hear_every_decision()


def check_states_are_enough():
    """A console that takes over from another one's saved state decides, and is, the same from there on."""
    for config in CONFIGS[:2]:
        whole = rounds(OneRank(), config)
        for stop in range(1, ROUNDS):
            assert rounds(OneRank(), config, stop) == whole


def test_a_console_s_state_is_enough_for_all_agents():
    check_states_are_enough()
