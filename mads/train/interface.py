"""The only way in which mads.reward (and evaluation) may touch the model that is being trained.

A *vector* is a dict from logical parameter name to the float32 piece of it that this rank owns: of the parameters of its pipeline
stage its tensor-parallel shard, under ZeRO 3 its partition (flat, without padding) of that shard. `totals` adds numbers over the
owners of such pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from mads.data.batch import PackedBatch

Vector = dict[str, torch.Tensor]


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite. The parameters are those before the step."""


class Rehearsal(Protocol):
    """Optimizer steps that are taken and undone. Collective, as all of RewardModel."""

    def step(self, batches: Sequence[PackedBatch], valid_tokens: int, rate: float) -> None:
        """One optimizer step as in training (clipping, AdamW), without dropout.

        Args:
            batches: this rank's micro-batches: at least one, equally many on every rank, the same ones on the ranks of a replica;
                one without targets keeps the other ranks company.
            valid_tokens: targets in the batches of all replicas; the loss is the mean over them.
            rate: learning rate.

        Raises:
            ValueError: on every rank, if their numbers of batches, valid tokens or rates are not the same, or 0.
            NonFiniteError: on every rank; the step was not taken.
        """

    def forget_momentum(self) -> None:
        """Set Adam's first moments to zero, until the next rewind: steps then follow their own batches only."""

    def rewind(self) -> None:
        """Back to the state at entry; any number of times."""


class RewardModel(Protocol):
    """Implemented by mads.train.reward_model. All methods are collective: every rank calls them equally often, in one order."""

    parameter_dtype: torch.dtype
    device: torch.device

    def undisturbed(self) -> AbstractContextManager[None]:
        """Everything inside leaves parameters, optimizer state, gradients, RNG and counters bit for bit as they were.

        Raises:
            RuntimeError: on leaving, if parameters or counters are not what they were.
        """

    def gradient(self, batches: Sequence[PackedBatch], weights: Sequence[torch.Tensor]) -> Vector:
        """Gradient of sum_b sum_t weights[b][t] * loss[b][t] summed over the batches of all ranks; weights[b] is float [B, S].

        Every rank passes the same number of batches (a weight of 0 everywhere adds nothing).
        """

    def second_moment(self) -> tuple[Callable[[str], torch.Tensor], int]:
        """(name -> the piece of Adam's exp_avg_sq as it is stored, not to be written to; the number of optimizer steps so far):
        zeros and 0 before the first. A piece at a time, in the order of the vectors' names: they may be gathered."""

    def parameter_norm(self) -> float:
        """Euclidean norm of all parameters (logical, each once)."""

    def totals(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """Of every parameter of the model, on every rank: the sum of a scalar over the ranks that own different pieces of it.
        `values` has this rank's parameters; replicas and tied copies count once."""

    def shifted(self, direction: Vector, scale: float) -> AbstractContextManager[None]:
        """Inside, the parameters are theta + scale * direction; on leaving they are restored from a copy, not by subtraction."""

    def sample_losses(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        """Sum of the token losses of each sample, float64 [samples] for each batch, without gradient. The ranks of a replica pass
        the same batches; replicas pass equally many."""

    def rehearsal(self) -> AbstractContextManager[Rehearsal]:
        """Inside, real optimizer steps may be taken and undone, and losses measured with `sample_losses`; on leaving, by an
        exception too, everything is bit for bit as at entry: parameters, master weights, moments, gradients, RNG, counters, loss
        scale. Takes a copy of the states of this rank for as long. Not to be nested.

        Raises:
            RuntimeError: on leaving, if something is not what it was; on entering, inside another rehearsal.
            ValueError: optimizer states or parameters are offloaded to NVMe.
        """

    def ghost_products(self, batches: Sequence[PackedBatch], direction: Vector) -> list[torch.Tensor]:
        """<direction, gradient of the sample's summed token loss> for each sample, float64 [samples] for each batch, in one
        forward and one output-gradient pass."""
