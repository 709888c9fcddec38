"""From a run's lines to figures, and from all cells to a table in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from mads.logging.throughput import peak_flops

HEAD = (
    "model",
    "GPUs",
    "layout",
    "rows x accumulation",
    "tokens a step",
    "tokens/s (quartiles)",
    "of one GPU",
    "TFLOP/s of one GPU",
    "MFU",
    "GiB of rank 0",
    "filled",
    "marks",
)


def figures(lines: Iterable[dict[str, Any]], warmup: int, token_flops: int, gpus: int, device: str, step_positions: int) -> dict:
    """What the train lines behind the warm-up say.

    Args:
        lines: of metrics.jsonl.
        warmup: steps that do not count; a line of the run ends there.
        token_flops: of the model, forward and backward (mads.model.shape).
        device: as CUDA names it; its dense bf16 peak gives MFU, None without.
        step_positions: of a global batch, padding included.

    Raises:
        ValueError: fewer than two intervals are left.
    """
    train = [line for line in lines if line["kind"] == "train"]
    start = next((line for line in train if line["step"] == warmup), None)
    counted = [line for line in train if line["step"] > warmup]
    if start is None or len(counted) < 2:
        raise ValueError(f"{len(counted)} train lines behind step {warmup}: at least 2 are needed")
    seconds = sum(line["seconds"] for line in counted)
    tokens, steps = counted[-1]["tokens"] - start["tokens"], counted[-1]["step"] - warmup
    rates = [line["tokens_per_second"] for line in counted]
    flops, peak = token_flops * tokens / seconds / gpus, peak_flops(device, "bf16")
    return {
        "steps": steps,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "quartiles": statistics.quantiles(rates, n=4, method="inclusive")[::2],
        "tflops": flops / 1e12,
        "peak_tflops": None if peak is None else peak / 1e12,
        "mfu": None if peak is None else flops / peak,
        "memory_gib": counted[-1]["memory_mib"] / 1024,
        "filled": tokens / (steps * step_positions),
        "loss": counted[-1]["loss"],
    }


def markdown(results: Sequence[dict[str, Any]], facts: dict[str, str]) -> str:
    """The table, what its marks mean, and what it was measured with.

    Args:
        results: the cells' JSON values: "cell", "settings", and "figures" with "findings", or "failed".
        facts: words for the foot of the table.
    """
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    marks: dict[str, int] = {}
    for result in results:
        lines.append("| " + " | ".join(_row(result, marks)) + " |")
    notes = [f"[{number}] {text}" for text, number in marks.items()]
    foot = [f"{name}: {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes), *([""] if notes else []), "; ".join(foot), ""])


def _row(result: dict[str, Any], marks: dict[str, int]) -> list[str]:
    cell, accumulation = result["cell"], result["settings"]["accumulation"]
    what = [cell["model"], str(cell["gpus"]), cell["layout"], f"{cell['micro_batch']} x {accumulation}"]
    what.append(f"{cell['global_batch'] * result['settings']['seq_length']:,}")
    if "failed" in result:
        marked = marks.setdefault(result["failed"].splitlines()[0], len(marks) + 1)
        return [*what, "failed", *["-"] * 5, f"[{marked}]"]
    f = result["figures"]
    numbers = [marks.setdefault(text, len(marks) + 1) for text in result["findings"]]
    low, high = f["quartiles"]
    return [
        *what,
        f"{f['tokens_per_second']:,.0f} ({low:,.0f} to {high:,.0f})",
        f"{f['tokens_per_second'] / cell['gpus']:,.0f}",
        f"{f['tflops']:.3g}",
        "-" if f["mfu"] is None else f"{f['mfu']:.1%}",
        f"{f['memory_gib']:.1f}",
        f"{f['filled']:.1%}",
        " ".join(f"[{n}]" for n in numbers),
    ]
