"""A round's decision taken again from the run folder: the pool as the run knew it then, use counts from the decisions before, and
the agents' states from the round's record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mads.agents.base import Agent
from mads.console.choose import Asked, choose, lay_out
from mads.console.order import Draw
from mads.console.recipe import Recipe, Strategy
from mads.console.record import DecisionHeader, DecisionRecord
from mads.console.strategy import build_strategy
from mads.data.ledger import Ledger
from mads.data.packing import Packer
from mads.data.pool import Pool
from mads.data.schema import DataError
from mads.logging.decisions import decision_path, read_decision
from mads.logging.metrics import DECISIONS, METRICS, read_lines
from mads.train.growth import PoolEntry, PoolHistory
from mads.train.members import build_agent

PIECE = 1 << 18  # samples that are read at a time


class Alone:
    """What mads.topology.Topology offers, for one process without a process group."""

    rank, world_size, replica_leaders, is_replica_leader = 0, 1, (0,), True

    def group(self, name: str) -> None:
        return None

    def size(self, axis: str) -> int:
        return 1

    def coordinate(self, axis: str) -> int:
        return 0


@dataclass(frozen=True)
class Consumption:
    """How far a round was trained on.

    step: steps before the round; until: steps at its end, or as far as the run's metrics reach; over: whether it has ended
    """

    step: int
    until: int
    over: bool


@dataclass(frozen=True)
class Replay:
    """A round that was decided again, with the ids that the run folder holds.

    pool: as the run knew it in this round; entry: its line of pool.jsonl
    agents: as they were after learning; theta: float64 [A]; scored: whether the round had rewards
    uses: uint16 [n], use counts before the round
    asked: what was decided on, over the whole pool
    positions: int64 [k], places in the pool of the samples chosen, in training order
    """

    run: Path
    config: DictConfig
    record: DecisionRecord
    strategy: Strategy
    recipe: Recipe
    scored: bool
    pool: Pool
    entry: PoolEntry
    agents: Sequence[Agent]
    theta: np.ndarray
    uses: np.ndarray
    asked: Asked
    positions: np.ndarray
    consumption: Consumption

    @property
    def draw(self) -> Draw:
        return self.asked.plan.draw


def replay(run: str | Path, round_: int, data: str | Path | None = None) -> Replay:
    """Decide `round_` of the run folder `run` again.

    Args:
        data: the prepared directory, where it is not at the configuration's data.dir any more.

    Raises:
        DataError: no such run or round, a file of the run folder that is missing or damaged, other data than the run's, or a
            decision that is not the one in the run folder.
        ConfigError: an agent's class cannot be loaded.
    """
    run = Path(run)
    config, records = _read_config(run), _read_records(run)
    if round_ not in records:
        held = f"the rounds {min(records)} to {max(records)}" if records else "no round yet"
        raise DataError(f"{run} has no round {round_}: {DECISIONS} holds {held}")
    directory = config.data.dir if data is None else data
    pool, entry = _open_pool(run, directory, round_)
    uses = _uses(run, config, pool, records, round_)
    record, strategy = records[round_], build_strategy(config.selection)
    agents = _restored(run, config, strategy, pool, record)
    theta = np.array([record.theta[agent.name] for agent in agents], dtype=np.float64)
    scored = strategy.needs_rewards(round_)
    recipe = strategy.recipe(scored, agents)
    question = (recipe, strategy.limits, Draw(config.train.seed, round_), record.budget_tokens, pool, agents, theta, uses)
    decision = choose(*question, Alone(), PIECE, lambda line: None)
    recorded = _read_ids(run, round_)
    if DecisionHeader.of(round_, recorded).hash != record.hash:
        raise DataError(f"the ids in {decision_path(run, round_)} are not those that {DECISIONS} vouches for: one was changed")
    if not np.array_equal(decision.ids, recorded):
        raise DataError(_mismatch(run, directory, round_, decision.ids, recorded))
    asked, consumption = lay_out(*question, (0, len(pool))), _consumption(run, records, round_)
    return Replay(
        run,
        config,
        record,
        strategy,
        recipe,
        scored,
        pool,
        entry,
        agents,
        theta,
        uses,
        asked,
        decision.positions,
        consumption,
    )


# ---------------------------------------------------------------- the run folder


def _read_config(run: Path) -> DictConfig:
    if not run.is_dir():
        raise DataError(f"{run} is not a folder; give the run_dir of a training run")
    path = run / "config.yaml"
    if not path.is_file():
        raise DataError(f"{run} holds no config.yaml, so it is not the folder of a run that has started training")
    try:
        return OmegaConf.load(path)
    except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _read_records(run: Path) -> dict[int, DecisionRecord]:
    path = run / DECISIONS
    if not path.is_file():
        return {}
    try:
        records = [DecisionRecord.from_json(json.dumps(line)) for line in read_lines(path)]
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return {record.round: record for record in records}


def _read_ids(run: Path, round_: int) -> np.ndarray:
    path = decision_path(run, round_)
    if not path.is_file():
        raise DataError(f"{path} is missing; decisions are computed again from the ids of all earlier rounds: restore it")
    try:
        return read_decision(run, round_)
    except ValueError as error:
        raise DataError(str(error)) from error


def _open_pool(run: Path, directory: str | Path, round_: int) -> tuple[Pool, PoolEntry]:
    """The pool with the shards that the run knew in `round_`."""
    known = [entry for entry in PoolHistory.read(run).entries if entry.round <= round_]
    if not known:
        raise DataError(f"{run} holds no pool.jsonl for round {round_}: which shards the run knew is not known")
    entry = known[-1]
    try:
        pool = Pool.open(directory, shards=entry.shards)
    except DataError as error:
        raise DataError(f"{error}. If the run's data is elsewhere by now: --data DIR") from error
    if pool.fingerprint != entry.fingerprint:
        raise DataError(
            f"{directory} is other data than the run's: its first {entry.shards} shards have the fingerprint {pool.fingerprint}, "
            f"round {round_} was decided on {entry.fingerprint}; say where the run's data is: --data DIR"
        )
    return pool, entry


# ---------------------------------------------------------------- use counts


def _uses(run: Path, config: DictConfig, pool: Pool, records: Mapping[int, DecisionRecord], round_: int) -> np.ndarray:
    """Use counts before `round_`, uint16 [n]: of every earlier decision the rows that its steps took; the rest went back.

    A pool only grows at its end, so samples stand where they stood in earlier rounds.
    """
    ledger, tokens = Ledger(len(pool)), 0
    for earlier in range(round_):
        if earlier not in records or earlier + 1 not in records:
            raise DataError(f"{run / DECISIONS} lacks a line of round {earlier if earlier not in records else earlier + 1}")
        positions, lengths, packer = packed(config, pool, _read_ids(run, earlier))
        steps = records[earlier + 1].step - records[earlier].step
        taken = packer.take(steps * config.train.global_batch_size) if steps >= 0 else None
        if taken is None:
            raise DataError(f"round {earlier} of {run} cannot have been trained on for {steps} steps; {DECISIONS} was changed")
        ledger.consume(positions[taken.order])
        tokens += int(lengths[taken.order].sum(dtype=np.int64))
        if tokens != records[earlier + 1].consumed_tokens:
            raise DataError(
                f"the rounds up to {earlier} of {run} take {tokens} tokens of this data, {DECISIONS} says "
                f"{records[earlier + 1].consumed_tokens}: it is not the run's data, or the folder was changed"
            )
    return ledger.counts


def packed(config: DictConfig, pool: Pool, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, Packer]:
    """(positions, int64 [k]; lengths, int32 [k]; the packer of a decision's rows, as mads.data.loader makes it)."""
    positions = pool.positions_of(ids)
    lengths = pool.lengths[positions]
    return positions, lengths, Packer(lengths, config.data.seq_length)


def _consumption(run: Path, records: Mapping[int, DecisionRecord], round_: int) -> Consumption:
    step = records[round_].step
    if round_ + 1 in records:
        return Consumption(step, records[round_ + 1].step, True)
    lines = read_lines(run / METRICS) if (run / METRICS).is_file() else []
    steps = [line["step"] for line in lines if line.get("kind") in ("train", "eval")]
    return Consumption(step, max([step, *steps]), any(line.get("kind") == "end" for line in lines))


# ---------------------------------------------------------------- agents


def _restored(run: Path, config: DictConfig, strategy: Strategy, pool: Pool, record: DecisionRecord) -> list[Agent]:
    """The agents as they were after learning from the round's rewards."""
    if strategy.learning is None:
        return []
    agents = [build_agent(name, node, pool) for name, node in config.agents.members.items()]
    for agent in agents:
        if agent.name not in record.states or agent.name not in record.theta:
            raise DataError(
                f"{run / DECISIONS} has no state of agent {agent.name!r} in round {record.round}: the run was made by a version "
                "that did not record them"
            )
        agent.bind(pool, strategy.learning.rule)
        try:
            agent.load_state(record.states[agent.name])
        except ValueError as error:
            raise DataError(f"{run}, round {record.round}: the state of agent {agent.name!r} does not fit: {error}") from error
    return agents


def _mismatch(run: Path, directory: str | Path, round_: int, ours: np.ndarray, recorded: np.ndarray) -> str:
    differ = np.setxor1d(ours, recorded)
    what = f"{len(differ)} samples are in one of them only, the first is {int(differ[0])}" if len(differ) else "the order differs"
    return (
        f"round {round_} of {run}, decided again on {directory}, is not what the run folder holds: {len(ours)} samples against "
        f"{len(recorded)}, {what}. Labels of the data, config.yaml or decisions were changed since, or another version of mads "
        "or of the machine's mathematics decides otherwise"
    )
