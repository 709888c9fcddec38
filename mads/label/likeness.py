"""Likeness to the reference tasks: how much better a model of their text foretells a sample than a model of the pool does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller
from mads.label.calibration import quantile_bins, quantile_edges, quantile_names
from mads.noise import hash64

_FEWEST = 20
_BLOCK = 1 << 20  # tokens looked up at a time
_MOST_RANKED = 20_000  # samples that the bins' edges are taken from


@dataclass(frozen=True)
class _Row:
    """Samples in one row. token: int64 [t]; sample: int64 [t], of each token; first: bool [t], where a sample begins."""

    token: np.ndarray
    sample: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[np.ndarray]) -> _Row:
        sample = np.repeat(np.arange(len(samples)), [len(s) for s in samples])
        return cls(np.concatenate(samples).astype(np.int64), sample, np.diff(sample, prepend=-1) > 0)

    def pairs(self, vocab_size: int) -> np.ndarray:
        """One number for each token and the one before it, int64 [t]; without meaning where a sample begins."""
        return np.concatenate([[0], self.token[:-1]]) * vocab_size + self.token


@dataclass(frozen=True)
class _Bigrams:
    """A bigram model of tokens: p_1 with one added to each count, p_2 smoothed by p_1 (MacKay and Peto 1995).

    single: float64 [V], counts of tokens; pair: int64 [k], ascending, the pairs that were seen, and count: float64 [k]
    """

    single: np.ndarray
    pair: np.ndarray
    count: np.ndarray

    @classmethod
    def counted(cls, groups: Sequence[Sequence[np.ndarray]], vocab_size: int) -> _Bigrams:
        """Every group counts for the same number of tokens, all together for as many as they hold."""
        rows = [_Row.of(group) for group in groups]
        total = sum(len(row.token) for row in rows)
        singles, pairs, counts = np.zeros(vocab_size), [], []
        for row in rows:
            weight = total / len(rows) / len(row.token)
            singles += weight * np.bincount(row.token, minlength=vocab_size)
            found, times = np.unique(row.pairs(vocab_size)[~row.first], return_counts=True)
            pairs.append(found)
            counts.append(weight * times)
        pair, place = np.unique(np.concatenate(pairs), return_inverse=True)
        return cls(singles, pair, np.bincount(place, np.concatenate(counts), len(pair)))

    def log_probability(self, row: _Row, smoothing: float, own: np.ndarray | None = None) -> np.ndarray:
        """ln p of each token given the one before it, float64 [t].

        own: bool, of each sample, whether it was counted itself: then it is foretold from the others.
        """
        size, pairs = len(self.single), row.pairs(len(self.single))
        followers = np.bincount(self.pair // size, self.count, size)
        single, total = self.single[row.token], np.full(len(row.token), self.single.sum())
        place = np.minimum(np.searchsorted(self.pair, pairs), len(self.pair) - 1)
        both = np.where(self.pair[place] == pairs, self.count[place], 0.0) if len(self.pair) else np.zeros(len(pairs))
        context = followers[np.concatenate([[0], row.token[:-1]])]
        if own is not None and own[row.sample].any():
            mine = own[row.sample]
            single, total = single - _times(row.sample, row.token, mine), total - mine * np.bincount(row.sample)[row.sample]
            both = both - _times(row.sample, pairs, mine & ~row.first)
            context = context - _times(row.sample, pairs // size, mine & ~row.first)
        alone = (single + 1.0) / (total + size)
        return np.log(np.where(row.first, alone, (both + smoothing * alone) / (context + smoothing)))


def _times(sample: np.ndarray, what: np.ndarray, where: np.ndarray) -> np.ndarray:
    """How often each place's value stands in its sample at places `where`, float64; 0 elsewhere."""
    times = np.zeros(len(what))
    keys = sample[where] * (what.max() + 1) + what[where]
    _, which, count = np.unique(keys, return_inverse=True, return_counts=True)
    times[where] = count[which]
    return times


class ReferenceLikeness(FittedLabeller):
    """Cross-entropy difference of a sample, in nats a token, in quantile bins (Moore and Lewis, ACL 2010):

        value = 1/T sum_t ln p_references(x_t | x_(t-1)) - ln p_pool(x_t | x_(t-1))

    over the T tokens of the sample. Both models are bigrams of the run's own tokens,

        p(w | c) = (count(c w) + smoothing p(w)) / (count(c) + smoothing),   p(w) = (count(w) + 1) / (tokens + V),

    counted on as much text: the direction part of the reference tasks (never the parts that audit and report), each task
    with the same weight however long it is, and as many tokens of the pool, if it has them. What a model lacks, the other
    lacks by the same measure. High values are text that reads as the references do; text that no model would foretell has no
    advantage.

    Values are those of samples: a long document has passages of every kind. A sample that the pool's model was counted on is
    foretold from the others, so that its value does not depend on whether it was drawn.

    Args:
        smoothing: weight of p(w), in counts.
        bins: number of labels.
        seed: of the sample of the pool.
    """

    name = "likeness"
    unit = "sample"
    learns_references = True

    def __init__(self, smoothing: float = 50.0, bins: int = 10, seed: int = 0):
        if not smoothing > 0 or bins < 2:
            raise DataError(f"smoothing={smoothing} must be positive, bins={bins} at least 2")
        self.smoothing, self.bins, self.seed = float(smoothing), bins, seed
        self._tasks: dict[str, list[np.ndarray]] = {}
        self._vocab_size = 0

    def parameters(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing, "bins": self.bins, "seed": self.seed}

    def see_reference_tokens(self, tasks: Mapping[str, Sequence[np.ndarray]], vocab_size: int) -> None:
        self._tasks, self._vocab_size = {name: [t for t in own if len(t)] for name, own in tasks.items()}, vocab_size

    def fit(self, samples: Sequence[np.ndarray]) -> None:
        """Raises:
        DataError: a reference task without text, or fewer than 20 different samples.
        """
        if empty := [name for name, own in self._tasks.items() if not own]:
            raise DataError(f"the reference task {empty[0]!r} has no text in its direction part, so nothing can be like it")
        ids, first = np.unique(_ids(samples), return_index=True)
        if len(first) < _FEWEST or not self._tasks:
            have = f"there are {len(self._tasks)} and {len(first)}"
            raise DataError(
                f"likeness needs reference tasks and at least {_FEWEST} different samples; {have}: add what is missing, or leave "
                "the attribute out of data.attributes"
            )
        chosen = [samples[i] for i in first[np.argsort(hash64(self.seed, "likeness-fit", 0, ids), kind="stable")]]
        tokens = sum(len(text) for own in self._tasks.values() for text in own)
        ends = np.cumsum([len(sample) for sample in chosen])
        counted = min(max(_FEWEST, int(np.searchsorted(ends, tokens)) + 1), len(chosen))
        self._own = np.sort(_ids(chosen[:counted]))
        self._references = _Bigrams.counted(list(self._tasks.values()), self._vocab_size)
        self._pool = _Bigrams.counted([chosen[:counted]], self._vocab_size)
        values = self._values(chosen[:_MOST_RANKED])
        self._edges = quantile_edges(values, self.bins)
        self._learned = {
            "tasks": sorted(self._tasks),
            "reference_tokens": tokens,
            "reference_hash": _hash_of([text for _, own in sorted(self._tasks.items()) for text in own]),
            "fit_samples": counted,
            "fit_tokens": int(ends[counted - 1]),
            "fit_hash": _hash_of(chosen[:counted]),
            "mean": round(float(values.mean()), 4),
        }
        self._fitted = True

    def _values(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [n]. A sample's terms are added one after the other, so that no other sample changes a bit."""
        found = [np.zeros(0)]
        for part in _blocks(samples):
            row = _Row.of(part)
            own = np.isin(_ids(part), self._own)
            gain = self._references.log_probability(row, self.smoothing) - self._pool.log_probability(row, self.smoothing, own)
            found.append(np.bincount(row.sample, gain) / np.bincount(row.sample))
        return np.concatenate(found)

    def label(self, samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], nats a token float32 [n]) of samples' tokens.

        Raises:
            RuntimeError: before `fit`.
            DataError: a sample without tokens, or a token that is not in the vocabulary.
        """
        self._require_fit()
        size = len(self._pool.single)
        if wrong := [i for i, s in enumerate(samples) if not len(s) or not 0 <= s.min() <= s.max() < size]:
            raise DataError(f"sample {wrong[0]} has no token, or one that is not in the vocabulary of {size}")
        values = self._values(samples).astype(np.float32)
        return quantile_bins(values, self._edges), values

    def _facts(self) -> dict[str, Any]:
        return self._learned

    def _arrays(self) -> dict[str, np.ndarray]:
        models = {"references": self._references, "pool": self._pool}
        arrays = {f"{who}_{what}": getattr(model, what) for who, model in models.items() for what in ("single", "pair", "count")}
        return {**arrays, "own": self._own, "edges": self._edges}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        models = [_Bigrams(*(arrays[f"{who}_{what}"] for what in ("single", "pair", "count"))) for who in ("references", "pool")]
        self._references, self._pool = models
        self._learned, self._own, self._edges = facts, arrays["own"], arrays["edges"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(
            self.name, quantile_names(self._edges), continuous=True, provenance=self.provenance(**self._learned)
        )


def _ids(samples: Sequence[np.ndarray]) -> np.ndarray:
    """uint64 [n], a hash of each sample's tokens."""
    digests = (hashlib.blake2b(np.asarray(s, np.int64).tobytes(), digest_size=8).digest() for s in samples)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64, len(samples))


def _hash_of(samples: Sequence[np.ndarray]) -> str:
    """Of all samples together, whatever their order, in hex."""
    return hashlib.sha256(np.sort(_ids(samples)).tobytes()).hexdigest()[:16]


def _blocks(samples: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    start, held = 0, 0
    for i, sample in enumerate(samples):
        held += len(sample)
        if held >= _BLOCK:
            yield samples[start : i + 1]
            start, held = i + 1, 0
    if start < len(samples):
        yield samples[start:]
