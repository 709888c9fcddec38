"""Steps under torch.profiler, as numbers: operators by their own time."""

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


def summary(rows: list[tuple[str, float, float]]) -> dict:
    """groups: kind of work -> milliseconds; operators: the most expensive ones, [name, milliseconds, calls]."""
    groups: dict[str, float] = {}
    for name, milliseconds, _ in rows:
        groups[group_of(name)] = groups.get(group_of(name), 0.0) + milliseconds
    return {"groups": groups, "operators": sorted(rows, key=lambda row: -row[1])[:30]}


def profiled(step: Callable[[], object], count: int) -> dict:
    """`summary` of a step, on average over `count`."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(count):
            step()
    return summary(rows_of(recorded, count))


def rows_of(recorded: profile, count: int) -> list[tuple[str, float, float]]:
    """[(operator, milliseconds of its own, calls)] of one of `count` steps."""
    rows = recorded.key_averages()
    return [(row.key, row.self_cpu_time_total / 1e3 / count, row.count / count) for row in rows]
