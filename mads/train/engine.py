"""The training engine: the only place that imports deepspeed. Builds it from the config and takes one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

import deepspeed
import torch
from torch import nn

from mads import collectives
from mads.data.batch import PackedBatch
from mads.layout import layout_of, named_logical_parameters
from mads.topology import MPU, Topology
from mads.train.optimizer_state import optimizer_state_of


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite. The parameters are those before the step."""


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the valid tokens of the global batch, nats; grad_norm: before clipping."""

    loss: float
    grad_norm: float


def adamw(module: nn.Module, optim) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only. The rate is set before every step; it starts at 0 because one of DeepSpeed's
    wrappers takes a step of its own to create the moments."""
    decayed, plain = [], []
    for _, parameter in named_logical_parameters(module):
        layout_of(parameter)  # unmarked parameters would get a wrong norm under tensor parallelism: fail here
        (decayed if parameter.dim() > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def deepspeed_config(parallel, optim, train, topology: Topology, dtype: torch.dtype) -> dict:
    """The JSON config of DeepSpeed. Losses are scaled here in mads, so its own division by the accumulation steps is not used."""
    accumulation = train.global_batch_size // (train.micro_batch_size * topology.size("dp"))
    config = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": {"stage": parallel.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    # Said in every case, because DeepSpeed clips at 1.0 when it is told nothing. ZeRO 0 in fp32 is clipped by TrainEngine.
    clipped_here = parallel.zero_stage == 0 and dtype == torch.float32
    config["gradient_clipping"] = 0.0 if clipped_here else float(optim.grad_clip)
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if parallel.zero_stage > 0:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class TrainEngine:
    """A DeepSpeed engine with mads's loss scaling, clipping and checks around it.

    Args:
        module: the model; `module(tokens, labels, positions, segments)` returns the loss of each token, [B, S].
        topology: the grid and its groups.
        parallel, optim, train: the config sections of these names.
        dtype: torch.float32 or torch.bfloat16.
        device: where the batches go.
    """

    def __init__(self, module: nn.Module, topology: Topology, parallel, optim, train, dtype: torch.dtype, device: torch.device):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # an inference-only op that would be compiled for minutes
        self.topology = topology
        self.dtype = dtype
        self.device = device
        self.zero_stage = parallel.zero_stage
        self.grad_clip = float(optim.grad_clip)
        self.betas = (optim.beta1, optim.beta2)
        self.eps = optim.eps
        self.shapes = {name: parameter.shape for name, parameter in named_logical_parameters(module)}  # whole, before ZeRO 3 cuts
        self.logical_names = {parameter: name for name, parameter in named_logical_parameters(module)}
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw(module, optim),
            config=deepspeed_config(parallel, optim, train, topology, dtype),
            mpu=MPU(topology),
            dist_init_required=False,
        )
        self.state = optimizer_state_of(self.engine, topology.group("dp"))
        self.state.prepare_load(0)

    @property
    def module(self) -> nn.Module:
        """The bare model: forward passes through it leave no trace in DeepSpeed's counters."""
        return self.engine.module

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Logical name and parameter, in a fixed order."""
        return sorted(((name, p) for p, name in self.logical_names.items()), key=lambda item: item[0])

    def train_step(self, micro_batches: list[PackedBatch], valid_tokens: int, rate: float) -> StepResult:
        """One optimizer step on this rank's micro-batches of the global batch.

        Args:
            valid_tokens: targets in the global batch, over all ranks and micro-batches: the loss is the mean over them.
            rate: learning rate of this step.

        Raises:
            NonFiniteError: on all ranks, before the parameters change.
        """
        replicas = self.topology.size("dp")
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.engine.train()
        for index, batch in enumerate(micro_batches):
            batch = batch.to(self.device)
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            token_loss = self.engine(batch.tokens, batch.labels, batch.positions, batch.segments)
            # DeepSpeed averages over the replicas; multiplied back, the gradient is that of the global token mean.
            loss = token_loss.sum() * (replicas / max(1, valid_tokens))
            self.engine.backward(loss, scale_wrt_gas=False)
            total += token_loss.detach().sum(dtype=torch.float64)
        collectives.all_reduce_(total, self.topology.group("dp"))
        loss = total.item() / max(1, valid_tokens)
        if not torch.isfinite(total):
            self.discard_gradients()
            raise NonFiniteError(f"the loss of the global batch is {loss}; the step was not taken")
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        grad_norm = self._clip_whole_gradients() if self._clips_itself else None
        self.engine.step()
        if not self.engine.was_step_applied():
            raise NonFiniteError(f"the gradient norm is not finite although the loss is {loss}; the step was not taken")
        if grad_norm is None:
            grad_norm = self.engine.get_global_grad_norm()
        return StepResult(loss, float(grad_norm))

    @property
    def _clips_itself(self) -> bool:
        return self.zero_stage == 0 and self.dtype == torch.float32

    def _clip_whole_gradients(self) -> torch.Tensor:
        """ZeRO 0 in fp32: DeepSpeed would clip without a check for NaN, and would not tell the norm."""
        gradients = [p.grad for _, p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if not torch.isfinite(norm):
            self.discard_gradients()
            raise NonFiniteError(f"the gradient norm is {norm.item()}; the step was not taken")
        if self.grad_clip > 0:
            factor = self.grad_clip / (norm + 1e-6)
            if factor < 1:
                for g in gradients:
                    g.mul_(factor)
        return norm

    def discard_gradients(self) -> None:
        """Forget what backward passes have left, so that the next step starts clean."""
        optimizer = self.engine.optimizer
        for name in ("zero_grad", "clear_hp_grads"):
            if hasattr(optimizer, name):
                getattr(optimizer, name)()
        self.engine.zero_grad()
        if hasattr(optimizer, "averaged_gradients") and self.zero_stage < 3:
            for key in optimizer.averaged_gradients:
                optimizer.averaged_gradients[key] = None
                optimizer.all_grad_tensors[key] = None
        if hasattr(optimizer, "micro_step_id"):
            optimizer.micro_step_id = -1 if self.zero_stage < 3 else 0
