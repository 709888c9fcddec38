"""Language of the text, by py3langid: naive Bayes over byte n-grams, its model inside the package."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller
from mads.label.sampling import choose

OTHER = "other"


class LanguageLabeller(FittedLabeller):
    """The label is the ISO 639-1 code of the document's language, or `other` for a language that is not among the labels.

    Lui and Baldwin 2012, "langid.py: An Off-the-shelf Language Identification Tool", in the package py3langid (BSD licence):
    pip install 'mads[language]'.

    Args:
        languages: the labels beside `other`; None takes those of at least `min_documents` documents of the fit sample.
        min_documents: see languages.
        characters: of a document's beginning that are looked at.
        seed: of the sample.
        max_fit_documents: most documents to look at for the labels, chosen by a hash of their text.
    """

    name = "language"

    def __init__(
        self,
        languages: Sequence[str] | None = None,
        min_documents: int = 20,
        characters: int = 2000,
        seed: int = 0,
        max_fit_documents: int = 10_000,
    ):
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise DataError("LanguageLabeller needs the package py3langid: pip install 'mads[language]'") from error
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
        if unknown := sorted(set(languages or ()) - set(self._identifier.labels)):
            raise DataError(f"languages={unknown} are not among the {len(self._identifier.labels)} codes that py3langid knows")
        self.languages = None if languages is None else sorted(set(languages))
        self.min_documents, self.characters = min_documents, characters
        self.seed, self.max_fit_documents = seed, max_fit_documents
        self._codes: dict[str, int] = {}
        self._counts: dict[str, int] = {}

    def parameters(self) -> dict[str, Any]:
        return {
            "py3langid": importlib.metadata.version("py3langid"),
            "languages": self.languages,
            "min_documents": self.min_documents,
            "characters": self.characters,
            "seed": self.seed,
            "max_fit_documents": self.max_fit_documents,
        }

    def _language(self, document: Document) -> str:
        return self._identifier.classify(document.text[: self.characters])[0]

    def fit(self, documents: Sequence[Document]) -> None:
        """Count the languages of the sample. Never fails: where no language has min_documents, all documents are `other`."""
        chosen = choose(list(documents), self.max_fit_documents, self.seed, "language-fit")
        counts = Counter(map(self._language, chosen))
        frequent = [language for language, count in counts.items() if count >= self.min_documents]
        self._set(self.languages if self.languages is not None else sorted(frequent), dict(sorted(counts.items())))

    def _set(self, languages: Sequence[str], counts: dict[str, int]) -> None:
        self._codes = {language: code for code, language in enumerate([*languages, OTHER])}
        self._counts = counts
        self._fitted = True

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, None]:
        """(code uint16 [n], None).

        Raises:
            RuntimeError: before `fit`.
        """
        self._require_fit()
        other = self._codes[OTHER]
        return np.fromiter((self._codes.get(self._language(d), other) for d in documents), np.uint16, len(documents)), None

    def _facts(self) -> dict[str, Any]:
        return {"languages": [label for label in self._codes if label != OTHER], "counts": self._counts}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._set(facts["languages"], facts["counts"])

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, tuple(self._codes), provenance=self.provenance(fit_languages=self._counts))
