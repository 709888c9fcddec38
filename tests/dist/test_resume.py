"""Exact resume (K6, D4, X4) and checkpoints that move between ZeRO stages and data-parallel sizes (K1 for data parallel)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness import run_ranks
from run_support import curve, prepare_small

from mads.logging.decisions import decision_path, read_decision


def train_until(prepared, run_dir, stops, overrides):
    """Train in as many lives as there are stops, each a new Trainer that resumes; returns state hashes of the last."""
    import torch.distributed as dist
    from run_support import run_config, trainer

    for stop in stops:
        made = trainer(run_config(prepared, run_dir, *overrides, world=dist.get_world_size()))
        made.run(until=stop)
    engine = made.parts.engine
    weights = {
        f"{key}/{n}": engine.state.full(p, key).numpy().copy()
        for key in ("weight", "exp_avg", "exp_avg_sq")
        for n, p in engine.parameters
    }
    return weights, made.parts.ledger.counts.copy(), made.parts.console.state(), made.batch.sample_ids


def assert_same(ours, theirs, exact=True):
    for name in theirs[0]:
        if exact:
            assert np.array_equal(ours[0][name], theirs[0][name]), name
        else:
            np.testing.assert_allclose(ours[0][name], theirs[0][name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert np.array_equal(ours[1], theirs[1]), "ledger"
    assert np.array_equal(ours[3], theirs[3]), "last batch"
    if exact:
        assert ours[2] == theirs[2], "console"


SELECTIONS = {
    "mads": [],
    "displacement": ["reward=displacement", "reward.steps=2", "reward.step_rows=2", "selection.first_interval=3"],
    "blend": [
        "reward=blend",
        "reward.steps=1",
        "reward.step_rows=2",
        "reward.mix_rows=2",
        "reward.control=1",
        "selection.first_interval=3",
    ],
    "paper": ["selection=paper", "selection.probes_per_agent=20"],
    "random": ["selection=random"],
    "bounds": ["selection.exchange=threshold", "selection.max_uses=3", "selection.bounds={domain: {cooking: [0.4, 0.6]}}"],
}


FULL = pytest.mark.full


@pytest.mark.parametrize(
    "zero, selection",
    [
        (2, "blend"),
        (1, "bounds"),
        *(pytest.param(*case, marks=FULL) for case in ((0, "mads"), (2, "mads"), (3, "mads"), (1, "paper"), (1, "random"))),
        *(pytest.param(*case, marks=FULL) for case in ((0, "blend"), (3, "blend"), (0, "displacement"), (3, "displacement"))),
    ],
)
def test_k6_two_halves_equal_the_whole_bit_for_bit(prepared, tmp_path, zero, selection):
    overrides = [f"parallel=zero{zero}", "train.prefetch=2", *SELECTIONS[selection]]
    whole = run_ranks(2, train_until, prepared, str(tmp_path / "whole"), [12], overrides, timeout=240)
    # 7 is in the middle of a round, 10 (or 6) at a round's border; 6 has an evaluation.
    halves = run_ranks(2, train_until, prepared, str(tmp_path / "halves"), [6, 7, 10, 12], overrides, timeout=240)
    for rank in range(2):
        assert_same(halves[rank], whole[rank])
    assert curve(tmp_path / "halves") == curve(tmp_path / "whole")
    metrics, decisions = curve(tmp_path / "whole")
    borders = [0, 3, 6, 11] if "selection.first_interval=3" in overrides else [0, 5, 10]
    assert [d["step"] for d in decisions] == borders
    assert [d["round"] for d in decisions] == list(range(len(borders))) and len(
        [m for m in metrics if m["kind"] == "train"]
    ) == 12
    assert whole[0][1].sum() > 0 and len({json.dumps(d["hash"]) for d in decisions}) == len(borders)
    for round_, decided in enumerate(decisions):
        ids = read_decision(tmp_path / "whole", round_)
        assert len(ids) == decided["chosen"] and np.load(decision_path(tmp_path / "whole", round_))[2] == decided["hash"]
        assert np.array_equal(read_decision(tmp_path / "halves", round_), ids)


def test_a_run_that_is_told_to_stop_ends_there_and_goes_on_as_one_that_was_not(prepared, tmp_path):
    """Its decisions are those of the whole run, though the last one reaches beyond the stop."""
    [whole] = run_ranks(1, train_until, prepared, str(tmp_path / "whole"), [None], ["train.steps=12"], timeout=240)
    run_ranks(1, train_until, prepared, str(tmp_path / "told"), [None], ["train.steps=12", "train.stop_at=7"], timeout=240)
    metrics, decisions = curve(tmp_path / "told")
    ends = [json.loads(line) for line in (tmp_path / "told" / "metrics.jsonl").read_text().splitlines() if '"end"' in line]
    assert [end["steps"] for end in ends] == [7] and metrics[-1]["step"] <= 7
    assert [d["hash"] for d in decisions] == [d["hash"] for d in curve(tmp_path / "whole")[1]][: len(decisions)]
    [told] = run_ranks(1, train_until, prepared, str(tmp_path / "told"), [None], ["train.steps=12"], timeout=240)
    assert_same(told, whole)
    assert curve(tmp_path / "told") == curve(tmp_path / "whole")


def check_current_mix(prepared, run_dir):
    from run_support import run_config, trainer

    overrides = ["reward=group", "reward.steps=2", "reward.step_rows=1", "reward.mix_rows=2", "train.steps=7"]
    made = trainer(run_config(prepared, run_dir, *overrides))
    assert made._current_mix() == []  # before the first decision
    made.run()
    found, pool, pending = made._current_mix(), made.parts.pool, made.parts.console.pending
    config = made.config
    wanted = config.reward.steps * config.reward.mix_rows * config.data.seq_length
    chosen = {tuple(tokens) for tokens in pool.tokens(pool.positions_of(pending))}
    other = {tuple(tokens) for tokens in pool.tokens(np.setdiff1d(np.arange(len(pool)), pool.positions_of(pending)))}
    assert other - chosen and all(tuple(tokens) in chosen for tokens in found)
    lengths = [len(tokens) for tokens in found]
    assert sum(lengths) >= min(wanted, sum(map(len, chosen))) and sum(lengths[:-1]) < wanted


def test_the_mix_beside_labels_is_of_the_decision_in_use(prepared, tmp_path):
    run_ranks(1, check_current_mix, prepared, str(tmp_path / "run"), timeout=120)


def test_k6_the_checkpoint_alone_is_enough(prepared, tmp_path):
    [whole] = run_ranks(1, train_until, prepared, str(tmp_path / "whole"), [12], [], timeout=240)
    run_ranks(1, train_until, prepared, str(tmp_path / "moved"), [7], [], timeout=240)
    for path in (tmp_path / "moved").iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    [moved] = run_ranks(1, train_until, prepared, str(tmp_path / "moved"), [12], [], timeout=240)
    assert_same(moved, whole)
    for round_ in (1, 2):  # the pending decision came out of the checkpoint
        assert np.array_equal(read_decision(tmp_path / "moved", round_), read_decision(tmp_path / "whole", round_))


def check_grown_ledger(folder):
    """On every rank: the slice of the longer pool, whatever the slices of the shorter one were."""
    import torch.distributed as dist
    from fake_pool import FakePool

    from mads.console.choose import own_slice
    from mads.console.exchange import RankFailedError
    from mads.data.ledger import Ledger
    from mads.topology import Grid, Topology
    from mads.train.ledgers import grow_ledger

    for grid in ({"dp": 4}, {"pp": 2, "dp": 2}, {"tp": 4}):
        topology = Topology(Grid(**grid))
        short, long = (FakePool(np.arange(n), np.ones(n), {}) for n in (70, 111))
        ledger, counts = Ledger(70, *own_slice(short, topology)), np.zeros(111, int)
        for seed in range(3):
            positions = np.random.default_rng(seed).integers(0, 70, 50)
            ledger.consume(positions)
            np.add.at(counts, positions, 1)
        grown = grow_ledger(ledger, long, topology, Path(folder) / "scratch")
        start, stop = own_slice(long, topology)
        assert grown.counts.tolist() == counts[start:stop].tolist() and (grown.total, grown.size) == (150, 111)
        dist.barrier()
        assert list(Path(folder).iterdir()) == []
        with pytest.raises((OSError, RankFailedError), match="absent"):
            grow_ledger(ledger, long, topology, Path(folder) / "absent" / "scratch")


def test_d5_the_ledger_of_a_longer_pool_keeps_its_counts_on_any_grid(tmp_path):
    run_ranks(4, check_grown_ledger, str(tmp_path))


def check_resumed_run(overrides):
    """On its own corpus: a run that stops inside its second round and goes on, against one that does not stop."""
    import tempfile

    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as mine:
        told = [mine]
        dist.broadcast_object_list(told)
        folder = Path(told[0])
        if dist.get_rank() == 0:
            prepare_small(folder)
        dist.barrier()
        whole = train_until(folder / "prepared", folder / "whole", [8], overrides)
        halves = train_until(folder / "prepared", folder / "halves", [7, 8], overrides)
    assert_same(halves, whole)


@pytest.mark.parametrize("zero", [1, 3])
def test_k6_a_run_that_stops_inside_a_round_goes_on_bit_for_bit(zero):
    run_ranks(2, check_resumed_run, [f"parallel=zero{zero}"])


def test_d4_k1_resume_at_another_size_and_stage_goes_on_with_the_same_samples(prepared, tmp_path):
    whole = run_ranks(2, train_until, prepared, str(tmp_path / "whole"), [10], ["parallel=zero1"], timeout=240)
    run_ranks(2, train_until, prepared, str(tmp_path / "moved"), [7], ["parallel=zero1"], timeout=240)
    # Steps 8 to 10 belong to the round that was decided before the move: the same samples, weights equal up to rounding.
    run_ranks(1, train_until, prepared, str(tmp_path / "moved"), [8], ["parallel=zero3"], timeout=240)
    tensor = ["parallel=zero2", "parallel.tensor_model_parallel_size=2"]
    run_ranks(2, train_until, prepared, str(tmp_path / "moved"), [9], tensor, timeout=240)
    moved = run_ranks(2, train_until, prepared, str(tmp_path / "moved"), [10], ["parallel=zero0"], timeout=240)
    assert_same(moved[0], whole[0], exact=False)


def load_everywhere(prepared, run_dir, stages):
    """Resume the run at its checkpoint under several ZeRO stages; returns weights and moments for each."""
    import torch.distributed as dist
    from run_support import run_config, trainer

    found = []
    for zero in stages:
        made = trainer(run_config(prepared, run_dir, f"parallel=zero{zero}", world=dist.get_world_size()))
        engine = made.parts.engine
        found.append(
            {
                f"{key}/{n}": engine.state.full(p, key).numpy().copy()
                for key in ("weight", "exp_avg", "exp_avg_sq")
                for n, p in engine.parameters
            }
        )
        assert made.step == 7 and engine.state.steps == 7
        made.parts.loader.close()
        made.journal.close(made.step, made.tokens, finished=False)
    return found


@pytest.mark.parametrize("saved_at", [pytest.param(0, marks=FULL), 3])
def test_k1_master_weights_and_moments_are_equal_after_moving(prepared, tmp_path, saved_at):
    saved = run_ranks(2, train_until, prepared, str(tmp_path / "run"), [7], [f"parallel=zero{saved_at}"], timeout=240)
    for world in (1, 2):
        for loaded in run_ranks(world, load_everywhere, prepared, str(tmp_path / "run"), [0, 1, 2, 3], timeout=240)[0]:
            for name, value in saved[0][0].items():
                assert np.array_equal(loaded[name], value), (world, name)


def refuse_other_settings(prepared, run_dir, overrides, message):
    import torch.distributed as dist
    from run_support import run_config, trainer

    with pytest.raises(Exception, match=message) as caught:
        trainer(run_config(prepared, run_dir, *overrides, world=dist.get_world_size()))
    return type(caught.value).__name__


def test_a_run_folder_is_not_continued_with_other_settings_data_or_damage(prepared, tmp_path):
    run_dir = str(tmp_path / "run")
    run_ranks(1, train_until, prepared, run_dir, [2, 4], [])
    assert run_ranks(1, refuse_other_settings, prepared, run_dir, ["optim.lr=5e-4"], r"optim.lr: 0.001 then, 0.0005 now") == [
        "ResumeError"
    ]
    other = str(prepare_small_other(tmp_path))
    assert run_ranks(1, refuse_other_settings, other, run_dir, [], "fingerprint") == ["DataError"]
    check_verified_data(prepared, tmp_path, run_dir)
    folders = [tmp_path / "run" / "checkpoints" / f"step-0000000{step}" for step in (2, 4)]
    for folder in folders:
        damaged = next(folder.glob("exp_avg-*"))
        raw = bytearray(damaged.read_bytes())
        raw[-5] ^= 1
        damaged.write_bytes(raw)
    # Other settings are told before anything is set aside.
    other = ["optim.lr=5e-4"]
    message = f"none of 2 checkpoints.*step-00000004: .*{damaged.name} is damaged.*step-00000002: .*is damaged"
    for overrides in ([], other):
        assert run_ranks(2, refuse_other_settings, prepared, run_dir, overrides, message) == ["DataError"] * 2
    damaged = next(folders[0].glob("exp_avg-*"))
    raw = bytearray(damaged.read_bytes())
    raw[-5] ^= 1  # whole again
    damaged.write_bytes(raw)
    assert run_ranks(2, refuse_other_settings, prepared, run_dir, other, "optim.lr: 0.001 then") == ["ResumeError"] * 2
    assert all(folder.is_dir() for folder in folders)


def test_k3_a_resume_passes_over_a_damaged_checkpoint_on_all_ranks_and_equals_the_undisturbed_run(prepared, tmp_path):
    whole = run_ranks(2, train_until, prepared, str(tmp_path / "whole"), [8], [], timeout=240)
    run_ranks(2, train_until, prepared, str(tmp_path / "run"), [3, 6], [], timeout=240)
    root = tmp_path / "run" / "checkpoints"
    (root / "step-00000006" / "state.json").write_text("{}")
    again = run_ranks(2, train_until, prepared, str(tmp_path / "run"), [8], [], timeout=240)
    for rank in range(2):
        assert_same(again[rank], whole[rank])
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert sorted(p.name for p in root.iterdir()) == ["latest", "step-00000003", "step-00000006.damaged", "step-00000008"]


def check_verified_data(prepared, tmp_path, run_dir):
    """A byte of the data that has changed is found on request, on all ranks."""
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    shard = next((copy / "train").glob("*.bin"))
    raw = bytearray(shard.read_bytes())
    raw[9] ^= 1
    shard.write_bytes(raw)
    told = run_ranks(2, refuse_other_settings, str(copy), run_dir, ["train.verify_data=true"], "is damaged")
    assert told == ["DataError", "RankFailedError"]


def prepare_small_other(tmp_path):
    import run_support

    original = run_support.write_corpus
    run_support.write_corpus = lambda folder: original(folder, seed=1)
    try:
        return run_support.prepare_small(tmp_path / "other")
    finally:
        run_support.write_corpus = original
