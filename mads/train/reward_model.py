"""What mads.train.interface promises to rewards and evaluation, on a TrainEngine at ZeRO 0-3."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import nn

from mads import collectives
from mads.data.batch import PackedBatch, sum_by_sample
from mads.train.checksum import fold
from mads.train.engine import TrainEngine
from mads.train.ghost import ghost_products
from mads.train.interface import Vector


class EngineRewardModel:
    """Implements mads.train.interface.RewardModel for any ZeRO stage."""

    def __init__(self, engine: TrainEngine):
        self._engine = engine
        self._sharded = engine.zero_stage == 3
        self._group = engine.topology.group("dp")
        self.parameter_dtype = engine.dtype
        self.device = engine.device

    # ------------------------------------------------------------ leaving no trace

    def _storage(self, parameter: nn.Parameter) -> torch.Tensor:
        return parameter.ds_tensor if self._sharded else parameter.data

    def digest(self) -> int:
        """Checksum of this rank's parameters (and, under ZeRO 3, of its master weights and moments), exact to the bit."""
        total = torch.zeros((), dtype=torch.int64, device=self.device)
        for _, parameter in self._engine.parameters:
            pieces = [self._storage(parameter)]
            if self._sharded:
                pieces += [self._engine.state.local(parameter, key) for key in ("weight", "exp_avg", "exp_avg_sq")]
            for piece in pieces:
                total = fold(piece, total)
        return int(total)

    @contextmanager
    def undisturbed(self):
        module, engine = self._engine.module, self._engine.engine
        before = self.digest()
        counters = (engine.global_steps, engine.micro_steps, engine.skipped_steps)
        training = module.training
        cpu_rng = torch.get_rng_state()
        cuda_rng = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        try:
            yield
        finally:
            module.train(training)
            torch.set_rng_state(cpu_rng)
            if cuda_rng is not None:
                torch.cuda.set_rng_state(cuda_rng, self.device)
        if self.digest() != before or (engine.global_steps, engine.micro_steps, engine.skipped_steps) != counters:
            raise RuntimeError(
                "a reward or evaluation pass changed the model; the run would not be reproducible, so it stops here"
            )

    # ------------------------------------------------------------ vectors

    def owned_sum(self, value: torch.Tensor) -> torch.Tensor:
        return collectives.all_reduce_(value.clone(), self._group) if self._sharded else value

    def second_moment(self) -> tuple[Vector, int]:
        state = self._engine.state
        return {name: state.local(p, "exp_avg_sq").clone() for name, p in self._engine.parameters}, state.steps

    def parameter_norm(self) -> float:
        squares = [self._owned(p).double().square().sum() for _, p in self._engine.parameters]
        return float(self.owned_sum(torch.stack(squares).sum()).sqrt())

    def _owned(self, parameter: nn.Parameter) -> torch.Tensor:
        """What this rank owns of the parameter that the model computes with, without ZeRO 3's padding."""
        storage = self._storage(parameter)
        return storage.flatten()[: self._engine.state.owned_length(parameter)] if self._sharded else storage

    def gradient(self, batches: Sequence[PackedBatch], weights: Sequence[torch.Tensor]) -> Vector:
        if not self._sharded:
            return self._whole_gradient(batches, weights)
        engine = self._engine.engine
        replicas = collectives.group_size(self._group)
        engine.train()
        for index, (batch, weight) in enumerate(zip(batches, weights)):
            engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            batch = batch.to(self.device)
            token_loss = engine(batch.tokens, batch.labels, batch.positions, batch.segments)
            # DeepSpeed averages over the replicas, this gradient is a sum over them.
            engine.backward((token_loss * weight.to(self.device)).sum() * replicas, scale_wrt_gas=False)
        optimizer = engine.optimizer
        result = {}
        for name, parameter in self._engine.parameters:
            piece = optimizer.get_local_fp32_grad_for_param(parameter).flatten()
            result[name] = piece[: self._engine.state.owned_length(parameter)].float().clone()
        self._engine.discard_gradients()
        return result

    def _whole_gradient(self, batches, weights) -> Vector:
        """ZeRO 0-2 hold whole parameters: torch.autograd.grad bypasses DeepSpeed's gradient hooks and buffers altogether."""
        names, parameters = zip(*self._engine.parameters)
        total = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters]
        for batch, weight in zip(batches, weights):
            batch = batch.to(self.device)
            with torch.enable_grad():
                token_loss = self._engine.module(batch.tokens, batch.labels, batch.positions, batch.segments)
                gradients = torch.autograd.grad((token_loss * weight.to(self.device)).sum(), parameters)
            for t, g in zip(total, gradients):
                t.add_(g)
        for t in total:
            collectives.all_reduce_(t, self._group)
        return dict(zip(names, total))

    # ------------------------------------------------------------ losses and products

    def _forget_gathered(self) -> None:
        """ZeRO 3 keeps some parameters gathered between passes; a changed shard would then go unseen, every reward be 0."""
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

        for _, parameter in self._engine.parameters:
            if parameter.ds_status == ZeroParamStatus.AVAILABLE:
                parameter.partition()

    @contextmanager
    def shifted(self, direction: Vector, scale: float):
        if self.parameter_dtype != torch.float32:
            raise ValueError(f"parameters of {self.parameter_dtype} are too coarse for a finite difference; use reward=ghost")
        saved = {name: self._storage(p).clone() for name, p in self._engine.parameters}
        try:
            with torch.no_grad():
                for name, parameter in self._engine.parameters:
                    self._owned(parameter).add_(direction[name].view_as(self._owned(parameter)), alpha=scale)
            if self._sharded:
                self._forget_gathered()
            yield
        finally:
            # Copied back, because adding and subtracting the same number is not exact.
            with torch.no_grad():
                for name, parameter in self._engine.parameters:
                    self._storage(parameter).copy_(saved[name])
            if self._sharded:
                self._forget_gathered()

    @torch.no_grad()
    def sample_losses(self, batch: PackedBatch) -> torch.Tensor:
        batch = batch.to(self.device)
        token_loss = self._engine.module(batch.tokens, batch.labels, batch.positions, batch.segments)
        return sum_by_sample(token_loss, batch)

    def ghost_products(self, batch: PackedBatch, direction: Vector) -> torch.Tensor:
        names = self._engine.logical_names

        def direction_of(parameter):
            piece = direction[names[parameter]]
            if self._sharded:
                piece = self._gather(piece, parameter)
            return piece.to(self.parameter_dtype)

        return ghost_products(self._engine.module, batch.to(self.device), direction_of)

    def _gather(self, piece: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """The whole block of a vector that ZeRO 3 holds in pieces (every rank runs the same layers in the same order)."""
        padded = torch.zeros(parameter.ds_tensor.ds_numel, dtype=piece.dtype, device=piece.device)
        padded[: piece.numel()] = piece
        whole = collectives.all_gather_flat(padded, self._group)
        return whole[: parameter.ds_numel].view(parameter.ds_shape)
