"""Access to master weights and moments where no engine is needed: ZeRO 0, and the cutting of ZeRO 3's partitions."""

from types import SimpleNamespace

import pytest
import torch

from mads import collectives
from mads.train.optimizer_state import OptimizerState, ShardedState


def stepped(steps, dtype=torch.float32, masters=False, seed=0, fused=False):
    """Parameters, their fp32 masters, the optimizer over the masters, after some steps with known gradients."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((3, 4), (5,))]
    held = [p.detach().clone().float().requires_grad_() for p in parameters] if masters else parameters
    optimizer = torch.optim.AdamW([{"params": held[:1], "weight_decay": 0.1}, {"params": held[1:]}], lr=1e-2, fused=fused)
    for _ in range(steps):
        for h in held:
            h.grad = torch.randn(h.shape, generator=generator)
        optimizer.step()
    return parameters, OptimizerState(optimizer, dict(zip(parameters, held))), optimizer


@pytest.mark.parametrize("masters", [False, True])
def test_before_the_first_step_moments_are_zero_and_there_are_no_steps(masters):
    parameters, state, _ = stepped(0, masters=masters)
    assert state.steps == 0
    for p in parameters:
        assert torch.equal(state.full(p, "weight"), p)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state.full(p, key), torch.zeros(p.shape))


@pytest.mark.parametrize("dtype, masters", [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("fused", [False, True])
def test_state_moved_to_a_fresh_optimizer_takes_the_same_next_step(dtype, masters, fused):
    parameters, state, optimizer = stepped(3, dtype, masters, fused=fused)
    others, fresh, resumed = stepped(0, dtype, masters, seed=9, fused=fused)
    fresh.prepare_load(state.steps)
    for p, other in zip(parameters, others):
        for key in ("weight", "exp_avg", "exp_avg_sq"):
            fresh.load(other, key, state.full(p, key).clone())
    fresh.publish()
    assert fresh.steps == state.steps == 3
    for held, copied in zip(state._masters.values(), fresh._masters.values()):
        held.grad = torch.ones_like(held)
        copied.grad = torch.ones_like(copied)
    optimizer.step()
    resumed.step()
    for p, other in zip(parameters, others):
        assert torch.equal(state.full(p, "weight"), fresh.full(other, "weight"))
        assert torch.equal(state.full(p, "exp_avg_sq"), fresh.full(other, "exp_avg_sq"))


def test_publishing_rounds_the_masters_into_the_parameters():
    parameters, state, _ = stepped(0, torch.bfloat16, masters=True)
    value = torch.randn(3, 4)
    state.load(parameters[0], "weight", value)
    assert not torch.equal(parameters[0], value.bfloat16())
    state.publish()
    assert torch.equal(parameters[0], value.bfloat16()) and torch.equal(state.full(parameters[0], "weight"), value)


def test_loading_step_0_forgets_moments():
    parameters, state, _ = stepped(2)
    state.prepare_load(0)
    assert state.steps == 0 and torch.equal(state.full(parameters[0], "exp_avg"), torch.zeros(3, 4))


@pytest.mark.parametrize("ranks, numel", [(1, 7), (2, 7), (4, 7), (4, 2), (4, 8)])
def test_owned_pieces_of_all_ranks_are_the_tensor_without_padding(ranks, numel, monkeypatch):
    part = -(-numel // ranks)
    parameter = SimpleNamespace(ds_numel=numel, ds_tensor=SimpleNamespace(ds_numel=part))
    padded = torch.cat([torch.arange(float(numel)), torch.full((part * ranks - numel,), float("nan"))])
    pieces = []
    for rank in range(ranks):
        monkeypatch.setattr(collectives, "group_rank", lambda group, rank=rank: rank)
        length = ShardedState(SimpleNamespace(optimizer=None), None).owned_length(parameter)
        pieces.append(padded[rank * part : (rank + 1) * part][:length])
    assert torch.equal(torch.cat(pieces), torch.arange(float(numel)))
