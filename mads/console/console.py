"""The agent console: one object per rank that takes a round from rewards to verified sample ids."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mads.agents.base import Agent, HearsDecisions, ProbeRewards
from mads.agents.check import checked_reward
from mads.agents.columns import token_shares
from mads.agents.rules import scale_rewards
from mads.collectives import assert_equal_on_ranks, broadcast_array, digest, ragged_all_gather
from mads.console.attribute_rewards import own_parts
from mads.console.choose import choose, own_slice
from mads.console.decide import Decision
from mads.console.exchange import broadcast_decision, check_agents, raise_together
from mads.console.order import Draw
from mads.console.recipe import Strategy
from mads.console.record import DecisionHeader, DecisionRecord, LabelRecord
from mads.console.strategy import sees_one_attribute
from mads.reward.probes import Probes, RoundRewards, draw_probes
from mads.topology import Topology


class Console:
    """Holds theta, the number of the next round and the ids of the last decision; equal on every rank.

    Args:
        pool: all samples (mads.data.pool.Pool): an AttributeView with `attributes`, `view` and `slice_bounds`.
        agents: bound to the pool here; empty for selections without agents.
        piece: samples that are read at a time; now and then between two pieces the console reports that it is alive.
        progress: called on rank 0 with a line of text.

    Raises:
        ValueError: if the strategy needs agents and there are none, or two have one name.
        SelectionMismatchError: on all ranks, if ranks hold different agents.
    """

    def __init__(
        self,
        topology: Topology,
        pool: Any,
        agents: Sequence[Agent],
        strategy: Strategy,
        seed: int,
        piece: int = 1 << 18,
        progress: Callable[[str], None] | None = None,
    ):
        self.topology, self.strategy, self.seed = topology, strategy, seed
        self.agents = list(agents) if strategy.learning else []
        self.names = [agent.name for agent in self.agents]
        self._piece = piece
        self._progress = progress if progress and topology.rank == 0 else lambda line: None
        if strategy.learning and not self.agents:
            raise ValueError(f"selection {strategy.name!r} needs agents; add members to conf group `agents`")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two agents have one name: {self.names}")
        check_agents({agent.name: [type(agent).__name__, agent.attribute] for agent in self.agents}, topology)
        self._bind(pool, lambda agent: agent.bind(pool, strategy.learning.rule))
        self.theta = strategy.learning.collaboration.start(self.names) if self.agents else np.zeros(0)
        self.round = 0
        self.pending = np.zeros(0, dtype=np.int64)

    def _bind(self, pool: Any, bind: Callable[[Agent], None]) -> None:
        error = None
        try:
            for agent in self.agents:
                bind(agent)
            self._limits = self.strategy.limits.over(pool)  # once for a pool, because it is read
        except Exception as caught:  # told to the other ranks, then raised
            error = caught
        raise_together(error, self.topology, "binding the agents to the pool")
        labels = {agent.name: list(agent.labels) for agent in self.agents}
        assert_equal_on_ranks(labels, self.topology.group("control"), "the agents' labels")
        self.pool, self._shares, self._errors = pool, {}, {}

    def rebind(self, pool: Any) -> None:
        """Collective, between two rounds: go on with a longer pool, whose first samples are those of the one before. Agents
        keep what they learned, the shares of their labels are those of the new pool.

        Raises:
            ValueError: if the pool is shorter, or an attribute is absent or has other labels (more of them may have been added).
            RankFailedError: when another rank raised.
        """
        error = None
        try:
            if len(pool) < len(self.pool):
                raise ValueError(f"the pool cannot shrink from {len(self.pool)} to {len(pool)} samples in the middle of a run")
            for attribute in self.pool.attributes:
                before = self.pool.labels(attribute)
                after = pool.labels(attribute) if attribute in pool.attributes else ()
                if after[: len(before)] != before:
                    raise ValueError(
                        f"attribute {attribute!r} had the labels {list(before)} and has {list(after)} in the longer pool: "
                        "labels may be added at the end, not changed"
                    )
        except ValueError as caught:  # told to the other ranks, then raised
            error = caught
        raise_together(error, self.topology, "taking the longer pool")
        self._bind(pool, lambda agent: agent.rebind(pool))

    # ------------------------------------------------------------ a round

    def needs_rewards(self) -> bool:
        """Whether the next round begins with a reward pass."""
        return self.strategy.needs_rewards(self.round)

    def draw_probes(self) -> Probes:
        """Collective: the next round's probes, pure in (seed, round), equal on every rank. Each rank reads its slice."""
        attributes = {agent.name: agent.attribute for agent in self.agents}
        part, group = slice(*own_slice(self.pool, self.topology)), self.topology.group("control")

        def join(rows: np.ndarray) -> np.ndarray:
            return np.concatenate(ragged_all_gather(rows, group))

        return draw_probes(self.pool, self.strategy.learning.probes, attributes, self.seed, self.round, part, join)

    def decide(
        self, rewards: RoundRewards | None, uses: np.ndarray, budget: int, step: int, consumed_tokens: int
    ) -> tuple[np.ndarray, DecisionRecord | None]:
        """Collective: decide the next round. Returns the ordered ids, int64 [k], on all ranks and the record on rank 0.

        Args:
            rewards: of `draw_probes()`, equal on every rank; None in rounds that need none.
            uses: int, the ledger's use counts of this rank's slice (`own_slice`).
            budget: tokens to cover.

        Raises:
            ValueError: rewards missing or not asked for, not finite; budget not positive; scores not finite.
            RankFailedError: when another rank raised.
            ReplicaMismatchError: when ranks hold different rewards, or (SelectionMismatchError) received different ids.
        """
        seconds = dict(rewards.seconds) if rewards else {}
        error = None
        if self.needs_rewards() != (rewards is not None):
            error = ValueError(
                f"round {self.round} of selection {self.strategy.name!r} needs {'rewards' if rewards is None else 'no rewards'}"
            )
        raise_together(error, self.topology, "starting the round")
        agent_rewards = {}
        if rewards is not None:
            with _timed(seconds, "update"):
                agent_rewards = self._learn(rewards)
        with _timed(seconds, "decision"):
            decision = choose(
                self.strategy.recipe(rewards is not None, self.agents),
                self._limits,
                Draw(self.seed, self.round),
                budget,
                self.pool,
                self.agents,
                self.theta,
                uses,
                self.topology,
                self._piece,
                lambda line: self._progress(f"round {self.round}: {line}"),
            )
        with _timed(seconds, "exchange"):
            ids = broadcast_decision(self.round, decision.ids if decision else None, self.topology)
        record = None
        if decision is not None:
            record = self._record(decision, rewards, agent_rewards, budget, step, consumed_tokens, seconds)
            self._progress(f"round {self.round}: {len(ids)} samples with {decision.tokens} tokens chosen")
        self._tell(ids)
        self.round, self.pending = self.round + 1, ids
        return ids, record

    def _tell(self, ids: np.ndarray) -> None:
        """Collective: agents that want to know hear what was chosen, after it was recorded."""
        hearing = [agent for agent in self.agents if isinstance(agent, HearsDecisions)]
        if not hearing:
            return
        error = None
        try:
            view = self.pool.view(self.pool.positions_of(ids))
            for agent in hearing:
                agent.chosen(view)
        except Exception as caught:  # told to the other ranks, then raised
            error = caught
        raise_together(error, self.topology, "telling the agents what was chosen")

    def _learn(self, measured: RoundRewards) -> dict[str, float]:
        """Teach every agent and update theta; returns R_A by agent."""
        control, positions = self.topology.group("control"), measured.probes.positions
        told = np.array([*measured.references.values(), -1.0 if measured.scale is None else measured.scale], np.float64)
        fingerprint = digest(positions, np.asarray(measured.rewards, np.float64), np.asarray(measured.targets, np.int64), told)
        assert_equal_on_ranks(fingerprint, control, f"the rewards of round {self.round} (hash)")
        self._progress(f"round {self.round}: {len(self.agents)} agents learn from {len(positions)} probes")
        learning, targets, importance = self.strategy.learning, measured.targets, measured.probes.importance
        scaled = scale_rewards(
            measured.rewards, targets, importance, learning.rule.scale, self.pool.ids[positions], measured.scale
        )
        learned, scale = self._attributed(scaled, positions, targets * importance, measured.scale is None)
        spread = np.ptp(measured.rewards)
        self._errors = {name: e * np.ptp(scaled) / (spread * scale) for name, e in measured.errors.items() if spread * scale > 0}
        values, chosen = {}, self.pool.view(self.pool.positions_of(self.pending)) if len(self.pending) else None
        for agent in self.agents:
            own = measured.probes.of_agent(agent.name)
            view = self.pool.view(positions[own])
            learns = ProbeRewards(view, learned[agent.name][own], targets[own], importance[own], measured.references, chosen)
            reward = agent.learn(learns)
            values[agent.name] = checked_reward(agent, reward)
        theta = learning.collaboration.update(self.theta, np.array(list(values.values())))
        self.theta = broadcast_array(theta, control, np.float64)  # rank 0's, whatever the last bit of exp() is elsewhere
        return values

    def _attributed(
        self, rewards: np.ndarray, positions: np.ndarray, counted: np.ndarray, rescaled: bool
    ) -> tuple[dict[str, np.ndarray], float]:
        """(what each agent learns from, float64 [n]; by what the rewards were divided: 1 if they are not to be rescaled)."""
        single = [agent for agent in self.agents if sees_one_attribute(agent)]
        if self.strategy.learning.attribution == "marginal" or not single:
            return {agent.name: rewards for agent in self.agents}, 1.0
        attributes = list(dict.fromkeys(agent.attribute for agent in single))
        view = self.pool.view(positions)
        codes, sizes = [view.codes(a) for a in attributes], [len(view.labels(a)) for a in attributes]
        parts, scale = own_parts(codes, sizes, rewards, counted)
        scale = scale if rescaled else 1.0
        parts, whole = (v / scale if scale > 0 else np.zeros_like(v) for v in (parts, rewards))
        by_attribute = dict(zip(attributes, parts))
        return {a.name: by_attribute[a.attribute] if sees_one_attribute(a) else whole for a in self.agents}, scale

    # ------------------------------------------------------------ the record

    def _record(
        self,
        decision: Decision,
        measured: RoundRewards | None,
        agent_rewards: dict[str, float],
        budget: int,
        step: int,
        consumed_tokens: int,
        seconds: dict[str, float],
    ) -> DecisionRecord:
        labels = {}
        for agent in self.agents:
            records = agent.describe()
            if measured is None:  # what was learned in an earlier round is not this round's
                records = [dataclasses.replace(r, reward_mean=None, reward_se=None, probes=0, probe_tokens=0) for r in records]
            elif agent.name in self._errors:
                errors = self._errors[agent.name]
                records = [
                    r if r.reward_se is None else dataclasses.replace(r, reward_se=float(e)) for r, e in zip(records, errors)
                ]
            labels[agent.name] = self._with_chosen_share(records, agent.attribute, decision)
        seen = {agent.attribute for agent in self.agents}
        for attribute in self.pool.attributes:  # the mix of every attribute, whether an agent sees it or not
            if attribute not in seen:
                if attribute not in self._shares:
                    self._shares[attribute] = token_shares(self.pool, attribute).tolist()
                shares = zip(self.pool.labels(attribute), self._shares[attribute])
                records = [LabelRecord(label, share, pool_share=share) for label, share in shares]
                labels[attribute] = self._with_chosen_share(records, attribute, decision)
        return DecisionRecord(
            round=self.round,
            step=step,
            consumed_tokens=consumed_tokens,
            selection=self.strategy.name,
            theta={name: float(v) for name, v in zip(self.names, self.theta)},
            agent_rewards=agent_rewards,
            labels=labels,
            chosen=len(decision.ids),
            chosen_tokens=decision.tokens,
            budget_tokens=int(budget),
            reused=decision.reused,
            hash=DecisionHeader.of(self.round, decision.ids).hash,
            notes=[*decision.notes, *(measured.notes if measured else ())],
            direction=dict(measured.direction) if measured else {},
            seconds=seconds,
            states={agent.name: agent.state() for agent in self.agents},
        )

    def _with_chosen_share(self, records: list[LabelRecord], attribute: str, decision: Decision) -> list[LabelRecord]:
        codes, lengths = self.pool.codes(attribute)[decision.positions], self.pool.lengths[decision.positions]
        tokens = np.bincount(codes, weights=lengths, minlength=len(records))
        return [dataclasses.replace(r, chosen_share=float(v)) for r, v in zip(records, tokens / tokens.sum())]

    # ------------------------------------------------------------ checkpoint

    def state(self) -> dict[str, Any]:
        """JSON state. The pending ids may be many: they are saved as an array beside it, and vouched for here."""
        header = DecisionHeader.of(self.round - 1, self.pending)
        return {
            "selection": self.strategy.name,
            "seed": self.seed,
            "round": self.round,
            "theta": dict(zip(self.names, self.theta.tolist())),
            "agents": {agent.name: agent.state() for agent in self.agents},
            "pending": {"count": header.count, "hash": header.hash},
        }

    def load_state(self, state: dict[str, Any], pending: np.ndarray) -> None:
        """Inverse of `state`; `pending` are the ids that were pending.

        Raises:
            ValueError: if the state is of another selection, seed or set of agents, or `pending` is not what it vouches for.
        """
        for key, mine in (("selection", self.strategy.name), ("seed", self.seed)):
            if state[key] != mine:
                raise ValueError(f"the checkpoint's {key} is {state[key]!r}, this run's is {mine!r}; resume with the same one")
        if list(state["theta"]) != self.names:
            raise ValueError(
                f"the checkpoint's agents are {list(state['theta'])}, this run's are {self.names}; resume with the same agents"
            )
        pending = np.ascontiguousarray(pending, dtype=np.int64)
        header = DecisionHeader.of(state["round"] - 1, pending)
        if (header.count, header.hash) != (state["pending"]["count"], state["pending"]["hash"]):
            raise ValueError(
                f"{header.count} pending ids were given that are not the {state['pending']['count']} of round "
                f"{state['round'] - 1} in the checkpoint; its files are mixed or damaged"
            )
        for agent in self.agents:
            agent.load_state(state["agents"][agent.name])
        self.theta = np.array([state["theta"][name] for name in self.names], dtype=np.float64)
        self.round, self.pending = state["round"], pending


@contextmanager
def _timed(seconds: dict[str, float], phase: str):
    """Add the wall seconds of the block to its phase; for the record only, nothing is decided by time."""
    start = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
