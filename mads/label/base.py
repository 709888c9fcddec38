"""What an offline labeller is: it turns documents into one attribute column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema


class Labeller(Protocol):
    """One attribute. `fit` sees a sample of the training documents only; `label` is then a pure function of each document:
    it does not depend on the other documents of the call nor on their order, and equal seeds give equal codes.
    """

    name: str

    def fit(self, documents: Sequence[Document]) -> None:
        """Learn whatever the labels need.

        Raises:
            DataError: if the documents cannot carry this attribute (for example, fewer documents than topics).
        """
        ...

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray | None]:
        """(codes uint16 [n], values float32 [n] or None); codes index `schema().labels`.

        Raises:
            RuntimeError: before `fit`.
            DataError: for a document that no label fits.
        """
        ...

    def schema(self) -> AttributeSchema:
        """The attribute's name, labels and provenance, known after `fit`."""
        ...
