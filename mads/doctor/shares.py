"""What one rank of each pipeline stage holds, counted on the meta device: nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import OmegaConf

from mads.layout import layout_of, name_of
from mads.model.partition import partition
from mads.model.pieces import PieceSpec, piece_specs
from mads.model.placement import ALONE
from mads.tensor.init import padded_vocab_size


@dataclass(frozen=True)
class Share:
    """One rank's part of the model.

    stage: pipeline stage; first, last: whether it has the embedding, and the head with the loss.
    layers: decoder layers; parameters: elements, of this tensor-parallel rank; largest: elements of the largest parameter.
    """

    stage: int
    first: bool
    last: bool
    layers: int
    parameters: int
    largest: int


def padded_vocabulary(config) -> int:
    """Rows of the embedding: the smallest multiple of the tensor-parallel size that holds model.vocab_size."""
    return padded_vocab_size(config.model.vocab_size, config.parallel.tensor_model_parallel_size)


def shares(config) -> list[Share]:
    """One for each pipeline stage, cut as mads.train.pipeline cuts them."""
    p = config.parallel
    tp, pp = p.tensor_model_parallel_size, p.pipeline_model_parallel_size
    model = OmegaConf.merge(config.model, {"vocab_size": padded_vocabulary(config)})
    specs = piece_specs(model, ALONE, seed=0, device="meta")
    borders = partition([spec.weight(p.pipeline_partition) for spec in specs], pp)
    layer = _sizes(specs[1], tp)  # every layer is like the first
    sizes = [_sizes(specs[0], tp), *[layer] * (len(specs) - 2), _sizes(specs[-1], tp)]
    result = []
    for stage, (start, stop) in enumerate(zip(borders, borders[1:])):
        first, last = start == 0, stop == len(specs)
        held = [size for piece in sizes[start:stop] for size in piece]
        if first and last and model.tie_embeddings:  # the head uses the embedding's weight
            held = [size for piece in sizes[:-1] for size in piece] + [(n, s) for n, s in sizes[-1] if n != "embedding.weight"]
        layers = sum(specs[i].name.startswith("layers.") for i in range(start, stop))
        numbers = [size for _, size in held]
        result.append(Share(stage, first, last, layers, sum(numbers), max(numbers)))
    return result


def _sizes(spec: PieceSpec, tp: int) -> list[tuple[str, int]]:
    parameters = spec.build().parameters()
    return [(name_of(p), p.numel() // (tp if layout_of(p).sharded else 1)) for p in parameters]
