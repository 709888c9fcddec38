"""Mutants of sequence and context parallelism, overlap, dropout, recomputation and the objective, as in test_mutants.py."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from model_cases import even_batch
from mutants import Mutant
from test_mutants import check_caught, outcome

from mads.kernels.packed_attention import Segments

LAYERS, MODEL = "dist/test_tensor_layers.py", "dist/test_tensor_model.py"
SEQUENCE, CONTEXT, DROPOUT = "dist/test_sequence_parallel.py", "dist/test_context_parallel.py", "dist/test_dropout_ranks.py"


def _mine(x, group, dim=1):
    return x.chunk(torch.distributed.get_world_size(group), dim)[torch.distributed.get_rank(group)]


def _summed_twice(original):
    from mads.collectives import copy_to_group

    return lambda self, parameter: copy_to_group(original(self, parameter), self.group if self.sequence_parallel else None)


def _sliced_not_reduced(original):
    from mads.collectives import Pending

    return lambda x, group: Pending(_mine(x, group).contiguous(), None)


def _local_vocabulary(original):
    return lambda first, valid, vocab_size: original(first, valid, max(1, valid))


def _mean_of_local_logits(original):
    def combine(self, own):
        every = original(self, own)
        return torch.stack([every[0], every[1], own[2]])

    return combine


def _local_z_loss(original):
    def cross_entropy(x, weight, labels, columns, *rest, z_loss=0.0, **options):
        result = original(x, weight, labels, columns, *rest, **options)
        local = (x @ weight.t())[:, : max(1, columns.valid)].logsumexp(-1)
        result.losses += z_loss * local.square() * (labels != -100)
        return result

    return cross_entropy


def _last_rows_alone(original):
    def cross_entropy(x, weight, labels, columns, scale=None, **options):
        result = original(x, weight, labels, columns, scale, **options)
        if result.dw is not None:
            rows = slice(len(x) // 7 * 7, None)
            result.dw = original(x[rows], weight, labels[rows], columns, None if scale is None else scale[rows], **options).dw
        return result

    return cross_entropy


def _unweighted(original):
    return lambda x, weight, labels, columns, scale=None, **options: original(x, weight, labels, columns, None, **options)


def _attention_of_local_positions(original):
    def core(self, qkv, context):
        ids = even_batch().segments  # the check's
        alone = copy.copy(self)
        alone.placement = replace(self.placement, cp=None)
        local = Segments.dense(ids[:, self.placement.positions(ids.shape[1])], qkv.dtype)
        return original(alone, qkv, replace(context, segments=local))

    return core


def _heads_cut_as_one_block(original):
    def scatter_heads(parts, group):
        from mads.collectives import all_to_all, group_size

        heads = [part.shape[2] // group_size(group) for part in parts]
        return all_to_all(torch.cat(parts, 2), group, scatter=2, gather=1).split(heads, 2)

    return scatter_heads


def _mask_of_the_slice(original):
    def hidden_dropout(x, probability, draws, name):
        if draws is not None:
            draws = replace(draws, total=x.shape[1], where=slice(0, x.shape[1]))
        return original(x, probability, draws, name)

    return hidden_dropout


def _other_mask_when_recomputed(original):
    def recomputed(enabled, function, *arguments):
        calls = []

        def forgetful(*arguments):
            calls.append(1)
            if len(calls) > 1 and len(arguments) == 2:
                x, context = arguments
                draws = replace(context.draws, keys=tuple(key + 1 for key in context.draws.keys))
                arguments = x, replace(context, draws=draws)
            return function(*arguments)

        return original(enabled, forgetful, *arguments)

    return recomputed


def _seeded_for_good(original):
    @contextmanager
    def default_generator_seeded(device, seed):
        torch.manual_seed(seed)
        yield

    return default_generator_seeded


def _not_waited_for(original):
    def input_gradient(self):
        pending, self._input_gradient = self._input_gradient, None
        return pending.result.clone()

    return input_gradient


def _waited_for_at_once(original):
    def start_to_reduce(self, partial):
        original(self, partial)
        return self._input_gradient.wait()

    return start_to_reduce


MUTANTS = [
    Mutant(
        "S3: a norm's weight keeps the gradient of its rank's positions",
        "mads.tensor.layers:TensorLayer._replicated",
        lambda original: lambda self, parameter: parameter,
        f"{SEQUENCE}:check_replicated_parameters",
        world=4,
    ),
    Mutant(
        "S3: a norm's weight has its gradient summed twice",
        "mads.tensor.layers:TensorLayer._replicated",
        _summed_twice,
        f"{SEQUENCE}:check_replicated_parameters",
        world=4,
    ),
    Mutant(
        "S1: reduce-scatter takes a slice without a sum",
        "mads.collectives:start_reduce_scatter",
        _sliced_not_reduced,
        f"{SEQUENCE}:check_pairs",
        world=4,
    ),
    Mutant(
        "S1: a row layer keeps its slice of its own addend",
        "mads.tensor.layers:reduce_scatter_sequence",
        lambda original: _mine,
        f"{LAYERS}:check_row",
        world=4,
    ),
    Mutant(
        "S1: the gather's backward takes a slice without a sum",
        "mads.collectives:_GatherSequence.backward",
        lambda original: staticmethod(lambda ctx, grad: (_mine(grad, ctx.group).contiguous(), None)),
        f"{SEQUENCE}:check_pairs",
        world=4,
    ),
    Mutant(
        "S2: a column layer's dX is a slice without a sum",
        "mads.tensor.column:start_reduce_scatter",
        _sliced_not_reduced,
        f"{LAYERS}:check_column",
        world=4,
    ),
    Mutant(
        "V3: the head's weight gradient is that of the last rows",
        "mads.tensor.cross_entropy:linear_cross_entropy",
        _last_rows_alone,
        f"{LAYERS}:check_cross_entropy",
        world=4,
    ),
    Mutant(
        "V3: gradients take every loss with the weight 1",
        "mads.tensor.cross_entropy:linear_cross_entropy",
        _unweighted,
        f"{LAYERS}:check_cross_entropy",
        world=4,
    ),
    Mutant(
        "V3: dX of a cut head is not summed over the ranks",
        "mads.tensor.cross_entropy:copy_to_group",
        lambda original: lambda x, group: x,
        f"{LAYERS}:check_cross_entropy",
        world=4,
    ),
    Mutant(
        "V4: label smoothing spreads over the local vocabulary",
        "mads.tensor.cross_entropy:Columns",
        _local_vocabulary,
        f"{LAYERS}:check_cross_entropy",
        world=4,
        args=(0.1, 0.0),
    ),
    Mutant(
        "V4: label smoothing takes the mean of the local logits",
        "mads.tensor.cross_entropy:_Task._combine",
        _mean_of_local_logits,
        f"{LAYERS}:check_cross_entropy",
        world=4,
        args=(0.1, 0.0),
    ),
    Mutant(
        "V4: z-loss of the local log-sum-exp",
        "mads.tensor.cross_entropy:linear_cross_entropy",
        _local_z_loss,
        f"{LAYERS}:check_cross_entropy",
        world=4,
        args=(0.0, 0.01),
    ),
    Mutant(
        "T7: attention sees the positions of its own rank only",
        "mads.model.layers:Attention._core",
        _attention_of_local_positions,
        f"{CONTEXT}:check_losses_of_other_ranks_are_zero",
        world=4,
    ),
    Mutant(
        "T5: query, key and value heads change ranks as one block",
        "mads.model.layers:scatter_heads",
        _heads_cut_as_one_block,
        f"{CONTEXT}:check_losses_of_other_ranks_are_zero",
        world=4,
    ),
    Mutant(
        "T7: every context-parallel rank works on the first positions",
        "mads.model.placement:Placement.positions",
        lambda original: lambda self, total: slice(0, len(range(*original(self, total).indices(total)))),
        f"{CONTEXT}:check_losses_of_other_ranks_are_zero",
        world=4,
    ),
    Mutant(
        "R1: attention drops the same entries on all tensor-parallel ranks",
        "mads.model.layers:attention_seed",
        lambda original: lambda draws, name: original(replace(draws, place=(0, draws.place[1])), name),
        f"{DROPOUT}:check_attention_masks",
        world=4,
    ),
    Mutant(
        "R1: a mask of hidden states is drawn for the rank's slice",
        "mads.model.layers:hidden_dropout",
        _mask_of_the_slice,
        f"{MODEL}:check_model",
        world=4,
        args=(False,),
    ),
    Mutant(
        "R4: recomputation drops other entries",
        "mads.model.layers:recomputed",
        _other_mask_when_recomputed,
        f"{DROPOUT}:check_recomputation",
        world=4,
        args=(("full",),),
    ),
    Mutant(
        "R6: attention dropout moves the default generator",
        "mads.model.layers:default_generator_seeded",
        _seeded_for_good,
        f"{DROPOUT}:check_generators_are_left_alone",
        world=4,
    ),
    Mutant(
        "T10: the overlapped reduction is not waited for",
        "mads.tensor.column:_Exchange.input_gradient",
        _not_waited_for,
        f"{SEQUENCE}:check_overlap_is_exact",
        world=4,
    ),
    Mutant(
        "T10: the reduction is waited for before the weight gradient",
        "mads.tensor.column:_Exchange.start_to_reduce",
        _waited_for_at_once,
        f"{SEQUENCE}:check_overlap_overlaps",
        world=4,
    ),
    Mutant(
        "ghost products of a rank's positions land at the row's start",
        "mads.tensor.layers:slice_of",
        lambda original: lambda total, *groups: slice(0, len(range(*original(total, *groups).indices(total)))),
        f"{MODEL}:check_ghost_products",
        world=4,
        args=(False,),
    ),
]


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


def test_names_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
