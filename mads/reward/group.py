"""Rewards by group probes: train a few real steps on samples of one label, measure the references, go back.

For every label j of every agent A, from the model as it is: k optimizer steps, at rates that fall linearly to rate / k, on
batches of probes that A drew with label j (and, with mix_rows, of samples of what the run is being trained on, the same ones
for every label); y_b is by how much they lower the reference loss. One step says little: nine tenths of it are the momentum
that all groups share, and what a gradient gains at first along steep directions, the next steps lose again. All groups start
from the same state and are measured on the same examples. What a group is made of, X_b (its tokens' share of every label of
every agent), is known, so the outcomes are regressed on it,

    y_b = mu + c m_b + sum_A sum_l X_{b,A,l} e_{A,l} + noise,   e_A ~ N(0, tau_A^2)

with variances by EM (mads.reward.outcomes). A probe's reward is then r(x) = sum_A e_{A, label_A(x)}, and in a blend
c (r_1(x) - mean) more: m_b is the mean of the one-step rewards r_1 over the group's tokens, so one-step rewards rank inside
labels and predict levels as far as the outcomes agree with them (c >= 0), and the outcomes set the rest.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mads.eval.losses import first_rank
from mads.noise import hash64, uniform
from mads.reward.outcomes import fit_outcomes, winsorised
from mads.reward.probes import Probes, RoundRewards
from mads.reward.steps import ReferenceLoss, RewardContext, take, tokens_of
from mads.train.interface import NonFiniteError


class GroupRewarder:
    """Called by all ranks together, with the same result on each.

    Args:
        config: a GroupRewardConfig.
        one_step: the one-step rewards of a blend (mads.reward.influence.Rewarder); None: group probes alone.
    """

    def __init__(self, context: RewardContext, config, one_step=None):
        self._context, self._config, self._one_step = context, config, one_step
        self.mode = "group" if one_step is None else "blend"

    def __call__(
        self, probes: Probes, samples: Sequence[np.ndarray], round_: int, rate: float, mix: Sequence[np.ndarray] = ()
    ) -> RoundRewards:
        """Rewards of the round's probes, whose tokens are `samples`. The model is left bit for bit as it was.

        Args:
            mix: tokens of samples that the run was trained on in the last round; none: a draw of the whole pool from the probes
            rate: learning rate of the training step to come; the steps here take it times `rate_factor`.

        Raises:
            ValueError: if every group ended with a loss or gradient that is not finite.
        """
        single = self._one_step(probes, samples, round_, rate) if self._one_step else None
        seconds = dict(single.seconds) if single else {}
        started = time.perf_counter()
        groups = self._groups(probes, round_)
        measure = ReferenceLoss(self._context, "direction", self._config.reference_examples, round_)
        mix = (list(mix) or [samples[i] for i in self._draw(probes, round_, "mix")]) if self._config.mix_rows else []
        outcomes, taken, trained = [], [], 0
        notes = list(single.notes) if single else []
        with self._context.model.rehearsal() as rehearsal:
            start = measure()
            for i, order in enumerate(groups):
                if i:
                    rehearsal.rewind()
                members, tokens, whole = self._train(rehearsal, samples, order, mix, rate)
                outcomes.append(start - measure() if whole else np.nan)
                taken.append(members)
                trained += tokens
        outcomes = winsorised(self._finite(np.array(outcomes), notes))
        lengths = np.array([len(s) for s in samples], dtype=np.float64)
        fit = fit_outcomes(outcomes, _shares(probes, taken, lengths), probes.sizes, self._means(single, taken, lengths))
        rewards = np.zeros(len(samples))
        for agent, codes in probes.codes.items():
            rewards += fit.effects[agent][codes]
        if single is not None:
            rewards += fit.slope * (single.rewards - np.average(single.rewards, weights=lengths))
        seconds["groups"] = time.perf_counter() - started
        flops = self._context.flops_per_token * trained + self._context.forward_flops(measure.tokens * (1 + len(groups)))
        diagnostics = {**(single.direction if single else {}), "mode": self.mode, "groups": len(groups)}
        diagnostics |= {"steps": self._config.steps, "slope": fit.slope, "explained": fit.explained}
        diagnostics["flops"] = flops + (single.direction["flops"] if single else 0)
        # Rank 0's, whatever the last bit of a matrix product is elsewhere.
        told = first_rank(np.append(rewards, fit.scale), self._context.topology)
        targets = np.array([max(0, len(s) - 1) for s in samples], dtype=np.int64)
        found = {"notes": notes, "errors": fit.errors, "scale": float(told[-1])}
        return RoundRewards(probes, told[:-1], targets, diagnostics, seconds, **found)

    def _groups(self, probes: Probes, round_: int) -> list[list[int]]:
        """Probes of each group in the order in which they are trained on: every label's own draws, then `control` draws of the
        whole pool."""
        places = np.arange(len(probes.ids))
        noise = hash64(self._context.seed, "group_probe", round_, probes.ids)
        groups = []
        for agent, codes in probes.codes.items():
            for label in range(probes.sizes[agent]):
                members = places[probes.members[agent] & (codes == label)]
                if len(members):
                    groups.append(members[np.argsort(noise[members], kind="stable")].tolist())
        return groups + [self._draw(probes, round_, f"control/{draw}") for draw in range(self._config.control)]

    def _draw(self, probes: Probes, round_: int, name: str) -> list[int]:
        """Probes in an order whose first ones are a sample of the pool, whatever was drawn more often: exponential clocks with
        rates `importance`."""
        u = uniform(self._context.seed, f"group_probe/{name}", round_, probes.ids)
        return np.argsort(-np.log(u) / probes.importance, kind="stable").tolist()

    def _train(
        self, rehearsal, samples: Sequence[np.ndarray], order: list[int], mix: Sequence[np.ndarray], rate: float
    ) -> tuple[list[int], int, bool]:
        """(places of all of `samples` that were trained on, with repetition; tokens, the mix's included; whether every loss and
        gradient was finite)."""
        config, row = self._config, self._context.seq_length
        trained, tokens, start, mix_start = [], 0, 0, 0
        for step in range(config.steps):
            chosen, start = take(samples, order, start, config.step_rows * row)
            beside, mix_start = take(mix, range(len(mix)), mix_start, config.mix_rows * row) if config.mix_rows else ([], 0)
            batch = [samples[i] for i in chosen] + [mix[i] for i in beside]
            trained, tokens = trained + chosen, tokens + tokens_of(batch)
            try:
                self._context.step(rehearsal, batch, rate * config.rate_factor * (1 - step / config.steps))
            except NonFiniteError:  # on every rank
                return trained, tokens, False
        return trained, tokens, True

    @staticmethod
    def _finite(outcomes: np.ndarray, notes: list[str]) -> np.ndarray:
        """Groups that made the model diverge have the worst outcome of the others; the note counts them.

        Raises:
            ValueError: if no group is left.
        """
        lost = ~np.isfinite(outcomes)
        if lost.all():
            raise ValueError(
                f"all {len(outcomes)} group probes ended with a loss or gradient that is not finite: the model is diverging; "
                "lower optim.lr, or reward.rate_factor if training itself is stable"
            )
        if lost.any():
            notes.append(f"{lost.sum()} of {len(outcomes)} group probes were not finite and count as the worst of the others")
        return np.where(lost, outcomes[~lost].min(), outcomes)

    @staticmethod
    def _means(single: RoundRewards | None, taken: list[list[int]], lengths: np.ndarray) -> np.ndarray | None:
        if single is None:
            return None
        return np.array([np.average(single.rewards[m], weights=lengths[m]) for m in taken])


def _shares(probes: Probes, taken: list[list[int]], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """agent -> X_b, float64 [groups, labels]: shares of each group's tokens."""
    shares = {}
    for agent, codes in probes.codes.items():
        rows = [np.bincount(codes[m], weights=lengths[m], minlength=probes.sizes[agent]) for m in taken]
        shares[agent] = np.stack([row / row.sum() for row in rows])
    return shares
