"""Engines at any (pp, dp, cp, tp) and ZeRO stage, and what they must equal: plain PyTorch on one process."""

from types import SimpleNamespace

import model_support as support
import numpy as np
import reward_cases
import torch
from model_cases import plain_losses
from topologies import topology as topology_of

from mads import noise
from mads.config.validate import validate
from mads.data.batch import make_batch
from mads.layout import unshard
from mads.model.decoder import Decoder
from mads.train.setup import build_engine

RATES = [1e-3, 2e-3, 1e-3]
MODEL = [
    "model.vocab_size=131",  # divides by no parallel size
    "model.num_attention_heads=4",
    "model.num_key_value_heads=4",
    "model.hidden_size=32",
    "model.ffn_hidden_size=48",
    "optim.grad_clip=0.2",  # small, so that a wrong norm shows in the weights
]
KEYS = {"tp": "tensor_model_parallel_size", "pp": "pipeline_model_parallel_size", "cp": "context_parallel_size"}
STATE = ("weight", "exp_avg", "exp_avg_sq")


def overrides_of(grid: dict, zero: int, *more: str) -> list[str]:
    if not any(o.startswith("model.num_layers=") for o in more):
        more = (*more, f"model.num_layers={max(2, grid.get('pp', 1))}")
    sizes = [f"parallel.{KEYS[axis]}={size}" for axis, size in grid.items() if axis in KEYS and size > 1]
    return [*MODEL, f"parallel=zero{zero}", *sizes, *more]


def make(grid: dict, zero: int, *more: str, batch: int = 8, dtype=torch.float32):
    """(engine, topology, config) at a layout; `batch` rows a step. Collective over all ranks."""
    topology = topology_of(**grid)
    if not any(o.startswith("train.micro_batch_size=") for o in more):
        more = (*more, f"train.micro_batch_size={micro_of(topology.size('dp'), batch)}")
    cfg = support.config(*overrides_of(grid, zero, *more), f"train.global_batch_size={batch}", "run_dir=none", "data.dir=none")
    validate(cfg, topology.world_size)
    engine = build_engine(cfg, topology, dtype, torch.device("cpu"))
    return SimpleNamespace(engine=engine, topology=topology, config=cfg)


def rows_of_step(step: int, batch: int = 8):
    return [[s % 131 for s in row] for row in support.global_batch(batch, seed=step)]


def micro_of(dp: int, batch: int = 8) -> int:
    """Rows of a micro-batch, so that a step has two: four ranks on two cores take long for each collective."""
    return max(1, batch // (2 * dp))


def step(built, rows, rate: float, number: int | None = None):
    t = built.topology
    micro, valid = support.micro_batches(rows, t.coordinate("dp"), t.size("dp"), built.config.train.micro_batch_size)
    return built.engine.train_step(micro, valid, rate, number)


def gathered(engine, key: str = "weight") -> dict[str, torch.Tensor]:
    """Every logical tensor, whole and without padding, on every rank: written without the checkpoint's code."""
    import torch.distributed as dist

    from mads.layout import layout_of

    topology, mine = engine.topology, {}
    for name, parameter in engine.parameters:
        piece = engine.state.full(parameter, key).detach().contiguous()
        pieces = [torch.empty_like(piece) for _ in range(topology.size("tp"))]
        dist.all_gather(pieces, piece, group=topology.group("tp"))
        layout = layout_of(parameter)
        whole = unshard(pieces, layout) if layout.sharded else pieces[0]
        mine[name] = whole[: layout.padded_from] if layout.padded_from is not None else whole
    stages = [None] * topology.size("pp")
    dist.all_gather_object(stages, mine, group=topology.group("pp"))
    merged = {}
    for stage in stages:
        for name, tensor in stage.items():
            if name in merged:  # tied: both ends must hold the same bits
                assert torch.equal(merged[name], tensor), name
            merged[name] = tensor
    return merged


def reference(config, batch: int = 8, steps: int = 3):
    """Plain PyTorch on this process alone: (losses, gradient norms, weights by name)."""
    from mads.tensor import Objective

    module = Decoder(config.model, seed=config.train.seed)
    decayed = [p for p in module.parameters() if p.dim() > 1]
    plain = [p for p in module.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(config.optim.beta1, config.optim.beta2), eps=config.optim.eps)
    losses, norms = [], []
    for number in range(steps):
        rows = rows_of_step(number, batch)
        data = make_batch(rows, 32)
        keys = noise.hash64(config.train.seed, "dropout", number, np.arange(batch)) >> np.uint64(1)
        objective = Objective(config.optim.label_smoothing, config.optim.z_loss)
        loss = plain_losses(module, data, torch.from_numpy(keys.astype(np.int64)), objective).sum() / data.valid_tokens
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), config.optim.grad_clip)))
        for group in optimizer.param_groups:
            group["lr"] = RATES[number]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms, {n: p.detach().clone() for n, p in module.named_parameters()}


def check_layout(grid: dict, zero: int, more: list[str], batch: int = 8) -> dict:
    """Loss, gradient norm and weights of three optimizer steps equal one process; so do rewards after the second.

    Returns the largest deviations: loss and norm relative, weights absolute, rewards relative to the largest.
    """
    built = make(grid, zero, *more, batch=batch)
    losses, norms, weights = reference(built.config, batch)
    assert norms[0] > 0.2  # clipping is at work
    worst = {"loss": 0.0, "norm": 0.0, "weight": 0.0}
    for number in range(3):
        result = step(built, rows_of_step(number, batch), RATES[number], number)
        worst["loss"] = max(worst["loss"], abs(result.loss - losses[number]) / abs(losses[number]))
        worst["norm"] = max(worst["norm"], abs(result.grad_norm - norms[number]) / norms[number])
        if number == 1:
            worst["reward"] = reward_deviation(built, "ghost")
    found = gathered(built.engine)
    assert sorted(found) == sorted(weights)
    for name, tensor in found.items():
        worst["weight"] = max(worst["weight"], float((tensor - weights[name]).abs().max()))
    limits = {"loss": 1e-6, "norm": 1e-5, "weight": 1e-5, "reward": 1e-4}
    assert all(worst[key] < limit for key, limit in limits.items()), (grid, zero, more, worst)
    assert built.engine.state.steps == 3
    return worst


def reward_deviation(built, mode: str) -> float:
    """The largest difference of rewards from their definition on one process, relative to the largest reward."""
    samples = [s % 131 for s in support.random_samples(9, seed=5)]
    weights, moments = gathered(built.engine), gathered(built.engine, "exp_avg_sq")
    expected, norm = reward_cases.exact(built, weights, moments, samples)
    result = reward_cases.rewarder(built, mode, rows=4)(None, samples, 0)
    assert abs(result.direction["norm"] - norm) < 1e-3 * norm, (mode, result.direction["norm"], norm)
    assert abs(sum(result.direction["shares"].values()) - 1) < 1e-6
    return float(np.abs(result.rewards - expected).max() / np.abs(expected).max())


def everything(built) -> dict[str, torch.Tensor]:
    """All state of this rank."""
    state = {f"{key}/{n}": built.engine.state.full(p, key).clone() for n, p in built.engine.parameters for key in STATE}
    engine = built.engine.engine
    state["counters"] = torch.tensor([engine.global_steps, engine.micro_steps, engine.skipped_steps, built.engine.state.steps])
    return state


def check_rewards(grid: dict, zero: int, more: list[str], modes=("ghost", "finite_difference")) -> dict:
    """After two steps: rewards by both ways equal the definition on one process; and the next loss, and all state of this rank,
    equal those of a run without a reward pass, bit for bit. Returns the largest deviations, relative to the largest reward."""
    runs, worst = [], {}
    for disturb in (False, True):
        built = make(grid, zero, *more)
        for number in range(2):
            step(built, rows_of_step(number), RATES[number], number)
        if disturb:
            before = everything(built)
            worst = {mode: reward_deviation(built, mode) for mode in modes}
            assert all(worst[mode] < (1e-4 if mode == "ghost" else 1e-2) for mode in modes), (grid, zero, more, worst)
            after = everything(built)
            assert all(torch.equal(before[k], after[k]) for k in before)
        last = step(built, rows_of_step(2), RATES[2], 2)
        runs.append((last.loss, last.grad_norm, everything(built)))
    assert runs[0][:2] == runs[1][:2], (grid, zero, more)
    assert all(torch.equal(runs[0][2][k], runs[1][2][k]) for k in runs[0][2]), (grid, zero, more)
    return worst
