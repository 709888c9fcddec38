"""Where a training step makes the host wait for the device: counted on the CPU, by the line that asks.

On CUDA the host waits when a value of a tensor is read (`.item()`, `float(x)`, `if x:`, `.tolist()`, `.numpy()`) and for
operations whose result's size is a value (`nonzero`, an index with a mask). On a CPU none of these waits, but all of them can be
seen: the first kind is aten::_local_scalar_dense or one of three methods, the second an operation of a known name.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::equal"}
METHODS = ("tolist", "numpy", "cpu")


class Synchronisations(TorchDispatchMode):
    """Inside, every read is counted under "file:function", of the innermost frame that is neither torch's nor this file's.

    Attributes:
        where: the counts. Files are named from the folder of their package on.
    """

    def __init__(self):
        super().__init__()
        self.where: Counter[str] = Counter()
        self._replaced: list[tuple[str, object]] = []

    @property
    def total(self) -> int:
        return sum(self.where.values())

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name().split(".")[0]
        masked = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if name in READS or masked:
            self._count()
        return function(*arguments, **(keywords or {}))

    def __enter__(self):
        for name in METHODS:  # on CPU tensors these reach no operation
            original = getattr(torch.Tensor, name)

            def counted(tensor, *arguments, original=original, **keywords):
                self._count()
                return original(tensor, *arguments, **keywords)

            self._replaced.append((name, original))
            setattr(torch.Tensor, name, counted)
        return super().__enter__()

    def __exit__(self, *exception):
        for name, original in self._replaced:
            setattr(torch.Tensor, name, original)
        self._replaced.clear()
        return super().__exit__(*exception)

    def _count(self) -> None:
        frame = sys._getframe(1)
        while frame is not None and _foreign(frame.f_code.co_filename):
            frame = frame.f_back
        code = frame.f_code if frame is not None else None
        self.where[f"{_short(code.co_filename)}:{code.co_name}" if code else "?"] += 1


def _foreign(file: str) -> bool:
    return file == __file__ or file.startswith(str(Path(torch.__file__).parent)) or file.startswith("<")


def _short(file: str) -> str:
    parts = Path(file).parts
    for package in ("site-packages", "mads", "kernels", "benchmarks", "tests"):
        if package in parts:
            at = len(parts) - 1 - parts[::-1].index(package)
            return "/".join(parts[at + (package == "site-packages") :])
    return Path(file).name
