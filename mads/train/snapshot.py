"""Real optimizer steps that leave no trace: all that a step changes on this rank is copied, and put back in place.

    parameters      what this rank stores of them (under ZeRO 3 its partitions)
    optimizer       fp32 masters and AdamW's state, whatever DeepSpeed wraps them in (mads.train.optimizer_state)
    plain values    DeepSpeed's counters, the rates of the parameter groups, the loss scale

In place, because DeepSpeed keeps views of these tensors. Nothing here but the step itself is collective, so a rank that fails
inside restores without the others. A copy takes as much memory as the model's and the optimizer's states on this rank, where they
lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mads import collectives
from mads.data.batch import IGNORE, PackedBatch
from mads.train.engine import Engine

ENGINE = (
    "global_steps",
    "micro_steps",
    "global_samples",
    "skipped_steps",
    "_step_applied",
    "_global_grad_norm",
    "_is_gradient_accumulation_boundary",
)
OPTIMIZER = ("overflow", "micro_step_id", "_global_grad_norm")
SCALERS = ("loss_scaler", "loss_scale_config")


class Snapshot:
    """The state of an engine on this rank between two optimizer steps.

    Args:
        storages: what this rank stores of the parameters.

    Raises:
        ValueError: the states are kept on a disk, where a copy in memory is what there is no room for.
    """

    def __init__(self, engine: Engine, storages: Sequence[torch.Tensor]):
        if engine.on_disk:
            raise ValueError(
                "optimizer steps cannot be undone with parallel.offload_optimizer.device=nvme or parallel.offload_param.device="
                "nvme, because a copy of the states must fit into memory; use device=cpu"
            )
        self._engine = engine
        live = {}  # without ZeRO the fp32 parameters are their own masters: once
        for tensor in [*storages, *(flat for flat, _ in engine.state.held())]:
            live[tensor.data_ptr(), tensor.numel(), tensor.dtype] = tensor.detach()
        self._tensors = [(tensor, tensor.clone()) for tensor in live.values()]
        self._moments = [{key: value.clone() for key, value in state.items()} for _, state in engine.state.held()]
        self._rates = [group["lr"] for group in engine.engine.optimizer.param_groups]
        self._values = [(owner, dict(values)) for owner, values in self._plain()]

    def _plain(self):
        """(owner, its values by attribute) of everything that is no tensor of the model's size."""
        engine = self._engine.engine
        optimizer = engine.optimizer
        yield engine, {name: vars(engine)[name] for name in ENGINE if name in vars(engine)}
        yield optimizer, {name: vars(optimizer)[name] for name in OPTIMIZER if name in vars(optimizer)}
        for name in SCALERS:
            scaler = vars(optimizer).get(name)
            if scaler is not None:
                yield scaler, {k: v for k, v in vars(scaler).items() if v is None or isinstance(v, (bool, int, float))}

    @torch.no_grad()
    def restore(self) -> None:
        """Everything is bit for bit what it was; gradients are those after a step, none."""
        for tensor, saved in self._tensors:
            tensor.copy_(saved)
        for (_, state), saved in zip(self._engine.state.held(), self._moments):
            for key, value in state.items():
                # A state that the first step has made stays, as zeros: AdamW begins with them, and DeepSpeed has views of it.
                value.copy_(saved[key]) if key in saved else value.zero_()
        self._engine.discard_gradients()
        for group, rate in zip(self._engine.engine.optimizer.param_groups, self._rates):
            group["lr"] = rate
        for owner, values in self._values:
            vars(owner).update(values)


class EngineRehearsal:
    """Implements mads.train.interface.Rehearsal.

    Args:
        storages: as in Snapshot.
        forget_gathered: called after the weights were put back: ZeRO 3 must not go on with what it has gathered of others.
    """

    def __init__(self, engine: Engine, storages: Sequence[torch.Tensor], forget_gathered: Callable[[], None]):
        self._engine, self._forget_gathered = engine, forget_gathered
        self._snapshot: Snapshot | None = Snapshot(engine, storages)

    def step(self, batches: Sequence[PackedBatch], valid_tokens: int, rate: float) -> None:
        self._check_open()
        told = collectives.all_gather_json([len(batches), valid_tokens, rate], self._engine.topology.group("control"))
        counts, targets, rates = zip(*told)
        # Told on every rank: one that went on would wait in a collective for those that do not.
        if min(counts) < 1 or min(targets) < 1 or any(len(set(values)) > 1 for values in (counts, targets, rates)):
            raise ValueError(
                "a rehearsed step needs the same number of micro-batches, valid tokens (both at least 1) and rate on every rank, "
                f"not {sorted(set(counts))}, {sorted(set(targets))} and {sorted(set(rates))}"
            )
        if self._engine.topology.size("pp") > 1:  # stages agree on the shape of what they exchange once a step
            rows = max(len(batch.tokens) for batch in batches)
            batches = [_with_rows(batch, rows) for batch in batches]
        with self._engine.as_written():
            self._engine.train_step(list(batches), valid_tokens, rate)

    @torch.no_grad()
    def forget_momentum(self) -> None:
        self._check_open()
        for _, state in self._engine.state.held():
            if "exp_avg" in state:
                state["exp_avg"].zero_()

    def rewind(self) -> None:
        self._check_open()
        self._snapshot.restore()
        self._forget_gathered()

    def close(self) -> None:
        """Rewind for the last time and free the copy."""
        self.rewind()
        self._snapshot = None

    def _check_open(self) -> None:
        if self._snapshot is None:
            raise RuntimeError("this rehearsal is over: its state at entry is gone")


def _with_rows(batch: PackedBatch, rows: int) -> PackedBatch:
    """The batch with rows of padding behind it."""
    fields = []
    for field, padding in ((batch.tokens, 0), (batch.labels, IGNORE), (batch.positions, 0), (batch.segments, -1)):
        fields.append(torch.nn.functional.pad(field, (0, 0, 0, rows - len(field)), value=padding))
    return PackedBatch(*fields, batch.samples)
