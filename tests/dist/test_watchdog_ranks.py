"""A rank that is stopped, hangs, is killed or fails: all others end in time, with the rank, its step and its phase named."""

import json
import re
import time
from pathlib import Path

import pytest
import watchdog_support as watched
from harness import run_ranks
from watchdog_support import KILL, LIMIT_S, STOP, Ranks, named_steps

from mads.launch import exits

FULL = pytest.mark.full
SLACK_S = 8.0  # of a loaded machine


@pytest.fixture
def ranks():
    made = []

    def make(*args, **kwargs):
        made.append(Ranks(*args, **kwargs))
        return made[-1]

    yield make
    for group in made:
        group.close()


def check_words(words, guilty, step, *parts):
    """Every surviving rank has named the guilty one, a step near the real one, and the phase."""
    for rank, text in enumerate(words):
        if rank == guilty:
            continue
        first = text.splitlines()[0] if text else ""
        assert first.startswith(f"mads train: rank {guilty} ") and re.search("in phase (train|loop|start)", first), (rank, text)
        told, *reached = named_steps(first)
        assert told <= step + 2 and step - 2 <= max([told, *reached]) <= step + 2, (step, first)
        assert all(part in first for part in parts), (parts, first)
        assert f"rank {rank} ends with exit code {exits.HUNG}" in first


@pytest.mark.parametrize("world, victim", [(2, 1), (3, 0), pytest.param(2, 0, marks=FULL), pytest.param(3, 2, marks=FULL)])
def test_a_killed_rank_ends_the_others_at_once(ranks, world, victim):
    group = ranks(world, watched.nothing)
    group.reach(15)  # in which it has reported
    start = group.send(victim, KILL)
    reached = group.step(victim)
    codes, words = group.end(within=SLACK_S)
    assert codes == [-KILL if rank == victim else exits.HUNG for rank in range(world)], words
    check_words(words, victim, reached, "died")
    assert time.monotonic() - start < SLACK_S


# After one step, a rank's last report may be from before it, when the limit was that of the start.
@pytest.mark.parametrize(
    "world, victim, after", [(3, 1, 1), (3, 0, 15), pytest.param(2, 0, 1, marks=FULL), pytest.param(2, 1, 15, marks=FULL)]
)
def test_a_stopped_rank_ends_the_others_within_the_limit_and_is_ended_by_them(ranks, world, victim, after):
    group = ranks(world, watched.nothing)
    group.reach(after)
    start = group.send(victim, STOP)
    reached = group.step(victim)
    codes, words = group.end(within=LIMIT_S + SLACK_S)
    assert codes == [-KILL if rank == victim else exits.HUNG for rank in range(world)], words
    check_words(words, victim, reached, "does not answer")
    assert LIMIT_S / 2 < time.monotonic() - start < LIMIT_S + SLACK_S


@pytest.mark.parametrize("world, victim", [(2, 1), (3, 0), pytest.param(2, 0, marks=FULL), pytest.param(3, 1, marks=FULL)])
def test_a_main_thread_that_hangs_ends_all_within_the_limit(ranks, world, victim):
    group = ranks(world, (watched.hang_on_0, watched.hang_on_1)[victim])
    group.reach(10)
    start = time.monotonic()
    codes, words = group.end(within=LIMIT_S + SLACK_S)
    assert codes == [exits.HUNG] * world, words
    check_words(words, victim, 10, "hangs", f"hang_on_{victim}")
    assert time.monotonic() - start > LIMIT_S / 2
    # It says so itself, with its stack; rank 0 says where the others wait.
    assert f"rank {victim} hangs after step 10" in words[victim] and "watchdog_support.py" in words[victim]
    assert "all_reduce" in words[0]
    shown = json.loads((Path(group.folder) / "heartbeat.json").read_text())
    assert shown["ended"].startswith(f"rank {victim} hangs after step 10") and len(shown["ranks"]) == world


def test_a_rank_that_fails_alone_ends_the_others_with_its_code_and_error(ranks):
    group = ranks(2, watched.raise_on_1)
    codes, words = group.end(within=60)
    assert codes == [exits.FAILED, exits.FAILED], words
    assert "own error: the disk is gone" in words[1]
    assert "rank 1 left with exit code 1 after step 10, in phase train: RuntimeError: the disk is gone" in words[0], words
    assert "own error" not in words[0]


def test_a_slow_rank_that_beats_and_an_end_in_order_are_no_reason(ranks):
    group = ranks(2, watched.slow_on_1)
    group.reach(5)
    start = time.monotonic()
    group.reach(8)
    assert time.monotonic() - start > 1.3 * LIMIT_S, "the rank was not slow enough to tell"
    shown = json.loads((Path(group.folder) / "heartbeat.json").read_text())
    assert [r["rank"] for r in shown["ranks"]] == [0, 1] and shown["ended"] is None
    (Path(group.folder) / "enough").touch()
    codes, words = group.end(within=20)
    assert codes == [0, 0] and words == ["", ""]
    shown = json.loads((Path(group.folder) / "heartbeat.json").read_text())
    assert shown["ended"] == "exit code 0" and shown["ranks"][0]["step"] >= 8 and abs(shown["time"] - time.time()) < 30


def check_beats(prepared, root):
    """Of a short run: the beats inside of each phase, against what is done in it."""
    from collections import Counter

    import torch
    import torch.distributed as dist
    from run_support import run_config
    from topologies import topology

    from mads.train.loop import Trainer
    from mads.train.pulse import Pulse

    class Counting(Pulse):
        def __init__(self):
            super().__init__()
            self.beats, self.entered = Counter(), Counter()

        def beat(self):
            super().beat()
            self.beats[self.phase] += 1

        def during(self, phase):
            self.entered[phase] += 1
            return super().during(phase)

    pulse, world = Counting(), dist.get_world_size()
    config = run_config(prepared, f"{root}/run", "train.steps=6", "checkpoint.interval=6", "reward.rows_per_batch=2", world=world)
    trainer = Trainer(config, topology(dp=world), torch.device("cpu"), None, pulse)
    trainer.run()
    inside = {phase: pulse.beats[phase] - times for phase, times in pulse.entered.items()}  # one beat is for the beginning
    assert pulse.step == 6 and pulse.warm and pulse.phase == "loop"
    micro = config.train.global_batch_size // config.train.micro_batch_size // world
    assert inside["train"] == 6 * micro and micro > 1
    heldout = trainer.parts.heldout._batches
    assert inside["evaluation"] == pulse.entered["evaluation"] * len(heldout.share_of(0, world)) > 4
    assert inside["rewards"] > 2 * config.selection.probes * world / 40 and inside["selection"] >= 0
    assert inside["checkpoint"] >= 2 * len(trainer.parts.engine.parameters)


def test_every_long_phase_beats_inside(prepared, tmp_path):
    run_ranks(1, check_beats, prepared, str(tmp_path), timeout=120)


def check_beats_on_own_corpus():
    """`check_beats`, for the mutants."""
    import tempfile

    import torch.distributed as dist
    from run_support import prepare_small

    with tempfile.TemporaryDirectory() as mine:
        told = [mine]
        dist.broadcast_object_list(told)
        if dist.get_rank() == 0:
            prepare_small(Path(told[0]))
        dist.barrier()
        check_beats(f"{told[0]}/prepared", told[0])


def check_pipeline_beats(micro_batches):
    import layouts

    built = layouts.make({"pp": 2}, 1, f"train.micro_batch_size={8 // micro_batches}")
    built.engine.pulse.count = 0
    layouts.step(built, layouts.rows_of_step(0), 1e-3)
    return built.engine.pulse.count


@pytest.mark.full
def test_pipeline_stages_beat_with_every_micro_batch():
    assert run_ranks(2, check_pipeline_beats, 4, timeout=120) == [4, 4]


@pytest.mark.full
def test_a_job_that_is_suspended_as_a_whole_goes_on(ranks):
    group = ranks(2, watched.nothing)
    group.reach(5)
    for rank in (0, 1):
        group.send(rank, STOP)
    time.sleep(2 * LIMIT_S)
    reached = group.step(0)
    for rank in (1, 0):
        group.send(rank, watched.signal.SIGCONT)
    group.reach(reached + 20)
    (Path(group.folder) / "enough").touch()
    assert group.end(within=20) == ([0, 0], ["", ""])
