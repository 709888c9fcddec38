"""One step under torch.profiler, as numbers: operators by their own time."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

GROUPS = {  # first match counts
    "communication": ("gloo", "c10d", "nccl", "all_reduce", "allreduce", "reduce_scatter", "all_gather", "allgather"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "aten::matmul", "mkldnn"),
    "attention": ("attention", "sdp"),
    "cross entropy": ("log_softmax", "nll_loss", "cross_entropy", "logsumexp", "CrossEntropy"),
    "norms": ("rms_norm", "layer_norm", "rsqrt"),
    "optimizer": ("_fused_adam", "_foreach", "_clip_grad"),
    "copies": ("copy_", "aten::cat", "aten::clone", "aten::contiguous", "aten::stack", "index_select", "repeat"),
    "zeros and fills": ("zero_", "fill_", "zeros"),
}


def group_of(name: str) -> str:
    """The kind of work of an operator."""
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), "everything else")


def summary(rows: list[tuple[str, float, int]]) -> dict:
    """groups: kind of work -> milliseconds; operators: the most expensive ones, [name, milliseconds, calls]."""
    groups: dict[str, float] = {}
    for name, milliseconds, _ in rows:
        groups[group_of(name)] = groups.get(group_of(name), 0.0) + milliseconds
    return {"groups": groups, "operators": sorted(rows, key=lambda row: -row[1])[:30]}


def profiled(step: Callable[[], object]) -> dict:
    """`summary` of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    return summary(rows_of(recorded))


def rows_of(recorded: profile) -> list[tuple[str, float, int]]:
    """[(operator, milliseconds of its own, calls)]."""
    return [(row.key, row.self_cpu_time_total / 1e3, row.count) for row in recorded.key_averages()]
