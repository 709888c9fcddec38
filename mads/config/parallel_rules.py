"""Rules of how ranks share the work: sizes that must divide each other, and what DeepSpeed accepts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omegaconf import OmegaConf

# What may be given in parallel.zero_options -> (kind of its value, ZeRO stages that read it). The rest of DeepSpeed's
# zero_optimization is set by mads, deprecated, or made for what mads does not do (quantised weights, experts, another optimizer).
ZERO_OPTIONS = {
    "overlap_comm": (bool, (1, 2, 3)),
    "contiguous_gradients": (bool, (1, 2, 3)),
    "reduce_scatter": (bool, (1, 2, 3)),
    "reduce_bucket_size": (int, (1, 2, 3)),
    "allgather_partitions": (bool, (1, 2)),
    "allgather_bucket_size": (int, (1, 2)),
    "round_robin_gradients": (bool, (1, 2)),
    "sub_group_size": (int, (3,)),
    "stage3_max_live_parameters": (int, (3,)),
    "stage3_max_reuse_distance": (int, (3,)),
    "stage3_prefetch_bucket_size": (int, (3,)),
    "stage3_param_persistence_threshold": (int, (3,)),
}
SET_BY_MADS = {
    "stage": "parallel.zero_stage",
    "offload_optimizer": "parallel.offload_optimizer",
    "offload_param": "parallel.offload_param",
    "cpu_offload": "parallel.offload_optimizer",
    "cpu_offload_param": "parallel.offload_param",
}


def replica_size(parallel) -> int:
    """Ranks that work on one batch: pipeline x context x tensor."""
    return parallel.pipeline_model_parallel_size * parallel.context_parallel_size * parallel.tensor_model_parallel_size


def parallel_rules(config, world_size: int | None, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Violations, one a line, with the keys, the numbers and a remedy.

    Args:
        world_size: number of processes; None: not known, and the rules that need it are left out.
        overrides: as given on the command line.
    """
    p = config.parallel
    if min(p.pipeline_model_parallel_size, p.context_parallel_size, p.tensor_model_parallel_size) < 1:
        return  # said by the ranges
    yield from _sizes(config)
    yield from _sequence(config)
    yield from _pipeline(config)
    if world_size is not None:
        yield from _world(config, world_size)
    yield from _timeouts(p)
    yield from _offload(p)
    yield from _zero_options(p)
    yield from _ignored(p, overrides)


def _timeouts(p) -> Iterator[str]:
    limits = {f"parallel.{key}": p[key] for key in ("timeout_s", "control_timeout_s")}
    key = min(limits, key=limits.get)
    if p.hang_timeout_s is not None and p.hang_timeout_s >= limits[key]:
        yield (
            f"parallel.hang_timeout_s={p.hang_timeout_s} must be less than {key}={limits[key]}: else the collectives give up "
            "before the watchdog has named the rank that hangs; lower it, or set it to null for a run without a watchdog"
        )


def _sizes(config) -> Iterator[str]:
    m, tp, cp = config.model, config.parallel.tensor_model_parallel_size, config.parallel.context_parallel_size
    cut = f"parallel.tensor_model_parallel_size={tp}" + (f" x parallel.context_parallel_size={cp}" if cp > 1 else "")
    for key in ("num_attention_heads", "num_key_value_heads"):
        if m[key] % (tp * cp):
            yield (
                f"model.{key}={m[key]} cannot be shared equally by {cut} = {tp * cp} ranks; "
                f"use sizes whose product divides {m[key]}, or a model with a multiple of {tp * cp}"
            )
    if m.ffn_hidden_size % tp:
        yield (
            f"model.ffn_hidden_size={m.ffn_hidden_size} cannot be cut into parallel.tensor_model_parallel_size={tp} equal parts; "
            f"use {-(-m.ffn_hidden_size // tp) * tp}, or a size that divides it"
        )


def _sequence(config) -> Iterator[str]:
    p, length = config.parallel, config.data.seq_length
    tp, cp = p.tensor_model_parallel_size, p.context_parallel_size
    if p.sequence_parallel and tp == 1:
        yield (
            "parallel.sequence_parallel=true cuts hidden states over tensor-parallel ranks, but "
            "parallel.tensor_model_parallel_size=1; use 2 or more, or parallel.sequence_parallel=false"
        )
    shares = cp * (tp if p.sequence_parallel else 1)
    if length % shares:
        ranks = [f"parallel.context_parallel_size={cp}"] if cp > 1 else []
        ranks += [f"parallel.tensor_model_parallel_size={tp} (sequence_parallel)"] if shares > cp else []
        yield (
            f"data.seq_length={length} cannot be cut into {' x '.join(ranks)} = {shares} equal parts; "
            f"use a multiple of {shares}, for example {max(1, length // shares) * shares}"
        )


def _pipeline(config) -> Iterator[str]:
    pp, layers = config.parallel.pipeline_model_parallel_size, config.model.num_layers
    if pp == 1:
        return
    if pp > layers:
        yield (
            f"parallel.pipeline_model_parallel_size={pp} stages, but model.num_layers={layers}: every stage needs a layer of its "
            f"own; use at most {layers}"
        )
    stage = config.parallel.zero_stage
    reasons = {
        2: "ZeRO 2 cuts the gradients up after each backward pass, but a pipeline sums them over its micro-batches and reduces "
        "once at the end: every micro-batch would be reduced by itself and the partial sums lost",
        3: "ZeRO 3 would gather the weights of a stage again for every micro-batch, and cuts the gradients up as ZeRO 2 does",
    }
    if stage in reasons:
        yield (
            f"parallel.zero_stage={stage} with parallel.pipeline_model_parallel_size={pp}: {reasons[stage]}; "
            "DeepSpeed refuses it. Use parallel=zero1 (parallel.zero_stage=1)"
        )


def _world(config, world_size: int) -> Iterator[str]:
    p, t = config.parallel, config.train
    replica = replica_size(p)
    if world_size % replica:
        yield (
            f"{world_size} processes cannot be cut into replicas of {replica} ranks: "
            f"parallel.pipeline_model_parallel_size={p.pipeline_model_parallel_size} x "
            f"parallel.context_parallel_size={p.context_parallel_size} x "
            f"parallel.tensor_model_parallel_size={p.tensor_model_parallel_size}; start a multiple of {replica}, "
            f"or use sizes whose product divides {world_size}"
        )
        return
    replicas = world_size // replica
    per_pass = t.micro_batch_size * replicas
    if min(t.micro_batch_size, t.global_batch_size) >= 1 and t.global_batch_size % per_pass:
        ranks = "ranks" if replica == 1 else f"data-parallel ranks (of {world_size}, {replica} a replica)"
        yield (
            f"train.global_batch_size={t.global_batch_size} rows cannot be cut into {replicas} {ranks} x {t.micro_batch_size} "
            f"(train.micro_batch_size) = {per_pass} rows a pass; use a multiple of {per_pass}, or another micro-batch"
        )


def _offload(p) -> Iterator[str]:
    least = {"offload_optimizer": 1, "offload_param": 3}
    for key, stage in least.items():
        where, settings = f"parallel.{key}", p[key]
        if settings.device == "none":
            for name in ("nvme_path", "pin_memory"):
                if settings[name]:
                    yield f"{where}.{name}={settings[name]} is not used while {where}.device=none; leave it out"
            continue
        if p.zero_stage < stage:
            yield (
                f"{where}.device={settings.device} needs parallel.zero_stage={stage} or more, not {p.zero_stage}: only what ZeRO "
                f"{'cuts up' if stage == 1 else '3 gathers when it is used'} can lie elsewhere"
            )
        elif settings.device == "nvme" and p.zero_stage < 3:
            yield f"{where}.device=nvme needs parallel.zero_stage=3, not {p.zero_stage}; use {where}.device=cpu"
        if settings.device == "nvme" and not settings.nvme_path:
            yield f"{where}.device=nvme needs {where}.nvme_path, a folder on a fast local disk"
        if settings.device != "nvme" and settings.nvme_path:
            yield f"{where}.nvme_path={settings.nvme_path} is not used while {where}.device={settings.device}; leave it out"


def _zero_options(p) -> Iterator[str]:
    given = OmegaConf.to_container(p.zero_options) if OmegaConf.is_config(p.zero_options) else dict(p.zero_options)
    for key, value in given.items():
        where = f"parallel.zero_options.{key}"
        if key in SET_BY_MADS:
            yield f"{where} is set by mads; use {SET_BY_MADS[key]}"
            continue
        if key not in ZERO_OPTIONS:
            yield f"{where} is not known; the options of DeepSpeed that can be given here are {', '.join(ZERO_OPTIONS)}"
            continue
        kind, stages = ZERO_OPTIONS[key]
        if p.zero_stage not in stages:
            at = ", ".join(map(str, stages))
            yield f"{where}={value} is read at parallel.zero_stage={at} only, not {p.zero_stage}; leave it out"
        if kind is bool and not isinstance(value, bool):
            yield f"{where}={value!r} must be true or false"
        if kind is int and not _is_count(value):
            yield f"{where}={value!r} must be a whole number of elements, at least 1"
        if key == "overlap_comm" and value is True and p.pipeline_model_parallel_size > 1:
            yield (
                f"{where}=true: DeepSpeed does not overlap reductions in a pipeline "
                f"(parallel.pipeline_model_parallel_size={p.pipeline_model_parallel_size}); leave it out"
            )


def _is_count(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and float(value).is_integer()


def _ignored(p, overrides: Sequence[str]) -> Iterator[str]:
    """Keys of the command line that have no effect at these sizes."""
    needs = {
        "parallel.tensor_parallel_overlap": ("parallel.tensor_model_parallel_size", p.tensor_model_parallel_size),
        "parallel.pipeline_partition": ("parallel.pipeline_model_parallel_size", p.pipeline_model_parallel_size),
    }
    for override in overrides:
        size = needs.get(override.lstrip("+~").split("=", 1)[0])
        if size and size[1] == 1:
            yield f"{override} has no effect while {size[0]}=1; leave it out, or use 2 or more"
