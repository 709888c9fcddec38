"""What one check of the runtime invariants costs: its time beside a training step, and the bytes that it sends.

    OMP_NUM_THREADS=1 python -m benchmarks.invariants > table.md

Run from the repository root; ranks are those of the tests' harness. Every size and grid has real engines (ZeRO 1), training steps
of 8 rows of 128 tokens, and checks after each. The table: invariants.md.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

SIZES = {
    "nano": ["model=nano"],
    "46M": [
        "model=nano",
        "model.hidden_size=512",
        "model.num_layers=12",
        "model.num_attention_heads=8",
        "model.num_key_value_heads=8",
        "model.ffn_hidden_size=1376",
        "model.vocab_size=16384",
        "model.tie_embeddings=true",
    ],
}
GRIDS = ({"dp": 2}, {"tp": 2}, {"pp": 2})
ROWS, LENGTH, CHECKS = 8, 128, 5
TESTS = Path(__file__).resolve().parent.parent / "tests"


def measure(overrides: list[str], grid: dict, steps: int) -> dict:
    """On this rank: median seconds of a step, of a check, of its checksums; bytes of the first report and of later ones."""
    import torch
    from layouts import KEYS
    from model_support import config, micro_batches
    from topologies import topology as topology_of

    from mads import collectives
    from mads.data.loader import StepBatch
    from mads.train.invariants import ReplicaGuard
    from mads.train.setup import build_engine

    topology = topology_of(**grid)
    sizes = [f"parallel.{KEYS[axis]}={size}" for axis, size in grid.items() if axis in KEYS]
    shape = [f"data.seq_length={LENGTH}", f"train.global_batch_size={ROWS}"]
    built = build_engine(config("parallel=zero1", *overrides, *sizes, *shape), topology, torch.float32, torch.device("cpu"))
    guard, ids = ReplicaGuard(built, 10), np.arange(1000)
    times, sent = {"step": [], "check": [], "checksums": []}, []

    def counted(value, group):
        sent.append(len(json.dumps(value)))
        return original(value, group)

    original = collectives.all_gather_json
    for step in range(1, steps + 1):
        rows = [[row] for row in np.random.default_rng(step).integers(0, 500, (ROWS, LENGTH))]
        dp = topology.size("dp")
        micro, valid = micro_batches(rows, topology.coordinate("dp"), dp, 2, LENGTH)
        begun = time.perf_counter()
        built.train_step(micro, valid, 1e-4)
        times["step"].append(time.perf_counter() - begun)
        for _ in range(CHECKS):
            begun = time.perf_counter()
            guard._parameter_sums()
            times["checksums"].append(time.perf_counter() - begun)
            collectives.barrier(topology.group("world"))
            begun = time.perf_counter()
            with mock.patch.object(collectives, "all_gather_json", counted):
                guard.check(step, StepBatch(micro, valid, ids, ids, valid), ids)
            times["check"].append(time.perf_counter() - begun)
    held = sum(p.numel() for _, p in built.parameters)
    reports = [n for n in sent if n > 50]  # not the names of tied weights, asked for once
    medians = {what: float(np.median(seconds)) for what, seconds in times.items()}
    return medians | {"parameters": held, "first": reports[0], "later": reports[-1]}


def main() -> None:
    sys.path.insert(0, str(TESTS))
    from harness import close_pools, run_ranks

    print("| model | grid | parameters of a rank | step, s | check, s | checksums, s | check / step | bytes sent: first, later |")
    print("|---|---|---|---|---|---|---|---|")
    for size, overrides in SIZES.items():
        for grid in GRIDS:
            found = run_ranks(2, measure, overrides, grid, 4 if size == "nano" else 2, timeout=300)
            slowest = {k: max(f[k] for f in found) for k in found[0]}
            name = " ".join(f"{axis}{n}" for axis, n in grid.items())
            print(
                f"| {size} | {name} | {slowest['parameters']:,} | {slowest['step']:.3f} | {slowest['check']:.4f} "
                f"| {slowest['checksums']:.4f} | {slowest['check'] / slowest['step']:.1%} "
                f"| {slowest['first']}, {slowest['later']} |",
                flush=True,
            )
    close_pools()


if __name__ == "__main__":
    main()
