"""Megatron's own reader and writer of token files, run as a program of its own: its import changes torch for the whole process.

    python tests/megatron_peer.py JOBS ANSWERS

JOBS: JSON list of {"do": "read", "prefix", "mmap"} | {"do": "write", "prefix", "dtype", "documents": [[sequence, ...], ...]} |
{"do": "copy", "prefix", "target"}; a sequence is a list of tokens. ANSWERS: a JSON list, null for what is only done.
"""

import json
import sys

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder


def read(prefix, mmap=True, longest=20):
    """What Megatron sees. Of a sequence longer than `longest` only the first and the last 3 tokens."""
    data = IndexedDataset(prefix, mmap=mmap)
    sequences = []
    for i, length in enumerate(data.sequence_lengths.tolist()):
        if length <= longest:
            sequences.append(np.asarray(data[i]).tolist())
        else:
            sequences.append(data.get(i, 0, 3).tolist() + data.get(i, length - 3, 3).tolist())
    return {
        "dtype": np.dtype(data.index.dtype).name,
        "lengths": data.sequence_lengths.tolist(),
        "documents": data.document_indices.tolist(),
        "sequences": sequences,
    }


def write(prefix, dtype, documents):
    """One add_document for each document, as tools/preprocess_data.py does."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=getattr(np, dtype))
    for sequences in documents:
        tokens = [token for sequence in sequences for token in sequence]
        builder.add_document(torch.tensor(tokens, dtype=torch.int64), [len(s) for s in sequences])
    builder.finalize(f"{prefix}.idx")


def copy(prefix, target):
    """Read by IndexedDataset, written again by IndexedDatasetBuilder."""
    data = IndexedDataset(prefix)
    builder = IndexedDatasetBuilder(f"{target}.bin", dtype=data.index.dtype)
    for first, last in zip(data.document_indices[:-1].tolist(), data.document_indices[1:].tolist()):
        for i in range(first, last):
            builder.add_item(torch.as_tensor(np.asarray(data[i]).astype(np.int64)))
        builder.end_document()
    builder.finalize(f"{target}.idx")


if __name__ == "__main__":
    jobs = json.load(open(sys.argv[1]))
    answers = [{"read": read, "write": write, "copy": copy}[job.pop("do")](**job) for job in jobs]
    json.dump(answers, open(sys.argv[2], "w"))
