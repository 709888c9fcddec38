"""How often a training step makes the host wait for the device: counted on the CPU, by place (docs/hot_loop.md)."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import run_ranks

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.synchronisations import Synchronisations  # noqa: E402

OWN = {"mads/train/engine.py:before_step": 1}  # loss, and norm where mads measures it, in one transfer
# Reads of what lies on the CPU in any case (segments), and what CUDA does without one (an asynchronous assertion on ids).
NO_WAIT = ("mads/tensor/checks.py:require_ids", "kernels/attention_tiles.py:plan_tiles")
# DeepSpeed's reads in a step in fp32, one group of parameters with and one without weight decay: is the norm finite, once for all
# and under ZeRO 1 and 2 again for each group that it clips.
DEEPSPEED = {0: 0, 1: 3, 2: 3, 3: 1}


def check_step(stages, accumulation):
    import model_support as support
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    micro, valid = support.micro_batches(support.global_batch(2 * world * accumulation, seed=1), rank, world)
    for stage in stages:
        engine = support.make_engine(stage, accumulation=accumulation).engine
        for step in range(3):  # ZeRO 3 compares the order of its modules between ranks in the first ones
            engine.train_step(micro, valid, 1e-3, step)
        with Synchronisations() as counted:
            engine.train_step(micro, valid, 1e-3, 3)
        waits = {place: n for place, n in counted.where.items() if place not in NO_WAIT}
        assert waits.pop("mads/train/engine.py:before_step") == 1, (stage, counted.where)
        assert sum(waits.values()) == DEEPSPEED[stage], (stage, counted.where)
        assert all(place.startswith("deepspeed/") for place in waits), (stage, counted.where)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_reads_the_device_once_and_where_deepspeed_does(accumulation):
    run_ranks(1, check_step, [0, 1, 2, 3], accumulation, timeout=120)


def check_loop(prepared, run_dir):
    """Whole steps of the loop, that of a log line beside one without: loader, engine, ledger, journal, counters."""
    from run_support import run_config, trainer

    overrides = ["selection=random", "train.log_interval=4", "train.eval_interval=100", "train.invariant_interval=100"]
    run = trainer(run_config(prepared, run_dir, *overrides))
    run._select()
    counts = []
    for _ in range(4):
        with Synchronisations() as counted:
            run._train_one_step()
        counts.append({p: n for p, n in counted.where.items() if p not in NO_WAIT and not p.startswith("deepspeed/")})
    logged = OWN | {"mads/train/engine.py:grad_norm": 1}  # the norm that DeepSpeed has measured becomes a number
    assert counts == [logged, OWN, OWN, logged]  # steps 1 (always told) to 4
    run.parts.loader.close()


def test_a_step_of_the_loop_reads_no_more_but_where_it_is_logged(tmp_path_factory):
    from run_support import prepare_small

    folder = tmp_path_factory.mktemp("loop")
    run_ranks(1, check_loop, str(prepare_small(folder)), str(folder / "run"), timeout=120)


def test_the_counter_sees_every_way_to_read_a_tensor():
    x = torch.arange(4.0)
    ways = [
        lambda: x[0].item(),
        lambda: float(x[1]),
        lambda: bool(x[2] > 0),
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: np.asarray(x.cpu()),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: x.masked_select(x > 1),
        lambda: torch.equal(x, x),
    ]
    for number, way in enumerate(ways):
        with Synchronisations() as counted:
            way()
        assert counted.total >= 1 and all("test_synchronisations" in place for place in counted.where), number
    with Synchronisations() as counted:
        (x * 2 + x[1:2]).sum().sqrt()
    assert counted.total == 0
    assert torch.Tensor.tolist(x) == [0.0, 1.0, 2.0, 3.0] and counted.total == 0  # the methods are back in place
