"""How much could any choice by likeness win? A copy of the lab's data whose likeness is to the evaluation tasks themselves.

    python -m benchmarks.oracle_likeness --folder LAB
    mads compare --only moore_lewis --folder F compare=lab data.dir=LAB/oracle evaluation.TASK=... 'apart=[boolq]'

Never a method: it has seen what it is judged by. LAB is what benchmarks.lab made; files that do not change are links to it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

from mads.data.attributes import read_column, write_column
from mads.data.pool import Pool, attribute_path
from mads.data.tokenizer import Tokenizer
from mads.label.likeness import ReferenceLikeness

NAME, FIT_SAMPLES, APART = "likeness", 40_000, ("boolq",)


def text_of(example: dict) -> str:
    """Question and right answer, without the words that all questions of a task begin with."""
    if "text" in example:
        return example["text"]
    return re.sub(r"^(Question|Goal):\s*", "", example["query"]) + " " + example["choices"][example["gold"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, type=Path, help="what benchmarks.lab wrote")
    folder = parser.parse_args().folder
    source, target = folder / "data", folder / "oracle"
    shutil.copytree(source, target, copy_function=os.link)
    pool = Pool.open(source)
    tokenizer = Tokenizer.open(source / pool.manifest.tokenizer["file"], pool.manifest.tokenizer["kind"])
    tasks = {}
    for path in sorted((folder / "tasks").glob("*.jsonl.gz")):
        name = path.name.split(".")[0]
        if name not in APART:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                texts = [text_of(json.loads(line)) for line in file]
            tasks[name] = [np.array(ids, np.int64) for ids in tokenizer.encode(texts)]
    labeller = ReferenceLikeness()
    labeller.see_reference_tokens(tasks, tokenizer.vocab_size)
    drawn = np.random.default_rng(0).choice(len(pool), min(FIT_SAMPLES, len(pool)), replace=False)
    labeller.fit(pool.tokens(np.sort(drawn)))
    start = 0
    for shard, count in enumerate(pool.manifest.parts["train"]["shards"]):
        path = attribute_path(target, "train", NAME, shard)
        schema = read_column(path, count).schema  # the bins keep their names, which moore_lewis does not look at
        codes, values = labeller.label(pool.tokens(np.arange(start, start + count)))
        write_column(path, schema, codes, values)
        start += count
    print(f"{target}: likeness to {', '.join(tasks)}")


if __name__ == "__main__":
    main()
