"""How long a decision takes by threshold search on a synthetic pool, and how the time grows. Pages: decide.md.

    OMP_NUM_THREADS=1 python -m benchmarks.decide --folder FOLDER --sizes 1e6 1e7 1e8 5.9e8 --ranks 2

Each rank is a process with a slice of the pool; columns are files that are read a piece at a time. Three label columns (5, 7, 13
labels, uint8), one float32 column, lengths int32, use counts uint16, ids int64: 21 bytes a sample. The files are removed
afterwards. Decisions: top-k; Gumbel top-k; Gumbel top-k with least and greatest shares of the domains; stratified by the 455
joint cells of all labels.
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

from mads.console.decide import Bounds, Candidates, Plan, Strata, decide
from mads.console.order import Draw, GumbelOrder, HashOrder, TopKOrder
from mads.console.slices import CallScore, Cells, FileColumn, LabelScore, PoolSlice, SliceScores
from mads.console.threshold import select_by_threshold

LABELS = {"quality": 5, "domain": 7, "topic": 13}
THETA = np.array([0.4, 0.3, 0.2, 0.1])
# Bounds of the seven domains: two minima above their share of a seventh, two maxima below it.
BOUNDS = Bounds([f"domain{j}" for j in range(7)], np.array([0.2, 0.25, 0, 0, 0, 0, 0]), np.array([1, 1, 0.05, 0.1, 1, 1, 1.0]))
KINDS = {  # order, split, attributes of its cells
    "top_k": (TopKOrder(use_decay=0.1), None, ()),
    "gumbel": (GumbelOrder(temperature=0.5), None, ()),
    "bounds": (GumbelOrder(temperature=0.5), BOUNDS, ("domain",)),
    "stratified": (HashOrder(), Strata(5 * 7 * 13, str, "uniform"), tuple(LABELS)),
}
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


def read_slice(folder: Path) -> tuple[PoolSlice, dict[str, FileColumn], SliceScores]:
    """The slice of `write_pool`, its columns, and its scores with fixed label weights."""
    columns = {name: FileColumn(folder / name, dtype) for name, dtype in DTYPES.items()}
    rng = np.random.default_rng(0)
    agents = [LabelScore(name, columns[name], rng.normal(size=k)) for name, k in LABELS.items()]
    agents.append(CallScore("length", lambda where: columns["length"][where].astype(np.float64)))
    return PoolSlice(columns["ids"], columns["lengths"], columns["uses"]), columns, SliceScores(agents, THETA)


def cells_of(columns: dict, attributes: tuple[str, ...]) -> Cells | None:
    """The joint cells of some label columns; None if there are no attributes."""
    return Cells(attributes, [columns[a] for a in attributes], [LABELS[a] for a in attributes]) if attributes else None


def peak_gib() -> float:
    """Most memory that this process has held. Linux keeps it in /proc; getrusage would count the parent's before the start."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def rank_main(rank: int, ranks: int, folder: str, size: int, pipe) -> None:
    """One process: write the slice, take every kind of decision, report."""
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=datetime.timedelta(minutes=10))
    group = dist.group.WORLD
    count = size // ranks + (rank < size % ranks)
    all_tokens: list = [None] * ranks
    dist.all_gather_object(all_tokens, write_pool(Path(folder, str(rank)), count, rank))
    budget, (pool, columns, scores) = int(sum(all_tokens) * SHARE), read_slice(Path(folder, str(rank)))
    report = {}
    for name, (order, split, attributes) in KINDS.items():
        plan, cells = Plan(order, Draw(3, 5), budget, split), cells_of(columns, attributes)
        dist.barrier(group)
        start, busy = time.perf_counter(), time.process_time()
        decision = select_by_threshold(plan, pool, cells, scores if order.scored else None, group)
        busy = time.process_time() - busy
        dist.barrier(group)
        report[name] = {"seconds": time.perf_counter() - start, "cpu_seconds": busy, "budget": budget}
        if decision is not None:
            ids = hashlib.blake2b(decision.ids.tobytes(), digest_size=8).hexdigest()
            report[name] |= {"chosen": len(decision.ids), "tokens": decision.tokens, "ids": ids}
    report["peak_gib"] = peak_gib()
    pipe.send(report)
    dist.destroy_process_group()


def full_sort(folder: Path, ranks: int, budget: int) -> dict[str, dict]:
    """The same decisions by mads.console.decide, with everything in memory."""
    parts = [read_slice(folder / str(rank)) for rank in range(ranks)]
    everything = slice(None)
    joined = [np.concatenate([getattr(p, name)[everything] for p, *_ in parts]) for name in ("ids", "lengths", "uses")]
    candidates = Candidates(*joined)
    labels = {a: np.concatenate([columns[a][everything] for _, columns, _ in parts]) for a in LABELS}
    total = np.concatenate([scores.total(slice(0, len(p))) for p, _, scores in parts])
    result = {}
    for name, (order, split, attributes) in KINDS.items():
        cells = cells_of(labels, attributes)[slice(0, len(total))] if attributes else None
        start = time.perf_counter()
        decision = decide(Plan(order, Draw(3, 5), budget, split), candidates, total if order.scored else None, cells)
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
        result |= {name: reports[0][name] for name in KINDS}
        for name in KINDS:
            result[name]["cpu_seconds"] = max(r[name]["cpu_seconds"] for r in reports)
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
    """One line of JSON per size. cpu_seconds: of the busiest process, which other work on the cores does not lengthen much."""
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
