"""Bad input: exit code 2, one message that names the thing and the remedy, no traceback."""

import json
import shutil
from types import SimpleNamespace

import pytest
from command_support import LAUNCHER_VARIABLES, MADS, expect_bad_input, run, settings
from harness import run_ranks
from run_support import OVERRIDES, PREPARE, REWARD, run_config, trainer, write_corpus

from mads.cli import main

ATTRIBUTES = "['domain', 'likeness', 'quality', 'topic']"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("text")) / "corpus.jsonl"


@pytest.fixture
def mads(capsys, monkeypatch, tmp_path):
    """The command in this process, for what is found before deepspeed starts."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.setenv(name, "")  # remembered, so that a job of one leaves no variables behind
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as ended:  # argparse
            code = ended.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


def check_trains(prepared, run_dir, *overrides):
    """In a pool's worker, which has everything imported: three steps."""
    trainer(run_config(str(prepared), str(run_dir), "selection=random", "train.steps=3", *overrides)).run()


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["no file matches", "input.jsonl", "give a file, a glob, or a folder"]),
        ("", ["holds no document", "input.jsonl"]),
        ('{"text": \n' * 20, ["20 of 20 inputs were rejected", "input.jsonl:1: malformed JSON", "Mend the input"]),
        ('{"body": "text"}\n' * 20, ["missing field (1 to 20: 'text', the line has ['body'])", "data.text_field"]),
    ],
    ids=["missing", "empty", "malformed", "other field"],
)
def test_a_corpus_that_cannot_be_read(mads, tmp_path, content, words):
    path = tmp_path / "input.jsonl"
    if content is not None:
        path.write_text(content)
    expect_bad_input(mads("prepare", *PREPARE, f"data.paths=[{path}]", f"data.dir={tmp_path}/out"), *words)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.paths=['nothing/*.jsonl']"], ["no file matches 'nothing/*.jsonl'"]),
        ([], ["no value for: data.paths"]),
        (["data.paths=[CORPUS]", "data.reference_paths.a=nothing.jsonl"], ["data.references", "no file matches 'nothing.jsonl'"]),
        (["data.paths=[CORPUS]", "data.attributes.topic._target_=mads.label.Nope"], ["data.attributes.topic", "mads.label.Nope"]),
        (["data.paths=[CORPUS]", "data.attributes.topic.topicz=4"], ["data.attributes.topic", "topicz"]),
        (["data.paths=[CORPUS]", "data.tokenizer.path=nothing.model"], ["nothing.model", "data.tokenizer.path"]),
    ],
    ids=["glob", "no paths", "references", "class", "labeller key", "tokenizer"],
)
def test_preparation_settings_that_cannot_work(mads, corpus, tmp_path, overrides, words):
    overrides = [o.replace("CORPUS", str(corpus)) for o in overrides]
    expect_bad_input(mads("prepare", *PREPARE, f"data.dir={tmp_path}/out", *overrides), *words)


def test_a_folder_that_is_not_ours_is_not_prepared_into(mads, corpus, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    done = mads("prepare", *PREPARE, f"data.paths=[{corpus}]", f"data.dir={tmp_path}/thesis")
    expect_bad_input(done, "chapter.tex", "choose another data.dir")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    expect_bad_input(
        mads("prepare", *PREPARE, f"data.paths=[{corpus}]", f"data.dir={tmp_path}/thesis/chapter.tex"),
        "chapter.tex",
        "File exists",
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train.stepz=3"], ["train.stepz", "mads train --cfg job"]),
        (["train.steps=many"], ["train.steps", "'many'", "Integer"]),
        (["model=huge"], ["model/huge", "nano"]),
        (["agents.members.domain.attribute=dommain"], ["agents.members.domain.attribute='dommain'", ATTRIBUTES]),
        (["selection=stratified", "selection.attribute=flavour"], ["selection.attribute='flavour'", ATTRIBUTES]),
        (["train.global_batch_size=7"], ["train.global_batch_size=7", "use a multiple of 2"]),
        (["--workers", "3", "train.global_batch_size=8"], ["3 ranks", "use a multiple of 6"]),
        (["--workers", "0"], ["--workers=0"]),
        (["--workers", "two"], ["--workers", "'two'"]),
        (["--wrokers", "2"], ["--wrokers"]),
        (["selection=random", "reward.rows_per_batch=3"], ["reward.rows_per_batch=3", "leave it out"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] and " " not in value[-1] else "",
)
def test_a_training_configuration_that_cannot_work(mads, arguments, words):
    expect_bad_input(mads("train", *OVERRIDES, *arguments), *words)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.dir=nothing"], ["nothing holds no manifest.json", "mads prepare"]),
        (["data.seq_length=16", "data.min_sample_tokens=4"], ["data.seq_length=16", "32", "prepare it again"]),
        (["model.vocab_size=300"], ["400 pieces", "model.vocab_size=300"]),
        (["train.global_batch_size=1024"], ["32768 tokens", "use a smaller batch"]),
        (["agents.members.quality.prior=[1,1,1,1,1,1]"], ["agents.members.quality.prior has 6 numbers", "only 5 labels"]),
        (["agents.members.domain._target_=mads.agents.Nope"], ["agents.members.domain", "mads.agents.Nope"]),
        (
            ["data.attributes.flavour._target_=mads.label.domain.DomainLabeller", "agents.members.domain.attribute=flavour"],
            ["agents.members.domain.attribute='flavour'", ATTRIBUTES, "prepare it again"],
        ),
    ],
    ids=["not prepared", "seq_length", "vocabulary", "batch", "prior", "class", "attribute"],
)
def test_training_that_does_not_fit_the_data(mads, prepared, tmp_path, overrides, words):
    expect_bad_input(mads("train", "--workers", 1, *settings(prepared, tmp_path / "run"), *overrides), *words)


def test_damaged_data_is_refused(mads, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    shard = next((tmp_path / "data" / "train").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    done = mads("train", "--workers", 1, *settings(tmp_path / "data", tmp_path / "run"))
    expect_bad_input(done, shard.name, "bytes", "prepare the data again")


@pytest.fixture(scope="module")
def without_references(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("plain") / "prepared"
    assert main(["prepare", *PREPARE, f"data.paths=[{corpus}]", f"data.dir={folder}"]) == 0
    return folder


def test_without_references_only_selections_without_rewards_work(mads, without_references, tmp_path):
    expect_bad_input(
        mads("train", "--workers", 1, *settings(without_references, tmp_path / "run")), "reference", "selection=random"
    )
    run_ranks(1, check_trains, without_references, tmp_path / "run", timeout=120)
    evaluation = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert evaluation["references"] == {} and evaluation["heldout"]


def test_windows_longer_than_any_document_are_prepared_and_trained(mads, corpus, tmp_path):
    long = ["data.seq_length=2048", f"data.dir={tmp_path}/long"]
    assert mads("prepare", *PREPARE, f"data.paths=[{corpus}]", *long).returncode == 0
    manifest = json.loads((tmp_path / "long" / "manifest.json").read_text())
    assert manifest["parts"]["train"]["samples"] == manifest["parts"]["train"]["documents"], "one sample a document"
    overrides = [*settings(tmp_path / "long", tmp_path / "run", "selection=random", "data.seq_length=2048")]
    expect_bad_input(mads("train", "--workers", 1, *overrides), "16384 tokens", "smaller batch")
    small = ["train.global_batch_size=2", "train.micro_batch_size=1"]
    run_ranks(1, check_trains, tmp_path / "long", tmp_path / "run", *long[:1], *small, timeout=120)
    assert '"end"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_run_folder_goes_on_only_with_its_own_settings(mads, prepared, tmp_path):
    """That it does not go on with other data: dist/test_resume.py."""
    run_ranks(1, check_trains, prepared, tmp_path / "run", timeout=120)
    other = settings(prepared, tmp_path / "run", "selection=random", "train.steps=3", "optim.lr=5e-4")
    expect_bad_input(mads("train", "--workers", 1, *other), "optim.lr: 0.001 then, 0.0005 now", "another run_dir")


def test_wandb_online_without_a_key_stops_before_training(prepared, tmp_path):
    overrides = settings(prepared, "run", "selection=random", "logging.wandb=online")
    done = run([*MADS, "train", *overrides], tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"))
    expect_bad_input(done, "W&B API key", "logging.wandb=offline")
    assert '"train"' not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_report_needs_a_run(mads, tmp_path):
    expect_bad_input(mads("report", tmp_path / "nothing"), "nothing is not a folder", "run_dir")
    expect_bad_input(mads("report", tmp_path), "no metrics.jsonl")
    expect_bad_input(mads("report"), "required: run")


def test_an_unknown_command_shows_the_known_ones(mads):
    done = mads("trian")
    assert done.returncode == 2 and "'trian'" in done.stderr and "train [--workers N]" in done.stderr
    assert mads().returncode == 2 and mads("--help").returncode == 0


def test_a_launcher_that_says_half_is_named(mads, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    expect_bad_input(mads("train", *OVERRIDES, *REWARD), "RANK is set", "MASTER_ADDR", "unset RANK")
