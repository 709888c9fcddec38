"""Every baseline that takes no rewards, from `mads prepare` through a few steps of training in one process."""

import json

import numpy as np
import pytest
from harness import run_ranks
from run_support import PREPARE, curve, trainer, write_corpus

from mads.config.compose import compose
from mads.config.validate import validate
from mads.data.documents import Document
from mads.data.pool import Pool
from mads.label.dsir import DSIRImportance
from mads.label.relabel import label_prepared
from mads.label.sampling import hash_of

RUN = [
    "data=prepared",
    "model=nano",
    "model.vocab_size=400",
    "data.seq_length=32",
    "train.steps=4",
    "train.global_batch_size=8",
    "train.micro_batch_size=4",
    "selection.interval=2",
    "train.eval_interval=4",
    "train.eval_samples=2",
    "checkpoint.interval=0",
    "schedule.warmup_steps=1",
    "logging.console=false",
]
PRESETS = {
    "top_quality": [],
    "quality_sampling": [],
    "perplexity_filter": [],
    "dsir": [],
    "moore_lewis": [],
    "mix": ["selection.shares={cooking: 3, numbers: 1}"],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from mads.cli import main

    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    attributes = [
        "data.attributes.perplexity._target_=mads.label.ngram.NGramPerplexity",
        "data.attributes.perplexity.columns=16384",
        "data.attributes.dsir._target_=mads.label.dsir.DSIRImportance",
    ]
    tasks = [f"data.reference_paths.{task}={folder}/{task}.jsonl" for task in ("galley", "voyage")]
    target = folder / "prepared"
    paths = [f"data.paths=[{folder}/corpus.jsonl]", *tasks, f"data.dir={target}"]
    assert main(["prepare", "--workers", "1", *PREPARE, *attributes, *paths]) == 0
    return target


def run_all(prepared, folder):
    found = {}
    for name, more in PRESETS.items():
        overrides = [*RUN, f"selection={name}", *more, f"data.dir={prepared}", f"run_dir={folder}/{name}"]
        config = compose(overrides)
        validate(config, overrides=overrides)
        trainer(config).run()
        found[name] = curve(f"{folder}/{name}")
    return found


def test_every_preset_trains_on_what_it_is_named_for(prepared, tmp_path):
    [runs] = run_ranks(1, run_all, prepared, tmp_path, timeout=240)
    pool = Pool.open(prepared)
    chosen = {}
    for name, (metrics, decisions) in runs.items():
        assert len(decisions) == 2 and metrics[-1]["step"] == 4
        assert all(np.isfinite(line["loss"]) for line in metrics if line["kind"] == "train")
        ids = np.load(tmp_path / name / "decisions" / "round-00000.npy")[3:]
        chosen[name] = np.isin(pool.ids[:], ids)
        assert decisions[0]["theta"] == {} and decisions[0]["selection"] in ("column", "mix")
    quality, bits = pool.values("quality")[:], pool.values("perplexity")[:]
    assert quality[chosen["top_quality"]].min() >= quality[~chosen["top_quality"]].max()
    assert quality[chosen["top_quality"]].mean() > quality[chosen["quality_sampling"]].mean()
    assert bits.min() < bits[chosen["perplexity_filter"]].min() and bits[chosen["perplexity_filter"]].max() < bits.max()
    likely = pool.values("dsir")[:]
    assert likely[chosen["dsir"]].mean() > likely[~chosen["dsir"]].mean()
    like = pool.values("likeness")[:]
    assert like[chosen["moore_lewis"]].min() >= like[~chosen["moore_lewis"]].max()
    numbers = pool.labels("domain").index("numbers")
    for name in ("dsir", "moore_lewis"):  # the references speak of cooking and sailing
        assert (pool.codes("domain")[:][chosen[name]] != numbers).all()
    mix = {label["label"]: label["chosen_share"] for label in runs["mix"][1][0]["labels"]["domain"]}
    assert abs(mix["cooking"] - 0.75) < 0.1 and mix["sailing"] == 0


def test_prepare_and_label_give_the_labeller_the_direction_part_alone(prepared):
    files = sorted((prepared / "references").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    direction = [Document(row["text"], "", "", 0) for row in rows if row["part"] == "direction"]
    assert 0 < len(direction) < len(rows)
    before = Pool.open(prepared)
    provenance = next(a.provenance for a in before.manifest.attributes if a.name == "dsir")
    assert provenance["target_hash"] == hash_of(direction) and provenance["target_texts"] == len({d.text for d in direction})
    label_prepared(prepared, {"again": DSIRImportance()}, progress=lambda line: None)
    np.testing.assert_array_equal(Pool.open(prepared).values("again")[:], before.values("dsir")[:])
