"""What becomes of every document: removed, trained on or held out; what is learned from; and how the rest is cut into shards."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.documents import Wanted
from mads.data.prepare.board import Tally
from mads.data.prepare.job import Job
from mads.data.prepare.removals import find_removals, known_keys
from mads.data.prepare.survey import Surveyed, read_surveys
from mads.data.rejects import raise_if_too_many
from mads.data.schema import DataError
from mads.data.split import fit_documents, heldout_documents, heldout_groups
from mads.label.base import open_labeller

TRAIN, HELDOUT, REMOVED = 0, 1, 2
_LABELLER_BYTES = 64e6  # training text that labellers learn from


def make_plan(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Decide; writes plan/plan.json, keys.npy, lines.npy, state.npy, tokenizer.npy, labellers.npy and the list of the removed."""
    settings, found = job.settings, read_surveys(job)
    documents = len(found.keys)
    raise_if_too_many(found.rejected, found.first_rejected, documents, settings.max_rejected_fraction)
    if not documents:
        described = json.dumps(job.identity["source"])[:500]
        raise DataError(f"the source holds no document; check its paths and fields, or give other data: {described}")
    folder = scratch / "work" / "plan"
    folder.mkdir(parents=True)
    removals = find_removals(job, found, scratch)
    removals.write(folder / "removed.jsonl", found)
    removed = removals.removed
    state = np.full(documents, REMOVED, dtype=np.uint8)
    kept = np.flatnonzero(~removed)
    state[kept], split = _heldout(job, found, kept)
    if not len(kept):
        raise DataError(f"nothing is left of {documents} documents: {_listed(removals.counts)}; see data.hygiene")
    shards = _units(found) if job.takes_tokens else _cut(found.sizes, kept, settings.shard_megabytes * 1e6)
    tokenizer = labellers = np.zeros(0, np.int64)
    if job.before is None:
        train, classes = state == TRAIN, [found.codes, *found.categories.values()]
        if settings.tokenizer_path is None:
            tokenizer = fit_documents(
                found.keys, found.sizes, classes[:1], train, settings.tokenizer_megabytes * 1e6, settings.seed
            )
        if job.labellers:
            labellers = fit_documents(found.keys, found.sizes, classes, train, _LABELLER_BYTES, settings.seed)
    arrays = {"keys": found.keys, "lines": found.lines, "state": state, "tokenizer": tokenizer, "labellers": labellers}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    labels = _new_labels(job, found, kept) if job.before is not None else {}
    plan = {
        "units": found.units,
        "labels": labels,
        "domains": found.domains,
        "rejected": found.rejected,
        "first_rejected": found.first_rejected,
        "removed": removals.counts,
        "contamination": removals.contamination,
        "heldout_groups": split,
        "shards": shards,
        "bytes": [int(found.sizes[first:last][state[first:last] != REMOVED].sum()) for first, last in shards],
        "fit_megabytes": round(float(found.sizes[tokenizer].sum()) / 1e6, 1),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    tally.add(documents, int(found.sizes.sum(dtype=np.int64)))
    note = (
        f"read {documents:,} documents of {len(found.domains)} domains, {found.sizes.sum(dtype=np.int64) / 1e6:.1f} MB, "
        f"{found.rejected.total()} inputs rejected"
    )
    return (
        [note]
        + ([f"removed {_listed(removals.counts)}; listed in {job.list_name('removed')}"] if removals.counts else [])
        + removals.notes()
        + _split_notes(settings.heldout_group_field, split)
        + [f"attribute {name} has {len(new)} further labels: {', '.join(new[:10])}" for name, new in labels.items()]
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _new_labels(job: Job, found: Surveyed, kept: np.ndarray) -> dict[str, list[str]]:
    """Attribute -> labels that an addition brings, behind those that the directory has."""
    new, classes = {}, [found.codes, *found.categories.values()]
    if any("origin" in getattr(labeller, "reads", ()) for labeller in job.labellers.values()):
        classes.append(found.origin_codes)
    firsts = np.unique(np.concatenate([kept[np.unique(codes[kept], return_index=True)[1]] for codes in classes]))
    examples = [found.without_text(index) for index in firsts.tolist()]
    for schema in job.before.attributes:
        labeller = job.labellers[schema.name]
        open_labeller(job.directory, schema, labeller)
        if labels := labeller.new_labels(examples):
            new[schema.name] = labels
    return new


def _heldout(job: Job, found: Surveyed, kept: np.ndarray) -> tuple[np.ndarray, dict[str, list[int] | None]]:
    """(TRAIN or HELDOUT for each of `kept`; domain -> [groups held out, all], None: by document). What equals a document of an
    earlier generation stays on its side."""
    settings, keys, split = job.settings, found.keys[kept], {}
    if settings.heldout_group_field is None:
        held = heldout_documents(keys, found.codes[kept], settings.heldout_fraction, settings.seed)
    else:
        held, counts = heldout_groups(keys, found.codes[kept], found.groups[kept], settings.heldout_fraction, settings.seed)
        split = {found.domains[code]: count for code, count in counts.items()}
    if job.before is not None:
        held &= ~np.isin(keys, known_keys(job, "train")[:, 0])
        held |= np.isin(keys, known_keys(job, "heldout")[:, 0])
    return np.where(held, HELDOUT, TRAIN).astype(np.uint8), split


def _split_notes(field: str | None, split: dict[str, list[int] | None]) -> list[str]:
    """How the domains were split, for people."""
    whole = [f"{domain} {count[0]} of {count[1]}" for domain, count in sorted(split.items()) if count is not None]
    single = sorted(domain for domain, count in split.items() if count is None)
    notes = [f"held out whole groups of {field!r}: {', '.join(whole)}"] if whole else []
    return notes + ([f"note: held out by document, for want of small groups of {field!r}: {', '.join(single)}"] if single else [])


def _cut(sizes: np.ndarray, kept: np.ndarray, shard_bytes: float) -> list[tuple[int, int]]:
    """(first document, one behind the last) of each shard: it is full when its kept documents have `shard_bytes` or more."""
    ends = np.cumsum(sizes[kept], dtype=np.int64)
    shards, first, done = [], 0, 0
    while first < len(kept):
        last = min(len(kept), int(np.searchsorted(ends, done + shard_bytes, side="left")) + 1)
        shards.append((int(kept[first]), int(kept[last - 1]) + 1))
        first, done = last, int(ends[last - 1])
    return shards


def _units(found: Surveyed) -> list[tuple[int, int]]:
    """A token file is a shard."""
    borders = np.cumsum([0] + [unit["documents"] for unit in found.units]).tolist()
    return list(zip(borders[:-1], borders[1:]))


@dataclass(frozen=True)
class Plan:
    """A plan as the tasks after it read it; the arrays, one entry a document, are memory-mapped.

    firsts: index of each unit's first document, and the number of all documents
    """

    about: dict[str, Any]
    firsts: np.ndarray
    keys: np.ndarray
    lines: np.ndarray
    state: np.ndarray

    @classmethod
    def load(cls, job: Job) -> Plan:
        """Read what `make_plan` wrote."""
        folder = job.work / "plan"
        about = json.loads((folder / "plan.json").read_text())
        firsts = np.cumsum([0] + [unit["documents"] for unit in about["units"]])
        return cls(about, firsts, *(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "lines", "state")))

    @property
    def rejected(self) -> Counter:
        return Counter(self.about["rejected"])

    def wanted(self, indices: np.ndarray) -> list[tuple[int, np.ndarray, Wanted]]:
        """(unit, indices of its documents, how to read them) for ascending indices of documents."""
        units = np.searchsorted(self.firsts, indices, side="right") - 1
        out = []
        for mine in np.split(indices, np.flatnonzero(np.diff(units)) + 1) if len(indices) else []:
            unit = int(np.searchsorted(self.firsts, mine[0], side="right")) - 1
            marks = [tuple(mark) for mark in self.about["units"][unit]["marks"]]
            out.append((unit, mine, Wanted(mine - self.firsts[unit], np.asarray(self.lines[mine]), marks)))
        return out
