"""Online mixing and the influence model in real runs: losses exact, resume bit for bit, two ranks decide as one."""

import json

import numpy as np
import pytest
import torch
from harness import run_ranks
from run_support import curve, prepare_small

STEPS = 10
COMMON = ["selection.interval=2", f"train.steps={STEPS}", "reward.rows_per_batch=4", "optim.eps=1e-4", "train.eval_interval=5"]
RUNS = {
    "odm": ["selection=odm", "selection.probes=24", *COMMON],
    "ado": ["selection=ado", "selection.probes=24", *COMMON],
    "aioli": ["selection=aioli", "selection.probes=12", "selection.shares=uniform", "reward.reference_examples=8", *COMMON],
    "mates": ["agents=mates", "selection.probes=40", "reward.reference_examples=8", *COMMON],
}


# ---------------------------------------------------------------- the signal


def check_losses_are_those_of_single_samples(stage=1):
    import model_support as support
    import reward_cases as cases

    from mads.data.batch import make_batch
    from mads.model.decoder import Decoder
    from mads.reward.losses import LossSignal
    from mads.reward.steps import RewardContext
    from mads.train.reward_model import EngineRewardModel

    built = support.make_engine(stage)
    plain = Decoder(built.config.model, seed=0)

    def loss(sample):
        b = make_batch([[sample]], 32)
        with torch.no_grad():
            return plain(b.tokens, b.labels, b.positions, b.segments)[0].item()

    samples, tasks = [*support.random_samples(11, seed=5), np.array([7])], cases.references()
    context = RewardContext(EngineRewardModel(built.engine), tasks, built.topology, 32, 0, 3, 300)
    signal = LossSignal(context, tasks, 4)
    found = [signal(None, samples, round_) for round_ in (1, 2)]
    np.testing.assert_allclose(found[0].rewards, [loss(s) / max(1, len(s) - 1) for s in samples], rtol=1e-5)
    assert found[0].targets.tolist() == [len(s) - 1 for s in samples] and found[0].direction["mode"] == "reference_loss"
    for task in tasks:
        windows = task.windows("direction", 4, 0)
        expected = sum(loss(w) for w in windows) / sum(len(w) - 1 for w in windows)
        assert found[0].references[task.name] == pytest.approx(expected, rel=1e-5)
        assert found[0].direction[f"loss on {task.name}"] == found[0].references[task.name]
    assert found[0].references == found[1].references  # the same examples in every round
    alone = LossSignal(context, [], 4)(None, samples, 1)
    assert alone.direction["flops"] == 100 * sum(len(s) for s in samples)  # a forward pass is a third of training
    assert alone.references == {} and np.array_equal(alone.rewards, found[0].rewards)


@pytest.mark.parametrize("stage", [1, 3])
def test_losses_are_those_of_single_samples(stage):
    run_ranks(2, check_losses_are_those_of_single_samples, stage, timeout=180)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return str(prepare_small(tmp_path_factory.mktemp("corpus")))


def train_until(prepared, run_dir, stops, overrides):
    """Train in as many lives as there are stops; returns master weights and the console's state of the last."""
    import torch.distributed as dist
    from run_support import run_config, trainer

    for stop in stops:
        made = trainer(run_config(prepared, run_dir, *overrides, world=dist.get_world_size()))
        made.run(until=stop)
    engine = made.parts.engine
    return {n: engine.state.full(p, "weight").numpy().copy() for n, p in engine.parameters}, made.parts.console.state()


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """Each run in one life on one rank: name -> (its folder, what `train_until` returns)."""
    done = {}

    def run(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name) / "run"
            done[name] = folder, run_ranks(1, train_until, prepared, str(folder), [STEPS], RUNS[name], timeout=240)[0]
        return done[name]

    return run


FULL = pytest.mark.full


@pytest.mark.parametrize("name", [pytest.param("odm", marks=FULL), "ado", "aioli"])
def test_a_run_that_stops_inside_a_round_goes_on_bit_for_bit(prepared, whole, tmp_path, name):
    folder, expected = whole(name)
    [found] = run_ranks(1, train_until, prepared, str(tmp_path / "run"), [7, STEPS], RUNS[name], timeout=240)
    assert all(np.array_equal(found[0][n], expected[0][n]) for n in expected[0])
    assert json.dumps(found[1]) == json.dumps(expected[1])
    assert curve(tmp_path / "run") == curve(folder)


@pytest.mark.parametrize("name", ["odm", "aioli", *(pytest.param(name, marks=FULL) for name in ("ado", "mates"))])
def test_two_ranks_decide_as_one(prepared, whole, tmp_path, name):
    folder, _ = whole(name)
    run_ranks(
        2, train_until, prepared, str(tmp_path / "run"), [STEPS], [*RUNS[name], "selection.exchange=threshold"], timeout=240
    )
    (metrics, ours), (metrics_1, theirs) = curve(tmp_path / "run"), curve(folder)
    assert [d["hash"] for d in ours] == [d["hash"] for d in theirs] and len(ours) == STEPS // 2
    assert [m["loss"] for m in metrics if "loss" in m] == pytest.approx([m["loss"] for m in metrics_1 if "loss" in m], rel=2e-5)


@pytest.mark.parametrize("name", ["odm", "ado", "aioli"])
def test_records_show_the_mix_that_was_asked_for_and_kept(whole, name):
    folder, _ = whole(name)
    _, decisions = curve(folder)
    mixes = []
    for decision in decisions:
        rows = decision["labels"]["domain"]
        mixes.append([row["weight"] for row in rows])
        assert sum(mixes[-1]) == pytest.approx(1)
        for row in rows:  # shares are met to within a sample of 32 tokens
            assert row["chosen_share"] == pytest.approx(row["weight"], abs=3 * 32 / decision["chosen_tokens"])
            if decision["round"] > 0:
                assert 1 < row["reward_mean"] < 8 and row["reward_se"] > 0 and row["probes"] == (4 if name == "aioli" else 8)
        assert decision["theta"] == {"domain": 1.0}
        mode = {} if decision["round"] == 0 else {"mode": "reference_loss" if name == "aioli" else "loss"}
        assert decision["direction"].get("mode") == mode.get("mode")
        assert len(decision["direction"]) == (
            5 if name == "aioli" and mode else 3 * len(mode)
        )  # two tasks, mode, and what it cost
    moved = {"odm": 2, "ado": 3, "aioli": 1}[name]  # the first round whose mix follows losses; eps_2 = 1/3
    assert all(mix == mixes[0] for mix in mixes[:moved]) and mixes[moved] != mixes[0]
