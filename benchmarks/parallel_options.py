"""What options of parallelism cost or save in the time of a step: overlap, sequence parallelism, recomputation, ZeRO's
overlap_comm, pipeline stages against their bubble.

    OMP_NUM_THREADS=1 python -m benchmarks.parallel_options --folder FOLDER [--hidden 512] [--layers 6] [--rounds 5]

Two processes, fp32, gloo. All engines of a comparison are there at once and take their steps in turn, so a machine whose speed
wanders does so under each. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time

import numpy as np
import torch

RANKS, LENGTH, ROWS = 2, 256, 8
TP, PP, SP = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2", "parallel.sequence_parallel=true"
AC, OVERLAP = "parallel.activation_checkpointing", "parallel.tensor_parallel_overlap"
# Comparison -> variant -> (ZeRO stage, rows of a micro-batch, overrides).
COMPARED = {
    "tensor parallel": {
        "overlap": (1, 4, [TP]),
        "no overlap": (1, 4, [TP, f"{OVERLAP}=false"]),
        "sequence parallel, overlap": (1, 4, [TP, SP]),
        "sequence parallel, no overlap": (1, 4, [TP, SP, f"{OVERLAP}=false"]),
    },
    "recomputation": {kind: (1, 4, [f"{AC}={kind}"]) for kind in ("none", "selective", "full")},
    "ZeRO 2": {
        "overlap_comm=false": (2, 4, ["parallel.zero_options.overlap_comm=false"]),
        "overlap_comm=true": (2, 4, ["parallel.zero_options.overlap_comm=true"]),
    },
    "two stages": {f"{ROWS // rows} micro-batches": (1, rows, [PP]) for rows in (8, 4, 2, 1)},
}


def engine_of(variant, hidden: int, layers: int, topologies: dict):
    """An engine and what it trains on."""
    from mads.config.compose import compose
    from mads.data.batch import make_batch
    from mads.topology import Topology, grid_of
    from mads.train.setup import build_engine

    zero, rows, more = variant
    model = [f"model.hidden_size={hidden}", f"model.ffn_hidden_size={3 * hidden}", f"model.num_layers={layers}"]
    model += ["model.num_attention_heads=8", "model.num_key_value_heads=8", "model.vocab_size=4096"]
    batch = [f"train.micro_batch_size={rows}", f"train.global_batch_size={ROWS * (1 if more[:1] in ([TP], [PP]) else RANKS)}"]
    common = ["model=nano", "data=jsonl", "data.paths=[none]", "data.dir=none", "run_dir=none", f"data.seq_length={LENGTH}"]
    config = compose([*common, *model, *batch, f"parallel=zero{zero}", *more])
    grid = grid_of(config.parallel, RANKS)
    topology = topologies.setdefault(grid, None) or Topology(grid)
    topologies[grid] = topology
    draw = np.random.default_rng(topology.coordinate("dp"))
    batches = [make_batch([[draw.integers(0, 4096, LENGTH)] for _ in range(rows)], LENGTH) for _ in range(ROWS // rows)]
    valid = sum(b.valid_tokens for b in batches) * topology.size("dp")
    return build_engine(config, topology, torch.float32, torch.device("cpu")), batches, valid


def measure(rank: int, folder: str, hidden: int, layers: int, rounds: int, answers) -> None:
    """One rank; rank 0 puts the figures into `answers`."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    topologies: dict = {}
    result = {}
    for name, variants in COMPARED.items():
        made = {variant: engine_of(settings, hidden, layers, topologies) for variant, settings in variants.items()}
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        for round_ in range(-1, rounds):  # the first warms up
            for variant, (engine, batches, valid) in made.items():
                torch.distributed.barrier()
                start = time.perf_counter()
                engine.train_step(batches, valid, 1e-4)
                if round_ >= 0:
                    seconds[variant].append(time.perf_counter() - start)
        first = next(iter(variants))
        result[name] = {
            variant: {
                "median_s": statistics.median(values),
                f"of '{first}', by round": sorted(round(v / f, 3) for v, f in zip(values, seconds[first])),
            }
            for variant, values in seconds.items()
        }
        made.clear()
    if rank == 0:
        answers.put(result)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    """Run both processes and print what rank 0 measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="an empty folder")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    settings = args.folder, args.hidden, args.layers, args.rounds, answers
    processes = [context.Process(target=measure, args=(rank, *settings)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    print(json.dumps(answers.get(), indent=1))
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
