"""What the engine costs over the bare PyTorch loop of the same model on the same batches, and where.

    OMP_NUM_THREADS=1 python -m benchmarks.overhead [--sizes 1m,10m] [--stages 0,1,2,3] [--shapes 8x4,2x16] [--rounds 7]
    OMP_NUM_THREADS=1 python -m benchmarks.overhead --profile [--sizes 1m] [--stages 1] [--shapes 2x16]
    OMP_NUM_THREADS=1 python -m benchmarks.overhead --synchronisations [--stages 0,1,2,3]
    OMP_NUM_THREADS=1 python -m benchmarks.overhead --compile [--sizes 1m,10m]

One process, fp32, rows of 128 tokens, one sample a row; a shape is rows of a micro-batch x micro-batches of a step. Bare loop:
forward, backward, clip_grad_norm_ and the same fused AdamW. Both take their steps in turn; a ratio is of two neighbouring steps.
Every line is measured in a process of its own, for ZeRO 3 changes torch's linear layer in all of its process.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import os
import pstats
import statistics
import time

import numpy as np
import torch

LENGTH = 128
SIZES = {  # hidden, layers, heads, KV heads, FFN, vocabulary
    "1m": (128, 4, 4, 2, 384, 4096),
    "10m": (256, 10, 8, 4, 768, 8192),
}
KEYS = ("hidden_size", "num_layers", "num_attention_heads", "num_key_value_heads", "ffn_hidden_size", "vocab_size")


class Bench:
    """An engine, the bare loop, and what both train on."""

    def __init__(self, size: str, stage: int, rows: int, count: int, length: int = LENGTH, overrides: tuple[str, ...] = ()):
        from mads.config.compose import compose
        from mads.data.batch import make_batch
        from mads.model.decoder import Decoder
        from mads.topology import Topology, grid_of, initialize_process_group
        from mads.train.engine import adamw
        from mads.train.setup import build_engine

        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        torch.set_num_threads(1)
        torch.manual_seed(0)
        initialize_process_group("gloo", 300, (torch.distributed.HashStore(), 0, 1))
        shape = [f"model.{key}={value}" for key, value in zip(KEYS, SIZES[size])]
        common = ["model=tiny", "data=jsonl", "data.paths=[none]", "data.dir=none", "run_dir=none", f"data.seq_length={length}"]
        steps = [f"train.micro_batch_size={rows}", f"train.global_batch_size={rows * count}", f"parallel=zero{stage}"]
        self.config = compose([*common, *shape, *steps, *overrides])
        draw, vocab = np.random.default_rng(0), SIZES[size][-1]
        self.batches = [make_batch([[draw.integers(0, vocab, length)] for _ in range(rows)], length) for _ in range(count)]
        self.valid = sum(batch.valid_tokens for batch in self.batches)
        self.module = Decoder(self.config.model, seed=0)
        self.parameters = sum(p.numel() for p in self.module.parameters())
        self.optimizer = adamw(self.module, self.config.optim)
        topology = Topology(grid_of(self.config.parallel, 1), 300, 300)
        self.engine = build_engine(self.config, topology, torch.float32, torch.device("cpu"))

    def bare(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-4
        for b in self.batches:
            total, _ = self.module(b.tokens, b.labels, b.positions, b.segments)
            (total / self.valid).backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def mads(self) -> None:
        self.engine.train_step(self.batches, self.valid, 1e-4)


def quartiles(values) -> list[float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return [round(x, 4) for x in (middle, low, high)]


def compare(arguments, rounds: int) -> dict:
    """Seconds of CPU time a step, and mads's over the bare loop's, in CPU and in wall time: median, lower and upper quartile."""
    bench = Bench(*arguments)
    took: dict[str, list[tuple[float, float]]] = {"bare": [], "mads": []}
    for round_ in range(-2, rounds):
        for name in took if round_ % 2 else reversed(took):
            cpu, wall = time.process_time(), time.perf_counter()
            getattr(bench, name)()
            if round_ >= 0:
                took[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    ratios = [[m[i] / b[i] for m, b in zip(took["mads"], took["bare"])] for i in (0, 1)]
    return {
        "parameters": bench.parameters,
        "bare_cpu_s": quartiles([t[0] for t in took["bare"]]),
        "ratio_cpu": quartiles(ratios[0]),
        "ratio_wall": quartiles(ratios[1]),
    }


def profiled(arguments, rounds: int) -> dict:
    """Functions of mads and DeepSpeed with most CPU time in and below them: milliseconds a step, of their own, calls a step."""
    bench = Bench(*arguments)
    for _ in range(3):
        bench.mads()
    recorder = cProfile.Profile(time.process_time)  # of this process alone, whatever runs beside it
    recorder.enable()
    for _ in range(rounds):
        bench.mads()
    recorder.disable()
    rows = []
    for (file, _, name), (_, calls, own, below, _) in pstats.Stats(recorder).stats.items():
        place = next((file[file.rindex(p) :] for p in ("deepspeed/", "mads/", "kernels/", "omegaconf/") if f"/{p}" in file), None)
        if place or "importlib" in file or name.startswith("<built-in method _posixsubprocess"):
            rows.append(
                (round(1e3 * below / rounds, 2), round(1e3 * own / rounds, 2), calls // rounds, f"{place or file}:{name}")
            )
    return {"rows": sorted(rows, reverse=True)[:90]}


def synchronisations(arguments, rounds: int) -> dict:
    """Reads of tensors by the host in one step, by place."""
    from benchmarks.synchronisations import Synchronisations

    bench = Bench(*arguments)
    bench.mads()
    with Synchronisations() as counted:
        bench.mads()
    return dict(sorted(counted.where.items()))


def compiled(arguments, rounds: int) -> dict:
    """train.compile=true against false: seconds of the first step, and the ratio of later steps' CPU time."""
    size, _, rows, count = arguments[:4]
    plain, fast = Bench(size, 1, rows, count), Bench(size, 1, rows, count, LENGTH, ("train.compile=true",))
    first = {}
    for name, bench in (("plain", plain), ("compiled", fast)):
        start = time.perf_counter()
        bench.mads()
        first[name] = round(time.perf_counter() - start, 1)
    ratios = []
    for _ in range(rounds + 1):
        took = []
        for bench in (plain, fast):
            cpu = time.process_time()
            bench.mads()
            took.append(time.process_time() - cpu)
        ratios.append(took[1] / took[0])
    return {"first_step_s": first, "ratio_cpu": quartiles(ratios[1:])}


def in_process(function, arguments, rounds, answers) -> None:
    answers.put(function(arguments, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1m,10m")
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--shapes", default="8x4,2x16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], help="an override of the configuration")
    for name in ("profile", "synchronisations", "compile"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    function = (
        profiled if given.profile else synchronisations if given.synchronisations else compiled if given.compile else compare
    )
    context = multiprocessing.get_context("spawn")
    for size in given.sizes.split(","):
        for shape in given.shapes.split(","):
            for stage in map(int, given.stages.split(",")):
                rows, count = map(int, shape.split("x"))
                answers = context.SimpleQueue()
                arguments = (size, stage, rows, count, LENGTH, tuple(given.set))
                process = context.Process(target=in_process, args=(function, arguments, given.rounds, answers))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{size} {shape} ZeRO {stage} failed")
                answer = answers.get()
                rows_ = answer.pop("rows", [])
                print(json.dumps({"size": size, "shape": shape, "zero_stage": stage} | answer), flush=True)
                for row in rows_:
                    print("{:9.2f} {:9.2f} {:7d}  {}".format(*row), flush=True)


if __name__ == "__main__":
    main()
