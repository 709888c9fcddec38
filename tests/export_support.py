"""Run folders with one checkpoint of a model with large random weights, for tests of export, import and the harness."""

import json

import torch
from omegaconf import OmegaConf
from prepared_support import write_prepared
from safetensors.torch import save_file

from mads.checkpoint.manifest import publish
from mads.config.compose import compose
from mads.data.schema import Manifest, sha256_of
from mads.model.decoder import Decoder

SHAPES = {
    "grouped, tied": ["model.tie_embeddings=true"],
    "untied, other rope and eps": ["model.tie_embeddings=false", "model.rope_theta=500000", "model.norm_eps=1e-3"],
    "all heads, odd vocabulary": ["model.num_key_value_heads=4", "model.vocab_size=431", "model.tie_embeddings=false"],
    "one head for all, deep": ["model.num_key_value_heads=1", "model.num_layers=5", "model.hidden_size=64"],
}


def write_run(folder, *overrides, data=None, scale=3.0):
    """A run folder with checkpoint step-00000007; returns its model. `data`: a prepared directory; None: it is written here."""
    if data is None:
        data = folder / "data"
        write_prepared(data)
    config = compose(
        ["model=nano", "model.vocab_size=400", "data=prepared", f"data.dir={data}", "data.seq_length=32", *overrides]
    )
    OmegaConf.save(config, folder / "config.yaml")
    model = Decoder(config.model, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # as they are after training: not all ones
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(scale)
    saving = folder / "checkpoints" / "temporary"
    saving.mkdir(parents=True)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    half = list(weights)[::2]
    save_file({n: weights[n] for n in half}, saving / "weight-00000-00000.safetensors")
    save_file({n: w for n, w in weights.items() if n not in half}, saving / "weight-00001-00000.safetensors")
    loader = {"fingerprint": Manifest.read(data).fingerprint}
    (saving / "state.json").write_text(json.dumps({"step": 7, "tokens": 1234, "loader": loader, "topology": "dp1"}))
    publish(folder / "checkpoints", saving, 7)
    return model.eval()


def write_plain_tokenizer(data, eod="<|endoftext|>"):
    """Put a tokenizer.json with one special token, whose id is 0, in place of the prepared directory's own."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["the bread is baked in the oven of the captain, who sails the ship"] * 40 + ["so it is told, and so it was"] * 40
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=[eod], initial_alphabet=alphabet))
    core.save(str(data / "tokenizer.json"))
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer"] |= {"kind": "huggingface", "file": "tokenizer.json", "vocab_size": core.get_vocab_size(), "eod": 0}
    size, digest = (data / "tokenizer.json").stat().st_size, sha256_of(data / "tokenizer.json")
    manifest["files"]["tokenizer.json"] = {"bytes": size, "sha256": digest}
    (data / "manifest.json").write_text(json.dumps(manifest))


@torch.no_grad()
def logits_of(model, tokens):
    """Of mads' decoder, [B, S, vocabulary], each row one document."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model.logits(tokens, positions, torch.arange(len(tokens))[:, None].expand_as(tokens))


@torch.no_grad()
def difference(folder, model, length=32, rows=3, **options):
    """The greatest |logit of transformers - logit of mads|, and the greatest logit."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    tokens = torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))
    expected = logits_of(model, tokens)
    return float((theirs(tokens).logits - expected).abs().max()), float(expected.abs().max())
