"""Tensor-parallel layers and the vocabulary-parallel cross entropy."""

from mads.tensor.cross_entropy import PLAIN, Objective, Targets, vocab_parallel_cross_entropy
from mads.tensor.layers import (
    TENSOR_LAYERS,
    ColumnParallelLinear,
    RMSNorm,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
)

__all__ = [
    "TENSOR_LAYERS",
    "ColumnParallelLinear",
    "PLAIN",
    "Objective",
    "RMSNorm",
    "RowParallelLinear",
    "Targets",
    "VocabParallelEmbedding",
    "VocabParallelHead",
    "vocab_parallel_cross_entropy",
]
