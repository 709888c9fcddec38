"""Shared by the tests of the replica guard: models on a grid of ranks without an optimizer, batches, and ways to break them."""

from types import SimpleNamespace

import numpy as np
import torch
from model_cases import small_batch, small_config
from topologies import topology as topology_of

from mads.data.batch import PackedBatch
from mads.data.loader import StepBatch
from mads.layout import REPLICATED, Layout, mark, named_logical_parameters
from mads.model.decoder import Decoder
from mads.model.placement import Placement

ROW_PARALLEL, NORM, EMBEDDING = "layers.1.mlp.down.weight", "layers.0.mlp_norm.weight", "embedding.weight"


def decoder_engine(sizes, zero_stage=1):
    """What the guard reads of an engine, around a whole decoder on this rank's place of the grid."""
    topology = topology_of(**sizes)
    module = Decoder(small_config(), Placement(tp=topology.group("tp")), seed=1)
    return _engine(topology, named_logical_parameters(module), zero_stage)


def stages_engine(sizes):
    """First and last stage of a pipeline that share the embedding's weight; stages between hold neither."""
    topology, parameters = topology_of(**sizes), []
    generator = torch.Generator().manual_seed(topology.coordinate("tp"))
    shared = torch.randn(8, 4, generator=generator)
    if topology.is_first_stage or topology.is_last_stage:
        copy = not topology.is_first_stage
        parameters.append(mark(torch.nn.Parameter(shared.clone()), Layout(0), EMBEDDING, copy=copy))
    own = f"layers.{topology.coordinate('pp')}.norm.weight"
    parameters.append(mark(torch.nn.Parameter(torch.ones(4) + topology.coordinate("pp")), REPLICATED, own))
    return _engine(topology, sorted((p.mads_name, p) for p in parameters), 1)


def _engine(topology, parameters, zero_stage):
    return SimpleNamespace(parameters=parameters, topology=topology, zero_stage=zero_stage, device=torch.device("cpu"))


def step_batch(replica, shift=0, ids=None):
    """The batch of one data-parallel rank; shift: added to one token, for a rank that read something else."""
    packed = small_batch()
    tokens = (packed.tokens + replica) % 131
    tokens[0, 0] += shift
    micro = PackedBatch(tokens, packed.labels, packed.positions, packed.segments, packed.samples)
    ids = np.arange(7) if ids is None else ids
    return StepBatch([micro], 4 * micro.valid_tokens, ids, ids, 40)


def flip(engine, name, place=3, bit=0):
    """Change one bit of a float32 parameter; the same call again takes it back."""
    parameter = dict(engine.parameters)[name]
    bits = parameter.data.view(-1).view(torch.int32)
    bits[place % bits.numel()] ^= 1 << bit
