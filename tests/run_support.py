"""A tiny prepared corpus with reference tasks, and short runs on it, for tests of the loop, checkpoints and the command line."""

import json
from pathlib import Path

import numpy as np

from mads.config.compose import compose
from mads.config.validate import validate

SUBJECTS = {
    "cooking": "salt pepper onion stove oven bake simmer dough yeast recipe spoon kitchen taste butter sugar flour".split(),
    "sailing": "wind sail harbour mast anchor deck tide rope captain island storm coast compass vessel crew keel buoy".split(),
    "numbers": "prime sum proof integer lemma theorem divisor product square root even odd limit series bound".split(),
}
GLUE = "the a of and to in is that it with as for was on are by this be at from or an which".split()
PREPARE = [
    "data=jsonl",
    "model=nano",
    "model.vocab_size=400",
    "data.seq_length=32",
    "data.min_sample_tokens=8",
    "data.heldout_fraction=0.1",
    "data.attributes.topic.topics=4",
]
OVERRIDES = [
    "data=jsonl",
    "data.paths=[unused]",
    "model=nano",
    "model.vocab_size=400",
    "data.seq_length=32",
    "train.steps=12",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "selection.interval=5",
    "train.eval_interval=6",
    "train.eval_samples=4",
    "train.log_interval=1",
    "checkpoint.interval=0",
    "schedule.warmup_steps=2",
    "logging.console=false",
    "train.invariant_interval=4",
]
REWARD = ["reward=auto", "selection.probes=40", "reward.reference_examples=8", "reward.rows_per_batch=4"]


def sentences(rng, words, count):
    made = []
    for _ in range(count):
        picked = [str(rng.choice(words if rng.random() < 0.5 else GLUE)) for _ in range(int(rng.integers(5, 12)))]
        made.append(" ".join(picked).capitalize() + ".")
    return " ".join(made)


def write_corpus(folder: Path, documents=60, seed=0):
    """JSONL files: corpus.jsonl with three domains, and two reference tasks about two of them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "corpus.jsonl", "w") as f:
        for i in range(documents):
            domain = list(SUBJECTS)[i % 3]
            f.write(json.dumps({"text": sentences(rng, SUBJECTS[domain], int(rng.integers(6, 20))), "domain": domain}) + "\n")
    for task, domain in (("galley", "cooking"), ("voyage", "sailing")):
        with open(folder / f"{task}.jsonl", "w") as f:
            for _ in range(40):
                f.write(
                    json.dumps(
                        {"context": sentences(rng, SUBJECTS[domain], 2), "continuation": str(rng.choice(SUBJECTS[domain]))}
                    )
                    + "\n"
                )
    return folder


def prepare_small(folder: Path) -> Path:
    """Prepare the tiny corpus through the command line's own function; returns the prepared directory."""
    from mads.cli import main

    write_corpus(folder)
    target = folder / "prepared"
    tasks = [f"data.reference_paths.{task}={folder}/{task}.jsonl" for task in ("galley", "voyage")]
    code = main(["prepare", "--workers", "1", *PREPARE, f"data.paths=[{folder}/corpus.jsonl]", *tasks, f"data.dir={target}"])
    assert code == 0
    return target


def run_config(prepared, run_dir, *overrides, world=1):
    selection = "mads" if not any(o.startswith("selection=") for o in overrides) else ""
    common = OVERRIDES + (REWARD if selection else [])
    if any(o.startswith("reward=") for o in overrides):
        common = [o for o in common if o != "reward=auto"]
    if any(o == "reward=displacement" for o in overrides):  # which does not read the references at one point
        common = [o for o in common if not o.startswith("reward.reference_examples")]
    config = compose([*common, f"data.dir={prepared}", f"run_dir={run_dir}", *overrides])
    validate(config, world)
    return config


def trainer(config):
    """A Trainer on the default group's ranks, on the grid of the configuration."""
    import torch
    import torch.distributed as dist
    from topologies import topology as topology_of

    from mads.topology import grid_of
    from mads.train.loop import Trainer

    grid = grid_of(config.parallel, dist.get_world_size())
    cut = {axis: getattr(grid, axis) for axis in ("pp", "cp", "tp") if getattr(grid, axis) > 1}
    return Trainer(config, topology_of(dp=grid.dp, **cut), torch.device("cpu"))


def curve(run_dir):
    """What a run computed, without the times: train and eval lines, and decisions."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "step_seconds", "selection_seconds", "tflops", "memory_mib")
    metrics = [{k: v for k, v in line.items() if k not in timed} for line in lines if line["kind"] in ("train", "eval")]
    decisions = [json.loads(line) for line in (Path(run_dir) / "decisions.jsonl").read_text().splitlines()]
    return metrics, [{k: v for k, v in d.items() if k != "seconds"} for d in decisions]
