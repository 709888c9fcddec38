"""torch.compile of a decoder's layers, one by one: the same code for all of them, so one layer is compiled whatever their number.

Attention stays as it is. It is one kernel already, and its arguments differ from batch to batch (where samples begin, how long
the longest is): as part of a layer it would be compiled anew for each.

Compiled code does not call hooks that come later: who installs hooks has to run the layers as they are written (`as_written`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from mads.model.decoder import Decoder


def compile_layers(model: Decoder, backend: str = "inductor") -> None:
    """Compile each layer at its first call with a shape. Modules, parameters and their names stay what they are."""
    for layer in model.layers:
        layer.attention.attend = torch.compiler.disable(layer.attention.attend)
        layer.compile(backend=backend, dynamic=False)


def as_written() -> AbstractContextManager[None]:
    """Inside, nothing is compiled, and what is compiled is not used."""
    return torch.compiler.set_stance("force_eager")


def check_compiler(device: torch.device) -> None:
    """Compile three operations.

    Raises:
        RuntimeError: torch.compile does not work here, with its reason: there is no C++ compiler (CPU) or no Triton (CUDA).
    """
    x = torch.ones(8, device=device)
    try:
        worked = torch.equal(torch.compile(lambda x: (x + 1) * 2, dynamic=False)(x), (x + 1) * 2)
    except Exception as error:  # of many kinds, from a missing program to a missing header
        raise RuntimeError(f"torch.compile does not work on this machine: {str(error).strip().splitlines()[0]}") from error
    if not worked:
        raise RuntimeError("torch.compile gives wrong results on this machine")
