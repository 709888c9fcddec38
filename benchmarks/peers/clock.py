"""Where a step's time goes, by hooks that are the same for every contestant."""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

PHASES = ("loader", "forward", "backward", "optimizer", "other")


class Clock:
    """Wall and CPU seconds of steps, and the wall seconds of their phases.

    forward: from the call of the model to the begin of backward, so the loss is in it, wherever it is computed.
    backward: in torch.autograd.backward; a reduction that runs beside it (DDP) is in it.
    optimizer: AdamW's step. other: the rest, with clipping, zeroing, further communication and a framework's own work.
    """

    def __init__(self, module: torch.nn.Module):
        self.steps: list[dict] = []
        self._phases: dict[str, float] = {}
        self._forward_began: float | None = None
        self._optimizer_began: float | None = None
        module.register_forward_pre_hook(self._before_forward)
        register_optimizer_step_pre_hook(self._before_optimizer)
        register_optimizer_step_post_hook(self._after_optimizer)
        self._backward = torch.autograd.backward
        torch.autograd.backward = self._timed_backward  # what Tensor.backward calls
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._forward_began = None
        self._began = time.perf_counter(), time.process_time()

    def end(self, loss: float) -> None:
        """The step is over; the next one begins."""
        wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        self._phases["other"] = wall - sum(self._phases.values())
        self.steps.append({"wall": wall, "cpu": cpu, "loss": loss, **self._phases})
        self.begin()

    def take(self) -> list[dict]:
        """The steps since the last call."""
        steps, self.steps = self.steps, []
        return steps

    @contextmanager
    def span(self, phase: str):
        began = time.perf_counter()
        yield
        self._phases[phase] += time.perf_counter() - began

    def _before_forward(self, module, inputs) -> None:
        if self._forward_began is None:
            self._forward_began = time.perf_counter()

    def _timed_backward(self, *args, **kwargs):
        began = time.perf_counter()
        if self._forward_began is not None:
            self._phases["forward"] += began - self._forward_began
            self._forward_began = None
        result = self._backward(*args, **kwargs)
        self._phases["backward"] += time.perf_counter() - began
        return result

    def _before_optimizer(self, optimizer, args, kwargs) -> None:
        self._optimizer_began = time.perf_counter()

    def _after_optimizer(self, optimizer, args, kwargs) -> None:
        if self._optimizer_began is not None:  # a wrapper around an optimizer calls the hooks again
            self._phases["optimizer"] += time.perf_counter() - self._optimizer_began
            self._optimizer_began = None
