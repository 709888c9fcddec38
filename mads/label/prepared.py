"""Documents of a prepared directory, read back from its tokens, shard by shard."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from mads.data.attributes import read_column
from mads.data.documents import Document
from mads.data.indexed import IndexedReader
from mads.data.pool import attribute_path, shard_prefix
from mads.data.schema import DataError, Manifest, shard_name
from mads.data.tokenizer import Tokenizer
from mads.label.base import without_end
from mads.noise import hash64

DOMAIN = "domain"  # the attribute that gives documents their domain back


class PreparedDocuments:
    """What `mads prepare` wrote, as documents again.

    A document's text is what its tokens decode to; its domain is its label of the attribute `domain`, if there is one; its origin
    is the shard, its line the number of the document in there. `fields` come from `columns`, field -> one value for each
    document, the shards of train before those of heldout.
    """

    def __init__(self, directory: str | os.PathLike, columns: Mapping[str, Sequence[Any]] | None = None):
        self.directory = Path(directory)
        self.manifest = Manifest.read(directory)
        record = self.manifest.tokenizer
        self.tokenizer = Tokenizer.open(self.directory / record["file"], record["kind"])
        self._eod, self._columns = record["eod"], dict(columns or {})
        self._domain = next((a for a in self.manifest.attributes if a.name == DOMAIN), None)
        self._readers: dict[tuple[str, int], IndexedReader] = {}
        self._shown: tuple[str, int] | None = None
        self.documents = sum(part["documents"] for part in self.manifest.parts.values())
        for field, values in self._columns.items():
            if len(values) != self.documents:
                raise DataError(f"the column of {field!r} has {len(values)} rows, {directory} has {self.documents} documents")

    @property
    def lossless(self) -> bool:
        """Whether decoding gives back the texts that were tokenised."""
        return bool(self.manifest.tokenizer.get("lossless", True))

    def shards(self) -> list[tuple[str, int]]:
        """(part, shard) of all shards, those of train first."""
        parts = sorted(self.manifest.parts, key=lambda part: part != "train")
        return [(part, i) for part in parts for i in range(len(self.manifest.parts[part]["shards"]))]

    def reader(self, part: str, shard: int) -> IndexedReader:
        """The shard's tokens."""
        if (part, shard) not in self._readers:
            self._readers[part, shard] = IndexedReader(shard_prefix(self.directory, part, shard))
        return self._readers[part, shard]

    def columns_of(self, part: str, shard: int) -> dict[str, Sequence[Any]]:
        """The given fields of the shard's documents."""
        if not self._columns:
            return {}
        before = self.shards()[: self.shards().index((part, shard))]
        first = sum(len(self.samples_of(*place)) for place in before)
        last = first + len(self.samples_of(part, shard))
        return {field: values[first:last] for field, values in self._columns.items()}

    def samples_of(self, part: str, shard: int) -> np.ndarray:
        """Samples of each document of a shard, int64 [documents]; one that an index has left out has none and is no document."""
        samples = np.diff(self.reader(part, shard).documents)
        return samples[samples > 0]

    def firsts_of(self, part: str, shard: int) -> np.ndarray:
        """The first sample of each document of a shard, int64 [documents]."""
        return np.cumsum(samples := self.samples_of(part, shard)) - samples

    def tokens(self, part: str, shard: int, document: int, most: int | None = None) -> np.ndarray:
        """Tokens of a document without its end, at most the first `most`."""
        reader, (first, stop) = self.reader(part, shard), self._borders(part, shard)[document : document + 2].tolist()
        start = int(reader.pointers[first]) // reader.dtype.itemsize
        tokens = reader.tokens[start : start + int(reader.lengths[first:stop].sum())]
        if len(tokens) and tokens[-1] == self._eod:
            tokens = tokens[:-1]
        return tokens[:most]

    def _borders(self, part: str, shard: int) -> np.ndarray:
        """The first sample of each document, and the number of samples behind them."""
        if self._shown != (part, shard):  # documents are read shard by shard
            self._shown = (part, shard)
            self._edges = np.concatenate([[0], np.cumsum(self.samples_of(part, shard))])
        return self._edges

    def text(self, part: str, shard: int, document: int, most: int | None = None) -> str:
        """Text of a document, or of its first `most` tokens."""
        return self.tokenizer.decode(self.tokens(part, shard, document, most))

    def read(
        self, part: str, shard: int, chosen: Sequence[int] | None = None, columns: Mapping[str, Sequence[Any]] | None = None
    ) -> Iterator[Document]:
        """All documents of a shard, or the chosen ones, in order; `columns` instead of columns_of(part, shard)."""
        domains, origin = self._domains(part, shard), f"{part}/{shard_name(shard)}"
        columns = self.columns_of(part, shard) if columns is None else columns
        for i in range(len(domains)) if chosen is None else chosen:
            fields = {field: values[i] for field, values in columns.items()}
            yield Document(self.text(part, shard, i), domains[i], origin, i + 1, fields)

    def _domains(self, part: str, shard: int) -> list[str]:
        firsts = self.firsts_of(part, shard)
        if self._domain is None:
            return [""] * len(firsts)
        samples = len(self.reader(part, shard))
        column = read_column(attribute_path(self.directory, part, self._domain.folder, shard), samples)
        return [self._domain.labels[code] for code in column.codes[firsts].tolist()]

    def fit_sample(self, max_bytes: float, seed: int, categories: Sequence[str] = ()) -> list[Document]:
        """Training documents to learn from: about `max_bytes` of text by a hash of their tokens, and one of every domain and of
        every value of the fields `categories`."""
        chosen = self._chosen(max_bytes, seed, categories)
        return [document for place, own in chosen.items() for document in self.read(*place, own)]

    def fit_samples(self, max_bytes: float, seed: int) -> list[np.ndarray]:
        """The samples of the documents that `fit_sample` gives, tokens without the document's end."""
        found = []
        for (part, shard), own in self._chosen(max_bytes, seed, ()).items():
            borders = self._borders(part, shard)
            for document in own:
                found += self.samples(part, shard, range(borders[document], borders[document + 1]))
        return found

    def samples(self, part: str, shard: int, rows: Iterable[int]) -> list[np.ndarray]:
        """Tokens of samples of a shard, without the end of their document."""
        reader = self.reader(part, shard)
        return without_end([reader[row] for row in rows], self._eod)

    def _chosen(self, max_bytes: float, seed: int, categories: Sequence[str]) -> dict[tuple[str, int], list[int]]:
        """(part, shard) -> documents to learn from, ascending."""
        keys, places, sizes, firsts = [], [], [], {}
        for part, shard in self.shards():
            if part != "train":
                continue
            columns = self.columns_of(part, shard)
            for i, domain in enumerate(self._domains(part, shard)):
                tokens = self.tokens(part, shard, i)
                digest = hashlib.blake2b(np.ascontiguousarray(tokens, np.int64).tobytes(), digest_size=8).digest()
                keys.append(int.from_bytes(digest, "little"))
                places.append((part, shard, i))
                sizes.append(len(tokens))
                values = [(DOMAIN, domain)]
                values += [(field, columns[field][i]) for field in categories]
                for value in values:
                    firsts.setdefault(value, len(keys) - 1)
        order = np.argsort(hash64(seed, "fit", 0, np.array(keys, np.uint64)), kind="stable")
        tokens = np.array(sizes)[order]
        before = np.cumsum(tokens) - tokens
        chosen = set(order[before < max_bytes / self._bytes_per_token(places, order)].tolist()) | set(firsts.values())
        by_shard: dict[tuple[str, int], list[int]] = {}
        for index in sorted(chosen):
            part, shard, i = places[index]
            by_shard.setdefault((part, shard), []).append(i)
        return by_shard

    def _bytes_per_token(self, places: Sequence[tuple[str, int, int]], order: np.ndarray) -> float:
        """Of up to 50 documents in the order of the hash."""
        some = [places[i] for i in order[:50].tolist()]
        size = sum(len(self.text(*place).encode()) for place in some)
        return max(size / max(1, sum(len(self.tokens(*place)) for place in some)), 1e-3)


def read_column_file(path: str | os.PathLike, fields: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a Parquet or JSON Lines file, field -> one value a row.

    Raises:
        DataError: a file that is missing or damaged, of another ending, or without one of the fields.
    """
    name = os.fspath(path)
    try:
        if name.endswith(".parquet"):
            table = pa.parquet.read_table(name)
        elif name.endswith((".jsonl", ".ndjson", ".jsonl.gz")):
            table = pa.json.read_json(name)
        else:
            raise DataError(f"the ending of {name} tells no format; a column file is .parquet, .jsonl or .jsonl.gz")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read the column file {name}: {error}") from error
    if missing := [field for field in fields if field not in table.column_names]:
        raise DataError(f"{name} has no column {missing[0]!r}, only {table.column_names}")
    return {field: table.column(field).to_pylist() for field in fields}
