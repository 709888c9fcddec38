"""Sequence parallelism and the overlapped backward, piece by piece, in float64 with random upstream gradients."""

import time
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from harness import run_ranks
from tp_groups import WORLD, everyones, exact, groups

from mads.collectives import Pending, all_reduce_, gather_sequence, reduce_scatter_sequence
from mads.tensor import ColumnParallelLinear, RMSNorm, RowParallelLinear
from mads.tensor.column import _Product

DTYPE = torch.float64


def normal(*shape):
    return torch.randn(*shape, dtype=DTYPE)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def cut(x, index, t):
    """This rank's positions of [B, S, ...]."""
    length = x.shape[1] // t
    return x[:, index * length : (index + 1) * length]


def check_pairs():
    """All-gather and reduce-scatter from their definitions; the one's backward is the other."""
    for t, index, group in groups():
        torch.manual_seed(1)
        whole, partial = normal(3, 12, 5), normal(t, 3, 12, 5)  # each rank's own addend is a row of `partial`
        a = leaf(cut(whole, index, t))
        gathered = gather_sequence(a, group)
        exact(gathered, whole, f"t={t}: all-gather along the sequence")
        gathered.backward(partial[index])
        exact(a.grad, cut(partial.sum(0), index, t), f"t={t}: its backward sums what each rank did with the whole")
        b = leaf(partial[index])
        mine = reduce_scatter_sequence(b, group)
        exact(mine, cut(partial.sum(0), index, t), f"t={t}: reduce-scatter along the sequence")
        mine.backward(cut(whole, index, t))
        exact(b.grad, whole, f"t={t}: its backward gathers")
        assert torch.equal(b.detach(), partial[index]) and torch.equal(a.detach(), cut(whole, index, t))
        if t > 1:
            with pytest.raises(ValueError, match=rf"size 13 of dimension 1 of \(3, 13, 5\) is not divisible by the {t} ranks"):
                reduce_scatter_sequence(normal(3, 13, 5), group)


def check_replicated_parameters():
    """The gradients of a norm's weight and of a row's bias are the reference's on every rank: summed over the positions' holders,
    and only once. A sharded weight's gradient is this rank's alone."""
    for t, index, group in groups():
        torch.manual_seed(2)
        scale, weight, bias = leaf(normal(8)), leaf(normal(6, 8)), leaf(normal(6))
        x, dy = leaf(normal(3, 12, 8)), normal(3, 12, 6)
        F.linear(F.rms_norm(x, (8,), scale, 1e-5), weight, bias).backward(dy)
        place = dict(group=group, sequence_parallel=True, dtype=DTYPE)
        norm, row = RMSNorm(8, name="n", **place), RowParallelLinear(8, 6, name="r", bias=True, **place)
        columns = slice(index * 8 // t, (index + 1) * 8 // t)
        with torch.no_grad():
            norm.weight.copy_(scale)
            row.weight.copy_(weight[:, columns])
            row.bias.copy_(bias)
        mine = leaf(cut(x, index, t))
        y = row(gather_sequence(norm(mine), group)[..., columns])
        y.backward(cut(dy, index, t))
        exact(mine.grad, cut(x.grad, index, t), f"t={t}: dX")
        exact(norm.weight.grad, scale.grad, f"t={t}: replicated norm weight")
        exact(row.bias.grad, bias.grad, f"t={t}: replicated row bias")
        exact(row.weight.grad, weight.grad[:, columns], f"t={t}: sharded weight, not summed over the group")
        assert all(torch.equal(norm.weight.grad, other) for other in everyones(norm.weight.grad, group))


def _gradients(x, weight, dy, index, t, group, sequence_parallel, overlap, late=0.0):
    layer = ColumnParallelLinear(
        40, 24, name="c", group=group, bias=True, dtype=DTYPE, sequence_parallel=sequence_parallel, overlap=overlap
    )
    rows = slice(index * 24 // t, (index + 1) * 24 // t)
    with torch.no_grad():
        layer.weight.copy_(weight[rows])
    mine = leaf(cut(x, index, t) if sequence_parallel else x)
    y = layer(mine)
    time.sleep(late * index)  # the first rank is alone in the collective for a while: not to wait for the others shows
    y.backward(dy[..., rows])
    return mine.grad, layer.weight.grad, layer.bias.grad


def check_overlap_is_exact():
    """Overlapped, in turn, and plain autograd operations: the same bits."""
    wrong = []  # judged at the end, so that a rank that sees it leaves no other waiting
    for t, index, group in groups():
        for sp in (False, True):
            torch.manual_seed(3)
            x, weight, dy = normal(3, 12, 40), normal(24, 40), normal(3, 12, 24)
            in_turn = _gradients(x, weight, dy, index, t, group, sp, overlap=False)
            overlapped = _gradients(x, weight, dy, index, t, group, sp, overlap=True, late=0.05)
            for name, a, b in zip(("dX", "dW", "db"), in_turn, overlapped):
                wrong += [] if torch.equal(a, b) else [f"t={t} sp={sp}: {name} differs when the collective is overlapped"]
            rows = slice(index * 24 // t, (index + 1) * 24 // t)
            mine, plain = leaf(cut(x, index, t) if sp else x), leaf(weight[rows])
            if sp:
                F.linear(gather_sequence(mine, group), plain).backward(dy[..., rows])
            else:
                F.linear(mine, plain).backward(dy[..., rows])
                all_reduce_(mine.grad, group)
            same = torch.equal(in_turn[0], mine.grad) and torch.equal(in_turn[1], plain.grad)
            wrong += [] if same else [f"t={t} sp={sp}: not the gradient of plain operations"]
    assert not wrong, wrong


def check_overlap_overlaps():
    """The reduction of dX is under way when dW is computed, and waited for afterwards; in turn it is over before."""
    for t, index, group in groups():
        for sp in (False, True) if t > 1 else ():
            for overlap in (False, True):
                events = []
                wait, product = Pending.wait, _Product.backward

                def waiting(pending, events=events, wait=wait):
                    events.append(("wait", tuple(pending.result.shape)))
                    return wait(pending)

                def weighing(ctx, grad, events=events, product=product):
                    events.append(("dW", None))
                    return product(ctx, grad)

                x, weight, dy = normal(3, 12, 40), normal(24, 40), normal(3, 12, 24)
                patches = mock.patch.object(Pending, "wait", waiting), mock.patch.object(_Product, "backward", weighing)
                with patches[0], patches[1]:
                    dx, *_ = _gradients(x, weight, dy, index, t, group, sp, overlap)
                waits = [i for i, event in enumerate(events) if event == ("wait", tuple(dx.shape))]
                (weight_gradient,) = [i for i, (kind, _) in enumerate(events) if kind == "dW"]
                if overlap:
                    assert waits and min(waits) > weight_gradient, f"t={t} sp={sp}: {events}"
                else:
                    assert waits[0] < weight_gradient, f"t={t} sp={sp}: {events}"


def check_no_weight_gradient_unless_asked():
    """torch.autograd.grad with respect to activations, as ghost products call it, computes no dW."""
    for t, index, group in groups():
        for sp in (False, True) if t > 1 else ():
            torch.manual_seed(4)
            layer = ColumnParallelLinear(40, 24, name="c", group=group, dtype=DTYPE, sequence_parallel=sp)
            x = leaf(cut(normal(3, 12, 40), index, t) if sp else normal(3, 12, 40))
            refusal = AssertionError("dW was computed though nobody asked for it")
            with mock.patch.object(_Product, "backward", mock.Mock(side_effect=refusal)):
                (found,) = torch.autograd.grad(layer(x), x, torch.ones(3, 12, 24 // t, dtype=DTYPE))
                with pytest.raises(AssertionError, match="nobody asked"):
                    layer(x).sum().backward()
            total = all_reduce_(layer.weight.detach().sum(0), group)
            exact(found, total.expand(found.shape), f"t={t} sp={sp}: dX")


def check_kept_between_passes():
    """Under sequence parallelism a column layer keeps its slice of the input, not the gathered whole."""
    for t, index, group in groups():
        layer = ColumnParallelLinear(40, 24, name="c", group=group, dtype=DTYPE, sequence_parallel=True)
        x = leaf(cut(normal(3, 12, 40), index, t))
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = layer(x)
        kept.pop(layer.weight.untyped_storage().data_ptr(), None)
        assert sum(kept.values()) == 3 * 12 * 40 * 8 // t
        assert y.shape == (3, 12, 24 // t)


def test_s1_all_gather_and_reduce_scatter_are_conjugate():
    run_ranks(WORLD, check_pairs)


def test_s3_s5_replicated_gradients_are_summed_once_and_sharded_ones_not():
    run_ranks(WORLD, check_replicated_parameters)


def test_t10_overlapped_backward_is_the_synchronous_one_bit_for_bit():
    run_ranks(WORLD, check_overlap_is_exact)


def test_t10_the_reduction_runs_while_the_weight_gradient_is_computed():
    run_ranks(WORLD, check_overlap_overlaps)


def test_t10_activation_gradients_alone_cost_no_weight_gradient():
    run_ranks(WORLD, check_no_weight_gradient_unless_asked)


def test_s1_column_layers_keep_their_slice_of_the_sequence_only():
    run_ranks(WORLD, check_kept_between_passes)
