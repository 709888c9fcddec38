"""The Triton cross entropy against torch's operators, on a GPU: statistics and gradient of some rows of a head's logits.

    python -m benchmarks.cross_entropy_kernel [--rows 2048] [--vocabulary 32000] [--rounds 20]

bf16 logits, both by turns on copies of the same ones, time by CUDA events; GB/s counts the 6 bytes a logit that must move (read;
read and write). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import torch

from mads.kernels.cross_entropy_triton import available, logits_gradient_, row_statistics
from mads.tensor import vocab_parallel_cross_entropy


def by_triton(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of the summed loss, in the logits' place."""
    lse, _, _ = row_statistics(logits, labels, logits.shape[1])
    return logits_gradient_(logits, lse, labels, torch.ones_like(lse), logits.shape[1], logits.shape[1])


def by_torch(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same from whole logits."""
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(vocab_parallel_cross_entropy(logits, labels, logits.shape[1]).sum(), logits)
    return gradient


def measure(rows: int, vocabulary: int, rounds: int) -> dict:
    """Milliseconds of each, by round, and how far their results are apart."""
    torch.manual_seed(0)
    logits = (torch.randn(rows, vocabulary, device="cuda") * 3).bfloat16()
    labels = torch.randint(0, vocabulary, (rows,), device="cuda")
    ways, times, last = {"triton": by_triton, "torch": by_torch}, {"triton": [], "torch": []}, {}
    for round_ in range(-3, rounds):  # the first ones compile and warm up
        for name, way in ways.items():
            copy = logits.clone()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            last[name] = way(copy, labels)
            end.record()
            torch.cuda.synchronize()
            if round_ >= 0:
                times[name].append(start.elapsed_time(end))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "device": torch.cuda.get_device_name(),
        "rows": rows,
        "vocabulary": vocabulary,
        "ms": {n: {"median": medians[n], "quartiles": statistics.quantiles(v, n=4)[::2]} for n, v in times.items()},
        "gb_per_s": {name: 6 * rows * vocabulary / ms / 1e6 for name, ms in medians.items()},
        "torch / triton": medians["torch"] / medians["triton"],
        "greatest difference": float((last["triton"].float() - last["torch"].float()).abs().max()),
    }


def main() -> int:
    """Exit code 2 where there is no GPU, or no triton."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available() or not available("cuda"):
        print("benchmarks.cross_entropy_kernel needs a CUDA device and triton", file=sys.stderr)
        return 2
    print(json.dumps(measure(args.rows, args.vocabulary, args.rounds), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
