"""What is on disk after `mads prepare`: sample ids, attribute columns, and the manifest that vouches for all files.

Layout of a prepared directory:

    manifest.json                               everything below with sizes and SHA-256, counts, and the fingerprint
    tokenizer.model                             SentencePiece model (or tokenizer.json of Hugging Face `tokenizers`)
    labellers/NAME.npz                          a fitted labeller: documents that are added later get labels by the same measure
    train/shard-00000.bin|.idx                  tokens, Megatron MMIDIDX; one sequence per sample, documents in the document index
    train/attributes/NAME/shard-00000.arrow     one column over the samples of a shard (see mads.data.attributes); once an
                                                attribute has been replaced, NAME is NAME@1, NAME@2, ... here and above
    train/keys/shard-00000.npy                  uint64 [documents, 2], hashes by which a document is known if it comes again
    heldout/...                                 the same for the held-out documents of the same stretch of input
    references/TASK.jsonl                       reference tasks: {"id", "text", "part"}, part one of direction, audit, report
    rejected.jsonl                              what could not be used, with file, line and reason
    removed.jsonl                               what was left out on purpose (duplicates, contamination), in the same form

A directory grows by whole shards: each addition is a *generation* with lists of its own (rejected-0001.jsonl, ...). Shards that
are there never change, so the ids of their samples stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mads.paths import UnsafeNameError, everything_in, inside, is_plain, refuse_links

SHARD_SHIFT = 40  # 2**40 rows a shard, 2**23 shards
FORMAT_VERSION = 2
PARTS = ("train", "heldout")


class DataError(ValueError):
    """Bad input data. The message names the file, the numbers and the remedy."""


def shard_name(shard: int) -> str:
    """Name of a shard's files without their endings."""
    return f"shard-{shard:05d}"


def sample_ids(shard: int, rows: int) -> np.ndarray:
    """int64 ids of the `rows` samples of a shard. Ids survive when shards are added to a pool."""
    return (np.int64(shard) << np.int64(SHARD_SHIFT)) + np.arange(rows, dtype=np.int64)


def split_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(shard, row) of each id, both int64."""
    ids = np.asarray(ids, dtype=np.int64)
    return ids >> SHARD_SHIFT, ids & ((np.int64(1) << SHARD_SHIFT) - 1)


@dataclass(frozen=True)
class AttributeSchema:
    """One attribute: a column over the pool.

    labels: names of the categorical codes 0..n-1. Names live in data, not in code.
    continuous: whether the column also holds a float32 value per sample (for example the raw quality score).
    provenance: labeller, its version and parameters, as JSON values.
    revision: how often the attribute was replaced. Its files lie under `folder`: old and new ones are never the same, so the old
        manifest stays true until the new one takes its place.
    """

    name: str
    labels: tuple[str, ...]
    continuous: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    revision: int = 0

    @property
    def folder(self) -> str:
        """The attribute's name in the paths of its files; "@" cannot be in a name."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise DataError(f"attribute {self.name!r} needs at least one label and no label twice, got {list(self.labels)}")


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


@dataclass
class Manifest:
    """The record of a prepared directory.

    files: relative path -> {"bytes": int, "sha256": str}
    parts: "train" / "heldout" -> {"documents": int, "samples": int, "tokens": int, "shards": [samples per shard]}
    attributes: list of AttributeSchema, equal for both parts
    references: task -> {"direction": n, "audit": n, "report": n}
    tokenizer: {"kind", "file", "vocab_size", "eod"}
    generations: one entry for the preparation and one for each addition to it: {"source": what was read and with which settings,
        JSON values only; "shards": part -> number of shards after it; "rejected", "removed": reason -> count}
    """

    seq_length: int
    files: dict[str, dict[str, Any]]
    parts: dict[str, dict[str, Any]]
    attributes: list[AttributeSchema]
    references: dict[str, dict[str, int]]
    tokenizer: dict[str, Any]
    generations: list[dict[str, Any]]
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every file's hash: two directories with equal fingerprints hold the same data."""
        return self._hash(sorted(self.files))

    def shards_fingerprint(self, part: str, count: int | None = None) -> str:
        """SHA-256 over the token files of a part's first `count` shards (None: all): which samples have which ids."""
        count = len(self.parts[part]["shards"]) if count is None else count
        return self._hash(f"{part}/{shard_name(i)}{ending}" for i in range(count) for ending in (".bin", ".idx"))

    def attribute_fingerprint(self, part: str, name: str, count: int | None = None) -> str:
        """SHA-256 over an attribute's columns for a part's first `count` shards (None: all)."""
        count = len(self.parts[part]["shards"]) if count is None else count
        folder = next((a.folder for a in self.attributes if a.name == name), name)
        return self._hash(f"{part}/attributes/{folder}/{shard_name(i)}.arrow" for i in range(count))

    @property
    def source(self) -> dict[str, Any]:
        """What the preparation itself read, and with which settings."""
        return self.generations[0]["source"]

    @property
    def rejected(self) -> dict[str, int]:
        """What could not be used, reason -> count over all generations."""
        return self._summed("rejected")

    @property
    def removed(self) -> dict[str, int]:
        """What was left out on purpose, reason -> count over all generations."""
        return self._summed("removed")

    def _summed(self, key: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for generation in self.generations:
            counts.update(generation[key])
        return dict(sorted(counts.items()))

    def _hash(self, names: Iterable[str]) -> str:
        h = hashlib.sha256()
        for name in names:
            h.update(f"{name} {self.files[name]['sha256']}\n".encode())
        return h.hexdigest()

    def _check_names(self, path: Path) -> None:
        """Every name that becomes part of a path is a plain one, and the files that readers open are those listed.

        Raises:
            DataError: naming what is not.
        """
        try:
            tokenizer = [self.tokenizer["file"]] if self.tokenizer["file"] else []  # "": ids without a text
            names = [*self.references, *(a.name for a in self.attributes), *tokenizer]
            odd = [name for name in names if not is_plain(name)] + [part for part in self.parts if part not in PARTS]
            odd += [a.revision for a in self.attributes if not isinstance(a.revision, int)]
            shards = [(part, i) for part, entry in self.parts.items() for i in range(len(entry["shards"]))]
            needed = [f"{part}/{shard_name(i)}{ending}" for part, i in shards for ending in (".bin", ".idx")]
            needed += [f"{part}/attributes/{a.folder}/{shard_name(i)}.arrow" for a in self.attributes for part, i in shards]
            needed += [f"references/{task}.jsonl" for task in self.references] + tokenizer
            odd += [e for e in self.files.values() if not isinstance(e["bytes"], int) or not isinstance(e["sha256"], str)]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a manifest of mads ({error}); prepare the data again") from error
        if odd:
            raise DataError(f"{path} holds {odd[0]!r}, which no manifest of mads does; it is not read: prepare the data again")
        if missing := [name for name in needed if name not in self.files]:
            raise DataError(f"{path} does not vouch for {missing[0]}, which would be read; prepare the data again")

    @staticmethod
    def read_to_change(directory: str | os.PathLike) -> Manifest:
        """`read` for those who then write into the directory, which may come from others: it holds no link at all.

        Raises:
            DataError: as read; naming a link.
        """
        manifest = Manifest.read(directory)
        try:
            refuse_links(everything_in(directory), "remove it, or prepare the data again")
        except UnsafeNameError as error:
            raise DataError(str(error)) from error
        return manifest

    def write(self, directory: str | os.PathLike) -> None:
        """Write manifest.json atomically; it is the last file of a preparation, so its presence means completeness."""
        target = Path(directory) / "manifest.json"
        temporary = target.with_suffix(".json.tmp")
        value = dataclasses.asdict(self) | {"fingerprint": self.fingerprint}
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
        os.replace(temporary, target)

    @classmethod
    def read(cls, directory: str | os.PathLike, verify: bool = False) -> Manifest:
        """Read manifest.json; sizes of the files are always checked, their hashes when `verify` is set.

        Raises:
            DataError: if the manifest or a file it names is missing, of another size, damaged, or not inside of the directory.
        """
        directory = Path(directory)
        path = directory / "manifest.json"
        if not path.is_file():
            raise DataError(f"{directory} holds no manifest.json; run `mads prepare` with the same data settings first")
        try:
            value = json.loads(path.read_text())
            claimed = value.pop("fingerprint")
            value["attributes"] = [AttributeSchema(**a) for a in value["attributes"]]
            manifest = cls(**value)
            damaged = manifest.fingerprint != claimed
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} is not a manifest of mads ({error}); prepare the data again") from error
        if manifest.format_version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format {manifest.format_version}, this mads reads {FORMAT_VERSION}; prepare the data again"
            )
        if damaged:
            raise DataError(f"{path} was edited: its fingerprint does not fit its file hashes; prepare the data again")
        manifest._check_names(path)
        for name, entry in manifest.files.items():
            try:
                file = inside(directory, name)
            except UnsafeNameError as error:
                raise DataError(f"{path} names a file that is not read: {error}") from error
            size = file.stat().st_size if file.is_file() else None
            if size != entry["bytes"]:
                raise DataError(f"{file} should have {entry['bytes']} bytes and has {size}; prepare the data again")
            if verify and sha256_of(file) != entry["sha256"]:
                raise DataError(f"{file} is damaged: its SHA-256 is not the manifest's; prepare the data again")
        return manifest
