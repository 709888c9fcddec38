"""Mutants of the agents; tests/mutants/mutants.py has the fields."""

import inspect

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

from mads.agents.continuous import isotonic
from mads.console.order import HashOrder
from mads.console.recipe import Recipe

BASE, CURVE = "unit/agents/test_agent_base.py", "unit/agents/test_continuous_agent.py"
CELLS = "unit/agents/test_cell_agents.py"


def _learns_first(original):
    def learn(self, probes):
        self.update(probes)
        return original(self, probes)

    return learn


def _deaf(original):
    def recipe(self, scored, agents):
        return original(self, scored, agents) if scored else Recipe(HashOrder(), tuple(agent.attribute for agent in agents))

    return recipe


def _by_shares(original, agent, view):
    original(agent, view)
    agent.weights = agent.rule.start(agent.shares) + np.multiply(agent.prior, agent.shares)


MUTANTS = [
    Mutant(
        "the warm-up does not hear a prior",
        "mads.console.strategy:MadsStrategy.recipe",
        _deaf,
        "unit/console/test_console.py:check_the_warm_up_follows_a_prior",
    ),
    Mutant(
        "a prior goes by the number of labels",
        "mads.agents.label:normal_scores",
        lambda original: lambda shares: original(np.full(len(shares), 1 / len(shares))),
        "unit/agents/test_label_agent.py:check_a_prior_is_in_start_weights",
    ),
    Mutant(
        "a prior of each label goes by the labels' shares",
        "mads.agents.label:LabelAgent.start",
        lambda original: lambda self, view: _by_shares(original, self, view),
        "unit/agents/test_label_agent.py:check_a_prior_of_each_label_is_in_start_weights",
    ),
    Mutant(
        "a curve does not hear its prior",
        "mads.agents.continuous:normal_scores",
        lambda original: lambda shares: np.zeros(len(shares)),
        "unit/agents/test_continuous_agent.py:check_a_prior_is_in_the_curve",
    ),
    Mutant(
        "an agent is judged by what it has just learned",
        "mads.agents.agent:AgentBase.learn",
        _learns_first,
        f"{BASE}:check_judged_by_earlier_scores",
    ),
    Mutant(
        "agents do not hear of decisions without rewards",
        "mads.console.console:Console._tell",
        lambda original: lambda self, ids: original(self, ids) if self.needs_rewards() else None,
        f"{BASE}:check_agents_hear_every_decision",
    ),
    Mutant(
        "zeros of both signs are two values",
        "mads.agents.columns:_ordered",
        lambda original: lambda values: original(np.where(values == 0, np.float32(-1e-45), values)),
        f"{CURVE}:check_quantiles_equal_a_loop",
    ),
    Mutant(
        "quantiles go by samples",
        "mads.agents.columns:_finite",
        lambda original: lambda part, name: (original(part, name)[0], np.ones_like(original(part, name)[1])),
        f"{CURVE}:check_quantiles_equal_a_loop",
    ),
    Mutant(
        "bins are closed on the left",
        "mads.agents.continuous:ContinuousAgent.bin_of",
        lambda original: _closed_on_the_left,
        f"{CURVE}:check_bins_and_weights_equal_loops",
    ),
    Mutant(
        "a monotone curve always rises",
        "mads.agents.continuous:monotone",
        lambda original: lambda values, weight: isotonic(values, weight),
        f"{CURVE}:check_scores_lie_on_the_curve",
    ),
    Mutant(
        "violators are pooled without their weights",
        "mads.agents.continuous:isotonic",
        lambda original: lambda values, weight: original(values, np.ones_like(weight)),
        f"{CURVE}:check_isotonic_equals_the_minmax_formula",
    ),
    Mutant(
        "a sample without a value gets the curve's middle",
        "mads.agents.continuous:ContinuousAgent.score",
        lambda original: (
            lambda self, view: np.where(np.isfinite(view.values("value")), original(self, view), np.median(self.curve))
        ),
        f"{CURVE}:check_scores_lie_on_the_curve",
    ),
    Mutant(
        "interactions are not shrunk",
        "mads.agents.joint:_posterior",
        lambda original: lambda means, codes, sizes, tau, tau_g: original(means, codes, sizes, tau, 1e6 * tau_g),
        f"{CELLS}:check_fit_equals_dense_equations",
    ),
    Mutant(
        "the effects' doubt is left out of the interactions' variance",
        "mads.agents.joint:_posterior",
        lambda original: _without_doubt(original),
        f"{CELLS}:check_variances_climb_in_likelihood",
    ),
    Mutant(
        "cells without probes score as the mean",
        "mads.agents.joint:JointCellAgent.restored",
        lambda original: _only_probed(original),
        f"{CELLS}:check_small_cells_fall_back_on_their_labels",
    ),
    Mutant(
        "old sums are forgotten",
        "mads.agents.joint:JointCellAgent.update",
        lambda original: lambda self, probes: _with_decay(self, 0.0, lambda: original(self, probes)),
        f"{CELLS}:check_sums_equal_a_loop",
    ),
    Mutant(
        "novelty counts samples",
        "mads.agents.novelty:NoveltyAgent.chosen",
        lambda original: lambda self, view: original(self, _of_length_one(view)),
        f"{CELLS}:check_novelty_equals_a_loop",
    ),
    Mutant(
        "a checkpoint lacks what was taken",
        "mads.agents.novelty:NoveltyAgent.memory",
        lambda original: (),
        f"{BASE}:check_states_are_enough",
    ),
    Mutant(
        "a curve forgets its evidence",
        "mads.agents.continuous:ContinuousAgent.memory",
        lambda original: tuple(key for key in original if key != "evidence"),
        f"{BASE}:check_states_are_enough",
    ),
]


def _closed_on_the_left(self, view):
    values = np.asarray(view.values(self.attribute), dtype=np.float64)
    return np.where(np.isfinite(values), np.searchsorted(self.edges, values, side="right"), len(self.edges) + 1)


def _without_doubt(original):
    def posterior(means, codes, sizes, tau, tau_g):
        effects, interaction, inverse, left = original(means, codes, sizes, tau, tau_g)
        return effects, interaction, 0 * inverse, 0 * left

    return posterior


def _only_probed(original):
    def restored(self):
        original(self)
        self.table = np.where(self.counted > 0, self.table, 0.0)

    return restored


def _with_decay(agent, decay, call):
    kept, agent.decay = agent.decay, decay
    call()
    agent.decay = kept


def _of_length_one(view):
    view.lengths = np.ones_like(view.lengths)
    return view


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_agent_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_check_is_green_without_it(mutant):
    check = mutant.check_function()
    assert not inspect.signature(check).parameters and check() is None
