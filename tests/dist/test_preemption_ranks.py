"""A rank that is told to stop in any phase: all ranks stop after one step, saved; what follows equals the undisturbed run."""

import json
import signal
import time
from pathlib import Path

import pytest
from harness import run_ranks
from run_support import curve

# Phase -> what of the trainer runs in it, and at which of its calls the signal comes.
MOMENTS = {
    "evaluation": ("parts.heldout.evaluate", 2),
    "reward": ("parts.rewarder", 1),
    "selection": ("parts.console.decide", 2),
    "loader": ("parts.loader.next", 3),
    "train": ("parts.engine.train_step", 3),
    "save": ("saver.save", 1),
}


def _notified(original, at, notice):
    calls = [0]

    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at and notice is not None:
            notice.received.append(signal.SIGTERM)
        return original(*args, **kwargs)

    return call


def _trainer(prepared, run_dir, overrides, notice):
    import torch
    import torch.distributed as dist
    from run_support import run_config
    from topologies import topology

    from mads.train.loop import Trainer

    config = run_config(prepared, run_dir, *overrides, world=dist.get_world_size())
    return Trainer(config, topology(dp=dist.get_world_size()), torch.device("cpu"), notice)


def check_preempted(prepared, root, phases):
    """Each phase's run is stopped by the last rank's signal and then continued; all curves equal that of `whole`."""
    import torch.distributed as dist

    from mads.train.signals import Notice

    overrides = ["checkpoint.interval=4"]
    _trainer(prepared, Path(root) / "whole", overrides, Notice()).run()
    for phase in phases:
        place, at = MOMENTS[phase]
        notice, run_dir = Notice(), Path(root) / phase
        made = _trainer(prepared, run_dir, overrides, notice)
        owner, name = made, place.split(".")
        for part in name[:-1]:
            owner = getattr(owner, part)
        told = notice if dist.get_rank() == dist.get_world_size() - 1 else None
        setattr(owner, name[-1], _notified(getattr(owner, name[-1]), at, told))
        made.run()
        assert made.preempted and 0 < made.step < made.config.train.steps, (phase, made.step)
        dist.barrier()
        assert (run_dir / "checkpoints" / "latest").read_text().strip() == f"step-{made.step:08d}", phase
        stopped = made.step
        again = _trainer(prepared, run_dir, overrides, Notice())
        assert again.step == stopped, (phase, again.step, stopped)
        again.run()
        assert not again.preempted and again.finished
        dist.barrier()
        assert curve(run_dir) == curve(Path(root) / "whole"), phase


@pytest.mark.parametrize(
    "phases", [["save", "reward"], pytest.param(["evaluation", "selection", "loader", "train"], marks=pytest.mark.full)]
)
def test_a_signal_in_any_phase_stops_all_ranks_with_a_checkpoint(prepared, tmp_path, phases):
    run_ranks(2, check_preempted, prepared, str(tmp_path), phases, timeout=500)


def check_on_own_corpus(phase):
    """`check_preempted` of one phase, for the mutants."""
    import tempfile

    import torch.distributed as dist
    from run_support import prepare_small

    with tempfile.TemporaryDirectory() as mine:
        told = [mine]
        dist.broadcast_object_list(told)
        folder = Path(told[0])
        if dist.get_rank() == 0:
            prepare_small(folder)
        dist.barrier()
        check_preempted(str(folder / "prepared"), told[0], [phase])


def measure(count):
    """Seconds of one question and answer without anything between them, mean."""
    from functools import partial

    import torch.distributed as dist
    from topologies import topology

    from mads import collectives
    from mads.train.signals import Notice, Preemption

    made = topology(dp=dist.get_world_size())
    preemption = Preemption(Notice(), partial(collectives.start_sum, group=made.group("control")))
    dist.barrier()
    start = time.perf_counter()
    for _ in range(count):
        preemption.agreed()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    print(json.dumps({world: max(run_ranks(world, measure, 500)) for world in (1, 2, 4)}))
