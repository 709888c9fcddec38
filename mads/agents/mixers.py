"""Agents inside the online mixing selections: each holds the mix of one attribute's labels and moves it by losses.

A configuration does not list them; mads.console.mixing makes one for its selection. They are agents so that probes, records,
checkpoints and growing pools work as for any other.
"""

from __future__ import annotations

import numpy as np

from mads.agents.agent import AgentBase
from mads.agents.base import AttributeView, ProbeRewards
from mads.agents.columns import label_codes
from mads.agents.mixing import (
    contrast,
    descend,
    deviated,
    exp3_mix,
    exploration_rate,
    fit_power_law,
    fit_response,
    follow_rewards,
    preference,
)


class MixingAgent(AgentBase):
    """Holds `mix`, float64 [L], the labels' shares of the next decision's tokens; labels that the pool lacks have 0.

    `update` moves it from the round's losses (`self.statistics.mean`, NaN where a label had no probe). The agent is alone, so
    that nothing is weighed against it: its own reward is 0.
    """

    memory: tuple[str, ...] = ("mix", "taken", "tokens", "rounds")

    def start(self, view: AttributeView) -> None:
        """taken: int64 [L], tokens by label of the last decision; tokens: of all decisions; rounds: with losses so far."""
        self.mix = self.first_mix()
        self.taken = np.zeros(len(self.labels), dtype=np.int64)
        self.tokens = self.rounds = 0

    @property
    def held(self) -> np.ndarray:
        """Labels that the pool holds, bool [L]."""
        return self.shares > 0

    def first_mix(self) -> np.ndarray:
        """Before the first losses: the pool's own shares."""
        return self.shares.copy()

    def grow(self, view: AttributeView, known: int) -> None:
        """New labels enter with their shares of the longer pool."""
        self.mix = self.widened(self.mix, known)
        self.taken = np.append(self.taken, np.zeros(len(self.labels) - known, np.int64))

    def widened(self, mix: np.ndarray, known: int) -> np.ndarray:
        """A mix of the `known` labels with the new ones, and those that were empty, at their pool shares; sum 1."""
        mix = np.append(mix, np.zeros(len(self.labels) - known))
        mix = np.where(self.held & (mix == 0), self.shares, mix)
        return mix / mix.sum()

    def score(self, view: AttributeView) -> np.ndarray:
        """log(mix / pool share) of the sample's label: how far the mix departs from the pool."""
        ratio = np.divide(self.mix, self.shares, out=np.ones(len(self.mix)), where=self.held)
        return np.log(np.maximum(ratio, 1e-300))[label_codes(view, self.attribute)]

    def label_weights(self) -> np.ndarray:
        return self.mix

    def learn(self, probes: ProbeRewards) -> float:
        self.observe(probes)
        self.rounds += 1
        self.update(probes)
        return 0.0

    def chosen(self, view: AttributeView) -> None:
        """What the decision really held: a label may have run short of its share."""
        tokens = np.bincount(label_codes(view, self.attribute), weights=view.lengths, minlength=len(self.labels))
        self.taken = tokens.astype(np.int64)
        self.tokens += int(self.taken.sum())


class OdmAgent(MixingAgent):
    """Online data mixing: Exp3 over labels, an arm's reward its loss (Albalak et al., arXiv 2312.02406, Algorithm 1).

    Args:
        interval: optimizer steps of a round: t of eps_t counts steps, as in the paper.
        smoothing: what the estimate of an arm's reward keeps of itself in a round.
    """

    memory = (*MixingAgent.memory, "estimates")

    def __init__(self, attribute: str, interval: int, smoothing: float):
        super().__init__(attribute)
        self.interval, self.smoothing = interval, smoothing

    def start(self, view: AttributeView) -> None:
        super().start(view)
        self.estimates = np.zeros(len(self.labels))

    def first_mix(self) -> np.ndarray:
        """All exploration: uniform over the labels that the pool holds."""
        return self.held / np.count_nonzero(self.held)

    def grow(self, view: AttributeView, known: int) -> None:
        super().grow(view, known)
        self.estimates = np.append(self.estimates, np.full(len(self.labels) - known, self.estimates.mean()))

    def update(self, probes: ProbeRewards) -> None:
        held = self.held
        found = follow_rewards(self.estimates[held], self.statistics.mean[held], self.mix[held], self.smoothing)
        self.estimates[held] = found
        before, rate = (exploration_rate(len(found), self.interval * r) for r in (self.rounds - 1, self.rounds))
        self.mix = np.zeros(len(self.labels))
        self.mix[held] = exp3_mix(found, before, rate)


class AdoAgent(MixingAgent):
    """Adaptive data optimization: labels by how fast their losses fall (Jiang et al., arXiv 2410.11820, section 3).

    Args:
        interval: optimizer steps of a round; the running means of the paper are those of steps.
        credit_rate, preference_rate, power: gamma_1, gamma_2 and s of the paper.
        floor: least share of a label in rho.
        law_rounds: measurements that a power law takes, 3 or more; until then the mix is the pool's.
    """

    memory = (*MixingAgent.memory, "credit", "average", "consumed", "losses")

    def __init__(
        self,
        attribute: str,
        interval: int,
        credit_rate: float,
        preference_rate: float,
        power: float,
        floor: float,
        law_rounds: int,
    ):
        super().__init__(attribute)
        self.kept = (1 - credit_rate) ** interval  # of h, after a round's steps on one mix
        self.preference_rate, self.power, self.floor, self.law_rounds = preference_rate, power, floor, law_rounds

    def start(self, view: AttributeView) -> None:
        """credit: h; average: the mean of rho over rounds; consumed: [T] tokens and losses: [T, L] of each measurement, 0 where a
        label had no probe."""
        super().start(view)
        self.credit, self.average = self.shares.copy(), self.shares.copy()
        self.consumed, self.losses = np.zeros(0), np.zeros((0, len(self.labels)))

    def restored(self) -> None:
        self.losses = self.losses.reshape(-1, len(self.labels))

    def grow(self, view: AttributeView, known: int) -> None:
        super().grow(view, known)
        self.credit, self.average = self.widened(self.credit, known), self.widened(self.average, known)
        self.losses = np.append(self.losses, np.zeros((len(self.losses), len(self.labels) - known)), axis=1)

    def speeds(self) -> np.ndarray:
        """Learning speed of each label that the pool holds, float64 [K]; the median of the others' for one that was measured
        less than `law_rounds` times."""
        found = []
        for losses in self.losses[:, self.held].T:
            seen = losses > 0
            enough = np.count_nonzero(seen) >= self.law_rounds
            found.append(fit_power_law(self.consumed[seen], losses[seen]).speed if enough else np.nan)
        speeds = np.array(found)
        known = ~np.isnan(speeds)
        return np.where(known, speeds, np.median(speeds[known]) if known.any() else 1.0)

    def update(self, probes: ProbeRewards) -> None:
        self.consumed = np.append(self.consumed, float(self.tokens))
        self.losses = np.append(self.losses, np.nan_to_num(self.statistics.mean)[None], axis=0)
        if self.taken.sum() > 0:
            self.credit = self.kept * self.credit + (1 - self.kept) * self.taken / self.taken.sum()
        if self.rounds < self.law_rounds:
            return
        held, rho = self.held, np.zeros(len(self.labels))
        rho[held] = preference(self.shares[held], self.credit[held], self.speeds(), self.power, self.floor)
        self.mix = self.preference_rate * rho + (1 - self.preference_rate) * self.average
        self.average = (self.rounds * self.average + rho) / (self.rounds + 1)


class AioliAgent(MixingAgent):
    """Free group probes: rounds train on a mix that deviates from pi along contrasts, the change of the reference loss is
    regressed on what they trained on, and pi descends (after Aioli, Chen et al., arXiv 2411.05735).

    Args:
        shares: first mix, "natural" or "uniform".
        deviation: logarithm of the factor by which a label's share goes up or down.
        rate: of the exponentiated gradient, per standard deviation of the gradient.
        decay: what a round counts for one round later.
        ridge: see mads.agents.mixing.fit_response.
        floor: least share of a label in pi.
    """

    memory = (*MixingAgent.memory, "centre", "trained", "references")

    def __init__(self, attribute: str, shares: str, deviation: float, rate: float, decay: float, ridge: float, floor: float):
        super().__init__(attribute)
        self.first, self.deviation, self.rate, self.decay, self.ridge, self.floor = (
            shares, deviation, rate, decay, ridge, floor
        )  # fmt: skip

    def start(self, view: AttributeView) -> None:
        """centre: pi; trained: [T, L], shares that the round before each measurement trained on; references: [T], losses."""
        super().start(view)
        self.centre = self.mix.copy()
        self.trained, self.references = np.zeros((0, len(self.labels))), np.zeros(0)

    def first_mix(self) -> np.ndarray:
        return self.shares.copy() if self.first == "natural" else self.held / np.count_nonzero(self.held)

    def restored(self) -> None:
        self.trained = self.trained.reshape(-1, len(self.labels))

    def grow(self, view: AttributeView, known: int) -> None:
        super().grow(view, known)
        self.centre = self.widened(self.centre, known)
        self.trained = np.append(self.trained, np.zeros((len(self.trained), len(self.labels) - known)), axis=1)

    def update(self, probes: ProbeRewards) -> None:
        if not probes.references:
            raise ValueError(f"agent {self.name!r} learns from the references' losses, and the round measured none")
        self.references = np.append(self.references, np.mean(list(probes.references.values())))
        self.trained = np.append(self.trained, (self.taken / max(1, self.taken.sum()))[None], axis=0)
        held = self.held
        # The first measurement has nothing before it: what changed until then is not known.
        response = fit_response(self.trained[1:, held], np.diff(self.references), self.decay, self.ridge)
        centre = descend(self.centre[held], response, self.rate, self.floor)
        self.centre, self.mix = np.zeros(len(self.labels)), np.zeros(len(self.labels))
        self.centre[held] = centre
        self.mix[held] = deviated(centre, contrast(len(centre), self.rounds - 1), self.deviation)
