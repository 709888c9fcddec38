"""What would make a figure wrong or slow without saying so: found before a cell from the machine, after it from what its run
recorded of itself. Each finding has a name, by which `--allow NAME` lets it pass; the row is marked then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mfu.facts import THROTTLES, Machine
from benchmarks.mfu.plan import Cell
from mads.logging.throughput import peak_flops

# Name -> what falls back. Warnings mark a row and stop nothing.
NAMES = {
    "gpus": "fewer GPUs than the cell asks for, so it cannot run as it is named",
    "peak": "no dense bf16 peak is known for the device: there is no MFU",
    "mixed-gpus": "the GPUs are not all of one kind",
    "bf16": "bf16 is not what the run computes in",
    "flash-attn": "flash-attn is missing or broken, or attention=auto became sdpa",
    "fused-adamw": "the optimizer is not the fused AdamW",
    "nccl": "NCCL does not carry the collectives",
    "pinned-memory": "page-locked memory cannot be had",
    "triton": "Triton is missing or broken: the loss falls back to torch's operators",
    "tf32": "fp32 products were set to TF32 from outside",
    "preflight": "mads doctor --preflight found something",
    "settings": "the run is not the one that was asked for",
    "log": "the run's log speaks of a fallback",
}
WARNINGS = {
    "nvidia-smi": "nvidia-smi does not answer: other processes, clocks and links are not known",
    "other-processes": "something else runs on a GPU",
    "ecc": "a GPU has uncorrected memory errors",
    "throttle": "a GPU was slowed down",
    "nvlink": "tensor-parallel GPUs are not joined by NVLink",
    "modified-code": "the code differs from its commit",
}
FALLBACK = re.compile(r"fall(?:s|ing)?[ -]?back|not using (?:fused|flash)", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """name: of NAMES or WARNINGS; text: what was found, and what to do."""

    name: str
    text: str

    @property
    def stops(self) -> bool:
        return self.name in NAMES

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def machine_findings(m: Machine, cell: Cell) -> Iterator[Finding]:
    """Before the cell: what the machine lacks for it."""
    used = m.devices[: cell.gpus]
    if len(m.devices) < cell.gpus:
        yield Finding(
            "gpus", f"{cell.name} asks for {cell.gpus}, torch sees {len(m.devices)}; give --gpus what is there, or look at "
            "CUDA_VISIBLE_DEVICES"
        )  # fmt: skip
    names = sorted({d["name"] for d in used})
    for name in names or ["no GPU"]:
        if peak_flops(name, "bf16") is None:
            yield Finding("peak", f"{name} is not in mads/logging/throughput.py; add its dense bf16 peak from the data sheet")
    if len(names) > 1:
        yield Finding("mixed-gpus", f"{' and '.join(names)}; choose equal ones by CUDA_VISIBLE_DEVICES")
    for name, reason, remedy in (
        ("bf16", m.bf16, "use a GPU of compute capability 8.0 or newer"),
        ("flash-attn", m.flash, "pip install --no-build-isolation flash-attn, for this torch and CUDA"),
        ("fused-adamw", m.fused, "use a torch whose AdamW(fused=True) runs on this device"),
        ("nccl", m.nccl, "use a CUDA build of torch"),
        ("pinned-memory", m.pinned, "raise the limit of locked memory (ulimit -l) or the memory of the container"),
        ("triton", m.triton, "pip install the triton that this torch asks for; it needs a C compiler"),
    ):
        if reason:
            yield Finding(name, f"{reason}; {remedy}")
    yield from _smi_findings(m, cell)
    if m.git is None or m.git["modified"]:
        state = "is not a checkout" if m.git is None else "has changes"
        yield Finding("modified-code", f"the code {state}: the commit in the table does not tell what ran")


def _smi_findings(m: Machine, cell: Cell) -> Iterator[Finding]:
    if not m.devices:
        return
    if m.smi_error:
        yield Finding("nvidia-smi", m.smi_error)
        return
    by_uuid = {row["uuid"]: (i, row) for i, row in enumerate(m.smi)}
    rows = [by_uuid[d["uuid"]] for d in m.devices[: cell.gpus] if d["uuid"] in by_uuid]  # in the order of the ranks
    rows = rows or list(enumerate(m.smi))[: cell.gpus]
    for index, row in rows:
        if processes := m.busy.get(row["uuid"]):
            yield Finding(
                "other-processes", f"GPU {row['index']} runs {', '.join(processes[:3])}; end them, or choose other GPUs"
            )
        errors = row["ecc.errors.uncorrected.volatile.total"]
        if errors.isdecimal() and int(errors):
            yield Finding("ecc", f"GPU {row['index']} counts {errors} uncorrected errors; it wants a reset or a replacement")
        bits = m.throttles[index] if index < len(m.throttles) else 0
        if bits & sum(THROTTLES):
            yield Finding("throttle", f"GPU {row['index']} while idle: {throttle_words(bits)}; look at cooling and power")
    ranks, t = [i for i, _ in rows], cell.tensor  # tensor-parallel ranks are neighbours
    pairs = [(ranks[a], ranks[b]) for b in range(len(ranks)) for a in range(b // t * t, b)]
    if slow := sorted({m.links[i][j] for i, j in pairs if max(i, j) < len(m.links) and not m.links[i][j].startswith("NV")}):
        kinds = ", ".join(slow)
        yield Finding("nvlink", f"links of kind {kinds} between the GPUs (nvidia-smi topo -m); tensor parallelism wants NVLink")


def throttle_words(bits: int) -> str:
    """ "too hot, power brake": the bits that are a cause from outside."""
    return ", ".join(words for bit, words in THROTTLES.items() if bits & bit)


def run_findings(cell: Cell, recorded: dict[str, Any], config: dict[str, Any], log: str, throttled: int) -> Iterator[Finding]:
    """After the cell.

    Args:
        recorded: environment.json of the run.
        config: its config.yaml.
        log: what it printed.
        throttled: bits seen on any GPU while it ran.
    """
    facts = recorded.get("resolved", {})
    expected = {
        "precision": ("bf16", "bf16", "train.precision=bf16"),
        "attention": ("flash", "flash-attn", "model.attention=flash says why it cannot run"),
        "head": ("triton", "triton", "install the triton that this torch asks for"),
        "optimizer": ("AdamW", "fused-adamw", "mads gives torch's AdamW to DeepSpeed; something took another"),
        "optimizer_fused": (True, "fused-adamw", "mads asks for fused=True; something took it away"),
        "communication": ("nccl", "nccl", "use a CUDA build of torch on a machine with its driver"),
        "float32_matmul_precision": ("highest", "tf32", "mads leaves PyTorch's default; look for who sets it"),
    }
    for key, (wanted, name, remedy) in expected.items():
        if facts.get(key) != wanted:
            yield Finding(name, f"the run recorded {key}={facts.get(key)!r} and not {wanted!r}; {remedy}")
    if peak_flops(facts.get("device_name", ""), "bf16") is None:
        yield Finding("peak", f"the run was on {facts.get('device_name', recorded['device'])!r}")
    if recorded["world_size"] != cell.gpus:
        yield Finding("gpus", f"the run had {recorded['world_size']} processes and not {cell.gpus}")
    parallel, train = config["parallel"], config["train"]
    ran = [parallel["zero_stage"], parallel["tensor_model_parallel_size"], train["micro_batch_size"], train["global_batch_size"]]
    stage = int(next(o for o in cell.overrides if o.startswith("parallel=zero"))[-1])
    if ran != [stage, cell.tensor, cell.micro_batch, cell.global_batch] or facts.get("zero_stage") != stage:
        yield Finding("settings", f"ZeRO, tensor parallel, micro and global batch were {ran}, engine {facts.get('zero_stage')}")
    for line in [line for line in log.splitlines() if FALLBACK.search(line)][:3]:
        yield Finding("log", f"{line.strip()[:200]!r}; see to its cause")
    if throttled & sum(THROTTLES):
        yield Finding("throttle", f"while it ran: {throttle_words(throttled)}; look at cooling and power")


def last_lines(path: Path, count: int = 12) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:]) if path.is_file() else ""
