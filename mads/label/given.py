"""Attributes that the records carry already: a score column with bins, or a column of labels."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller

MAX_LABELS = 1 << 16
_SHOWN = 20


def where(document: Document) -> str:
    """How errors name a document."""
    return f"{document.origin}:{document.line}"


def field_of(document: Document, field: str) -> Any:
    """The value of a record's field.

    Raises:
        DataError: if the document has none, or null.
    """
    value = document.fields.get(field)
    if value is None:
        raise DataError(
            f"{where(document)} has no field {field!r} (it has {sorted(document.fields)}); every record needs one, or choose "
            "another labeller"
        )
    return value


class GivenScore(FittedLabeller):
    """A score that each record has: its value, and the bin that it falls into.

    Args:
        field: of the record; a number, or a string that spells one.
        edges: of the bins, ascending. Bin i is [edges[i], edges[i+1]), and the last one is closed: with edges 0..5, 5.0
            is in [4,5].
        labels: one name a bin; by default its interval.
    """

    name = "score"

    def __init__(self, field: str, edges: Sequence[float], labels: Sequence[str] | None = None):
        self.field, self.edges = field, [float(edge) for edge in edges]
        if (
            len(self.edges) < 2
            or not all(a < b for a, b in zip(self.edges, self.edges[1:]))
            or not all(map(math.isfinite, self.edges))
        ):
            raise DataError(f"edges={list(edges)} of field {field!r} must be two or more finite numbers in ascending order")
        self.labels = interval_names(self.edges) if labels is None else tuple(labels)
        if len(self.labels) != len(self.edges) - 1:
            raise DataError(
                f"field {field!r}: {len(self.edges)} edges make {len(self.edges) - 1} bins, there are {len(self.labels)} labels"
            )
        self.fields = (field,)
        self._fitted = True  # there is nothing to learn

    def parameters(self) -> dict[str, Any]:
        return {"field": self.field, "edges": self.edges, "labels": list(self.labels)}

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: if a document of the sample has no such score.
        """
        self.label(documents)

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], score float32 [n]).

        Raises:
            DataError: for a value that is no finite number or outside the edges.
        """
        scores = np.array([self._score(document) for document in documents], dtype=np.float64)
        return bins_between(scores, self.edges), scores.astype(np.float32)

    def _score(self, document: Document) -> float:
        value = field_of(document, self.field)
        try:
            score = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            score = math.nan
        if not math.isfinite(score):
            raise DataError(
                f"{where(document)}: field {self.field!r} is {value!r}, not a finite number; mend or leave out the record"
            )
        if not self.edges[0] <= score <= self.edges[-1]:
            raise DataError(
                f"{where(document)}: field {self.field!r} is {score:g}, outside the edges {self.edges[0]:g} to "
                f"{self.edges[-1]:g}; widen edges"
            )
        return score

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        pass

    def schema(self) -> AttributeSchema:
        return AttributeSchema(self.name, self.labels, continuous=True, provenance=self.provenance())


class GivenLabel(FittedLabeller):
    """A label that each record has.

    Args:
        field: of the record; a string or an integer.
        names: of the labels. An integer is an index into them, a string must be one of them. None: the labels are the values that
            `fit` sees, sorted.
    """

    name = "label"

    def __init__(self, field: str, names: Sequence[str] | None = None):
        self.field, self.names = field, None if names is None else tuple(names)
        self.fields = (field,)
        self.categories = (field,) if names is None else ()
        if self.names is not None:
            self._set_labels(self.names)

    def parameters(self) -> dict[str, Any]:
        return {"field": self.field, "names": None if self.names is None else list(self.names)}

    def _set_labels(self, labels: Sequence[str]) -> None:
        if not 0 < len(labels) <= MAX_LABELS or len(set(labels)) != len(labels):
            raise DataError(
                f"field {self.field!r} has {len(labels)} labels, {len(set(labels))} of them different; it needs 1 to "
                f"{MAX_LABELS} different ones: {list(labels)[:_SHOWN]}"
            )
        self._codes = {label: code for code, label in enumerate(labels)}
        self._fitted = True

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: if a document has no label, a value that is not among `names`, or there are more labels than codes.
        """
        if self.names is not None:
            self.label(documents)
            return
        values = {self._value(document) for document in documents}
        whole = sorted(v for v in values if isinstance(v, int))
        strings = sorted(v for v in values if isinstance(v, str))
        self._set_labels([str(v) for v in whole] + strings)

    def new_labels(self, documents: Sequence[Document]) -> list[str]:
        found = {str(self._value(document)) for document in documents} if self.names is None else set()
        return sorted(found - self._codes.keys())

    def _add_labels(self, labels: list[str]) -> None:
        if self.names is not None:
            super()._add_labels(labels)
        self._set_labels([*self._codes, *labels])

    def _value(self, document: Document) -> int | str:
        value = field_of(document, self.field)
        if isinstance(value, str):
            return value
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value).is_integer():
            return int(value)
        raise DataError(f"{where(document)}: field {self.field!r} is {value!r}, neither a string nor an integer; mend the record")

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, None]:
        """(code uint16 [n], None).

        Raises:
            RuntimeError: before `fit`, if the labels are to be learned.
            DataError: for a value that is not among the labels.
        """
        self._require_fit()
        return np.fromiter((self._code(document) for document in documents), np.uint16, len(documents)), None

    def _code(self, document: Document) -> int:
        value = self._value(document)
        if self.names is not None and isinstance(value, int):
            if 0 <= value < len(self.names):
                return value
            raise DataError(
                f"{where(document)}: field {self.field!r} is {value}, but there are {len(self.names)} names, 0 to "
                f"{len(self.names) - 1}; give a name for each code"
            )
        code = self._codes.get(str(value))
        if code is None:
            remedy = (
                "add it to names" if self.names is not None else "list all values in names, so that none has to be seen first"
            )
            raise DataError(
                f"{where(document)}: field {self.field!r} is {value!r}, which is not among the {len(self._codes)} labels "
                f"{', '.join(list(self._codes)[:_SHOWN])}; {remedy}"
            )
        return code

    def _facts(self) -> dict[str, Any]:
        return {"labels": list(self._codes)}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._set_labels(facts["labels"])

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, tuple(self._codes), provenance=self.provenance())


def interval_names(edges: Sequence[float]) -> tuple[str, ...]:
    """[0,1) ... [4,5] for the edges 0 to 5."""
    ends = [f"{edge:g}" for edge in edges]
    closings = [")"] * (len(edges) - 2) + ["]"]
    return tuple(f"[{a},{b}{closing}" for a, b, closing in zip(ends, ends[1:], closings))


def bins_between(scores: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """uint16 [n]: i where edges[i] <= score < edges[i+1]; the last edge belongs to the last bin. Scores are within the edges."""
    last = len(edges) - 2
    return np.minimum(np.searchsorted(np.asarray(edges), scores, side="right") - 1, last).astype(np.uint16)
