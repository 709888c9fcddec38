"""Models of Hugging Face from a local folder: opened without network, pickle or foreign code, and run batch by batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.schema import DataError, sha256_of
from mads.label.base import FittedLabeller

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
            with _no_bar(transformers.utils.logging):
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

    def bytes_after_first(self, text: str) -> int:
        """UTF-8 bytes of the text that the tokens of `encode` after the first stand for.

        Raises:
            DataError: if the tokenizer does not know where its tokens are, which those with a tokenizer.json do.
        """
        if not self._tokenizer.is_fast:
            raise DataError("bits per byte need a tokenizer with a tokenizer.json")
        cut = text[: self.max_length * _CHARACTERS]
        spans = self._tokenizer(cut, truncation=True, max_length=self.max_length, return_offsets_mapping=True)["offset_mapping"]
        return len(cut[spans[0][1] : max(end for _, end in spans)].encode()) if spans else 0

    def run(self, texts: Sequence[str], of: Callable[[Any, Any, Any], Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(indices of the texts, results float32 [batch, ...]) batch by batch, in the order of length.

        of: gets the model's output, the token ids [batch, length] and the attention mask, and gives a tensor [batch, ...]
        """
        import torch

        tokens = self.encode(texts)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        with torch.inference_mode(), one_thread(torch):
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
def _no_bar(logging: Any) -> Iterator[None]:
    """Opening a model draws a progress bar into whatever the job writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def one_thread(torch: Any) -> Iterator[None]:
    """Sums on a CPU are split by thread: with one, they do not depend on the machine's cores or settings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ModelLabeller(FittedLabeller):
    """What labellers with a LocalModel share. How a model is run is in the provenance, but no part of a state."""

    def __init__(self, path: str, kind: str, max_length: int, batch_size: int, device: str):
        self._local = LocalModel(path, kind, max_length, batch_size, device)

    def parameters(self) -> dict[str, Any]:
        return {"model": self._local.hash, "max_length": self._local.max_length}

    def provenance(self, **learned: Any) -> dict[str, Any]:
        run = {"transformers": self._local.version, "batch_size": self._local.batch_size, "device": self._local.device}
        return super().provenance(**run, **learned)
