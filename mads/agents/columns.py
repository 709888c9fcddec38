"""What agents read of a view: label codes, joint cells, token shares, and exact quantiles of a value column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mads.agents.base import AttributeView

PIECE = 1 << 20  # samples of a pool that are read at a time
_HALF = np.uint32(16)


def pieces(view: AttributeView, piece: int = PIECE) -> Iterator[AttributeView]:
    """A pool's samples, `piece` at a time."""
    for start in range(0, len(view), piece):
        yield view.view(slice(start, min(start + piece, len(view))))


def label_codes(view: AttributeView, attribute: str) -> np.ndarray:
    """Codes of an attribute, checked against its label names.

    Raises:
        ValueError: if a code has no name.
    """
    codes, labels = np.asarray(view.codes(attribute)), view.labels(attribute)
    if len(codes) and int(codes.max()) >= len(labels):
        raise ValueError(
            f"attribute {attribute!r} has code {int(codes.max())}, but only {len(labels)} labels {list(labels)}; "
            "label the data again"
        )
    return codes


def joint_cells(view: AttributeView, attributes: Sequence[str], sizes: Sequence[int]) -> np.ndarray:
    """Joint cell of each sample, int64 [n]; the last attribute varies fastest, as in np.ravel_multi_index."""
    cells = np.zeros(len(view), dtype=np.int64)
    for attribute, size in zip(attributes, sizes):
        cells = cells * size + label_codes(view, attribute)
    return cells


def token_shares(view: AttributeView, attribute: str, piece: int = PIECE) -> np.ndarray:
    """Share of the view's tokens that each label holds, float64 [L], sum 1. Read a piece at a time."""
    return cell_shares(view, [attribute], [len(view.labels(attribute))], piece)


def cell_shares(view: AttributeView, attributes: Sequence[str], sizes: Sequence[int], piece: int = PIECE) -> np.ndarray:
    """Share of the view's tokens that each joint cell holds, float64 [cells], sum 1."""
    count = int(np.prod(sizes))
    tokens = np.zeros(count, dtype=np.int64)
    for part in pieces(view, piece):
        tokens += np.bincount(joint_cells(part, attributes, sizes), weights=part.lengths, minlength=count).astype(np.int64)
    if tokens.sum() <= 0:
        names = ", ".join(repr(a) for a in attributes)
        raise ValueError(f"the pool is empty: attribute {names} covers {len(view)} samples and no token")
    return tokens / tokens.sum()


def _ordered(values: np.ndarray) -> np.ndarray:
    """uint32 keys in the order of finite float32 values."""
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)  # -0 and 0 are one value
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))


def _value(keys: np.ndarray) -> np.ndarray:
    keys = keys.astype(np.uint32)
    return np.where(keys >> np.uint32(31), keys & np.uint32(0x7FFFFFFF), ~keys).astype(np.uint32).view(np.float32)


def token_quantiles(view: AttributeView, attribute: str, levels: Sequence[float], piece: int = PIECE) -> np.ndarray:
    """The least finite values at or below which the given parts of the tokens lie, float32 [levels].

    Exact, in two readings of the column and without sorting it: tokens are counted, as integers, by the upper 16 bits of the
    value's place, then by the lower 16 bits where a quantile lies. So every rank and every cut into pieces gives the same.

    Raises:
        ValueError: if no sample has a finite value.
    """
    upper = np.zeros(1 << 16, dtype=np.int64)
    for part in pieces(view, piece):
        values, lengths = _finite(part, attribute)
        upper += np.bincount(_ordered(values) >> _HALF, weights=lengths, minlength=1 << 16).astype(np.int64)
    total = int(upper.sum())
    if total == 0:
        raise ValueError(f"attribute {attribute!r} has no finite value in the pool's {len(view)} samples; label the data again")
    below = np.cumsum(upper)
    targets = np.array([min(total, max(1, int(np.ceil(level * total)))) for level in levels], dtype=np.int64)
    buckets = np.searchsorted(below, targets)  # the first bucket that reaches the target
    opened = np.unique(buckets)
    lower = np.zeros((len(opened), 1 << 16), dtype=np.int64)
    for part in pieces(view, piece):
        values, lengths = _finite(part, attribute)
        keys = _ordered(values)
        row = np.minimum(np.searchsorted(opened, keys >> _HALF), len(opened) - 1)
        inside = opened[row] == keys >> _HALF
        place = row[inside] * (1 << 16) + (keys[inside] & np.uint32(0xFFFF))
        lower += np.bincount(place, weights=lengths[inside], minlength=lower.size).astype(np.int64).reshape(lower.shape)
    found = []
    for target, bucket in zip(targets, buckets):
        before = int(below[bucket] - upper[bucket])
        low = np.searchsorted(before + np.cumsum(lower[np.searchsorted(opened, bucket)]), target)
        found.append((int(bucket) << 16) | int(low))
    return _value(np.array(found, dtype=np.uint32))


def _finite(part: AttributeView, attribute: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(part.values(attribute))
    known = np.isfinite(values)
    return values[known], np.asarray(part.lengths)[known]
