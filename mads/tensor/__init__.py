"""Tensor-parallel layers and the vocabulary-parallel cross entropy."""

from mads.tensor.cross_entropy import Objective, vocab_parallel_cross_entropy
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
    "Objective",
    "RMSNorm",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "VocabParallelHead",
    "vocab_parallel_cross_entropy",
]
