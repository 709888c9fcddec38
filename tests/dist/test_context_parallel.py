"""Context parallelism: the exchange of heads for positions against its definition, DeepSpeed-Ulysses and full attention."""

import pytest
import torch
import torch.distributed as dist
from harness import run_ranks
from model_cases import even_batch, fields, small_config
from tp_groups import SIZES, WORLD, cp_group, everyones, exact, no_default_group

from mads.collectives import all_to_all, slice_of
from mads.kernels.packed_attention import Segments, packed_attention
from mads.model import Decoder
from mads.model.layers import gather_heads, scatter_heads
from mads.model.placement import ALONE, Placement

DTYPE = torch.float64


def normal(*shape):
    return torch.randn(*shape, dtype=DTYPE)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def context_groups():
    for c in SIZES:
        group = cp_group(1, c)
        with no_default_group():
            yield c, dist.get_rank(group), group


def check_exchange():
    """Slices along one dimension go out, whole along the other they come; the gradient takes the way back."""
    for c, index, group in context_groups():
        torch.manual_seed(1)
        x, dy = normal(c, 3, 5, 8, 2), normal(c, 3, 5 * c, 8 // c, 2)  # what each rank has, and its upstream gradient
        mine = leaf(x[index])
        y = all_to_all(mine, group, scatter=2, gather=1)
        width = 8 // c
        exact(y, torch.cat([x[r][:, :, index * width : (index + 1) * width] for r in range(c)], 1), f"cp={c}: all-to-all")
        y.backward(dy[index])
        back = torch.cat([dy[r][:, index * 5 : (index + 1) * 5] for r in range(c)], 2)
        exact(mine.grad, back, f"cp={c}: gradient of the all-to-all")
        assert torch.equal(mine.detach(), x[index])
        if c > 1:
            with pytest.raises(ValueError, match=rf"size 9 of dimension 2 of .* is not divisible by the {c} ranks"):
                all_to_all(normal(3, 5, 9), group, scatter=2, gather=1)


def _attention(q, k, v, segments, group):
    q, k, v = scatter_heads((q, k, v), group)
    return gather_heads(packed_attention(q, k, v, segments), group)


def check_ulysses():
    """Outputs and gradients at this rank's positions: ours, DeepSpeed's DistributedAttention, and attention on one process."""
    import deepspeed
    from deepspeed.sequence.layer import DistributedAttention

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False, dist_init_required=False)
    segments = Segments.build(even_batch().segments, "sdpa", DTYPE)
    for c in SIZES:
        group = cp_group(1, c)
        where = slice_of(16, group)
        for kv_heads in (8, 4):
            torch.manual_seed(2)
            whole, dy = [leaf(normal(3, 16, n, 6)) for n in (8, kv_heads, kv_heads)], normal(3, 16, 8, 6)
            expected = packed_attention(*whole, segments)
            wanted = torch.autograd.grad(expected, whole, dy)
            mine = [leaf(t[:, where]) for t in whole]
            with no_default_group():
                out = _attention(*mine, segments, group)
                gradients = torch.autograd.grad(out, mine, dy[:, where])
            exact(out, expected[:, where], f"cp={c} kv={kv_heads}: attention")
            for name, ours, theirs in zip("qkv", gradients, wanted):
                exact(ours, theirs[:, where], f"cp={c} kv={kv_heads}: d{name}")
            if c > 1 and kv_heads == 8:
                theirs = DistributedAttention(lambda q, k, v: packed_attention(q, k, v, segments), group, 2, 1)
                again = [leaf(t[:, where]) for t in whole]
                reference = theirs(*again, 0)
                assert torch.equal(out, reference), f"cp={c}: not DeepSpeed's"
                for ours, peer in zip(gradients, torch.autograd.grad(reference, again, dy[:, where])):
                    assert torch.equal(ours, peer), f"cp={c}: not DeepSpeed's gradient"


def check_losses_of_other_ranks_are_zero():
    config, batch = small_config(), even_batch()
    _, expected = Decoder(config, ALONE, dtype=DTYPE)(*fields(batch))
    for c, _index, group in context_groups():
        _, losses = Decoder(config, Placement(None, group), dtype=DTYPE)(*fields(batch))
        where = slice_of(16, group)
        exact(sum(everyones(losses, group)), expected, f"cp={c}: all positions")
        exact(losses[:, where], expected[:, where], f"cp={c}: this rank's positions")
        elsewhere = torch.ones(16, dtype=torch.bool)
        elsewhere[where] = False
        assert torch.all(losses[:, elsewhere] == 0)


def check_heads_that_do_not_fit():
    for c, _index, group in context_groups():
        if c == 4:
            words = "model.num_key_value_heads = 2 is not divisible by tensor-parallel size 1 x context-parallel size 4 = 4"
            with pytest.raises(ValueError, match=words):
                Decoder(small_config(num_key_value_heads=2), Placement(None, group))
            with pytest.raises(ValueError, match=r"\[8, 2, 2\] heads cannot be cut over 4 context-parallel ranks"):
                scatter_heads((normal(1, 4, 8, 2), normal(1, 4, 2, 2), normal(1, 4, 2, 2)), group)
        Decoder(small_config(num_key_value_heads=4), Placement(None, group))


def test_t1_all_to_all_is_its_definition_and_its_gradient_the_way_back():
    run_ranks(WORLD, check_exchange)


def test_t7_ulysses_equals_deepspeeds_bit_for_bit_and_full_attention():
    run_ranks(WORLD, check_ulysses)


def test_t7_losses_at_other_ranks_positions_are_zero():
    run_ranks(WORLD, check_losses_of_other_ranks_are_zero)


def test_t6_t8_heads_that_cannot_be_cut_are_named():
    run_ranks(WORLD, check_heads_that_do_not_fit)
