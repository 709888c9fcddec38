"""`mads eval --harness` finds what the harness's own adapter for transformers finds on the exported model."""

import json
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest
import torch
from export_support import write_plain_tokenizer, write_run
from harness_support import CONTEXTS, write_tasks

from mads.cli import main
from mads.launch.one_process import one_process


def theirs(folder, tasks, include_path, num_fewshot=None):
    """Results and samples of the harness's own adapter."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(folder), device="cpu", batch_size=3, dtype="float32")
    manager = TaskManager(include_path=str(include_path), include_defaults=False)
    with one_process():
        return evaluator.simple_evaluate(model=model, tasks=tasks, task_manager=manager, num_fewshot=num_fewshot)


def check_numbers(folder):
    (folder / "run").mkdir()
    write_run(folder / "run", "model.vocab_size=431", "model.tie_embeddings=false", scale=4.0)
    tasks = write_tasks(folder)
    assert main(["export", str(folder / "run"), "--out", str(folder / "hf")]) == 0
    given = ["--harness", *tasks, "--include-path", str(folder / "tasks"), "--examples"]
    assert main(["eval", str(folder / "run"), *given]) == 0
    expected = theirs(folder / "hf", tasks, folder / "tasks")
    compared, rows = compare(folder / "run", expected, tasks)
    assert compared >= 7
    return rows


def compare(run, expected, tasks):
    """evaluation.json and the examples beside it, held to what the other adapter found: how many metrics, and the rows."""
    ours = json.loads((run / "evaluation.json").read_text())["harness"]
    rows = [json.loads(line) for line in (run / "evaluation.examples.jsonl").read_text().splitlines()]
    compared = 0
    for task in tasks:
        for metric, value in expected["results"][task].items():
            if isinstance(value, float) and "stderr" not in metric:
                assert ours["results"][task][metric] == pytest.approx(value, rel=1e-5), (task, metric)
                compared += 1
        samples = [row for row in rows if row["task"] == task]
        assert len(samples) == len(expected["samples"][task]) == len(CONTEXTS)
        for own, other in zip(samples, expected["samples"][task]):
            assert own["doc_id"] == other["doc_id"]
            check_answers(own["filtered_resps"], other["filtered_resps"], f"{task} {own['doc_id']}")
    return compared, rows


def check_answers(ours, expected, what):
    assert len(ours) == len(expected), what
    for own, other in zip(ours, expected):
        if isinstance(other, str):
            assert own == other, what
        elif isinstance(other, float):
            assert own == pytest.approx(other, rel=1e-5), what
        else:
            assert own[0] == pytest.approx(float(other[0]), rel=1e-5, abs=1e-4) and own[1] == bool(other[1]), what


def check_numbers_anywhere():
    with tempfile.TemporaryDirectory() as folder:
        check_numbers(Path(folder))


def test_numbers_equal_those_of_the_exported_model_under_the_harness_itself(tmp_path):
    rows = check_numbers(tmp_path)
    texts = [row["filtered_resps"][0] for row in rows if row["task"] == "mads_writes"]
    assert len(set(texts)) > 2 and not any("a" in text for text in texts)  # cut at the stop word


def test_a_group_with_examples_before_each_question(run):
    assert main(["export", str(run / "run"), "--out", str(run / "hf")]) == 0
    tasks, folder = ["mads_group", "mads_whole_text", "mads_writes"], str(run / "tasks")
    given = ["--harness", *tasks, "--include-path", folder, "--examples", "--num-fewshot", "2"]
    assert main(["eval", str(run / "run"), *given]) == 0
    expected = theirs(run / "hf", tasks, folder, num_fewshot=2)
    compared, rows = compare(run / "run", expected, ["mads_choice", "mads_last_word", "mads_whole_text", "mads_writes"])
    shots = [row for row in rows if row["task"] in ("mads_choice", "mads_writes")]
    assert compared >= 7 and all(row["arguments"][0][0].count("\n\n") >= 2 for row in shots)
    found = json.loads((run / "run" / "evaluation.json").read_text())["harness"]
    assert found["groups"]["mads_group"]["acc,none"] == pytest.approx(expected["groups"]["mads_group"]["acc,none"])
    assert found["n-shot"]["mads_choice"] == 2 and len(found["task_hashes"]["mads_choice"]) == 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    (folder / "run").mkdir()
    write_run(folder / "run")
    write_plain_tokenizer(folder / "run" / "data")  # of another kind than above, without a beginning of text
    write_tasks(folder)
    return folder


def test_both_kinds_of_tasks_in_one_call(run, capsys):
    (run / "b.jsonl").write_text(json.dumps({"text": "A recipe for bread: flour, water and salt."}) + "\n")
    out = run / "result.json"
    given = ["--harness", "mads_choice", "--include-path", str(run / "tasks"), "--limit", "3", "--out", str(out)]
    assert main(["eval", str(run / "run"), f"b={run}/b.jsonl", *given]) == 0
    result = json.loads(out.read_text())
    assert result["tasks"]["b"]["examples"] == 1 and result["harness"]["n-samples"]["mads_choice"]["effective"] == 3
    said = capsys.readouterr().out
    assert "mads_choice" in said and " acc " in said and "bits per byte" in said


def task_file(run, name, **changes):
    lines = (run / "tasks" / f"{name}.yaml").read_text().replace(f"mads_{name}", f"odd_{len(list(run.glob('*/*')))}")
    for old, new in changes.values():
        assert old in lines
        lines = lines.replace(old, new)
    folder = run / f"odd{len(list(run.iterdir()))}"
    folder.mkdir()
    (folder / "task.yaml").write_text(lines)
    return folder, lines.split("\n")[0].split()[1]


def test_what_cannot_be_done_is_told(run, capsys):
    def told(*arguments):
        assert main(["eval", str(run / "run"), *map(str, arguments)]) == 2
        return capsys.readouterr().err

    tasks = ["--include-path", run / "tasks"]
    assert "nothing to evaluate" in told()
    assert "say with --include-path in which folder" in told("--harness", "mads_choice")
    assert "--num-fewshot is for --harness only" in told("b=b.jsonl", "--num-fewshot", "2")
    assert "--batch-size=0 must be at least 1" in told("--harness", "mads_choice", *tasks, "--batch-size", "0")
    assert "is no folder" in told("--harness", "mads_choice", "--include-path", run / "none")
    message = told("--harness", "arc_easy", *tasks)
    assert "arc_easy is in no YAML file below" in message and "mads_whole_text" in message
    folder, name = task_file(run, "writes", sampling=("do_sample: false", "do_sample: true"))
    assert "ask for more than greedy generation (sampling)" in told("--harness", name, "--include-path", folder)
    folder, name = task_file(run, "writes", beams=("do_sample: false", "num_beams: 4"))
    assert "ask for more than greedy generation (num_beams)" in told("--harness", name, "--include-path", folder)
    folder, name = task_file(run, "writes", none=("max_gen_toks: 12", "max_gen_toks: 0"))
    assert "ask for 0 tokens, which must be at least 1" in told("--harness", name, "--include-path", folder)
    folder, name = task_file(run, "last_word", empty=('"{{word}}"', '""'))
    assert "has no token of its own" in told("--harness", name, "--include-path", folder)
    folder, name = task_file(run, "choice", fixed=("output_type", "num_fewshot: 0\noutput_type"))
    message = told("--harness", name, "--include-path", folder, "--num-fewshot", "2")
    assert f"--num-fewshot=2 has no effect on {name}, whose file has num_fewshot: 0" in message
    folder, name = task_file(run, "writes", most=("max_gen_toks: 12", "max_gen_toks: 32"))
    assert "generates up to 32 tokens, and the model has 32 positions" in told("--harness", name, "--include-path", folder)
    folder, name = task_file(run, "last_word", long=('"{{word}}"', '"{{word * 40}}"'))
    assert "cannot be scored by a model of 32 positions" in told("--harness", name, "--include-path", folder)
    folder, name = task_file(run, "choice", hub=("dataset_path: json", "dataset_path: nobody/of-this-name"))
    assert "its data must be local" in told("--harness", name, "--include-path", folder)


def test_the_harness_missing_is_told(run, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "mads.train.harness", raising=False)
    assert main(["eval", str(run / "run"), "--harness", "mads_choice", "--include-path", str(run / "tasks")]) == 2
    assert "pip install 'mads[eval]'" in capsys.readouterr().err


def test_batches_do_not_matter(run):
    from lm_eval.api.instance import Instance

    from mads.train.harness import DecoderLM
    from mads.train.inference import SavedModel

    saved = SavedModel.find(run / "run")
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, word), idx=i)
        for i, (context, word) in enumerate((c, w) for c in CONTEXTS for w in ("oven", " of the"))
    ]
    alone, together = (DecoderLM(saved, torch.device("cpu"), size).loglikelihood(requests) for size in (1, 7))
    assert [greedy for _, greedy in alone] == [greedy for _, greedy in together]
    assert [found for found, _ in alone] == pytest.approx([found for found, _ in together], rel=1e-5)


def test_no_process_is_forked_for_standard_errors(run, monkeypatch):
    monkeypatch.setattr(multiprocessing, "Pool", None)
    given = ["--harness", "mads_last_word", "--include-path", str(run / "tasks")]
    assert main(["eval", str(run / "run"), *given]) == 0
    found = json.loads((run / "run" / "evaluation.json").read_text())["harness"]["results"]["mads_last_word"]
    assert found["perplexity_stderr,none"] > 0
    assert "DISABLE_MULTIPROC" not in os.environ
