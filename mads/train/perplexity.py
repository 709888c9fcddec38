"""A labeller: perplexity under a checkpoint of a run of mads. It is here because mads.label knows nothing of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mads.data.batch import make_batch
from mads.data.schema import sha256_of
from mads.label.bits import BitsPerByte
from mads.label.pretrained import one_thread
from mads.train.inference import SavedModel


class CheckpointPerplexity(BitsPerByte):
    """Bits per byte of a document's beginning under the newest checkpoint of a run, in quantile bins. Documents go through
    the model one by one, in fp32 on one thread of a CPU: a label is bit for bit independent of other documents.

    Args:
        run_dir: folder of the run, with config.yaml and checkpoints/.
        data_dir: a prepared directory with the tokenizer that the run was trained with; None: the run's own data.dir.
        max_length: tokens of a document that are looked at; at most the run's data.seq_length.
        bins: number of labels, equal shares of the fit sample.
        seed: of the sample.
        max_fit_documents: most documents to set the bins by, chosen by a hash of their text.

    Raises:
        DataError: if the folder has no configuration or no checkpoint, or the tokenizer has more ids than the model.
        CheckpointError: if the checkpoint is damaged.
    """

    def __init__(
        self,
        run_dir: str,
        data_dir: str | None = None,
        max_length: int = 512,
        bins: int = 5,
        seed: int = 0,
        max_fit_documents: int = 1000,
    ):
        super().__init__(bins, seed, max_fit_documents)
        saved = SavedModel.find(run_dir, data_dir)
        self._tokenizer = saved.tokenizer
        self.max_length = min(max_length, saved.config.data.seq_length)
        self._hash = f"{sha256_of(saved.checkpoint / 'manifest.json')} {sha256_of(saved.tokenizer_file)}"
        self._model = saved.load()

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"checkpoint": self._hash, "max_length": self.max_length}

    def nats_and_bytes(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        nats, size = np.zeros(len(texts)), np.zeros(len(texts))
        with torch.inference_mode(), one_thread(torch):
            for i, text in enumerate(texts):
                tokens = self._tokenizer.encode([text])[0][: self.max_length]
                if len(tokens) < 2:
                    continue
                batch = make_batch([[tokens]], len(tokens))
                _, losses = self._model(batch.tokens, batch.labels, batch.positions, batch.segments)
                nats[i] = losses.sum(dtype=torch.float64).item()
                first, whole = (self._tokenizer.decode(part).encode() for part in (tokens[:1], tokens))
                size[i] = len(whole) - len(first)
        return nats, size
