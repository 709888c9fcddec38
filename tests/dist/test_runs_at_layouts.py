"""Whole runs with selection and rewards at other layouts (X3, K1, K6): the same samples are chosen, the losses are equal, and a
run goes on at another layout in the middle of a round."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness import run_ranks
from run_support import curve

from mads.logging.decisions import read_decision

SIZES = {"tp": "tensor_model_parallel_size", "pp": "pipeline_model_parallel_size", "cp": "context_parallel_size"}
MODEL = ["model.num_key_value_heads=4", "model.num_layers=2", "reward=ghost", "optim.eps=1e-4", "schedule.warmup_steps=2"]


def layout(zero=1, sequence_parallel=False, **sizes):
    return [
        *MODEL,
        f"parallel=zero{zero}",
        *[f"parallel.{SIZES[axis]}={size}" for axis, size in sizes.items()],
        *(["parallel.sequence_parallel=true"] if sequence_parallel else []),
    ]


def train(prepared, run_dir, stop, overrides):
    """Train (or go on) until a step; returns the ledger's counts of the whole pool and the ids of the last batch."""
    import torch.distributed as dist
    from run_support import run_config, trainer

    from mads.collectives import ragged_all_gather

    made = trainer(run_config(prepared, run_dir, *overrides, world=dist.get_world_size()))
    made.run(until=stop)
    counts = ragged_all_gather(made.parts.ledger.counts, made.topology.group("control"))
    return np.concatenate(counts).tolist(), made.batch.sample_ids.tolist()


def assert_equal_runs(folder, alone, until=12):
    """The same decisions and losses; what the ledger and the last batch say is compared by the caller."""
    (metrics, decisions), (metrics_1, decisions_1) = curve(folder), curve(alone)
    assert [d["hash"] for d in decisions] == [d["hash"] for d in decisions_1] and len(decisions) == 3
    for round_ in range(3):
        assert np.array_equal(read_decision(folder, round_), read_decision(alone, round_))
    assert [m["step"] for m in metrics] == [m["step"] for m in metrics_1]
    for ours, theirs in zip(metrics, metrics_1):
        for key in ("loss", "grad_norm", "heldout_mean", "references_mean"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=2e-5), (ours["step"], key)
    for ours, theirs in zip(decisions, decisions_1):
        assert ours["agent_rewards"] == pytest.approx(theirs["agent_rewards"], rel=1e-2, abs=1e-3)


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    [result] = run_ranks(1, train, prepared, str(folder), 12, layout(zero=0), timeout=240)
    return folder, result


@pytest.mark.parametrize(
    "world, overrides",
    [
        (2, layout(tp=2, zero=3)),
        (4, layout(pp=2, tp=2, sequence_parallel=True)),
        (4, layout(cp=2, zero=2)),
    ],
    ids=["tp2-zero3", "pp2-tp2-sp", "dp2-cp2-zero2"],
)
def test_x3_runs_choose_the_same_samples_and_have_the_same_losses(prepared, alone, tmp_path, world, overrides):
    folder, result = alone
    found = run_ranks(world, train, prepared, str(tmp_path / "run"), 12, overrides, timeout=300)
    assert all(rank == result for rank in found)
    assert_equal_runs(tmp_path / "run", folder)
    assert json.loads((Path(tmp_path) / "run" / "decisions.jsonl").read_text().splitlines()[1])["agent_rewards"]


def test_k1_k6_a_run_goes_on_at_another_layout_in_the_middle_of_a_round(prepared, alone, tmp_path):
    folder, result = alone
    run = str(tmp_path / "run")
    run_ranks(4, train, prepared, run, 4, layout(pp=2, tp=2), timeout=300)
    run_ranks(2, train, prepared, run, 7, layout(tp=2, zero=3), timeout=300)
    run_ranks(2, train, prepared, run, 9, layout(pp=2, zero=0), timeout=300)
    found = run_ranks(4, train, prepared, run, 12, layout(cp=2, zero=2), timeout=300)
    assert all(rank == result for rank in found)
    assert_equal_runs(Path(run), folder)
