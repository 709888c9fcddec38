"""Inputs that are small files and large documents: huge lines and bombs."""

from __future__ import annotations

import gzip
import lzma
import random
from functools import cache
from pathlib import Path

import pyarrow as pa
import zstandard
from fuzz_inputs import LIMIT, LINES, TEXTS, Case, _write_columns, pack

LAST = b'{"text": "the last", "domain": "d"}\n'
MIB = 1 << 20
BOMBS = ("one line", "line ends", "lines of {}", "over a GiB", "packed twice", "empty members")


def huge(format: str, rng: random.Random, folder: Path) -> Case:
    """A document just over or under the limit between two small ones."""
    over = rng.random() < 0.6
    size = LIMIT + 1 if over else LIMIT - 100
    text = b"ab c" * (size // 4) + b"x" * (size % 4)
    name = f"in.{format}"
    case = Case("huge", format, folder / name, {})
    if format in TEXTS:
        case.path = folder / "texts"
        case.path.mkdir()
        (case.path / f"a.{format}").write_bytes(pack(format, b"first"))
        (case.path / f"b.{format}").write_bytes(pack(format, text))
        places, reason, case.units = [(f"a.{format}", 1), (f"b.{format}", 1)], "document too long", 2
        values = [b"first", text]
    elif format in LINES:
        lines = [b'{"text": "first", "domain": "d"}', b'{"text": "' + text[: size - 40] + b'", "domain": "d"}', LAST.strip()]
        if over:
            lines[1] = b'{"text": "' + text + b'", "domain": "d"}'
        case.path.write_bytes(pack(format, b"\n".join(lines)))
        places, reason = [(name, 1), (name, 2), (name, 3)], "line too long"
        values = [b"first", text[: size - 40], b"the last"]
    else:
        values = [b"first", text, b"the last"]
        table = pa.table({"text": pa.array(values, pa.binary()), "domain": ["d"] * 3})
        _write_columns(case.path, format, table, rng)
        places, reason, case.units = [(name, 1), (name, 2), (name, 3)], "document too long", 3
    case.exact = {place: value.decode() for place, value in zip(places, values)}
    if over:
        del case.exact[places[1]]
        case.reasons = {places[1]: (reason,)}
    return case


@cache
def _member(format: str, unit: bytes) -> bytes:
    """16 MiB of a repeated unit, packed; many of them one after the other are a file of their own."""
    raw = unit * (16 * MIB // len(unit))
    if format.endswith(".gz"):
        return gzip.compress(raw, 6, mtime=0)
    return zstandard.ZstdCompressor().compress(raw) if format.endswith(".zst") else lzma.compress(raw, preset=1)


def bomb(format: str, seed: int, rng: random.Random, folder: Path) -> Case:
    """A small file that unpacks to 100 MiB or over a GiB."""
    kind = BOMBS[seed % len(BOMBS)]
    if format in TEXTS:
        return _text_bomb(format, rng, folder)
    name = f"in.{format}"
    case = Case(f"bomb: {kind}", format, folder / name, {}, exact={})
    members = rng.randrange(6, 12)
    if kind == "one line":
        raw = pack(format, b'{"text": "') + _member(format, b"a") * members + pack(format, b'"}\n' + LAST)
        case.counts, case.exact = {"line too long": 1}, {(name, 2): "the last"}
    elif kind == "line ends":
        raw = _member(format, b"\n") * members + pack(format, LAST)
        case.counts, case.exact = {"blank line": 16 * MIB * members}, {(name, 16 * MIB * members + 1): "the last"}
    elif kind == "lines of {}":
        raw = pack(format, b"{}\n" * 300_000 + LAST)
        case.counts, case.exact = {"missing field": 300_000}, {(name, 300_001): "the last"}
    elif kind == "over a GiB":  # gzip packs at most 1,032 to one
        raw = pack(format, LAST) + _member(format, b"a") * 66 + pack(format, b"\n" + LAST)
        damaged = {"gz": "gzip", "zst": "zstd", "xz": "xz"}[format.split(".")[1]]
        case.counts, case.exact = {"line too long": 1, f"damaged {damaged}": 1}, {(name, 1): "the last"}
    elif kind == "packed twice":
        inner = pack(format, _member(format, b"a") * 2)
        raw = pack(format, inner + b"\n" + LAST)
        case.counts, case.exact = None, {(name, inner.count(b"\n") + 2): "the last"}
    else:
        raw = pack(format, b"") * 20_000 + pack(format, LAST)
        case.counts, case.exact = {}, {(name, 1): "the last"}
    case.path.write_bytes(raw)
    return case


def _text_bomb(format: str, rng: random.Random, folder: Path) -> Case:
    case = Case("bomb", format, folder / "texts", {}, exact={}, units=2)
    case.path.mkdir()
    (case.path / f"a.{format}").write_bytes(_member(format, rng.choice((b"a", b"\n", b"\x00"))) * rng.randrange(6, 70))
    (case.path / f"b.{format}").write_bytes(pack(format, b"after"))
    case.exact, case.reasons = {(f"b.{format}", 1): "after"}, {(f"a.{format}", 1): ("document too long",)}
    return case
