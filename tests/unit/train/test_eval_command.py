"""`mads eval`: a checkpoint's figures are those of its logits, window by window, and every setting that cannot be is told."""

import json
import math

import pytest
import torch
from export_support import write_run

from mads.cli import main
from mads.data.schema import sha256_of
from mads.data.tokenizer import Tokenizer

QUESTIONS = [
    {"query": "Question: What did the ship carry over the sea?", "choices": ["gold", "salt and a barrel of rum"], "gold": 1},
    {"query": "Question: Who? " + "long words of a long text " * 12, "choices": ["the captain", "nobody"], "gold": 0},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with one checkpoint of a model with large random weights, and that model."""
    folder = tmp_path_factory.mktemp("run")
    model = write_run(folder, scale=5.0)
    (folder / "a.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    (folder / "b.jsonl").write_text(json.dumps({"text": "A recipe for bread: flour, water and salt."}) + "\n")
    return folder, model


def bits_of(model, tokens):
    """-log2 of the probability of every token behind the first, each window of 32 on its own through softmax of the logits."""
    total = 0.0
    for start in range(0, len(tokens) - 1, 31):
        window = torch.tensor(tokens[start : start + 32]).long()[None]
        positions, segments = torch.arange(window.shape[1])[None], torch.zeros_like(window)
        for target in range(1, window.shape[1]):
            labels = torch.full_like(window, -100)
            labels[0, target - 1] = window[0, target]
            with torch.no_grad():
                total += model(window, labels, positions, segments)[1].double().sum().item() / math.log(2)
    return total


def test_figures_are_those_of_single_tokens(run, capsys):
    folder, model = run
    tokenizer = Tokenizer.open(folder / "data" / "tokenizer.model")
    assert main(["eval", str(folder), f"a={folder}/a.jsonl", f"b={folder}/b.jsonl", "--apart", "b", "--examples"]) == 0
    assert "mean of tasks" in capsys.readouterr().out
    result = json.loads((folder / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (folder / "evaluation.examples.jsonl").read_text().splitlines()]
    texts = ["What did the ship carry over the sea? salt and a barrel of rum", "Who? " + "long words of a long text " * 12]
    texts[1] = texts[1].strip() + " the captain"
    for row, text in zip(rows, texts):
        tokens = tokenizer.encode([text])[0].tolist()
        assert row["bits"] == pytest.approx(bits_of(model, tokens), rel=1e-4)
        assert row["bytes"] == len(text.encode()) - len(tokenizer.decode(tokens[:1]).encode())
    a = result["tasks"]["a"]
    assert a["bits_per_byte"] == pytest.approx(sum(r["bits"] for r in rows[:2]) / sum(r["bytes"] for r in rows[:2]))
    assert a["windows"] > 3 and a["examples"] == 2 and [r["task"] for r in rows] == ["a", "a", "b"]
    assert result["mean_bits_per_byte"] == a["bits_per_byte"] and result["apart"] == ["b"]
    assert (result["checkpoint"], result["step"], result["tokens"]) == ("step-00000007", 7, 1234)
    assert result["files"] == {name: sha256_of(folder / f"{name}.jsonl") for name in "ab"}
    out = folder / "other" / "result.json"
    given = [str(folder / "checkpoints" / "step-00000007"), f"a={folder}/a.jsonl", "--limit", "1", "--out", str(out)]
    assert main(["eval", *given]) == 0 and json.loads(out.read_text())["tasks"]["a"]["examples"] == 1


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["a"], "'a' is not of the form TASK=FILE"),
        (["a={folder}/a.jsonl", "a={folder}/b.jsonl"], "do not all have names of their own"),
        (["a={folder}/a.jsonl", "--apart", "c"], "--apart c is none of the tasks"),
        (["a={folder}/a.jsonl", "--limit", "0"], "--limit=0 must be at least 1"),
        (["a={folder}/none.jsonl"], "there is no file"),
        (["a={folder}/a.jsonl", "--data", "{folder}/none"], "none"),
    ],
)
def test_what_cannot_be_evaluated_is_told(run, capsys, arguments, complaint):
    folder, _ = run
    assert main(["eval", str(folder), *(a.format(folder=folder) for a in arguments)]) == 2
    assert complaint in capsys.readouterr().err
    assert main(["eval", str(folder / "data"), f"a={folder}/a.jsonl"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
