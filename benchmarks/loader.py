"""How fast the loader reads and packs, with a cold and a warm page cache, against plain reads of the same bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.loader --folder FOLDER [--gigabytes 1] [--seconds 6]
    OMP_NUM_THREADS=1 python -m benchmarks.loader --round 8500000

The first form writes two pools into FOLDER (short samples; samples of a full row) unless they are there. "Cold" means that the
kernel was told to forget the token files before they are mapped (posix_fadvise DONTNEED); a cache of the machine below a virtual
disk is not emptied. The second form measures the start of a round of so many samples.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mads.data.attributes import write_column
from mads.data.columns import IdColumn
from mads.data.indexed import IndexedWriter, TokenShards
from mads.data.loader import Loader
from mads.data.parts import seal
from mads.data.pool import Pool, attribute_path, shard_prefix
from mads.data.schema import AttributeSchema

SEQ, GLOBAL, MICRO, SHARDS, COLD_STEPS = 2048, 64, 8, 2, 24
SETUPS = [(0, 0, True), (0, 0, False), (2, 0, True), (2, 0, False), (2, 1, True), (2, 1, False), (2, 2, True), (2, 2, False)]


def lengths_of(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Token counts of samples: `short` as web documents in a long context, `long` as windows that fill a row."""
    if kind == "long":
        return np.full(count, SEQ)
    return np.clip(rng.lognormal(5.3, 1.0, count).astype(np.int64), 16, SEQ)


def write_pool(folder: Path, kind: str, gigabytes: float) -> None:
    """A prepared directory of random tokens, uint16."""
    rng, schema = np.random.default_rng(0), AttributeSchema("label", ("a", "b"))
    part = {"documents": 0, "samples": 0, "tokens": 0, "shards": []}
    (folder / "train").mkdir(parents=True)
    for shard in range(SHARDS):
        with IndexedWriter(shard_prefix(folder, "train", shard), np.uint16) as writer:
            while writer.tokens < gigabytes * 1e9 / 2 / SHARDS:
                lengths = lengths_of(kind, 4096, rng)
                writer.add_document(rng.integers(0, 32000, lengths.sum(), dtype=np.uint16), lengths)
        codes = np.zeros(writer.sequences, np.uint16)
        write_column(attribute_path(folder, "train", "label", shard), schema, codes)
        part["shards"].append(writer.sequences)
        for key, value in (("documents", writer.documents), ("samples", writer.sequences), ("tokens", writer.tokens)):
            part[key] += value
    tokenizer = {"kind": "none", "file": "", "vocab_size": 32000, "eod": 0}
    seal(
        folder,
        seq_length=SEQ,
        parts={"train": part},
        attributes=[schema],
        references={},
        source={},
        tokenizer=tokenizer,
        rejected={},
    )


def forget(folder: Path) -> None:
    """Drop the token files from the page cache; nothing may have them mapped."""
    for path in folder.glob("train/*.bin"):
        with open(path, "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_up(folder: Path) -> None:
    """Read the token files once."""
    for path in folder.glob("train/*.bin"):
        with open(path, "rb") as f:
            while f.read(1 << 24):
                pass


def run_loader(folder: Path, setup: tuple[int, int, bool], seconds: float | None) -> tuple[float, float]:
    """(tokens a second behind the first step, seconds until the first step). seconds: None = COLD_STEPS steps."""
    prefetch, workers, ahead = setup
    original = TokenShards.will_need
    if not ahead:
        TokenShards.will_need = lambda self, positions: None
    try:
        pool = Pool.open(folder)
        ids = np.random.default_rng(1).permutation(pool.ids[:])[: 2 * 64 * GLOBAL * COLD_STEPS]
        with Loader(pool, SEQ, GLOBAL, MICRO, 0, 1, prefetch, workers) as loader:
            if workers:  # their processes are started before the clock
                loader.begin_round(-1, ids[::-1])
                loader.next()
            begin = time.perf_counter()
            loader.begin_round(0, ids)
            loader.next()
            start, tokens, steps = time.perf_counter(), 0, 0
            while not loader.exhausted and (steps < COLD_STEPS if seconds is None else time.perf_counter() - start < seconds):
                tokens += loader.next().tokens
                steps += 1
            return tokens / (time.perf_counter() - start), start - begin
    finally:
        TokenShards.will_need = original


def run_reads(folder: Path, seconds: float | None, ordered: bool) -> float:
    """Tokens a second of copying samples out of the memory map: as they lie, or in a random order. The limit for one thread."""
    pool = Pool.open(folder)
    order = np.arange(len(pool)) if ordered else np.random.default_rng(1).permutation(len(pool))
    start, tokens = time.perf_counter(), 0
    for first in range(0, len(order), 256):
        tokens += len(np.concatenate(pool.tokens(order[first : first + 256])))
        if tokens > SEQ * GLOBAL * COLD_STEPS if seconds is None else time.perf_counter() - start > seconds:
            break
    return tokens / (time.perf_counter() - start)


def measure(folder: Path, gigabytes: float, seconds: float) -> None:
    """Print the tables."""
    for kind in ("short", "long"):
        place = folder / kind
        if not (place / "manifest.json").exists():
            write_pool(place, kind, gigabytes)
        pool = Pool.open(place)
        print(f"\n{kind}: {len(pool):,} samples of {pool.total_tokens / len(pool):.0f} tokens, {pool.total_tokens:,} tokens\n")
        del pool
        print("| prefetch | workers | read-ahead | cold, Mtok/s | warm, Mtok/s | first step cold, s |\n|---|---|---|---|---|---|")
        for setup in SETUPS:
            forget(place)
            cold, first = run_loader(place, setup, None)
            warm_up(place)
            warm, _ = run_loader(place, setup, seconds)
            prefetch, workers, ahead = setup
            row = f"| {prefetch} | {workers} | {'on' if ahead else 'off'} | {cold / 1e6:.2f} | {warm / 1e6:.1f} | {first:.2f} |"
            print(row, flush=True)
        for ordered in (True, False):
            forget(place)
            cold = run_reads(place, None, ordered)
            warm_up(place)
            warm = run_reads(place, seconds, ordered)
            what = "in the order of the files" if ordered else "in random order"
            print(f"| reads {what} | | | {cold / 1e6:.2f} | {warm / 1e6:.1f} | |", flush=True)


class SyntheticPool:
    """What begin_round needs of a pool, of `n` samples in memory."""

    def __init__(self, n: int, part: str = "train"):
        lengths = lengths_of("short", n, np.random.default_rng(0)).astype(np.int32)
        self.lengths, self.part, self.ids = lengths, part, IdColumn([n])
        self.manifest = SimpleNamespace(seq_length=SEQ)
        self.token_shards = SimpleNamespace(will_need=lambda positions: None)

    def positions_of(self, ids: np.ndarray) -> np.ndarray:
        return ids


def measure_round(count: int) -> None:
    """Print the seconds of begin_round, of a resume near the end, and of packing everything."""
    pool = SyntheticPool(count)
    ids = np.random.default_rng(2).permutation(count)
    loader = Loader(pool, SEQ, GLOBAL, MICRO, 0, 1)
    start = time.perf_counter()
    loader.begin_round(0, ids)
    print(f"begin_round of {count:,} samples: {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    rows = loader._packer.take_all().rows
    seconds = time.perf_counter() - start
    print(f"packing all of it: {seconds:.2f} s, {seconds / count * 1e6:.2f} us a sample, {rows:,} rows further")
    start = time.perf_counter()
    loader.begin_round(0, ids, int(0.99 * (rows // GLOBAL)))
    print(f"begin_round at 99% of the round: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--round", type=int)
    args = parser.parse_args()
    if args.round:
        measure_round(args.round)
    if args.folder:
        measure(args.folder, args.gigabytes, args.seconds)
