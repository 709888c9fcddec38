"""A node as the MFU table wants it, and what a run on it records."""

import copy

from benchmarks.mfu.facts import Machine, parse_apps, parse_query, parse_topology
from benchmarks.mfu.plan import Settings, cells

NAME = "NVIDIA H100 80GB HBM3"
QUERIED = "\n".join(f"{i}, {NAME}, GPU-{i:04d}, 550.54.15, 700.00, 1980, 0, 0" for i in range(8))
# nvidia-smi topo -m of a node whose first four GPUs are joined to the others over the processors' bus only.
LINKED = "\n".join(
    ["\x1b[4m\tGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tGPU5\tGPU6\tGPU7\tNIC0\tCPU Affinity\x1b[0m"]
    + [
        "\t".join([f"GPU{i}", *("X" if i == j else "NV18" if i // 4 == j // 4 else "SYS" for j in range(8)), "PIX", "0-55"])
        for i in range(8)
    ]
    + ["NIC0\tPIX\tPIX\tSYS\tSYS\tSYS\tSYS\tSYS\tSYS\tX", "", "Legend:", "  X    = Self"]
)
CELL = cells(["nano"], [8], ["tp2"], Settings(micro_batch=2, accumulation=2, seq_length=128, sample_tokens=128))[0]
RECORDED = {
    "world_size": 8,
    "device": "cuda:0",
    "resolved": {
        "zero_stage": 1,
        "precision": "bf16",
        "attention": "flash",
        "head": "triton",
        "optimizer": "AdamW",
        "optimizer_fused": True,
        "communication": "nccl",
        "float32_matmul_precision": "highest",
        "device_name": NAME,
    },
}
CONFIG = {
    "parallel": {"zero_stage": 1, "tensor_model_parallel_size": 2},
    "train": {"micro_batch_size": 2, "global_batch_size": 16},
}


def machine(**changes) -> Machine:
    """Eight H100 that lack nothing, but for `changes`."""
    devices = [{"name": NAME, "memory": 79.1, "capability": [9, 0], "uuid": f"GPU-{i:04d}"} for i in range(8)]
    good = Machine(
        devices=devices,
        smi=parse_query(QUERIED),
        busy=parse_apps(""),
        links=parse_topology(LINKED),
        throttles=[1] * 8,
        git={"commit": "c" * 40, "modified": False},
        versions={"torch": "2.9.0"},
    )
    for name, value in changes.items():
        setattr(good, name, value)
    return good


def recorded(**changes) -> dict:
    """environment.json of a run without a fallback, but for `changes` of what it resolved."""
    record = copy.deepcopy(RECORDED)
    record["resolved"] |= changes
    return record
