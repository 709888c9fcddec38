"""What a rank knows of its machine, and what rank 0 makes of all ranks' answers."""

from __future__ import annotations

import hashlib
import platform
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mads.logging.environment import driver_version, git_state, package_versions

CLOCK_S = 2.0  # machines that keep their clocks by a time server differ by far less
CHECKPOINTS = 2  # the next one is complete before the one before it is removed


@dataclass(frozen=True)
class Fact:
    """Of one rank.

    versions: of whatever must be equal on all ranks, the graphics driver and the prepared data among it
    gpu: name of this rank's GPU; "": none that it could use
    free_bytes: where run_dir will be
    """

    host: str
    versions: dict[str, str]
    gpu: str
    free_bytes: int


def facts(run_dir: str, data_dir: str, local_rank: int) -> dict[str, Any]:
    """The fields of a Fact."""
    git = git_state()
    has_gpu = torch.cuda.is_available() and torch.cuda.device_count() > local_rank
    versions = {"python": platform.python_version()} | package_versions()
    if git is not None:
        versions["mads"] += f" {git['commit'][:12]}{' modified' if git['modified'] else ''}"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank if has_gpu else 0)
        versions["CUDA of torch"] = str(torch.version.cuda)
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        versions["NVIDIA driver"] = driver_version()
    if data_dir:
        versions["data.dir"] = _manifest(Path(data_dir))
    return {
        "host": socket.gethostname(),
        "versions": versions,
        "gpu": torch.cuda.get_device_name(local_rank) if has_gpu else "",
        "free_bytes": shutil.disk_usage(_existing(Path(run_dir).absolute())).free,
    }


def _manifest(folder: Path) -> str:
    try:
        return "manifest " + hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()[:12]
    except OSError:
        return "no manifest.json"


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def named(rank: int, all_facts: Sequence[Fact]) -> str:
    """A rank for people."""
    return f"rank {rank} on {all_facts[rank].host}"


def version_findings(all_facts: Sequence[Fact]) -> Iterator[str]:
    """What is not the same everywhere, and where it is another than on most ranks."""
    for name in sorted({name for f in all_facts for name in f.versions}):
        held = [f.versions.get(name, "not installed") for f in all_facts]
        usual, count = Counter(held).most_common(1)[0]
        odd = [rank for rank, value in enumerate(held) if value != usual]
        for rank in odd[:4]:
            yield f"{name}: {held[rank]} on {named(rank, all_facts)}, {usual} on {count} of {len(held)} ranks"
        if len(odd) > 4:
            yield f"{name}: another than {usual} on {len(odd)} ranks in all"
    without = [rank for rank, f in enumerate(all_facts) if not f.gpu]
    if 0 < len(without) < len(all_facts):
        yield f"GPU: {named(without[0], all_facts)} has none it can use ({len(without)} of {len(all_facts)} ranks)"


def disk_findings(all_facts: Sequence[Fact], checkpoint_bytes: int) -> Iterator[str]:
    """Where two checkpoints find no room."""
    least = min(range(len(all_facts)), key=lambda rank: all_facts[rank].free_bytes)
    free = all_facts[least].free_bytes
    if free < CHECKPOINTS * checkpoint_bytes:
        yield (
            f"disk: {free / 2**30:.1f} GiB are free in run_dir ({named(least, all_facts)}), {CHECKPOINTS} checkpoints take "
            f"{CHECKPOINTS * checkpoint_bytes / 2**30:.1f}"
        )


def clock_findings(offsets: Sequence[tuple[float, float]], all_facts: Sequence[Fact]) -> Iterator[str]:
    """offsets: of every rank: seconds ahead of rank 0, and how far that may be off."""
    for rank, (ahead, unsure) in enumerate(offsets):
        if abs(ahead) - unsure > CLOCK_S:
            yield f"clock: that of {named(rank, all_facts)} is {ahead:+.1f} s from rank 0's; set it by a time server"
