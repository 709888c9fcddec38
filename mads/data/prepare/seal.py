"""The end of a preparation: counts are summed, lists joined, and the manifest makes the directory (or its addition) complete."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mads.data.parts import PARTS, written_files
from mads.data.prepare.board import Tally
from mads.data.prepare.fit import fitted_records
from mads.data.prepare.job import Job
from mads.data.prepare.plan import Plan
from mads.data.prepare.shards import file_entry
from mads.data.rejects import raise_if_too_many
from mads.data.schema import DataError, Manifest


def seal(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Write the lists and the manifest."""
    plan = Plan.load(job)
    shards = [_read(job, "shards", i) for i in range(len(plan.about["shards"]))]
    references = _read(job, "references", 0)
    rejected = sum((Counter(shard["rejected"]) for shard in shards), plan.rejected)
    notes = _check(job, plan, shards, rejected)
    lists = {"rejected": _rejected_files(job, plan), "removed": [job.work / "plan" / "removed.jsonl"]}
    files = dict(job.before.files) if job.before is not None else {}
    for shard in shards:
        files |= shard["files"]
    for kind, parts in lists.items():
        path = scratch / job.list_name(kind)
        with open(path, "wb") as out:
            for part in parts:
                with open(part, "rb") as source:
                    shutil.copyfileobj(source, out)
        files[path.name] = file_entry(path)
    tokenizer, schemas = fitted_records(job)
    if job.before is None:
        own = [tokenizer["file"], *(f"labellers/{s.name}.npz" for s in schemas)]
        own += [f"references/{task}.jsonl" for task in references["counts"]]
        files |= {name: file_entry(job.directory / name) for name in own}
    parts = _parts(job, shards)
    generation = {
        "source": _source(job, plan),
        "shards": {part: len(entry["shards"]) for part, entry in parts.items()},
        "rejected": dict(sorted((rejected + Counter(references["rejected"])).items())),
        "removed": plan.about["removed"],
        "contamination": plan.about["contamination"],
    }
    if job.settings.heldout_group_field is not None:
        generation["heldout_groups"] = plan.about["heldout_groups"]
    generations = [*(job.before.generations if job.before is not None else []), generation]
    manifest = Manifest(
        job.settings.seq_length, dict(sorted(files.items())), parts, schemas, references["counts"], tokenizer, generations
    )
    if job.before is not None and Manifest.read(job.directory).fingerprint != job.before.fingerprint:
        raise DataError(f"{job.directory} was changed while documents were added to it; run the command again")
    notes += _remove_strangers(job, manifest)
    manifest.write(scratch)
    return notes


def left_over(job: Job) -> list[Path]:
    """What an unfinished preparation, perhaps with other settings, has left under the names of this generation's files. Files of
    the generations before are none of our business, even if the manifest no longer has them: a run may hold them open."""
    files = written_files(job.directory)
    if job.before is None:
        return files
    shard = re.compile(r"shard-(\d+)\.")
    ours = [p for p in files if (found := shard.match(p.name)) and int(found[1]) >= job.first_shard]
    return ours + [p for kind in ("rejected", "removed") if (p := job.directory / job.list_name(kind)).exists()]


def _read(job: Job, stage: str, index: int) -> dict[str, Any]:
    return json.loads((job.directory / job.result(stage, index, ".json")).read_text())


def _rejected_files(job: Job, plan: Plan) -> Iterator[Path]:
    """Lists of what was rejected: unreadable, too short, in the references; each in input order."""
    yield from (job.directory / job.result("survey", i, ".rejected.jsonl") for i in range(len(job.groups)))
    yield from (job.directory / job.result("shards", i, ".rejected.jsonl") for i in range(len(plan.about["shards"])))
    yield job.directory / job.result("references", 0, ".rejected.jsonl")


def _parts(job: Job, shards: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The manifest's parts: those of the earlier generations, and these shards."""
    empty = {part: {"documents": 0, "samples": 0, "tokens": 0, "shards": []} for part in PARTS}
    parts = copy.deepcopy(job.before.parts) if job.before is not None else empty
    for shard in shards:
        for part, counts in shard["parts"].items():
            for unit, count in counts.items():
                parts[part][unit] += count
            parts[part]["shards"].append(counts["samples"])
    return parts


def _source(job: Job, plan: Plan) -> dict[str, Any]:
    """The identity, with the hashes of the files that the survey found."""
    identity = copy.deepcopy(job.identity)
    for entry, unit in zip(identity["source"].get("files", []), plan.about["units"]):
        entry["sha256"] = unit["sha256"]
    return identity


def _check(job: Job, plan: Plan, shards: list[dict[str, Any]], rejected: Counter) -> list[str]:
    """Too many rejects, an empty training part; notes about what is not as one would expect."""
    settings = job.settings
    counts = {part: {u: sum(s["parts"][part][u] for s in shards) for u in ("documents", "samples", "tokens")} for part in PARTS}
    documents = int(plan.firsts[-1])
    if not counts["train"]["samples"] and job.before is None:
        raise DataError(
            f"no training document has min_sample_tokens={settings.min_sample_tokens} tokens: the longest of {documents} "
            f"documents has {max(s['longest_document'] for s in shards)}; lower data.min_sample_tokens or give longer documents"
        )
    first = [*plan.about["first_rejected"], *(entry for shard in shards for entry in shard["first_rejected"])][:5]
    accepted = sum(c["documents"] for c in counts.values()) + sum(plan.about["removed"].values())
    raise_if_too_many(rejected, first, accepted, settings.max_rejected_fraction)
    notes = []
    longest = max(s["longest_sample"] for s in shards)
    if longest < settings.seq_length:
        notes.append(
            f"note: no document fills seq_length={settings.seq_length}; the longest sample has {longest} tokens, "
            "so every row is packed from several documents"
        )
    without = sorted(set(plan.about["domains"]) - {domain for shard in shards for domain in shard["domains_held"]})
    if without and settings.heldout_fraction:
        notes.append(f"note: nothing is held out of {len(without)} domains with few documents: {', '.join(without[:10])}")
    for part, c in counts.items():
        notes.append(f"{part}: {c['documents']:,} documents, {c['samples']:,} samples, {c['tokens']:,} tokens")
    return notes


def _remove_strangers(job: Job, manifest: Manifest) -> list[str]:
    left = [p for p in left_over(job) if p.relative_to(job.directory).as_posix() not in manifest.files]
    for path in left:
        path.unlink(missing_ok=True)
    return [f"removed {len(left)} files of an unfinished preparation"] if left else []
