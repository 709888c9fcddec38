"""What does a head that keeps no logits cost and save, against torch's cross entropy of whole logits?

    OMP_NUM_THREADS=1 python -m benchmarks.head [--rounds 7]

One thread, float32. Contestants take turns in each round; times are of the CPU. Memory is the growth of the resident set over one
forward and backward pass, in a fresh process each. Prints markdown tables.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from mads.data.batch import make_batch
from mads.kernels import linear_cross_entropy
from mads.model.decoder import Decoder
from mads.tensor import Targets, vocab_parallel_cross_entropy

HEADS = [(4096, 128, 4096), (4096, 256, 8192), (2048, 640, 32000)]  # positions, hidden size, vocabulary
ROWS = (32, 128, 256, 512, 1024)
# name -> hidden size, layers, heads, KV heads, inner size, vocabulary; rows and length of the batch
MODELS = {
    "1.3M, 32 x 128": ((128, 4, 4, 2, 384, 4096), 32, 128),
    "1.3M, 8 x 128": ((128, 4, 4, 2, 384, 4096), 8, 128),
    "8.4M, 4 x 512": ((256, 8, 8, 4, 768, 8192), 4, 512),
}


def case(positions: int, hidden: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, W, labels), of which x and W want a gradient."""
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, hidden).mul_(0.05).requires_grad_()
    return torch.randn(positions, hidden).requires_grad_(), weight, torch.randint(0, vocabulary, (positions,))


def whole(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward with logits."""
    torch.autograd.grad(F.cross_entropy(x @ weight.t(), labels, reduction="sum"), (x, weight))


def in_rows(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> None:
    """Forward and backward without."""
    total, _ = vocab_parallel_cross_entropy(x, weight, Targets(labels), len(weight))
    torch.autograd.grad(total, (x, weight))


def take_turns(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, by round, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(-1, rounds):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            if round_ >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratios(seconds: dict[str, Sequence[float]], base: str) -> dict[str, tuple[float, float, float]]:
    """(median, lowest, highest) over the rounds of each contestant's time over that of `base`."""
    result = {}
    for name, values in seconds.items():
        each = [value / other for value, other in zip(values, seconds[base])]
        result[name] = statistics.median(each), min(each), max(each)
    return result


def _with_rows(rows: int, run: Callable[..., None], *arguments) -> None:
    before, linear_cross_entropy._CPU_ROWS = linear_cross_entropy._CPU_ROWS, rows
    run(*arguments)
    linear_cross_entropy._CPU_ROWS = before


def _peak() -> int:
    """Highest resident set of this process so far, in kB. (getrusage's begins with that of the process before exec.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _growth(run: Callable[..., None], head: tuple[int, int, int], answers) -> None:
    torch.set_num_threads(1)
    small = case(8, head[1], 64)
    run(*small)
    arguments = case(*head)
    before = _peak()
    run(*arguments)
    answers.put((_peak() - before) / 1024)


def megabytes(run: Callable[..., None], head: tuple[int, int, int]) -> float:
    """Growth of the resident set over one pass, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_growth, args=(run, head, answers))
    process.start()
    result = answers.get()
    process.join()
    return result


def steps(name: str) -> dict[str, Callable[[], None]]:
    """Forward and backward of a whole model, both ways."""
    (hidden, layers, heads, kv, ffn, vocabulary), rows, length = MODELS[name]
    sizes = dict(hidden_size=hidden, num_layers=layers, num_attention_heads=heads, num_key_value_heads=kv, ffn_hidden_size=ffn)
    other = dict(rope_theta=1e4, norm_eps=1e-5, tie_embeddings=True, init_std=0.02, hidden_dropout=0.0, attention_dropout=0.0)
    model = Decoder(SimpleNamespace(**sizes, **other, vocab_size=vocabulary, attention="sdpa"))
    draw, parameters = np.random.default_rng(0), list(model.parameters())
    b = make_batch([[draw.integers(0, vocabulary, length)] for _ in range(rows)], length)

    def with_logits() -> None:
        logits = model.logits(b.tokens, b.positions, b.segments)
        torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), b.labels.flatten(), reduction="sum"), parameters)

    def without() -> None:
        torch.autograd.grad(model(b.tokens, b.labels, b.positions, b.segments)[0], parameters)

    return {"whole logits": with_logits, "rows": without}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| positions x hidden x vocabulary | | time, of whole logits | lowest to highest | memory, MB |\n|---|---|---|---|---|")
    for head in HEADS:
        arguments = case(*head)
        contestants = {"whole logits": lambda a=arguments: whole(*a)}
        contestants |= {f"{rows} rows": lambda r=rows, a=arguments: _with_rows(r, in_rows, *a) for rows in ROWS}
        found = ratios(take_turns(contestants, args.rounds), "whole logits")
        memory = {"whole logits": megabytes(whole, head), "256 rows": megabytes(in_rows, head)}
        for name, (middle, low, high) in found.items():
            size = f"{memory[name]:.0f}" if name in memory else ""
            print(f"| {' x '.join(map(str, head))} | {name} | {middle:.3f} | {low:.3f} - {high:.3f} | {size} |", flush=True)
    print("\n| model, batch | forward and backward, of whole logits | lowest to highest |\n|---|---|---|")
    for name in MODELS:
        middle, low, high = ratios(take_turns(steps(name), args.rounds), "whole logits")["rows"]
        print(f"| {name} | {middle:.3f} | {low:.3f} - {high:.3f} |", flush=True)


if __name__ == "__main__":
    main()
