"""Start weights from a folder of transformers: the decoder computes its logits, and what it cannot represent is told."""

import copy
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from export_support import SHAPES, logits_of, write_run
from safetensors.torch import load_file, save_file
from test_tokenizer_files import training, write_huggingface

from mads.checkpoint.canonical import read_weights
from mads.checkpoint.tensors import read_piece
from mads.cli import main
from mads.config.schema import ModelConfig
from mads.data.schema import DataError
from mads.data.tokenizer import train_sentencepiece
from mads.export.folder import LlamaFolder, tokenizer_problem
from mads.layout import layout_of, shard
from mads.model.decoder import Decoder
from mads.model.shape import check_model_config

SMALL = dict(
    vocab_size=131,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-4,
    rope_theta=2000.0,
    initializer_range=0.3,
)


def check_round_trip(folder, overrides):
    """Export, open: bit for bit, whole and as every shard of 1, 2 and 4 tensor-parallel ranks."""
    (folder / "run").mkdir()
    model = write_run(folder / "run", *overrides)
    assert main(["export", str(folder / "run"), "--out", str(folder / "hf"), "--max-shard-gb", "0.00003"]) == 0
    opened = LlamaFolder.open(folder / "hf")
    assert opened.differences(model.config) == []
    saved = read_weights(folder / "run" / "checkpoints" / "step-00000007")
    assert set(opened.weights) == set(saved)
    for name, parameter in model.named_parameters():
        layout = layout_of(parameter)
        assert opened.weights[name].get_shape() == list(saved[name].shape)
        assert torch.equal(opened.weights[name][:], saved[name])
        for count in (1, 2, 4):
            if layout.padded_from is not None or any(
                part % count for part in layout.parts or parameter.shape[layout.axis or 0 :][:1]
            ):
                continue
            for index in range(count):
                expected = shard(saved[name], layout, index, count)
                found = read_piece(opened.weights[name], layout, tuple(expected.shape), index, count)
                assert torch.equal(found, expected) and found.dtype == torch.float32, (name, index, count)


def check_round_trip_anywhere():
    with tempfile.TemporaryDirectory() as folder:
        check_round_trip(Path(folder), SHAPES["grouped, tied"])


@pytest.mark.parametrize("shape", SHAPES)
def test_k7_an_export_comes_back_bit_for_bit(tmp_path, shape):
    check_round_trip(tmp_path, SHAPES[shape])


@pytest.fixture
def llama(tmp_path):
    """A folder that transformers has written, in several files, and its model."""
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
    model.save_pretrained(tmp_path / "llama", max_shard_size="30KB")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    return tmp_path / "llama", model.eval()


def decoder_of(folder):
    opened = LlamaFolder.open(folder)
    config = ModelConfig(**opened.settings)
    check_model_config(config)
    model = Decoder(config, seed=9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(opened.weights[name][:])
    return model.eval()


def same_logits(folder, theirs):
    """To 1e-5 in float64 (transformers keeps its tables for RoPE in float32); in float32 no further from that than theirs are."""
    tokens, ours = torch.randint(0, 131, (2, 20), generator=torch.Generator().manual_seed(2)), decoder_of(folder)
    with torch.no_grad():
        single, their_single = logits_of(ours, tokens), theirs(tokens).logits
        expected = copy.deepcopy(theirs).double()(tokens).logits
        found = logits_of(ours.double(), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    rounding = float((their_single.double() - expected).abs().max())
    assert float((single.double() - expected).abs().max()) < 1.5 * rounding < 1e-4
    assert expected.abs().max() > 1


def test_k7_logits_equal_those_of_a_folder_of_transformers(llama):
    same_logits(*llama)


def test_k7_a_mistral_without_a_window_in_bf16_and_tied(tmp_path):
    import transformers

    torch.manual_seed(1)
    config = transformers.MistralConfig(**SMALL, sliding_window=None, tie_word_embeddings=True)
    transformers.MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "mistral")
    model = transformers.MistralForCausalLM.from_pretrained(tmp_path / "mistral", dtype=torch.float32)
    same_logits(tmp_path / "mistral", model.eval())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "qwen2"}, "model_type='qwen2'; the decoder is that of llama or mistral"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling of type 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "rope scaling of type 'llama3'"),
        ({"attention_bias": True, "mlp_bias": True}, "attention_bias; mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"head_dim": 16}, r"head_dim=16 \(only hidden_size / num_attention_heads = 8\)"),
        ({"sliding_window": 4096}, "a sliding window of 4096"),
        ({"partial_rotary_factor": 0.5}, "a partial rotary embedding"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
        ({"num_hidden_layers": None}, "gives no num_layers that is a positive number"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "big"}}, "rope_theta='big' is not a positive number"),
        ({"num_hidden_layers": 4}, "lacks 9 tensors .* model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": 2}, "has tensors that the decoder does not have: model.layers.2"),
        ({"intermediate_size": 24}, r"has shape \(48, 32\), by config.json it is \(24, 32\)"),
    ],
)
def test_a_model_that_is_not_the_decoders_is_refused(llama, changes, words):
    folder, _ = llama
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=words):
        LlamaFolder.open(folder)


def test_files_that_are_missing_damaged_or_elsewhere_are_refused(llama, tmp_path):
    folder, _ = llama
    index_file = folder / "model.safetensors.index.json"
    index = index_file.read_text()
    files = sorted(set(json.loads(index)["weight_map"].values()))

    def refused(words):
        with pytest.raises(DataError, match=words):
            LlamaFolder.open(folder)

    whole = (folder / files[0]).read_bytes()
    (folder / files[0]).write_bytes(whole[:-4])
    refused(f"{files[0]} is no whole safetensors file")
    (folder / files[0]).unlink()
    refused(f"{files[0]} is missing, but model.safetensors.index.json names it")
    (folder / files[0]).write_bytes(whole)
    (tmp_path / files[0]).write_bytes(whole)
    index_file.write_text(index.replace(files[0], f"../{files[0]}"))
    refused("names a file outside of its folder")
    index_file.write_text(index.replace(files[0], files[1]))
    refused(f"in {files[1]}, where it is not")
    index_file.write_text("{")
    refused("is damaged")
    index_file.unlink()
    refused("has neither model.safetensors nor")
    tensors = load_file(folder / files[0])
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused("pytorch_model.bin, a pickle, which can run code .* safetensors only")
    (folder / "config.json").unlink()
    refused("there is no config.json")


def test_weights_of_another_kind_are_refused(llama):
    folder, model = llama
    for file in folder.glob("model*"):
        file.unlink()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(DataError, match="model.norm.weight is stored as I8; F32, BF16, F16 can be read"):
        LlamaFolder.open(folder)
    # What old versions saved beside the weights follows from the configuration.
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    same_logits(folder, model)


def test_overrides_for_another_model_are_told(llama):
    told = LlamaFolder.open(llama[0]).differences(SimpleNamespace(**{**vars(ModelConfig()), **SETTINGS, "num_layers": 9}))
    assert told == ["model.num_layers=3", "model.tie_embeddings=false"]


SETTINGS = dict(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    ffn_hidden_size=48,
    vocab_size=131,
    rope_theta=2000.0,
    norm_eps=1e-4,
    tie_embeddings=True,
)


def test_the_datas_tokenizer_must_be_the_folders(tmp_path):
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run")
    data, folder = tmp_path / "run" / "data", tmp_path / "hf"
    assert main(["export", str(tmp_path / "run"), "--out", str(folder)]) == 0
    assert tokenizer_problem(folder, data) == (None, None)
    train_sentencepiece(training(), 400, folder / "tokenizer.model")
    problem, note = tokenizer_problem(folder, data)
    assert "is not that of" in problem and f"data.tokenizer.path={folder}/tokenizer.model" in problem and note is None
    (folder / "tokenizer.model").unlink()
    problem, note = tokenizer_problem(folder, data)
    assert problem is None and "has no tokenizer.model, so its tokenizer was not compared" in note


def test_a_tokenizer_json_is_compared_by_its_ids(tmp_path, monkeypatch):
    given, changed = tmp_path / "data", tmp_path / "hf"
    given.mkdir(), changed.mkdir()
    write_huggingface(given / "tokenizer.json")
    record = {"kind": "huggingface", "file": "tokenizer.json"}
    manifest = SimpleNamespace(tokenizer=record, files={"tokenizer.json": {"sha256": "another"}})
    monkeypatch.setattr("mads.export.folder.Manifest.read", lambda directory: manifest)
    core = json.loads((given / "tokenizer.json").read_text())
    (changed / "tokenizer.json").write_text(json.dumps(core | {"post_processor": None, "padding": None}))
    assert tokenizer_problem(changed, given) == (None, None)
    core["model"]["merges"].reverse()
    (changed / "tokenizer.json").write_text(json.dumps(core))
    assert "is not that of" in tokenizer_problem(changed, given)[0]
    shutil.copy(given / "tokenizer.json", changed / "tokenizer.json")
    assert tokenizer_problem(changed, given) == (None, None)
