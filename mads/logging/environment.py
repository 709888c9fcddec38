"""environment.json: which code, packages and device a run used. No user or host names."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mads.logging.metrics import write_atomically

ENVIRONMENT = "environment.json"
PACKAGES = (
    "mads torch deepspeed numpy sentencepiece tokenizers pyarrow safetensors scikit-learn hydra-core omegaconf "
    "wandb flash-attn triton"
).split()
_HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s]+|(?<![\w.-])/root(?=/|$)")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_state(folder: str | os.PathLike | None = None) -> dict[str, Any] | None:
    """{"commit": hash, "modified": whether tracked files differ from it}; None outside a checkout.

    folder: of the code, by default mads' own. A package installed inside some other checkout does not count, its files are not
        tracked.
    """
    folder = Path(folder) if folder is not None else Path(__file__).resolve().parent.parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-files", "."):
        return None
    return {"commit": commit, "modified": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def package_versions() -> dict[str, str]:
    """Name -> version of the packages that a result may depend on, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def driver_version() -> str:
    """Of NVIDIA's kernel module on this machine, or "unknown"."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((w for w in words if w[0].isdigit() and "." in w), "unknown")


def environment(
    world_size: int, device: str, command: Sequence[str] | None = None, resolved: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The record of one start of a run.

    command: argument list, by default this process's; home folders in it are written as ~, because they name the user.
    resolved: what `auto` settings became (mads.train.resolved).
    """
    command = list(sys.argv if command is None else command)
    if command:
        command[0] = Path(command[0]).name
    return {
        "git": git_state(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "world_size": int(world_size),
        "device": str(device),
        "resolved": resolved or {},
        "command": [_HOME.sub("~", c) for c in command],
    }


def write_environment(run_dir: str | os.PathLike, record: dict[str, Any], resume_step: int | None = None) -> None:
    """Write environment.json; what an earlier start of a resumed run recorded is kept under "earlier_starts", oldest first."""
    path = Path(run_dir) / ENVIRONMENT
    earlier: list[dict[str, Any]] = []
    if resume_step is not None and path.is_file():
        last = json.loads(path.read_text(encoding="utf-8"))
        earlier = last.pop("earlier_starts", []) + [last]
    value = {**record, "resume_step": resume_step, "earlier_starts": earlier}
    write_atomically(path, json.dumps(value, indent=1) + "\n")
