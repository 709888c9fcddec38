"""Every model of conf/model as transformers sees it, by shapes alone; special ids; the memory of an export."""

import gc
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from export_support import difference, logits_of, write_plain_tokenizer, write_run

from mads.checkpoint.streamed import ToWrite
from mads.cli import main
from mads.config.compose import compose
from mads.export.llama import llama_config, logical_shapes, model_settings, pieces
from mads.export.weights import write_weights
from mads.model.decoder import Decoder
from mads.model.shape import parameter_count

MODELS = sorted(path.stem for path in (Path(__file__).parents[3] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_conf_has_the_tensors_of_transformers(name, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = compose([f"model={name}"]).model
    written = llama_config(model, 2048, "bfloat16", {"bos": 1, "eos": 2, "pad": None})
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = LlamaConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    expected = {name: tuple(value.shape) for name, value in theirs.named_parameters()}  # a tied head is none of its own
    assert {piece.theirs: piece.shape for piece in pieces(model)} == expected
    assert sum(parameter.numel() for parameter in theirs.parameters()) == parameter_count(model)
    given = yaml.safe_load((Path(__file__).parents[3] / "conf" / "model" / f"{name}.yaml").read_text())
    assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (given["rope_theta"], given["norm_eps"])
    assert (written["rope_theta"], config.tie_word_embeddings) == (given["rope_theta"], given["tie_embeddings"])
    assert config.head_dim == given["hidden_size"] // given["num_attention_heads"] == theirs.model.layers[0].self_attn.head_dim
    own = {name: tuple(p.shape) for name, p in Decoder(model, device="meta").named_parameters()}
    assert logical_shapes(model) == own
    back = model_settings(written, "config.json")
    assert {key: getattr(model, key) for key in back} == back


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_k7_a_half_precision_folder_has_the_logits_of_the_rounded_weights(tmp_path, dtype):
    (tmp_path / "run").mkdir()
    model = write_run(tmp_path / "run", "model.tie_embeddings=false")
    name = str(dtype).removeprefix("torch.")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "hf"), "--dtype", name]) == 0
    tokens = torch.arange(32)[None] * 7
    before = logits_of(model, tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).float())
    found, greatest = difference(tmp_path / "hf", model, dtype=torch.float32)
    assert found <= 1e-5 < greatest and float((logits_of(model, tokens) - before).abs().max()) > 1e-4


def check_special_ids(folder):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    (folder / "run").mkdir()
    write_run(folder / "run")
    write_plain_tokenizer(folder / "run" / "data")
    assert main(["export", str(folder / "run"), "--out", str(folder / "hf")]) == 0
    config, generation = AutoConfig.from_pretrained(folder / "hf"), GenerationConfig.from_pretrained(folder / "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    for found in (config, generation, tokenizer):
        assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, 0, None), found
    assert generation.do_sample is False


def check_special_ids_anywhere():
    with tempfile.TemporaryDirectory() as folder:
        check_special_ids(Path(folder))


def test_a_tokenizer_without_a_beginning_of_text_gets_none(tmp_path):
    check_special_ids(tmp_path)


def private_bytes():
    """Memory of this process that is its own: without pages of mapped files, which the system takes back when it needs them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_holds_a_few_tensors_and_not_the_model(tmp_path):
    """Forty tensors of 4 MiB in two files: the process grows by less than a third of them (the allocator keeps some)."""
    size, seen = 1 << 20, []

    def read(i):
        seen.append(private_bytes())
        return torch.full((size,), float(i))

    tensors = [ToWrite(f"t{i}", (size,), lambda i=i: read(i)) for i in range(40)]
    gc.collect()
    before = private_bytes()
    write_weights(tmp_path, tensors, torch.float32, 20 * 4 * size)
    assert len(seen) == 40 and len(list(tmp_path.glob("*.safetensors"))) == 2
    assert max(seen) - before < 13 * 4 * size, [(s - before) >> 20 for s in seen]
