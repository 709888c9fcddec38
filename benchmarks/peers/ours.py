"""mads: its decoder in a bare loop, and its engine with its loader, by whatever version of mads this Python has."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

import mads
from mads.config.compose import compose
from mads.data.loader import Loader
from mads.data.pool import Pool
from mads.model.decoder import Decoder
from mads.topology import Topology, grid_of, initialize_process_group
from mads.train.setup import build_engine

from .cell import Batch, Job
from .loops import Contestant, Loop


def configuration(job: Job):
    """mads' configuration of the cell."""
    cell, shape, optimizer = job.cell, job.cell.shape, job.optimizer
    model = {f"model.{key}": value for key, value in vars(shape).items()}
    optim = {f"optim.{key}": value for key, value in vars(optimizer).items()}
    train = {
        "train.micro_batch_size": cell.rows,
        "train.global_batch_size": cell.rows * cell.accumulation * cell.processes,
        "data.seq_length": cell.seq_length,
    }
    settings = [f"{key}={value}" for key, value in (model | optim | train).items()]
    return compose(["data=jsonl", "data.paths=[none]", "data.dir=none", "run_dir=none", *settings, *job.overrides])


def where() -> str:
    """The commit of the mads that was imported, and whether files of it differ."""
    folder = Path(mads.__file__).parents[1]
    git = lambda *words: subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True).stdout.strip()
    return git("rev-parse", "--short=7", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno", "--", "mads") else "")


def mean_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Through the decoder, which gives (sum of the losses, losses); before commit d811ee8 it gave the losses only."""
    given = module(batch.tokens, batch.labels, batch.positions, batch.segments)
    return (given[0] if isinstance(given, tuple) else given.sum()) / int((batch.labels >= 0).sum())


class Bare(Loop):
    """The decoder in the bare loop. It draws the same start weights itself."""

    def build(self) -> nn.Module:
        config = configuration(self.job)
        return Decoder(config.model, seed=config.train.seed)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        pass

    def loss(self, batch: Batch) -> torch.Tensor:
        return mean_loss(self.called, batch)


class BareCompiled(Bare):
    """Through torch.compile."""

    compiled = True


class Engine(Contestant):
    """The engine of `mads train`, fed by its loader from a prepared pool."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.config = configuration(job)
        initialize_process_group("gloo", 600)
        self.topology = Topology(grid_of(self.config.parallel, job.cell.processes), 600, 600)
        self.engine = build_engine(self.config, self.topology, torch.float32, torch.device("cpu"))

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def parameters(self) -> int:
        return sum(shape.numel() for shape in self.engine.logical_shapes.values())

    def loss(self, batch: Batch) -> torch.Tensor:
        return mean_loss(self.module, batch)

    def prepare(self) -> None:
        cell, train, count = self.job.cell, self.config.train, self.job.cell.processes
        pool, rank = Pool.open(f"{self.job.folder}/pool"), self.topology.coordinate("dp")
        batch = train.global_batch_size, train.micro_batch_size
        self.loader = Loader(pool, cell.seq_length, *batch, rank, count, train.prefetch, train.loader_workers)
        self.ids, self.taken = np.asarray(pool.ids[:]), 0
        super().prepare()

    def step(self) -> float:
        with self.clock.span("loader"):
            if self.taken == 0 or self.loader.exhausted:
                self.loader.begin_round(self.loader.round + 1, self.ids)
            batch = self.loader.next()
        self.taken += 1
        return self.engine.train_step(batch.micro_batches, batch.valid_tokens, self.job.optimizer.lr, self.taken).loss
