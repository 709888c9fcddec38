"""What follows from a model's config alone: its checks, its number of parameters, its cost. Nothing is allocated."""

from __future__ import annotations

from mads.tensor.init import local_size


def check_model_config(config, tensor_parallel_size: int = 1, context_parallel_size: int = 1) -> None:
    """Check that a decoder can be built from `config` (the fields of mads.config.schema.ModelConfig). Context parallelism cuts
    the heads of a tensor-parallel rank once more, during attention.

    Raises:
        ValueError: naming the fields and the numbers.
    """
    for field in ("hidden_size", "num_layers", "num_attention_heads", "num_key_value_heads", "ffn_hidden_size", "vocab_size"):
        if getattr(config, field) < 1:
            raise ValueError(f"model.{field} = {getattr(config, field)} must be at least 1")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if config.hidden_size % (2 * heads):
        raise ValueError(
            f"model.hidden_size = {config.hidden_size} must be a multiple of 2 * model.num_attention_heads = {2 * heads}: "
            "every head has the same even size, because RoPE turns pairs"
        )
    if heads % kv_heads:
        raise ValueError(f"model.num_attention_heads = {heads} must be a multiple of model.num_key_value_heads = {kv_heads}")
    for field in ("num_attention_heads", "num_key_value_heads", "ffn_hidden_size"):
        local_size(getattr(config, field), tensor_parallel_size, f"model.{field}")
    both = tensor_parallel_size * context_parallel_size
    for field in ("num_attention_heads", "num_key_value_heads"):
        if getattr(config, field) % both:
            raise ValueError(
                f"model.{field} = {getattr(config, field)} is not divisible by tensor-parallel size {tensor_parallel_size} x "
                f"context-parallel size {context_parallel_size} = {both}; every rank needs whole heads during attention"
            )


def layer_matrices(config) -> int:
    """Weights of one layer's matrices: QKV, output, gate, up and down; its two norms are not among them."""
    h, f = config.hidden_size, config.ffn_hidden_size
    kv = h // config.num_attention_heads * config.num_key_value_heads
    return h * (h + 2 * kv) + h * h + 3 * h * f


def parameter_count(config) -> int:
    """Number of parameters, without the vocabulary padding of tensor parallelism; a tied embedding counts once."""
    h = config.hidden_size
    embeddings = config.vocab_size * h * (1 if config.tie_embeddings else 2)
    return embeddings + config.num_layers * (layer_matrices(config) + 2 * h) + h


def flops_per_token(config, seq_length: int) -> int:
    """Floating-point operations of forward and backward per token, with rows of `seq_length` positions.

    2 per weight of every matrix product forward, twice that backward (Kaplan et al. 2020, section 2.1). Attention counts the
    whole [S, S] square, as PaLM does: an upper bound for causal and packed rows. Lookups, norms and softmax are left out.
    """
    h = config.hidden_size
    matrices = config.num_layers * layer_matrices(config) + config.vocab_size * h
    attention = config.num_layers * 2 * seq_length * h  # scores and values: S multiplications per channel each
    return 3 * 2 * (matrices + attention)
