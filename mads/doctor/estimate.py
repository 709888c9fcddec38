"""The memory of the fullest GPU of a layout, by part and by moment of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mads.config.parallel_rules import replica_size
from mads.config.validate import MIXING, STEPPING, WITHOUT_AGENTS, precision_of
from mads.doctor.activations import (
    FLOAT32,
    Setting,
    entry_bytes,
    exit_bytes,
    layer_bytes,
    layer_work_bytes,
    loss_work_bytes,
    shared_bytes,
)
from mads.doctor.shares import Share, padded_vocabulary, shares
from mads.doctor.states import States, model_states, reward_bytes

GIB = 2**30
# Allowances, not measurements: CUDA's context, kernels and NCCL's buffers; what the allocator cannot use of its blocks.
CONTEXT_BYTES, FRAGMENTATION = int(1.5 * GIB), 0.05


@dataclass(frozen=True)
class Cluster:
    """nodes x gpus_per_node equal GPUs; memory in bytes. host_memory: of one node, 0 = not known."""

    nodes: int
    gpus_per_node: int
    gpu_memory: int
    host_memory: int = 0

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Batch:
    """replicas: data-parallel ranks; passes: micro-batches of one rank in one step; tokens: of the global batch; bubble: share of
    a step that a pipeline stage waits (Narayanan et al. 2021, arXiv 2104.04473, section 2.2)."""

    replicas: int
    passes: int
    tokens: int
    bubble: float


@dataclass(frozen=True)
class Estimate:
    """Bytes of one GPU of one pipeline stage.

    parts: what lies there when the backward pass begins, in order; moments: moment -> total, allowances included.
    """

    share: Share
    in_flight: int
    states: States
    parts: dict[str, int]
    moments: dict[str, int]
    host: int

    @property
    def peak(self) -> int:
        return max(self.moments.values())

    @property
    def worst_moment(self) -> str:
        return max(self.moments, key=self.moments.__getitem__)


def batch_of(config, world_size: int) -> Batch:
    """The arithmetic of a step; the configuration must be valid."""
    p, t = config.parallel, config.train
    replicas, stages = world_size // replica_size(p), p.pipeline_model_parallel_size
    passes = t.global_batch_size // (t.micro_batch_size * replicas)
    bubble = (stages - 1) / (passes + stages - 1)
    return Batch(replicas, passes, t.global_batch_size * config.data.seq_length, bubble)


def kernel_of(config) -> str:
    """The attention kernel that the estimate assumes on a GPU: flash | fused | math (mads.doctor.activations.Setting). `auto`
    takes flash-attn where it can run; with grouped queries and a mask it is not sure that SDPA has a fused kernel."""
    m, bf16 = config.model, precision_of(config, True) == "bf16"
    head = m.hidden_size // m.num_attention_heads
    flash = bf16 and head % 8 == 0 and head <= 256 and m.attention in ("auto", "flash")
    if flash:
        return "flash"
    return "fused" if m.num_attention_heads == m.num_key_value_heads else "math"


def setting_of(config, rows: int | None = None) -> Setting:
    """What activations depend on. rows: in place of the micro-batch."""
    m, p = config.model, config.parallel
    return Setting(
        hidden=m.hidden_size,
        heads=m.num_attention_heads,
        kv_heads=m.num_key_value_heads,
        ffn=m.ffn_hidden_size,
        vocabulary=padded_vocabulary(config),
        rows=config.train.micro_batch_size if rows is None else rows,
        length=config.data.seq_length,
        element=2 if precision_of(config, True) == "bf16" else 4,
        tp=p.tensor_model_parallel_size,
        cp=p.context_parallel_size,
        sequence_parallel=p.sequence_parallel,
        recompute=p.activation_checkpointing,
        kernel=kernel_of(config),
        hidden_dropout=m.hidden_dropout,
        attention_dropout=m.attention_dropout,
    )


def estimates(config, cluster: Cluster) -> list[Estimate]:
    """One for each pipeline stage, of a valid configuration."""
    p, batch = config.parallel, batch_of(config, cluster.world_size)
    ranks = batch.replicas * p.context_parallel_size
    bf16 = precision_of(config, True) == "bf16"
    training, rewarding = setting_of(config), None
    mode = "loss" if config.selection.name in MIXING else config.reward.mode
    if config.selection.name not in WITHOUT_AGENTS:  # rewards run without dropout
        rewarding = replace(setting_of(config, config.reward.rows_per_batch), hidden_dropout=0.0, attention_dropout=0.0)
    result = []
    for share in shares(config):
        in_flight = min(batch.passes, p.pipeline_model_parallel_size - share.stage)
        states = model_states(share.parameters, share.largest, ranks, p, bf16)
        kept = _kept(training, share, in_flight)
        parts = {
            "weights": states.weights,
            "gradients": states.gradients,
            "optimizer states": states.optimizer,
            "weights that ZeRO 3 gathers": states.gathered,
            "buckets of ZeRO": states.buckets,
            **kept,
            "CUDA, NCCL and kernels": CONTEXT_BYTES,
        }
        resident = states.resident + CONTEXT_BYTES
        moments = {
            "backward": sum(parts.values()),
            "optimizer step": resident + states.buckets + states.step + (states.gathered if p.zero_stage == 3 else 0),
            "start": _start_bytes(share, p.zero_stage, bf16) + CONTEXT_BYTES,
        }
        if rewarding is not None and mode in STEPPING:
            # A copy of all that steps change, beside a backward pass of the rewards' batches or the step itself.
            busy = states.gathered + states.buckets + sum(_kept(rewarding, share, in_flight).values())
            moments["reward steps"] = resident + states.weights + states.optimizer + max(busy, states.buckets + states.step)
        if rewarding is not None and mode not in ("displacement", "group", "loss"):
            # The fullest moment is that of the reference gradient, whose batches leave gradients of their own.
            vectors = reward_bytes(share.parameters, ranks, p.zero_stage)
            gradient = vectors + training.element * share.parameters // (ranks if p.zero_stage == 3 else 1)
            activations = sum(_kept(rewarding, share, p.pipeline_model_parallel_size - share.stage).values())
            moments["reward round"] = resident + states.gathered + states.buckets + gradient + activations
        moments = {name: int(total + FRAGMENTATION * (total - CONTEXT_BYTES)) for name, total in moments.items()}
        parts["fragmentation"] = moments["backward"] - sum(parts.values())
        host = cluster.gpus_per_node * max(states.host, FLOAT32 * share.parameters)  # the model is drawn there, in float32
        result.append(Estimate(share, in_flight, states, {k: v for k, v in parts.items() if v}, moments, host))
    return result


def _start_bytes(share: Share, zero_stage: int, bf16: bool) -> int:
    """The model comes in float32 and is cast tensor by tensor; then ZeRO copies the weights into flat ones."""
    copies = 1 if bf16 or zero_stage == 0 else 2
    return FLOAT32 * (copies * share.parameters + share.largest)


def _kept(s: Setting, share: Share, in_flight: int) -> dict[str, int]:
    """Activations at the fullest moment: every micro-batch in flight has left its layers', the last stage's loss is at work."""
    layers = in_flight * (share.layers * layer_bytes(s) + shared_bytes(s) + (entry_bytes(s) if share.first else 0))
    loss, work = (exit_bytes(s) + loss_work_bytes(s) if share.last else 0), (layer_work_bytes(s) if share.layers else 0)
    return {
        "activations of the layers": layers,
        "head and loss": loss if loss >= work else exit_bytes(s) if share.last else 0,
        "backward of one layer": 0 if loss >= work else work,
    }


def fullest(all_stages: list[Estimate]) -> Estimate:
    """The stage whose GPU needs the most."""
    return max(all_stages, key=lambda e: e.peak)
