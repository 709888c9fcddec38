"""Counts the bytes that autograd keeps for the backward pass, as an independent check of formulas."""

from types import SimpleNamespace

import torch

from mads.doctor.activations import Setting
from mads.model.decoder import Decoder

ROWS, LENGTH = 2, 48


def model_config(**changes):
    """A small decoder with odd sizes; attention on SDPA."""
    sizes = dict(hidden_size=64, num_layers=2, num_attention_heads=8, num_key_value_heads=4, ffn_hidden_size=168, vocab_size=300)
    other = dict(rope_theta=1e4, norm_eps=1e-5, tie_embeddings=False, hidden_dropout=0.0, attention_dropout=0.0, init_std=0.02)
    return SimpleNamespace(**(sizes | other | {"attention": "sdpa"} | changes))


def saved_bytes(module: Decoder, rows: int, length: int, draws=None) -> int:
    """Bytes of all storages that one forward pass keeps, parameters left out; each storage counts once."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()  # held, so that no address is used twice
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, module.config.vocab_size, (rows, length))
    positions = torch.arange(length).expand(rows, length).contiguous()
    segments = torch.zeros(rows, length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(tokens, tokens, positions, segments, draws=draws)
    return sum(s.nbytes() for s in storages.values())


def counted(config, placement, rows: int = ROWS, length: int = LENGTH, draws=None) -> tuple[float, float]:
    """(bytes of one layer, bytes of everything else), from two models that differ by two layers."""
    few = saved_bytes(Decoder(config, placement), rows, length, draws)
    more = SimpleNamespace(**(vars(config) | {"num_layers": config.num_layers + 2}))
    layer = (saved_bytes(Decoder(more, placement), rows, length, draws) - few) / 2
    return layer, few - config.num_layers * layer


def setting(config, rows: int = ROWS, length: int = LENGTH, **changes) -> Setting:
    """What `counted` measures, for the formulas, in float32."""
    c = config
    sizes = (c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.ffn_hidden_size, c.vocab_size, rows, length, 4)
    return Setting(*sizes, **({"kernel": "fused", "hidden_dropout": c.hidden_dropout} | changes))
