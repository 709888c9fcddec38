"""A corpus that grows in the middle of a run: old samples keep ids and use counts; what was taken up when is repeated exactly."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness import run_ranks
from run_support import PREPARE, curve, prepare_small, write_corpus

CURVE = ["train.prefetch=2", "checkpoint.interval=7"]


def append(folder: Path, seed: int) -> None:
    """Add a corpus of other documents to the prepared directory, by the command."""
    from mads.cli import main

    write_corpus(folder / f"more{seed}", documents=30, seed=seed)
    tasks = [f"data.reference_paths.{task}={folder}/{task}.jsonl" for task in ("galley", "voyage")]
    paths = f"data.paths=[{folder}/more{seed}/corpus.jsonl]"
    assert main(["prepare", "--append", "--workers", "1", *PREPARE, paths, *tasks, f"data.dir={folder}/prepared"]) == 0


def train(prepared, run_dir, stop, overrides):
    """One life of a run up to `stop`; its ledger of all slices, and its pending ids."""
    import torch.distributed as dist
    from run_support import run_config, trainer

    made = trainer(run_config(prepared, run_dir, *CURVE, *overrides, world=dist.get_world_size()))
    made.run(until=stop)
    return made.parts.ledger.counts.copy(), made.parts.ledger.total, np.asarray(made.parts.console.pending), len(made.parts.pool)


def ledger_of(results):
    return np.concatenate([counts for counts, *_ in results])


@pytest.fixture
def grown(tmp_path):
    """A run that is interrupted in its second round, when the corpus grows, and goes on to the end."""
    prepare_small(tmp_path)
    run, prepared = tmp_path / "run", str(tmp_path / "prepared")
    before = run_ranks(2, train, prepared, str(run), 7, [], timeout=240)
    append(tmp_path, 1)
    shutil.copytree(run, tmp_path / "at7")
    after = run_ranks(2, train, prepared, str(run), 12, ["train.grow_pool=true"], timeout=240)
    return tmp_path, before, after


def test_growth_is_taken_up_at_the_next_decision_and_recorded(grown):
    folder, before, after = grown
    old, new = before[0][3], after[0][3]
    entries = [json.loads(line) for line in (folder / "run/pool.jsonl").read_text().splitlines()]
    assert [(e["round"], e["samples"]) for e in entries] == [(0, old), (2, new)] and new > old
    decisions = curve(folder / "run")[1]
    assert [sum("has grown" in note for note in d["notes"]) for d in decisions] == [0, 0, 1]
    assert f"it holds {new:,} samples now" in " ".join(decisions[2]["notes"])
    shards = after[0][2] >> 40
    assert (shards < entries[0]["shards"]).any() and (shards >= entries[0]["shards"]).any()
    counts = ledger_of(after)  # old samples keep their counts, at their old positions
    assert len(counts) == new and (counts[:old] >= ledger_of(before)).all() and counts.sum() == after[0][1]
    assert counts[old:].sum() > 0


def test_without_the_key_the_run_goes_on_as_if_nothing_had_been_added(grown, tmp_path_factory):
    folder, _, _ = grown
    stays = run_ranks(2, train, str(folder / "prepared"), str(folder / "at7"), 12, [], timeout=240)
    other = tmp_path_factory.mktemp("other")
    prepare_small(other)
    alone = run_ranks(2, train, str(other / "prepared"), str(other / "run"), 12, [], timeout=240)
    assert np.array_equal(ledger_of(stays), ledger_of(alone)) and curve(folder / "at7") == curve(other / "run")


def test_a_resumed_run_takes_the_same_shards_up_in_the_same_round(grown):
    folder, _, after = grown
    whole = curve(folder / "run")
    append(folder, 2)  # comes too late for the rounds that are repeated
    for path in (folder / "run/checkpoints").glob("step-*"):  # back to the checkpoint before the growth, as after a kill
        if path.name != "step-00000007":
            shutil.rmtree(path)
    (folder / "run/checkpoints/latest").write_text("step-00000007")
    again = run_ranks(2, train, str(folder / "prepared"), str(folder / "run"), 12, ["train.grow_pool=true"], timeout=240)
    assert np.array_equal(ledger_of(again), ledger_of(after)) and np.array_equal(again[0][2], after[0][2])
    assert curve(folder / "run") == whole
