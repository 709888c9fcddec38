"""What the decoder is called in `transformers`: names and rows of its weights, and its config.json as LlamaForCausalLM.

Both turn the halves of a head against each other (mads.model.rope), so no row is permuted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mads.data.schema import DataError

MODEL_TYPES = ("llama", "mistral")  # Mistral without its window is LLaMA under another name


@dataclass(frozen=True)
class Piece:
    """A tensor of transformers, `shape`, is rows [start, start + shape[0]) of the decoder's tensor `ours`."""

    theirs: str
    ours: str
    start: int
    shape: tuple[int, ...]


def pieces(model) -> list[Piece]:
    """All tensors, in the order of the layers.

    Args:
        model: the fields of mads.config.schema.ModelConfig.
    """
    h, f, vocab = model.hidden_size, model.ffn_hidden_size, model.vocab_size
    kv = h // model.num_attention_heads * model.num_key_value_heads
    found = [Piece("model.embed_tokens.weight", "embedding.weight", 0, (vocab, h))]
    for i in range(model.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        found += [
            Piece(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight", 0, (h,)),
            Piece(f"{theirs}.self_attn.q_proj.weight", f"{ours}.attention.qkv.weight", 0, (h, h)),
            Piece(f"{theirs}.self_attn.k_proj.weight", f"{ours}.attention.qkv.weight", h, (kv, h)),
            Piece(f"{theirs}.self_attn.v_proj.weight", f"{ours}.attention.qkv.weight", h + kv, (kv, h)),
            Piece(f"{theirs}.self_attn.o_proj.weight", f"{ours}.attention.output.weight", 0, (h, h)),
            Piece(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight", 0, (h,)),
            Piece(f"{theirs}.mlp.gate_proj.weight", f"{ours}.mlp.gate_up.weight", 0, (f, h)),
            Piece(f"{theirs}.mlp.up_proj.weight", f"{ours}.mlp.gate_up.weight", f, (f, h)),
            Piece(f"{theirs}.mlp.down_proj.weight", f"{ours}.mlp.down.weight", 0, (h, f)),
        ]
    found.append(Piece("model.norm.weight", "norm.weight", 0, (h,)))
    if not model.tie_embeddings:
        found.append(Piece("lm_head.weight", "head.weight", 0, (vocab, h)))
    return found


def logical_shapes(model) -> dict[str, tuple[int, ...]]:
    """The decoder's tensors, name -> shape: what `pieces` puts together."""
    rows: dict[str, tuple[int, ...]] = {}
    for piece in pieces(model):
        first = piece.start + piece.shape[0]
        rows[piece.ours] = (max(first, rows.get(piece.ours, (0,))[0]), *piece.shape[1:])
    return rows


def llama_config(model, seq_length: int, dtype: str, special: Mapping[str, int | None]) -> dict[str, Any]:
    """config.json.

    Args:
        model: the fields of mads.config.schema.ModelConfig.
        dtype: of the weights, as torch calls it.
        special: "bos", "eos" and "pad" -> id, or None, which is written too: transformers takes 1 and 2 where nothing is said.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.hidden_size // model.num_attention_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": seq_length,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        # transformers 5 reads the first, earlier versions and other tools the second; likewise with the dtype.
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": bool(model.tie_embeddings),
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        "pad_token_id": special["pad"],
        "use_cache": True,
    }


def model_settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of mads.config.schema.ModelConfig that a config.json determines.

    Args:
        where: its path, for messages.

    Raises:
        DataError: it asks for something that the decoder does not have; all of it is named.
    """
    if config.get("model_type") not in MODEL_TYPES:
        raise DataError(
            f"{where} is of model_type={config.get('model_type')!r}; the decoder is that of {' or '.join(MODEL_TYPES)}"
        )
    sizes = {
        "hidden_size": config.get("hidden_size"),
        "num_layers": config.get("num_hidden_layers"),
        "num_attention_heads": config.get("num_attention_heads"),
        "ffn_hidden_size": config.get("intermediate_size"),
        "vocab_size": config.get("vocab_size"),
    }
    sizes["num_key_value_heads"] = config.get("num_key_value_heads") or sizes["num_attention_heads"]
    if wrong := sorted(key for key, value in sizes.items() if type(value) is not int or value < 1):
        raise DataError(f"{where} gives no {wrong[0]} that is a positive number")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or rope.get("rope_type", "default")
    heads, head_dim = sizes["num_attention_heads"], config.get("head_dim")
    has = {
        f"hidden_act={config.get('hidden_act', 'silu')!r} (only 'silu')": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        f"rope scaling of type {kind!r} (only 'default')": kind != "default",
        f"head_dim={head_dim} (only hidden_size / num_attention_heads = {sizes['hidden_size'] / heads:g})": (
            head_dim is not None and head_dim * heads != sizes["hidden_size"]
        ),
        f"a sliding window of {config.get('sliding_window')}": config.get("sliding_window") is not None,
        "a partial rotary embedding": (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1,
        "quantized weights": config.get("quantization_config") is not None,
    }
    if refused := [what for what, present in has.items() if present]:
        raise DataError(f"{where} has what the decoder cannot represent: {'; '.join(refused)}")
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    eps = config.get("rms_norm_eps", 1e-6)  # as transformers' LlamaConfig where it is not said
    for name, value in (("rope_theta", theta), ("rms_norm_eps", eps)):
        if not isinstance(value, int | float) or not (0 < value < math.inf):
            raise DataError(f"{where}: {name}={value!r} is not a positive number")
    return sizes | {
        "rope_theta": float(theta),
        "norm_eps": float(eps),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
