"""Every rule that spans several keys, checked before any process starts. Each message has the numbers and a remedy."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from mads.config.compose import ConfigError

WITHOUT_AGENTS = ("random", "stratified")


def validate(config: DictConfig, world_size: int = 1, has_gpu: bool = False, overrides: Sequence[str] = ()) -> None:
    """Check a composed training configuration for a number of processes.

    Args:
        overrides: as given on the command line; a key that the chosen mode ignores is an error.

    Raises:
        ConfigError: with all violations, one a line.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError("no value for: " + ", ".join(missing) + f" (for example {missing[0]}=...)")
    errors = [
        *_model(config),
        *_batch(config, world_size),
        *_numbers(config),
        *_modes(config, has_gpu),
        *_ignored(config, overrides),
    ]
    if errors:
        raise ConfigError("\n".join(errors))


def precision_of(config: DictConfig, has_gpu: bool) -> str:
    """fp32 or bf16, with `auto` resolved."""
    return config.train.precision if config.train.precision != "auto" else ("bf16" if has_gpu else "fp32")


def _model(config):
    m = config.model
    if m.hidden_size % m.num_attention_heads:
        yield f"model.hidden_size={m.hidden_size} is not a multiple of model.num_attention_heads={m.num_attention_heads}"
    elif (m.hidden_size // m.num_attention_heads) % 2:
        yield f"the head dimension {m.hidden_size // m.num_attention_heads} is odd; rotary embeddings need an even one"
    if m.num_attention_heads % m.num_key_value_heads:
        heads, kv_heads = m.num_attention_heads, m.num_key_value_heads
        yield f"model.num_attention_heads={heads} is not a multiple of model.num_key_value_heads={kv_heads}"
    if m.attention not in ("auto", "sdpa", "flash"):
        yield f"model.attention={m.attention!r} is not one of auto, sdpa, flash"


def _batch(config, world_size):
    t = config.train
    per_pass = t.micro_batch_size * world_size
    if t.micro_batch_size < 1 or t.global_batch_size < 1:
        yield f"train.global_batch_size={t.global_batch_size} and train.micro_batch_size={t.micro_batch_size} must be at least 1"
    elif t.global_batch_size % per_pass:
        yield (
            f"train.global_batch_size={t.global_batch_size} rows cannot be cut into {world_size} ranks x {t.micro_batch_size} "
            f"(train.micro_batch_size) = {per_pass} rows a pass; use a multiple of {per_pass}, or another micro-batch"
        )


def _numbers(config):
    positive = {
        "train.steps": config.train.steps,
        "train.log_interval": config.train.log_interval,
        "train.eval_interval": config.train.eval_interval,
        "train.eval_samples": config.train.eval_samples,
        "train.invariant_interval": config.train.invariant_interval,
        "selection.interval": config.selection.interval,
        "data.seq_length": config.data.seq_length,
        "reward.reference_examples": config.reward.reference_examples,
        "reward.rows_per_batch": config.reward.rows_per_batch,
        "checkpoint.keep_last": config.checkpoint.keep_last,
    }
    for key, value in positive.items():
        if value < 1:
            yield f"{key}={value} must be at least 1"
    if config.checkpoint.interval < 0 or config.train.prefetch < 0 or config.selection.margin < 0:
        yield "checkpoint.interval, train.prefetch and selection.margin must not be negative"
    if not 0 < config.data.heldout_fraction < 1:
        yield f"data.heldout_fraction={config.data.heldout_fraction} must lie between 0 and 1"
    if not 2 <= config.data.min_sample_tokens <= config.data.seq_length:
        shortest, longest = config.data.min_sample_tokens, config.data.seq_length
        yield f"data.min_sample_tokens={shortest} must lie between 2 and data.seq_length={longest}"
    if config.optim.lr <= 0 or not (0 <= config.optim.beta1 < 1 and 0 <= config.optim.beta2 < 1):
        yield f"optim.lr={config.optim.lr} must be positive, and beta1, beta2 in [0, 1)"
    if config.schedule.warmup_steps >= config.train.steps:
        yield f"schedule.warmup_steps={config.schedule.warmup_steps} leaves nothing of train.steps={config.train.steps}"


def _modes(config, has_gpu):
    if config.parallel.zero_stage not in (0, 1, 2, 3):
        yield f"parallel.zero_stage={config.parallel.zero_stage} is not one of 0, 1, 2, 3"
    if config.train.precision not in ("auto", "fp32", "bf16"):
        yield f"train.precision={config.train.precision!r} is not one of auto, fp32, bf16"
    elif config.reward.mode == "finite_difference" and precision_of(config, has_gpu) == "bf16":
        yield (
            "reward=finite_difference needs fp32 parameters: at its step size most bf16 weights would not change; "
            "use reward=ghost or reward=auto"
        )
    if config.model.attention == "flash" and not has_gpu:
        yield "model.attention=flash needs a GPU and the flash-attn package; use model.attention=auto"
    if config.logging.wandb not in ("disabled", "offline", "online"):
        yield f"logging.wandb={config.logging.wandb!r} is not one of disabled, offline, online"
    if config.data.tokenizer.kind not in ("sentencepiece", "huggingface"):
        yield f"data.tokenizer.kind={config.data.tokenizer.kind!r} is not one of sentencepiece, huggingface"
    elif config.data.tokenizer.kind == "huggingface" and config.data.tokenizer.path is None:
        yield "data.tokenizer.kind=huggingface needs data.tokenizer.path, a tokenizer.json; only SentencePiece is trained here"
    s = config.selection
    if s.name == "stratified" and s.attribute not in config.data.attributes:
        yield f"selection.attribute={s.attribute!r} is not one of the attributes {sorted(config.data.attributes)}"
    if s.name not in WITHOUT_AGENTS and not config.agents.members:
        yield f"selection={s.name} needs at least one agent in agents.members"
    for name, agent in config.agents.members.items():
        attribute = agent.get("attribute") if hasattr(agent, "get") else None
        if attribute is not None and attribute not in config.data.attributes:
            yield f"agents.members.{name}.attribute={attribute!r} is not one of the attributes {sorted(config.data.attributes)}"


def _ignored(config, overrides):
    if config.selection.name not in WITHOUT_AGENTS:
        return
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
        if key.split(".", 1)[0] in ("agents", "reward"):
            yield f"{override}: selection={config.selection.name} uses neither agents nor rewards; leave it out"
