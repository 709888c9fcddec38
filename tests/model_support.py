"""A nano model with its engine, and batches of random samples, for tests of training, rewards and checkpoints."""

from types import SimpleNamespace

import numpy as np
import torch
from model_cases import plain_losses
from topologies import topology as topology_of

from mads.config.compose import compose
from mads.data.batch import make_batch
from mads.data.packing import pack
from mads.model.decoder import Decoder
from mads.train.engine import TrainEngine


def config(*overrides):
    return compose(
        [
            "model=nano",
            "data=jsonl",
            "data.paths=[none]",
            "data.seq_length=32",
            *([] if any(o.startswith("train.micro_batch_size=") for o in overrides) else ["train.micro_batch_size=2"]),
            "optim.eps=1e-4",
            *overrides,
        ]
    )


def make_engine(zero_stage=1, dtype=torch.float32, accumulation=1, seed=0, overrides=()):
    """(engine, topology, config) for the default group's world size, data parallel only; layouts.make builds the others."""
    import torch.distributed as dist

    world = dist.get_world_size()
    cfg = config(f"parallel=zero{zero_stage}", f"train.global_batch_size={2 * world * accumulation}", *overrides)
    topology = topology_of(dp=world)
    module = Decoder(cfg.model, seed=seed)
    engine = TrainEngine(module, topology, cfg.parallel, cfg.optim, cfg.train, dtype, torch.device("cpu"))
    return SimpleNamespace(engine=engine, topology=topology, config=cfg)


class _InfiniteBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


def infinite_backward(x):
    """x itself, whose gradient is not finite."""
    return _InfiniteBackward.apply(x)


def random_samples(count, seed=0, seq_length=32, vocab=512, shortest=4):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, rng.integers(shortest, seq_length + 1)) for _ in range(count)]


def rows_of(samples, seq_length=32):
    packing = pack(np.array([len(s) for s in samples]), seq_length)
    return [[samples[i] for i in packing.samples_of_row(r)] for r in range(packing.rows)]


def global_batch(rows_count, seed, seq_length=32):
    """`rows_count` packed rows with different numbers of valid tokens."""
    rows = rows_of(random_samples(rows_count * 2, seed), seq_length)
    return rows[:rows_count]


def micro_batches(rows, rank, world, micro=2, seq_length=32):
    """This rank's share of a global batch, in the loader's order, and the valid tokens of the whole."""
    per_pass = micro * world
    mine = [rows[a + rank * micro : a + rank * micro + micro] for a in range(0, len(rows), per_pass)]
    return [make_batch(r, seq_length) for r in mine], sum(len(s) - 1 for row in rows for s in row)


def reference_run(steps, rows_per_step, rates, cfg, seed=0, clip=True, dtype=torch.float32):
    """Plain PyTorch: the same model, torch.optim.AdamW, torch's own clipping. Returns (losses, norms, weights)."""
    module = Decoder(cfg.model, seed=seed).to(dtype)
    decayed = [p for p in module.parameters() if p.dim() > 1]
    plain = [p for p in module.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": cfg.optim.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=1.0,
        betas=(cfg.optim.beta1, cfg.optim.beta2),
        eps=cfg.optim.eps,
    )
    losses, norms = [], []
    for step in range(steps):
        rows = rows_per_step[step]
        batch = make_batch(rows, 32)
        valid = sum(len(s) - 1 for row in rows for s in row)
        loss = plain_losses(module, batch).sum() / valid
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.optim.grad_clip if clip else float("inf"))))
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms, {n: p.detach().clone() for n, p in module.named_parameters()}
