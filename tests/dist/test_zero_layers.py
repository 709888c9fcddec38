"""The decoder under DeepSpeed ZeRO with what backward does by itself: sums over tensor-parallel ranks, and recomputation."""

import pytest
import torch
from harness import run_ranks
from model_cases import fields, pack, plain_losses, random_samples, small_config
from test_tensor_model import OBJECTIVE
from topologies import topology

from mads.layout import layout_of, shard
from mads.model import Decoder
from mads.model.placement import Placement
from mads.topology import MPU
from mads.train.ghost import ghost_products

ROWS, LENGTH = 2, 20  # of a data-parallel rank


def _engine(model, stage, topology_):
    import deepspeed

    # Plain gradient descent: Adam would hide a gradient that is twice too large, for it divides by its size.
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        config={
            "train_micro_batch_size_per_gpu": ROWS,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
        },
        mpu=MPU(topology_),
    )
    return engine


def _gathered(parameter, stage=3):
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3)


def check_training(stage: int, sizes: dict, options: dict, tied: bool):
    """Three steps equal plain gradient descent of one process on the rows of all replicas: losses and every weight."""
    topology_ = topology(**sizes)
    config = small_config(tie_embeddings=tied, init_std=0.1, hidden_dropout=0.25)
    placement = Placement(topology_.group("tp"), topology_.group("cp"), **options)
    model = Decoder(config, placement, seed=4)
    engine = _engine(model, stage, topology_)
    reference = Decoder(config, seed=4)
    plain = torch.optim.SGD(reference.parameters(), lr=0.5)
    dp, replicas = topology_.coordinate("dp"), topology_.size("dp")
    for step in range(3):
        rows = [[s] for s in random_samples([LENGTH] * ROWS * replicas, 131, seed=step)]
        keys = torch.arange(len(rows)) + 100 * step
        mine = slice(dp * ROWS, (dp + 1) * ROWS)
        total, _ = engine(*fields(pack(rows[mine], LENGTH)), draws=keys[mine], objective=OBJECTIVE)
        loss = total / (ROWS * LENGTH)
        engine.backward(loss)
        engine.step()
        plain.zero_grad()
        everything = plain_losses(reference, pack(rows, LENGTH), keys, OBJECTIVE)
        everything.mean().backward()
        plain.step()
        expected = everything[mine].mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5, msg=lambda m, step=step: f"step {step}: {m}")
    whole = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        with _gathered(parameter, stage):
            layout, full = layout_of(parameter), whole[name].detach()
            if layout.padded_from:
                full = torch.nn.functional.pad(full, (0, 0, 0, parameter.shape[0] * topology_.size("tp") - full.shape[0]))
            part = shard(full, layout, topology_.coordinate("tp"), topology_.size("tp"))
            what = f"ZeRO {stage} {sizes} {options}: {name}"
            torch.testing.assert_close(parameter.detach(), part, rtol=1e-5, atol=2e-6, msg=lambda m, what=what: f"{what}: {m}")
    engine.destroy()


def check_ghost_products(recompute: str):
    """Taps under ZeRO 3 with recomputation, whose second pass through the hooks must not count twice; training goes on."""
    topology_ = topology(dp=2)
    config = small_config(tie_embeddings=True, init_std=0.1)
    model = Decoder(config, Placement(recompute=recompute), seed=4)
    reference = Decoder(config, seed=4)
    direction = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for n, p in reference.named_parameters()}
    engine = _engine(model, 3, topology_)
    batch = pack([random_samples([5, 15], 131, seed=topology_.coordinate("dp"))], LENGTH)
    names = {parameter: name for module in (model, reference) for name, parameter in module.named_parameters()}
    for _ in range(2):
        found = ghost_products(engine.module, batch, lambda parameter: direction[names[parameter]])
        expected = ghost_products(reference, batch, lambda parameter: direction[names[parameter]])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        engine.backward(engine(*fields(batch))[0] / LENGTH)
        engine.step()
        for name, parameter in model.named_parameters():
            with _gathered(parameter):
                dict(reference.named_parameters())[name].data.copy_(parameter)
    engine.destroy()


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_ghost_products_under_zero_3_with_recomputation(recompute):
    run_ranks(2, check_ghost_products, recompute, timeout=120)


@pytest.mark.parametrize("recompute, tied", [("full", True), ("selective", False)])
def test_r4_z2_recomputation_under_zero_3(recompute, tied):
    run_ranks(2, check_training, 3, {"dp": 2}, {"recompute": recompute}, tied, timeout=120)


@pytest.mark.parametrize("stage, recompute", [(1, "none"), (2, "full"), (3, "none"), (3, "full")])
def test_s3_z2_sequence_parallel_under_zero(stage, recompute):
    options = {"sequence_parallel": True, "recompute": recompute}
    run_ranks(4, check_training, stage, {"dp": 2, "tp": 2}, options, stage == 2, timeout=120)
