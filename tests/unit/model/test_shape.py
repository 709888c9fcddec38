"""Parameter counts, FLOPs, and the checks of a model's config."""

from pathlib import Path

import pytest
import torch
import yaml
from model_cases import fields, pack, plain_losses, random_samples, small_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mads.conf
from mads.config.schema import ModelConfig
from mads.model import Decoder, check_model_config, flops_per_token, parameter_count

FOLDER = Path(mads.conf.__path__[0]) / "model"
COUNTS = {
    "nano": 41_120,
    "tiny": 1_311_872,
    "paper_373m": 373_867_520,
    "paper_1b3": 1_345_423_360,
    "paper_3b6": 3_606_752_256,
    "paper_8b": 8_030_261_248,
}


def _config(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def test_every_model_config_has_a_known_count():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_exact(name):
    model = Decoder(_config(name), device="meta")  # the paper's sizes are counted without allocating them
    parameters = list(model.parameters())
    assert all(p.is_meta for p in parameters)
    assert sum(p.numel() for p in parameters) == parameter_count(_config(name)) == COUNTS[name]


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True, "num_key_value_heads": 8}, {"num_layers": 1, "ffn_hidden_size": 200}]
)
def test_n2_flops_per_token_within_two_percent_of_the_counter(changes):
    config = small_config(**changes)
    model, batch = Decoder(config), pack([[s] for s in random_samples([48, 48], 131)], 48)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain_losses(model, batch).sum().backward()
    assert abs(counter.get_total_flops() / (flops_per_token(config, 48) * 96) - 1) < 0.02


@pytest.mark.parametrize("seq_length", [128, 2048])
@pytest.mark.parametrize("name", COUNTS)
def test_n2_flops_of_every_model_config_are_the_counters(name, seq_length):
    """Whole models, all layers, on the meta device. The counter sees attention as plain products (SDPBackend.MATH), so it counts
    the whole [S, S] square and no recomputation: the convention of flops_per_token."""
    config = _config(name)
    model, ids = Decoder(config, device="meta"), torch.zeros(2, seq_length, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.logits(ids, ids, ids).sum().backward()
    assert abs(counter.get_total_flops() / (flops_per_token(config, seq_length) * ids.numel()) - 1) < 0.02


@pytest.mark.parametrize(
    "changes, t, words",
    [
        ({}, 3, "model.num_attention_heads = 8 is not divisible by the tensor-parallel size 3"),
        ({}, 8, "model.num_key_value_heads = 4 is not divisible by the tensor-parallel size 8"),
        ({"ffn_hidden_size": 27}, 2, "model.ffn_hidden_size = 27 is not divisible by the tensor-parallel size 2"),
        ({"num_key_value_heads": 3}, 1, "num_attention_heads = 8 must be a multiple of model.num_key_value_heads = 3"),
        ({"hidden_size": 40}, 1, "hidden_size = 40 must be a multiple of 2"),
        ({"num_layers": 0}, 1, "model.num_layers = 0 must be at least 1"),
    ],
)
def test_t6_t8_sizes_that_do_not_fit_are_named_with_their_numbers(changes, t, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        check_model_config(small_config(**changes), t)


@pytest.mark.parametrize(
    "changes, t, c, words",
    [
        ({}, 2, 4, "model.num_key_value_heads = 4 is not divisible by tensor-parallel size 2 x context-parallel size 4 = 8"),
        ({"num_key_value_heads": 8}, 4, 4, "model.num_attention_heads = 8 is not divisible by tensor-parallel size 4 x"),
    ],
)
def test_t6_t8_heads_under_context_parallelism_are_named_with_their_numbers(changes, t, c, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        check_model_config(small_config(**changes), t, c)
    check_model_config(small_config(num_key_value_heads=8), 2, 4)


def test_flash_on_the_cpu_is_refused_at_the_first_forward():
    model = Decoder(small_config(attention="flash"))
    with pytest.raises(ValueError, match="attention = flash cannot run here"), torch.no_grad():
        model(*fields(pack([random_samples([4], 131)], 4)))
