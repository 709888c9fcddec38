"""Models of Hugging Face from a local folder: opened without a network, without pickle, without foreign code; run batch by batch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError, sha256_of
from mads.label.base import FittedLabeller
from mads.label.calibration import quantile_bins, quantile_edges, quantile_names
from mads.label.given import bins_between, interval_names
from mads.label.sampling import choose

_CHARACTERS = 24  # of a text per token that is looked at; no tokenizer's mean comes near it


def folder_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a model folder's JSON files and weights by their names, in hex: the identity of a model, wherever it lies.

    Raises:
        DataError: if there is no such folder, or it has no config.json or no .safetensors file.
    """
    folder = Path(path)
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".txt", ".model") and p.is_file())
    missing = [what for what in ("config.json", ".safetensors") if not any(p.name.endswith(what) for p in files)]
    if missing:
        raise DataError(
            f"{path} is no folder of a model: it has no {' and no '.join(missing)}; give the path of a downloaded model whose "
            "weights are safetensors (pickled weights are not opened)"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


class LocalModel:
    """A tokenizer and a model.

    Args:
        path: a folder as save_pretrained writes it.
        kind: of the automatic classes of transformers, for example "AutoModelForSequenceClassification".
        max_length: tokens of a document that are looked at, its special tokens included; what the model allows if that is less.
        batch_size: documents a forward pass, of nearly equal length. With 1, on a CPU, a document's result is bit for bit
            independent of all others; with more it depends on them through rounding.
        device: of torch.
    """

    def __init__(self, path: str, kind: str, max_length: int, batch_size: int = 1, device: str = "cpu"):
        if batch_size < 1 or max_length < 2:
            raise DataError(f"batch_size={batch_size} must be at least 1 and max_length={max_length} at least 2")
        try:
            import torch
            import transformers
        except ImportError as error:
            raise DataError(f"{kind} needs the package transformers: pip install 'mads[hf]'") from error
        self.hash = folder_hash(path)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
            kind_of = getattr(transformers, kind)
            self.model = kind_of.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise DataError(f"{path} cannot be opened as {kind}: {str(error).strip().splitlines()[0]}") from error
        self.model.to(device).eval()
        self.version, self.batch_size, self.device = transformers.__version__, batch_size, device
        positions = getattr(self.model.config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, positions, self._tokenizer.model_max_length)
        self._padding = self._tokenizer.pad_token_id or 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the beginning of each text, special tokens included; at least one."""
        cut = [text[: self.max_length * _CHARACTERS] for text in texts]
        found = self._tokenizer(cut, truncation=True, max_length=self.max_length, return_attention_mask=False)["input_ids"]
        return [ids or [self._padding] for ids in found]

    def run(self, texts: Sequence[str], of: Callable[[Any, Any, Any], Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(indices of the texts, results float32 [batch, ...]) batch by batch, in the order of length.

        of: gets the model's output, the token ids [batch, length] and the attention mask, and gives a tensor [batch, ...]
        """
        import torch

        tokens = self.encode(texts)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        with torch.inference_mode(), _one_thread(torch):
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                longest = len(tokens[chosen[-1]])
                ids = torch.full((len(chosen), longest), self._padding)
                mask = torch.zeros_like(ids)
                for row, index in enumerate(chosen.tolist()):
                    ids[row, : len(tokens[index])] = torch.tensor(tokens[index])
                    mask[row, : len(tokens[index])] = 1
                ids, mask = ids.to(self.device), mask.to(self.device)
                yield chosen, of(self.model(input_ids=ids, attention_mask=mask), ids, mask).float().cpu().numpy()

    def collect(self, texts: Sequence[str], of: Callable[[Any, Any, Any], Any], width: int) -> np.ndarray:
        """Results of all texts in their order, float32 [n, width]."""
        out = np.zeros((len(texts), width), dtype=np.float32)
        for chosen, values in self.run(texts, of):
            out[chosen] = values.reshape(len(chosen), width)
        return out


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Sums on a CPU are split by thread: with one, they do not depend on the machine's cores or settings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _ModelLabeller(FittedLabeller):
    """What the labellers with a LocalModel share. Where the model lies and how it is run is provenance, but no part of a state."""

    def __init__(self, path: str, kind: str, max_length: int, batch_size: int, device: str):
        self._local = LocalModel(path, kind, max_length, batch_size, device)

    def parameters(self) -> dict[str, Any]:
        return {"model": self._local.hash, "max_length": self._local.max_length}

    def provenance(self, **learned: Any) -> dict[str, Any]:
        run = {"transformers": self._local.version, "batch_size": self._local.batch_size, "device": self._local.device}
        return super().provenance(**run, **learned)


class HuggingFaceClassifier(_ModelLabeller):
    """A sequence classifier. A regression head gives a score, clipped to the edges, and its bin, as the FineWeb-Edu classifier does;
    a head of several classes gives the most likely one.

    Args:
        path: folder of the model.
        edges: of the bins of a regression score, ascending; the last bin is closed.
        max_length, batch_size, device: see LocalModel.
    """

    name = "classifier"

    def __init__(
        self,
        path: str,
        edges: Sequence[float] = (0, 1, 2, 3, 4, 5),
        max_length: int = 512,
        batch_size: int = 1,
        device: str = "cpu",
    ):
        super().__init__(path, "AutoModelForSequenceClassification", max_length, batch_size, device)
        self.edges = [float(edge) for edge in edges]
        if len(self.edges) < 2 or not all(a < b for a, b in zip(self.edges, self.edges[1:])):
            raise DataError(f"edges={list(edges)} must be two or more numbers in ascending order")
        config = self._local.model.config
        self.continuous = config.num_labels == 1
        self.labels = interval_names(self.edges) if self.continuous else tuple(map(str, config.id2label.values()))
        self._fitted = True  # there is nothing to learn

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | ({"edges": self.edges} if self.continuous else {})

    def fit(self, documents: Sequence[Document]) -> None:
        """Nothing to learn."""

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray | None]:
        """(bin or class uint16 [n], score float32 [n] or None).

        Raises:
            DataError: if the model gives a score that is not finite.
        """
        outputs = 1 if self.continuous else len(self.labels)
        logits = self._local.collect([d.text for d in documents], lambda out, ids, mask: out.logits, outputs)
        if not np.isfinite(logits).all():
            bad = documents[int(np.argmin(np.isfinite(logits).all(axis=1)))]
            raise DataError(f"the model gives {bad.origin}:{bad.line} a score that is not finite; its weights are damaged")
        if not self.continuous:
            return logits.argmax(axis=1).astype(np.uint16), None
        score = np.clip(logits[:, 0], self.edges[0], self.edges[-1])
        return bins_between(score, self.edges), score

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        pass

    def schema(self) -> AttributeSchema:
        return AttributeSchema(self.name, self.labels, continuous=self.continuous, provenance=self.provenance())


class ModelPerplexity(_ModelLabeller):
    """Bits per byte of a document's beginning under a causal language model, in quantile bins.

    -1 / (B ln 2) times the sum of ln p(token i | tokens before i) over the tokens after the first, where B is the number of UTF-8
    bytes that these tokens stand for; a document of one token has value 0.

    Args:
        path: folder of the model and its tokenizer.
        bins: number of labels, equal shares of the fit sample.
        seed: of the sample.
        max_fit_documents: most documents to set the bins by, chosen by a hash of their text.
        max_length, batch_size, device: see LocalModel.
    """

    name = "perplexity"

    def __init__(
        self,
        path: str,
        bins: int = 5,
        seed: int = 0,
        max_fit_documents: int = 1000,
        max_length: int = 512,
        batch_size: int = 1,
        device: str = "cpu",
    ):
        super().__init__(path, "AutoModelForCausalLM", max_length, batch_size, device)
        if bins < 2:
            raise DataError(f"bins={bins} must be at least 2")
        self.bins, self.seed, self.max_fit_documents = bins, seed, max_fit_documents

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"bins": self.bins, "seed": self.seed, "max_fit_documents": self.max_fit_documents}

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: with fewer different documents than bins.
        """
        chosen = choose(list({d.text: d for d in documents}.values()), self.max_fit_documents, self.seed, "model-perplexity")
        if len(chosen) < self.bins:
            raise DataError(f"{len(chosen)} different documents are too few for {self.bins} bins")
        self._edges = quantile_edges(self._bits(chosen), self.bins)
        self._fitted = True

    def _bits(self, documents: Sequence[Document]) -> np.ndarray:
        """Bits per byte, float32 [n]."""
        texts = [d.text for d in documents]
        nats = self._local.collect(texts, _negative_log_likelihood, 1)[:, 0].astype(np.float64)
        sizes = np.array([self._local.bytes_after_first(text) for text in texts], dtype=np.float64)
        return (nats / (math.log(2) * np.maximum(sizes, 1.0))).astype(np.float32)

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], bits per byte float32 [n]).

        Raises:
            RuntimeError: before `fit`.
            DataError: if the model gives a value that is not finite.
        """
        self._require_fit()
        values = self._bits(documents)
        if not np.isfinite(values).all():
            bad = documents[int(np.argmin(np.isfinite(values)))]
            raise DataError(f"the model gives {bad.origin}:{bad.line} a perplexity that is not finite; its weights are damaged")
        return quantile_bins(values, self._edges), values

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"edges": self._edges}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._edges = arrays["edges"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, quantile_names(self._edges), continuous=True, provenance=self.provenance())


def _negative_log_likelihood(out: Any, ids: Any, mask: Any) -> Any:
    """Sum over each row's tokens after the first, in nats, [batch]."""
    logits = out.logits[:, :-1].float().log_softmax(dim=-1)
    each = logits.gather(-1, ids[:, 1:, None])[..., 0]
    return -(each * mask[:, 1:]).sum(dim=1)
