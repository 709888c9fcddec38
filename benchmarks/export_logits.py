"""How equal an exported model is: logits against transformers, and numbers of lm-evaluation-harness against its own adapter.

    OMP_NUM_THREADS=1 python -m benchmarks.export_logits layouts --data LAB/data --folder FOLDER [--only SIZE ...]
    OMP_NUM_THREADS=1 python -m benchmarks.export_logits harness --run RUN --tasks LAB/tasks --folder FOLDER

The first form trains each size for a few steps at each layout, with real ranks, exports what they saved, and compares on held-out
rows; one line of JSON for each goes to FOLDER/layouts.jsonl, and what is there is not done again. The second form evaluates a
trained run twice: `mads eval --harness` on its checkpoint, and the harness with HFLM on the exported folder. The third,
`table --folder FOLDER`, prints both as the tables of export.md. LAB is what benchmarks.lab writes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from mads.cli import main as mads
from mads.config.compose import compose
from mads.data.pool import Pool
from mads.launch.one_process import one_process
from mads.model.shape import parameter_count
from mads.train.inference import SavedModel

SIZES = {
    "1.3M": ["model=tiny"],
    "12M": [
        "model=tiny",
        "model.hidden_size=320",
        "model.num_layers=8",
        "model.ffn_hidden_size=896",
        "model.tie_embeddings=false",
        "model.rope_theta=500000",
    ],
    "103M": [
        "model=tiny",
        "model.hidden_size=768",
        "model.num_layers=14",
        "model.num_attention_heads=12",
        "model.num_key_value_heads=4",
        "model.ffn_hidden_size=2304",
        "model.tie_embeddings=false",
    ],
}
TP, PP, CP = (f"parallel.{kind}_parallel_size=2" for kind in ("tensor_model", "pipeline_model", "context"))
LAYOUTS = {  # name -> ranks, overrides
    "1 rank": (1, ["parallel=zero0"]),
    "dp2, ZeRO 1": (2, ["parallel=zero1"]),
    "dp2, ZeRO 2": (2, ["parallel=zero2"]),
    "dp2, ZeRO 3": (2, ["parallel=zero3"]),
    "tp2": (2, ["parallel=zero0", TP]),
    "tp2 with sequence parallelism": (2, ["parallel=tp2_sp"]),
    "pp2": (2, ["parallel=zero0", PP]),
    "cp2": (2, ["parallel=cp2"]),
    "tp2, dp2, ZeRO 1": (4, ["parallel=zero1", TP]),
    "pp2, dp2, ZeRO 1": (4, ["parallel=zero1", PP]),
    "tp2, pp2": (4, ["parallel=3d"]),
}
FEWER = {"12M": ["1 rank", "dp2, ZeRO 3", "tp2", "pp2", "tp2, pp2"], "103M": ["tp2", "dp2, ZeRO 3"]}
STEPS, ROWS, LENGTH = 3, 16, 128
TRAIN = [
    "data=prepared",
    f"data.seq_length={LENGTH}",
    "selection=random",
    "schedule=constant",
    "schedule.warmup_steps=1",
    "optim.lr=0.003",
    f"train.steps={STEPS}",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.eval_samples=2",
    "logging.console=false",
]
LIMITS = {"arc_easy": 300, "piqa": 300, "texts": 100, "writes": 60}  # examples
MOST_CHARACTERS = 200  # of an answer, which must fit into a row
COMMON = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
  cache_dir: {cache}
test_split: test
"""
CHOICE = """output_type: multiple_choice
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
TASKS = {
    "arc_easy": CHOICE,
    "piqa": CHOICE,
    "texts": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "writes": """output_type: generate_until
doc_to_text: "{{beginning}}"
doc_to_target: "{{next_word}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 48, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


def train(data: Path, run: Path, size: str, layout: str) -> None:
    ranks, overrides = LAYOUTS[layout]
    given = [*SIZES[size], *overrides, *TRAIN, f"data.dir={data}", f"run_dir={run}"]
    command = [sys.executable, "-m", "mads.cli", "train", "--workers", str(ranks), *given]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{size} at {layout}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


@torch.no_grad()
def logits(model, tokens: torch.Tensor) -> torch.Tensor:
    """Of the decoder, each row one document."""
    rows = torch.arange(len(tokens))[:, None].expand_as(tokens)
    return model.logits(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), rows)


@torch.no_grad()
def compare(run: Path, out: Path, dtype: str = "float32", attention: str = "sdpa") -> dict[str, float]:
    """Export a run into `out`, which is made anew, and compare transformers' logits with those of the decoder that has the same
    weights, both in fp32. attention: its implementation in transformers."""
    from transformers import AutoModelForCausalLM

    shutil.rmtree(out, ignore_errors=True)
    assert mads(["export", str(run), "--out", str(out), "--dtype", dtype]) == 0
    saved = SavedModel.find(run)
    pool = Pool.open(saved.config.data.dir, "heldout")
    full = [sample for sample in islice(pool.tokens(np.arange(min(len(pool), 2000))), 2000) if len(sample) >= LENGTH]
    tokens = torch.from_numpy(np.stack([sample[:LENGTH] for sample in full[:ROWS]]).astype(np.int64))
    model = saved.load()
    for parameter in model.parameters():
        parameter.copy_(parameter.to(getattr(torch, dtype)))
    ours = logits(model, tokens)
    del model
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation=attention).eval()(tokens).logits
    return {
        "difference": float((ours - theirs).abs().max()),
        "greatest": float(ours.abs().max()),
        "same_choice": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    }


def layouts(data: Path, folder: Path, sizes: list[str]) -> None:
    results = folder / "layouts.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for size in sizes:
        for layout in FEWER.get(size, LAYOUTS):
            if any((row["size"], row["layout"]) == (size, layout) for row in done):
                continue
            run = folder / "run"
            shutil.rmtree(run, ignore_errors=True)
            train(data, run, size, layout)
            row = {"size": size, "layout": layout, "parameters": parameter_count(compose(SIZES[size]).model)}
            for dtype in ("float32", "bfloat16"):
                row[dtype] = compare(run, folder / "hf", dtype)
            with open(results, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def write_tasks(saved: SavedModel, given: Path, folder: Path) -> list[str]:
    """Task files with their rows; two tasks are of the harness's kinds of choices, two are made from held-out text."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = Pool.open(saved.config.data.dir, "heldout")
    wanted = np.arange(0, len(pool), max(1, len(pool) // 200))
    texts = [text for sample in pool.tokens(wanted) if len((text := saved.tokenizer.decode(sample)).split()) > 20]
    rows = {"texts": [{"text": text} for text in texts], "writes": []}
    for text in texts:
        words = text.split(" ")
        half = len(words) // 2
        rows["writes"].append({"beginning": " ".join(words[:half]), "next_word": words[half]})
    for name in ("arc_easy", "piqa"):
        with gzip.open(given / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            short = (row for row in map(json.loads, file) if max(map(len, row["choices"])) < MOST_CHARACTERS)
            rows[name] = list(islice(short, LIMITS[name]))
    for name, body in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name][: LIMITS[name]]))
        head = COMMON.format(name=f"bench_{name}", file=folder / f"{name}.jsonl", cache=folder / "cache")
        (folder / f"{name}.yaml").write_text(head + body)
    return [f"bench_{name}" for name in TASKS]


def harness(run: Path, given: Path, folder: Path) -> None:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    saved = SavedModel.find(run)
    tasks = write_tasks(saved, given, folder / "tasks")
    result = {kind: compare(run, folder / "trained", attention=kind) for kind in ("eager", "sdpa")}
    own = ["--harness", *tasks, "--include-path", str(folder / "tasks"), "--out", str(folder / "ours.json"), "--examples"]
    assert mads(["eval", str(run), *own]) == 0
    model = HFLM(pretrained=str(folder / "trained"), device="cpu", batch_size=8, dtype="float32")
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    with one_process():
        theirs = evaluator.simple_evaluate(model=model, tasks=tasks, task_manager=manager)
    ours = json.loads((folder / "ours.json").read_text())
    rows = [json.loads(line) for line in (folder / "ours.examples.jsonl").read_text().splitlines()]
    table = []
    for task in tasks:
        answers = [
            pair
            for own, other in zip([r for r in rows if r["task"] == task], theirs["samples"][task])
            for pair in zip(own["filtered_resps"], other["filtered_resps"])
        ]
        for metric, value in theirs["results"][task].items():
            if isinstance(value, float) and "stderr" not in metric:
                entry = {"task": task, "metric": metric.removesuffix(",none"), "theirs": value, "answers": len(answers)}
                table.append(entry | {"ours": ours["harness"]["results"][task][metric], "apart": _apart(answers)})
    record = {"step": ours["step"], "tokens": ours["tokens"], "logits": result, "lm_eval": ours["harness"]["lm_eval"]}
    (folder / "harness.json").write_text(json.dumps(record | {"table": table}, indent=1) + "\n")


def _apart(answers: list[tuple]) -> str:
    """How far single answers are apart: texts by equality, log-likelihoods by their difference."""
    if isinstance(answers[0][1], str):
        return f"{sum(own == other for own, other in answers)} of {len(answers)} texts equal"
    numbers = [(own[0], float(other[0])) if isinstance(own, list) else (own, float(other)) for own, other in answers]
    return f"{max(abs(own - other) for own, other in numbers):.2g}"


def table(folder: Path) -> None:
    heads = "parameters | layout of the checkpoint | greatest difference | greatest logit | same choice | bfloat16: difference"
    print(f"| {heads} |\n{'|---' * len(heads.split('|'))}|")
    for row in map(json.loads, (folder / "layouts.jsonl").read_text().splitlines()):
        full, half = row["float32"], row["bfloat16"]
        figures = f"{full['difference']:.2g} | {full['greatest']:.1f} | {full['same_choice']:.2%} | {half['difference']:.2g}"
        print(f"| {row['parameters']:,} | {row['layout']} | {figures} |")
    found = json.loads((folder / "harness.json").read_text())
    apart = [f"{logit['difference']:.2g} with attention of kind {kind}" for kind, logit in found["logits"].items()]
    print(f"\nThe trained run: step {found['step']:,}, {found['tokens']:,} tokens; lm-eval {found['lm_eval']}.", end=" ")
    print(f"Logits up to {found['logits']['sdpa']['greatest']:.1f}, greatest difference {' and '.join(apart)}.\n")
    print("| task | metric | `mads eval --harness` | harness with HFLM | single answers, furthest apart | answers |")
    print("|---|---|---|---|---|---|")
    for row in found["table"]:
        both = f"{row['ours']:.7g} | {row['theirs']:.7g}"
        print(f"| {row['task']} | {row['metric']} | {both} | {row['apart']} | {row['answers']:,} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["layouts", "harness", "table"])
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--tasks", type=Path)
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    if told.what == "layouts":
        layouts(told.data, told.folder, told.only)
    elif told.what == "harness":
        harness(told.run, told.tasks, told.folder)
    else:
        table(told.folder)


if __name__ == "__main__":
    main()
