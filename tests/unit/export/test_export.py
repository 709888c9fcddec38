"""`mads export`: transformers computes the decoder's logits from the folder, and the folder is whole or not there."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from export_support import SHAPES, difference, write_run
from safetensors.torch import load_file, save_file

from mads.checkpoint.manifest import publish
from mads.cli import main
from mads.data.schema import Manifest

EXPORT_KILLED = Path(__file__).parents[2] / "export_killed.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    folder.mkdir()
    return folder, write_run(folder)


def check_logits(folder, overrides):
    from transformers import LlamaForCausalLM

    (folder / "run").mkdir()
    model = write_run(folder / "run", *overrides)
    assert main(["export", str(folder / "run"), "--out", str(folder / "hf"), "--max-shard-gb", "0.00003"]) == 0
    found, greatest = difference(folder / "hf", model)
    assert greatest > 1 and found <= 1e-5, (found, greatest)
    index = json.loads((folder / "hf" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    theirs, told = LlamaForCausalLM.from_pretrained(folder / "hf", output_loading_info=True)
    assert theirs.config.tie_word_embeddings == model.config.tie_embeddings
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told


def check_logits_anywhere(overrides):
    with tempfile.TemporaryDirectory() as folder:
        check_logits(Path(folder), overrides)


@pytest.mark.parametrize("shape", SHAPES)
def test_k7_logits_equal_transformers(tmp_path, shape):
    check_logits(tmp_path, SHAPES[shape])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_the_rounded_weights(run, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    folder, model = run
    out = tmp_path / "hf"
    assert main(["export", str(folder / "checkpoints" / "step-00000007"), "--out", str(out), "--dtype", dtype]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert theirs.dtype == getattr(torch, dtype) and (out / "model.safetensors").is_file()
    q = theirs.model.layers[1].self_attn.q_proj.weight
    assert torch.equal(q, model.layers[1].attention.qkv.weight[:32].to(theirs.dtype))
    assert torch.equal(theirs.lm_head.weight, model.embedding.weight.to(theirs.dtype))
    assert "lm_head.weight" not in load_file(out / "model.safetensors")  # tied: once


def test_the_folder_tells_where_it_comes_from_and_generates(run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = run
    assert main(["export", str(folder), "--out", str(tmp_path / "hf")]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    fingerprint = Manifest.read(folder / "data").fingerprint
    assert card.startswith("---\nlibrary_name: transformers\n")
    for word in ("run, step 7", fingerprint, "| tokens of training | 1,234 |", "| sequence length | 32 |", "in float32"):
        assert word in card
    assert str(tmp_path) not in card
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), AutoTokenizer.from_pretrained(tmp_path / "hf")
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.max_position_embeddings) == (1, 2, 32)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    given = tokenizer("the bread", return_tensors="pt")
    out = model.generate(given["input_ids"], max_new_tokens=5)
    assert out.shape[1] > given["input_ids"].shape[1] and config.rope_parameters["rope_theta"] == 10000.0


def refused(capsys, *arguments):
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_exported_is_told_and_leaves_nothing(run, tmp_path, capsys):
    folder, _ = run
    out = tmp_path / "hf"
    (tmp_path / "there").mkdir()
    assert "exists; choose a folder that does not" in refused(capsys, folder, "--out", tmp_path / "there")
    assert "make it first" in refused(capsys, folder, "--out", tmp_path / "no" / "where")
    assert "must be more than 0" in refused(capsys, folder, "--out", out, "--max-shard-gb", "0")
    assert "must be more than 0" in refused(capsys, folder, "--out", out, "--max-shard-gb", "nan")
    assert "is no folder of a run" in refused(capsys, tmp_path, "--out", out)
    copy = shutil.copytree(folder, tmp_path / "copy")
    changed = (copy / "config.yaml").read_text().replace("hidden_size: 32", "hidden_size: 64")
    (copy / "config.yaml").write_text(changed)
    assert "has embedding.weight of shape (400, 32)" in refused(capsys, copy, "--out", out)
    shutil.copy(folder / "config.yaml", copy / "config.yaml")
    with open(copy / "checkpoints" / "step-00000007" / "weight-00001-00000.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    for where in (copy, copy / "checkpoints" / "step-00000007"):
        assert "weight-00001-00000.safetensors is damaged" in refused(capsys, where, "--out", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "there"]


@pytest.mark.parametrize("value, words", [(float("nan"), "are not finite"), (1e6, "more than torch.float16 holds; use bfloat16")])
def test_weights_that_the_dtype_does_not_hold_are_told(run, tmp_path, capsys, value, words):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    checkpoint = copy / "checkpoints" / "step-00000007"
    weights = load_file(checkpoint / "weight-00001-00000.safetensors")
    name = next(n for n, w in weights.items() if w.dim() == 2)
    weights[name][3, 4] = value
    checkpoint.rename(copy / "saving")
    (copy / "saving" / "manifest.json").unlink()
    save_file(weights, copy / "saving" / "weight-00001-00000.safetensors")
    publish(copy / "checkpoints", copy / "saving", 8)
    assert words in refused(capsys, copy, "--out", tmp_path / "hf", "--dtype", "float16")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_kill_anywhere_leaves_the_folder_whole_or_not_there(run, tmp_path):
    folder, model = run
    out, call, seen = tmp_path / "hf", 0, set()
    command = [sys.executable, str(EXPORT_KILLED), str(folder), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        code = 9
        while code == 9:
            if out.exists():
                assert difference(out, model)[0] <= 1e-5
                shutil.rmtree(out)
            call += 1
            process.stdin.write(f"{call}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            if code == 9:
                seen.add(out.exists())
        process.stdin.close()
    assert code == 0 and call > 10 and seen == {False, True}  # the last flush comes after the rename
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]  # what the killed ones had begun is gone
