"""Mutants of online mixing and of the influence model; tests/mutants/mutants.py has the fields."""

import inspect

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

from mads.agents.mixing import Response

MIXING, INFLUENCE = "unit/agents/test_mixing.py", "unit/agents/test_influence_agent.py"


def _less_memory(key):
    return lambda original: tuple(name for name in original if name != key)


def _with_ridge(original, scale):
    return lambda mixes, changes, decay, ridge: original(mixes, changes, decay, scale * ridge)


MUTANTS = [
    Mutant(
        "rewards of arms go without importance",
        "mads.agents.mixers:follow_rewards",
        lambda original: lambda estimates, losses, mix, smoothing: original(estimates, losses, np.ones_like(mix), smoothing),
        f"{MIXING}:check_odm_equals_a_loop",
    ),
    Mutant(
        "an arm without a probe forgets its reward",
        "mads.agents.mixers:follow_rewards",
        lambda original: lambda estimates, losses, mix, smoothing: original(estimates, np.nan_to_num(losses), mix, smoothing),
        f"{MIXING}:check_odm_equals_a_loop",
    ),
    Mutant(
        "exploration counts rounds",
        "mads.agents.mixers:exploration_rate",
        lambda original: lambda arms, step: original(arms, step // 20),
        f"{MIXING}:check_odm_equals_a_loop",
    ),
    Mutant(
        "low losses are rewarded",
        "mads.agents.mixers:exp3_mix",
        lambda original: lambda estimates, before, rate: original(-estimates, before, rate),
        f"{MIXING}:check_odm_goes_to_the_highest_loss",
    ),
    Mutant(
        "the floor of exploration is left out",
        "mads.agents.mixers:exp3_mix",
        lambda original: lambda estimates, before, rate: original(estimates, before, 0.0),
        f"{MIXING}:check_odm_equals_a_loop",
    ),
    Mutant(
        "every label learns by one exponent",
        "mads.agents.mixing:ALPHAS",
        lambda original: original[25:26],
        f"{MIXING}:check_power_law_is_the_best_one",
    ),
    Mutant(
        "the irreducible loss counts as learned",
        "mads.agents.mixing:PowerLaw.speed",
        lambda original: property(lambda law: law.alpha * (law.beta + law.eps)),
        f"{MIXING}:check_ado_equals_a_loop",
    ),
    Mutant(
        "laws leave the first measurement out",
        "mads.agents.mixers:fit_power_law",
        lambda original: lambda tokens, losses: original(tokens[1:], losses[1:]),
        f"{MIXING}:check_ado_equals_a_loop",
    ),
    Mutant(
        "credit is left out of the preference",
        "mads.agents.mixers:preference",
        lambda original: lambda shares, credit, *rest: original(shares, np.ones_like(credit), *rest),
        f"{MIXING}:check_ado_equals_a_loop",
    ),
    Mutant(
        "labels are held at no floor",
        "mads.agents.mixing:raised",
        lambda original: lambda mix, floor: mix,
        f"{MIXING}:check_ado_equals_a_loop",
    ),
    Mutant(
        "shares that were asked for stand for those that were trained on",
        "mads.agents.mixers:MixingAgent.chosen",
        lambda original: lambda self, view: setattr(self, "taken", np.round(1e9 * self.mix).astype(np.int64)),
        f"{MIXING}:check_aioli_equals_a_loop",
    ),
    Mutant(
        "the gradient is climbed",
        "mads.agents.mixers:descend",
        lambda original: lambda mix, r, rate, floor: original(mix, Response(-r.gradient, r.trust), rate, floor),
        f"{MIXING}:check_aioli_finds_the_better_labels",
    ),
    Mutant(
        "old rounds count as new ones",
        "mads.agents.mixers:fit_response",
        lambda original: lambda mixes, changes, decay, ridge: original(mixes, changes, 1.0, ridge),
        f"{MIXING}:check_aioli_equals_a_loop",
    ),
    Mutant(
        "the response is not shrunk",
        "mads.agents.mixers:fit_response",
        lambda original: _with_ridge(original, 1e-6),
        f"{MIXING}:check_aioli_equals_a_loop",
    ),
    Mutant(
        "noise is trusted",
        "mads.agents.mixing:_CAUTION",
        lambda original: 0.0,
        f"{MIXING}:check_noise_alone_moves_little",
    ),
    Mutant(
        "a checkpoint lacks the arms' rewards",
        "mads.agents.mixers:OdmAgent.memory",
        _less_memory("estimates"),
        f"{MIXING}:check_mixers_states_are_enough",
    ),
    Mutant(
        "a checkpoint lacks the mean preference",
        "mads.agents.mixers:AdoAgent.memory",
        _less_memory("average"),
        f"{MIXING}:check_mixers_states_are_enough",
    ),
    Mutant(
        "a checkpoint lacks the centre of the deviations",
        "mads.agents.mixers:AioliAgent.memory",
        _less_memory("centre"),
        f"{MIXING}:check_mixers_states_are_enough",
    ),
    Mutant(
        "leave-one-out leaves nothing out",
        "mads.agents.influence:leave_one_out",
        lambda original: _without_leverage(original),
        f"{INFLUENCE}:check_fit_equals_the_ridge_over_all_rounds",
    ),
    Mutant(
        "the mean reward is shrunk",
        "mads.agents.influence:leave_one_out",
        lambda original: _shrunk_mean,
        f"{INFLUENCE}:check_fit_equals_the_ridge_over_all_rounds",
    ),
    Mutant(
        "old rounds are not forgotten",
        "mads.agents.influence:InfluenceAgent.update",
        lambda original: lambda self, probes: (setattr(self, "decay", 1.0), original(self, probes))[1],
        f"{INFLUENCE}:check_fit_equals_the_ridge_over_all_rounds",
    ),
    Mutant(
        "a missing value is 0 before it is standardised",
        "mads.agents.influence:InfluenceAgent._numbers",
        lambda original: lambda self, view: (original(self, view)[0], np.ones_like(original(self, view)[1])),
        f"{INFLUENCE}:check_features_equal_a_loop",
    ),
    Mutant(
        "a checkpoint lacks the sums",
        "mads.agents.influence:InfluenceAgent.memory",
        _less_memory("gram"),
        f"{INFLUENCE}:check_influence_state_is_enough",
    ),
]


def _without_leverage(original):
    def fit(gram, moment, phi, a, rewards, ridge):
        w, _ = original(gram, moment, phi, a, rewards, ridge)
        return w, float((a * (rewards - phi @ w) ** 2).sum())

    return fit


def _shrunk_mean(gram, moment, phi, a, rewards, ridge):
    inverse = np.linalg.inv(gram + ridge * np.eye(len(moment)))
    w = inverse @ moment
    leverage = a * np.einsum("ip,pq,iq->i", phi, inverse, phi)
    return w, float((a * ((rewards - phi @ w) / (1 - leverage)) ** 2).sum())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mixing_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red


@pytest.mark.parametrize("check", sorted({m.check for m in MUTANTS}))
def test_a_mixing_check_is_green_without_mutants(check):
    function = next(m for m in MUTANTS if m.check == check).check_function()
    assert all(p.default is not p.empty for p in inspect.signature(function).parameters.values()) and function() is None
