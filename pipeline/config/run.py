"""The typed config of a training run: one frozen dataclass a section, a docstring under each field.

`docs/configuration.md` is made from this file. Defaults suit BERT-base on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.config.bad_steps import BadStepsConfig
from pipeline.config.model import Family as Family
from pipeline.config.model import ModelConfig as ModelConfig
from pipeline.config.objective import Masking as Masking
from pipeline.config.objective import ObjectiveConfig as ObjectiveConfig
from pipeline.config.objective import ObjectiveName as ObjectiveName
from pipeline.config.objective import RunObjectiveConfig as RunObjectiveConfig
from pipeline.config.optimization import OptimizerConfig, ScheduleConfig
from pipeline.config.start import StartConfig

Packing = Literal["best_fit", "concatenate", "one_document", "pairs", "pairs_nsp", "pairs_sop"]
StrategyName = Literal["single", "ddp", "zero1", "zero2", "zero3"]
PrecisionName = Literal["fp32", "bf16", "fp16"]
CompileMode = Literal["default", "max-autotune", "reduce-overhead"]
ActivationCheckpointing = Literal["none", "full", "selective"]


PAIR_OBJECTIVES: Final[Mapping[ObjectiveName, Packing]] = {"mlm+nsp": "pairs_nsp", "mlm+sop": "pairs_sop"}
"""Objectives that judge sentence pairs, and the packing that makes the pairs they judge."""


@dataclass(frozen=True)
class MixtureSourceConfig:
    """One corpus of a mixture."""

    corpus: str = ""
    """Corpus directory, as `data.corpus`. All corpora of a mixture have the same tokenizer."""

    weight: float | None = None
    """Share of the tokens, against the other sources' weights. Default: the corpus's number of tokens."""

    epochs: int | None = None
    """The source drops out after so many epochs of its own; the others share its place. Default: it repeats."""


@dataclass(frozen=True)
class ExclusionConfig:
    """Documents that the stream leaves out from a step on. Nothing else moves: their places in the rows stay empty."""

    documents: list[str] = field(default_factory=list)
    """Ids of documents, as `pretrain batch` prints them."""

    file: str | None = None
    """A text file with further ids, one a line."""

    from_step: int = 1
    """First step without them. Steps that a checkpoint has behind it cannot change any more."""


@dataclass(frozen=True)
class CacheConfig:
    """The files of remote corpora on this node: one cache for all its ranks and runs. Changes no row."""

    directory: str = "~/.cache/pretrain"
    """Where it is: on a disk of the node, not of the network. Variables of the node are put in: `$TMPDIR/pretrain`."""

    gigabytes: float = 100.0
    """Size that it is kept below (10^9 bytes). At least twice the shards that the node has open: `docs/remote.md`."""

    download_threads: int = 4
    """Files that a process fetches at the same time, ahead of need."""

    stall_seconds: float = 30.0
    """A connection without a byte for so long is given up and opened again."""

    retry_seconds: float = 300.0
    """A download that has not come on for so long stops the run."""

    storage_options: dict[str, Any] = field(default_factory=dict)
    """For the file system class of fsspec, as they are, e.g. `{endpoint_url: https://s3.example.org}`. This is written
    into the run directory; variables of the node are put in later: `{headers: {Authorization: Bearer $TOKEN}}`."""


@dataclass(frozen=True)
class DataConfig:
    """Which corpus, and how it becomes rows."""

    corpus: str = ""
    """Corpus directory made by `pretrain corpus build`, or the URL of its copy: `https://...`, `s3://...`. Required,
    unless there is a `mixture`."""

    cache: CacheConfig = field(default_factory=CacheConfig)
    """Cache of remote corpora."""

    mixture: list[MixtureSourceConfig] = field(default_factory=list)
    """Several corpora instead of one."""

    mixture_exponent: float = 1.0
    """Shares of the sources are weight^exponent, normalised. Below 1 lifts small ones (multilingual BERT: 0.7)."""

    exclude: list[ExclusionConfig] = field(default_factory=list)
    """Documents to leave out."""

    sequence_length: int = 512
    """Tokens a row, special tokens included. At most `model.max_positions`."""

    packing: Packing = "best_fit"
    """`best_fit`: no document that fits a row is cut. `concatenate`: documents end to end, cut at every row.
    `one_document`: a document a row, or several rows. `pairs_nsp`, `pairs_sop`, `pairs`: two consecutive runs of
    sentences, of which half have the second from another document (BERT), half are swapped (ALBERT), or none is
    changed; for corpora with sentences."""

    cross_document_attention: bool = False
    """Documents that share a row see each other and their positions run through, as in GPT; clm then predicts across
    their borders. Default: every document by itself."""

    context_tokens: int = 0
    """clm, packing `best_fit` or `one_document`: of a document longer than a row, every piece but the first begins with
    so many tokens of the piece before, which are read and not predicted again. At most `sequence_length` - 2."""

    open_shards: int = 256
    """Shards the stream mixes at once: lanes x window. More mixes better and keeps more indexes in memory."""

    reverse_complement: float = 0.0
    """DNA and RNA, tokenizers `character` and `kmer`: probability with which a row to train on is replaced by the
    reverse complement of its text, drawn anew in every epoch. Validation rows stay as they are."""

    workers: int = 0
    """Loader processes a rank. 0: a thread of the training process prepares batches ahead: fastest on tokens."""

    prefetch_steps: int = 4
    """Steps prepared ahead of the training loop, a rank (and a worker)."""


@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run with its own shape of batch."""

    steps: int | None = None
    """Length of the stage in steps, or"""

    tokens: float | None = None
    """in token slots (rows x sequence length), rounded up to whole steps. The last stage has neither: it goes on."""

    sequence_length: int | None = None
    """Default: `data.sequence_length`."""

    global_batch_size: int | None = None
    """Default: `train.global_batch_size`."""


@dataclass(frozen=True)
class BatchWarmupConfig:
    """The global batch grows over the first tokens of the run (Brown et al. 2020, GPT-3, appendix B)."""

    tokens: float = 0.0
    """Token slots until the full batch is reached; 0: no warmup. Must end within the first stage."""

    start: int = 32
    """First global batch, in rows."""

    increment: int = 32
    """Rows added at a time; every size lasts for the same number of tokens, rounded up to whole steps."""


@dataclass(frozen=True)
class TrainConfig:
    """How steps are computed."""

    steps: int = 1_000_000
    """Optimizer steps of the whole run."""

    global_batch_size: int = 256
    """Rows a step, over all ranks. Ranks that do not divide it share it as evenly as can be."""

    micro_batch_size: int = 32
    """Most rows of `data.sequence_length` tokens in a forward pass on one rank (of shorter rows: as many tokens)."""

    stages: list[StageConfig] = field(default_factory=list)
    """Stages of the run, e.g. short rows first. Default: one. Those still ahead may be changed at a resume."""

    batch_warmup: BatchWarmupConfig = field(default_factory=BatchWarmupConfig)
    """Growth of the global batch at the start."""

    strategy: StrategyName = "ddp"
    """`single`, `ddp`, or DeepSpeed ZeRO, sharding: `zero1` optimizer, `zero2` + gradients, `zero3` + parameters."""

    zero3_persistence_threshold: int = 100_000
    """zero3: parameters with fewer elements than this stay whole on every rank (DeepSpeed's default)."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is one, else CPU."""

    precision: PrecisionName = "bf16"
    """`fp32`, `bf16` or `fp16` (both mixed: weights and moments stay fp32; fp16 scales the loss)."""

    gradient_clip_norm: float = 1.0
    """Largest global gradient norm; 0 does not clip."""

    bad_steps: BadStepsConfig = field(default_factory=BadStepsConfig)
    """Steps that are not taken."""

    skip_steps: list[int] = field(default_factory=list)
    """Steps (from 1) that change no weight, e.g. `[1200, 1201]`. Those still ahead may be changed at a resume."""

    compile: bool = False
    """`torch.compile` of encoder, head and loss, for training and validation."""

    compile_mode: CompileMode = "default"
    """`max-autotune` also times several kernels for each matrix product, in minutes; `reduce-overhead` replays CUDA
    graphs, for models so small that launching kernels takes the time (`single` and `ddp` on CUDA)."""

    compile_cache: str = "~/.cache/pretrain-compile"
    """Where compiled kernels are kept for later starts: on a disk of the node. Variables of the node are put in."""

    activation_checkpointing: ActivationCheckpointing = "none"
    """`full`: only the inputs of the blocks are kept, and everything else is computed again in the backward pass;
    `selective`: the results of matrix products and attention are kept too, and the cheap rest is computed again."""

    offload_optimizer: bool = False
    """zero1 to zero3 on CUDA: optimizer state and step in the memory of the host. Slower; for what does not fit."""

    threads_per_rank: int | None = None
    """CPU threads a rank. Default: SLURM's cores a task, else the cores of the node divided by its ranks."""

    matmul_precision: Literal["highest", "high", "medium"] = "high"
    """fp32 matrix products on CUDA: `high` uses TF32 (torch.set_float32_matmul_precision)."""

    hang_timeout_seconds: float = 600.0
    """A rank whose loop stands still for so long writes down its stacks and ends with status 1; 0: never. Longer than
    any forward or backward pass takes."""

    slow_timeout_seconds: float = 3600.0
    """The same where a loop may stand still for longer: start, first steps of a stage (compilation), evaluations,
    checkpoints."""

    lock_timeout_seconds: float = 120.0
    """A run directory whose job on another machine has shown no sign of life for so long may be taken over."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved."""

    every_steps: int = 1000
    """Steps between checkpoints; one is always written at the end and on SIGTERM or SIGUSR1."""

    seconds_before_time_limit: float = 120.0
    """In a SLURM job: so long before its end the run is saved and stops, also without a signal. More than two steps, an
    evaluation and a checkpoint take. 0: it does not."""

    keep_last: int = 3
    """Newest checkpoints kept, and as many of those at intervals; older ones are deleted."""

    keep_every_steps: int = 0
    """Checkpoints of multiples of this are kept for ever; 0: none. A multiple of `every_steps`."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out loss: the same rows and masks at every evaluation, for any number of ranks."""

    every_steps: int = 1000
    """Steps between evaluations; 0 evaluates only at the end."""

    rows: int = 1024
    """Rows of the validation split, at most."""


@dataclass(frozen=True)
class MonitorConfig:
    """What a run says about itself."""

    log_every_steps: int = 10
    """Steps between lines of metrics."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online where an API key is found, else offline."""

    wandb_project: str = "pretrain"
    """wandb project."""

    batch_digest: bool = True
    """Log the digest of the global batch at logged steps (compare with `pretrain batch`)."""

    peak_flops_per_device: float | None = None
    """Peak FLOP/s of a device, for MFU. Default: from the table of known GPUs; unknown devices report no MFU."""


@dataclass(frozen=True)
class RunConfig:
    """A training run. Two people who share this and the corpus share the run."""

    run_directory: str = ""
    """Where the run lives; running again in the same directory resumes. Required."""

    seed: int = 0
    """Names the order of the data, the masks, the initial weights and dropout."""

    data: DataConfig = field(default_factory=DataConfig)
    """Corpus and rows."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Model shape."""

    objective: RunObjectiveConfig = field(default_factory=RunObjectiveConfig)
    """Training objective."""

    start: StartConfig = field(default_factory=StartConfig)
    """First weights."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Steps, batch, strategy, precision."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Validation."""

    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Metrics."""
