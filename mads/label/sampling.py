"""Choose the documents that a labeller learns from, by what they say and not by where they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from mads.data.documents import Document
from mads.data.files import FilesSource
from mads.data.rejects import Rejects
from mads.noise import hash64

_MOST_REJECTED = 0.05


def content_ids(documents: Sequence[Document]) -> np.ndarray:
    """uint64 [n], a hash of each document's text."""
    digests = (hashlib.blake2b(d.text.encode("utf-8"), digest_size=8).digest() for d in documents)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64, len(documents))


def choose(documents: Sequence[Document], most: int, seed: int, stream: str) -> list[Document]:
    """At most `most` documents, those with the smallest hash, in the order of the hash: the order of the input plays no part."""
    keys = hash64(seed, stream, 0, content_ids(documents))
    return [documents[i] for i in np.argsort(keys, kind="stable")[:most]]


def hash_of(documents: Sequence[Document]) -> str:
    """Of all texts together, whatever their order, in hex."""
    return hashlib.sha256(np.sort(content_ids(documents)).tobytes()).hexdigest()[:16]


def read_texts(paths: Sequence[str], text_field: str) -> list[Document]:
    """All documents of files, folders or globs in the formats of data=files, as text to learn from.

    Raises:
        DataError: if a path matches nothing, or more than one input in twenty cannot be used.
    """
    rejects = Rejects()
    found = list(FilesSource(paths, text_field=text_field, domain_field=None).documents(rejects))
    rejects.raise_if_too_many(len(found), _MOST_REJECTED)
    return found


def up_to(documents: Sequence[Document], size: float) -> Iterator[Document]:
    """The first documents, until they hold `size` characters."""
    held = 0
    for document in documents:
        if held >= size:
            return
        held += len(document.text)
        yield document
