"""Shared by the tests of tensor/, model/ and kernels/: small configs, packed batches by hand, taps for ghost products."""

import torch
import torch.nn.functional as F
from torch import nn

from mads.config.schema import ModelConfig
from mads.data.batch import IGNORE, PackedBatch
from mads.model.pieces import run_pieces
from mads.tensor import TENSOR_LAYERS


def small_config(**changes) -> ModelConfig:
    """131 tokens divide by no parallel size; 8 heads share 4 KV heads, so that 4 ranks can each have one."""
    fields = dict(
        hidden_size=32,
        num_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        ffn_hidden_size=24,
        vocab_size=131,
        init_std=0.3,
        attention="sdpa",
    )
    return ModelConfig(**(fields | changes))


def random_samples(lengths: list[int], vocab_size: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size, (n,), generator=generator) for n in lengths]


def pack(rows: list[list[torch.Tensor]], seq_length: int) -> PackedBatch:
    """The packed batch of rows of samples, written from the definition in PackedBatch and sharing no code with the loader."""
    shape = (len(rows), seq_length)
    tokens, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels, segments = torch.full(shape, IGNORE), torch.full(shape, -1)
    count = 0
    for r, samples in enumerate(rows):
        at = 0
        for sample in samples:
            for i, token in enumerate(sample.tolist()):
                tokens[r, at + i], positions[r, at + i], segments[r, at + i] = token, i, count
                if i + 1 < len(sample):
                    labels[r, at + i] = sample[i + 1]
            at += len(sample)
            count += 1
    return PackedBatch(tokens, labels, positions, segments, count)


def small_batch(vocab_size: int = 131) -> PackedBatch:
    a, b, c, d = random_samples([5, 6, 13, 1], vocab_size)
    return pack([[a, b], [c, d]], 15)  # padding at the end of both rows, and a sample of one token


def even_batch(vocab_size: int = 131) -> PackedBatch:
    """Three rows of 16 positions, which 1, 2 and 4 ranks can share: samples cross their borders, and one row has padding."""
    a, b, c, d, e = random_samples([5, 11, 13, 1, 16], vocab_size)
    return pack([[a, b], [c, d], [e]], 16)


def fields(batch: PackedBatch) -> tuple[torch.Tensor, ...]:
    return batch.tokens, batch.labels, batch.positions, batch.segments


def plain_losses(model, batch: PackedBatch, draws=None, objective=None) -> torch.Tensor:
    """Loss of every position [B, S] from the whole logits, by torch: the reference of the head that keeps none."""
    whole = run_pieces(model._pieces, batch.tokens, model._context(batch.positions, batch.segments, draws))
    logits, labels = whole.flatten(0, 1), batch.labels.flatten()
    smoothing, z_loss = (objective.label_smoothing, objective.z_loss) if objective else (0.0, 0.0)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return (losses + z_loss * logits.logsumexp(-1).square() * (labels != IGNORE)).view(batch.labels.shape)


def ghost_product(model: nn.Module, directions: dict[int, torch.Tensor], run) -> torch.Tensor:
    """sum over the tensor layers of sum(delta * weight_derivative(input, direction)) for the scalar `run()`.

    directions: id(parameter) -> tensor of its shape.
    """
    total, handles = [], []

    def tap(module, inputs, output):
        x = inputs[0].detach().clone()
        along = {n: directions[id(p)] for n, p in module.named_parameters(recurse=False)}
        output.register_hook(lambda delta: total.append((delta * module.weight_derivative(x, along)).sum()))

    for module in model.modules():
        if isinstance(module, TENSOR_LAYERS):
            handles.append(module.register_forward_hook(tap))
    run().backward()
    for handle in handles:
        handle.remove()
    return torch.stack(total).sum()
