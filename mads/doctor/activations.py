"""Bytes that the forward pass keeps for the backward pass, after Korthikanti et al. 2022 (arXiv 2205.05198, section 4), for this
decoder: RMSNorm, RoPE, grouped queries, SwiGLU, no bias, no dropout unless configured.

With n = micro-batch x seq_length / cp positions of hidden size h, kv = h x kv_heads / heads, f the inner size, t the
tensor-parallel size, and u = t under sequence parallelism, 1 without, one layer keeps in the model's dtype

    4 n h / u                      the inputs of the two norms and of the two column-parallel products
    n (h + 2 kv) / t               the output of the QKV product: V is a view of it, so all of it stays
    n (h + kv) / t                 Q and K after RoPE
    n h / t                        the output of attention
    3 n f / t                      gate and up, and silu(gate) * up

and, in float32, 2 n / u for the norms and n heads / t for attention's log-sum-exp. With context parallelism
attention keeps what the all-to-all has brought, n (h + 2 kv) / t for Q, K and V together, in place of the second and third line,
and its output is kept twice: before and after the way back.

Recomputation: `selective` keeps of attention and SwiGLU only what goes in and the output of attention, `full` only the layer's
input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mads.kernels.linear_cross_entropy import rows_at_a_time

FLOAT32 = 4


@dataclass(frozen=True)
class Setting:
    """What activations depend on.

    rows, length: micro-batch and whole sequence length; element: bytes of the model's dtype (2 or 4).
    kernel: of attention: "flash" (flash-attn), "fused" (SDPA's: a layer keeps the same, and all share a mask [B, 1, S, S]) or
        "math" (SDPA without a fused kernel: every layer keeps its probabilities).
    RMSNorm is one kernel, as in PyTorch 2.9 and later on GPUs; before, it kept its normalised input too.
    """

    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int  # padded
    rows: int
    length: int
    element: int
    tp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    recompute: str = "none"
    kernel: str = "flash"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0

    @property
    def positions(self) -> int:
        return self.rows * self.length // self.cp

    @property
    def kv(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    @property
    def cut(self) -> int:
        """Ranks that share the positions of a hidden state beyond context parallelism."""
        return self.tp if self.sequence_parallel else 1


def layer_bytes(s: Setting, recompute: str | None = None) -> int:
    """What one layer keeps of one micro-batch. recompute: in place of the setting's."""
    recompute = s.recompute if recompute is None else recompute
    n, e, t = s.positions, s.element, s.tp
    stream = n * s.hidden * e // s.cut
    if recompute == "full":
        return stream
    selective = recompute == "selective"
    norms = 2 * _norm_bytes(s)
    masks = 2 * n * s.hidden // s.cut if s.hidden_dropout else 0
    ffn = (2 if selective else 3) * n * s.ffn // t * e
    return 4 * stream + norms + masks + _attention(s, selective) + ffn


def _norm_bytes(s: Setting) -> int:
    """Beyond a norm's input and output."""
    return s.positions // s.cut * FLOAT32


def _attention(s: Setting, selective: bool) -> int:
    n, e, t, h, kv = s.positions, s.element, s.tp, s.hidden, s.kv
    product, output = n * (h + 2 * kv) // t * e, n * h // t * e
    if selective:
        return product + output
    lse = n * s.heads // t * FLOAT32
    if s.kernel == "math":  # the probabilities, and Q, K and V in float32 with KV heads repeated
        square = s.rows * s.heads // (t * s.cp) * s.length**2
        masks = 2 * square * FLOAT32 if s.attention_dropout else 0
        return output + square * FLOAT32 + masks + 3 * n * h // t * FLOAT32
    if s.cp > 1:
        return product + lse + 2 * output
    return product + n * (h + kv) // t * e + lse + output


def entry_bytes(s: Setting) -> int:
    """What the embedding keeps: token ids, and the mask of dropout."""
    return s.positions * 8 + (s.positions * s.hidden // s.cut if s.hidden_dropout else 0)


def shared_bytes(s: Setting) -> int:
    """What all layers of one micro-batch share: the RoPE tables, and for SDPA the mask [B, 1, S, S]."""
    tables = 2 * s.positions * (s.hidden // s.heads // 2) * s.element
    return tables + (s.rows * s.length**2 * s.element if s.kernel != "flash" else 0)


def exit_bytes(s: Setting) -> int:
    """What the final norm and the head keep: the norm's input, and the gradients of the head's input and weight, which exist when
    the forward pass ends (mads.tensor.cross_entropy)."""
    n, e = s.positions, s.element
    return n * s.hidden * e // s.cut + _norm_bytes(s) + (n + s.vocabulary // s.tp) * s.hidden * e


def loss_work_bytes(s: Setting) -> int:
    """Beyond `exit_bytes`, when the forward pass ends: the norm's output, some rows of logits, in half precision a copy of them
    and the weight's gradient in float32."""
    width = s.vocabulary // s.tp
    logits = min(s.positions, rows_at_a_time(width, torch.device("cuda"))) * width
    single = 0 if s.element == FLOAT32 else (logits + width * s.hidden) * FLOAT32
    return s.positions * s.hidden * s.element + logits * s.element + single


def layer_work_bytes(s: Setting) -> int:
    """At most in use beyond what is kept while one layer's backward pass runs: the gradients of its widest tensors, and under
    recomputation what is computed again."""
    n, e = s.positions, s.element
    gradients = (5 * n * s.ffn // s.tp + 3 * n * s.hidden) * e
    again = {"none": 0, "selective": layer_bytes(s, "none") - layer_bytes(s, "selective"), "full": layer_bytes(s, "none")}
    square = 2 * (s.rows * s.heads // (s.tp * s.cp) * s.length**2) * FLOAT32 if s.kernel == "math" else 0
    return max(gradients, square) + again[s.recompute]
