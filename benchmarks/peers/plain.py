"""A loop in the style of nanoGPT (https://github.com/karpathy/nanoGPT) around a model in its style, of the LLaMA family: one
file, causal attention by PyTorch's own function, cross entropy over the logits of all positions, no masks of documents."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from .cell import IGNORE, Batch, Shape
from .loops import Loop


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: Shape):
        super().__init__()
        h, kv = shape.hidden_size, shape.num_key_value_heads * shape.head_size
        self.sizes, self.head_size = (h, kv, kv), shape.head_size
        self.norm_1, self.norm_2 = nn.RMSNorm(h, shape.norm_eps), nn.RMSNorm(h, shape.norm_eps)
        self.qkv = nn.Linear(h, h + 2 * kv, bias=False)
        self.proj = nn.Linear(h, h, bias=False)
        self.gate_up = nn.Linear(h, 2 * shape.ffn_hidden_size, bias=False)
        self.down = nn.Linear(shape.ffn_hidden_size, h, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.proj(self.attend(self.qkv(self.norm_1(x)), cos, sin))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def attend(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in qkv.split(self.sizes, -1))
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on [B, heads, S, D], halves against each other."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class PlainLlama(nn.Module):
    """Returns the mean loss over the targets."""

    def __init__(self, shape: Shape, seq_length: int):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.norm_eps)
        self.head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if shape.tie_embeddings:
            self.head.weight = self.embedding.weight
        turns = shape.rope_theta ** (-torch.arange(0, shape.head_size, 2) / shape.head_size)
        angles = torch.outer(torch.arange(seq_length).float(), turns)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORE)


class NanoGPT(Loop):
    """The bare loop of the plain model."""

    masks = False

    def build(self) -> nn.Module:
        return PlainLlama(self.job.cell.shape, self.job.cell.seq_length)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        own = {"embedding.weight": weights["model.embed_tokens.weight"], "norm.weight": weights["model.norm.weight"]}
        own["head.weight"] = weights.get("lm_head.weight", own["embedding.weight"])
        for i in range(self.job.cell.shape.num_layers):
            theirs = f"model.layers.{i}"
            attention = [weights[f"{theirs}.self_attn.{name}_proj.weight"] for name in "qkv"]
            own |= {
                f"blocks.{i}.norm_1.weight": weights[f"{theirs}.input_layernorm.weight"],
                f"blocks.{i}.norm_2.weight": weights[f"{theirs}.post_attention_layernorm.weight"],
                f"blocks.{i}.qkv.weight": torch.cat(attention),
                f"blocks.{i}.proj.weight": weights[f"{theirs}.self_attn.o_proj.weight"],
                f"blocks.{i}.gate_up.weight": torch.cat([weights[f"{theirs}.mlp.{n}_proj.weight"] for n in ("gate", "up")]),
                f"blocks.{i}.down.weight": weights[f"{theirs}.mlp.down_proj.weight"],
            }
        self.module.load_state_dict(own)

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.called(batch.tokens, batch.labels)


class NanoGPTCompiled(NanoGPT):
    """As nanoGPT does by default: torch.compile."""

    compiled = True
