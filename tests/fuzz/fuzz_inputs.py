"""Damaged inputs of every reader format, each a function of (damage, format, seed), and what is known about them.

    build("bit flips", "jsonl.gz", 7, folder) -> Case

writes one input (a file, or a folder of text files) and says what reading it must give. fuzz_judge.py compares.
"""

from __future__ import annotations

import gzip
import json
import lzma
import random
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

LINES = ("jsonl", "jsonl.gz", "jsonl.zst", "jsonl.xz")
COLUMNS = ("parquet", "arrow", "arrows")
TEXTS = ("txt", "txt.gz", "txt.zst", "txt.xz")
PACKED = tuple(f for f in LINES + TEXTS if "." in f)
LIMIT = 1 << 26  # bytes of a document; mads.data.documents.MAX_DOCUMENT_BYTES

DAMAGES = {  # damage -> formats
    "none": LINES + COLUMNS + TEXTS,
    "malformed lines": LINES,
    "wrong types": LINES + COLUMNS,
    "encodings": LINES + COLUMNS + TEXTS,
    "truncated": LINES + COLUMNS + TEXTS,
    "bit flips": LINES + COLUMNS + TEXTS,
    "spliced": LINES + COLUMNS + TEXTS,
    "huge": ("jsonl", "jsonl.zst", "parquet", "arrow", "txt", "txt.zst"),
    "bomb": PACKED,
}
_WORDS = 'river Größe 漢字 naïve 🙂 e\u0301 x\u2028y tab\tquote" back\\slash \x7f the of and data 3.14'.split(" ")


@dataclass
class Case:
    """One input.

    path: what is read
    exact: every document that must come out, {(origin, line): text}, and nothing else; None where that is not known
    reasons: {(origin, line): allowed reasons} of every reject, with `exact`
    original: {(origin, line): text} before the damage
    lines: of a plain file of lines, the damaged lines; every one must be a document or a reject
    whole: of that file, each line before the damage and its text: where it still stands it must be read
    units: text files in the folder, or rows of a columnar file before the damage
    raw: the damaged bytes of a packed file and where the damage begins, else None
    """

    damage: str
    format: str
    path: Path
    original: dict[tuple[str, int], str]
    exact: dict[tuple[str, int], str] | None = None
    reasons: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    lines: list[bytes] | None = None
    whole: dict[bytes, str] = field(default_factory=dict)
    units: int = 0
    raw: bytes | None = None
    damaged_at: int = 0
    checksum: bool = True
    counts: dict[str, int] | None = None


def pack(format: str, raw: bytes, checksum: bool = True) -> bytes:
    """The bytes as that format's compression has them."""
    if format.endswith(".gz"):
        return gzip.compress(raw, 6, mtime=0)
    if format.endswith(".zst"):
        return zstandard.ZstdCompressor(level=3, write_checksum=checksum).compress(raw)
    return lzma.compress(raw) if format.endswith(".xz") else raw


def _text(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(1, 60))) + rng.choice(("", ".", "\n", " \r\n"))


def _good_line(rng: random.Random, text: str) -> bytes:
    """One of the many ways to write a document as a line of JSON."""
    record = {"text": text, "domain": "d"}
    if rng.random() < 0.3:
        record = {"n": [1, {"a": None}], "domain": "d", "score": float("nan"), "text": text}
    raw = json.dumps(record, ensure_ascii=rng.random() < 0.5).encode()
    if rng.random() < 0.1:
        raw = b'{"text": 5, ' + raw[1:]  # of equal keys the last counts
    return rng.choice((b"", b" ", b"\t")) + raw + rng.choice((b"", b" ", b"\r"))


def _malformed(rng: random.Random, text: str) -> tuple[bytes, tuple[str, ...]]:
    whole = json.dumps({"text": text, "domain": "d"}).encode()
    return rng.choice(
        [
            (whole[: rng.randrange(2, len(whole))], ("malformed JSON",)),
            (whole + whole, ("malformed JSON",)),
            (whole[:-1] + b",}", ("malformed JSON",)),
            (whole.replace(b'"', b"'"), ("malformed JSON",)),
            (b"\xef\xbb\xbf" * 2 + whole, ("malformed JSON",)),
            (b"[" * rng.choice((3, 100_000)), ("malformed JSON",)),
            (b'{"n": ' + b"9" * 5000 + b', "text": "t", "domain": "d"}', ("malformed JSON",)),
            (b'{"text": "a\x00\x01", "domain": "d"}', ("malformed JSON",)),
            (bytes(rng.randrange(1, 9)), ("malformed JSON",)),
            (b"[" + whole + b"]", ("not an object",)),
            (rng.choice((b"null", b"5", b'"text"', b"NaN", b"true")), ("not an object",)),
            (rng.choice((b"", b" ", b"\t \r")), ("blank line",)),
        ]
    )


def _wrong_type(rng: random.Random, text: str) -> tuple[bytes, tuple[str, ...]]:
    value = rng.choice((5, -1.5, None, True, [text], {"text": text}, [], "", " \n\t"))
    record = {"text": value, "domain": "d"}
    reason = "empty text" if isinstance(value, str) else "wrong type"
    if rng.random() < 0.3:
        record, reason = {"text": text, "domain": value}, reason
    elif rng.random() < 0.3:
        record, reason = rng.choice(({"domain": "d"}, {"text": text}, {"Text": text, "domain": "d"}, {})), "missing field"
    return json.dumps(record).encode(), (reason,)


def _other_encoding(rng: random.Random, text: str) -> tuple[bytes, tuple[str, ...]]:
    whole = json.dumps({"text": f"é{text}ü", "domain": "d"}, ensure_ascii=False)
    both = ("invalid UTF-8", "malformed JSON")
    return rng.choice(
        [
            (whole.encode("latin-1", "replace"), both[:1]),
            (whole.encode("cp1252", "replace"), both[:1]),
            (whole.encode("utf-16").replace(b"\n", b""), both),
            (whole.encode("utf-32-be").replace(b"\n", b""), both),
            (b'{"text": "\xc0\xaf", "domain": "d"}', both[:1]),
            (b'{"text": "\xed\xa0\x80", "domain": "d"}', both[:1]),
            (b'{"text": "a\xf0\x9f\x98", "domain": "d"}', both[:1]),
            (b'{"text": "\\ud83d", "domain": "d"}', ("invalid Unicode",)),
            (b'{"text": "t", "domain": "\\udc00x"}', ("invalid Unicode",)),
        ]
    )


_BAD_LINES = {"malformed lines": _malformed, "wrong types": _wrong_type, "encodings": _other_encoding}


def _lines_case(damage: str, format: str, rng: random.Random, folder: Path) -> Case:
    """A file of lines. With known bad lines among the good ones, or damaged as a whole."""
    name = f"in.{format}"
    case = Case(damage, format, folder / name, {}, checksum=rng.random() < 0.5)
    rows, exact = [], {}
    many = rng.choice((3, 30, 30, 30, 400, 3000)) if damage in ("truncated", "bit flips", "spliced") else 30
    for number in range(1, rng.randrange(1, many) + 1):
        text = _text(rng)
        if damage in _BAD_LINES and rng.random() < 0.4:
            raw, case.reasons[(name, number)] = _BAD_LINES[damage](rng, text)
        else:
            raw, exact[(name, number)] = _good_line(rng, text), text
        rows.append(raw)
    whole = b"\n".join(rows) + (b"\n" if rows[-1] == b"" or rng.random() < 0.5 else b"")
    if damage == "encodings" and rng.random() < 0.5:
        whole = b"\xef\xbb\xbf" + whole
    packed, case.original = pack(format, whole, case.checksum), exact
    if damage in ("none", *_BAD_LINES):
        case.exact = exact
        case.path.write_bytes(packed)
        return case
    broken, case.damaged_at = _broken(damage, rng, packed)
    case.path.write_bytes(broken)
    if format == "jsonl":
        case.whole = {row: text for row, text in zip(rows, exact.values())}
        case.lines = broken.split(b"\n")[: -1 if broken.endswith(b"\n") or not broken else None]
    else:
        case.raw = broken
    return case


def _broken(damage: str, rng: random.Random, whole: bytes) -> tuple[bytes, int]:
    """(damaged bytes, first place that differs)."""
    if damage == "truncated":
        cut = rng.randrange(len(whole)) if rng.random() < 0.8 else max(0, len(whole) - rng.randrange(1, 12))
        return whole[:cut], cut
    broken = bytearray(whole)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(max(1, len(broken)))
        if damage == "bit flips":
            broken[at] ^= 1 << rng.randrange(8)
            continue
        size, kind = rng.randrange(1, 200), rng.randrange(4)
        if kind == 0:
            del broken[at : at + size]
        elif kind == 1:
            broken[at:at] = rng.randbytes(size)
        elif kind == 2:
            broken[at : at + size] = bytes(size)
        else:
            other = rng.randrange(max(1, len(broken)))
            broken[at:at] = broken[other : other + size]
    first = next((i for i, (a, b) in enumerate(zip(whole, broken)) if a != b), min(len(whole), len(broken)))
    return bytes(broken), first


def _columns_case(damage: str, format: str, rng: random.Random, folder: Path) -> Case:
    """A Parquet file, Arrow file or Arrow stream of two columns."""
    name = f"in.{format}"
    case = Case(damage, format, folder / name, {}, checksum=False)
    texts, domains, exact = [], [], {}
    for number in range(1, rng.randrange(1, 120) + 1):
        text, domain = _text(rng).encode(), b"d"
        if damage in ("wrong types", "encodings") and rng.random() < 0.3:
            bad, reason = rng.choice(((None, "wrong type"), (b"", "empty text"), (b" \n", "empty text")))
            if damage == "encodings":
                bad = rng.choice(("é ü".encode("latin-1"), "text".encode("utf-16"), b"\xed\xa0\x80", b"\xff" + text))
                reason = "invalid UTF-8"
            case.reasons[(name, number)] = (reason,)
            text, domain = (bad, domain) if rng.random() < 0.7 else (text, bad)
        else:
            exact[(name, number)] = text.decode()
        texts.append(text)
        domains.append(domain)
    kind = rng.choice((pa.string(), pa.binary(), pa.large_string(), pa.large_binary()))
    columns = {"id": pa.array(range(len(texts))), "text": _column(texts, kind), "domain": _column(domains, kind)}
    case.original, case.units = exact, len(texts)
    if damage == "wrong types" and rng.random() < 0.3:
        wrong = rng.choice(([1] * len(texts), [["a"]] * len(texts), [{"a": "b"}] * len(texts), [True] * len(texts)))
        columns["text"] = pa.array(wrong)
        exact, case.reasons = {}, {(name, n + 1): ("wrong type",) for n in range(len(texts))}
    _write_columns(case.path, format, pa.table(columns), rng)
    if damage in ("none", "wrong types", "encodings"):
        case.exact = exact
        return case
    broken, case.damaged_at = _broken(damage, rng, case.path.read_bytes())
    case.path.write_bytes(broken)
    return case


def _column(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """Bytes as a column of that type, also where they are no UTF-8 as the type promises."""
    large = kind in (pa.large_string(), pa.large_binary())
    return pa.array(values, pa.large_binary() if large else pa.binary()).view(kind)


def _write_columns(path: Path, format: str, table: pa.Table, rng: random.Random) -> None:
    rows = rng.choice((7, 40, 1000))
    if format == "parquet":
        settings = {"compression": rng.choice(("none", "snappy", "zstd", "gzip")), "use_dictionary": rng.random() < 0.5}
        pq.write_table(table, path, row_group_size=rows, data_page_size=rng.choice((200, 1 << 20)), **settings)
        return
    options = pa.ipc.IpcWriteOptions(compression=rng.choice((None, "zstd", "lz4")))
    new = pa.ipc.new_file if format == "arrow" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)


def _texts_case(damage: str, format: str, rng: random.Random, folder: Path) -> Case:
    """A folder of text files, each one document."""
    case = Case(damage, format, folder / "texts", {}, checksum=True)
    case.path.mkdir()
    known: dict[tuple[str, int], str] = {}
    case.units = rng.randrange(2, 8)
    for i in range(case.units):
        name, text = f"{i}.{format}", _text(rng) * rng.choice((1, 1, 50))
        raw, where = text.encode(), (f"{i}.{format}", 1)
        case.original[where] = text
        if damage == "encodings" and rng.random() < 0.5:
            raw = rng.choice((f"é{text}".encode("latin-1", "replace"), text.encode("utf-16"), b"\xff", b"a\xed\xa0\x80"))
            case.reasons[where] = ("invalid UTF-8",)
            if rng.random() < 0.2:
                raw, case.reasons[where] = rng.choice((b"", b" \n", b"\xef\xbb\xbf")), ("empty text",)
        else:
            known[where] = text
        packed = pack(format, raw)
        if damage in ("truncated", "bit flips", "spliced") and rng.random() < 0.7:
            packed, _ = _broken(damage, rng, packed)
            known.pop(where)
        (case.path / name).write_bytes(packed)
    case.lines = None
    if damage in ("none", "encodings"):
        case.exact = known
    else:
        case.original = known  # those that were left whole
    return case


def build(damage: str, format: str, seed: int, folder: Path) -> Case:
    """Write input number `seed` of a kind into an empty folder."""
    from fuzz_large import bomb, huge

    rng = random.Random(f"{damage}/{format}/{seed}")
    if damage == "huge":
        return huge(format, rng, folder)
    if damage == "bomb":
        return bomb(format, seed, rng, folder)
    make = _lines_case if format in LINES else _columns_case if format in COLUMNS else _texts_case
    return make(damage, format, rng, folder)
