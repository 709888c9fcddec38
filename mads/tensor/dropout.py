"""Dropout whose masks are a function of names, not of a generator's history.

Every mask comes from a generator of its own, seeded by (key of the row, logical name of the place). So a mask is drawn again, the
same, by a recomputation, by another cut of the model over ranks, or by a resumed run, and there is nothing to save, to fork or to
keep in step: what Megatron-LM's tracker of named RNG states is for.

Hidden states: the mask [S, h] of a row is drawn whole and cut to the positions that this rank holds; it is the same for every
(tp, sequence parallel, cp, dp, pp). Attention probabilities: the kernels draw them from the default generator, which is seeded
for the call and put back after it. The seed holds the tensor- and context-parallel rank too, because each has heads of its own,
and the keys of all rows of the micro-batch, which a kernel draws for together.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mads.collectives import digest


@dataclass(frozen=True)
class Draws:
    """Where the masks of one forward pass come from.

    keys: one number per row of the batch
    total: positions of a whole row
    where: the positions of hidden states that this rank holds
    place: this rank's (tensor-parallel, context-parallel) coordinates
    """

    keys: tuple[int, ...]
    total: int
    where: slice
    place: tuple[int, int] = (0, 0)


def hidden_dropout(x: torch.Tensor, probability: float, draws: Draws | None, name: str) -> torch.Tensor:
    """Zero each channel of hidden states [B, positions of this rank, h] with the given probability, and scale the others by
    1 / (1 - probability). Without draws, or at probability 0, x itself."""
    if draws is None or probability == 0:
        return x
    masks = [_row_mask(key, name, draws.total, x.shape[2], probability, x.device)[draws.where] for key in draws.keys]
    return x.masked_fill(torch.stack(masks), 0.0) * (1 / (1 - probability))


def _row_mask(key: int, name: str, positions: int, channels: int, probability: float, device) -> torch.Tensor:
    """bool [positions, channels], True where a channel is dropped."""
    generator = torch.Generator(device).manual_seed(digest("hidden dropout", key, name))
    return torch.empty(positions, channels, dtype=torch.bool, device=device).bernoulli_(probability, generator=generator)


def attention_seed(draws: Draws, name: str) -> int:
    """Seed of the attention dropout of one layer in one micro-batch, on this rank."""
    return digest("attention dropout", name, *draws.place, *draws.keys)


@contextmanager
def default_generator_seeded(device: torch.device, seed: int):
    """Inside, the device's default generator starts from `seed`; afterwards it is where it was. Other devices are not touched."""
    if device.type == "cuda":
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    else:
        generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
