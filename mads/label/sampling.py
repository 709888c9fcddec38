"""Choose the documents that a labeller learns from, by what they say and not by where they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mads.data.documents import Document
from mads.noise import hash64


def content_ids(documents: Sequence[Document]) -> np.ndarray:
    """uint64 [n], a hash of each document's text."""
    digests = (hashlib.blake2b(d.text.encode("utf-8"), digest_size=8).digest() for d in documents)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64, len(documents))


def choose(documents: Sequence[Document], most: int, seed: int, stream: str) -> list[Document]:
    """At most `most` documents, those with the smallest hash, in the order of the hash: the order of the input plays no part."""
    keys = hash64(seed, stream, 0, content_ids(documents))
    return [documents[i] for i in np.argsort(keys, kind="stable")[:most]]
