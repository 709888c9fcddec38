"""Evaluation tasks: bits per UTF-8 byte of a question with its right answer. No choice is scored, so a small model has a smooth
figure.

A task is a file of JSON lines, plain or compressed, in one of the layouts

    {query, choices, gold}      the query and the choice numbered `gold`; the wrong choices are never looked at
    {context, continuation}     both
    {text}                      the text

With a question q, stripped of template text by `without_template`, and an answer a the text is "q a": one space between. Its
tokens are x_1 ... x_n. The first has no target (in training too a document's first token is never predicted), so its bytes do
not count:

    bits per byte = sum over texts sum_(i >= 2) -log2 p(x_i | x_before) / sum over texts (bytes of the text - bytes of x_1)

A text longer than seq_length is cut into windows that overlap by one token, so that each token but the first is predicted exactly
once. A text of a single token predicts nothing; it is counted under "skipped".
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mads.data.documents import LineError, Rejects, parse_object, read_lines, text_of
from mads.data.schema import DataError, sha256_of
from mads.data.tokenizer import Tokenizer
from mads.eval.losses import FixedBatches
from mads.noise import hash64

_LEADS = ("Question: ", "Passage: ", "Goal: ")
_TAIL = "\nAnswer:"
_UNKNOWN = "\ufffd"


def without_template(query: str) -> str:
    """The question itself. These rules and no others, in this order:

    1. a last line "Answer:" goes;
    2. a leading "Question: ", "Passage: " or "Goal: " goes;
    3. of a query that began with "Passage: ", the last line that begins with "Question: " loses that word;
    4. white space at both ends goes.
    """
    query = query.rstrip()
    query = query.removesuffix(_TAIL)
    lead = next((lead for lead in _LEADS if query.startswith(lead)), "")
    query = query[len(lead) :]
    if lead == "Passage: ":
        passage, mark, question = query.rpartition("\nQuestion: ")
        query = f"{passage}\n{question}" if mark else query
    return query.strip()


def text_of_record(record: dict[str, Any]) -> str:
    """The text of one record, in one of the layouts above.

    Raises:
        LineError: no layout fits, a field has another type, or a part is empty.
    """
    if "query" in record:
        choices, gold = record.get("choices"), record.get("gold")
        if not isinstance(choices, list) or type(gold) is not int or not 0 <= gold < len(choices):
            raise LineError("wrong type", f"gold={gold!r} does not name one of the choices")
        question, answer = without_template(text_of(record, "query")), text_of({"choice": choices[gold]}, "choice").strip()
    elif "continuation" in record:
        question, answer = without_template(text_of(record, "context")), text_of(record, "continuation").strip()
    else:
        return text_of(record, "text").strip()
    if not question:
        raise LineError("empty text", "nothing is left of the question without its template")
    return f"{question} {answer}"


@dataclass(frozen=True)
class Task:
    """A task's texts in the order of its file, and the SHA-256 of the file."""

    name: str
    texts: list[str]
    sha256: str


def read_task(name: str, path: str | os.PathLike, limit: int | None = None) -> Task:
    """Read a file of JSON lines.

    Args:
        limit: so many of its texts, chosen by a hash of their content, whatever the model; None: all.

    Raises:
        DataError: a file that cannot be read or is empty, or a line that is no example: an evaluation leaves nothing out.
    """
    texts, rejects, file = [], Rejects(), os.path.basename(path)
    if not os.path.isfile(path):
        raise DataError(f"task {name!r}: there is no file {path}")
    for line, raw in read_lines(os.fspath(path), file, rejects):
        try:
            texts.append(text_of_record(parse_object(raw)))
        except LineError as error:
            rejects.add(error.reason, file, line, error.detail)
    if rejects.total:
        reason, _, line, detail = rejects.entries[0]
        count, first = rejects.total, f"line {line}: {reason} {detail}"
        raise DataError(f"task {name!r}: {count} lines of {file} are no examples, the first in {first}; mend the file")
    if not texts:
        raise DataError(f"task {name!r}: {file} holds no example")
    if limit is not None and limit < len(texts):
        digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
        keys = np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
        chosen = np.sort(np.argsort(hash64(0, "eval-limit", 0, keys), kind="stable")[:limit])
        texts = [texts[i] for i in chosen]
    return Task(name, texts, sha256_of(path))


def windows_of(tokens: np.ndarray, seq_length: int) -> list[np.ndarray]:
    """Windows of at most seq_length tokens, each beginning with the last token of the one before; none of a single token."""
    return [tokens[i : i + seq_length] for i in range(0, len(tokens) - 1, seq_length - 1)]


def predicted_bytes(text: str, first: str) -> int:
    """Bytes of the text behind its first token, which decodes to `first`. A first token that is a part of a character, and so
    does not decode, is one byte."""
    start = len(first.encode()) if text.startswith(first) and first != _UNKNOWN else 1
    return len(text.encode()) - start


@dataclass(frozen=True)
class TaskScore:
    """bits: float64 [texts], of each text; sizes: int64 [texts], bytes that they stand for; both 0 for a text that is skipped.

    tokens: that were predicted; windows: that they were cut into; skipped: texts without a target
    """

    bits: np.ndarray
    sizes: np.ndarray
    tokens: int
    windows: int
    skipped: int

    @property
    def bits_per_byte(self) -> float:
        return float(self.bits.sum() / self.sizes.sum())

    @property
    def standard_error(self) -> float | None:
        """Of the ratio, over texts: sqrt(n / (n - 1) sum (b - R s)^2) / sum s (Cochran 1977, 6.3); None for a single text."""
        used = self.sizes > 0
        count = int(used.sum())
        if count < 2:
            return None
        residuals = (self.bits - self.bits_per_byte * self.sizes)[used]
        return float(math.sqrt(count / (count - 1) * np.square(residuals).sum()) / self.sizes.sum())

    def summary(self) -> dict[str, Any]:
        return {
            "bits_per_byte": self.bits_per_byte,
            "standard_error": self.standard_error,
            "examples": len(self.bits),
            "bytes": int(self.sizes.sum()),
            "tokens": self.tokens,
            "windows": self.windows,
            "skipped": self.skipped,
        }


def score_task(
    task: Task, tokenizer: Tokenizer, losses_of: Callable[[Any], np.ndarray], seq_length: int, rows: int = 16
) -> TaskScore:
    """Score all texts of a task.

    Args:
        losses_of: batch (mads.data.batch.PackedBatch) -> summed loss of each of its samples in nats, float64 [samples].
        seq_length: of the windows, and of the rows that they are packed into.
        rows: of a batch.

    Raises:
        DataError: no text of the task has a target.
    """
    windows, owners = [], []
    sizes = np.zeros(len(task.texts), dtype=np.int64)
    for i, (text, tokens) in enumerate(zip(task.texts, tokenizer.encode(task.texts))):
        own = windows_of(tokens, seq_length)
        windows += own
        owners += [i] * len(own)
        if own:
            sizes[i] = predicted_bytes(text, tokenizer.decode(tokens[:1]))
    if not sizes.any():
        raise DataError(f"task {task.name!r}: none of its {len(task.texts)} texts has two tokens")
    batches, nats = FixedBatches(windows, seq_length, rows), np.zeros(len(windows))
    for index in range(batches.count):
        batch, members = batches.batch(index)
        nats[members] = losses_of(batch)
    bits = np.bincount(owners, weights=nats, minlength=len(task.texts)) / math.log(2)
    return TaskScore(bits, sizes, int(batches.targets.sum()), len(windows), int((sizes == 0).sum()))


def macro_average(scores: dict[str, TaskScore], apart: Sequence[str]) -> float | None:
    """Mean of the bits per byte of the tasks that are not reported apart; None if there are none."""
    values = [score.bits_per_byte for name, score in scores.items() if name not in apart]
    return float(np.mean(values)) if values else None
