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
_TRUST = [2.0**n for n in range(15)]  # counts that the pool's model may have in a task's


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
    """Counts of tokens and of pairs of them.

    single: float64 [V]; pair: int64 [k], ascending, the pairs that were seen, and count: float64 [k]
    """

    single: np.ndarray
    pair: np.ndarray
    count: np.ndarray

    @classmethod
    def counted(cls, samples: Sequence[np.ndarray], vocab_size: int) -> _Bigrams:
        row = _Row.of(samples)
        pair, count = np.unique(row.pairs(vocab_size)[~row.first], return_counts=True)
        return cls(np.bincount(row.token, minlength=vocab_size).astype(float), pair, count.astype(float))

    def found(self, row: _Row) -> tuple[np.ndarray, np.ndarray]:
        """How often each token was seen behind the one before it, and how often anything was, float64 [t] each. Where a sample
        begins: how often the token was seen at all, and how many tokens there are."""
        size, pairs = len(self.single), row.pairs(len(self.single))
        both = np.zeros(len(pairs))
        if len(self.pair):
            place = np.minimum(np.searchsorted(self.pair, pairs), len(self.pair) - 1)
            both = np.where(self.pair[place] == pairs, self.count[place], 0.0)
        context = np.bincount(self.pair // size, self.count, size)[pairs // size]
        return np.where(row.first, self.single[row.token], both), np.where(row.first, self.single.sum(), context)

    def probability(self, row: _Row, smoothing: float, own: np.ndarray) -> np.ndarray:
        """p of each token given the one before it, float64 [t]: p_1 with one added to each count, p_2 smoothed by p_1.

        own: bool, of each sample, whether it was counted itself: then it is foretold from the others.
        """
        size, mine = len(self.single), own[row.sample]
        seen, context = self.found(row)
        single, total = self.single[row.token], np.full(len(row.token), self.single.sum())
        if mine.any():
            pairs = row.pairs(size)
            single, total = single - _times(row.sample, row.token, mine), total - mine * np.bincount(row.sample)[row.sample]
            seen = seen - _times(row.sample, pairs, mine & ~row.first)
            context = context - _times(row.sample, pairs // size, mine & ~row.first)
        alone = (single + 1.0) / (total + size)
        return np.where(row.first, alone, (seen + smoothing * alone) / (context + smoothing))


def _times(sample: np.ndarray, what: np.ndarray, where: np.ndarray) -> np.ndarray:
    """How often each place's value stands in its sample at places `where`, float64; 0 elsewhere."""
    times = np.zeros(len(what))
    keys = sample[where] * (what.max() + 1) + what[where]
    _, which, count = np.unique(keys, return_inverse=True, return_counts=True)
    times[where] = count[which]
    return times


def _gain(found: tuple[np.ndarray, np.ndarray], pool: np.ndarray, smoothing: float) -> np.ndarray:
    """How many times as probable each token is with what was `found` of it as by the pool's model alone, float64 [t].

    The pool's model has the weight of `smoothing` counts, so a context that a task never saw has no effect.
    """
    seen, context = found
    return (seen / pool + smoothing) / (context + smoothing)


class ReferenceLikeness(FittedLabeller):
    """Cross-entropy difference of a sample, in nats a token, in quantile bins (Moore and Lewis, ACL 2010):

        value = 1/T sum_t ln p_references(x_t | x_(t-1)) - ln p_pool(x_t | x_(t-1))

    over the T tokens of the sample. The pool's model is a bigram of the run's own tokens,

        p_pool(w | c) = (count(c w) + smoothing p(w)) / (count(c) + smoothing),   p(w) = (count(w) + 1) / (tokens + V),

    and each reference task's is what its text makes of it (a hierarchical Dirichlet prior; MacKay and Peto 1995):

        p_k(w | c) = (count_k(c w) + s_k p_pool(w | c)) / (count_k(c) + s_k),   p_references = mean over tasks of p_k.

    So each task has the same weight however long it is, a context that none of them has seen leaves the value alone, and a short
    task's text is trusted as far as it foretells itself: s_k is the power of two with which the halves of the task's text
    foretell each other best. Counted is the direction part of the tasks, never the parts that audit and report. High values are
    text that reads as the references do; text that no model would foretell has no advantage.

    Values are those of samples: a long document has passages of every kind. A sample that the pool's model was counted on is
    foretold from the others, so that its value does not depend on whether it was drawn.

    Args:
        smoothing: weight of p(w) in the pool's model, in counts.
        bins: number of labels.
        max_fit_tokens: most tokens of the pool that its model is counted on.
        seed: of the sample of the pool.
    """

    name = "likeness"
    unit = "sample"
    version = 2
    learns_references = True

    def __init__(self, smoothing: float = 50.0, bins: int = 10, max_fit_tokens: int = 4_000_000, seed: int = 0):
        if not smoothing > 0 or bins < 2 or max_fit_tokens < 1:
            raise DataError(f"smoothing={smoothing} and max_fit_tokens={max_fit_tokens} must be positive, bins={bins} at least 2")
        self.smoothing, self.bins, self.max_fit_tokens, self.seed = float(smoothing), bins, max_fit_tokens, seed
        self._tasks: dict[str, list[np.ndarray]] = {}
        self._vocab_size = 0

    def parameters(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing, "bins": self.bins, "max_fit_tokens": self.max_fit_tokens, "seed": self.seed}

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
        ends = np.cumsum([len(sample) for sample in chosen])
        counted = min(max(_FEWEST, int(np.searchsorted(ends, self.max_fit_tokens)) + 1), len(chosen))
        self._own = np.sort(_ids(chosen[:counted]))
        self._pool = _Bigrams.counted(chosen[:counted], self._vocab_size)
        tasks = sorted(self._tasks.items())
        self._references = [(_Bigrams.counted(own, self._vocab_size), self._trust(own)) for _, own in tasks]
        values = self._values(chosen[:_MOST_RANKED])
        self._edges = quantile_edges(values, self.bins)
        self._learned = {
            "tasks": {name: trust for (name, _), (_, trust) in zip(tasks, self._references)},
            "reference_tokens": sum(len(text) for _, own in tasks for text in own),
            "reference_hash": _hash_of([text for _, own in tasks for text in own]),
            "fit_samples": counted,
            "fit_tokens": int(ends[counted - 1]),
            "fit_hash": _hash_of(chosen[:counted]),
            "mean": round(float(values.mean()), 4),
        }
        self._fitted = True

    def _trust(self, texts: Sequence[np.ndarray]) -> float:
        """s_k of a task. The halves follow each other, since neighbours may share a passage."""
        if len(texts) < 2:
            return _TRUST[len(_TRUST) // 2]
        halves = texts[: len(texts) // 2], texts[len(texts) // 2 :]
        gains = np.zeros(len(_TRUST))
        for one, other in (halves, halves[::-1]):
            model = _Bigrams.counted(one, self._vocab_size)
            for part in _blocks(other):
                row = _Row.of(part)
                pool = self._pool.probability(row, self.smoothing, np.zeros(len(part), bool))
                found = model.found(row)
                gains += [np.log(_gain(found, pool, smoothing)).sum() for smoothing in _TRUST]
        return _TRUST[int(np.argmax(gains))]

    def _values(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [n]. A sample's terms are added one after the other, so that no other sample changes a bit."""
        found = [np.zeros(0)]
        for part in _blocks(samples):
            row = _Row.of(part)
            pool = self._pool.probability(row, self.smoothing, np.isin(_ids(part), self._own))
            gain = sum(_gain(model.found(row), pool, trust) for model, trust in self._references) / len(self._references)
            found.append(np.bincount(row.sample, np.log(gain)) / np.bincount(row.sample))
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
        models = [self._pool, *(model for model, _ in self._references)]
        whole = {what: np.concatenate([getattr(model, what) for model in models]) for what in ("single", "pair", "count")}
        pairs = np.array([len(model.pair) for model in models])
        return {
            **whole,
            "pairs": pairs,
            "trust": np.array([t for _, t in self._references]),
            "own": self._own,
            "edges": self._edges,
        }

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        ends = np.cumsum(arrays["pairs"])[:-1]
        single = np.split(arrays["single"], len(arrays["pairs"]))
        models = [_Bigrams(*parts) for parts in zip(single, np.split(arrays["pair"], ends), np.split(arrays["count"], ends))]
        self._pool, self._references = models[0], list(zip(models[1:], arrays["trust"].tolist(), strict=True))
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
