"""Domain: where a document came from, by its field or by its path."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller


class _NamedDomain(FittedLabeller):
    """What labellers share whose labels are names that documents bring."""

    name = "domain"

    def __init__(self):
        self._codes: dict[str, int] = {}

    def _set_names(self, names: Sequence[str]) -> None:
        self._codes = {name: code for code, name in enumerate(names)}
        self._fitted = True

    def _add_labels(self, labels: list[str]) -> None:
        self._set_names([*self._codes, *labels])

    def _facts(self) -> dict[str, Any]:
        return {"names": list(self._codes)}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._set_names(facts["names"])

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, tuple(self._codes), provenance=self.provenance())


class DomainLabeller(_NamedDomain):
    """The label is the document's own domain; the labels are the domains seen by `fit`, sorted."""

    reads = ("domain",)

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: without any document, or with more domains than a code can hold.
        """
        names = sorted({d.domain for d in documents})
        if not 0 < len(names) <= np.iinfo(np.uint16).max + 1:
            raise DataError(
                f"{len(documents)} documents have {len(names)} domains; the domain attribute needs 1 to 65,536. If each document "
                "has a domain of its own, data.domain_field names the wrong field"
            )
        self._set_names(names)

    def new_labels(self, documents: Sequence[Document]) -> list[str]:
        return sorted({d.domain for d in documents} - self._codes.keys())

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, None]:
        """Raises:
        RuntimeError: before `fit`.
        DataError: for a domain that `fit` did not see.
        """
        self._require_fit()
        try:
            return np.fromiter((self._codes[d.domain] for d in documents), np.uint16, len(documents)), None
        except KeyError:
            unseen = next(d for d in documents if d.domain not in self._codes)
            raise DataError(
                f"domain {unseen.domain!r} ({unseen.origin}:{unseen.line}) was not among the training documents' "
                f"{', '.join(sorted(self._codes)[:20])}; give more documents of it, so that the training part has some"
            ) from None


class PathDomain(_NamedDomain):
    """The label is a part of the path of the document's file, `Document.origin`.

    Args:
        pattern: a regular expression with a group named `domain`, searched for in the path: "(?P<domain>[^/]+)/[^/]+$" is the
            folder of the file.
        names: the labels; None takes those of the fit sample.
        other: the label of paths that the pattern does not match, and of names not among the labels; None refuses both.
    """

    reads = ("origin",)

    def __init__(self, pattern: str, names: Sequence[str] | None = None, other: str | None = None):
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise DataError(f"pattern={pattern!r} is no regular expression: {error}") from error
        if "domain" not in self._pattern.groupindex:
            raise DataError(f"pattern={pattern!r} has no group named domain: write the part that names it as (?P<domain>...)")
        self.pattern, self.names, self.other = pattern, None if names is None else list(names), other
        super().__init__()

    def parameters(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "names": self.names, "other": self.other}

    def _name(self, document: Document) -> str | None:
        found = self._pattern.search(document.origin)
        return found["domain"] if found else None

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: if no path matches, or a path does not and there is no label for others.
        """
        names = self.names
        if names is None:
            names = sorted({name for d in documents if (name := self._name(d)) is not None})
        self._set_names(names + [self.other] if self.other is not None and self.other not in names else names)
        if not self._codes:
            raise DataError(f"pattern={self.pattern!r} matches no path, for example not {documents[0].origin!r}")
        self.label(documents)

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, None]:
        """(code uint16 [n], None).

        Raises:
            RuntimeError: before `fit`.
            DataError: for a path that does not match or a name without a label, if `other` is None.
        """
        self._require_fit()
        return np.fromiter(map(self._code, documents), np.uint16, len(documents)), None

    def new_labels(self, documents: Sequence[Document]) -> list[str]:
        if self.names is not None or self.other is not None:  # what is not known is `other`, or refused
            return []
        return sorted({name for d in documents if (name := self._name(d)) is not None} - self._codes.keys())

    def _code(self, document: Document) -> int:
        name = self._name(document)
        code = self._codes.get(self.other if name not in self._codes else name)
        if code is None:
            why = "does not match" if name is None else f"gives {name!r}, not one of {', '.join(list(self._codes)[:20])}:"
            raise DataError(
                f"{document.origin} {why} pattern={self.pattern!r}; change the pattern, list all names, or set other=NAME"
            )
        return code
