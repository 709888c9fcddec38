"""The decoder against transformers' LLaMA, packed samples against the same samples alone, and ghost products."""

import pytest
import torch
from model_cases import fields, ghost_product, pack, plain_losses, random_samples, small_batch, small_config

from mads.model import Decoder
from mads.tensor import TENSOR_LAYERS

VOCAB = 131


def _double(**changes) -> Decoder:
    return Decoder(small_config(**changes), seed=3, dtype=torch.float64)


def _as_llama(model: Decoder):
    """transformers' model with our weights, and the map from our parameter names to theirs, in the order of the parts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.ffn_hidden_size,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            rms_norm_eps=c.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=c.tie_embeddings,
            attention_bias=False,
            attn_implementation="eager",
        )
    )
    names = {"embedding.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    if not c.tie_embeddings:
        names["head.weight"] = ["lm_head.weight"]
    for i in range(c.num_layers):
        ours, layer = f"layers.{i}", f"model.layers.{i}"
        names[f"{ours}.attention_norm.weight"] = [f"{layer}.input_layernorm.weight"]
        names[f"{ours}.attention.qkv.weight"] = [f"{layer}.self_attn.{p}_proj.weight" for p in "qkv"]
        names[f"{ours}.attention.output.weight"] = [f"{layer}.self_attn.o_proj.weight"]
        names[f"{ours}.mlp_norm.weight"] = [f"{layer}.post_attention_layernorm.weight"]
        names[f"{ours}.mlp.gate_up.weight"] = [f"{layer}.mlp.{p}_proj.weight" for p in ("gate", "up")]
        names[f"{ours}.mlp.down.weight"] = [f"{layer}.mlp.down_proj.weight"]
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            targets = [parameters[n] for n in names[name]]
            for target, piece in zip(targets, parameter.split([t.shape[0] for t in targets])):
                target.copy_(piece)
    return theirs, names


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_equal_transformers_llama(tied):
    model = Decoder(small_config(tie_embeddings=tied, rope_theta=500.0, norm_eps=1e-3, init_std=0.1), seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
    llama, names = _as_llama(model)
    batch = pack([[s] for s in random_samples([24, 24, 24], VOCAB)], 24)
    logits = model.logits(batch.tokens, batch.positions, batch.segments)
    expected = llama(batch.tokens).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(logits)
    logits.backward(upstream)
    expected.backward(upstream)
    theirs = dict(llama.named_parameters())
    assert len(names) == len(list(model.named_parameters()))
    for name, parameter in model.named_parameters():
        gradient = torch.cat([theirs[n].grad for n in names[name]])
        tolerance = 2e-5 * float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def test_loss_is_the_cross_entropy_of_the_logits_at_every_target():
    model, batch = _double(), small_batch()
    _, loss = model(*fields(batch))
    logits = model.logits(batch.tokens, batch.positions, batch.segments)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view(2, 15)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert loss.dtype == torch.float64 and torch.all(loss[batch.labels == -100] == 0)
    assert int((loss != 0).sum()) == batch.valid_tokens == 4 + 5 + 12


def check_packed_losses_equal_losses_alone():
    """METHOD.md section 6: each sample's losses and gradient inside packed rows are those of the sample in a row of its own."""
    model = _double(tie_embeddings=True)
    samples = random_samples([5, 6, 13, 2], VOCAB)
    batch = pack([samples[:2], samples[2:]], 16)
    _, packed = model(*fields(batch))
    for i, sample in enumerate(samples):
        total, alone = model(*fields(pack([[sample]], len(sample))))
        torch.testing.assert_close(packed[batch.segments == i], alone[0], rtol=1e-12, atol=1e-12)
        mine, _ = model(*fields(batch), weights=(batch.segments == i).double())
        ours, theirs = (torch.autograd.grad(x, model.head.weight)[0] for x in (mine, total))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_packed_losses_equal_losses_alone():
    check_packed_losses_equal_losses_alone()


def test_other_samples_of_the_row_do_not_change_a_loss():
    model, batch = _double(), small_batch()
    _, before = model(*fields(batch))
    batch.tokens[batch.segments == 0] = (batch.tokens[batch.segments == 0] + 7) % VOCAB
    batch.tokens[batch.segments == -1] = 5
    _, after = model(*fields(batch))
    rest = batch.segments != 0
    assert torch.equal(before[rest], after[rest])
    assert not torch.equal(before[~rest], after[~rest])


@pytest.mark.parametrize("tied", [False, True])
def test_sum_of_ghost_products_is_the_gradient_times_the_direction(tied):
    model, batch = _double(tie_embeddings=tied), small_batch()
    weights = torch.randn(2, 15, dtype=torch.float64)
    direction = {id(p): torch.randn_like(p) for p in model.parameters()}
    ghost = ghost_product(model, direction, lambda: (weights * plain_losses(model, batch)).sum())
    exact = sum((p.grad * direction[id(p)]).sum() for p in model.parameters())
    torch.testing.assert_close(ghost, exact, rtol=1e-10, atol=1e-10)


def test_every_parameter_belongs_to_a_tensor_layer():
    model = _double()
    owners = [m for m in model.modules() if list(m.named_parameters(recurse=False))]
    assert owners and all(isinstance(m, TENSOR_LAYERS) for m in owners)


def check_v8_tied_gradient_is_the_sum_of_both_uses():
    tied, untied = _double(tie_embeddings=True), _double()
    untied.load_state_dict(tied.state_dict())
    batch, weights = small_batch(), torch.randn(2, 15, dtype=torch.float64)
    for model in (tied, untied):
        model(*fields(batch), weights=weights)[0].backward()
    assert len(list(tied.parameters())) == len(list(untied.parameters())) - 1
    total = untied.embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(tied.embedding.weight.grad, total, rtol=1e-12, atol=1e-12)


def test_v8_tied_gradient_is_the_sum_of_both_uses():
    check_v8_tied_gradient_is_the_sum_of_both_uses()


def check_r2_seeds_use_the_parameters_own_names():
    from mads.tensor import ColumnParallelLinear

    model = Decoder(small_config(), seed=5)
    alone = ColumnParallelLinear(32, 64, name="layers.1.attention.qkv", std=0.3, seed=5)
    assert torch.equal(model.layers[1].attention.qkv.weight, alone.weight)
    scaled = ColumnParallelLinear(24, 32, name="layers.0.mlp.down", std=0.3 / 2, seed=5)  # 1 / sqrt(2 * 2 layers)
    torch.testing.assert_close(model.layers[0].mlp.down.weight, scaled.weight)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    assert not any(torch.equal(a[:2, :2], b[:2, :2]) for i, a in enumerate(matrices) for b in matrices[:i])


def test_r2_seeds_use_the_parameters_own_names():
    check_r2_seeds_use_the_parameters_own_names()


def test_bf16_model_gives_float32_losses_near_the_exact_ones():
    exact, batch = Decoder(small_config(init_std=0.05), dtype=torch.float64), small_batch()
    model = Decoder(small_config(init_std=0.05), dtype=torch.bfloat16)
    _, loss = model(*fields(batch))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact(*fields(batch))[1], rtol=2e-2, atol=2e-2)
