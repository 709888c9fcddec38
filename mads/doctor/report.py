"""The doctor's findings as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from mads.config.validate import WITHOUT_AGENTS, precision_of
from mads.doctor.estimate import GIB, Batch, Cluster, Estimate, batch_of, estimates, fullest, kernel_of
from mads.doctor.remedies import Remedy, remedies
from mads.doctor.shares import padded_vocabulary
from mads.model.shape import parameter_count
from mads.topology import Grid, grid_of

AXES = {"tp": "tensor parallel", "cp": "context parallel", "dp": "data parallel", "pp": "pipeline"}
SHOWN_GROUPS = 3


def findings(config, cluster: Cluster) -> tuple[list[str], bool]:
    """The lines of the report on a valid configuration, and whether it fits."""
    batch, stages = batch_of(config, cluster.world_size), estimates(config, cluster)
    worst = fullest(stages)
    host_short = bool(cluster.host_memory) and max(e.host for e in stages) > cluster.host_memory
    fits = worst.peak <= cluster.gpu_memory and not host_short
    grid = grid_of(config.parallel, cluster.world_size)
    lines = [*_grid(grid, cluster), "", *_batch(config, batch), "", *_model(config, grid, stages), ""]
    lines += [*_memory(config, worst, len(stages)), "", *_verdict(config, cluster, stages, worst, fits)]
    warned = [f"warning: {line}" for line in warnings(config, cluster, grid, batch)]
    return [*lines, *(["", *warned] if warned else [])], fits


def gib(size: float) -> str:
    """Bytes in GiB, with one decimal."""
    return f"{size / GIB:.1f}"


def _grid(grid: Grid, cluster: Cluster) -> Iterator[str]:
    yield f"grid: {grid} = {grid.world_size} ranks on {cluster.nodes} x {cluster.gpus_per_node} GPUs"
    for axis, words in AXES.items():
        groups = grid.groups(axis)
        if len(groups[0]) == 1:
            continue
        shown = " ".join(_ranks(ranks) for ranks in groups[:SHOWN_GROUPS])
        more = f" and {len(groups) - SHOWN_GROUPS} more" if len(groups) > SHOWN_GROUPS else ""
        place = "across nodes" if any(_crosses(ranks, cluster) for ranks in groups) else "inside a node"
        yield f"  {words:17} {len(groups)} groups of {len(groups[0])}, {place}: {shown}{more}"


def _ranks(ranks: list[int]) -> str:
    if len(ranks) <= 8:
        return str(ranks).replace(" ", "")
    return f"[{ranks[0]},{ranks[1]},..,{ranks[-1]}]"


def _crosses(ranks: list[int], cluster: Cluster) -> bool:
    return len({rank // cluster.gpus_per_node for rank in ranks}) > 1


def _batch(config, batch: Batch) -> Iterator[str]:
    t = config.train
    yield (
        f"batch: {t.global_batch_size} rows = {t.micro_batch_size} (micro-batch) x {batch.passes} (micro-batches a step) "
        f"x {batch.replicas} (data-parallel ranks)"
    )
    yield f"  {batch.tokens:,} tokens a step, {batch.tokens * t.steps:,} in {t.steps:,} steps"
    pp = config.parallel.pipeline_model_parallel_size
    if pp > 1:
        yield f"  pipeline bubble (pp - 1) / (m + pp - 1) = {pp - 1} / {batch.passes + pp - 1} = {batch.bubble:.0%} of a step"


def _model(config, grid: Grid, stages: list[Estimate]) -> Iterator[str]:
    m = config.model
    yield f"model: {parameter_count(m):,} parameters, {m.num_layers} layers"
    padded = padded_vocabulary(config)
    if padded != m.vocab_size:
        yield f"  vocabulary {m.vocab_size:,}, padded to {padded:,} for {grid.tp} tensor-parallel ranks"
    if len(stages) > 1:
        yield f"  layers of the stages (parallel.pipeline_partition={config.parallel.pipeline_partition}): " + ", ".join(
            f"{'embedding + ' if e.share.first else ''}{e.share.layers}{' + head' if e.share.last else ''}" for e in stages
        )
    numbers = sorted({e.share.parameters for e in stages})
    yield "  parameters of one GPU: " + (f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}")


def _memory(config, worst: Estimate, stages: int) -> Iterator[str]:
    p = config.parallel
    where = f"a GPU of stage {worst.share.stage} (of {stages}), the fullest" if stages > 1 else "one GPU"
    kernel = {"flash": "flash-attn", "fused": "SDPA with a fused kernel", "math": "SDPA without a fused kernel"}[
        kernel_of(config)
    ]
    yield (
        f"memory of {where}, in GiB (estimated for {precision_of(config, True)}, ZeRO {p.zero_stage}, {kernel}, "
        f"activation_checkpointing={p.activation_checkpointing})"
    )
    for name, size in worst.parts.items():
        note = ""
        if name == "activations of the layers" and stages > 1:
            note = f"  {worst.in_flight} micro-batches in flight"
        yield f"  {name:30} {gib(size):>7}{note}"
    for moment, total in worst.moments.items():
        yield f"  in all, {moment:22} {gib(total):>7}" + ("  <- the most" if moment == worst.worst_moment else "")


def _verdict(config, cluster: Cluster, stages: list[Estimate], worst: Estimate, fits: bool) -> Iterator[str]:
    need, have = gib(worst.peak), gib(cluster.gpu_memory)
    if worst.peak <= cluster.gpu_memory:
        yield f"fits: {need} of {have} GiB, {gib(cluster.gpu_memory - worst.peak)} to spare"
    else:
        yield f"does not fit: needs {need} GiB ({worst.worst_moment}), a GPU has {have}"
    host = max(e.host for e in stages)
    if cluster.host_memory:
        verdict = "fits" if host <= cluster.host_memory else "does not fit"
        yield f"host memory of a node: {verdict}: {gib(host)} of {gib(cluster.host_memory)} GiB"
    else:
        yield f"host memory of a node: at least {gib(host)} GiB"
    if worst.peak > cluster.gpu_memory:
        found = remedies(config, cluster)
        yield "what would help, cheapest first:" if found else "no change of one key helps: use more or larger GPUs"
        yield from (_remedy(r, cluster) for r in found)
    elif not fits:
        yield "use fewer GPUs of a node, more tensor-parallel or pipeline ranks, or no offloading"


def _remedy(remedy: Remedy, cluster: Cluster) -> str:
    verdict = "fits" if remedy.peak <= cluster.gpu_memory else "not enough"
    return f"  {remedy.text}: {gib(remedy.peak)} GiB, {verdict} ({remedy.cost})"


def warnings(config, cluster: Cluster, grid: Grid, batch: Batch) -> Iterator[str]:
    """What works, but is slow or coarse."""
    p = config.parallel
    if any(_crosses(ranks, cluster) for ranks in grid.groups("tp")):
        yield (
            f"tensor-parallel groups of {grid.tp} cross nodes of {cluster.gpus_per_node} GPUs: two collectives a layer and pass "
            f"go over the network; use a parallel.tensor_model_parallel_size that divides {cluster.gpus_per_node}"
        )
    if grid.pp > 1 and batch.passes < grid.pp:
        yield (
            f"{batch.passes} micro-batches a step on {grid.pp} pipeline stages: stages wait {batch.bubble:.0%} of a step; use at "
            f"least {4 * grid.pp} (train.global_batch_size={4 * grid.pp * config.train.micro_batch_size * batch.replicas})"
        )
    if p.zero_stage == 0 and precision_of(config, True) == "bf16" and batch.passes > 1:
        yield (
            f"parallel.zero_stage=0 adds the gradients of {batch.passes} micro-batches up in bf16; parallel=zero1 adds in fp32"
        )
    if grid.tp > 1 and not p.sequence_parallel:
        yield f"parallel.sequence_parallel=true would cut the activations outside of the products by {grid.tp} at no cost"
    if config.selection.name in WITHOUT_AGENTS:
        return
    if config.reward.mode == "finite_difference" and p.zero_stage == 3:
        yield "reward=finite_difference gathers every weight again for each of its two passes under ZeRO 3"
