"""Mutants of what selection=mads is made of, and of rewards that take steps; tests/mutants/mutants.py has the fields."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

from mads.agents.rules import standardised_gain
from mads.console.strategy import is_label_agent

TELLING, SHARES = "unit/console/test_attribution.py", "unit/console/test_tilt.py"
CONSOLE = "unit/console/test_console.py"
NOISE = "unit/console/test_noise_rounds.py"
OUTCOMES, STEPS = "unit/reward/test_outcomes.py", "dist/test_step_rewards.py"


def _as_they_are(original):
    return lambda codes, sizes, rewards, counted: (np.stack([rewards] * len(codes)), original(codes, sizes, rewards, counted)[1])


def _uncentred(original):
    def step(self, weights, shares, statistics):
        updated = weights + self.rate * np.nan_to_num(statistics.mean)
        return updated, standardised_gain(weights, np.nan_to_num(statistics.mean), shares)

    return step


def _only_at_the_end(original):
    """The state at entry comes back when the rehearsal closes, which is checked elsewhere."""
    return lambda self: original(self) if inspect.currentframe().f_back.f_code.co_name == "close" else None


def _at_one_rate(original):
    class OneRate(float):  # times anything but the configured factor of 1 it is still the same
        def __mul__(self, other):
            return self

    return lambda self, rehearsal, samples, order, mix, rate: original(self, rehearsal, samples, order, mix, OneRate(rate))


MUTANTS = [
    Mutant(
        "a label agent is judged over the pool",
        "mads.agents.agent:AgentBase.mix_shares",
        lambda original: lambda self, probes: self.shares,
        f"{CONSOLE}:test_x2_what_nobody_takes_earns_an_agent_nothing",
    ),
    Mutant(
        "an agent without label weights is judged over the pool",
        "mads.agents.agent:AgentBase.mix_shares",
        lambda original: lambda self, probes: self.shares,
        "unit/agents/test_agent_base.py:test_any_agent_is_judged_over_what_was_chosen",
    ),
    Mutant(
        "every agent claims the whole reward",
        "test_attribution:own_parts",
        _as_they_are,
        f"{TELLING}:test_each_agent_gets_its_own_effect_where_labels_go_together",
    ),
    Mutant(
        "a curve learns from the whole reward",
        "mads.console.console:sees_one_attribute",
        lambda original: is_label_agent,
        f"{TELLING}:test_a_curve_and_a_label_agent_do_not_claim_each_others_part",
        args=("score",),
    ),
    Mutant(
        "the spread between labels is taken without the probes' weights",
        "mads.console.attribute_rewards:_between",
        lambda original: lambda codes, size, rewards, counted: original(codes, size, rewards, np.ones_like(counted)),
        f"{TELLING}:test_scale_is_the_spread_between_labels_and_one_agent_keeps_its_rewards",
    ),
    Mutant(
        "rewards of groups are measured by their own spread",
        "mads.console.console:scale_rewards",
        lambda original: (
            lambda rewards, targets, importance, mode, ids, spread: original(rewards, targets, importance, mode, ids)
        ),
        f"{NOISE}:check_noise_moves_little",
    ),
    Mutant(
        "the floor of a cell's share is forgotten",
        "mads.console.decide:Strata.resolved",
        lambda original: lambda self, held: original(replace(self, floor=0.0), held),
        f"{SHARES}:test_cells_get_the_shares_of_the_equation",
    ),
    Mutant(
        "shares do not follow theta",
        "mads.console.choose:_tilt",
        lambda original: (
            lambda recipe, sizes, agents, theta: original(recipe, sizes, agents, np.full_like(theta, 1 / len(theta)))
        ),
        f"{SHARES}:test_cells_get_the_shares_of_the_equation",
    ),
    Mutant(
        "gains are not shrunk",
        "mads.agents.rules:MirrorRule.step",
        _uncentred,
        f"{SHARES}:test_weights_of_the_exponentiated_update_add_up_shrunk_gains",
    ),
    Mutant(
        "all agents have one variance",
        "mads.reward.outcomes:_variances",
        lambda original: lambda square, owner, agents, least: np.full(agents, max(least, square.mean())),
        f"{OUTCOMES}:test_an_agent_that_makes_no_difference_is_shrunk_away",
    ),
    Mutant(
        "a displacement keeps the momentum of training",
        "mads.train.snapshot:EngineRehearsal.forget_momentum",
        lambda original: lambda self: None,
        f"{STEPS}:check_displacement",
        world=2,
        args=([0],),
    ),
    Mutant(
        "the rates of a group's steps do not fall",
        "mads.reward.group:GroupRewarder._train",
        _at_one_rate,
        f"{STEPS}:check_groups",
        world=2,
        args=([0],),
    ),
    Mutant(
        "labels are probed without what is being trained on",
        "mads.reward.group:GroupRewarder._train",
        lambda original: (
            lambda self, rehearsal, samples, order, mix, rate: original(self, rehearsal, samples, order, samples, rate)
        ),
        f"{STEPS}:check_groups",
        world=2,
        args=([0],),
    ),
    Mutant(
        "a group starts where the one before it ended",
        "mads.train.snapshot:EngineRehearsal.rewind",
        _only_at_the_end,
        f"{STEPS}:check_groups",
        world=2,
        args=([0],),
    ),
]


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_x7_mutants_of_the_method_are_caught(mutant):
    check_caught(mutant, run_mutated)
