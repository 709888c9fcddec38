"""Dropout over ranks: one mask where the same numbers are, another where each rank has its own, and recomputed bit for bit."""

import pytest
import torch
import torch.distributed as dist
from harness import run_ranks
from model_cases import even_batch, fields, small_config
from test_tensor_model import OBJECTIVE, build
from tp_groups import WORLD, everyones, exact, groups, placements

from mads.collectives import all_reduce_, gather_dim, group_size
from mads.model.layers import Attention
from mads.model.pieces import make_context
from mads.model.placement import ALONE, Placement
from mads.tensor.dropout import Draws, attention_seed, default_generator_seeded, hidden_dropout

DTYPE = torch.float64
KEYS = (11, 12, 11)


def check_hidden_masks():
    """A rank's mask is its slice of the one mask of the row, however the row is cut."""
    ones = torch.ones(3, 16, 64, dtype=DTYPE)
    whole = hidden_dropout(ones, 0.25, Draws(KEYS, 16, slice(0, 16)), "layers.0.mlp")
    assert torch.equal(whole[0], whole[2]) and not torch.equal(whole[0], whole[1]), "a row's mask is a function of its key"
    assert set(whole.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(float((whole == 0).double().mean()) - 0.25) < 0.03, "the gathered mask keeps the nominal rate"
    other = hidden_dropout(ones, 0.25, Draws(KEYS, 16, slice(0, 16)), "layers.1.mlp")
    assert not torch.equal(whole, other)
    for what, placement in placements():
        context = make_context(small_config(), placement, *fields(even_batch())[2:], torch.tensor(KEYS), DTYPE)
        where = placement.hidden_positions(16)
        mine = hidden_dropout(ones[:, where], 0.25, context.draws, "layers.0.mlp")
        assert torch.equal(mine, whole[:, where]), f"{what}: the mask is not the row's"
        if not placement.sequence_parallel:  # replicated region: one mask on all tensor-parallel ranks
            assert all(torch.equal(mine, theirs) for theirs in everyones(mine, placement.tp)), what


def _core(placement, draws, dropout=0.5):
    """The core of attention with the same Q, K and V on every rank, to be called; values of 1, so that an output is the share
    that was kept."""
    config = small_config(attention_dropout=dropout)
    layer = Attention(config, "layers.0.attention", 0.1, placement, dtype=DTYPE)
    torch.manual_seed(3)
    local = layer.heads + 2 * layer.kv_heads
    positions = 16 // group_size(placement.cp)
    qkv = torch.randn(3, positions, 1, 4, dtype=DTYPE).expand(-1, -1, local, -1).clone()
    qkv[:, :, -layer.kv_heads :] = 1.0
    context = make_context(config, placement, *fields(even_batch())[2:], draws, DTYPE)
    return lambda: layer._core(qkv, context)


def _attended(placement, draws):
    return _core(placement, draws)()


def check_attention_masks():
    draws = torch.tensor(KEYS)
    for what, placement in placements():
        exact(_attended(placement, None), torch.ones_like(_attended(placement, None)), f"{what}: without draws")
        kept = _attended(placement, draws)
        assert torch.equal(kept, _attended(placement, draws)), f"{what}: drawn again, another mask"
        assert not torch.equal(kept, _attended(placement, draws + 1)), f"{what}: other rows (data parallel), the same mask"
        if not placement.sequence_parallel:
            shares = kept.unflatten(-1, (-1, 4))[..., 0]
            whole = gather_dim(gather_dim(shares, placement.tp), placement.cp, 1)
            assert abs(float(whole.mean()) - 1) < 0.1, f"{what}: the kept share is {float(whole.mean())}"
        for axis in ("tp", "cp"):
            pieces = everyones(kept, getattr(placement, axis))
            for i in range(len(pieces)):
                for j in range(i):
                    assert not torch.equal(pieces[i], pieces[j]), f"{what}: {axis} ranks {j} and {i} drop the same entries"


def check_generators_are_left_alone():
    """Neither kind of dropout moves the default generator, and the keyed streams do not move each other."""
    for t, index, group in groups():
        placement = Placement(group)
        attend = _core(placement, torch.tensor(KEYS))
        draws = Draws(KEYS, 16, slice(0, 16), (index, 0))
        drop = lambda draws=draws: hidden_dropout(torch.ones(3, 16, 8), 0.5, draws, "layers.0.mlp")  # noqa: E731
        before = torch.get_rng_state()
        attended, dropped = attend(), drop()
        assert torch.equal(torch.get_rng_state(), before), f"t={t}: the default generator moved"
        torch.rand(7)
        assert torch.equal(drop(), dropped) and torch.equal(attend(), attended), f"t={t}: one stream moved another"
        with pytest.raises(KeyError), default_generator_seeded(torch.device("cpu"), attention_seed(draws, "x")):
            before = torch.get_rng_state()  # of the seeded stream
            raise KeyError
        assert not torch.equal(torch.get_rng_state(), before), f"t={t}: not put back after an error"


def _gradients(config, placement):
    model, upstream = build(config, placement), torch.linspace(-1, 2, 48, dtype=DTYPE).view(3, 16)
    total, loss = model(*fields(even_batch()), draws=torch.tensor(KEYS), objective=OBJECTIVE, weights=upstream)
    total.backward()
    return loss, {n: p.grad for n, p in model.named_parameters()}


def check_recomputation(variants=("selective", "full")):
    """With both kinds of dropout, whatever backward computes again gives the same bits; so does not overlapping."""
    config = small_config(hidden_dropout=0.25, attention_dropout=0.25)
    plain, _ = _gradients(small_config(), ALONE)
    for index, (what, base) in enumerate(placements()):
        loss, gradients = _gradients(config, base)
        assert not torch.equal(loss, plain)
        for recompute in variants:
            overlap = index % 2 == 0
            changed = Placement(base.tp, base.cp, base.sequence_parallel, overlap=overlap, recompute=recompute)
            again, others = _gradients(config, changed)
            assert torch.equal(loss, again), f"{what} {recompute}: loss"
            for name, gradient in gradients.items():
                assert torch.equal(gradient, others[name]), f"{what} {recompute} overlap={overlap}: gradient of {name}"


def check_replicas_draw_differently():
    """Rows of two data-parallel ranks have other keys, so other masks."""
    rank = dist.get_rank()
    mask = hidden_dropout(torch.ones(1, 16, 8), 0.5, Draws((100 + rank,), 16, slice(0, 16)), "embedding")
    pieces = everyones(mask, dist.group.WORLD)
    assert not any(torch.equal(pieces[i], pieces[j]) for i in range(WORLD) for j in range(i))
    total = all_reduce_((mask == 0).double().mean(), dist.group.WORLD) / WORLD
    assert abs(float(total) - 0.5) < 0.1


def test_r1_hidden_masks_are_slices_of_the_rows_mask_on_every_grid():
    run_ranks(WORLD, check_hidden_masks)


def test_r1_attention_masks_differ_between_ranks_and_keep_the_rate():
    run_ranks(WORLD, check_attention_masks)


def test_r1_data_parallel_ranks_drop_differently():
    run_ranks(WORLD, check_replicas_draw_differently)


def test_r5_r6_no_generator_is_moved():
    run_ranks(WORLD, check_generators_are_left_alone)


def test_r4_t10_recomputation_and_overlap_change_no_bit():
    run_ranks(WORLD, check_recomputation, timeout=120)
