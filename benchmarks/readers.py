"""How fast documents are read from each format: one JSON-lines file is rewritten in every format and read back.

    python -m benchmarks.readers CORPUS.jsonl.gz

Run from the repository root; `pip install -e '.[test]'` brings the Zstandard writer. The table: docs/data.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mads.data.documents import Document
from mads.data.files import FilesSource
from mads.data.rejects import Rejects


def writers(documents: list[Document]) -> dict[str, Callable[[Path], object]]:
    """File name -> what writes the documents to a path. In a folder of text each document is a file."""
    lines = "".join(json.dumps({"text": d.text, "domain": d.domain}, ensure_ascii=False) + "\n" for d in documents).encode()
    table = pa.table({"text": [d.text for d in documents], "domain": [d.domain for d in documents]})

    def arrow(new) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=1024)

        return write

    def folder(ending: str, pack) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            path.mkdir()
            for i, document in enumerate(documents):
                (path / f"{i:06d}{ending}").write_bytes(pack(document.text.encode()))

        return write

    zstd = zstandard.ZstdCompressor().compress
    return {
        "in.jsonl": lambda path: path.write_bytes(lines),
        "in.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines)),
        "in.jsonl.zst": lambda path: path.write_bytes(zstd(lines)),
        "in.jsonl.xz": lambda path: path.write_bytes(lzma.compress(lines)),
        "snappy.parquet": lambda path: pq.write_table(table, path),
        "zstd.parquet": lambda path: pq.write_table(table, path, compression="zstd"),
        "in.arrow": arrow(pa.ipc.new_file),
        "in.arrows": arrow(pa.ipc.new_stream),
        "txt": folder(".txt", bytes),
        "txt.zst": folder(".txt.zst", zstd),
    }


def _bare(document: Document) -> str:
    """A text file's byte order mark is no part of its text; in a JSON string it is."""
    return document.text.removeprefix("\ufeff")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--repeats", type=int, default=5, help="the fastest counts")
    arguments = parser.parse_args()
    documents = list(FilesSource([arguments.corpus]).documents(Rejects()))
    megabytes = sum(len(d.text.encode()) for d in documents) / 1e6
    print(f"{len(documents)} documents, {megabytes:.1f} MB of text\n")
    print("| format | file, MB | MB of text/s | documents/s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name, write in writers(documents).items():
            path = Path(place) / name
            write(path)
            files = [p for p in path.rglob("*")] if path.is_dir() else [path]
            best = float("inf")
            for _ in range(arguments.repeats):
                start, rejects = time.perf_counter(), Rejects()
                found = list(FilesSource([str(path)]).documents(rejects))
                best = min(best, time.perf_counter() - start)
                if [_bare(d) for d in found] != [_bare(d) for d in documents] or rejects.total:
                    raise SystemExit(f"{name}: {len(found)} documents read, {rejects.counts}; the texts differ")
            size = sum(p.stat().st_size for p in files) / 1e6
            print(f"| {name} | {size:.1f} | {megabytes / best:.0f} | {len(documents) / best:.0f} |")


if __name__ == "__main__":
    main()
