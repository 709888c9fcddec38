"""Mutants of selection=paper, among them the defects of the released scripts; tests/mutants/mutants.py has the fields."""

import inspect

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

from mads.console.order import ordered_bits

CHECK = "unit/console/test_paper_equations.py:check_console_follows_the_transcription"
RULE, AGENT = "mads.agents.rules:PaperRule", "mads.agents.label:LabelAgent"


def _one_sample_at_a_time(original):
    """As the scripts do: the last samples in file order decide everything."""

    def learn(self, probes):
        weights, rate = self.weights.copy(), self.rule.rate
        reward = original(self, probes)
        for code, r in zip(probes.view.codes(self.attribute), probes.rewards):
            weights[code] = (1 - rate) * weights[code] + rate * r
        self.weights = weights
        return reward

    return learn


def _first_three_labels(original):
    """As the scripts do: theta sees three of all labels."""

    def step(self, weights, shares, statistics):
        updated, _ = original(self, weights, shares, statistics)
        return updated, float((updated * statistics.mean)[~np.isnan(statistics.mean)][:3].mean())

    return step


def _judged_by_old_weights(original):
    def step(self, weights, shares, statistics):
        updated, _ = original(self, weights, shares, statistics)
        return updated, float(np.nanmean(weights * statistics.mean))

    return step


def _decayed_without_the_map(original):
    return lambda self, draw, ids, uses, total, bounds: ordered_bits(-total / (1 + self.use_decay * uses))


def _not_decayed(original):
    return lambda self, draw, ids, uses, total, bounds: original(self, draw, ids, np.zeros_like(uses), total, bounds)


def _summed_not_averaged(original):
    def step(self, weights, shares, statistics):
        updated, _ = original(self, weights, shares, statistics)
        return updated, float(np.nansum(updated * statistics.mean))

    return step


MUTANTS = [
    Mutant("weights move one sample at a time", f"{AGENT}.learn", _one_sample_at_a_time, CHECK),
    Mutant("theta follows the first three labels", f"{RULE}.step", _first_three_labels, CHECK),
    Mutant("R_A is judged by the weights from before", f"{RULE}.step", _judged_by_old_weights, CHECK),
    Mutant("R_A is a sum over labels", f"{RULE}.step", _summed_not_averaged, CHECK),
    Mutant("S is divided by the use decay without the map", "mads.console.order:TopKOrder.key", _decayed_without_the_map, CHECK),
    Mutant("uses do not count", "mads.console.order:TopKOrder.key", _not_decayed, CHECK),
    Mutant("rewards are z-scored", f"{RULE}.scale", lambda original: "zscore", CHECK),
    Mutant("an agent learns from the probes of all", "mads.reward.probes:PerAgentProbes.shared", lambda original: True, CHECK),
    Mutant(
        "theta is cut off at 0 and normalised",
        "mads.console.collaborate:project_to_simplex",
        lambda original: lambda theta: np.maximum(theta, 0) / np.maximum(theta, 0).sum(),
        CHECK,
    ),
    Mutant("start weights are equal", f"{RULE}.start", lambda original: lambda self, s: np.full(len(s), 1 / len(s)), CHECK),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_paper_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red


def test_the_check_is_green_without_them():
    check = MUTANTS[0].check_function()
    assert not inspect.signature(check).parameters and check() is None
