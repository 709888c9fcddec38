"""What an offline labeller is: it turns documents into one attribute column. Also how a fitted one is kept in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mads.data.documents import Document
from mads.data.references import direction_texts
from mads.data.schema import AttributeSchema, DataError
from mads.data.tokenizer import Tokenizer

_ABOUT = "about"  # the array of a state that holds JSON


class Labeller(Protocol):
    """One attribute. `fit` sees a sample of the training documents only; `label` is then a pure function of each document: bit
    for bit independent of the other documents of the call and of their order, and equal seeds give equal codes.

    name: of the attribute, where the configuration gives no other
    unit: "document"; or "sample" for a labeller that is given samples in the place of documents, each as its tokens without the
        document's end, int [tokens], and the reference tasks as tokens too (FittedLabeller.see_reference_tokens)
    fields: of a record, that it reads from Document.fields
    categories: those of `fields` whose distinct values are its labels: the fit sample holds a document of each value
    """

    name: str
    unit: str
    fields: tuple[str, ...]
    categories: tuple[str, ...]

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

    def state(self) -> dict[str, np.ndarray]:
        """Everything that `label` and `schema` need after `fit`, as arrays of numbers; JSON parts are bytes in a uint8 array.

        Raises:
            RuntimeError: before `fit`.
        """
        ...

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`: labels are the same bit for bit as those of the labeller that gave it.

        Raises:
            DataError: if the state is of another class of labeller, or of one with other parameters.
        """
        ...

    def new_labels(self, documents: Sequence[Document]) -> list[str]:
        """Labels of these documents that are not known yet, sorted: what an addition to a directory brings. None where labels are
        learned or fixed."""
        ...

    def take_labels(self, labels: Sequence[str]) -> None:
        """Have these labels from now on: those known, in their order, and further ones behind them.

        Raises:
            DataError: if they are not, or there can be no further ones.
        """
        ...


class FittedLabeller:
    """The halves of the protocol that are alike in all labellers here: identity, provenance and state.

    A subclass has `parameters()`, the constructor's arguments as JSON values; `_facts()`, JSON values, and `_arrays()`, both
    known after `fit`; and `_restore(facts, arrays)`, their inverse. `_fitted` says whether there is something to label with.
    """

    name = ""
    unit = "document"
    version = 1  # of the measure: it rises when the same parameters and documents give other labels
    fields: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("text",)  # what of a document, beside `fields`, the labels depend on: text, domain, origin
    learns_references = False  # whether `see_references` or, by samples, `see_reference_tokens` is called before `fit`
    _fitted = False

    def parameters(self) -> dict[str, Any]:
        """Constructor arguments as JSON values. A state fits only a labeller with equal ones."""
        return {}

    def see_references(self, texts: Sequence[str]) -> None:
        """The reference tasks' texts that may be learned from (mads.data.references.direction_texts)."""
        raise NotImplementedError

    def see_reference_tokens(self, tasks: Mapping[str, Sequence[np.ndarray]], vocab_size: int) -> None:
        """The same by task, as tokens of the run's tokenizer, which has the ids below `vocab_size`."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        return {}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        raise NotImplementedError

    @classmethod
    def identity(cls) -> str:
        """Module and class, as in `_target_`."""
        return f"{cls.__module__}.{cls.__qualname__}"

    def provenance(self, **learned: Any) -> dict[str, Any]:
        """Labeller and parameters, and what `fit` found, as JSON values."""
        return {"labeller": self.identity(), "version": self.version, **self.parameters(), **learned}

    def new_labels(self, documents: Sequence[Document]) -> list[str]:
        return []

    def take_labels(self, labels: Sequence[str]) -> None:
        known = self.schema().labels
        if tuple(labels[: len(known)]) != known:
            raise DataError(f"{self.identity()} has the labels {list(known)}, the directory {list(labels)}; label anew")
        if len(labels) > len(known):
            self._add_labels(list(labels[len(known) :]))

    def _add_labels(self, labels: list[str]) -> None:
        raise DataError(f"the labels of {self.identity()} are fixed, it cannot take {labels}; label anew")

    def _require_fit(self) -> None:
        if not self._fitted:
            raise RuntimeError(f"{type(self).__name__} was used before fit")

    def state(self) -> dict[str, np.ndarray]:
        self._require_fit()
        about = {"labeller": self.identity(), "version": self.version, "parameters": self.parameters(), "facts": self._facts()}
        return {_ABOUT: pack_json(about), **self._arrays()}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        about = unpack_json(arrays[_ABOUT]) if _ABOUT in arrays else {}
        ours = {"labeller": self.identity(), "parameters": json.loads(json.dumps(self.parameters()))}
        theirs = {"labeller": about.get("labeller"), "parameters": about.get("parameters")}
        if theirs["labeller"] != ours["labeller"]:
            raise DataError(f"the fitted labeller is a {theirs['labeller']}, the configuration asks for a {ours['labeller']}")
        if about.get("version") != self.version:
            raise DataError(
                f"the fitted {ours['labeller']} is of version {about.get('version')}, this mads has {self.version}; label anew"
            )
        if theirs["parameters"] != ours["parameters"]:
            old, new = theirs["parameters"] or {}, ours["parameters"]
            changed = [
                f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in sorted({*old, *new}) if old.get(k) != new.get(k)
            ]
            raise DataError(
                f"the fitted labeller {ours['labeller']} has other parameters: {'; '.join(changed)}; use those, or label anew"
            )
        try:
            self._restore(about["facts"], arrays)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"the state of {ours['labeller']} lacks or garbles {error}; label anew") from error
        self._fitted = True


def pack_json(value: Any) -> np.ndarray:
    """JSON as a uint8 array; equal values give equal bytes."""
    return np.frombuffer(json.dumps(value, sort_keys=True).encode(), dtype=np.uint8)


def unpack_json(array: np.ndarray) -> Any:
    """The inverse of pack_json."""
    return json.loads(np.asarray(array, dtype=np.uint8).tobytes())


def state_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A .npz file of the arrays, sorted by name, uncompressed and without time stamps: equal arrays give equal bytes.

    Raises:
        TypeError: for an array of objects, which only pickle could write.
    """
    objects = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if objects:
        raise TypeError(f"arrays {objects} of a labeller's state hold objects; a state is numbers only")
    buffer = io.BytesIO()
    np.savez(buffer, **{name: arrays[name] for name in sorted(arrays)})
    return buffer.getvalue()


def state_hash(labeller: Labeller) -> str:
    """SHA-256 of a fitted labeller's arrays, in hex: names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name, array in sorted(labeller.state().items()):
        array = np.ascontiguousarray(array)
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_labeller(path: str | os.PathLike, labeller: Labeller) -> None:
    """Write a fitted labeller atomically, labellers/NAME.npz in a prepared directory."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(state_bytes(labeller.state()))
    os.replace(temporary, path)


def load_labeller(path: str | os.PathLike, labeller: Labeller) -> None:
    """Give `labeller`, built from its configuration, what `save_labeller` wrote.

    Raises:
        DataError: a file that is missing or damaged, or of a labeller of another class or with other parameters.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise DataError(f"{path} is not a readable labeller of mads ({error}); label the data again") from error
    try:
        labeller.load_state(arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def open_labeller(directory: str | os.PathLike, schema: AttributeSchema, labeller: Labeller) -> None:
    """Give `labeller` what it had learned when it labelled a prepared directory, and the labels that came later.

    Raises:
        DataError: as load_labeller.
    """
    load_labeller(Path(directory) / "labellers" / f"{schema.folder}.npz", labeller)
    labeller.take_labels(schema.labels)


def fit_labeller(directory: str | os.PathLike, labeller: Labeller, documents: Sequence[Document]) -> None:
    """Fit a labeller on documents of a directory and, if it learns from them, on its reference tasks.

    Raises:
        DataError: as Labeller.fit; a directory without reference tasks where they are needed.
    """
    if getattr(labeller, "learns_references", False):
        labeller.see_references(sorted(text for texts in direction_texts(directory).values() for text in texts))
    labeller.fit(documents)


def labelled(name: str, labeller: Labeller, what: Sequence) -> tuple[np.ndarray, np.ndarray | None]:
    """What `labeller` says of some documents or samples.

    Raises:
        DataError: as Labeller.label; another number of labels than there are documents or samples.
    """
    codes, values = labeller.label(what)
    if len(codes) != len(what):
        raise DataError(f"labeller {name} gave {len(codes)} labels for {len(what)} {getattr(labeller, 'unit', 'document')}s")
    return codes, values


def by_sample(labeller: Labeller) -> bool:
    """Whether a labeller is given samples and not documents."""
    return getattr(labeller, "unit", "document") == "sample"


def fit_sample_labeller(
    directory: str | os.PathLike, labeller: Labeller, samples: Sequence[np.ndarray], tokenizer: Tokenizer
) -> None:
    """As `fit_labeller`, for a labeller of samples.

    Raises:
        DataError: as there.
    """
    if getattr(labeller, "learns_references", False):
        tasks = {task: tokenizer.encode(texts) for task, texts in direction_texts(directory).items()}
        labeller.see_reference_tokens(tasks, tokenizer.vocab_size)
    labeller.fit(samples)


def without_end(samples: Sequence[np.ndarray], eod: int) -> list[np.ndarray]:
    """Samples without the end of their document, but for one that is nothing else."""
    return [sample[:-1] if len(sample) > 1 and sample[-1] == eod else sample for sample in samples]


def attribute_schema(name: str, labeller: Labeller) -> AttributeSchema:
    """The schema of a fitted labeller's attribute under its name in the configuration, with the hash of the fitted state in its
    provenance."""
    schema = labeller.schema()
    return dataclasses.replace(schema, name=name, provenance={**schema.provenance, "state": state_hash(labeller)})
