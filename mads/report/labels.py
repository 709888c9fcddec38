"""The page about a prepared directory's attributes: how much has which label, values, pairs of attributes, examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mads.label.summary import AttributeSummary, Summary
from mads.logging.metrics import write_atomically
from mads.report.bars import Bar, bar_chart, histogram
from mads.report.page import document, figure, paragraph, table
from mads.report.scale import compact, escape, significant


def write_label_page(summary: Summary, path: str | Path) -> None:
    """Write the page, one self-contained file."""
    write_atomically(Path(path), render(summary))


def render(summary: Summary) -> str:
    """The page as HTML."""
    sections = [(f"attribute-{i}", a.schema.name, _attribute(summary, a)) for i, a in enumerate(summary.attributes)]
    sections += [("pairs", "Pairs of attributes", _pairs(summary))] if summary.pairs else []
    name = Path(summary.directory).name
    return document(f"mads labels: {name}", _headline(summary, name), sections)


def _headline(summary: Summary, name: str) -> str:
    counts = summary.manifest.parts[summary.part]
    tiles = [
        ("attributes", str(len(summary.attributes)), ", ".join(a.schema.name for a in summary.attributes)),
        ("documents", compact(counts["documents"]), f"{counts['documents']:,}"),
        ("samples", compact(counts["samples"]), f"{counts['samples']:,}"),
        ("tokens", compact(counts["tokens"]), f"{counts['tokens']:,}"),
    ]
    cells = "".join(f"<div><dt>{escape(t)}</dt><dd>{escape(v)}<small>{escape(s)}</small></dd></div>" for t, v, s in tiles)
    lead = f"Part {summary.part}; data {summary.manifest.fingerprint[:16]}."
    return f'<h1>Labels of {escape(name)}</h1><p class="lead">{escape(lead)}</p><dl class="tiles">{cells}</dl>'


def _attribute(summary: Summary, attribute: AttributeSummary) -> str:
    total = max(summary.manifest.parts[summary.part]["tokens"], 1)
    schema, labels = attribute.schema, attribute.labels
    shown = labels if schema.continuous else sorted(labels, key=lambda c: -c.tokens)  # bins of a value keep their order
    bars = [Bar(c.label, c.tokens / total, f"{c.tokens / total:.1%}") for c in shown]
    charts = figure("Share of the tokens by label", bar_chart(f"share of tokens by {schema.name}", bars))
    if attribute.histogram is not None:
        edges, counts = attribute.histogram
        drawing = histogram(f"values of {schema.name}", edges.tolist(), counts.tolist(), f"{schema.name}, value of a sample")
        charts += figure("Values", drawing, "Samples in 40 bins of equal width.")
    head = ["label", "documents", "samples", "tokens", "share of tokens"]
    rows = [[c.label, f"{c.documents:,}", f"{c.samples:,}", f"{c.tokens:,}", f"{c.tokens / total:.2%}"] for c in labels]
    provenance = escape(json.dumps(schema.provenance, indent=1, sort_keys=True))
    details = f"<details><summary>Where the labels come from</summary><pre>{provenance}</pre></details>"
    return f'<div class="pair">{charts}</div>{table(head, rows)}{_examples(attribute)}{details}'


def _examples(attribute: AttributeSummary) -> str:
    rows = [
        f'<tr><th scope="row">{escape(c.label)}</th><td>{"" if value is None else escape(significant(value))}</td>'
        f'<td class="text">{escape(text)}</td></tr>'
        for c in attribute.labels
        for text, value in c.examples
    ]
    columns = '<th scope="col">label</th><th scope="col">value</th><th scope="col" class="text">beginning of a document</th>'
    head = f"<tr>{columns}</tr>"
    body = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f"<details open><summary>Examples, chosen by a hash</summary>{body}</details>"


def _pairs(summary: Summary) -> str:
    note = paragraph(
        "Each row is a label of the first attribute: how its tokens are spread over the labels of the second. The stronger the "
        "blue, the larger the share.",
        "note",
    )
    labels = {a.schema.name: a.schema.labels for a in summary.attributes}
    return note + "".join(figure(f"{a} by {b}", _joint(labels[a], labels[b], counts)) for (a, b), counts in summary.pairs.items())


def _joint(rows: tuple[str, ...], columns: tuple[str, ...], counts: np.ndarray) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in ["", *columns, "tokens"])
    body = []
    for name, row in zip(rows, counts.tolist()):
        total = max(sum(row), 1)
        cells = "".join(f'<td class="up" style="--a:{0.5 * v / total:.2f}">{v / total:.1%}</td>' for v in row)
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{compact(sum(row))}</td></tr>')
    return f'<div class="scroll"><table class="heat"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
