"""Reach fp32 master weights and Adam moments by parameter, whatever DeepSpeed wrapped the optimizer in.

DeepSpeed 0.19 keeps them in four ways: on the parameter (ZeRO 0, fp32), in a list of fp32 copies (ZeRO 0, bf16), in one flat
partition per group and rank (ZeRO 1-2), and in flat sub-groups with the parameters cut as well (ZeRO 3). Checkpoints and rewards
see one interface. Keys are "weight", "exp_avg" and "exp_avg_sq"; values are float32.
"""

from __future__ import annotations

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from mads import collectives

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = ("step", *MOMENTS)  # of AdamW, for each tensor that it steps


class OptimizerState:
    """Base: states held per whole fp32 tensor (ZeRO 0). All methods are collective over the data-parallel group."""

    def __init__(self, optimizer: torch.optim.Optimizer, masters: dict[torch.nn.Parameter, torch.Tensor]):
        self._base = optimizer
        self._masters = masters

    def _flats(self) -> list[torch.Tensor]:
        """The tensors that the base optimizer steps."""
        return list(self._masters.values())

    def held(self) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """All that the base optimizer steps on this rank, as it is stored: each master tensor with its state ("step" and the
        moments; empty before the first step). Not collective."""
        return [(flat, self._base.state.get(flat, {})) for flat in self._flats()]

    @property
    def steps(self) -> int:
        """Optimizer steps taken (Adam's bias correction counts them)."""
        state = self._base.state.get(self._flats()[0], {})
        return int(state["step"]) if "step" in state else 0

    def full(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        """The whole tensor on every rank; zeros for a moment before the first step. Not to be written to."""
        if key == "weight":
            return self._masters[parameter].detach()
        if self.steps == 0:
            return torch.zeros_like(self._masters[parameter])
        return self._base.state[self._masters[parameter]][key]

    def local(self, parameter: torch.nn.Parameter, key: str) -> torch.Tensor:
        """The piece of a vector (mads.train.interface) that this rank owns: the whole tensor unless ZeRO 3."""
        return self.full(parameter, key)

    def prepare_load(self, steps: int) -> None:
        """Create the moments, which DeepSpeed makes at the first step only, and set the step count."""
        for flat in self._flats():
            state = self._base.state[flat]
            if steps == 0:
                state.clear()
                continue
            device = flat.device if any(g.get("fused") or g.get("capturable") for g in self._base.param_groups) else "cpu"
            state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(flat, dtype=torch.float32)

    def load(self, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> None:
        """Set from the whole tensor, the same on every rank."""
        with torch.no_grad():
            self.full(parameter, key).copy_(value)

    def publish(self) -> None:
        """After loading: copy the master weights into the parameters that the model computes with."""
        with torch.no_grad():
            for parameter, master in self._masters.items():
                if parameter is not master:
                    parameter.copy_(master)


class PartitionedState(OptimizerState):
    """ZeRO 1 and 2 (DeepSpeedZeroOptimizer, and BF16_Optimizer for bf16 at stage 1): one flat fp32 partition a group."""

    def __init__(self, wrapper):
        super().__init__(wrapper.optimizer, {})
        self._wrapper = wrapper

    def _flats(self):
        if hasattr(self._wrapper, "single_partition_of_fp32_groups"):
            return list(self._wrapper.single_partition_of_fp32_groups)
        return list(self._wrapper.fp32_groups_flat_partition)

    def full(self, parameter, key):
        if key == "weight":
            return safe_get_full_fp32_param(parameter)
        if self.steps == 0:
            return torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        # DeepSpeed links the moments of all groups after the first group's first step, when the others have none yet.
        if parameter._hp_mapping is not None and key not in (parameter._hp_mapping.optim_fragment or {}):
            self._link()
        return safe_get_full_optimizer_state(parameter, key)

    def _link(self):
        self._wrapper._hp_optimizer_states_linked = False
        self._wrapper._lazy_init_hp_params_optimizer_state()

    def prepare_load(self, steps):
        super().prepare_load(steps)
        if steps:
            self._link()

    def load(self, parameter, key, value):
        if key == "weight":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def publish(self):
        self._wrapper.update_lp_params()


class ShardedState(OptimizerState):
    """ZeRO 3: parameters, master weights and moments are cut over the group, padded to equal parts."""

    def __init__(self, wrapper, group):
        super().__init__(wrapper.optimizer, {})
        self._wrapper = wrapper
        self._group = group

    def _flats(self):
        return list(self._wrapper.fp32_partitioned_groups_flat)

    def owned_length(self, parameter) -> int:
        """Elements of this rank's partition that are not padding."""
        part = parameter.ds_tensor.ds_numel
        return max(0, min(part, parameter.ds_numel - collectives.group_rank(self._group) * part))

    def full(self, parameter, key):
        if key == "weight":
            return safe_get_full_fp32_param(parameter)
        if self.steps == 0:
            return torch.zeros(parameter.ds_shape, dtype=torch.float32, device=parameter.ds_tensor.device)
        return safe_get_full_optimizer_state(parameter, key)

    def local(self, parameter, key):
        length = self.owned_length(parameter)
        if key == "weight":
            return safe_get_local_fp32_param(parameter).flatten()[:length]
        if self.steps == 0:
            return torch.zeros(length, dtype=torch.float32, device=parameter.ds_tensor.device)
        return safe_get_local_optimizer_state(parameter, key).flatten()[:length]

    def load(self, parameter, key, value):
        # safe_set_full_* slices past the end of a tensor that does not divide evenly, so the padded piece is cut here.
        part = parameter.ds_tensor.ds_numel
        start = collectives.group_rank(self._group) * part
        piece = torch.zeros(part, dtype=torch.float32, device=parameter.ds_tensor.device)
        length = self.owned_length(parameter)
        piece[:length] = value.flatten()[start : start + length]
        if key == "weight":
            safe_set_local_fp32_param(parameter, piece)
        else:
            safe_set_local_optimizer_state(parameter, piece, key)

    def publish(self):
        for index in range(len(self._wrapper.fp32_partitioned_groups_flat)):
            self._wrapper._reassign_or_swap_out_partitioned_parameters(index)
        for group in self._wrapper.fp16_groups:
            for parameter in group:
                if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # kept whole between steps, with the values of before
                    parameter.partition()


def optimizer_state_of(engine, group) -> OptimizerState:
    """The right access for a DeepSpeed engine; `group` is the data-parallel group that ZeRO cuts over."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return ShardedState(optimizer, group)
    if hasattr(optimizer, "single_partition_of_fp32_groups") or hasattr(optimizer, "fp32_groups_flat_partition"):
        return PartitionedState(optimizer)
    if hasattr(optimizer, "fp32_groups"):  # bf16 at stage 0: one fp32 copy a parameter
        masters = {p: m for ps, ms in zip(optimizer.fp16_groups, optimizer.fp32_groups) for p, m in zip(ps, ms)}
        return OptimizerState(optimizer.optimizer, masters)
    return OptimizerState(optimizer, {p: p for g in optimizer.param_groups for p in g["params"]})
