"""A first look at all documents: their keys and sizes, which are held out, and which ones labellers and tokenizer learn from."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mads.data.documents import Document, Rejects, Source
from mads.data.schema import DataError
from mads.noise import hash64

SMALLEST_HELDOUT_DOMAIN = 10  # different documents; a smaller domain is trained on as a whole


def text_key(text: str) -> int:
    """64 bits of the text's hash: equal texts have equal keys."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


class Corpus:
    """The documents of a source, for several passes. Up to `memory_bytes` of text is kept; a larger source is read again."""

    def __init__(self, source: Source, memory_bytes: int = 512_000_000):
        self._source, self._memory_bytes = source, memory_bytes
        self._kept: list[Document] | None = None

    def read(self, rejects: Rejects) -> Iterator[Document]:
        """The first pass, which also lists what could not be read."""
        kept, size = [], 0
        for document in self._source.documents(rejects):
            size += len(document.text)
            if size > self._memory_bytes:
                kept.clear()
            else:
                kept.append(document)
            yield document
        self._kept = kept if size <= self._memory_bytes else None

    def __iter__(self) -> Iterator[Document]:
        return iter(self._kept) if self._kept is not None else self._source.documents(Rejects())


@dataclass(frozen=True)
class Survey:
    """keys: uint64 [n], text_key of each document; sizes: int64 [n], bytes; codes: int64 [n], index into `domains`."""

    keys: np.ndarray
    sizes: np.ndarray
    codes: np.ndarray
    domains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)


def survey(documents: Iterable[Document]) -> Survey:
    """Read all documents once, keeping 24 bytes of each."""
    keys, sizes, codes = array("Q"), array("q"), array("q")
    domains: dict[str, int] = {}
    for document in documents:
        keys.append(text_key(document.text))
        sizes.append(len(document.text.encode("utf-8")))
        codes.append(domains.setdefault(document.domain, len(domains)))
    return Survey(np.array(keys, np.uint64), np.array(sizes, np.int64), np.array(codes, np.int64), tuple(domains))


def heldout_documents(found: Survey, fraction: float, seed: int) -> np.ndarray:
    """Which documents are held out, bool [n]: of each domain `fraction` of its different texts, at least one, by a hash.

    Equal texts are never on both sides, not even in two domains. A domain of fewer than SMALLEST_HELDOUT_DOMAIN different texts
    holds nothing out.
    """
    if not 0 <= fraction <= 0.5:
        raise DataError(f"heldout_fraction {fraction} must be between 0 and 0.5")
    if fraction == 0:
        return np.zeros(len(found), dtype=bool)
    chosen = [np.zeros(0, np.uint64)]
    for code in range(len(found.domains)):
        keys = np.unique(found.keys[found.codes == code])
        if len(keys) >= SMALLEST_HELDOUT_DOMAIN:
            count = max(1, round(fraction * len(keys)))
            chosen.append(keys[np.argsort(hash64(seed, "heldout", 0, keys), kind="stable")[:count]])
    return np.isin(found.keys, np.concatenate(chosen))


def fit_documents(found: Survey, train: np.ndarray, max_bytes: float, seed: int) -> np.ndarray:
    """Ascending indices of the training documents to learn from: about max_bytes of text by its hash, and one of every domain."""
    candidates = np.flatnonzero(train)
    order = candidates[np.argsort(hash64(seed, "fit", 0, found.keys[candidates]), kind="stable")]
    before = np.cumsum(found.sizes[order]) - found.sizes[order]
    first_of_domain = order[np.unique(found.codes[order], return_index=True)[1]]
    return np.union1d(order[before < max_bytes], first_of_domain)
