"""What mads.train.interface promises to rewards and evaluation, on an engine at any ZeRO stage and layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from mads import collectives
from mads.data.batch import PackedBatch
from mads.layout import counts_on
from mads.train.checksum import checksums
from mads.train.engine import Engine
from mads.train.interface import Vector
from mads.train.optimizer_state import STATE
from mads.train.passes import passes_of
from mads.train.snapshot import EngineRehearsal

COUNTERS = ("global_steps", "micro_steps", "global_samples", "skipped_steps")
NOTHING = torch.zeros(1)  # checksum 0, as zeros of any size


class EngineRewardModel:
    """Implements mads.train.interface.RewardModel. A rank holds, perturbs and sums only its own pieces: its tensor-parallel shard
    of its stage's parameters, under ZeRO 3 its partition of that."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._sharded = engine.zero_stage == 3
        self._topology = engine.topology
        self._passes = passes_of(engine)
        self._rehearsing = False
        self.parameter_dtype = engine.dtype
        self.device = engine.device

    # ------------------------------------------------------------ leaving no trace

    def _storage(self, parameter: nn.Parameter) -> torch.Tensor:
        return parameter.ds_tensor if self._sharded else parameter.data

    def digest(self) -> int:
        """Checksum of this rank's parameters, master weights, moments and optimizer steps, exact to the bit. Moments that are
        not there yet count as zeros, which is what AdamW begins with."""
        own = [parameter for _, parameter in self._engine.parameters]
        pieces = [self._storage(parameter) for parameter in own]
        itself = {id(parameter) for parameter in own}  # without ZeRO fp32 parameters are their own masters
        for flat, state in self._engine.state.held():
            pieces += [] if id(flat) in itself else [flat]
            pieces += [state.get(key, NOTHING) for key in STATE]
        return collectives.digest(np.array(checksums(pieces, self.device)))

    @contextmanager
    def undisturbed(self):
        module, engine = self._engine.module, self._engine.engine
        before = self.digest()
        counters = [getattr(engine, name) for name in COUNTERS]
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
        if self.digest() != before or [getattr(engine, name) for name in COUNTERS] != counters:
            raise RuntimeError(
                "a reward or evaluation pass changed the model; the run would not be reproducible, so it stops here"
            )

    @contextmanager
    def rehearsal(self):
        if self._rehearsing:
            raise RuntimeError("a rehearsal inside a rehearsal: leave the first one, or rewind it")
        with self.undisturbed():
            storages = [self._storage(parameter) for _, parameter in self._engine.parameters]
            rehearsal = EngineRehearsal(self._engine, storages, self._forget_gathered)
            self._rehearsing = True
            try:
                yield rehearsal
            finally:
                self._rehearsing = False
                rehearsal.close()

    # ------------------------------------------------------------ vectors

    def totals(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        rank = self._topology.coordinate("tp")
        names = list(self._engine.logical_shapes)
        place = {name: i for i, name in enumerate(names)}
        sums = torch.zeros(len(names), dtype=torch.float64, device=self.device)
        for name, parameter in self._engine.parameters:
            if counts_on(parameter, rank):
                sums[place[name]] = values[name].double()
        collectives.all_reduce_(sums, self._topology.group("model"))
        if self._sharded:
            collectives.all_reduce_(sums, self._topology.group("dp_cp"))
        return dict(zip(names, sums.tolist()))

    def second_moment(self) -> tuple[Callable[[str], torch.Tensor], int]:
        state, parameters = self._engine.state, dict(self._engine.parameters)
        return lambda name: state.local(parameters[name], "exp_avg_sq"), state.steps

    def parameter_norm(self) -> float:
        squares = {name: self._owned(p).double().square().sum() for name, p in self._engine.parameters}
        return sum(self.totals(squares).values()) ** 0.5

    def _owned(self, parameter: nn.Parameter) -> torch.Tensor:
        """What this rank owns of the parameter that the model computes with, without ZeRO 3's padding."""
        storage = self._storage(parameter)
        return storage.flatten()[: self._engine.state.owned_length(parameter)] if self._sharded else storage

    def gradient(self, batches: Sequence[PackedBatch], weights: Sequence[torch.Tensor]) -> Vector:
        batches, weights = [b.to(self.device) for b in batches], [w.to(self.device) for w in weights]
        if self._sharded:
            return self._sharded_gradient(batches, weights)
        result = self._passes.gradient(batches, weights)
        for name in sorted(result):
            collectives.all_reduce_(result[name], self._topology.group("dp_cp"))
        return result

    def _sharded_gradient(self, batches, weights) -> Vector:
        """ZeRO 3 gathers and releases weights by hooks on the backward pass, so this one goes through the engine."""
        engine = self._engine.engine
        engine.train()
        for index, (batch, weight) in enumerate(zip(batches, weights)):
            self._engine.pulse.beat()
            engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            total, _ = engine(batch.tokens, batch.labels, batch.positions, batch.segments, None, None, weight)
            engine.backward(total * self._engine.averaged_over, scale_wrt_gas=False)
        optimizer = engine.optimizer
        result = {}
        for name, parameter in self._engine.parameters:
            piece = optimizer.get_local_fp32_grad_for_param(parameter).flatten()
            result[name] = piece[: self._engine.state.owned_length(parameter)].float().clone()
        self._engine.discard_gradients()
        return result

    # ------------------------------------------------------------ losses and products

    def _forget_gathered(self) -> None:
        """ZeRO 3 keeps some parameters gathered between passes; a changed shard would then go unseen, every reward be 0."""
        if not self._sharded:
            return
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
            self._forget_gathered()
            yield
        finally:
            # Copied back, because adding and subtracting the same number is not exact.
            with torch.no_grad():
                for name, parameter in self._engine.parameters:
                    self._storage(parameter).copy_(saved[name])
            self._forget_gathered()

    def sample_losses(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        shares = self._passes.sample_losses([b.to(self.device) for b in batches])
        if not self._engine.counts_losses:  # every tensor-parallel rank has them
            shares = [torch.zeros_like(s) for s in shares]
        return self._summed_over_replica(shares)

    def ghost_products(self, batches: Sequence[PackedBatch], direction: Vector) -> list[torch.Tensor]:
        names = self._engine.logical_names

        def direction_of(parameter):
            piece = direction[names[parameter]]
            if self._sharded:
                piece = self._gather(piece, parameter)
            return piece.to(self.parameter_dtype)

        return self._summed_over_replica(self._passes.ghost_products([b.to(self.device) for b in batches], direction_of))

    def _summed_over_replica(self, shares: list[torch.Tensor]) -> list[torch.Tensor]:
        """One collective for all batches."""
        if not shares or collectives.group_size(self._topology.group("replica")) == 1:
            return shares
        total = collectives.all_reduce_(torch.cat(shares), self._topology.group("replica"))
        return list(total.split([len(s) for s in shares]))

    def _gather(self, piece: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
        """The whole block of a vector that ZeRO 3 holds in pieces (every rank runs the same layers in the same order)."""
        padded = torch.zeros(parameter.ds_tensor.ds_numel, dtype=piece.dtype, device=piece.device)
        padded[: piece.numel()] = piece
        whole = collectives.all_gather_flat(padded, self._topology.group("dp_cp"))
        return whole[: parameter.ds_numel].view(parameter.ds_shape)
