"""Tensor-parallel groups of 1, 2 and 4 ranks inside a world of 4, so that one call of run_ranks checks all sizes.

None of them is the default group, and inside `no_default_group` any use of the default group fails (INVARIANTS.md T9).
"""

import inspect
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.distributed as dist

from mads.model.placement import Placement

WORLD = 4
SIZES = (1, 2, 4)
GRIDS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4))  # (tensor-parallel size, context-parallel size)
_made: dict[int, object] = {}
_made_context: dict[tuple[int, int], object] = {}
GUARDED = (
    "all_reduce",
    "all_gather",
    "all_gather_single",
    "all_gather_into_tensor",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "broadcast",
    "barrier",
    "get_rank",
    "get_world_size",
)


def tp_group(size: int):
    """This rank's group of `size` neighbouring ranks; made once per worker, on all ranks in the same order."""
    if not _made:
        for t in SIZES:
            for first in range(0, WORLD, t):
                group = dist.new_group(list(range(first, first + t)))
                if first <= dist.get_rank() < first + t:
                    _made[t] = group
    return _made[size]


@contextmanager
def no_default_group():
    """Fail on any collective or size query without an explicit group other than the default one."""

    def guarded(original):
        def call(*args, **kwargs):
            bound = inspect.signature(original).bind(*args, **kwargs)
            if bound.arguments.get("group") in (None, dist.group.WORLD):
                raise AssertionError(f"{original.__name__} used the default process group instead of the group that was passed")
            return original(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in GUARDED:
            if hasattr(dist, name):  # torch 2.13 renamed two of them
                stack.enter_context(mock.patch.object(dist, name, guarded(getattr(dist, name))))
        yield


def cp_group(t: int, c: int):
    """This rank's group of `c` ranks, `t` apart, for context parallelism around tensor-parallel groups of `t`."""
    if c == 1 or t == 1:
        return tp_group(c)
    if (t, c) not in _made_context:
        for offset in range(t):
            ranks = list(range(offset, WORLD, t))  # t * c is the whole world: there are no others
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                _made_context[t, c] = group
    return _made_context[t, c]


def placements(**options):
    """Every grid, with sequence parallelism off and on: (what it is, Placement), with the default group out of reach."""
    for t, c in GRIDS:
        for sequence_parallel in (False, True) if t > 1 else (False,):
            tp, cp = tp_group(t), cp_group(t, c)
            with no_default_group():
                what = f"tp={t} cp={c} sp={'on' if sequence_parallel else 'off'}"
                yield what, Placement(tp, cp, sequence_parallel=sequence_parallel, **options)


def groups():
    """(t, index of this rank, group) for every size, with the default group out of reach."""
    for t in SIZES:
        group = tp_group(t)
        with no_default_group():
            yield t, dist.get_rank(group), group


def everyones(tensor: torch.Tensor, group) -> list[torch.Tensor]:
    """The tensors of all ranks of the group, in rank order."""
    pieces = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(pieces, tensor.detach().contiguous(), group=group)
    return pieces


def exact(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Equal to 1e-10 in float64, relative to the largest entry."""
    tolerance = 1e-10 * max(1.0, float(expected.detach().abs().max()) if expected.numel() else 1.0)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=tolerance, msg=lambda m: f"{what}: {m}")
