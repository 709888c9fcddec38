"""Domain: where a document came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller


class DomainLabeller(FittedLabeller):
    """The label is the document's own domain; the labels are the domains seen by `fit`, sorted."""

    name = "domain"

    def __init__(self):
        self._codes: dict[str, int] = {}

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

    def _set_names(self, names: Sequence[str]) -> None:
        self._codes = {name: code for code, name in enumerate(names)}
        self._fitted = True

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

    def _facts(self) -> dict[str, Any]:
        return {"names": list(self._codes)}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._set_names(facts["names"])

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, tuple(self._codes), provenance=self.provenance())
