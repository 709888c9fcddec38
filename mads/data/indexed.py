"""Token files in Megatron's MMIDIDX layout, version 1: `PREFIX.bin` holds the tokens, `PREFIX.idx` says where they are.

`PREFIX.idx`, little-endian, without padding:

    9 bytes   b"MMIDIDX\\0\\0"
    uint64    version, 1
    uint8     dtype code of the tokens: 8 = uint16, 4 = int32
    uint64    n, number of sequences
    uint64    m, length of the document index
    int32[n]  tokens of each sequence
    int64[n]  byte offset of each sequence in PREFIX.bin
    int64[m]  document index: document d is the sequences index[d] .. index[d + 1] - 1; it begins with 0 and ends with n

In mads a sequence is a sample (a window of a document). Megatron writes one sequence behind the other; an index of mads may also
leave documents of its `.bin` out (mads.data.megatron): they stay in the document index as empty ones, and no sequence covers
their tokens.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mads.data.schema import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {np.dtype(np.uint16): 8, np.dtype(np.int32): 4}
_HEADER = struct.Struct("<9sQBQQ")
_CHUNK = 1 << 20  # entries of an index that are checked or written at a time, so that memory does not grow with the file


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 if every id of the vocabulary fits, int32 otherwise."""
    return np.dtype(np.uint16) if vocab_size <= 1 << 16 else np.dtype(np.int32)


def index_paths(prefix: str | os.PathLike) -> tuple[Path, Path]:
    """(PREFIX.bin, PREFIX.idx)."""
    return Path(f"{os.fspath(prefix)}.bin"), Path(f"{os.fspath(prefix)}.idx")


def write_index(path: Path, dtype: np.dtype, lengths: np.ndarray, starts: np.ndarray | None, documents: np.ndarray) -> None:
    """Write an `.idx` file and wait until it is on the disk. Publishing it by a rename is the caller's.

    lengths: integers [n], tokens of each sequence
    starts: int64 [n], index of each sequence's first token; None: each begins where the one before it ends
    documents: int64 [m], the document index
    """
    itemsize, end = dtype.itemsize, 0
    with open(path, "wb") as f:
        f.write(_HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype], len(lengths), len(documents)))
        f.write(np.asarray(lengths).astype("<i4", copy=False).tobytes())
        for first in range(0, len(lengths), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            if starts is None:
                ends = end + np.cumsum(lengths[chunk], dtype=np.int64)
                begins, end = np.append(end, ends[:-1]), int(ends[-1])
            else:
                begins = np.asarray(starts[chunk], dtype=np.int64)
            f.write((begins * itemsize).astype("<i8", copy=False).tobytes())
        f.write(np.asarray(documents).astype("<i8", copy=False).tobytes())
        f.flush()
        os.fsync(f.fileno())


class IndexedWriter:
    """Streams documents into `PREFIX.bin.tmp`; `close` writes the index and publishes both files by rename, index last.

    As a context manager it publishes on success and removes what it wrote when the block raises.
    """

    def __init__(self, prefix: str | os.PathLike, dtype: np.dtype | type):
        self.dtype = np.dtype(dtype)
        if self.dtype not in DTYPE_CODES:
            raise ValueError(f"tokens are stored as uint16 or int32, not {self.dtype}")
        self.bin_path, self.idx_path = index_paths(prefix)
        self._lengths = array("i")
        self._documents = array("q", [0])
        self.tokens = 0
        self._temporary = [p.with_name(p.name + ".tmp") for p in (self.bin_path, self.idx_path)]
        self._file = open(self._temporary[0], "wb")

    @property
    def sequences(self) -> int:
        return len(self._lengths)

    @property
    def documents(self) -> int:
        return len(self._documents) - 1

    def add_document(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append a document: its tokens (integers, [sum of lengths]) cut into sequences of the given lengths.

        Raises:
            ValueError: lengths that do not add up to the tokens, or a token that the dtype cannot hold.
        """
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        if int(lengths.sum()) != len(tokens) or (lengths < 0).any():
            raise ValueError(f"a document of {len(tokens)} tokens cannot be cut into lengths that add up to {int(lengths.sum())}")
        stored = tokens.astype(self.dtype)
        if len(tokens) and not np.array_equal(stored, tokens):
            raise ValueError(f"{self.bin_path}: tokens from {tokens.min()} to {tokens.max()} do not fit {self.dtype}")
        stored.astype(self.dtype.newbyteorder("<"), copy=False).tofile(self._file)
        self._lengths.extend(lengths.tolist())
        self._documents.append(len(self._lengths))
        self.tokens += len(tokens)

    def close(self) -> None:
        """Write the index and publish both files. Without this call nothing appears under the final names."""
        lengths = np.frombuffer(self._lengths, dtype=np.int32) if self._lengths else np.zeros(0, np.int32)
        write_index(self._temporary[1], self.dtype, lengths, None, np.frombuffer(self._documents, dtype=np.int64))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary[0], self.bin_path)
        os.replace(self._temporary[1], self.idx_path)

    def discard(self) -> None:
        """Remove what was written so far."""
        self._file.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self.discard() if kind else self.close()


def _map(path: Path) -> memoryview | mmap.mmap:
    """Read-only memory map; an empty file, which cannot be mapped, is an empty buffer."""
    try:
        with open(path, "rb") as f:
            if os.fstat(f.fileno()).st_size == 0:
                return memoryview(b"")
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "every shard takes two open files: raise the limit (ulimit -n), or prepare with larger data.shard_megabytes"
        else:
            remedy = "prepare the data again"
        raise DataError(f"cannot read {path} ({error.strerror}); {remedy}") from error


class IndexedReader:
    """Memory-mapped reader of one `.bin/.idx` pair. Nothing is copied; the arrays are read-only.

    lengths: int32 [n], tokens of each sequence
    pointers: int64 [n], byte offset of each sequence
    documents: int64 [m], the document index
    tokens: uint16 or int32 [all tokens], the whole `.bin` file

    Opening reads the index once, in pieces, and keeps nothing of it. Sequences follow each other without overlap. Where they do
    so without a gap the size of the `.bin` file is exactly theirs, unless the last document is one that was left out.

    Args:
        check: False for files that were checked before: nothing but the header is read.

    Raises:
        DataError: a file is missing, truncated, longer than its index says, or of another format. Names the file and the sizes.
    """

    def __init__(self, prefix: str | os.PathLike, check: bool = True):
        self.bin_path, self.idx_path = index_paths(prefix)
        index = _map(self.idx_path)
        self.dtype, sequences, documents = self._read_header(index)
        expected = _HEADER.size + 12 * sequences + 8 * documents
        if len(index) != expected:
            raise DataError(
                f"{self.idx_path} has {len(index)} bytes; {sequences} sequences and a document index of {documents} "
                f"take {expected}: it is truncated or damaged; prepare the data again"
            )
        offset = _HEADER.size
        self.lengths = np.frombuffer(index, "<i4", sequences, offset)
        self.pointers = np.frombuffer(index, "<i8", sequences, offset + 4 * sequences)
        self.documents = np.frombuffer(index, "<i8", documents, offset + 12 * sequences)
        self._data = _map(self.bin_path)
        if check:
            self._check(sequences, documents)
        self.tokens = np.frombuffer(self._data, self.dtype.newbyteorder("<"), len(self._data) // self.dtype.itemsize)

    def __reduce__(self):
        """Another process maps the same files; they were checked here."""
        return IndexedReader, (self.prefix, False)

    @property
    def prefix(self) -> str:
        """Absolute path of the files without their endings."""
        return os.path.abspath(self.bin_path)[: -len(".bin")]

    def _check(self, sequences: int, documents: int) -> None:
        self._check_documents()
        gap, end = self._check_sequences()
        left_out = gap or (documents > 1 and self.documents[-2] == sequences)
        size = len(self._data)
        if size < end or size % self.dtype.itemsize or (size > end and not left_out):
            raise DataError(
                f"{self.bin_path} has {size} bytes; {self.idx_path.name} describes {end // self.dtype.itemsize} tokens of "
                f"{self.dtype}, {end} bytes: it is truncated or damaged; prepare the data again"
            )

    def _read_header(self, index) -> tuple[np.dtype, int, int]:
        if len(index) < _HEADER.size:
            raise DataError(f"{self.idx_path} has {len(index)} bytes, the header takes {_HEADER.size}; prepare the data again")
        magic, version, code, sequences, documents = _HEADER.unpack(index[: _HEADER.size])
        if magic != MAGIC:
            raise DataError(f"{self.idx_path} is no MMIDIDX index: it begins with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise DataError(f"{self.idx_path} is MMIDIDX version {version}; only version {VERSION} is read")
        for dtype, known in DTYPE_CODES.items():
            if known == code:
                return dtype, sequences, documents
        raise DataError(f"{self.idx_path} has dtype code {code}; only {sorted(DTYPE_CODES.values())} (int32, uint16) are read")

    def _check_documents(self) -> None:
        n, documents = len(self.lengths), self.documents
        good = len(documents) > 0 and documents[0] == 0 and documents[-1] == n
        for first in range(0, len(documents) - 1, _CHUNK):
            good = good and bool((np.diff(documents[first : first + _CHUNK + 1]) >= 0).all())
        if not good:
            raise DataError(f"{self.idx_path}: the document index does not run from 0 to {n} sequences; prepare the data again")

    def _check_sequences(self) -> tuple[bool, int]:
        """(whether some sequence does not begin where the one before it ends, byte where the last one ends)."""
        gap, end, itemsize = False, 0, self.dtype.itemsize
        for first in range(0, len(self.lengths), _CHUNK):
            lengths, pointers = self.lengths[first : first + _CHUNK], self.pointers[first : first + _CHUNK]
            if (lengths < 0).any():
                sequence = first + int(np.argmax(lengths < 0))
                raise DataError(f"{self.idx_path}: sequence {sequence} has a negative length; prepare the data again")
            ends = pointers + lengths.astype(np.int64) * itemsize  # in int32 they would wrap at 2 GiB
            steps = pointers - np.append(end, ends[:-1])
            bad = (steps < 0) | (steps % itemsize != 0) | (pointers < 0)
            if bad.any():
                sequence = first + int(np.argmax(bad))
                raise DataError(
                    f"{self.idx_path}: the byte offset of sequence {sequence} of {len(self.lengths)} lies inside another "
                    "sequence or a token; prepare the data again"
                )
            gap, end = gap or bool(steps.any()), int(ends[-1])
        return gap, end

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Tokens of sequence `row`, a read-only view."""
        start = int(self.pointers[row]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[row])]

    def will_need(self, row: int) -> None:
        """Have sequence `row` read from the disk meanwhile, so that a later access does not wait for each of its pages."""
        start = int(self.pointers[row])
        end = start + int(self.lengths[row]) * self.dtype.itemsize
        start -= start % mmap.PAGESIZE
        if end > start:
            self._data.madvise(mmap.MADV_WILLNEED, start, end - start)


class TokenShards:
    """The token files of a pool as one: samples by position, that is by their place in shard after shard.

    It can be pickled: another process maps the same files.
    """

    def __init__(self, readers: Sequence[IndexedReader]):
        self.readers = tuple(readers)
        self._first = np.cumsum([0] + [len(reader) for reader in readers])

    def _places(self, positions: np.ndarray) -> Iterator[tuple[IndexedReader, int]]:
        shards = np.searchsorted(self._first, positions, side="right") - 1
        rows = positions - self._first[shards]
        return ((self.readers[shard], row) for shard, row in zip(shards.tolist(), rows.tolist()))

    def tokens(self, positions: np.ndarray) -> list[np.ndarray]:
        """Token ids of the samples at `positions` (int64 [n], each inside the pool): read-only views of the files."""
        return [reader[row] for reader, row in self._places(positions)]

    def will_need(self, positions: np.ndarray) -> None:
        """Have these samples read from the disk meanwhile. It changes when data arrives, never which."""
        for reader, row in self._places(positions):
            reader.will_need(row)
