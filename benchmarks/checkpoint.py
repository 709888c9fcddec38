"""How long training waits for a checkpoint: saved in the background against saved while the step waits.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint --folder FOLDER [--hidden 640] [--layers 6] [--rounds 3]

Two processes, data parallel, ZeRO 1, fp32. In each round both kinds of saves are made, in alternating order, with a training step
behind each: a machine whose speed wanders does so under both. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch

RANKS, ROW = 2, 32


def measure(rank: int, folder: str, hidden: int, layers: int, rounds: int, answers) -> None:
    """One rank; rank 0 puts the figures into `answers`."""
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS), **port)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    from mads.checkpoint.manifest import Keep
    from mads.checkpoint.saver import Saver
    from mads.topology import Grid, Topology

    topology = Topology(Grid(dp=RANKS))
    engine, batch, valid = build(topology, hidden, layers)
    savers = {kind: Saver(Path(folder) / "saved", topology, Keep(1), 2_000_000_000, kind == "asynchronous") for kind in KINDS}
    found: dict[str, list[float]] = {f"{kind} {what}": [] for kind in KINDS for what in ("stall", "write", "step behind")}
    found["step"] = []

    def step() -> float:
        torch.distributed.barrier()
        start = time.perf_counter()
        engine.train_step([batch], valid, 1e-4)
        return time.perf_counter() - start

    for round_ in range(-1, rounds):  # the first warms up
        figures = {"step": step()}
        for kind in KINDS if round_ % 2 else KINDS[::-1]:
            saver = savers[kind]
            torch.distributed.barrier()
            saver.save(round_ + 2, engine, {"step": round_}, {"pending_ids": np.arange(10)}, {})
            figures[f"{kind} step behind"] = step()
            saver.wait()
            [report] = saver.reports()
            figures |= {f"{kind} stall": report.stall_seconds, f"{kind} write": report.write_seconds}
        for name, value in figures.items() if round_ >= 0 else ():
            found[name].append(value)
    if rank == 0:
        parameters = sum(shape.numel() for shape in engine.logical_shapes.values())
        answers.put({"parameters": parameters, "bytes": report.bytes, "seconds": found})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


KINDS = ("asynchronous", "synchronous")


def build(topology, hidden: int, layers: int):
    """(engine, this rank's micro-batch, valid tokens of the global batch)"""
    from mads.config.compose import compose
    from mads.data.batch import make_batch
    from mads.model.decoder import Decoder
    from mads.train.engine import TrainEngine

    sizes = [f"model.hidden_size={hidden}", f"model.num_layers={layers}", f"model.ffn_hidden_size={hidden * 3}"]
    sizes += ["model.num_attention_heads=8", "model.num_key_value_heads=8", "model.vocab_size=8192", f"data.seq_length={ROW}"]
    config = compose(
        [
            "model=nano",
            "data=jsonl",
            "data.paths=[unused]",
            "train.micro_batch_size=1",
            f"train.global_batch_size={RANKS}",
            *sizes,
        ]
    )
    module = Decoder(config.model)
    engine = TrainEngine(module, topology, config.parallel, config.optim, config.train, torch.float32, torch.device("cpu"))
    tokens = np.random.default_rng(topology.rank).integers(0, 8192, ROW)
    return engine, make_batch([[tokens]], ROW), RANKS * (ROW - 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    folder = told.folder / "checkpoint-benchmark"
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    given = (str(folder), told.hidden, told.layers, told.rounds, answers)
    ranks = [context.Process(target=measure, args=(rank, *given)) for rank in range(RANKS)]
    try:
        for process in ranks:
            process.start()
        figures = answers.get(timeout=300)
    finally:
        for process in ranks:
            process.join(30)
            process.kill()
        shutil.rmtree(folder)
    seconds = figures.pop("seconds")
    stalls = zip(seconds["asynchronous stall"], seconds["synchronous stall"])
    figures["stall, asynchronous : synchronous"] = sorted(round(a / s, 3) for a, s in stalls)
    figures["medians, s"] = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    print(json.dumps(figures | {"load": os.getloadavg()}, indent=1))


if __name__ == "__main__":
    main()
