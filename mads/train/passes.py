"""Forward, gradient and ghost passes that leave no trace in DeepSpeed, on a whole decoder or on pipeline stages.

They bypass the engine: parameters are used as they are, torch.autograd.grad fires none of DeepSpeed's gradient hooks, and on
pipeline stages the instructions of DeepSpeed's own schedules are executed without the optimizer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from deepspeed.runtime.pipe import schedule

from mads import collectives
from mads.data.batch import PackedBatch, sum_by_sample
from mads.train.ghost import Sink, ghost_products, taps

Tensors = dict[str, torch.Tensor]


class Passes(Protocol):
    """What rewards and evaluation need of a model. Every rank of a replica calls with the same batches; results on a rank are its
    own share, to be summed over the replica."""

    def sample_losses(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        """Sum of the token losses of each sample, float64 [samples] for each batch, without gradient."""

    def gradient(self, batches: Sequence[PackedBatch], weights: Sequence[torch.Tensor]) -> Tensors:
        """fp32 gradient of sum over batches of sum(weight * token loss) for the parameters of this rank, by logical name, summed
        over the batches and tied uses, but not over data- or context-parallel ranks."""

    def ghost_products(self, batches: Sequence[PackedBatch], direction_of: Callable) -> list[torch.Tensor]:
        """<direction, gradient of each sample's summed token loss>, float64 [samples] for each batch (mads.train.ghost)."""


class WholePasses:
    """On a Decoder."""

    def __init__(self, engine):
        self._engine = engine

    def _losses(self, batch: PackedBatch, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self._engine.pulse.beat()
        with self._engine.as_written():
            return self._engine.module(batch.tokens, batch.labels, batch.positions, batch.segments, weights=weights)

    @torch.no_grad()
    def sample_losses(self, batches):
        return [sum_by_sample(self._losses(batch)[1], batch) for batch in batches]

    def gradient(self, batches, weights):
        names, parameters = zip(*self._engine.parameters)
        total = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters]
        for batch, weight in zip(batches, weights):
            with torch.enable_grad():
                gradients = torch.autograd.grad(self._losses(batch, weight)[0], parameters)
            for t, g in zip(total, gradients):
                t.add_(g)
        return dict(zip(names, total))

    def ghost_products(self, batches, direction_of):
        products = []
        for batch in batches:
            self._engine.pulse.beat()
            with self._engine.as_written():
                products.append(ghost_products(self._engine.module, batch, direction_of))
        return products


class PipelinePasses:
    """On a Stage (mads.train.pipeline)."""

    def __init__(self, engine):
        self._engine, self._topology = engine, engine.topology
        self._group = self._topology.group("pp")
        self._first, self._last = self._topology.is_first_stage, self._topology.is_last_stage

    @property
    def _stage(self):
        return self._engine.engine.module

    @torch.no_grad()
    def sample_losses(self, batches):
        losses = [torch.zeros(b.samples, dtype=torch.float64, device=b.tokens.device) for b in batches]
        for index, output in _Run(self, batches, schedule.InferenceSchedule):
            if self._last:
                losses[index] = sum_by_sample(self._stage.losses(output, batches[index].labels)[1], batches[index])
        return losses

    def gradient(self, batches, weights):
        names, parameters = zip(*self._engine.parameters)
        total = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters]

        def backward(index: int, output: torch.Tensor, arrived: torch.Tensor | None, delta: torch.Tensor | None):
            if self._last:
                output, _ = self._stage.losses(output, batches[index].labels, weights[index])
            inputs = parameters if self._first else (*parameters, arrived)
            gradients = torch.autograd.grad(output, inputs, delta)
            for t, g in zip(total, gradients):
                t.add_(g)
            return None if self._first else gradients[-1]

        with torch.enable_grad():
            for _ in _Run(self, batches, schedule.TrainSchedule, backward):
                pass
        result = dict(zip(names, total))
        for weight, group in self._stage.get_tied_weights_and_groups():
            collectives.all_reduce_(result[self._engine.logical_names[weight]], group)
        return result

    def ghost_products(self, batches, direction_of):
        sink, products, firsts = Sink(self._stage), [], []

        def forward_begins(index: int) -> None:
            products.append(sink.begin(batches[index]))

        def backward(index, output, arrived, delta):
            if self._last:
                sink.products = products[index]  # the head works now, and later batches may have begun
                output, _ = self._stage.losses(output, batches[index].labels)
            target = firsts[index] if self._first else arrived
            (gradient,) = torch.autograd.grad(output, target, delta)
            firsts[index] = None
            return None if self._first else gradient

        with torch.enable_grad(), taps(self._stage, direction_of, sink):
            for _ in _Run(self, batches, schedule.TrainSchedule, backward, forward_begins):
                firsts.append(sink.first)
        return [sum_by_sample(p, batch) for p, batch in zip(products, batches)]


class _Run:
    """Execute a schedule's forward, backward and transfer instructions; iterating gives (batch, output) after each forward.

    Args:
        backward: (batch, output, arrived hidden states, gradient of the output) -> gradient of the arrived hidden states.
    """

    def __init__(self, passes: PipelinePasses, batches, kind, backward=None, forward_begins=lambda index: None):
        self._passes, self._batches = passes, list(batches)
        topology = passes._topology
        self._schedule = kind(len(self._batches), topology.size("pp"), topology.coordinate("pp"))
        self._backward, self._forward_begins = backward, forward_begins
        self._neighbour = topology.coordinate("pp")

    def __iter__(self):
        stage, group, place = self._passes._stage, self._passes._group, self._neighbour
        first, last = self._passes._first, self._passes._last
        arrived, outputs, deltas, batch_of = {}, {}, {}, {}
        received = started = 0
        for commands in self._schedule:
            for command in commands:
                buffer = command.kwargs.get("buffer_id")
                match command:
                    case schedule.RecvActivation():
                        shape = stage.hidden_shape(self._batches[received])
                        x = collectives.receive(shape, stage.dtype, self._passes._engine.device, place - 1, group)
                        arrived[buffer] = x.requires_grad_(self._backward is not None)
                        received += 1
                    case schedule.ForwardPass():
                        self._passes._engine.pulse.beat()
                        index, started = started, started + 1
                        self._forward_begins(index)
                        batch, batch_of[buffer] = self._batches[index], index
                        x = batch.tokens if first else arrived[buffer]
                        output = stage((x, batch.positions, batch.segments))
                        outputs[buffer] = output if last else output[0]
                        yield index, outputs[buffer]
                    case schedule.SendActivation():
                        collectives.send(outputs[buffer].detach(), place + 1, group)
                        if self._backward is None:
                            del outputs[buffer]
                    case schedule.RecvGrad():
                        like = outputs[buffer]
                        deltas[buffer] = collectives.receive(like.shape, like.dtype, like.device, place + 1, group)
                    case schedule.BackwardPass():
                        self._passes._engine.pulse.beat()
                        arguments = outputs.pop(buffer), arrived.get(buffer), deltas.pop(buffer, None)
                        arrived[buffer] = self._backward(batch_of[buffer], *arguments)
                    case schedule.SendGrad():
                        collectives.send(arrived.pop(buffer), place - 1, group)


def passes_of(engine) -> Passes:
    """The passes for what an engine holds."""
    return PipelinePasses(engine) if engine.topology.size("pp") > 1 else WholePasses(engine)
