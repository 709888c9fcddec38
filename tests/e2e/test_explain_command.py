"""`mads explain` as a user calls it."""

import json

import pytest
from command_support import MADS, expect_bad_input, run
from explain_support import light_run
from support import make_pool

from mads.cli import main


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run folder, and what its last round chose."""
    folder = tmp_path_factory.mktemp("explain")
    make_pool(folder / "data", documents=30, shard_tokens=700)
    small = ["selection.interval=2", "train.global_batch_size=4", "train.micro_batch_size=4", "selection.probes=60"]
    return folder, light_run(folder / "run", folder / "data", *small, rounds=3)[-1]


def test_a_chosen_and_a_left_out_sample_are_explained(told):
    folder, seen = told
    chosen = int(seen.ids[0])
    left_out = next(i for i in range(200) if i not in set(seen.ids.tolist()))
    text = run([*MADS, "explain", folder / "run", "--sample", f"{chosen >> 40}:{chosen % (1 << 40)}", "--round", "2"], folder)
    assert text.returncode == 0, text.stderr
    assert f"(id {chosen}) in round 2" in text.stdout and "selection=mads: chosen, place 0" in text.stdout
    for word in ("theta x score", "quality=", "last one: key", "S = ", "Step 5 trained on it."):
        assert word in text.stdout, (word, text.stdout)
    said = run([*MADS, "explain", "run", "--sample", left_out, "--round", "2", "--json", "--data", "data"], folder)
    value = json.loads(said.stdout)
    assert value["id"] == left_out and value["chosen"] is False and len(value["agents"]) == 4 and value["why"]


def test_bad_input_is_told_in_one_line(told, capsys):
    folder, _ = told
    expect_bad_input(run([*MADS, "explain", "run", "--sample", "900:0", "--round", "1"], folder), "no sample", "900:0")
    for name, sample, round_, words in (
        ("run", "0:0", "7", "no round 7: decisions.jsonl holds the rounds 0 to 2"),
        ("nowhere", "0:0", "0", "nowhere is not a folder"),
        ("run", "first", "0", "--sample 'first' is neither"),
    ):
        assert main(["explain", str(folder / name), "--sample", sample, "--round", round_]) == 2
        said = capsys.readouterr().err
        assert said.startswith("mads explain: ") and words in said and said.count("\n") == 1, said
