"""Writing one part (train, heldout) of a prepared directory: windows of documents, shards, and the final manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.indexed import IndexedWriter
from mads.data.pool import shard_prefix
from mads.data.schema import PARTS, AttributeSchema, DataError, Manifest, sha256_of


def window_lengths(tokens: int, seq_length: int, min_sample_tokens: int) -> np.ndarray:
    """Lengths of the windows that a document of `tokens` is cut into, int64. Nothing is lost.

    All windows have seq_length, the last has the rest. A rest shorter than min_sample_tokens is evened out with the window
    before it: the two share their tokens equally. A document shorter than min_sample_tokens gives no window (empty array).

    Raises:
        ValueError: min_sample_tokens outside 1 .. (seq_length + 1) // 2, for which the evened windows could be too short.
    """
    if not 1 <= min_sample_tokens <= (seq_length + 1) // 2:
        raise ValueError(f"min_sample_tokens {min_sample_tokens} must be between 1 and half of seq_length {seq_length}")
    if tokens < min_sample_tokens:
        return np.zeros(0, np.int64)
    full, rest = divmod(tokens, seq_length)
    lengths = np.full(full + (rest > 0), seq_length, dtype=np.int64)
    if 0 < rest < min_sample_tokens:
        shared = seq_length + rest
        lengths[-2:] = shared - shared // 2, shared // 2
    elif rest:
        lengths[-1] = rest
    return lengths


class PartWriter:
    """Writes documents into shards; a new shard begins when the current one holds `shard_tokens` or more.

    A document never crosses shards. As a context manager it drops the unfinished shard when the block raises.
    """

    def __init__(self, directory: str | os.PathLike, part: str, dtype: np.dtype, shard_tokens: int):
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens {shard_tokens} must be positive")
        self._directory, self._part, self._dtype, self._shard_tokens = Path(directory), part, dtype, shard_tokens
        self._writer: IndexedWriter | None = None
        self.shards: list[int] = []
        self.documents = self.tokens = self.samples = 0
        (self._directory / part).mkdir(parents=True, exist_ok=True)

    def add_document(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append a document cut into samples of `lengths`."""
        if self._writer is None:
            self._writer = IndexedWriter(shard_prefix(self._directory, self._part, len(self.shards)), self._dtype)
        self._writer.add_document(tokens, lengths)
        self.documents += 1
        self.tokens += len(tokens)
        self.samples += len(lengths)
        if self._writer.tokens >= self._shard_tokens:
            self._publish()

    def _publish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.shards.append(self._writer.sequences)
            self._writer = None

    def summary(self) -> dict[str, Any]:
        """The part's entry in the manifest."""
        return {"documents": self.documents, "samples": self.samples, "tokens": self.tokens, "shards": list(self.shards)}

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self._publish()
        elif self._writer is not None:
            self._writer.discard()


def written_files(directory: str | os.PathLike) -> list[Path]:
    """Every file of the layout of mads.data.schema in a directory, finished or not, without the manifest; sorted."""
    directory = Path(directory)
    patterns = ["tokenizer.model", "tokenizer.json", "rejected*.jsonl", "removed*.jsonl", "references/*.jsonl", "labellers/*.npz"]
    for part in PARTS:
        patterns += [
            f"{part}/shard-*.bin",
            f"{part}/shard-*.idx",
            f"{part}/attributes/*/shard-*.arrow",
            f"{part}/keys/shard-*.npy",
        ]
    found = (path for pattern in patterns for suffix in ("", ".tmp") for path in directory.glob(pattern + suffix))
    return sorted(path for path in found if path.is_file())


def seal(
    directory: str | os.PathLike,
    *,
    seq_length: int,
    parts: dict[str, dict[str, Any]],
    attributes: list[AttributeSchema],
    references: dict[str, dict[str, int]],
    tokenizer: dict[str, Any],
    source: dict[str, Any],
    rejected: dict[str, int],
    removed: dict[str, int] | None = None,
) -> Manifest:
    """Hash every file and write the manifest of a first generation, which makes the directory complete."""
    directory = Path(directory)
    files = {}
    for path in written_files(directory):
        if path.suffix == ".tmp":
            raise DataError(f"{path} was not finished")
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    shards = {part: len(entry["shards"]) for part, entry in parts.items()}
    generation = {"source": source, "shards": shards, "rejected": rejected, "removed": removed or {}}
    manifest = Manifest(seq_length, files, parts, attributes, references, tokenizer, [generation])
    manifest.write(directory)
    return manifest
