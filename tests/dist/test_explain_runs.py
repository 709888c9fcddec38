"""`mads explain` over real runs of every selection: each sample of a round, as it was decided and trained on."""

import json

import numpy as np
import pytest
from harness import run_ranks
from run_support import prepare_small

from mads.explain.replay import replay
from mads.explain.verdict import Explainer

COMMON = [
    "train.steps=7",
    "selection.interval=2",
    "selection.margin=0.5",
    "train.eval_interval=7",
    "train.eval_samples=2",
    "train.micro_batch_size=8",
    "train.invariant_interval=100",
]
REWARDS = ["reward.reference_examples=8", "reward.rows_per_batch=8"]
RUNS = {
    "random": ["selection=random"],
    "stratified": ["selection=stratified", "selection.attribute=topic"],
    "paper": ["selection=paper", "selection.probes_per_agent=16", *REWARDS],
    "mads": [*REWARDS],
}


def train(prepared, folder):
    """All runs; by name, of each round: use counts before it, and the ids that steps trained on."""
    from run_support import run_config, trainer

    heard = {}
    for name, overrides in RUNS.items():
        made = trainer(run_config(prepared, f"{folder}/{name}", *COMMON, *overrides))
        rounds = heard[name] = []
        decide, next_ = made.parts.console.decide, made.parts.loader.next

        def decided(rewards, uses, *rest, rounds=rounds, decide=decide):
            rounds.append((np.array(uses), {}))
            return decide(rewards, uses, *rest)

        def taken(rounds=rounds, next_=next_, made=made):
            batch = next_()
            rounds[-1][1].update(dict.fromkeys(batch.sample_ids.tolist(), made.step + 1))
            return batch

        made.parts.console.decide, made.parts.loader.next = decided, taken
        made.run()
    return heard


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    prepared = str(prepare_small(folder))
    [heard] = run_ranks(1, train, prepared, str(folder), timeout=400)
    return folder, heard


@pytest.mark.parametrize("name, round_", [("random", 1), ("stratified", 2), ("paper", 2), ("mads", 0), ("mads", 3)])
def test_every_sample_of_a_real_round_is_explained(trained, name, round_):
    folder, heard = trained
    uses, step_of = heard[name][round_]
    explainer, ids = Explainer(replay(folder / name, round_)), np.load(folder / name / f"decisions/round-{round_:05d}.npy")[3:]
    assert np.array_equal(explainer.replayed.uses, uses) and (uses.any() or round_ == 0)
    record = json.loads((folder / name / "decisions.jsonl").read_text().splitlines()[round_])
    chosen, pool = set(ids.tolist()), explainer.replayed.pool
    for id_ in np.asarray(pool.ids).tolist():
        e = explainer.explain(id_)
        assert e.chosen == (id_ in chosen) and (e.trained is True) == (id_ in step_of)
        assert not e.trained or e.step == step_of[id_]
        if e.standing.total is not None:
            weights = {a: {row["label"]: row["weight"] for row in rows} for a, rows in record["labels"].items()}
            total = sum(theta * weights[agent][e.labels[agent]] for agent, theta in record["theta"].items())
            assert e.standing.total == pytest.approx(total, abs=1e-14)
    assert len(step_of) < len(ids)  # the margin was left over


def test_states_are_small(trained):
    """What a round's line carries so that agents can be restored."""
    folder, _ = trained
    three = {"quality", "domain", "topic"}
    for name, agents in (("paper", three), ("mads", three | {"likeness"})):
        lines = (folder / name / "decisions.jsonl").read_text().splitlines()
        assert all(set(json.loads(line)["states"]) == agents for line in lines)
        assert max(len(json.dumps(json.loads(line)["states"])) for line in lines) < 2500
