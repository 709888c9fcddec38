"""Reads an input of fuzz_inputs.py and says what is wrong with what came out."""

from __future__ import annotations

import gzip
import lzma
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import zstandard
from fuzz_inputs import COLUMNS, LINES, TEXTS, Case, build
from reject_support import rejected_lines

from mads.data.files import FilesSource
from mads.data.rejects import Rejects

REASONS = {
    "blank line",
    "malformed JSON",
    "not an object",
    "missing field",
    "wrong type",
    "empty text",
    "invalid UTF-8",
    "invalid Unicode",
    "line too long",
    "document too long",
    "damaged gzip",
    "damaged zstd",
    "damaged xz",
    "damaged parquet",
    "damaged arrow",
}
BUFFERED = 1 << 17  # unpacked bytes before a damage that are lost with it: what was in the buffers


@dataclass
class Verdict:
    problems: list[str]
    accepted: int
    altered: int  # documents that differ from the line or row that was damaged
    rejected: Counter
    seconds: float  # of the processor


def read_and_judge(damage: str, format: str, seed: int, folder: Path) -> Verdict:
    """Build one input in an empty folder, read it, compare."""
    case = build(damage, format, seed, folder)
    rejects, start = Rejects(), time.process_time()
    documents = list(FilesSource([str(case.path)]).documents(rejects))
    seconds = time.process_time() - start
    found = {(d.origin, d.line): d.text for d in documents}
    problems = []

    def require(holds: bool, what: str) -> None:
        if not holds:
            problems.append(f"{case.damage}, {format}, {seed}: {what}")

    places = [(d.origin, d.line) for d in documents]
    require(places == sorted(set(places)), f"documents out of order or twice: {places[:10]}")
    require(all(d.text.strip() and d.text.encode() and d.domain for d in documents), "an empty or unwritable document")
    require(set(rejects.counts) <= REASONS, f"unknown reasons {rejects.counts}")
    if case.exact is not None:
        _judge_exact(case, found, rejects, require)
    elif format in LINES:
        _judge_lines(case, found, rejects, require)
    elif format in COLUMNS:
        damaged = any("damaged" in r or r == "missing field" for r in rejects.counts)
        require(damaged or len(found) + rejects.total >= case.units, f"rows vanished: {len(found)}, {rejects.counts}")
        require(len(found) <= case.units or damaged, "more rows than were written")
    if format in TEXTS:
        require(len(found) + rejects.total == case.units, f"{case.units} files, {len(found)} and {rejects.counts}")
        require(all(found.get(k) == v for k, v in case.original.items()) or case.exact is not None, "a whole file was lost")
    altered = sum(case.original[k] != text for k, text in found.items() if k in case.original)
    return Verdict(problems, len(found), altered, Counter(rejects.counts), seconds)


def _judge_exact(case: Case, found: dict, rejects: Rejects, require) -> None:
    wrong = [k for k in {*found, *case.exact} if found.get(k) != case.exact.get(k)]
    require(not wrong, f"other documents than expected at {sorted(wrong)[:5]}, rejected {list(rejects)[:5]}")
    if case.counts is not None:
        require(rejects.counts == case.counts, f"counted {rejects.counts}, not {case.counts}")
    elif case.damage != "bomb: packed twice":
        told = {(origin, line): reason for _, origin, _, _ in rejects for reason, line in rejected_lines(rejects)}
        if len(told) and case.format in TEXTS:
            told = {(origin, line): reason for reason, origin, line, _ in rejects}
        require(set(told) == set(case.reasons), f"rejected {sorted(told)[:9]}, not {sorted(case.reasons)[:9]}")
        require(rejects.total == len(case.reasons), f"{rejects.total} rejects of {len(case.reasons)}")
        other = [(k, r) for k, r in told.items() if r not in case.reasons.get(k, ())]
        require(not other, f"other reasons than expected: {other[:5]}")


def _unpacked_lines(case: Case) -> int | None:
    """Lines of a packed file as its codec's own library unpacks it; None if it does not."""
    try:
        if case.format.endswith("zst"):
            reader = zstandard.ZstdDecompressor().stream_reader(case.raw, read_across_frames=True)
            raw = reader.read()
        else:
            raw = (gzip if case.format.endswith("gz") else lzma).decompress(case.raw)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError):
        return None
    return raw.count(b"\n") + (raw[-1:] not in (b"", b"\n"))


def _judge_lines(case: Case, found: dict, rejects: Rejects, require) -> None:
    listed = rejected_lines(rejects)
    damage = [line for reason, line in listed if reason.startswith("damaged")]
    numbers = sorted([line for _, line in found] + [line for reason, line in listed if not reason.startswith("damaged")])
    require(numbers == list(range(1, len(numbers) + 1)), f"a line is missing or twice: {numbers[-5:]} of {len(numbers)}")
    require(len(numbers) + len(damage) == len(found) + rejects.total, "the list and the counts differ")
    if case.lines is not None:
        require(len(numbers) == len(case.lines) and not damage, f"{len(numbers)} of {len(case.lines)} lines")
        read = [(case.whole[raw], found.get((case.path.name, n))) for n, raw in enumerate(case.lines, 1) if raw in case.whole]
        require(all(text == expected for expected, text in read), "a line that was left whole is not read")
        require(len(read) > 0 or len(case.whole) < 8 or case.damage == "truncated", "no line was left whole")
        return
    require(damage in ([], [len(numbers) + 1]), f"damage at {damage} after {len(numbers)} lines")
    if case.damage == "truncated":
        prefix = dict(list(case.original.items())[: len(found)])
        require(found == prefix, "what was read is no prefix of what was written")
        require(len(damage) == (case.damaged_at > 0), f"a cut at {case.damaged_at} is not noticed")
    if not damage and (case.checksum or not case.format.endswith("zst")) and case.raw:
        # A splice may repeat the whole stream, which is a valid file of more lines.
        valid = found == case.original or _unpacked_lines(case) == len(numbers)
        require(valid, "no damage, but other documents: the checksum was not looked at")
    if case.format.endswith("gz"):
        unpacked = zlib.decompressobj(31).decompress(case.raw[: case.damaged_at]) if case.damaged_at else b""
        sure = unpacked[: max(0, len(unpacked) - BUFFERED)].count(b"\n")
        kept = [text for _, text in list(case.original.items())[:sure]]
        require(list(found.values())[: len(kept)] == kept, f"of {sure} lines before the damage some are lost")
