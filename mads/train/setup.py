"""Builds a run's parts from its configuration, on every rank, in the order in which bad input is found cheapest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from mads.agents.base import Agent
from mads.agents.columns import PIECE, token_shares
from mads.config.compose import ConfigError
from mads.config.validate import attributes_of, precision_of
from mads.console.choose import own_slice
from mads.console.console import Console
from mads.console.exchange import raise_together
from mads.console.recipe import Learning
from mads.console.strategy import build_strategy
from mads.data.ledger import Ledger
from mads.data.loader import Loader
from mads.data.pool import Pool
from mads.data.schema import DataError, Manifest
from mads.data.tokenizer import Tokenizer
from mads.eval.heldout import HeldOut
from mads.model.compiled import check_compiler, compile_layers
from mads.model.decoder import Decoder
from mads.model.placement import Placement
from mads.model.shape import flops_per_token, parameter_count
from mads.reward.build import RoundRewarder, build_rewarder
from mads.reward.reference import ReferenceTask, load_references
from mads.reward.steps import RewardContext
from mads.topology import Topology
from mads.train.engine import Engine, TrainEngine
from mads.train.members import build_agent
from mads.train.pipeline import PipelineTrainEngine, Stage
from mads.train.pulse import Pulse
from mads.train.reward_model import EngineRewardModel


@dataclass
class Parts:
    """Everything that the loop works with; `rewarder` measures a round's probes, None for selections without agents."""

    pool: Pool
    ledger: Ledger
    loader: Loader
    console: Console
    engine: Engine
    model: EngineRewardModel
    heldout: HeldOut
    rewarder: RoundRewarder | None


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
        ConfigError: an attribute that the pool lacks, a column without values, a label that it lacks, or fewer probes than an
            agent has labels to learn about.
    """
    selection, plan = config.selection, None
    wanted = {f"selection.{key}": selection[key] for key in ("attribute", "column") if key in selection}
    strategy = build_strategy(selection)
    own = strategy.learning is not None and strategy.learning.own_agents is not None
    if own:
        wanted = {"selection.attribute": selection.attribute}
    elif strategy.learning is not None:
        plan = strategy.learning.probes
        wanted = {
            key: attribute for name, a in config.agents.members.items() for key, attribute in attributes_of(name, a).items()
        }
    bounded = {f"selection.bounds.{attribute}": attribute for attribute in selection.bounds}
    for key, attribute in (wanted | bounded).items():
        if attribute not in pool.attributes:
            remedy = "add it with `mads label`, prepare it again, or choose one of these"
            if strategy.learning is not None and not pool.manifest.references:  # what is lacking may be learned from them
                remedy = (
                    "there are no reference tasks either: prepare with data.reference_paths={TASK: FILE}, or selection=random"
                )
            has = f"{config.data.dir} has only the attributes {sorted(pool.attributes)}"
            raise ConfigError(f"{key}={attribute!r}, but {has}; {remedy}")
    if selection.name == "column":
        _check_column(config, pool)
    if selection.name == "mix":
        _check_mix(config, pool)
    for attribute, bounds in selection.bounds.items():
        if not isinstance(bounds, Mapping):  # a part of natural shares, which every pool can hold
            continue
        labels = pool.labels(attribute)
        if unknown := sorted(set(bounds) - set(labels)):
            raise ConfigError(f"selection.bounds.{attribute} names {unknown}, but the labels are {list(labels)}")
        most = sum(bounds[label][1] if label in bounds else 1.0 for label in labels)
        if most < 1 - 1e-9:
            raise ConfigError(
                f"selection.bounds.{attribute}: the greatest shares of its {len(labels)} labels add up to {most:.4g}, so no "
                "decision can be filled; raise them to 1 in sum"
            )
    if own:
        _check_mixing(selection, np.count_nonzero(token_shares(pool, selection.attribute)), config.data.dir)
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


def _check_column(config: DictConfig, pool: Pool) -> None:
    column, selector = config.selection.column, config.selection.selector
    try:
        values = pool.values(column)
    except DataError as error:
        raise ConfigError(f"selection.column={column!r} of {config.data.dir}: {error}") from error
    if selector == "proportional":
        wrong = sum(int((values[i : i + PIECE] <= 0).sum()) for i in range(0, len(pool), PIECE))
        if wrong:
            raise ConfigError(
                f"selection.selector=proportional needs positive values, but {wrong} of the {len(pool)} samples in "
                f"{config.data.dir} have a {column!r} of 0 or less; use selection.selector=gumbel with a temperature"
            )


def _check_mix(config: DictConfig, pool: Pool) -> None:
    attribute, shares = config.selection.attribute, config.selection.shares
    labels, held = pool.labels(attribute), token_shares(pool, attribute)
    if unknown := sorted(set(shares) - set(labels)):
        raise ConfigError(f"selection.shares names {unknown}, but the labels of {attribute!r} are {list(labels)}")
    if empty := [label for label, share in zip(labels, held) if share == 0 and shares.get(label, 0) > 0]:
        raise ConfigError(f"selection.shares gives shares to {empty}, of which {config.data.dir} holds no sample; leave them out")


def _check_mixing(selection: Any, labels: int, directory: str) -> None:
    """Rules between an online mixing selection and the number of labels that the pool holds."""
    if selection.probes < labels:
        raise ConfigError(
            f"selection.probes={selection.probes}, but {selection.attribute!r} has {labels} labels in {directory}, each of which "
            f"needs one; set selection.probes to at least {labels}"
        )
    floor = selection.get("floor", 0.0)
    if floor * labels > 1:
        raise ConfigError(
            f"selection.floor={floor} for each of the {labels} labels of {selection.attribute!r} is more than 1 in sum; at most "
            f"{1 / labels:.3g}"
        )


def build_parts(
    config: DictConfig,
    topology: Topology,
    device: torch.device,
    progress: Callable[[str], None],
    shards: tuple[int | None, int | None] = (None, None),
    pulse: Pulse | None = None,
) -> Parts:
    """Open the data, build the model and the engine, the agents and the console.

    Args:
        shards: how many of the training and of the held-out part to open; None: all.
        pulse: see `build_engine`.

    Raises:
        ConfigError, DataError: before any training, with a remedy.
        RankFailedError: another rank could not read its data.
    """
    strategy = build_strategy(config.selection)
    inputs, error = None, None
    try:
        if config.train.verify_data and topology.rank == 0:
            Manifest.read(config.data.dir, verify=True)
        inputs = _open_inputs(config, shards, strategy.learning)
    except (ConfigError, DataError) as caught:
        error = caught
    raise_together(error, topology, "opening the data")
    pool, heldout_pool, references, agents = inputs
    seq_length, seed = config.data.seq_length, config.train.seed
    console = Console(topology, pool, agents, strategy, seed, progress=progress)
    dtype = torch.bfloat16 if precision_of(config, device.type == "cuda") == "bf16" else torch.float32
    if config.train.compile:
        try:
            check_compiler(device)
        except RuntimeError as problem:
            error = ConfigError(f"train.compile=true: {problem}")
        raise_together(error, topology, "trying the compiler")
    progress(f"building a model of {parameter_count(config.model):,} parameters")  # a large one takes minutes
    engine = build_engine(config, topology, dtype, device, pulse)
    model = EngineRewardModel(engine)
    rewarder = None
    if strategy.learning is not None:
        sizes = {name: shape.numel() for name, shape in engine.logical_shapes.items()}
        flops = flops_per_token(config.model, seq_length)
        context = RewardContext(model, references, topology, seq_length, seed, config.reward.rows_per_batch, flops)
        rewarder = build_rewarder(context, sizes, config.optim, config.reward, strategy.learning.signal)
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
        (lambda batch: batch.pinned(device)) if device.type == "cuda" else None,
    )
    return Parts(pool, Ledger(len(pool), *own_slice(pool, topology)), loader, console, engine, model, heldout, rewarder)


def build_engine(
    config: DictConfig, topology: Topology, dtype: torch.dtype, device: torch.device, pulse: Pulse | None = None
) -> Engine:
    """The model on this rank's place in the grid, with its engine, whose work `pulse` counts."""
    placement, seed = Placement.of(topology, config.parallel), config.train.seed
    settings = topology, config.parallel, config.optim, config.train, dtype, device, pulse
    shape = OmegaConf.to_object(config.model)  # read in every forward, and a DictConfig takes 0.1 ms for a few keys
    if topology.size("pp") > 1:
        return PipelineTrainEngine(Stage(shape, topology, placement, config.parallel, seed, dtype), *settings)
    model = Decoder(shape, placement, seed=seed).to(device)
    if config.train.compile:
        compile_layers(model)
    return TrainEngine(model, *settings)


def _open_inputs(
    config: DictConfig, shards: tuple[int | None, int | None], learning: Learning | None
) -> tuple[Pool, Pool, list[ReferenceTask], list[Agent]]:
    """What this rank reads, without a word to the others: the pool, the held-out pool, the reference tasks, the agents."""
    pool = Pool.open(config.data.dir, shards=shards[0])
    check_data(config, pool)
    check_selection(config, pool)
    references = _references(config, pool, learning is not None and learning.signal != "loss")
    agents = []
    if learning is not None and learning.own_agents is not None:
        agents = learning.own_agents()
    elif learning is not None:
        agents = [build_agent(name, node, pool) for name, node in config.agents.members.items()]
    return pool, Pool.open(config.data.dir, "heldout", shards[1]), references, agents


def _references(config: DictConfig, pool: Pool, needed: bool) -> list[ReferenceTask]:
    tasks = sorted(pool.manifest.references)
    if not tasks and not needed:
        return []
    tokenizer = Tokenizer.open(Path(config.data.dir) / pool.manifest.tokenizer["file"], pool.manifest.tokenizer["kind"])
    return load_references(config.data.dir, tasks, tokenizer, config.data.seq_length)
