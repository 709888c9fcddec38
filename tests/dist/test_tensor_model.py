"""The whole decoder under tensor parallelism and under DeepSpeed ZeRO 3 against one process."""

import pytest
import torch
import torch.distributed as dist
from harness import run_ranks
from model_cases import even_batch, fields, pack, plain_losses, random_samples, small_batch, small_config
from tp_groups import WORLD, everyones, exact, placements

from mads.collectives import all_reduce_, group_rank, group_size
from mads.data.batch import sum_by_sample
from mads.layout import layout_of, shard, unshard
from mads.model import Decoder
from mads.model.placement import ALONE
from mads.tensor import Objective
from mads.train.ghost import ghost_products


def _whole(tensor, parameter, group):
    """The logical tensor, without vocabulary padding, from this rank's piece."""
    layout = layout_of(parameter)
    full = unshard(everyones(tensor, group), layout)
    return full if layout.padded_from is None else full[: layout.padded_from]


DROPOUT = dict(hidden_dropout=0.25)
OBJECTIVE = Objective(label_smoothing=0.1, z_loss=1e-2)


def build(config, placement):
    """A decoder in float64 whose norm weights are not all ones."""
    model = Decoder(config, placement, seed=4, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()))
    return model


def _run(config, placement, batch, upstream, steps=3):
    """(model, loss, logits, gradients of the first step, losses over `steps` AdamW steps). Losses and gradients are summed over
    context parallelism, as the engine does."""
    model = build(config, placement)
    logits = model.logits(batch.tokens, batch.positions, batch.segments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses, gradients = [], None
    for step in range(steps):
        optimizer.zero_grad()
        total, loss = model(*fields(batch), draws=torch.arange(3) + 10 * step, objective=OBJECTIVE, weights=upstream)
        total.backward()
        for parameter in model.parameters():
            all_reduce_(parameter.grad, placement.cp)
        gradients = gradients or {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        losses.append(all_reduce_(loss.clone(), placement.cp))
    return model, logits, gradients, losses


def check_model(tied: bool):
    """Loss, gradients and weights after three steps, with dropout, label smoothing and z-loss, on every grid."""
    config = small_config(tie_embeddings=tied, **DROPOUT)
    batch, upstream = even_batch(), torch.randn(3, 16, dtype=torch.float64)
    ref_model, ref_logits, ref_gradients, ref_losses = _run(config, ALONE, batch, upstream)
    ref_parameters = dict(ref_model.named_parameters())
    for what, placement in placements():
        model, logits, gradients, losses = _run(config, placement, batch, upstream)
        exact(logits, ref_logits, f"{what}: logits")
        for step, (loss, expected) in enumerate(zip(losses, ref_losses)):
            exact(loss, expected, f"{what}: loss at step {step}")
            assert all(torch.equal(loss, other) for other in everyones(loss, placement.tp))
        assert set(gradients) == set(ref_gradients)
        for name, parameter in model.named_parameters():
            exact(_whole(gradients[name], parameter, placement.tp), ref_gradients[name], f"{what}: gradient of {name}")
            exact(_whole(parameter, parameter, placement.tp), ref_parameters[name], f"{what}: {name} after 3 steps")


def check_rows_that_no_grid_divides():
    """15 positions: tensor parallelism does not mind, the others say so with the numbers."""
    batch, config = small_batch(), small_config()
    _, expected = Decoder(config, seed=4, dtype=torch.float64)(*fields(batch))
    for what, placement in placements():
        model = Decoder(config, placement, seed=4, dtype=torch.float64)
        count = group_size(placement.cp) * (group_size(placement.tp) if placement.sequence_parallel else 1)
        if count == 1:
            exact(model(*fields(batch))[1], expected, what)
        else:
            with pytest.raises(ValueError, match=f"15 positions cannot be cut into .* = {count} equal slices"):
                model(*fields(batch))


def check_ghost_products(tied: bool, recompute: str = "none"):
    """The sum over the ranks of the taps' products is <gradient of the sample on one process, v>."""
    config, batch = small_config(tie_embeddings=tied), even_batch()
    alone = build(config, ALONE)
    whole = {n: torch.randn_like(p) for n, p in alone.named_parameters()}
    losses = sum_by_sample(plain_losses(alone, batch), batch)
    gradients = [torch.autograd.grad(loss, list(alone.parameters()), retain_graph=True) for loss in losses]
    expected = torch.stack([sum((g * v).sum() for g, v in zip(each, whole.values())) for each in gradients])
    for what, placement in placements(recompute=recompute):
        model = build(config, placement)
        index, count = group_rank(placement.tp), group_size(placement.tp)
        direction = {}
        for name, parameter in model.named_parameters():
            full = whole[name]
            if layout_of(parameter).padded_from:
                full = torch.cat([full, full.new_zeros(parameter.shape[0] * count - full.shape[0], full.shape[1])])
            direction[parameter] = shard(full, layout_of(parameter), index, count)
        found = ghost_products(model, batch, direction.__getitem__)
        for group in (placement.tp, placement.cp):
            all_reduce_(found, group)
        exact(found, expected, f"{what}: ghost products")


def check_zero3(tied: bool, persistence: int):
    """Three steps at ZeRO 3 on two ranks equal plain AdamW on the union of their rows."""
    import deepspeed
    from topologies import topology

    from mads.topology import MPU

    config = small_config(tie_embeddings=tied, init_std=0.05)
    model = Decoder(config, seed=4)
    # A large eps: Adam's first steps are lr * sign(g), which would turn the rounding of a tiny gradient into a whole step.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": persistence},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
        },
        mpu=MPU(topology(dp=dist.get_world_size()), 3),  # without one DeepSpeed goes on with that of the engine before
    )
    reference = Decoder(config, seed=4)
    plain = torch.optim.AdamW(reference.parameters(), lr=0.01, eps=1e-4)
    for step in range(3):
        rows = [[s] for s in random_samples([20] * 4, 131, seed=step)]
        mine = pack(rows[2 * dist.get_rank() :][:2], 20)
        total, _ = engine(*fields(mine))
        loss = total / 40
        engine.backward(loss)
        engine.step()
        plain.zero_grad()
        everything = plain_losses(reference, pack(rows, 20))
        everything.mean().backward()
        plain.step()
        expected = everything[2 * dist.get_rank() :][:2].mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=step: f"step {n}: {m}")
    engine.destroy()


@pytest.mark.parametrize("tied", [False, True])
def test_t7_s2_loss_gradients_and_weights_after_three_steps_equal_one_rank_on_every_grid(tied):
    run_ranks(WORLD, check_model, tied, timeout=120)


def test_s4_rows_that_cannot_be_cut_are_named():
    run_ranks(WORLD, check_rows_that_no_grid_divides)


@pytest.mark.parametrize("tied, recompute", [(False, "none"), (True, "full"), (False, "selective")])
def test_ghost_products_sum_over_the_ranks_to_gradient_times_direction_on_every_grid(tied, recompute):
    run_ranks(WORLD, check_ghost_products, tied, recompute, timeout=120)


@pytest.mark.parametrize("tied, persistence", [(True, 0), (True, 100_000), (False, 0)])
def test_z2_v8_zero_3_gathers_every_use_of_every_weight(tied, persistence):
    run_ranks(2, check_zero3, tied, persistence, timeout=120)
