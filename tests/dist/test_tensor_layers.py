"""Tensor-parallel layers at sizes 1, 2 and 4 against plain PyTorch in float64, with random upstream gradients.

Every rank computes the whole reference itself (the generators are equal) and compares its slice.
"""

import itertools
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from harness import run_ranks
from tp_groups import WORLD, everyones, exact, groups

from mads.collectives import all_reduce_, copy_to_group, gather_dim, reduce_from_group
from mads.layout import layout_of, unshard
from mads.tensor import (
    ColumnParallelLinear,
    Objective,
    RowParallelLinear,
    Targets,
    VocabParallelEmbedding,
    VocabParallelHead,
)

DTYPE = torch.float64


def normal(*shape):
    return torch.randn(*shape, dtype=DTYPE)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def rows_of(parts, index, count):
    """Rows of a fused weight that a rank holds, from the definition: one equal slice of every part."""
    rows, start = [], 0
    for size in parts:
        rows += range(start + index * size // count, start + (index + 1) * size // count)
        start += size
    return rows


def positions(sequence_parallel, t, index, total=12):
    """The positions of a row that a rank holds, from the definition: equal runs, in rank order."""
    return [i for i in range(total) if not sequence_parallel or i * t // total == index]


def check_conjugate_pairs():
    for t, index, group in groups():
        torch.manual_seed(1)
        x, w = normal(3, 5, 8), normal(t, 8)  # each rank scales its copy by its own row of w
        dy = normal(t, 3, 5, 8)
        a = leaf(x)
        copied = copy_to_group(a, group)
        assert torch.equal(copied, x)
        copied.backward(dy[index] * w[index])
        exact(a.grad, (dy * w[:, None, None]).sum(0), "f: backward sums over the ranks")
        b = leaf(x * w[index])
        total = reduce_from_group(b, group)
        exact(total, (x * w[:, None, None]).sum(0), "g: forward sums over the ranks")
        total.backward(dy[0])
        exact(b.grad, dy[0], "g: backward is the identity")
        assert torch.equal(b.detach(), x * w[index]), "g changed its input"
        whole = normal(3, 5, 8)
        mine = slice(index * 8 // t, (index + 1) * 8 // t)
        c = leaf(whole[..., mine])
        gathered = gather_dim(c, group)
        exact(gathered, whole, "gather: forward")
        gathered.backward(dy[0])
        exact(c.grad, dy[0][..., mine], "gather: backward is this rank's slice, without a factor t")


def check_column():
    for t, index, group in groups():
        for parts in ((24,), (16, 4, 4)):
            torch.manual_seed(2)
            weight, bias, x, dy = leaf(normal(24, 6)), leaf(normal(24)), leaf(normal(3, 12, 6)), normal(3, 12, 24)
            expected = F.linear(x, weight, bias)
            expected.backward(dy)
            rows = rows_of(parts, index, t)
            for sp, overlap in itertools.product((False, True), (False, True)):
                what = f"column t={t} sp={sp} overlap={overlap}"
                place = dict(group=group, sequence_parallel=sp, overlap=overlap)
                layer = ColumnParallelLinear(6, 24, name="c", parts=parts, bias=True, dtype=DTYPE, **place)
                with torch.no_grad():
                    layer.weight.copy_(weight[rows])
                    layer.bias.copy_(bias[rows])
                held = positions(sp, t, index)
                mine = leaf(x[:, held])
                y = layer(mine)
                y.backward(dy[..., rows])
                exact(y, expected[..., rows], f"{what}: Y")
                exact(mine.grad, x.grad[:, held], f"{what}: dX")
                exact(layer.weight.grad, weight.grad[rows], f"{what}: dW")
                exact(layer.bias.grad, bias.grad[rows], f"{what}: db")
                assert torch.equal(mine.detach(), x.detach()[:, held])
                layout = layout_of(layer.weight)
                assert torch.equal(unshard(everyones(layer.weight, group), layout), weight), "unshard(shard(W)) is not W"


def check_row():
    for t, index, group in groups():
        torch.manual_seed(3)
        weight, bias, x, dy = leaf(normal(6, 8)), leaf(normal(6)), leaf(normal(3, 12, 8)), normal(3, 12, 6)
        expected = F.linear(x, weight, bias)
        expected.backward(dy)
        columns = slice(index * 8 // t, (index + 1) * 8 // t)
        for sp in (False, True):
            layer = RowParallelLinear(8, 6, name="r", group=group, bias=True, dtype=DTYPE, sequence_parallel=sp)
            with torch.no_grad():
                layer.weight.copy_(weight[:, columns])
                layer.bias.copy_(bias)
            held = positions(sp, t, index)
            mine = leaf(x[..., columns])
            y = layer(mine)
            y.backward(dy[:, held])
            exact(y, expected[:, held], f"row t={t} sp={sp}: Y with the bias added once")
            exact(mine.grad, x.grad[..., columns], f"row t={t} sp={sp}: dX")
            exact(layer.weight.grad, weight.grad[:, columns], f"row t={t} sp={sp}: dW")
            exact(layer.bias.grad, bias.grad, f"row t={t} sp={sp}: db, not multiplied by t")
            assert torch.equal(mine.detach(), x.detach()[..., columns])


def check_embedding():
    for t, index, group in groups():
        for vocab in (128, 131):
            torch.manual_seed(4)
            table, dy = leaf(normal(vocab, 6)), normal(3, 16, 6)
            width = -(-vocab // t)
            borders = [b for r in range(1, t) for b in (r * width - 1, r * width)]
            tokens = torch.randint(0, vocab, (3, 16))
            tokens[0, : len(borders) + 4] = torch.tensor(borders + [0, vocab - 1, 7, 7])  # borders, ends, a repeated token
            expected = F.embedding(tokens, table)
            expected.backward(dy)
            padded = F.pad(table.detach(), (0, 0, 0, width * t - vocab))
            mine = slice(index * width, (index + 1) * width)
            gradient = F.pad(table.grad, (0, 0, 0, width * t - vocab))
            for sp in (False, True):
                layer = VocabParallelEmbedding(vocab, 6, name="e", group=group, dtype=DTYPE, sequence_parallel=sp)
                if t > 1 and vocab == 131 and index == t - 1:
                    assert torch.all(layer.weight[-(width * t - vocab) :] == 0), "padding rows must start at 0"
                with torch.no_grad():
                    layer.weight.copy_(padded[mine])
                held = positions(sp, t, index, 16)
                y = layer(tokens)
                y.backward(dy[:, held])
                exact(y, expected[:, held], f"embedding t={t} vocab={vocab} sp={sp}")
                exact(layer.weight.grad, gradient[mine], f"embedding t={t} vocab={vocab} sp={sp}: dW, zero in the padding")
            with pytest.raises(ValueError, match=f"token {vocab} at position"):
                layer(torch.full((2, 2), vocab))


def _head_loss(*arguments):
    from mads.tensor import cross_entropy  # looked up at each call, for mutants

    return cross_entropy.vocab_parallel_cross_entropy(*arguments)


def _shard(weight, value, rows, here):
    """This rank's rows of a weight that is padded with `value`."""
    return F.pad(weight.detach(), (0, 0, 0, rows - len(weight)), value=value)[here]


def check_cross_entropy(smoothing=0.0, z_loss=0.0):
    """Losses, dX, dW and ghost products of a head that is cut over the group, a few rows at a time."""
    objective = Objective(smoothing, z_loss)
    for (t, index, group), rows in itertools.product(groups(), (7, 256)):
        for vocab, scale, sp in ((128, 3.0, False), (131, 3.0, True), (131, 1e4, False), (9, 1.0, True)):
            torch.manual_seed(5)
            width = -(-vocab // t)
            x, weight, upstream = leaf(normal(3, 16, 8)), leaf(normal(vocab, 8) * scale), normal(3, 16)
            labels, along = torch.randint(0, vocab, (3, 16)), normal(vocab, 8)
            everywhere = torch.tensor([min(r * width, vocab - 1) for r in range(t)] + [vocab - 1, -100])
            labels[1, : len(everywhere)] = everywhere
            logits = (x @ weight.t()).view(-1, vocab)
            expected = F.cross_entropy(logits, labels.view(-1), reduction="none", label_smoothing=smoothing).view(3, 16)
            expected = expected + z_loss * logits.logsumexp(-1).view(3, 16).square() * (labels != -100)
            (delta,) = torch.autograd.grad((expected * upstream).sum(), logits, retain_graph=True)
            (expected * upstream).sum().backward()
            # Huge values in the padded rows: they must neither win nor get a gradient.
            pad = partial(_shard, rows=width * t, here=slice(index * width, (index + 1) * width))
            held = positions(sp, t, index, 16)
            mine, own = leaf(x[:, held]), leaf(pad(weight, 1e6))
            what = f"cross entropy t={t} vocab={vocab} scale={scale:g} sp={sp} rows={rows}"
            with mock.patch("mads.kernels.linear_cross_entropy._CPU_ROWS", rows):
                total, losses = _head_loss(mine, own, Targets(labels, upstream, objective), vocab, group, sp)
                total.backward()
                asked = Targets(labels, upstream, objective, pad(along, 1e6))
                _, _, products = _head_loss(leaf(x[:, held]), own, asked, vocab, group, sp)
                nothing, _ = _head_loss(mine, own, Targets(torch.full_like(labels, -100)), vocab, group, sp)
            exact(losses, expected, what)
            exact(total, (expected * upstream).sum(), f"{what}: sum")
            exact(mine.grad, x.grad[:, held], f"{what}: dX")
            exact(own.grad, pad(weight.grad, 0.0), f"{what}: dW, zero in the padding")
            products = all_reduce_(products.clone(), group)
            exact(products, (delta * (x.detach() @ along.t()).view(-1, vocab)).sum(-1).view(3, 16), f"{what}: products")
            assert torch.all(losses[labels == -100] == 0)
            assert all(torch.equal(losses, other) for other in everyones(losses, group)), f"{what}: differs between ranks"
            assert nothing == 0 and all(torch.all(g == 0) for g in torch.autograd.grad(nothing, (mine, own)))
            if t > 1:
                with pytest.raises(ValueError, match="not the gathered weight"):
                    _head_loss(mine, weight.detach(), Targets(labels), vocab, group, sp)


def check_bf16_cross_entropy():
    for t, index, group in groups():
        torch.manual_seed(6)
        width = 128 // t
        x, weight, labels = (3 * normal(3, 15, 128)).bfloat16(), torch.eye(128).bfloat16(), torch.randint(0, 128, (3, 15))
        reference, upstream = leaf(x.double()), normal(3, 15)  # products with the identity are exact
        expected = F.cross_entropy(reference.view(-1, 128), labels.view(-1), reduction="none").view(3, 15)
        (expected * upstream).sum().backward()
        mine = leaf(x)
        total, losses = _head_loss(mine, weight[index * width : (index + 1) * width], Targets(labels, upstream), 128, group)
        total.backward()
        assert losses.dtype == torch.float32 and mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=2**-8, atol=1e-6)


def _drawn(group):
    """Layers with start values, by the class of their sharding."""
    common = dict(group=group, seed=9, std=0.5)
    return {
        "fused column": ColumnParallelLinear(8, 48, name="c", parts=(32, 8, 8), **common).weight,
        "row": RowParallelLinear(32, 8, name="r", **common).weight,
        "embedding": VocabParallelEmbedding(131, 8, name="e", **common).weight,
        "head": VocabParallelHead(8, 131, name="h", **common).weight,
    }


def check_init():
    reference = {kind: weight.detach() for kind, weight in _drawn(None).items()}
    for t, _index, group in groups():
        for kind, weight in _drawn(group).items():
            shards = everyones(weight, group)
            whole = unshard(shards, layout_of(weight))
            rows = layout_of(weight).padded_from or whole.shape[0]
            assert torch.equal(whole[:rows], reference[kind]), f"{kind} at t={t} is not the tensor of t=1"
            assert torch.all(whole[rows:] == 0), f"{kind} at t={t}: padding is not 0"
            for i in range(t):
                assert not any(torch.equal(shards[i], shards[j]) for j in range(i)), f"{kind} at t={t}: two equal shards"
            assert abs(float(whole[:rows].std()) / 0.5 - 1) < 0.1


def check_divisibility_errors():
    for t, _index, group in groups():
        if t == 1:
            continue
        uneven = 9 if t == 2 else 10  # the whole, 16, is divisible: the parts decide
        words = f"mlp.weight along axis 0 = {uneven} is not divisible by the tensor-parallel size {t}"
        with pytest.raises(ValueError, match=words):
            ColumnParallelLinear(4, 16, name="mlp", parts=(uneven, 16 - uneven), group=group)
        with pytest.raises(ValueError, match=f"down.weight along axis 1 = 7 is not divisible by the tensor-parallel size {t}"):
            RowParallelLinear(7, 4, name="down", group=group)


def check_default_group_is_out_of_reach():
    """The guard itself works, so that every other check here also shows that the layers use the group they are given."""
    for _t, _index, _group in groups():
        for use in (dist.get_world_size, lambda: dist.all_reduce(torch.ones(1)), lambda: dist.get_rank(dist.group.WORLD)):
            with pytest.raises(AssertionError, match="default process group"):
                use()


def test_t1_t2_collective_pairs_are_conjugate():
    run_ranks(WORLD, check_conjugate_pairs)


def test_t3_t5_column_parallel_linear_with_and_without_parts():
    run_ranks(WORLD, check_column)


def test_t4_row_parallel_linear_adds_its_bias_once():
    run_ranks(WORLD, check_row)


def test_v1_v2_vocab_parallel_embedding():
    run_ranks(WORLD, check_embedding)


def test_v3_v5_v6_v7_vocab_parallel_cross_entropy():
    run_ranks(WORLD, check_cross_entropy)


@pytest.mark.parametrize("smoothing, z_loss", [(0.1, 0.0), (0.0, 0.01), (0.2, 1e-4)])
def test_v4_label_smoothing_and_z_loss_over_the_logical_vocabulary(smoothing, z_loss):
    run_ranks(WORLD, check_cross_entropy, smoothing, z_loss)


def test_v3_bf16_logits_accumulate_in_float32_over_the_group():
    run_ranks(WORLD, check_bf16_cross_entropy)


def test_r2_start_values_are_the_same_for_every_size():
    run_ranks(WORLD, check_init)


def test_t8_uneven_sizes_are_named():
    run_ranks(WORLD, check_divisibility_errors)


def test_t9_the_default_group_is_out_of_reach_in_these_checks():
    run_ranks(WORLD, check_default_group_is_out_of_reach)
