"""What train.compile does not go with, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator


def compile_rules(config) -> Iterator[str]:
    """Violations, one a line, with the key, its value, the reason and a remedy."""
    if not config.train.compile:
        return
    p, m = config.parallel, config.model
    collectives = "compiled code would end at every collective of a layer"
    refused = {
        "zero_stage": (p.zero_stage == 3, "ZeRO 3 gathers weights by hooks inside of the layers, where compiled code would end"),
        "pipeline_model_parallel_size": (p.pipeline_model_parallel_size > 1, "not verified on pipeline stages"),
        "tensor_model_parallel_size": (p.tensor_model_parallel_size > 1, collectives),
        "context_parallel_size": (p.context_parallel_size > 1, collectives),
        "activation_checkpointing": (p.activation_checkpointing != "none", "the compiler decides what backward computes again"),
    }
    for key, (wrong, reason) in refused.items():
        if wrong:
            yield f"train.compile=true with parallel.{key}={p[key]}: {reason}; use train.compile=false"
    for key in ("hidden_dropout", "attention_dropout"):
        if m[key] > 0:
            yield (
                f"train.compile=true with model.{key}={m[key]}: masks are drawn by the numbers of a batch's rows, for which the "
                "layers would be compiled anew in every step; use train.compile=false"
            )
