"""The pool, the batches and the start weights of a cell, written once by mads for all contestants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mads.data.attributes import write_column
from mads.data.indexed import IndexedWriter
from mads.data.loader import Loader
from mads.data.parts import seal
from mads.data.pool import Pool, attribute_path, shard_prefix
from mads.data.schema import AttributeSchema
from mads.export.llama import pieces
from mads.model.decoder import Decoder

from .cell import FIELDS, Cell

STEPS = 6  # of which the pool holds batches; they come again and again


def document_lengths(cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each document, enough for STEPS steps. "packed": log-normal around a quarter of a row."""
    rows = cell.rows * cell.accumulation * cell.processes * STEPS
    if cell.documents == "whole":
        return np.full(rows, cell.seq_length)
    most = int(1.06 * rows * cell.seq_length) + cell.seq_length
    lengths = rng.lognormal(np.log(cell.seq_length / 4) - 0.125, 0.5, most // 8)
    lengths = np.clip(lengths.astype(np.int64), 8, cell.seq_length)
    return lengths[: np.searchsorted(np.cumsum(lengths), most)]


def write_pool(cell: Cell, folder: Path) -> None:
    """A prepared directory of random tokens."""
    rng, schema = np.random.default_rng(0), AttributeSchema("label", ("a", "b"))
    lengths = document_lengths(cell, rng)
    (folder / "train").mkdir(parents=True)
    with IndexedWriter(shard_prefix(folder, "train", 0), np.uint16) as writer:
        for length in lengths:
            writer.add_document(rng.integers(0, cell.shape.vocab_size, length, dtype=np.uint16), [length])
    write_column(attribute_path(folder, "train", "label", 0), schema, np.zeros(writer.sequences, np.uint16))
    part = {"documents": writer.documents, "samples": writer.sequences, "tokens": writer.tokens, "shards": [writer.sequences]}
    seal(
        folder,
        seq_length=cell.seq_length,
        parts={"train": part},
        attributes=[schema],
        references={},
        source={},
        tokenizer={"kind": "none", "file": "", "vocab_size": cell.shape.vocab_size, "eod": 0},
        rejected={},
    )


def write_batches(cell: Cell, folder: Path) -> dict:
    """The batches that mads' loader makes of the pool, one file a rank. Returns a step's mean tokens, targets and documents."""
    pool, found = Pool.open(folder / "pool"), {}
    for rank in range(cell.processes):
        total = cell.rows * cell.accumulation * cell.processes
        loader = Loader(pool, cell.seq_length, total, cell.rows, rank, cell.processes)
        loader.begin_round(0, np.asarray(pool.ids[:]))
        steps = []
        while not loader.exhausted:
            steps.append(loader.next())
        arrays = {name: np.stack([[getattr(b, name).numpy() for b in s.micro_batches] for s in steps]) for name in FIELDS}
        np.savez(folder / f"batches-{rank}.npz", **arrays)
        mean = lambda values: float(np.mean(values))
        found = {
            "steps": len(steps),
            "tokens": mean([s.tokens for s in steps]),
            "targets": mean([s.valid_tokens for s in steps]),
            "documents": mean([len(s.sample_ids) for s in steps]),
        }
    return found


def write_weights(config, folder: Path) -> int:
    """Start weights under transformers' names; returns their number.

    Args:
        config: mads' whole configuration of the cell.
    """
    weights = {name: p.detach() for name, p in Decoder(config.model, seed=config.train.seed).named_parameters()}
    theirs = {p.theirs: weights[p.ours][p.start : p.start + p.shape[0]].clone() for p in pieces(config.model)}
    save_file(theirs, folder / "weights.safetensors")
    return sum(tensor.numel() for tensor in theirs.values())


def write_cell(cell: Cell, folder: Path) -> dict:
    """Everything that the contestants of a cell read."""
    from .cell import Job
    from .ours import configuration

    folder.mkdir(parents=True)
    write_pool(cell, folder / "pool")
    parameters = write_weights(configuration(Job("mads", cell, str(folder))), folder)
    return write_batches(cell, folder) | {"parameters": parameters}


def matmul_peak(size: int = 1024, repeats: int = 8) -> float:
    """GFLOP/s of a product of two fp32 matrices on one thread, the best of `repeats`."""
    import time

    torch.set_num_threads(1)
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9
