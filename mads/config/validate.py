"""Every rule that spans several keys, checked before any process starts. Each message has the numbers and a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mads.config.compile_rules import compile_rules
from mads.config.compose import ConfigError
from mads.config.logging_rules import logging_rules
from mads.config.parallel_rules import parallel_rules
from mads.config.selection_rules import selection_rules
from mads.config.store import VARIANTS

STEPPING = ("displacement", "group", "blend")  # rewards that take real optimizer steps
WITHOUT_AGENTS = ("random", "stratified", "column", "mix")
# Online mixing brings its own agent and measures losses -> the keys of `reward` that say how.
MIXING = {"odm": ("rows_per_batch",), "ado": ("rows_per_batch",), "aioli": ("rows_per_batch", "reference_examples")}
FIXED_SHARES = ("stratified", *MIXING)  # selections that set the shares of an attribute's labels


def validate(config: DictConfig, world_size: int | None = 1, has_gpu: bool = False, overrides: Sequence[str] = ()) -> None:
    """Check a composed training configuration for a number of processes.

    Args:
        world_size: None: not known (a preparation), and the rules that need it are left out.
        overrides: as given on the command line; a key that the chosen mode ignores is an error.

    Raises:
        ConfigError: with all violations, one a line.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("no value for: " + ", ".join(missing) + f" (for example {missing[0]}=...)")
    errors = [
        *_ranges(config),
        *_choices(config),
        *_model(config),
        *parallel_rules(config, world_size, overrides),
        *_numbers(config),
        *_modes(config, has_gpu),
        *compile_rules(config),
        *logging_rules(config, world_size, overrides),
        *_agents(config),
        *_bounds(config),
        *selection_rules(config, overrides),
        *_ignored(config, overrides),
    ]
    if errors:
        raise ConfigError("\n".join(errors))


def precision_of(config: DictConfig, has_gpu: bool) -> str:
    """fp32 or bf16, with `auto` resolved."""
    return config.train.precision if config.train.precision != "auto" else ("bf16" if has_gpu else "fp32")


# Key -> interval that holds its values; keys that the chosen mode does not have are passed over.
RANGES = {
    **{f"model.{key}": "[1, inf)" for key in ("hidden_size", "num_layers", "num_attention_heads", "num_key_value_heads")},
    "model.ffn_hidden_size": "[1, inf)",
    "model.vocab_size": "[1, inf)",
    "model.rope_theta": "(0, inf)",
    "model.norm_eps": "(0, inf)",
    "model.init_std": "(0, inf)",
    "model.hidden_dropout": "[0, 1)",
    "model.attention_dropout": "[0, 1)",
    "data.seq_length": "[2, inf)",
    "data.heldout_fraction": "(0, 1)",
    "data.shard_megabytes": "(0, inf)",
    "data.max_rejected_fraction": "[0, 1]",
    "data.hygiene.near_duplicates": "(0, 1]",
    "data.max_megabytes": "(0, inf)",
    "data.tokenizer.train_megabytes": "(0, inf)",
    "train.steps": "[1, inf)",
    "train.stop_at": "[1, inf)",
    "train.global_batch_size": "[1, inf)",
    "train.micro_batch_size": "[1, inf)",
    "train.log_interval": "[1, inf)",
    "train.eval_interval": "[1, inf)",
    "train.eval_samples": "[1, inf)",
    "train.invariant_interval": "[1, inf)",
    "train.prefetch": "[0, inf)",
    "train.loader_workers": "[0, inf)",
    "selection.interval": "[1, inf)",
    "selection.margin": "[0, inf)",
    "selection.max_uses": "[1, inf)",
    "selection.probes": "[1, inf)",
    "selection.probes_per_agent": "[1, inf)",
    "selection.agent_rate": "(0, inf)",
    "selection.theta_rate": "[0, inf)",
    "selection.theta_floor": "[0, 1)",
    "selection.temperature": "(0, inf)",
    "selection.use_decay": "[0, inf)",
    "selection.warmup_rounds": "[0, inf)",
    "selection.smoothing": "[0, 1)",
    "selection.credit_rate": "(0, 1]",
    "selection.credit_power": "[0, 1]",
    "selection.preference_rate": "(0, 1]",
    "selection.floor": "[0, 1)",
    "selection.law_rounds": "[3, inf)",
    "selection.deviation": "(0, 3]",
    "selection.mix_rate": "(0, inf)",
    "selection.decay": "(0, 1]",
    "selection.ridge": "(0, inf)",
    "reward.reference_examples": "[1, inf)",
    "reward.rows_per_batch": "[1, inf)",
    "reward.damping": "[0, inf)",
    "selection.first_interval": "[1, inf)",
    "selection.share_floor": "[0, 1)",
    "reward.relative_step": "(0, 1)",
    "reward.rate_factor": "(0, inf)",
    **{f"reward.{key}": "[1, inf)" for key in ("steps", "step_rows")},
    "reward.control": "[0, inf)",
    "reward.mix_rows": "[0, inf)",
    "optim.lr": "(0, inf)",
    "optim.beta1": "[0, 1)",
    "optim.beta2": "[0, 1)",
    "optim.eps": "(0, inf)",
    "optim.weight_decay": "[0, inf)",
    "optim.grad_clip": "[0, inf)",
    "optim.label_smoothing": "[0, 1)",
    "optim.z_loss": "[0, inf)",
    "schedule.warmup_steps": "[0, inf)",
    "schedule.min_ratio": "[0, 1]",
    "schedule.decay_fraction": "(0, 1]",
    **{f"parallel.{axis}_parallel_size": "[1, inf)" for axis in ("tensor_model", "pipeline_model", "context")},
    "parallel.timeout_s": "(0, inf)",
    "parallel.control_timeout_s": "(0, inf)",
    "parallel.hang_timeout_s": "[2, inf)",
    "logging.profile.start": "[1, inf)",
    "logging.profile.steps": "[1, inf)",
    "checkpoint.interval": "[0, inf)",
    "checkpoint.keep_every": "[0, inf)",
    "checkpoint.keep_last": "[1, inf)",
    "checkpoint.max_file_bytes": "[1, inf)",
}
# Key -> its values.
CHOICES = {
    "model.attention": ("auto", "sdpa", "flash"),
    "train.precision": ("auto", "fp32", "bf16"),
    "parallel.zero_stage": (0, 1, 2, 3),
    "parallel.pipeline_partition": ("flops", "parameters", "layers"),
    "parallel.activation_checkpointing": ("none", "selective", "full"),
    "parallel.offload_optimizer.device": ("none", "cpu", "nvme"),
    "parallel.offload_param.device": ("none", "cpu", "nvme"),
    "logging.wandb": ("disabled", "offline", "online"),
    "data.tokenizer.kind": ("sentencepiece", "huggingface"),
    "selection.shares": ("uniform", "natural"),
    "reward.preconditioner": ("adam", "none"),
    "selection.attribution": ("joint", "marginal"),
    "selection.agent_update": ("exponentiated", "mean"),
    "selection.exchange": ("auto", "gather", "threshold"),
    "selection.unit": ("sample", "shard"),
}


def _ranges(config) -> Iterator[str]:
    for key, interval in RANGES.items():
        value = OmegaConf.select(config, key)
        low, high = (float(bound) for bound in interval[1:-1].split(","))
        if value is None:
            continue
        above = low < value or (low == value and interval.startswith("["))
        below = value < high or (value == high and interval.endswith("]"))
        if not (above and below):  # NaN is in no interval
            least = interval.startswith("[") and interval.endswith("inf)")
            yield f"{key}={value} must be at least {low:g}" if least else f"{key}={value} must lie in {interval}"


def _choices(config) -> Iterator[str]:
    for key, choices in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value is not None and not OmegaConf.is_dict(value) and value not in choices:
            yield f"{key}={value!r} is not one of {', '.join(map(str, choices))}"
    for group, key in (("selection", "name"), ("schedule", "name"), ("reward", "mode")):
        value = config[group][key]
        if VARIANTS[group].get(value) is not OmegaConf.get_type(config[group]):
            names = "|".join(VARIANTS[group])
            yield f"{group}.{key}={value!r} does not fit the other keys of {group}; choose with {group}={names}"


def _model(config) -> Iterator[str]:
    m = config.model
    hidden, heads, kv_heads = m.hidden_size, m.num_attention_heads, m.num_key_value_heads
    if min(hidden, heads, kv_heads) < 1:
        return
    if hidden % heads:
        yield f"model.hidden_size={hidden} is not a multiple of model.num_attention_heads={heads}"
    elif (hidden // heads) % 2:
        yield f"the head dimension {hidden // heads} is odd; rotary embeddings need an even one"
    if heads % kv_heads:
        yield f"model.num_attention_heads={heads} is not a multiple of model.num_key_value_heads={kv_heads}"


def _numbers(config) -> Iterator[str]:
    if not 2 <= config.data.min_sample_tokens <= config.data.seq_length:
        shortest, longest = config.data.min_sample_tokens, config.data.seq_length
        yield f"data.min_sample_tokens={shortest} must lie between 2 and data.seq_length={longest}"
    if config.train.loader_workers and not config.train.prefetch:
        yield f"train.loader_workers={config.train.loader_workers} work ahead of training: set train.prefetch to 1 or more"
    first, interval = config.selection.first_interval, config.selection.interval
    if first is not None and first > interval:
        yield (
            f"selection.first_interval={first} is more than selection.interval={interval}: it is for short first rounds; "
            "leave it out, or raise selection.warmup_rounds for a longer start without agents"
        )
    if config.selection.name in MIXING and first not in (None, interval):
        yield (
            f"selection={config.selection.name} counts rounds of one length, and selection.first_interval={first} with "
            f"selection.interval={interval} makes them grow; leave first_interval out"
        )
    rate = config.selection.get("agent_rate")
    if rate is not None and rate > 1 and config.selection.get("agent_update", "mean") == "mean":
        yield (
            f"selection.agent_rate={rate} is how far weights move toward the rewards' means: at most 1; only "
            "selection.agent_update=exponentiated takes more"
        )
    steps = config.train.steps
    if config.train.stop_at is not None and config.train.stop_at > steps:
        yield f"train.stop_at={config.train.stop_at} is no step of train.steps={steps}"
    if wrong := [step for step in config.checkpoint.keep_steps if not 1 <= step <= steps]:
        yield f"checkpoint.keep_steps={list(config.checkpoint.keep_steps)}: {wrong[0]} is no step of train.steps={steps}"
    every, interval = config.checkpoint.keep_every, config.checkpoint.interval
    if every and (not interval or every % interval):
        yield (
            f"checkpoint.keep_every={every} keeps what is saved every checkpoint.interval={interval} steps: choose a multiple of "
            "it, or list steps in checkpoint.keep_steps"
        )
    if config.schedule.warmup_steps >= config.train.steps:
        yield f"schedule.warmup_steps={config.schedule.warmup_steps} leaves nothing of train.steps={config.train.steps}"


def _modes(config, has_gpu) -> Iterator[str]:
    if config.reward.mode == "finite_difference" and precision_of(config, has_gpu) == "bf16":
        yield (
            "reward=finite_difference needs fp32 parameters: at its step size most bf16 weights would not change; "
            "use reward=ghost or reward=auto"
        )
    offload = config.parallel.offload_optimizer.device, config.parallel.offload_param.device
    if config.reward.mode in STEPPING and "nvme" in offload:
        yield (
            f"reward={config.reward.mode} takes steps and undoes them, which needs a copy of the optimizer's states in memory: "
            "not with offload to nvme; use device=cpu, or reward=auto"
        )
    if config.model.attention == "flash" and not has_gpu:
        yield "model.attention=flash needs a GPU and the flash-attn package; use model.attention=auto"
    if config.data.tokenizer.kind == "huggingface" and config.data.tokenizer.path is None:
        yield "data.tokenizer.kind=huggingface needs data.tokenizer.path, a tokenizer.json; only SentencePiece is trained here"


def _agents(config) -> Iterator[str]:
    s, agents, attributes = config.selection, config.agents.members, sorted(config.data.attributes)
    known = bool(attributes)  # data=prepared names none here; mads.train.setup asks the pool
    if known and s.name in ("mix", *FIXED_SHARES) and s.attribute not in attributes:
        yield f"selection.attribute={s.attribute!r} is not one of the attributes {attributes}"
    for name, agent in agents.items():
        for key, attribute in attributes_of(name, agent).items():
            if known and attribute not in attributes:
                yield f"{key}={attribute!r} is not one of the attributes {attributes}"
    if s.name in WITHOUT_AGENTS or s.name in MIXING:
        return
    if not agents:
        yield f"selection={s.name} needs at least one agent in agents.members"
    if s.get("probes") is not None and s.probes < len(agents):
        yield f"selection.probes={s.probes} are shared by {len(agents)} agents; set at least one for every label of every agent"
    most = 1 / max(1, len(agents))
    if s.get("collaboration") == "multiplicative" and s.theta_floor > most:
        yield f"selection.theta_floor={s.theta_floor} for each of {len(agents)} agents is more than 1 in sum; at most {most:.3g}"


def attributes_of(name: str, agent: Any) -> dict[str, str]:
    """Key -> attribute, of an agent's `attribute` and `attributes`, so far as its configuration has them; probes are drawn by
    the first one."""
    if not OmegaConf.is_dict(agent):
        return {}
    where, several = f"agents.members.{name}", agent.get("attributes")
    found = {f"{where}.attribute": agent["attribute"]} if agent.get("attribute") is not None else {}
    if isinstance(several, str):
        found[f"{where}.attributes"] = several
    elif OmegaConf.is_list(several):
        found |= {f"{where}.attributes[{i}]": attribute for i, attribute in enumerate(several)}
    return found


def _bounds(config) -> Iterator[str]:
    s, attributes = config.selection, sorted(config.data.attributes)
    if s.name in FIXED_SHARES and s.unit == "shard":
        yield f"selection={s.name} fixes the shares of single samples' labels; use selection.unit=sample, or another selection"
    if s.unit == "shard" and s.exchange == "gather":
        yield "selection.unit=shard exchanges sums of shards only; leave selection.exchange at auto"
    if s.get("selector") == "shares" and (s.bounds or s.unit == "shard"):
        yield "selection.selector=shares leaves no room for bounds and whole shards; use selection.selector=gumbel or auto"
    if not s.bounds:
        return
    if s.unit == "shard":
        yield "selection.bounds hold for single samples' labels; use selection.unit=sample, or leave the bounds out"
    if s.name in FIXED_SHARES:
        yield f"selection={s.name} has fixed shares already; leave selection.bounds out, or choose another selection"
    if len(s.bounds) > 1:
        yield f"selection.bounds names {len(s.bounds)} attributes, {list(s.bounds)}; one can be bounded"
    for attribute, labels in s.bounds.items():
        if attributes and attribute not in attributes:
            yield f"selection.bounds.{attribute} is not one of the attributes {attributes}"
        if not OmegaConf.is_dict(labels):
            if not (isinstance(labels, int | float) and not isinstance(labels, bool) and 0 <= labels <= 1):
                yield (
                    f"selection.bounds.{attribute}={labels} must be a number from 0 to 1, the part of its natural share that "
                    "each label holds at least, or give labels their pairs: {label: [least, most]}"
                )
        elif wrong := {label: OmegaConf.to_object(labels)[label] for label in labels if not _is_pair(labels[label])}:
            yield f"selection.bounds.{attribute}: {wrong} must be pairs [least, most] with 0 <= least <= most <= 1"
        elif (least := sum(b[0] for b in labels.values())) > 1 + 1e-9:
            yield f"selection.bounds.{attribute}: the least shares add up to {least:.4g}, more than 1"


def _is_pair(bound) -> bool:
    numbers = OmegaConf.is_list(bound) and len(bound) == 2 and all(isinstance(x, int | float) for x in bound)
    return bool(numbers and 0 <= bound[0] <= bound[1] <= 1)


def _ignored(config, overrides) -> Iterator[str]:
    name = config.selection.name
    damped = [o for o in overrides if o.lstrip("+~").startswith("reward.damping=")]
    if damped and config.reward.get("preconditioner") == "none":
        yield f"{damped[0]}: reward.preconditioner=none does not use it; leave it out"
    if name not in WITHOUT_AGENTS and name not in MIXING:
        return
    used = [f"reward.{key}" for key in MIXING.get(name, ())]
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
        if key.split(".", 1)[0] in ("agents", "reward") and key not in used:
            but = f" but {' and '.join(used)}" if used else ""
            yield f"{override}: selection={name} uses neither agents nor rewards{but}; leave it out"
