"""The whole decoder under tensor parallelism and under DeepSpeed ZeRO 3 against one process."""

import pytest
import torch
import torch.distributed as dist
from harness import run_ranks
from model_cases import fields, ghost_product, pack, random_samples, small_batch, small_config
from tp_groups import WORLD, everyones, exact, groups

from mads.layout import layout_of, unshard
from mads.model.placement import Placement
from mads.model import Decoder


def _whole(tensor, parameter, group):
    """The logical tensor, without vocabulary padding, from this rank's piece."""
    layout = layout_of(parameter)
    full = unshard(everyones(tensor, group), layout)
    return full if layout.padded_from is None else full[: layout.padded_from]


def _run(config, group, batch, upstream, steps=3):
    """(model, loss, logits, gradients of the first step, losses over `steps` AdamW steps)."""
    model = Decoder(config, Placement(group), seed=4, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()))
    logits = model.logits(batch.tokens, batch.positions, batch.segments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses, gradients = [], None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*fields(batch))
        (loss * upstream).sum().backward()
        gradients = gradients or {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        losses.append(loss.detach())
    return model, logits, gradients, losses


def check_model(tied: bool):
    config = small_config(tie_embeddings=tied)
    batch, upstream = small_batch(), torch.randn(2, 15, dtype=torch.float64)
    ref_model, ref_logits, ref_gradients, ref_losses = _run(config, None, batch, upstream)
    ref_parameters = dict(ref_model.named_parameters())
    for t, index, group in groups():
        model, logits, gradients, losses = _run(config, group, batch, upstream)
        exact(logits, ref_logits, f"t={t}: logits")
        for step, (loss, expected) in enumerate(zip(losses, ref_losses)):
            exact(loss, expected, f"t={t}: loss at step {step}")
            assert all(torch.equal(loss, other) for other in everyones(loss, group))
        assert set(gradients) == set(ref_gradients)
        for name, parameter in model.named_parameters():
            exact(_whole(gradients[name], parameter, group), ref_gradients[name], f"t={t}: gradient of {name}")
            exact(_whole(parameter, parameter, group), ref_parameters[name], f"t={t}: {name} after 3 steps")


def check_ghost_products(tied: bool):
    """The sum over the ranks of the taps' products is <gradient, v>."""
    for t, index, group in groups():
        torch.manual_seed(7 + index)  # sharded pieces of v differ between ranks; replicated ones are made equal below
        model = Decoder(small_config(tie_embeddings=tied), placement=Placement(group), dtype=torch.float64)
        batch = small_batch()
        weights = torch.linspace(-1, 2, 30, dtype=torch.float64).view(2, 15)
        direction = {id(p): torch.randn_like(p) for p in model.parameters()}
        for parameter in model.parameters():
            if not layout_of(parameter).sharded:
                direction[id(parameter)] = everyones(direction[id(parameter)], group)[0]
        ghost = ghost_product(model, direction, lambda: (weights * model(*fields(batch))).sum())
        counted = [p for p in model.parameters() if layout_of(p).sharded or index == 0]
        product = sum((p.grad * direction[id(p)]).sum() for p in counted)
        exact(sum(everyones(ghost, group)), sum(everyones(product, group)), f"t={t}: ghost products")


def check_zero3(tied: bool, persistence: int):
    """Three steps at ZeRO 3 on two ranks equal plain AdamW on the union of their rows."""
    import deepspeed

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
    )
    reference = Decoder(config, seed=4)
    plain = torch.optim.AdamW(reference.parameters(), lr=0.01, eps=1e-4)
    for step in range(3):
        rows = [[s] for s in random_samples([20] * 4, 131, seed=step)]
        mine = pack(rows[2 * dist.get_rank() :][:2], 20)
        loss = engine(*fields(mine)).mean()
        engine.backward(loss)
        engine.step()
        plain.zero_grad()
        everything = reference(*fields(pack(rows, 20)))
        everything.mean().backward()
        plain.step()
        expected = everything[2 * dist.get_rank() :][:2].mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5, msg=lambda m: f"step {step}: {m}")
    engine.destroy()


@pytest.mark.parametrize("tied", [False, True])
def test_t7_loss_gradients_and_weights_after_three_steps_equal_one_rank(tied):
    run_ranks(WORLD, check_model, tied)


@pytest.mark.parametrize("tied", [False, True])
def test_ghost_products_sum_over_the_ranks_to_gradient_times_direction(tied):
    run_ranks(WORLD, check_ghost_products, tied)


@pytest.mark.parametrize("tied, persistence", [(True, 0), (True, 100_000), (False, 0)])
def test_z2_v8_zero_3_gathers_every_use_of_every_weight(tied, persistence):
    run_ranks(2, check_zero3, tied, persistence, timeout=120)
