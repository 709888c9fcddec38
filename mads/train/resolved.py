"""What a run's `auto` settings and its libraries became, for environment.json: facts of the engine that trains, not wishes."""

from __future__ import annotations

from typing import Any

import torch

from mads.collectives import backend_of
from mads.kernels import cross_entropy_triton
from mads.kernels.packed_attention import choose_backend
from mads.logging.environment import driver_version
from mads.train.engine import Engine

PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def resolved(model, engine: Engine) -> dict[str, Any]:
    """JSON values. model: the config section; the attention backend is what its choice gives on this device in this dtype."""
    inner = engine.engine
    optimizer = inner.basic_optimizer  # the one that mads gave to DeepSpeed, or what DeepSpeed took instead
    facts = {
        "grid": str(engine.topology.grid),
        "zero_stage": engine.zero_stage,
        "precision": PRECISIONS[engine.dtype],
        "attention": choose_backend(model.attention, engine.device, engine.dtype, model.hidden_size // model.num_attention_heads),
        "head": "triton" if cross_entropy_triton.available(engine.device) else "torch",
        "optimizer": type(optimizer).__name__,
        "optimizer_fused": all(bool(group.get("fused")) for group in optimizer.param_groups),
        "optimizer_wrapper": type(inner.optimizer).__name__,
        "communication": backend_of(engine.topology.group("world")),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if engine.device.type == "cuda":
        device = torch.cuda.get_device_properties(engine.device)
        facts |= {
            "device_name": device.name,
            "device_memory_gib": device.total_memory / 2**30,
            "cuda": str(torch.version.cuda),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "driver": driver_version(),
        }
    return facts
