"""A small prepared directory of known texts, written file by file."""

import dataclasses

import numpy as np
from label_support import natural

from mads.data.attributes import write_column
from mads.data.indexed import IndexedWriter
from mads.data.pool import attribute_path, shard_prefix
from mads.data.schema import AttributeSchema, Manifest, sha256_of
from mads.data.tokenizer import Tokenizer, train_sentencepiece

SHARDS = {
    ("train", 0): slice(0, 60),
    ("train", 1): slice(60, 100),
    ("train", 2): slice(100, 100),
    ("heldout", 0): slice(100, 120),
}
WINDOW = 24
DOMAINS = ("food", "law", "space", "sport")


def write_prepared(path, texts=None):
    """Write the directory; returns its documents in order. Texts are cut into samples of at most WINDOW tokens."""
    documents = natural(120, seed=2)
    if texts is not None:
        documents = [dataclasses.replace(d, text=t) for d, t in zip(documents, texts)]
    path.mkdir(parents=True)
    train_sentencepiece((d.text for d in documents), 400, path / "tokenizer.model")
    tokenizer = Tokenizer.open(path / "tokenizer.model")
    domain = AttributeSchema("domain", DOMAINS, provenance={"labeller": "made"})
    parts = {part: {"documents": 0, "samples": 0, "tokens": 0, "shards": []} for part in ("train", "heldout")}
    for (part, shard), own in SHARDS.items():
        codes, entry = [], parts[part]
        (path / part).mkdir(exist_ok=True)
        with IndexedWriter(shard_prefix(path, part, shard), np.uint16) as writer:
            for document in documents[own]:
                tokens = np.append(tokenizer.encode([document.text])[0], tokenizer.eod)
                lengths = np.diff([*range(0, len(tokens), WINDOW), len(tokens)])
                writer.add_document(tokens, lengths)
                codes += [DOMAINS.index(document.domain)] * len(lengths)
        write_column(attribute_path(path, part, "domain", shard), domain, np.array(codes, np.uint16))
        entry["documents"] += len(documents[own])
        entry["samples"] += len(codes)
        entry["tokens"] += writer.tokens
        entry["shards"].append(len(codes))
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    files = {n: {"bytes": (path / n).stat().st_size, "sha256": sha256_of(path / n)} for n in names}
    record = {"kind": "sentencepiece", "file": "tokenizer.model", "vocab_size": 400, "eod": tokenizer.eod, "lossless": True}
    generation = {"source": {}, "shards": {"train": 3, "heldout": 1}, "rejected": {}, "removed": {}}
    Manifest(WINDOW, files, parts, [domain], {}, record, [generation]).write(path)
    return documents


def contents(path):
    """Relative path -> bytes of all files but the page."""
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in ("labels.html", "labelling"))
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in found}
