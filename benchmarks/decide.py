"""How long a decision takes by threshold search on a synthetic pool, and how the time grows. Pages: decide.md.

    OMP_NUM_THREADS=1 python -m benchmarks.decide --folder FOLDER --sizes 1e6 1e7 1e8 5.9e8 --ranks 2

Each rank is a process with a slice of the pool; columns are files that are read a piece at a time. Three label columns (5, 7, 13
labels, uint8), one float32 column, lengths int32, use counts uint16, ids int64: 21 bytes a sample. The files are removed
afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch.distributed as dist

from mads.console.decide import Candidates, select_gumbel, select_top_k
from mads.console.order import Draw, GumbelOrder, TopKOrder
from mads.console.slices import FileColumn, LabelScore, PoolSlice, SliceScores, ValueScore
from mads.console.threshold import select_by_threshold

LABELS = {"quality": 5, "domain": 7, "topic": 13}
THETA = np.array([0.4, 0.3, 0.2, 0.1])
ORDERS = {"top_k": TopKOrder(use_decay=0.1), "gumbel": GumbelOrder(temperature=0.5)}
SHARE = 8.5e6 / 590e6  # of the pool's tokens that is chosen, as the paper's documents
DTYPES = {"ids": np.int64, "lengths": np.int32, "uses": np.uint16, "length": np.float32} | dict.fromkeys(LABELS, np.uint8)


def write_pool(folder: Path, count: int, seed: int, piece: int = 1 << 22) -> int:
    """Columns of one slice; ids go on from `seed` * 2^40, as (shard, row). Returns its tokens."""
    rng, tokens = np.random.default_rng(seed), 0
    folder.mkdir(parents=True)
    files = {name: open(folder / name, "wb") for name in DTYPES}
    for start in range(0, count, piece):
        n = min(piece, count - start)
        lengths = rng.integers(16, 2049, n, dtype=np.int32)
        tokens += int(lengths.sum(dtype=np.int64))
        columns = {name: rng.integers(0, k, n, dtype=np.uint8) for name, k in LABELS.items()}
        columns |= {"ids": np.arange(start, start + n) + (seed << 40), "lengths": lengths, "uses": np.zeros(n, np.uint16)}
        columns["length"] = rng.standard_normal(n, dtype=np.float32)
        for name, column in columns.items():
            column.astype(DTYPES[name], copy=False).tofile(files[name])
    for file in files.values():
        file.close()
    return tokens


def read_slice(folder: Path) -> tuple[PoolSlice, SliceScores]:
    """The slice of `write_pool`, and its scores with fixed label weights."""
    columns = {name: FileColumn(folder / name, dtype) for name, dtype in DTYPES.items()}
    rng = np.random.default_rng(0)
    agents = [LabelScore(name, columns[name], rng.normal(size=k)) for name, k in LABELS.items()]
    agents.append(ValueScore("length", columns["length"]))
    return PoolSlice(columns["ids"], columns["lengths"], columns["uses"]), SliceScores(agents, THETA)


def peak_gib() -> float:
    """Most memory that this process has held. Linux keeps it in /proc; getrusage would count the parent's before the start."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def rank_main(rank: int, ranks: int, folder: str, size: int, pipe) -> None:
    """One process: write the slice, decide twice, report."""
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=datetime.timedelta(minutes=10))
    group = dist.group.WORLD
    count = size // ranks + (rank < size % ranks)
    all_tokens: list = [None] * ranks
    dist.all_gather_object(all_tokens, write_pool(Path(folder, str(rank)), count, rank))
    budget, (pool, scores) = int(sum(all_tokens) * SHARE), read_slice(Path(folder, str(rank)))
    report = {}
    for name, order in ORDERS.items():
        dist.barrier(group)
        start = time.perf_counter()
        decision = select_by_threshold(order, pool, scores, Draw(3, 5), budget, group)
        seconds = time.perf_counter() - start
        report[name] = {"seconds": seconds, "chosen": len(decision.ids), "tokens": decision.tokens, "budget": budget}
        report[name]["ids"] = hashlib.blake2b(decision.ids.tobytes(), digest_size=8).hexdigest()
    report["peak_gib"] = peak_gib()
    pipe.send(report)
    dist.destroy_process_group()


def full_sort(folder: Path, ranks: int, budget: int) -> dict[str, dict]:
    """The same decisions by mads.console.decide, with everything in memory."""
    parts = [read_slice(folder / str(rank)) for rank in range(ranks)]
    everything = slice(None)
    columns = [np.concatenate([getattr(p, name)[everything] for p, _ in parts]) for name in ("ids", "lengths", "uses")]
    candidates = Candidates(*columns)
    values = np.concatenate([np.stack([agent.score(slice(0, len(p))) for agent in s.agents]) for p, s in parts], axis=1)
    result = {}
    for name, select, setting in (("top_k", select_top_k, 0.1), ("gumbel", select_gumbel, 0.5)):
        start = time.perf_counter()
        decision = select(candidates, values, THETA, [*LABELS, "length"], setting, 3, 5, budget)
        ids = hashlib.blake2b(decision.ids.tobytes(), digest_size=8).hexdigest()
        result[name] = {"seconds": time.perf_counter() - start, "ids": ids}
    return result


def measure(size: int, ranks: int, parent: Path, compare: bool) -> dict:
    """One size: a fresh folder, one process a rank, and the full sort if asked."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for rank in range(ranks):
            here, there = context.Pipe(duplex=False)
            processes.append(context.Process(target=rank_main, args=(rank, ranks, str(folder), size, there)))
            processes[-1].start()
            there.close()
            pipes.append(here)
        reports = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
        result = {"size": size, "ranks": ranks, "peak_gib_of_each_rank": [r["peak_gib"] for r in reports]}
        for name in ORDERS:
            result[name] = reports[0][name]
            if any(r[name]["ids"] != result[name]["ids"] for r in reports):
                raise RuntimeError(f"ranks chose different ids by {name} at size {size}")
        if compare:
            for name, full in full_sort(folder, ranks, result["top_k"]["budget"]).items():
                result[name] |= {"full_sort_seconds": full["seconds"], "equal": full["ids"] == result[name]["ids"]}
        return result
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        shutil.rmtree(folder)


def main() -> None:
    """One line of JSON per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the pool's files lie for the time of the run")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--compare-up-to", type=float, default=2e7, help="largest size that is also sorted in full")
    args = parser.parse_args()
    for size in args.sizes:
        print(json.dumps(measure(int(size), args.ranks, args.folder, size <= args.compare_up_to)), flush=True)


if __name__ == "__main__":
    main()
