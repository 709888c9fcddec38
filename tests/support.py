"""Small real prepared directories for tests, without a tokenizer or a corpus."""

from pathlib import Path

import numpy as np

from mads.data.attributes import write_column
from mads.data.indexed import token_dtype
from mads.data.parts import PartWriter, seal, window_lengths
from mads.data.pool import Pool, attribute_path
from mads.data.schema import AttributeSchema

LABELS = {
    "domain": ("news", "code", "books"),
    "quality": tuple("01234"),
    "topic": ("a", "b", "c", "d"),
    "likeness": ("low", "middle", "high"),
}


def make_pool(
    path,
    documents=40,
    labels=None,
    seed=0,
    *,
    seq_length=32,
    vocab_size=300,
    min_sample_tokens=4,
    shard_tokens=1500,
    max_document_tokens=120,
    heldout=5,
    continuous=("quality",),
) -> Pool:
    """Write a prepared directory of random tokens under `path` and open its train part.

    documents, heldout: number of documents of the two parts (token id 0 ends each document)
    labels: attribute -> label names; default domain (3), quality (5), topic (4), likeness (3). A document's samples share its
        labels.
    continuous: the attributes that also have a value (code + a fraction)
    """
    path, rng = Path(path), np.random.default_rng(seed)
    labels = labels or LABELS
    schemas = [AttributeSchema(name, names, name in continuous, {"labeller": "random"}) for name, names in labels.items()]
    (path / "references").mkdir(parents=True, exist_ok=True)
    parts = {}
    for part, count in (("train", documents), ("heldout", heldout)):
        per_document = []
        with PartWriter(path, part, token_dtype(vocab_size), shard_tokens) as writer:
            for _ in range(count):
                tokens = rng.integers(1, vocab_size, rng.integers(min_sample_tokens, max_document_tokens + 1))
                tokens[-1] = 0
                lengths = window_lengths(len(tokens), seq_length, min_sample_tokens)
                writer.add_document(tokens, lengths)
                per_document.append(len(lengths))
        parts[part] = writer.summary()
        for schema in schemas:
            codes = np.repeat(rng.integers(0, len(schema.labels), count), per_document)
            values = codes + rng.random(len(codes)) if schema.continuous else None
            borders = np.cumsum([0, *parts[part]["shards"]])
            for shard, own in enumerate(map(slice, borders[:-1], borders[1:])):
                place = attribute_path(path, part, schema.name, shard)
                write_column(place, schema, codes[own], values[own] if schema.continuous else None)
    seal(
        path,
        seq_length=seq_length,
        parts=parts,
        attributes=schemas,
        references={},
        source={"kind": "random", "seed": seed},
        tokenizer={"kind": "none", "file": "", "vocab_size": vocab_size, "eod": 0},
        rejected={},
    )
    return Pool.open(path)
