"""Models of other frameworks in the bare loop: litgpt's GPT, torchtitan's Llama 3, lingua's transformer. Each is their own code,
from a package or a checkout; only the loop around it is the same as for all."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping

import torch
from torch import nn

from .cell import IGNORE, Batch
from .loops import Loop


def interleaved(weight: torch.Tensor, head_size: int) -> torch.Tensor:
    """Rows of a query or key matrix for RoPE that turns neighbours instead of halves."""
    return weight.unflatten(0, (-1, 2, head_size // 2)).transpose(1, 2).flatten(0, 2)


def renamed(weights: Mapping[str, torch.Tensor], names: Mapping[str, str], layers: int) -> dict[str, torch.Tensor]:
    """Names with {} stand for every layer."""
    found = {}
    for theirs, ours in names.items():
        for i in range(layers) if "{}" in theirs else (0,):
            found[ours.format(i)] = weights[theirs.format(i)]
    return found


SEPARATE = {  # as both torchtitan and lingua call them
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "model.layers.{}.input_layernorm.weight": "layers.{}.attention_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "layers.{}.ffn_norm.weight",
    "model.layers.{}.mlp.gate_proj.weight": "layers.{}.feed_forward.w1.weight",
    "model.layers.{}.mlp.down_proj.weight": "layers.{}.feed_forward.w2.weight",
    "model.layers.{}.mlp.up_proj.weight": "layers.{}.feed_forward.w3.weight",
}


class LitGPT(Loop):
    """litgpt.GPT, with the loss that its pretraining uses."""

    masks = False

    def build(self) -> nn.Module:
        from litgpt import GPT, Config

        shape = self.job.cell.shape
        config = Config(
            block_size=self.job.cell.seq_length,
            n_layer=shape.num_layers,
            n_embd=shape.hidden_size,
            n_head=shape.num_attention_heads,
            n_query_groups=shape.num_key_value_heads,
            intermediate_size=shape.ffn_hidden_size,
            padded_vocab_size=shape.vocab_size,
            vocab_size=shape.vocab_size,
            rotary_percentage=1.0,
            rope_base=int(shape.rope_theta),
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            norm_eps=shape.norm_eps,
            mlp_class_name="LLaMAMLP",
        )
        model = GPT(config)
        if shape.tie_embeddings:
            model.transformer.wte.weight = model.lm_head.weight
        return model

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        block = "transformer.h.{}"
        names = {
            "model.embed_tokens.weight": "transformer.wte.weight",
            "model.norm.weight": "transformer.ln_f.weight",
            "model.layers.{}.input_layernorm.weight": f"{block}.norm_1.weight",
            "model.layers.{}.post_attention_layernorm.weight": f"{block}.norm_2.weight",
            "model.layers.{}.self_attn.o_proj.weight": f"{block}.attn.proj.weight",
            "model.layers.{}.mlp.gate_proj.weight": f"{block}.mlp.fc_1.weight",
            "model.layers.{}.mlp.up_proj.weight": f"{block}.mlp.fc_2.weight",
            "model.layers.{}.mlp.down_proj.weight": f"{block}.mlp.proj.weight",
        }
        layers = self.job.cell.shape.num_layers
        own = renamed(weights, names, layers)
        for i in range(layers):
            parts = [weights[f"model.layers.{i}.self_attn.{name}_proj.weight"] for name in "qkv"]
            own[f"{block.format(i)}.attn.qkv.weight"] = torch.cat(parts)
        own["lm_head.weight"] = weights.get("lm_head.weight", own["transformer.wte.weight"])
        self.module.load_state_dict(own)

    def loss(self, batch: Batch) -> torch.Tensor:
        from litgpt.utils import chunked_cross_entropy

        return chunked_cross_entropy(self.called(batch.tokens), batch.labels, chunk_size=0, ignore_index=IGNORE)


class TorchTitan(Loop):
    """torchtitan's Llama 3. Its masks need flex or varlen attention, which do not train on a CPU, so it gets its causal one."""

    masks = False

    def build(self) -> nn.Module:
        from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
        from torchtitan.models.common.attention import ScaledDotProductAttention
        from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
        from torchtitan.models.llama3 import Llama3Model
        from torchtitan.models.llama3.model import Llama3TransformerBlock

        shape, ones, normal = self.job.cell.shape, {"weight": nn.init.ones_}, {"weight": nn.init.normal_}
        h = shape.hidden_size
        norm = lambda: RMSNorm.Config(normalized_shape=h, eps=shape.norm_eps, param_init=ones)
        rope = ComplexRoPE.Config(dim=shape.head_size, max_seq_len=self.job.cell.seq_length, theta=shape.rope_theta)
        layers = []
        for _ in range(shape.num_layers):
            attention = make_gqa_config(
                dim=h,
                n_heads=shape.num_attention_heads,
                n_kv_heads=shape.num_key_value_heads,
                wqkv_param_init=normal,
                wo_param_init=normal,
                inner_attention=ScaledDotProductAttention.Config(),
                fuse_qkv=True,
                rope=rope,
            )
            mlp = make_ffn_config(dim=h, hidden_dim=shape.ffn_hidden_size, w1_param_init=normal, w2w3_param_init=normal)
            layers.append(
                Llama3TransformerBlock.Config(attention_norm=norm(), ffn_norm=norm(), attention=attention, feed_forward=mlp)
            )
        vocabulary = shape.vocab_size
        return Llama3Model.Config(
            dim=h,
            vocab_size=vocabulary,
            enable_weight_tying=shape.tie_embeddings,
            tok_embeddings=Embedding.Config(num_embeddings=vocabulary, embedding_dim=h, param_init=normal),
            norm=norm(),
            lm_head=Linear.Config(in_features=h, out_features=vocabulary, param_init=normal),
            layers=layers,
        ).build()

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        shape = self.job.cell.shape
        attention = "layers.{}.attention"
        names = SEPARATE | {"model.layers.{}.self_attn.o_proj.weight": f"{attention}.wo.weight"}
        own = renamed(weights, names, shape.num_layers)
        for i in range(shape.num_layers):
            for name in "qkv":
                weight = weights[f"model.layers.{i}.self_attn.{name}_proj.weight"]
                weight = weight if name == "v" else interleaved(weight, shape.head_size)
                own[f"{attention.format(i)}.qkv_linear.w{name}.weight"] = weight
        own["lm_head.weight"] = weights.get("lm_head.weight", own["tok_embeddings.weight"])
        self.module.load_state_dict(own)

    def loss(self, batch: Batch) -> torch.Tensor:
        from torchtitan.components.loss import cross_entropy_loss

        return cross_entropy_loss(self.called(batch.tokens), batch.labels) / (batch.labels != IGNORE).sum()


class Lingua(Loop):
    """lingua's transformer from a checkout, with PyTorch's attention. It imports xformers, which that attention does not use:
    where it is missing, an empty module takes its place."""

    masks = False

    def build(self) -> nn.Module:
        try:
            import xformers.ops  # noqa: F401
        except ImportError:
            empty, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
            ops.fmha, ops.AttentionBias, empty.ops = types.SimpleNamespace(), object, ops
            sys.modules |= {"xformers": empty, "xformers.ops": ops}
        from apps.main.transformer import LMTransformer, LMTransformerArgs

        shape = self.job.cell.shape
        return LMTransformer(
            LMTransformerArgs(
                dim=shape.hidden_size,
                n_layers=shape.num_layers,
                n_heads=shape.num_attention_heads,
                n_kv_heads=shape.num_key_value_heads,
                multiple_of=shape.ffn_hidden_size,  # its own 8/3 of dim, rounded up to this
                norm_eps=shape.norm_eps,
                rope_theta=shape.rope_theta,
                max_seqlen=self.job.cell.seq_length,
                vocab_size=shape.vocab_size,
                weight_tying=shape.tie_embeddings,
            )
        )

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        shape = self.job.cell.shape
        attention = "layers.{}.attention"
        names = SEPARATE | {
            "model.layers.{}.self_attn.o_proj.weight": f"{attention}.wo.weight",
            "model.layers.{}.self_attn.v_proj.weight": f"{attention}.wv.weight",
        }
        own = renamed(weights, names, shape.num_layers)
        for i in range(shape.num_layers):
            for name in "qk":
                weight = weights[f"model.layers.{i}.self_attn.{name}_proj.weight"]
                own[f"{attention.format(i)}.w{name}.weight"] = interleaved(weight, shape.head_size)
        if shape.tie_embeddings:
            own["output.tied_module.weight"] = own["tok_embeddings.weight"]
        else:
            own["output.weight"] = weights["lm_head.weight"]
        self.module.load_state_dict(own)

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.called(batch.tokens, batch.labels)  # its own cross entropy, which ignores -100
