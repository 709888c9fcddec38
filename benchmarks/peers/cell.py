"""What is measured: the shape of the model, the batch, the optimizer; and the batches as files that every contestant reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

IGNORE = -100  # label of a position without a target
FIELDS = ("tokens", "labels", "positions", "segments")


@dataclass(frozen=True)
class Shape:
    """A LLaMA-family decoder: RMSNorm, RoPE, SwiGLU, grouped queries, tied embeddings, no bias."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    ffn_hidden_size: int
    vocab_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    init_std: float = 0.02

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads


SIZES = {  # 1.3, 10.0 and 100.1 million parameters
    "1M": Shape(128, 4, 4, 2, 384, 4096),
    "10M": Shape(384, 4, 6, 2, 1152, 8192),
    "100M": Shape(768, 12, 12, 4, 2048, 32000),
}


@dataclass(frozen=True)
class Cell:
    """One comparison.

    rows: of a micro-batch; accumulation: micro-batches of a step and process; processes: data-parallel ranks;
    documents: "packed" (several a row, of mixed lengths) or "whole" (one a row).
    """

    size: str
    seq_length: int
    documents: str
    processes: int
    rows: int
    accumulation: int

    @property
    def shape(self) -> Shape:
        return SIZES[self.size]

    @property
    def name(self) -> str:
        batch = f"{self.rows}x{self.accumulation}"
        return f"{self.size}-{self.seq_length}-{self.documents}-{self.processes}p-{batch}"


@dataclass(frozen=True)
class Optimizer:
    """AdamW, decay on matrices only, a constant rate, clipping by the norm of the whole gradient."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Job:
    """All that a contestant's process is told.

    folder: has the pool, the batches and the start weights.
    overrides: of mads' configuration, for its engine.
    """

    kind: str
    cell: Cell
    folder: str
    optimizer: Optimizer = field(default_factory=Optimizer)
    overrides: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Job:
        own = value | {"cell": Cell(**value["cell"]), "optimizer": Optimizer(**value["optimizer"])}
        return cls(**own | {key: tuple(value[key]) for key in ("overrides", "paths")})


@dataclass
class Batch:
    """A micro-batch, int64 [rows, seq_length] each: mads.data.batch.PackedBatch says what they hold."""

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor


def read_batches(folder: str | Path, rank: int) -> list[list[Batch]]:
    """The rank's micro-batches, step by step."""
    with np.load(Path(folder) / f"batches-{rank}.npz") as arrays:
        tensors = [torch.from_numpy(arrays[name]) for name in FIELDS]  # [steps, accumulation, rows, seq_length]
    steps, accumulation = tensors[0].shape[:2]
    return [[Batch(*(t[step, a] for t in tensors)) for a in range(accumulation)] for step in range(steps)]


def whole_rows(shape: Shape, seq_length: int, rows: int = 2, seed: int = 5) -> Batch:
    """Rows of one document each: on these all models compute the same, with masks of documents or without."""
    tokens = torch.randint(0, shape.vocab_size, (rows, seq_length), generator=torch.Generator().manual_seed(seed))
    labels = torch.cat([tokens[:, 1:], torch.full((rows, 1), IGNORE)], 1)
    positions = torch.arange(seq_length).expand(rows, -1).contiguous()
    segments = torch.arange(rows)[:, None].expand(-1, seq_length).contiguous()
    return Batch(tokens, labels, positions, segments)


def packed_rows(shape: Shape, seq_length: int, rows: int = 2, seed: int = 6) -> Batch:
    """Rows of three documents each, without padding."""
    whole = whole_rows(shape, seq_length, rows, seed)
    first, second = seq_length // 4, seq_length // 2 + 1
    for start in (first, second):
        whole.labels[:, start - 1] = IGNORE
        whole.positions[:, start:] = torch.arange(seq_length - start)
        whole.segments[:, start:] += rows  # any number that no other document of the row has
    order = torch.unique(whole.segments + torch.arange(rows)[:, None] * 100 * rows, return_inverse=True)[1]
    return Batch(whole.tokens, whole.labels, whole.positions, order)


def decay_groups(module: torch.nn.Module, optimizer: Optimizer) -> list[dict]:
    """Parameter groups: decay on matrices only."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
