"""The mpu face has every name that the installed DeepSpeed asks for, and each means the right ranks, on every grid."""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from mads.topology import AXES, MPU, Grid, named_groups

GRIDS = [s for s in itertools.product(range(1, 9), repeat=4) if s[0] * s[1] * s[2] * s[3] <= 8]
# Files of DeepSpeed that ask an mpu during training, without those of its inference engine, Domino and Ulysses.
ASKING = ("utils/groups.py", "utils/bwc.py", "runtime/utils.py", "runtime/engine.py", "runtime/base_optimizer.py")
ASKING += ("runtime/config.py", "runtime/zero/stage_1_and_2.py", "runtime/zero/stage3.py", "runtime/zero/parameter_offload.py")
ASKING += ("runtime/zero/partition_parameters.py", "runtime/bf16_optimizer.py", "runtime/fp16/fused_optimizer.py")
# Asked for only where the name before them is missing (utils/bwc.py): older words for the same thing.
SECOND_CHOICE = {
    "get_slice_parallel_rank": "get_tensor_model_parallel_rank",
    "get_slice_parallel_world_size": "get_tensor_model_parallel_world_size",
    "get_slice_parallel_group": "get_tensor_model_parallel_group",
    "get_pipe_parallel_world_size": "get_pipeline_model_parallel_world_size",
    "get_pipe_parallel_group": "get_pipeline_model_parallel_group",
}


def names_asked_for():
    """(file, name) of every attribute of an mpu that DeepSpeed reads, by call or by hasattr/getattr."""
    import deepspeed

    folder = Path(deepspeed.__file__).parent
    found = set()
    for file in ASKING:
        text = (folder / file).read_text()
        found |= {(file, name) for name in re.findall(r"\bmpu\.(get_\w+)", text)}
        found |= {(file, name) for name in re.findall(r"attr\((?:self\.)?mpu,\s*['\"](get_\w+)", text)}
    return found


def face(sizes, rank, zero_stage=0):
    grid = Grid(**dict(zip(AXES, sizes)))
    return MPU(
        SimpleNamespace(
            grid=grid,
            rank=rank,
            coordinates=grid.coordinates(rank),
            coordinate=lambda axis: grid.coordinates(rank)[axis],
            size=lambda axis: getattr(grid, axis),
            group=lambda name: next(ranks for ranks in named_groups(grid)[name] if rank in ranks),
        ),
        zero_stage,
    )


def check_names():
    asked, mpu = names_asked_for(), face((1, 2, 2, 2), 3)
    assert {"utils/groups.py", "utils/bwc.py"} <= {file for file, _ in asked} and len({n for _, n in asked}) > 15
    missing = {(file, name) for file, name in asked if not hasattr(mpu, name)}
    assert {name for _, name in missing} <= set(SECOND_CHOICE), missing
    for older in {name for _, name in missing}:
        assert hasattr(mpu, SECOND_CHOICE[older]), older
    assert not hasattr(mpu, "initialize_sequence_parallel")  # DeepSpeed takes it for its own Ulysses object then


def test_g0_the_mpu_has_every_name_that_deepspeed_asks_for():
    check_names()


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("sizes", [s for s in GRIDS if s[0] == 1], ids=lambda s: "x".join(map(str, s)))
def test_g0_every_name_of_the_mpu_means_the_right_ranks(sizes, zero_stage):
    for rank in range(sizes[1] * sizes[2] * sizes[3]):
        mpu = face(sizes, rank, zero_stage)
        places = [dict(zip(AXES, (0, d, c, t))) for d in range(sizes[1]) for c in range(sizes[2]) for t in range(sizes[3])]
        sides = {
            "model": ["tp"],
            "tensor_model": ["tp"],
            "data": ["dp"],
            "sequence": ["cp"],
            "sequence_data": ["dp", "cp"],
            "pipeline_model": ["pp"],
        }
        if zero_stage == 3:  # whoever shares a sequence is a data-parallel rank for it
            sides |= {"data": ["dp", "cp"], "sequence": []}
        for side, axes in sides.items():
            ranks = [r for r, at in enumerate(places) if all(at[a] == places[rank][a] for a in AXES if a not in axes)]
            assert getattr(mpu, f"get_{side}_parallel_group")() == ranks, side
            assert getattr(mpu, f"get_{side}_parallel_world_size")() == len(ranks), side
            assert getattr(mpu, f"get_{side}_parallel_rank")() == ranks.index(rank), side
        assert mpu.get_tensor_model_parallel_src_rank() == mpu.get_model_parallel_group()[0]
        assert mpu.get_data_parallel_group_ranks() == mpu.get_data_parallel_group()
