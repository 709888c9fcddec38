"""The first look at the documents: keys, sizes and places of all of them, and what could not be read. No text is kept."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.documents import Document, Marks, Rejects
from mads.data.prepare.board import Tally
from mads.data.prepare.hygiene import Observer
from mads.data.prepare.job import Job
from mads.data.schema import DataError, sha256_of
from mads.data.split import text_keys

_MOST_VALUES = 1 << 16  # of a field whose values are labels
_TALLY_EVERY = 256


class Codes:
    """Values as numbers, in the order in which they first appear. True, 1 and 1.0 are three values."""

    def __init__(self):
        self._codes: dict[tuple[type, Any], int] = {}
        self.codes = array("i")

    def add(self, value: Any) -> None:
        self.codes.append(self.code(value))

    def code(self, value: Any) -> int:
        """The number of a value, a new one if it has none yet."""
        return self._codes.setdefault((type(value), value), len(self._codes))

    @property
    def values(self) -> list[Any]:
        return [value for _, value in self._codes]


@dataclass
class _Columns:
    keys: array = field(default_factory=lambda: array("Q"))  # key, check, key, check, ...
    sizes: array = field(default_factory=lambda: array("I"))
    lines: array = field(default_factory=lambda: array("q"))
    groups: array = field(default_factory=lambda: array("Q"))


def survey_group(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Survey the units of one group; writes survey/INDEX.npz, .json, .rejected.jsonl and, if asked for, .signatures.npy."""
    columns, rejects, units = _Columns(), Rejects(), []
    observer = Observer(job)
    domains, origins, categories = Codes(), Codes(), {name: Codes() for name in job.categories}
    for unit in job.groups[index]:
        marks: Marks = []
        before = len(columns.sizes)
        for document in job.source.read(unit, rejects, marks=marks):
            size = _add(columns, document, job.settings.heldout_group_field)
            domains.add(document.domain)
            origins.add(document.origin)
            for name, codes in categories.items():
                codes.add(document.fields[name])
                if len(codes.values) > _MOST_VALUES:
                    raise DataError(
                        f"field {name!r} has more than {_MOST_VALUES} values and cannot be a label; see {document.origin}"
                    )
            observer.add(document.text)
            tally.add(1, size)
        units.append({"documents": len(columns.sizes) - before, "marks": marks, **_described(job, unit)})
    observer.finish()
    arrays = {name: np.asarray(values) for name, values in vars(columns).items()}
    arrays["keys"] = arrays["keys"].reshape(-1, 2)
    arrays |= {"domains": np.asarray(domains.codes), "origins": np.asarray(origins.codes)}
    arrays |= {f"category-{i}": np.asarray(codes.codes) for i, codes in enumerate(categories.values())}
    base = scratch / job.result("survey", index, "")
    base.parent.mkdir(parents=True)
    np.savez(base.with_name(base.name + ".npz"), **arrays)
    rejects.write(base.with_name(base.name + ".rejected.jsonl"))
    found = {
        "units": units,
        "domains": domains.values,
        "origins": origins.values,
        "categories": {name: codes.values for name, codes in categories.items()},
        "rejected": rejects.counts,
        "first_rejected": rejects.entries[:5],
        "contaminated": observer.contaminated,
    }
    if observer.signatures is not None:
        np.save(base.with_name(base.name + ".signatures.npy"), observer.signatures)
    base.with_name(base.name + ".json").write_text(json.dumps(found))
    return []


def _add(columns: _Columns, document: Document, group_field: str | None) -> int:
    raw = document.text.encode("utf-8")
    key, check = text_keys(raw)
    columns.keys.extend((key, check))
    columns.sizes.append(len(raw))
    columns.lines.append(document.line)
    if group_field is not None:
        value = document.fields[group_field]
        columns.groups.append(text_keys(f"{type(value).__name__}:{value}".encode())[0])
    return len(raw)


def _described(job: Job, unit: int) -> dict[str, Any]:
    """Size and hash of a unit's file, for the manifest."""
    if not job.source.files:
        return {}
    name, path = job.source.files[unit]
    size, expected = Path(path).stat().st_size, job.identity["source"]["files"][unit]["bytes"]
    if size != expected:
        raise DataError(f"{name} had {expected} bytes and now has {size}: the source changed while it was read; prepare again")
    return {"bytes": size, "sha256": sha256_of(path)}


@dataclass(frozen=True)
class Surveyed:
    """All surveys of a source joined, in input order: one entry a document.

    pairs: uint64 [n, 2], key and check of each text (mads.data.split.text_keys); sizes: uint32 [n], bytes; lines: int64 [n]
    groups: uint64 [n], a hash of each document's value under data.heldout_group_field; without it [0]
    codes, origin_codes: int32 [n], index into `domains` and `origins`
    categories: field -> codes int32 [n], index into values[field]
    contaminated: (index, detail, examples) of each document that shares a gram with examples (mads.hygiene.contamination.Hit)
    units: per unit of the source {"documents", "marks"} and, of a file, {"bytes", "sha256"}
    """

    pairs: np.ndarray
    sizes: np.ndarray
    lines: np.ndarray
    groups: np.ndarray
    codes: np.ndarray
    domains: tuple[str, ...]
    origin_codes: np.ndarray
    origins: tuple[str, ...]
    categories: dict[str, np.ndarray]
    values: dict[str, list[Any]]
    units: list[dict[str, Any]]
    rejected: Counter
    first_rejected: list[list]
    contaminated: list[tuple[int, str, list]]

    @property
    def keys(self) -> np.ndarray:
        """uint64 [n], the first 64 bits."""
        return self.pairs[:, 0]

    def origin(self, index: int) -> str:
        return self.origins[self.origin_codes[index]]

    def without_text(self, index: int) -> Document:
        """A document with all that is known of it."""
        fields = {name: self.values[name][codes[index]] for name, codes in self.categories.items()}
        return Document("", self.domains[self.codes[index]], self.origin(index), int(self.lines[index]), fields)

    def place(self, index: int) -> str:
        """Where a document is, for people."""
        return f"{self.origin(index)}:{self.lines[index]}"


def read_surveys(job: Job) -> Surveyed:
    """Join what all groups' surveys found."""
    domains, origins, categories = Codes(), Codes(), {name: Codes() for name in job.categories}
    columns: dict[str, list[np.ndarray]] = {}
    units, rejected, first, contaminated, before = [], Counter(), [], [], 0
    for index in range(len(job.groups)):
        base = job.directory / job.result("survey", index, "")
        found = json.loads(base.with_name(base.name + ".json").read_text())
        translations = {"domains": (domains, found["domains"]), "origins": (origins, found["origins"])}
        translations |= {f"category-{i}": (c, found["categories"][name]) for i, (name, c) in enumerate(categories.items())}
        with np.load(base.with_name(base.name + ".npz")) as arrays:
            for name in arrays.files:
                values = arrays[name]
                if name in translations:
                    codes, local = translations[name]
                    values = np.array([codes.code(value) for value in local], dtype=np.int32)[values]
                columns.setdefault(name, []).append(values)
        units += found["units"]
        rejected.update(found["rejected"])
        first += found["first_rejected"][: 5 - len(first)]
        contaminated += [(before + i, detail, examples) for i, detail, examples in found["contaminated"]]
        before += len(columns["sizes"][-1])
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Surveyed(
        *(joined[name] for name in ("keys", "sizes", "lines", "groups", "domains")),
        tuple(domains.values),
        joined["origins"],
        tuple(origins.values),
        {name: joined[f"category-{i}"] for i, name in enumerate(categories)},
        {name: codes.values for name, codes in categories.items()},
        units,
        rejected,
        first,
        contaminated,
    )
