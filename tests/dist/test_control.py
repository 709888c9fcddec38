"""X6, the control experiment: agents that never learn choose like `random`, so the whole run must equal it bit for bit although
rewards are computed in every round."""

import numpy as np
import pytest
from harness import run_ranks
from run_support import curve


def train(prepared, run_dir, overrides):
    import torch.distributed as dist
    from run_support import run_config, trainer

    made = trainer(run_config(prepared, run_dir, *overrides, world=dist.get_world_size()))
    made.run()
    return {n: made.parts.engine.state.full(p, "weight").numpy().copy() for n, p in made.parts.engine.parameters}


@pytest.mark.parametrize("zero, reward", [(1, "finite_difference"), (3, "ghost")])
def test_x6_uniform_scores_with_selection_on_equal_plain_shuffled_training(prepared, tmp_path, zero, reward):
    # A rate this small leaves weights far below the last bit of the noise.
    indifferent = ["selection.agent_rate=1e-30", "selection.warmup_rounds=0", "selection.selector=gumbel"]
    indifferent += [f"reward={reward}", f"parallel=zero{zero}"]
    chosen = run_ranks(2, train, prepared, str(tmp_path / "mads"), indifferent, timeout=180)
    shuffled = run_ranks(2, train, prepared, str(tmp_path / "random"), ["selection=random", f"parallel=zero{zero}"], timeout=180)
    (ours, decided), (theirs, drawn) = curve(tmp_path / "mads"), curve(tmp_path / "random")
    assert ours == theirs
    assert [d["hash"] for d in decided] == [d["hash"] for d in drawn]
    assert all(d["direction"]["norm"] > 0 for d in decided)  # rewards were computed, and left no trace
    assert all(np.array_equal(chosen[0][n], shuffled[0][n]) for n in chosen[0])


def decide(prepared, run_dir):
    import torch.distributed as dist
    from run_support import run_config, trainer

    made = trainer(run_config(prepared, run_dir, "selection=stratified", "train.steps=6", world=dist.get_world_size()))
    made.run()
    ledger = made.parts.ledger
    return made.parts.console.pending.tolist(), made.batch.sample_ids.tolist(), ledger.total, ledger.counts.tolist()


def test_x1_the_number_of_ranks_does_not_change_what_is_trained_on(prepared, tmp_path):
    runs = [run_ranks(world, decide, prepared, str(tmp_path / str(world))) for world in (1, 2, 4)]
    assert runs[0][0][:3] == runs[1][0][:3] == runs[1][1][:3] == runs[2][3][:3]
    ledgers = [sum((counts for *_, counts in run), []) for run in runs]  # each rank counts its slice
    assert ledgers[0] == ledgers[1] == ledgers[2] and sum(ledgers[0]) == runs[0][0][2] > 0


def choose_long(prepared, run_dir, until):
    import torch.distributed as dist
    from run_support import run_config, trainer

    alone = [f"~agents.members.{name}" for name in ("quality", "domain", "topic", "likeness")]
    own = "agents.members.long={_target_: own_agent.LengthAgent, attribute: domain}"
    overrides = [*alone, own, "selection.warmup_rounds=0", "selection.interval=2", "train.steps=4"]
    made = trainer(run_config(prepared, run_dir, *overrides, world=dist.get_world_size()))
    made.run(until)
    lengths = np.asarray(made.parts.pool.lengths)
    return float(lengths[made.parts.pool.positions_of(made.parts.console.pending)].mean()), float(lengths.mean())


def test_an_agent_from_outside_the_package_decides_and_resumes(prepared, tmp_path):
    run_ranks(2, choose_long, prepared, str(tmp_path), 1, timeout=180)
    chosen, pool = run_ranks(2, choose_long, prepared, str(tmp_path), 4, timeout=180)[0]
    assert chosen > pool + 1  # temperature 0.5 against scores up to 100: the longest unused samples
    assert [d["theta"] for d in curve(tmp_path)[1]] == [{"long": 1.0}] * 2
