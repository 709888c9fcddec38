"""What this machine can do, found out by trying: `python -m benchmarks.mfu.facts` prints it as JSON. It runs in a process of its
own, so that the one that starts the cells holds no memory of a GPU."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from mads.logging.environment import driver_version, git_state, package_versions

QUERY = "index name uuid driver_version power.limit clocks.max.sm memory.used ecc.errors.uncorrected.volatile.total".split()
# Bits of nvidia-smi's throttle reasons that mean: slower than the GPU could be, for a cause outside of the run.
THROTTLES = {0x8: "hardware slowdown", 0x20: "too hot", 0x40: "too hot (hardware)", 0x80: "power brake"}
POWER_CAP = 0x4  # at the power limit: usual for a busy H100


@dataclass
class Machine:
    """devices: name, memory (GiB) and capability of every GPU that torch sees, in its order. The texts say why something cannot
    be used, "" where it can. smi: a row of nvidia-smi's answers for each GPU; busy: uuid -> what else runs there; links: words
    like NV18 or SYS between two GPUs; throttles: bits of every GPU while idle."""

    devices: list[dict[str, Any]] = field(default_factory=list)
    bf16: str = ""
    flash: str = ""
    fused: str = ""
    pinned: str = ""
    nccl: str = ""
    triton: str = ""
    smi_error: str = ""
    smi: list[dict[str, str]] = field(default_factory=list)
    busy: dict[str, list[str]] = field(default_factory=dict)
    links: list[list[str]] = field(default_factory=list)
    throttles: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None


def gather() -> Machine:
    """Try everything on the first GPU, and ask nvidia-smi about all."""
    m = Machine(versions=package_versions(), git=git_state())
    has = torch.cuda.is_available()
    device = torch.device("cuda" if has else "cpu")
    for index in range(torch.cuda.device_count() if has else 0):
        found = torch.cuda.get_device_properties(index)
        m.devices.append(
            {"name": found.name, "memory": found.total_memory / 2**30, "capability": [found.major, found.minor],
             "uuid": f"GPU-{getattr(found, 'uuid', '')}"}
        )  # fmt: skip
    if has:
        m.versions |= {"CUDA": str(torch.version.cuda), "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
        m.versions["driver"] = driver_version()
    no_gpu = "" if has else "torch sees no CUDA device"
    m.bf16 = no_gpu or ("" if torch.cuda.get_device_capability() >= (8, 0) else "the GPU is older than compute capability 8.0")
    m.nccl = no_gpu or ("" if torch.distributed.is_nccl_available() else "this build of torch has no NCCL")
    m.flash, m.fused = tried(flash, device), tried(fused_adamw, device)
    m.pinned, m.triton = no_gpu or tried(pin, device), no_gpu or tried(triton_kernel, device)
    if has:
        ask_smi(m)
    return m


def tried(attempt, device: torch.device) -> str:
    """ "" or the first line of what went wrong: a broken installation fails in many ways, and each is the answer here."""
    try:
        attempt(device)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"[:300]
    return ""


def flash(device: torch.device) -> None:
    """Run the variable-length kernel once: a package of another torch is installed, and fails only here."""
    from mads.kernels.packed_attention import choose_backend

    choose_backend("flash", device, torch.bfloat16, 64)
    from flash_attn import flash_attn_varlen_func

    q = torch.zeros(16, 2, 64, device=device, dtype=torch.bfloat16)
    cuts = torch.tensor([0, 16], device=device, dtype=torch.int32)
    flash_attn_varlen_func(q, q, q, cuts, cuts, 16, 16, causal=True)


def fused_adamw(device: torch.device) -> None:
    """A step of the fused optimizer."""
    weight = torch.nn.Parameter(torch.zeros(8, device=device))
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], fused=True).step()


def pin(device: torch.device) -> None:
    """Page-locked memory, from which copies run beside the computation."""
    if not torch.zeros(8, pin_memory=True).is_pinned():
        raise RuntimeError("torch gives pageable memory where pinned memory was asked for")


def triton_kernel(device: torch.device) -> None:
    """A kernel of mads, compiled and run."""
    from mads.kernels.cross_entropy_triton import row_statistics

    lse, _, _ = row_statistics(torch.zeros(2, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device), 8)
    if not torch.allclose(lse, torch.full_like(lse, 8.0).log()):
        raise RuntimeError(f"log sum exp of 8 zeros came out as {lse.tolist()}")


# ---------------------------------------------------------------- nvidia-smi


def smi(*arguments: str) -> str:
    """Raises: OSError, subprocess.SubprocessError."""
    return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


def ask_smi(m: Machine) -> None:
    """Fill what nvidia-smi knows; smi_error, if it does not answer."""
    try:
        m.smi = parse_query(smi(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"))
        m.busy = parse_apps(smi("--query-compute-apps=gpu_uuid,pid,process_name", "--format=csv,noheader"))
        m.links = parse_topology(smi("topo", "-m"))
        m.throttles = throttles()
    except (OSError, subprocess.SubprocessError) as error:
        m.smi_error = f"nvidia-smi: {str(error).splitlines()[0]}"


def throttles() -> list[int]:
    """Bits of every GPU, now. The field has another name from driver 535 on; the old one is still answered by some."""
    for name in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        try:
            lines = smi(f"--query-gpu={name}", "--format=csv,noheader").splitlines()
            return [int(line.strip(), 16) for line in lines if line.strip().startswith("0x")]
        except subprocess.CalledProcessError:
            continue
    return []


def parse_query(text: str) -> list[dict[str, str]]:
    """A dictionary for each GPU, by QUERY."""
    return [dict(zip(QUERY, (word.strip() for word in line.split(",")))) for line in text.splitlines() if line.strip()]


def parse_apps(text: str) -> dict[str, list[str]]:
    """uuid -> "pid name" of each process that computes there."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) >= 3:
            found.setdefault(words[0], []).append(f"{words[1]} {words[2]}")
    return found


def parse_topology(text: str) -> list[list[str]]:
    """The square of `nvidia-smi topo -m`: row i, column j is the link of GPU i to GPU j, "X" on the diagonal."""
    rows = []
    for line in text.splitlines():
        words = re.sub(r"\x1b\[[0-9;]*m", "", line).split()
        if words and re.fullmatch(r"GPU\d+", words[0]) and "X" in words[1:]:
            rows.append(words[1:])
    return [row[: len(rows)] for row in rows]


if __name__ == "__main__":
    json.dump(dataclasses.asdict(gather()), sys.stdout)
