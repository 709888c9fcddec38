"""A generated pool: token ids without a text, by Zipf's law over the whole vocabulary, in samples of one length."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mads.data.attributes import write_column
from mads.data.indexed import IndexedWriter, token_dtype
from mads.data.pool import attribute_path, shard_prefix
from mads.data.schema import AttributeSchema, DataError, Manifest, sha256_of

BLOCK = 1 << 22  # tokens drawn at a time


def write_pool(folder: Path, vocabulary: int, seq_length: int, sample_tokens: int, tokens: int, seed: int = 0) -> None:
    """A prepared directory with at least `tokens` to train on and 16 held-out samples; one that is there already stays.

    Raises:
        ValueError: samples that are longer than a row or too short to train on.
    """
    if not 2 <= sample_tokens <= seq_length:
        raise ValueError(f"samples of {sample_tokens} tokens: at least 2, and at most data.seq_length={seq_length}")
    if _is_there(folder):
        return
    domain = AttributeSchema("domain", ("generated",), provenance={"labeller": "benchmarks.mfu"})
    parts = {}
    for part, samples in (("train", -(-tokens // sample_tokens)), ("heldout", 16)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        with IndexedWriter(shard_prefix(folder, part, 0), token_dtype(vocabulary)) as writer:
            _draw(writer, samples, sample_tokens, vocabulary, np.random.default_rng([seed, part == "train"]))
        write_column(attribute_path(folder, part, "domain", 0), domain, np.zeros(samples, np.uint16))
        parts[part] = {"documents": samples, "samples": samples, "tokens": writer.tokens, "shards": [samples]}
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in names}
    record = {"kind": "none", "file": "", "vocab_size": vocabulary, "eod": 0, "lossless": False}
    generation = {"source": {"generated": seed}, "shards": {"train": 1, "heldout": 1}, "rejected": {}, "removed": {}}
    Manifest(seq_length, files, parts, [domain], {}, record, [generation]).write(folder)


def _is_there(folder: Path) -> bool:
    try:
        Manifest.read(folder)
    except DataError:
        return False
    return True


def _draw(writer: IndexedWriter, samples: int, length: int, vocabulary: int, generator: np.random.Generator) -> None:
    """Rank r with a frequency that falls as 1 / r, by the inverse of its (continuous) distribution."""
    step = max(1, BLOCK // length)
    for first in range(0, samples, step):
        drawn = np.exp(generator.random((min(step, samples - first), length)) * np.log(vocabulary + 1)) - 1
        for row in np.minimum(drawn, vocabulary - 1).astype(np.int64):
            writer.add_document(row, np.array([length]))
