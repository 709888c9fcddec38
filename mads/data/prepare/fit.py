"""What comes before the corpus is written: reference tasks are stored, a sample is drawn, tokenizer and labellers are fitted."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.documents import Document, Rejects
from mads.data.parts import window_lengths
from mads.data.prepare.board import Tally
from mads.data.prepare.job import Job
from mads.data.prepare.plan import Plan
from mads.data.references import JsonlReferences, split_parts
from mads.data.schema import AttributeSchema, DataError
from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.label.base import (
    Labeller,
    attribute_schema,
    fit_labeller,
    fit_sample_labeller,
    open_labeller,
    save_labeller,
    without_end,
)

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
TOKENIZER_FILES = {"sentencepiece": "tokenizer.model", "huggingface": "tokenizer.json"}


def write_references(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Store the reference tasks; they come first because what cannot be had fails before the long work. Evaluation sets are kept
    in the work folder for decontamination. An addition to a directory leaves its references alone."""
    rejects, counts, notes = Rejects(), {}, []
    if job.before is not None:
        counts = job.before.references
    elif job.references is None:
        notes.append("note: no reference tasks; only selections without rewards can train on this data")
    else:
        counts = _store(job, scratch / "references", rejects)
        notes += [f"reference task {task}: " + ", ".join(f"{n} {part}" for part, n in c.items()) for task, c in counts.items()]
    base = scratch / job.result("references", 0, "")
    base.parent.mkdir(parents=True)
    with open(base.parent / "evaluation.jsonl", "w", encoding="ascii") as file:
        if job.settings.evaluation_paths:
            source = JsonlReferences(job.settings.evaluation_paths, max_examples=None)
            for task, examples in source.examples(rejects).items():
                file.writelines(json.dumps({"task": task, "id": e["id"], "text": e["text"]}) + "\n" for e in examples)
    rejects.write(base.with_name(base.name + ".rejected.jsonl"))
    base.with_name(base.name + ".json").write_text(json.dumps({"counts": counts, "rejected": rejects.counts}))
    return notes


def _store(job: Job, folder: Path, rejects: Rejects) -> dict[str, dict[str, int]]:
    """Write references/TASK.jsonl; examples of each part by task."""
    counts = {}
    folder.mkdir()
    for task, examples in job.references.examples(rejects).items():
        if not FILE_NAME.fullmatch(task):
            raise DataError(f"reference task name {task!r} is used as a file name; use letters, digits, '_', '-' and '.'")
        rows = split_parts(examples, job.settings.seed)
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
        counts[task] = {part: sum(row["part"] == part for row in rows) for part in ("direction", "audit", "report")}
    return counts


def sampled_groups(job: Job, plan: Plan) -> list[int]:
    """Groups of units that hold documents to learn from."""
    chosen = _chosen(job)
    bounds = [(plan.firsts[group.start], plan.firsts[group.stop]) for group in job.groups]
    return [i for i, (first, last) in enumerate(bounds) if ((chosen >= first) & (chosen < last)).any()]


def _chosen(job: Job) -> np.ndarray:
    return np.union1d(*(np.load(job.work / "plan" / f"{name}.npy") for name in ("tokenizer", "labellers")))


def draw_sample(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Copy the documents of a group that are learned from to sample/INDEX.jsonl."""
    plan, chosen = Plan.load(job), _chosen(job)
    group = job.groups[index]
    mine = chosen[(chosen >= plan.firsts[group.start]) & (chosen < plan.firsts[group.stop])]
    path = scratch / job.result("sample", index, ".jsonl")
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="ascii") as file:
        for place, document in read_again(job, plan, mine):
            row = {"index": place, **dataclasses.asdict(document)}
            file.write(json.dumps(row) + "\n")
            tally.add(1, len(document.text))
    return []


def read_again(job: Job, plan: Plan, indices: np.ndarray) -> Iterator[tuple[int, Document]]:
    """(index, document) for ascending indices.

    Raises:
        DataError: the source no longer has them.
    """
    for unit, mine, wanted in plan.wanted(indices):
        found = 0
        for place, document in zip(mine.tolist(), job.source.read(unit, Rejects(), wanted)):
            yield place, document
            found += 1
        if found != len(mine):
            name = job.source.files[unit][0] if job.source.files else "the source"
            raise DataError(f"{name} changed while it was read: {len(mine)} documents, then {found}; prepare again")


def _sample(job: Job, name: str) -> Iterator[Document]:
    wanted = set(np.load(job.work / "plan" / f"{name}.npy").tolist())
    for index in range(len(job.groups)):
        path = job.directory / job.result("sample", index, ".jsonl")
        if path.exists():
            with open(path, encoding="ascii") as file:
                for row in map(json.loads, file):
                    if row.pop("index") in wanted:
                        yield Document(**row)


def fit(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Make the tokenizer (index 0) or fit a labeller (from 1 on, in the order of their names' configuration)."""
    (scratch / "work" / "fit").mkdir(parents=True)
    return _fit_tokenizer(job, scratch) if index == 0 else _fit_labeller(job, index, scratch)


def _fit_tokenizer(job: Job, scratch: Path) -> list[str]:
    settings, start = job.settings, time.monotonic()
    path = scratch / TOKENIZER_FILES[settings.tokenizer_kind]
    if settings.tokenizer_path is None:
        train_sentencepiece((d.text for d in _sample(job, "tokenizer")), settings.vocab_size, path)
        how = f"trained on {Plan.load(job).about['fit_megabytes']} MB"
    else:
        shutil.copyfile(settings.tokenizer_path, path)
        how = f"given as {Path(settings.tokenizer_path).name}"
    tokenizer = Tokenizer.open(path, settings.tokenizer_kind)
    if tokenizer.vocab_size > settings.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size is {settings.vocab_size}: "
            f"set model.vocab_size={tokenizer.vocab_size} or more, or give another tokenizer"
        )
    record = {"kind": tokenizer.kind, "file": path.name, "vocab_size": tokenizer.vocab_size, "eod": tokenizer.eod}
    record["lossless"] = tokenizer.lossless
    (scratch / job.result("fit", 0, ".json")).write_text(json.dumps(record))
    notes = [f"tokenizer {how}: {tokenizer.vocab_size:,} ids, {time.monotonic() - start:.1f} s"]
    if not record["lossless"]:
        notes.append("note: this tokenizer does not give back every text: it changes white space or rare characters")
    return notes


def _fit_labeller(job: Job, index: int, scratch: Path) -> list[str]:
    name, labeller = list(job.labellers.items())[index - 1]
    documents, start = list(_sample(job, "labellers")), time.monotonic()
    fit_labeller(job.directory, labeller, documents)
    _keep(job, index, scratch, labeller)
    return [f"labeller {name} fitted on {len(documents):,} training documents, {time.monotonic() - start:.1f} s"]


def fit_by_sample(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Fit a labeller that learns from samples, with the tokenizer that `fit` has made; indices as there."""
    (scratch / "work" / "fit").mkdir(parents=True)
    name, labeller = list(job.labellers.items())[index - 1]
    start, settings = time.monotonic(), job.settings
    record = json.loads((job.directory / job.result("fit", 0, ".json")).read_text())
    tokenizer = Tokenizer.open(job.directory / record["file"], record["kind"])
    samples: list[np.ndarray] = []
    for tokens in tokenizer.encode([document.text for document in _sample(job, "labellers")]):
        tokens = np.append(tokens, np.int32(tokenizer.eod))
        lengths = window_lengths(len(tokens), settings.seq_length, settings.min_sample_tokens)
        samples += np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []
    fit_sample_labeller(job.directory, labeller, without_end(samples, tokenizer.eod), tokenizer)
    _keep(job, index, scratch, labeller)
    return [f"labeller {name} fitted on {len(samples):,} training samples, {time.monotonic() - start:.1f} s"]


def _keep(job: Job, index: int, scratch: Path, labeller: Labeller) -> None:
    name = list(job.labellers)[index - 1]
    save_labeller(scratch / "labellers" / f"{name}.npz", labeller)
    schema = attribute_schema(name, labeller)
    (scratch / job.result("fit", index, ".json")).write_text(json.dumps(dataclasses.asdict(schema)))


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What was fitted: tokenizer and its record in the manifest, labellers by name, and the schemas of their attributes."""

    record: dict[str, Any]
    tokenizer: Tokenizer
    labellers: dict[str, Labeller]
    schemas: list[AttributeSchema]


def fitted_records(job: Job) -> tuple[dict[str, Any], list[AttributeSchema]]:
    """The manifest's entries for tokenizer and attributes."""
    if job.before is not None:
        added = Plan.load(job).about["labels"]
        return job.before.tokenizer, [
            dataclasses.replace(s, labels=s.labels + tuple(added.get(s.name, ()))) for s in job.before.attributes
        ]
    read = [json.loads((job.directory / job.result("fit", i, ".json")).read_text()) for i in range(1 + len(job.labellers))]
    return read[0], [AttributeSchema(**value) for value in read[1:]]


def load_fitted(job: Job) -> Fitted:
    """Open what `fit`, or an earlier generation, left in the directory."""
    record, schemas = fitted_records(job)
    for schema in schemas:
        open_labeller(job.directory, schema, job.labellers[schema.name])
    tokenizer = Tokenizer.open(job.directory / record["file"], record["kind"])
    return Fitted(record, tokenizer, {schema.name: job.labellers[schema.name] for schema in schemas}, schemas)
