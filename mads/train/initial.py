"""train.init_from: a fresh run that begins with the weights of a folder of LlamaForCausalLM (docs/export.md), at any layout. The
moments are zero and the step is 0, as with start weights that are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from mads import collectives
from mads.checkpoint.tensors import local_shape, read_piece
from mads.config.compose import ConfigError
from mads.data.schema import DataError
from mads.export.folder import LlamaFolder, tokenizer_problem
from mads.layout import layout_of
from mads.topology import Topology


def initial_weights(config: DictConfig, topology: Topology, say: Callable[[str], None]) -> LlamaFolder:
    """The folder under train.init_from, opened on every rank. Collective; done before the model is built.

    Args:
        say: shows a message; rank 0's is used.

    Raises:
        ConfigError: on every rank: it cannot be read, is of another model than `model`, or of another tokenizer than the data.
    """
    folder, error = None, None
    try:
        folder = LlamaFolder.open(config.train.init_from)
        if topology.rank == 0:
            _check(config, folder, say)
    except (ConfigError, DataError, OSError) as caught:  # told to the other ranks, then raised
        error = f"{caught}"
    errors = [e for e in collectives.all_gather_json(error, topology.group("control")) if e]
    if errors:
        raise ConfigError(f"train.init_from={config.train.init_from}: {errors[0]}")
    return folder


def _check(config: DictConfig, folder: LlamaFolder, say: Callable[[str], None]) -> None:
    if other := folder.differences(config.model):
        raise ConfigError(f"the configuration has another model; give {' '.join(other)}")
    problem, note = tokenizer_problem(folder.path, Path(config.data.dir))
    if problem:
        raise ConfigError(problem)
    if note:
        say(note)


def load_initial(folder: LlamaFolder, engine, topology: Topology) -> None:
    """Put the weights in place, this rank's shards of its stage, one tensor at a time. Collective."""
    place, count = topology.coordinate("tp"), topology.size("tp")
    for name, parameter in engine.parameters:  # copies of tied weights too
        value = read_piece(folder.weights[name], layout_of(parameter), local_shape(parameter), place, count)
        engine.state.load(parameter, "weight", value.to(engine.device))
    engine.state.publish()
