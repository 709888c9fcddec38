"""The engine against plain PyTorch at every ZeRO stage (Z2, Z3, Z4)."""

import pytest
import torch
from harness import run_ranks

FULL = pytest.mark.full
RATES = [1e-3, 2e-3, 1e-3]


def check_engine(stages, accumulation):
    import model_support as support
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    rows = [support.global_batch(2 * world * accumulation, seed=s) for s in range(3)]
    for stage in stages:
        # A small clip, so that a wrong norm shows in the weights.
        built = support.make_engine(stage, accumulation=accumulation, overrides=["optim.grad_clip=0.2"])
        losses, norms, weights = support.reference_run(3, rows, RATES, built.config)
        for step in range(3):
            micro, valid = support.micro_batches(rows[step], rank, world)
            result = built.engine.train_step(micro, valid, RATES[step])
            assert result.loss == pytest.approx(losses[step], rel=1e-5), (stage, step)
            assert result.grad_norm == pytest.approx(norms[step], rel=1e-5), (stage, step)
        assert norms[0] > 0.2  # clipping was at work
        for name, parameter in built.engine.parameters:
            torch.testing.assert_close(built.engine.state.full(parameter, "weight"), weights[name], rtol=1e-5, atol=1e-5)
        assert built.engine.state.steps == 3


@pytest.mark.parametrize("world, accumulation", [pytest.param(1, 1, marks=FULL), pytest.param(2, 1, marks=FULL), (2, 2)])
def test_z2_zero_stages_equal_plain_adamw(world, accumulation):
    run_ranks(world, check_engine, [0, 1, 2, 3], accumulation, timeout=180)


def check_bf16(stages, accumulation):
    """bf16 goes through other wrappers of DeepSpeed: a factor lost in one shows in the norm and, clipped, in the weights."""
    import model_support as support
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    rows = [support.global_batch(2 * world * accumulation, seed=s) for s in range(3)]
    for stage in stages:
        built = support.make_engine(stage, dtype=torch.bfloat16, accumulation=accumulation, overrides=["optim.grad_clip=0.2"])
        start = {n: built.engine.state.full(p, "weight").clone() for n, p in built.engine.parameters}
        losses, norms, weights = support.reference_run(3, rows, RATES, built.config)
        for step in range(3):
            micro, valid = support.micro_batches(rows[step], rank, world)
            result = built.engine.train_step(micro, valid, RATES[step])
            assert result.loss == pytest.approx(losses[step], rel=5e-3), (stage, step)
            assert result.grad_norm == pytest.approx(norms[step], rel=2e-2), (stage, step)
        ours = torch.cat([(built.engine.state.full(p, "weight") - start[n]).flatten() for n, p in built.engine.parameters])
        theirs = torch.cat([(weights[n] - start[n]).flatten() for n, _ in built.engine.parameters])
        assert float(ours.norm() / theirs.norm()) == pytest.approx(1.0, abs=2e-2), stage
        assert float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.99, stage


@pytest.mark.parametrize("world, accumulation", [pytest.param(1, 2, marks=FULL), (2, 2)])
def test_z2_bf16_follows_the_fp32_reference_at_every_stage(world, accumulation):
    run_ranks(world, check_bf16, [0, 1, 2, 3], accumulation, timeout=180)


def check_non_finite(stages, dtype_name):
    import model_support as support
    import torch.distributed as dist

    from mads.train.interface import NonFiniteError

    rank, world = dist.get_rank(), dist.get_world_size()
    rows = support.global_batch(2 * world, seed=3)
    micro, valid = support.micro_batches(rows, rank, world)
    for stage in stages:
        built = support.make_engine(stage, dtype=getattr(torch, dtype_name))
        engine = built.engine
        engine.train_step(micro, valid, 1e-3)
        before = {n: engine.state.full(p, "weight").clone() for n, p in engine.parameters}
        handle = engine.module.register_forward_hook(lambda m, i, o: tuple(x * float("nan") for x in o) if rank == 1 else o)
        with pytest.raises(NonFiniteError, match="loss"):
            engine.train_step(micro, valid, 1e-3)
        handle.remove()
        # The loss is finite, one rank's gradient is not.
        layer = engine.module.layers[0]
        handle = layer.register_forward_hook(lambda m, i, o: support.infinite_backward(o) if rank == 1 else o)
        with pytest.raises(NonFiniteError, match="norm"):
            engine.train_step(micro, valid, 1e-3)
        handle.remove()
        for n, p in engine.parameters:
            assert torch.equal(engine.state.full(p, "weight"), before[n]), (stage, n)
        assert engine.train_step(micro, valid, 1e-3).loss > 0  # and training can go on


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_g4_non_finite_on_one_rank_is_seen_by_all_before_the_step(dtype):
    run_ranks(2, check_non_finite, [0, 1, 2, 3], dtype, timeout=180)
