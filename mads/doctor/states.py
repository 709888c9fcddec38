"""Bytes of weights, gradients and optimizer states on one GPU, as DeepSpeed's optimizers allocate them under mads's settings
(mads.train.engine.deepspeed_config). Rajbhandari et al. 2020 (arXiv 1910.02054) with what the implementation adds.

P: parameters of this rank; d: ranks that ZeRO cuts over (data parallel x context parallel). bf16:

    ZeRO 0      weights 2P, gradients 2P (bf16), fp32 master weights and two moments 12P; the step makes gradients in fp32, 4P
    ZeRO 0, pipeline   BF16_Optimizer: gradients 2P + 2P (bf16), 12P/d; the step makes gradients in fp32, 4P/d
    ZeRO 1      BF16_Optimizer: weights 2P, gradients 4P (fp32) + 2P (bf16), 12P/d; the reduction flattens a bucket in fp32
    ZeRO 2      weights 2P, gradients 4P/d (fp32), 12P/d; the step flattens the gradients once more, 4P/d
    ZeRO 3      weights 2P/d and those gathered, gradients 4P/d (fp32), 12P/d; the step flattens a sub-group's gradients

fp32: weights and gradients 4 bytes; ZeRO 0 has no master copy, ZeRO 1 to 3 have one.
"""

from __future__ import annotations

from dataclasses import dataclass

# DeepSpeed's defaults, in elements.
BUCKET, LIVE, PREFETCH, SUB_GROUP = 500_000_000, 1_000_000_000, 50_000_000, 1_000_000_000
# Vectors of fp32 that a reward round holds at once (mads.reward.influence and .direction): the reference gradient, which becomes
# the direction in place.
REWARD_VECTORS = 1


@dataclass(frozen=True)
class States:
    """Bytes on one GPU. `gathered`: weights that ZeRO 3 holds whole for a while; `step`: in use during the optimizer step or the
    reduction before it only; `host`: in the memory of the machine, for this rank."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int
    step: int
    host: int

    @property
    def resident(self) -> int:
        return self.weights + self.gradients + self.optimizer


def model_states(parameters: int, largest: int, ranks: int, parallel, bf16: bool) -> States:
    """Of a rank with so many parameters.

    Args:
        largest: elements of its largest parameter.
        ranks: data-parallel x context-parallel ranks, d above.
        parallel: the config section of this name.
    """
    stage, options = parallel.zero_stage, parallel.zero_options
    e, part = (2 if bf16 else 4), -(-parameters // ranks)
    bucket = int(options.get("reduce_bucket_size", BUCKET))
    overlap = bool(options.get("overlap_comm", False))
    offloaded = parallel.offload_optimizer.device != "none"
    pipelined = parallel.pipeline_model_parallel_size > 1
    if stage == 0 and not (bf16 and pipelined):
        master = 4 if bf16 else 0
        step = max(4 * parameters if bf16 else 0, e * min(bucket, parameters) if ranks > 1 else 0)
        return States(e * parameters, e * parameters, (master + 8) * parameters, 0, 0, step, 0)
    if bf16 and stage <= 1 and not offloaded:  # BF16_Optimizer
        kept = 2 if stage == 0 else 4
        reduced = kept * min(BUCKET, parameters) if ranks > 1 else 0
        step = max(reduced, 4 * part if stage == 0 else 0)
        return States(2 * parameters, (kept + 2) * parameters, 12 * part, 0, 0, step, 0)
    host = (18 if bf16 else 16) * part if offloaded else 0  # master, moments, gradients; a bf16 buffer of the weights
    on_gpu = 0 if offloaded else 12 * part
    if stage == 3:
        return _zero3(parameters, largest, part, parallel, e, bucket, on_gpu, host)
    # In stage 1 gradients stay whole; a second copy of them accumulates in fp32 where the model is bf16.
    gradients = (6 if bf16 else 4) * parameters if stage == 1 else (0 if offloaded else 4 * part)
    buckets = e * bucket * (2 if overlap else 1) if options.get("contiguous_gradients", True) or offloaded else 0
    buckets += e * largest if offloaded or largest > bucket else 0  # what no bucket holds is reduced by itself
    return States(e * parameters, gradients, on_gpu, buckets, 0, 0 if offloaded else 4 * part, host)


def _zero3(parameters, largest, part, parallel, e, bucket, on_gpu, host) -> States:
    options = parallel.zero_options
    live = int(options.get("stage3_max_live_parameters", LIVE)) + int(options.get("stage3_prefetch_bucket_size", PREFETCH))
    gathered = e * min(parameters, max(live, largest))
    offloaded, weights_away = parallel.offload_optimizer.device != "none", parallel.offload_param.device != "none"
    gradients = 0 if offloaded else 4 * part
    step = 0 if offloaded else 4 * min(part, int(options.get("sub_group_size", SUB_GROUP)))
    host += e * part if weights_away else 0
    buckets = e * bucket if options.get("contiguous_gradients", True) else 0
    return States(0 if weights_away else e * part, gradients, on_gpu, buckets, gathered, step, host)


def reward_bytes(parameters: int, ranks: int, zero_stage: int) -> int:
    """In use from the reference gradient to the last probe: a whole vector of this rank's parameters, cut up only where the
    weights are."""
    return 4 * REWARD_VECTORS * (-(-parameters // ranks) if zero_stage == 3 else parameters)
