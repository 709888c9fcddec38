"""Builds a run's parts from its configuration, on every rank, in the order in which bad input is found cheapest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from mads.agents.base import Agent
from mads.agents.check import check_agent
from mads.agents.columns import token_shares
from mads.config.compose import ConfigError
from mads.config.factory import build
from mads.config.validate import attributes_of, precision_of
from mads.console.choose import own_slice
from mads.console.console import Console
from mads.console.exchange import raise_together
from mads.console.strategy import build_strategy
from mads.data.ledger import Ledger
from mads.data.loader import Loader
from mads.data.pool import Pool
from mads.data.schema import DataError
from mads.data.tokenizer import Tokenizer
from mads.eval.heldout import HeldOut
from mads.model.decoder import Decoder
from mads.model.placement import Placement
from mads.model.shape import parameter_count
from mads.reward.influence import Rewarder
from mads.reward.reference import ReferenceTask, load_references
from mads.topology import Topology
from mads.train.engine import Engine, TrainEngine
from mads.train.pipeline import PipelineTrainEngine, Stage
from mads.train.reward_model import EngineRewardModel


@dataclass
class Parts:
    """Everything that the loop works with; `rewarder` is None for selections without agents."""

    pool: Pool
    ledger: Ledger
    loader: Loader
    console: Console
    engine: Engine
    model: EngineRewardModel
    heldout: HeldOut
    rewarder: Rewarder | None


def check_data(config: DictConfig, pool: Pool) -> None:
    """Rules between the configuration and the prepared data.

    Raises:
        ConfigError: with the numbers and the remedy.
    """
    manifest = pool.manifest
    if manifest.seq_length > config.data.seq_length:
        raise ConfigError(
            f"data.seq_length={config.data.seq_length}, but {config.data.dir} was prepared with samples of up to "
            f"{manifest.seq_length} tokens; prepare it again, or train with data.seq_length={manifest.seq_length}"
        )
    if manifest.tokenizer["vocab_size"] > config.model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {config.data.dir} has {manifest.tokenizer['vocab_size']} pieces, more than "
            f"model.vocab_size={config.model.vocab_size}; choose a model with a larger vocabulary or prepare again"
        )
    batch, held = config.train.global_batch_size * config.data.seq_length, pool.total_tokens
    if batch > held:
        raise ConfigError(
            f"one global batch takes {batch} tokens (train.global_batch_size x data.seq_length), the whole pool has {held}; "
            "prepare more data or use a smaller batch"
        )


def check_selection(config: DictConfig, pool: Pool) -> None:
    """Rules between the selection and the attributes of the pool, so that a run does not end at its first decision.

    Raises:
        ConfigError: an attribute that the pool lacks, or fewer probes than an agent has labels to learn about.
    """
    selection, plan = config.selection, None
    wanted = {"selection.attribute": selection.attribute} if selection.name == "stratified" else {}
    strategy = build_strategy(selection)
    if strategy.learning is not None:
        plan = strategy.learning.probes
        wanted = {
            key: attribute for name, a in config.agents.members.items() for key, attribute in attributes_of(name, a).items()
        }
    bounded = {f"selection.bounds.{attribute}": attribute for attribute in selection.bounds}
    for key, attribute in (wanted | bounded).items():
        if attribute not in pool.attributes:
            raise ConfigError(
                f"{key}={attribute!r}, but {config.data.dir} has only the attributes {sorted(pool.attributes)}; "
                "prepare it again with that attribute, or choose one of these"
            )
    for attribute, bounds in selection.bounds.items():
        labels = pool.labels(attribute)
        if unknown := sorted(set(bounds) - set(labels)):
            raise ConfigError(f"selection.bounds.{attribute} names {unknown}, but the labels are {list(labels)}")
        most = sum(bounds[label][1] if label in bounds else 1.0 for label in labels)
        if most < 1 - 1e-9:
            raise ConfigError(
                f"selection.bounds.{attribute}: the greatest shares of its {len(labels)} labels add up to {most:.4g}, so no "
                "decision can be filled; raise them to 1 in sum"
            )
    if plan is None:
        return
    key = "selection.probes" if plan.shared else "selection.probes_per_agent"
    # An agent draws by its first attribute; one whose configuration names none is asked in the first round.
    drawn = {name: next(iter(attributes_of(name, a).values()), None) for name, a in config.agents.members.items()}
    held = {a: np.count_nonzero(token_shares(pool, a)) for a in drawn.values() if a is not None}
    for (name, attribute), quota in zip(drawn.items(), plan.quota(len(drawn))):
        labels = held.get(attribute, 0)
        if quota < labels:
            least = max(held.values()) * (len(drawn) if plan.shared else 1)
            raise ConfigError(
                f"{key}={plan.count} leaves {quota} probes for agents.members.{name}, but {attribute!r} has {labels} labels "
                f"in {config.data.dir}, each of which needs one; set {key} to at least {least}"
            )


def build_parts(
    config: DictConfig,
    topology: Topology,
    device: torch.device,
    progress: Callable[[str], None],
    shards: tuple[int | None, int | None] = (None, None),
) -> Parts:
    """Open the data, build the model and the engine, the agents and the console.

    Args:
        shards: how many of the training and of the held-out part to open; None: all.

    Raises:
        ConfigError, DataError: before any training, with a remedy.
        RankFailedError: another rank could not read its data.
    """
    strategy = build_strategy(config.selection)
    inputs, error = None, None
    try:
        inputs = _open_inputs(config, shards, needs_rewards=strategy.learning is not None)
    except (ConfigError, DataError) as caught:
        error = caught
    raise_together(error, topology, "opening the data")
    pool, heldout_pool, references, agents = inputs
    seq_length, seed = config.data.seq_length, config.train.seed
    console = Console(topology, pool, agents, strategy, seed, progress=progress)
    dtype = torch.bfloat16 if precision_of(config, device.type == "cuda") == "bf16" else torch.float32
    progress(f"building a model of {parameter_count(config.model):,} parameters")  # a large one takes minutes
    engine = build_engine(config, topology, dtype, device)
    model = EngineRewardModel(engine)
    rewarder = None
    if strategy.learning is not None:
        sizes = {name: shape.numel() for name, shape in engine.logical_shapes.items()}
        rewarder = Rewarder(
            model, references, topology, sizes, config.optim.beta2, config.optim.eps, seq_length, seed, config.reward
        )
    heldout = HeldOut(
        model,
        heldout_pool,
        references,
        topology,
        seq_length,
        config.train.eval_samples,
        config.train.micro_batch_size,
        further=tuple(config.train.eval_attributes),
    )
    loader = Loader(
        pool,
        seq_length,
        config.train.global_batch_size,
        config.train.micro_batch_size,
        topology.coordinate("dp"),
        topology.size("dp"),
        config.train.prefetch,
        config.train.loader_workers,
    )
    return Parts(pool, Ledger(len(pool), *own_slice(pool, topology)), loader, console, engine, model, heldout, rewarder)


def build_engine(config: DictConfig, topology: Topology, dtype: torch.dtype, device: torch.device) -> Engine:
    """The model on this rank's place in the grid, with its engine."""
    placement, seed = Placement.of(topology, config.parallel), config.train.seed
    settings = topology, config.parallel, config.optim, config.train, dtype, device
    if topology.size("pp") > 1:
        return PipelineTrainEngine(Stage(config.model, topology, placement, config.parallel, seed, dtype), *settings)
    return TrainEngine(Decoder(config.model, placement, seed=seed).to(device), *settings)


def _open_inputs(
    config: DictConfig, shards: tuple[int | None, int | None], needs_rewards: bool
) -> tuple[Pool, Pool, list[ReferenceTask], list[Agent]]:
    """What this rank reads, without a word to the others: the pool, the held-out pool, the reference tasks, the agents."""
    pool = Pool.open(config.data.dir, shards=shards[0])
    check_data(config, pool)
    check_selection(config, pool)
    references = _references(config, pool, needs_rewards)
    agents = []
    if needs_rewards:
        agents = [_agent(name, node) for name, node in config.agents.members.items()]
    return pool, Pool.open(config.data.dir, "heldout", shards[1]), references, agents


def _agent(name: str, node: Mapping[str, Any]) -> Agent:
    where = f"agents.members.{name}"
    agent = build(node, where, name=name)
    try:
        return check_agent(agent, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _references(config: DictConfig, pool: Pool, needed: bool) -> list[ReferenceTask]:
    tasks = sorted(pool.manifest.references)
    if not tasks and not needed:
        return []
    tokenizer = Tokenizer.open(Path(config.data.dir) / pool.manifest.tokenizer["file"], pool.manifest.tokenizer["kind"])
    return load_references(config.data.dir, tasks, tokenizer, config.data.seq_length)
