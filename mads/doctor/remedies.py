"""What would make a layout fit, cheapest first, each estimated again."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from mads.config.compose import ConfigError
from mads.config.validate import validate
from mads.doctor.estimate import Cluster, estimates, fullest


@dataclass(frozen=True)
class Remedy:
    """changes: key -> value; cost: in words; peak: bytes of the fullest GPU afterwards."""

    changes: dict[str, object]
    cost: str
    peak: int

    @property
    def text(self) -> str:
        return " ".join(
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.changes.items()
        )


def _steps(config, cluster: Cluster) -> list[tuple[dict[str, object], str]]:
    """Changes from the cheapest to the dearest; those that do not apply are refused by the rules and left out."""
    p, t = config.parallel, config.train
    tp, pp = p.tensor_model_parallel_size, p.pipeline_model_parallel_size
    result: list[tuple[dict[str, object], str]] = []
    if p.zero_stage < 2 and pp == 1:
        result.append(({"parallel.zero_stage": 2}, "hardly slower"))
    if p.zero_stage < 1 and pp > 1:
        result.append(({"parallel.zero_stage": 1}, "hardly slower"))
    if tp > 1 and not p.sequence_parallel:
        result.append(({"parallel.sequence_parallel": True}, "as fast"))
    if p.activation_checkpointing == "none":
        result.append(({"parallel.activation_checkpointing": "selective"}, "a few percent more computation"))
    if t.micro_batch_size > 1:
        result.append(({"train.micro_batch_size": t.micro_batch_size // 2}, "smaller products"))
    if p.zero_stage < 3 and pp == 1:
        result.append(({"parallel.zero_stage": 3}, "weights travel in every pass"))
    if p.activation_checkpointing != "full":
        result.append(({"parallel.activation_checkpointing": "full"}, "a third more computation"))
    for size in (2, 4, 8):
        if tp < size <= cluster.gpus_per_node:
            changes = {"parallel.tensor_model_parallel_size": size, "parallel.sequence_parallel": True}
            result.append((changes, "activations travel twice a layer and pass"))
    for size in (2, 4, 8):
        if pp < size:
            changes = {"parallel.pipeline_model_parallel_size": size, "parallel.zero_stage": min(1, p.zero_stage)}
            result.append((changes, "a pipeline's bubble"))
    if p.zero_stage >= 1 and p.offload_optimizer.device == "none":
        result.append(({"parallel.offload_optimizer.device": "cpu"}, "the optimizer runs on the CPU"))
    if p.offload_param.device == "none" and pp == 1:
        changes = {"parallel.zero_stage": 3, "parallel.offload_optimizer.device": "cpu", "parallel.offload_param.device": "cpu"}
        result.append((changes, "weights and optimizer in the host's memory"))
    if config.selection.name not in ("random", "stratified"):
        result.append(({"selection": "random"}, "no rewards: the data is not chosen by what it does"))
    return result


def _peak(config: DictConfig, cluster: Cluster) -> int | None:
    """Of the fullest GPU; None if the rules refuse the configuration, or the host's memory is too small for it."""
    try:
        validate(config, cluster.world_size, has_gpu=True)
    except ConfigError:
        return None
    return _peak_of_valid(config, cluster)


def _peak_of_valid(config: DictConfig, cluster: Cluster) -> int | None:
    all_stages = estimates(config, cluster)
    if cluster.host_memory and max(e.host for e in all_stages) > cluster.host_memory:
        return None
    return fullest(all_stages).peak


def _changed(config: DictConfig, changes: dict[str, object]) -> DictConfig:
    result = config.copy()
    for key, value in changes.items():
        OmegaConf.update(result, "selection.name" if key == "selection" else key, value)
    return result


def remedies(config: DictConfig, cluster: Cluster) -> list[Remedy]:
    """Single changes that lower the peak, in order of their cost; if none of them is enough, one more that adds the cheapest of
    them up until the layout fits."""
    before = _peak(config, cluster)
    found = []
    for changes, cost in _steps(config, cluster):
        # Another selection has other keys; its name is all that the estimate reads, and all that is changed here.
        peak = (_peak_of_valid if "selection" in changes else _peak)(_changed(config, changes), cluster)
        if peak is not None and before is not None and peak < 0.995 * before:
            found.append(Remedy(changes, cost, peak))
    if any(r.peak <= cluster.gpu_memory for r in found):
        return found
    together = _together(config, cluster, [r for r in found if "selection" not in r.changes])
    return [*found, together] if together else found


def _together(config: DictConfig, cluster: Cluster, found: list[Remedy]) -> Remedy | None:
    changes: dict[str, object] = {}
    best = _peak(config, cluster)
    for remedy in found:
        tried = changes | remedy.changes
        peak = _peak(_changed(config, tried), cluster)
        if peak is not None and best is not None and peak < best:
            changes, best = tried, peak
        if best is not None and best <= cluster.gpu_memory:
            return Remedy(changes, "together", best)
    return None
