"""The settings of a preparation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mads.data.documents import describe_files, find_files
from mads.data.schema import DataError, sha256_of
from mads.data.tokenizer import KINDS


@dataclass(frozen=True)
class PrepareSettings:
    """What a preparation depends on beside its source, labellers and references.

    Units and meaning as in mads.config.schema.DataConfig; in addition:

    vocab_size: of the model; a trained tokenizer has exactly as many ids, a given one at most
    tokenizer_path: a given tokenizer; None trains a SentencePiece model on tokenizer_megabytes of training text

    Raises:
        DataError: a value out of its range.
    """

    vocab_size: int
    seq_length: int
    min_sample_tokens: int = 16
    heldout_fraction: float = 0.02
    heldout_group_field: str | None = None
    shard_megabytes: float = 400.0
    seed: int = 0
    max_rejected_fraction: float = 0.05
    tokenizer_kind: str = "sentencepiece"
    tokenizer_path: str | None = None
    tokenizer_megabytes: float = 8.0
    exact_duplicates: bool = True
    near_duplicates: float | None = None
    decontaminate: bool = True
    evaluation_paths: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        limits = [
            ("vocab_size", 1, 1 << 31),
            ("seq_length", 2, 1 << 31),
            ("heldout_fraction", 0, 0.5),
            ("max_rejected_fraction", 0, 1),
            ("min_sample_tokens", 2, (self.seq_length + 1) // 2),
        ]
        for name, low, high in limits:
            if not low <= getattr(self, name) <= high:
                raise DataError(f"{name} {getattr(self, name)} must be between {low} and {high}; seq_length is {self.seq_length}")
        if not self.shard_megabytes > 0:
            raise DataError(f"shard_megabytes {self.shard_megabytes} must be more than 0")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise DataError(f"hygiene.near_duplicates {self.near_duplicates} is a Jaccard similarity: above 0 and at most 1")
        if not self.tokenizer_megabytes > 0:
            raise DataError(f"tokenizer.train_megabytes {self.tokenizer_megabytes} must be more than 0")
        if self.tokenizer_kind not in KINDS or (self.tokenizer_kind != "sentencepiece" and self.tokenizer_path is None):
            raise DataError(
                f"tokenizer.kind {self.tokenizer_kind!r} without tokenizer.path: only sentencepiece is trained here; "
                f"known kinds are {', '.join(KINDS)}"
            )
        if self.tokenizer_path is not None and not Path(self.tokenizer_path).is_file():
            raise DataError(f"there is no tokenizer file {self.tokenizer_path}; check data.tokenizer.path")

    def identity(self) -> dict[str, Any]:
        """The settings as JSON values; a given tokenizer and evaluation sets are known by their content, not by their place."""
        value = dataclasses.asdict(self)
        if self.heldout_group_field is None:  # directories that were prepared before the key existed stay what they are
            del value["heldout_group_field"]
        value["evaluation_paths"] = {
            task: describe_files(find_files([path])) for task, path in sorted(self.evaluation_paths.items())
        }
        if self.tokenizer_path is not None:
            value["tokenizer_path"] = {"file": Path(self.tokenizer_path).name, "sha256": sha256_of(self.tokenizer_path)}
        return value
