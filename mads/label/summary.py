"""What the attributes of a prepared directory say: counts by label, values, pairs of attributes, examples."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mads.data.attributes import AttributeColumn, read_column
from mads.data.pool import attribute_path
from mads.data.schema import AttributeSchema, Manifest
from mads.label.prepared import PreparedDocuments
from mads.noise import hash64

EXAMPLES = 3  # of each label
BINS = 40  # of a histogram
_EXCERPT_TOKENS, _EXCERPT_CHARACTERS = 120, 240
_MOST_PAIRED = 40  # labels of an attribute that is set against another


@dataclass
class LabelCounts:
    """One label: how much of the part has it, and the beginnings of some documents that have it, with their values."""

    label: str
    documents: int = 0
    samples: int = 0
    tokens: int = 0
    examples: list[tuple[str, float | None]] = field(default_factory=list)


@dataclass
class AttributeSummary:
    """One attribute. histogram: (edges float64 [BINS + 1], samples int64 [BINS]) of its values, None without values."""

    schema: AttributeSchema
    labels: list[LabelCounts]
    histogram: tuple[np.ndarray, np.ndarray] | None = None


@dataclass
class Summary:
    """A part of a prepared directory.

    pairs: (attribute, attribute) -> tokens with each pair of labels, int64 [labels of the first, labels of the second]
    """

    directory: str
    part: str
    manifest: Manifest
    attributes: list[AttributeSummary]
    pairs: dict[tuple[str, str], np.ndarray]


def summarize(directory: str | os.PathLike, part: str = "train", seed: int = 0) -> Summary:
    """Read all columns of a part once, shard by shard, and the beginnings of a few documents.

    Raises:
        DataError: if the directory is not a prepared one, or damaged.
    """
    prepared = PreparedDocuments(directory)
    schemas = prepared.manifest.attributes
    found = [AttributeSummary(schema, [LabelCounts(label) for label in schema.labels]) for schema in schemas]
    paired = [schema for schema in schemas if len(schema.labels) <= _MOST_PAIRED]
    names = [(a, b) for i, a in enumerate(paired) for b in paired[i + 1 :]]
    pairs = {(a.name, b.name): np.zeros((len(a.labels), len(b.labels)), np.int64) for a, b in names}
    chosen = [[[] for _ in schema.labels] for schema in schemas]  # (-hash, shard, document, value), the smallest hashes
    bounds = [_bounds(prepared, part, schema) for schema in schemas]
    for summary, bound in zip(found, bounds):
        if bound is not None:
            summary.histogram = (np.linspace(*bound, BINS + 1), np.zeros(BINS, np.int64))
    for shard in (shard for where, shard in prepared.shards() if where == part):
        columns = _columns(prepared, part, shard)
        lengths, firsts = prepared.reader(part, shard).lengths, prepared.firsts_of(part, shard)
        keys = hash64(seed, "label-examples", shard, np.arange(len(firsts), dtype=np.uint64))
        for summary, column, best in zip(found, columns, chosen):
            _count(summary, column, lengths, firsts)
            _choose(best, column, firsts, keys, shard)
        by_name = {schema.name: column for schema, column in zip(schemas, columns)}
        for (a, b), table in pairs.items():
            np.add.at(table, (by_name[a].codes, by_name[b].codes), lengths)
    for summary, best in zip(found, chosen):
        for counts, entries in zip(summary.labels, best):
            counts.examples = [
                (_excerpt(prepared, part, shard, document), value) for _, shard, document, value in sorted(entries, reverse=True)
            ]
    return Summary(os.fspath(directory), part, prepared.manifest, found, pairs)


def _columns(prepared: PreparedDocuments, part: str, shard: int) -> list[AttributeColumn]:
    samples = len(prepared.reader(part, shard))
    folders = (schema.folder for schema in prepared.manifest.attributes)
    return [read_column(attribute_path(prepared.directory, part, folder, shard), samples) for folder in folders]


def _bounds(prepared: PreparedDocuments, part: str, schema: AttributeSchema) -> tuple[float, float] | None:
    """Smallest and largest value of a continuous attribute."""
    low, high = np.inf, -np.inf
    for shard in (shard for where, shard in prepared.shards() if where == part and schema.continuous):
        samples = len(prepared.reader(part, shard))
        values = read_column(attribute_path(prepared.directory, part, schema.folder, shard), samples).values
        low, high = min(low, float(values.min(initial=np.inf))), max(high, float(values.max(initial=-np.inf)))
    return None if low > high else (low, high if high > low else low + 1.0)


def _count(summary: AttributeSummary, column: AttributeColumn, lengths: np.ndarray, firsts: np.ndarray) -> None:
    n = len(summary.labels)
    documents = np.bincount(column.codes[firsts], minlength=n).tolist()
    samples = np.bincount(column.codes, minlength=n).tolist()
    tokens = np.bincount(column.codes, weights=lengths, minlength=n).astype(np.int64).tolist()
    for counts, d, s, t in zip(summary.labels, documents, samples, tokens):
        counts.documents, counts.samples, counts.tokens = counts.documents + d, counts.samples + s, counts.tokens + t
    if summary.histogram is not None:
        edges, bins = summary.histogram
        bins += np.histogram(column.values, edges)[0]


def _choose(best: Sequence[list], column: AttributeColumn, firsts: np.ndarray, keys: np.ndarray, shard: int) -> None:
    """Keep the EXAMPLES documents of each label with the smallest keys; the order of shards plays no part."""
    codes = column.codes[firsts]
    for code in np.unique(codes).tolist():
        own = np.flatnonzero(codes == code)
        for document in own[np.argsort(keys[own], kind="stable")[:EXAMPLES]].tolist():
            value = None if column.values is None else float(column.values[firsts[document]])
            entry = (-int(keys[document]), shard, document, value)
            push = heapq.heappush if len(best[code]) < EXAMPLES else heapq.heappushpop
            push(best[code], entry)


def _excerpt(prepared: PreparedDocuments, part: str, shard: int, document: int) -> str:
    """The beginning of a document in one line."""
    text = " ".join(prepared.text(part, shard, document, _EXCERPT_TOKENS).split())
    return text if len(text) <= _EXCERPT_CHARACTERS else text[: _EXCERPT_CHARACTERS - 1] + "…"


def as_text(summary: Summary) -> str:
    """Tables and examples for a terminal."""
    total = summary.manifest.parts[summary.part]["tokens"] or 1
    lines = []
    for attribute in summary.attributes:
        schema = attribute.schema
        made_by = schema.provenance.get("labeller", "")
        lines.append(f"{schema.name}{' (' + made_by + ')' if made_by else ''}, {summary.part}")
        width = max(5, *(len(counts.label) for counts in attribute.labels))
        lines.append(f"  {'label':{width}}  {'documents':>11}  {'samples':>13}  {'tokens':>15}  {'share':>6}")
        for c in attribute.labels:
            row = f"  {c.label:{width}}  {c.documents:>11,}  {c.samples:>13,}  {c.tokens:>15,}  {c.tokens / total:>6.1%}"
            lines.append(row)
        for c in attribute.labels:
            for text, value in c.examples[:1]:
                shown = f" {value:.3g}" if value is not None else ""
                lines.append(f"  {c.label}{shown}: {text[:160]}")
        lines.append("")
    return "\n".join(lines).rstrip()
