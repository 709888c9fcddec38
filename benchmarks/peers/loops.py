"""A plain training loop over a model of anybody's: PyTorch, DistributedDataParallel, fused AdamW, clipping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .cell import Batch, Job, decay_groups, read_batches
from .clock import Clock
from .profiles import profiled


def start_weights(job: Job) -> dict[str, torch.Tensor]:
    """Name in transformers -> tensor."""
    return load_file(f"{job.folder}/weights.safetensors")


def join(job: Job) -> None:
    """Join the process group that the worker's variables describe, if there is more than one process."""
    if job.cell.processes > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


class Contestant:
    """What the worker asks for.

    masks: whether attention stays inside a document.
    """

    masks = True

    def __init__(self, job: Job):
        self.job, self.rank = job, int(os.environ.get("RANK", 0))

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss over the targets, through `module`."""
        raise NotImplementedError

    def step(self) -> float:
        """One optimizer step on the next batch; returns its loss."""
        raise NotImplementedError

    # ------------------------------------------------------------ commands

    def prepare(self) -> None:
        """Called once, behind the checks and before the first step."""
        self.clock = Clock(self.module)

    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def check(self, batch: Batch) -> float:
        with torch.no_grad():
            return float(self.loss(batch))

    def serve(self, control) -> None:
        """Answer `control`'s commands to take steps until there are no more."""
        while (command := control.wait()) is not None:
            if command["do"] == "profile":
                control.answer(profiled(self.step, command["count"]))
                self.clock.take()
                continue
            for _ in range(command["count"]):
                self.clock.begin()
                self.clock.end(self.step())
            control.answer({"steps": self.clock.take()})


class Loop(Contestant):
    """A model in a bare loop. Subclasses build it and compute its loss."""

    compiled = False

    def __init__(self, job: Job):
        super().__init__(job)
        torch.manual_seed(0)
        self._module = self.build()
        self.load(start_weights(job))

    def build(self) -> nn.Module:
        raise NotImplementedError

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take the start weights, named as in transformers."""
        raise NotImplementedError

    @property
    def module(self) -> nn.Module:
        return self._module

    def prepare(self) -> None:
        join(self.job)
        self.batches, self.taken = read_batches(self.job.folder, self.rank), 0
        optimizer = self.job.optimizer
        self.optimizer = torch.optim.AdamW(
            decay_groups(self._module, optimizer),
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            fused=True,
        )
        super().prepare()
        self.called: nn.Module = self._module
        if self.job.cell.processes > 1:
            self.called = DistributedDataParallel(self.called)
        if self.compiled:
            self.called = torch.compile(self.called)

    def check(self, batch: Batch) -> float:
        self.called = self._module
        return super().check(batch)

    def step(self) -> float:
        batches, last = self.batches[self.taken % len(self.batches)], self.job.cell.accumulation - 1
        self.taken += 1
        total = 0.0
        for index, batch in enumerate(batches):
            waits = index < last and isinstance(self.called, DistributedDataParallel)
            with self.called.no_sync() if waits else nullcontext():
                loss = self.loss(batch) / len(batches)
                loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self._module.parameters(), self.job.optimizer.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total
