"""What types cannot say: ranges and contradictions. Each check returns the list of all problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pipeline.config.attention import reasons_against_flash
from pipeline.config.corpus import MAX_INTEGERS, CorpusConfig, ShardConfig, TokenizerConfig
from pipeline.config.data_checks import MAX_SEQUENCE_LENGTH, data_problems
from pipeline.config.denoise_checks import masked_span_problems
from pipeline.config.hugging_face import AUTO, hugging_face_problems
from pipeline.config.language_checks import language_problems
from pipeline.config.mixture_checks import mixture_problems
from pipeline.config.model import ModelConfig
from pipeline.config.optimization_checks import optimization_problems
from pipeline.config.ranges import at_least, at_most, not_negative, positive, share
from pipeline.config.row_checks import row_problems
from pipeline.config.run import PAIR_OBJECTIVES, Family, ObjectiveConfig, ObjectiveName, RunConfig, TrainConfig
from pipeline.config.start import start_problems

MAX_SHARD_DOCUMENTS = 2**24
MAX_SHARD_TOKENS = 2**31
"""What a shard's keys and offsets can hold; useful shards are far smaller."""

_SMALLEST_VOCABULARIES = {"wordpiece": 100, "byte_bpe": 300, "unigram": 100, "character": 8, "kmer": 8, "integers": 8}
"""Special tokens, and the least that the rest is of any use with."""

_MAX_KMERS = 2**21
"""Ids of a k-mer vocabulary: the embedding of more is larger than the rest of any model."""

_LEAST_SPIKE_WINDOW = 16
"""The median deviation of fewer numbers says little."""

_OBJECTIVES_OF_FAMILY: Final[Mapping[Family, tuple[ObjectiveName, ...]]] = {
    "bert": ("mlm", "mlm+nsp", "mlm+sop", "distil"),
    "roberta": ("mlm", "distil"),
    "distilbert": ("distil", "mlm"),
    "albert": ("mlm", "mlm+sop", "mlm+nsp", "distil"),
    "electra": ("rtd", "mlm"),
    "modernbert": ("mlm", "distil"),
    "bart": ("denoise",),
    "gpt2": ("clm", "distil"),
    "openai-gpt": ("clm",),
    "auto": ("mlm", "clm", "denoise"),
}

_TYPED_IN_HUGGING_FACE = {
    "hidden_size": "hidden_size", "n_embd": "hidden_size",
    "num_hidden_layers": "num_layers", "n_layer": "num_layers",
    "num_attention_heads": "num_heads", "n_head": "num_heads",
    "intermediate_size": "intermediate_size", "n_inner": "intermediate_size",
    "max_position_embeddings": "max_positions", "n_positions": "max_positions",
    "vocab_size": "vocab_size",
    "hidden_dropout_prob": "hidden_dropout", "resid_pdrop": "hidden_dropout", "embd_pdrop": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout", "attn_pdrop": "attention_dropout",
    "initializer_range": "initializer_range",
}  # fmt: skip


def run_problems(config: RunConfig) -> list[str]:
    """All problems of a run's config."""
    return [
        *_required(config),
        *data_problems(config),
        *_model_problems(config),
        *hugging_face_problems(config),
        *mixture_problems(config, _problems_of_objective),
        *start_problems(config.start, config.model.remap_vocabulary),
        *optimization_problems(config),
        *_train_problems(config),
        *_bookkeeping_problems(config),
    ]


def corpus_problems(config: CorpusConfig) -> list[str]:
    """All problems of a corpus config."""
    return [
        *_source_problems(config),
        *_tokenizer_and_cleaning_problems(config),
        *shard_problems(config.shards),
        *language_problems(config),
    ]


def shard_problems(shards: ShardConfig) -> Iterator[str]:
    """All problems of the ``shards`` of a corpus config."""
    yield from at_most(MAX_SHARD_DOCUMENTS, shards__documents=shards.documents)
    yield from at_most(MAX_SHARD_TOKENS, shards__tokens=shards.tokens, shards__block_tokens=shards.block_tokens)
    yield from share(one=False, shards__validation_share=shards.validation_share)
    yield from at_least(
        1, shards__tokens=shards.tokens, shards__documents=shards.documents, shards__block_tokens=shards.block_tokens
    )


def _required(config: RunConfig) -> Iterator[str]:
    if not config.run_directory:
        yield "run_directory: required; where the run lives, e.g. `runs/my_run`."
    if not -(2**63) <= config.seed < 2**63:
        yield f"seed: {config.seed} does not fit 64 bits."


def _model_problems(config: RunConfig) -> Iterator[str]:
    model = config.model
    if model.family == AUTO:  # config names the shape
        yield from at_least(1, model__vocab_size=model.vocab_size)
        model = ModelConfig()
    yield from at_least(
        1,
        model__hidden_size=model.hidden_size,
        model__num_layers=model.num_layers,
        model__num_heads=model.num_heads,
        model__intermediate_size=model.intermediate_size,
        model__max_positions=model.max_positions,
        model__vocab_size=model.vocab_size,
    )
    yield from share(
        one=False, model__hidden_dropout=model.hidden_dropout, model__attention_dropout=model.attention_dropout
    )
    yield from positive(model__initializer_range=model.initializer_range)
    if model.num_heads > 0 and model.hidden_size % model.num_heads:
        yield f"model.hidden_size: {model.hidden_size} is not a multiple of model.num_heads ({model.num_heads})."
    for name in model.extra:
        if name in _TYPED_IN_HUGGING_FACE:
            yield f"model.extra.{name}: set `model.{_TYPED_IN_HUGGING_FACE[name]}` instead."
    if config.train.compile_mode == "reduce-overhead" and model.num_heads > 0:
        for reason in reasons_against_flash(model, config.train.precision):
            yield (
                f"{reason}. The exact operator, which would run, cannot be recorded in a CUDA graph: change this, or "
                "set train.compile_mode to `default`."
            )


def _pair_problems(config: RunConfig) -> Iterator[str]:
    objective, data = config.objective.name, config.data
    packing = PAIR_OBJECTIVES.get(objective)
    if packing is not None and data.packing != packing:
        yield f"data.packing: `{objective}` learns from the pairs of `{packing}`; set that instead of `{data.packing}`."
    if data.cross_document_attention and data.packing.startswith("pairs"):
        yield (
            "data.cross_document_attention: the pairs of a row would be one segment, with one first token for all; "
            "leave it out, or choose another data.packing."
        )
    if packing is not None and config.model.extra.get("type_vocab_size") in (0, 1):
        yield f"model.extra.type_vocab_size: `{objective}` tells the parts of a pair by 2 token types; set 2 or more."


def _noise_problems(config: RunConfig) -> Iterator[str]:
    objective, data = config.objective, config.data
    yield from masked_span_problems(objective)
    if objective.name != "denoise":
        return
    names = ("infilling_rate", "permute_sentences", "deletion_rate", "token_mask_rate", "rotation", "span_mask_rate")
    rates = {name: getattr(objective, name) for name in names}
    yield from share(**{f"objective__{name}": rate for name, rate in rates.items()})
    yield from positive(objective__infilling_mean=objective.infilling_mean)
    if objective.infilling_mean > 10:
        yield f"objective.infilling_mean: {objective.infilling_mean} is above 10; spans have 3 tokens in the paper."
    if not any(rate > 0 for rate in rates.values()):
        yield "objective.infilling_rate: without any noise the text is copied; set one of the rates above 0."
    if data.packing.startswith("pairs"):
        yield f"data.packing: `denoise` reads whole segments, and `{data.packing}` makes pairs; use `best_fit`."
    if data.cross_document_attention:
        yield "data.cross_document_attention: every segment is denoised by itself; leave it out."


def _teacher_problems(objective: ObjectiveConfig) -> Iterator[str]:
    if objective.name != "distil":
        if objective.teacher is not None:
            yield f"objective.teacher: `{objective.name}` has none; set objective.name to `distil`, or leave it out."
        return
    if not objective.teacher:
        yield "objective.teacher: required by `distil`; the folder of a Hugging Face model."
    yield from positive(objective__temperature=objective.temperature)
    weights = {name: getattr(objective, f"{name}_weight") for name in ("soft", "hard", "cosine")}
    yield from not_negative(**{f"objective__{name}_weight": weight for name, weight in weights.items()})
    if not any(weight > 0 for weight in weights.values()):
        yield "objective.soft_weight: one of the weights of `distil` must be above 0."


def _generator_problems(config: RunConfig) -> Iterator[str]:
    model = config.model
    if config.objective.name != "rtd":
        return
    yield from positive(model__generator_size=model.generator_size)
    yield from positive(objective__discriminator_weight=config.objective.discriminator_weight)
    width, heads = round(model.generator_size * model.hidden_size), round(model.generator_size * model.num_heads)
    if model.generator_size > 0 and width % max(1, heads):
        yield (
            f"model.generator_size: {model.generator_size} makes a generator of width {width} with {heads} heads, "
            "which do not divide it; ELECTRA has 0.25 and 0.333."
        )
    if config.start.from_pretrained is not None or config.start.from_run is not None:
        yield "start: two models are trained by `rtd`, and a source has one; leave `start` out."


def _problems_of_objective(config: RunConfig) -> list[str]:
    return [
        *_objective_problems(config),
        *_generator_problems(config),
        *_teacher_problems(config.objective),
        *row_problems(config),
        *_noise_problems(config),
    ]


def _objective_problems(config: RunConfig) -> Iterator[str]:
    objective = config.objective
    fitting = _OBJECTIVES_OF_FAMILY[config.model.family]
    if objective.name not in fitting:
        uses = " or ".join(f"`{name}`" for name in fitting)
        yield f"objective.name: `{objective.name}` does not train family `{config.model.family}`; use {uses}."
    yield from _pair_problems(config)
    yield from share(zero=False, one=False, objective__mask_rate=objective.mask_rate)
    yield from share(
        objective__mask_token_share=objective.mask_token_share,
        objective__random_token_share=objective.random_token_share,
    )
    if objective.mask_token_share + objective.random_token_share > 1 + 1e-9:
        yield (
            f"objective.mask_token_share + objective.random_token_share: {objective.mask_token_share} + "
            f"{objective.random_token_share} is above 1."
        )
    yield from share(zero=False, one=False, objective__span_geometric_p=objective.span_geometric_p)
    yield from at_least(1, objective__span_max_words=objective.span_max_words)
    yield from at_most(MAX_SEQUENCE_LENGTH, objective__span_max_words=objective.span_max_words)
    if objective.name == "clm" and objective.masking != "token":
        yield f"objective.masking: `{objective.name}` masks nothing, so `{objective.masking}` has no use; leave it out."


def _train_problems(config: RunConfig) -> Iterator[str]:
    train = config.train
    yield from at_least(
        1,
        train__micro_batch_size=train.micro_batch_size,
        train__threads_per_rank=train.threads_per_rank,
    )
    yield from not_negative(
        train__gradient_clip_norm=train.gradient_clip_norm,
        train__hang_timeout_seconds=train.hang_timeout_seconds,
    )
    yield from positive(
        train__slow_timeout_seconds=train.slow_timeout_seconds,
        train__lock_timeout_seconds=train.lock_timeout_seconds,
    )
    if train.slow_timeout_seconds < train.hang_timeout_seconds:
        yield (
            f"train.slow_timeout_seconds: {train.slow_timeout_seconds} is below train.hang_timeout_seconds "
            f"({train.hang_timeout_seconds}); checkpoints and compilation take longer than a step."
        )
    yield from at_least(0, train__zero3_persistence_threshold=train.zero3_persistence_threshold)
    yield from _bad_step_problems(train)
    if train.precision == "fp16" and train.device == "cpu":
        yield "train.precision: `fp16` needs CUDA; use `bf16` or `fp32` on a CPU."
    if train.activation_checkpointing == "selective" and train.strategy == "zero3":
        yield (
            "train.activation_checkpointing: `selective` does not go with `zero3`, where DeepSpeed's linear layers "
            "change in place the results that would be kept; use `full`."
        )
    yield from _compile_problems(train)
    if train.offload_optimizer:
        yield from _offload_problems(train)


def _bad_step_problems(train: TrainConfig) -> Iterator[str]:
    bad = train.bad_steps
    if bad.spike_factor is not None:
        yield from positive(train__bad_steps__spike_factor=bad.spike_factor)
    yield from at_least(1, train__bad_steps__rollback_steps=bad.rollback_steps)
    yield from at_least(0, train__bad_steps__rollback_after=bad.rollback_after)
    yield from at_least(_LEAST_SPIKE_WINDOW, train__bad_steps__spike_window=bad.spike_window)
    if train.skip_steps and min(train.skip_steps) < 1:
        yield f"train.skip_steps: {min(train.skip_steps)} is no step; they count from 1."


def _compile_problems(train: TrainConfig) -> Iterator[str]:
    if not train.compile_cache:
        yield "train.compile_cache: required; a directory on a disk of the node, e.g. `~/.cache/pretrain-compile`."
    if train.compile_mode != "default" and not train.compile:
        yield f"train.compile_mode: `{train.compile_mode}` has no use without `train.compile: true`."
    if train.compile_mode == "reduce-overhead" and train.device == "cpu":
        yield "train.compile_mode: `reduce-overhead` replays CUDA graphs, which a CPU has not; use `default`."
    if train.compile_mode == "reduce-overhead" and train.strategy not in ("single", "ddp"):
        yield (
            f"train.compile_mode: `reduce-overhead` does not go with `{train.strategy}`: DeepSpeed takes gradients out "
            "of the memory that a CUDA graph writes again; use `default`, or strategy `single` or `ddp`."
        )


def _offload_problems(train: TrainConfig) -> Iterator[str]:
    if train.strategy in ("single", "ddp"):
        yield (
            f"train.offload_optimizer: only DeepSpeed offloads, and the strategy is `{train.strategy}`; use `zero1`, "
            "`zero2` or `zero3`, or leave it out."
        )
    if train.device == "cpu":
        yield "train.offload_optimizer: on a CPU the optimizer state is in the host's memory already; leave it out."


def _bookkeeping_problems(config: RunConfig) -> Iterator[str]:
    yield from at_least(
        1,
        checkpoint__every_steps=config.checkpoint.every_steps,
        checkpoint__keep_last=config.checkpoint.keep_last,
        evaluation__rows=config.evaluation.rows,
        monitor__log_every_steps=config.monitor.log_every_steps,
    )
    yield from at_least(
        0,
        evaluation__every_steps=config.evaluation.every_steps,
        checkpoint__keep_every_steps=config.checkpoint.keep_every_steps,
    )
    if config.checkpoint.every_steps > 0 and config.checkpoint.keep_every_steps % config.checkpoint.every_steps:
        yield (
            f"checkpoint.keep_every_steps: {config.checkpoint.keep_every_steps} is no multiple of "
            f"checkpoint.every_steps ({config.checkpoint.every_steps}): there would be nothing to keep at most of its "
            "steps."
        )
    yield from not_negative(checkpoint__seconds_before_time_limit=config.checkpoint.seconds_before_time_limit)
    if config.monitor.peak_flops_per_device is not None:
        yield from positive(monitor__peak_flops_per_device=config.monitor.peak_flops_per_device)


def _source_problems(config: CorpusConfig) -> Iterator[str]:
    if not config.sources:
        yield "sources: at least one source is needed."
    names: set[str] = set()
    for number, source in enumerate(config.sources):
        where = f"sources.{number}"
        if not source.name or "/" in source.name:
            yield f"{where}.name: {source.name!r}: a short name without `/` is required; it begins the document ids."
        elif source.name in names:
            yield f"{where}.name: {source.name!r} is used twice."
        names.add(source.name)
        if not source.path:
            yield f"{where}.path: required for source {source.name!r}."
        if source.max_symbols < 1:
            yield f"{where}.max_symbols: {source.max_symbols} is below 1."
        if (source.kind == "integers") != (config.tokenizer.kind == "integers") and config.tokenizer.path is None:
            yield (
                f"{where}.kind: `{source.kind}` does not go with tokenizer.kind `{config.tokenizer.kind}`; `integers` "
                "takes `integers`, and nothing else does."
            )
        elif source.kind == "fasta" and config.tokenizer.kind == "wordpiece" and config.tokenizer.path is None:
            yield (
                f"{where}.kind: to `wordpiece` a sequence without spaces is one unknown word; set tokenizer.kind to "
                "`kmer`, `character`, `byte_bpe` or `unigram`."
            )


def _tokenizer_and_cleaning_problems(config: CorpusConfig) -> Iterator[str]:
    tokenizer, cleaning = config.tokenizer, config.cleaning
    yield from at_least(0, cleaning__min_characters=cleaning.min_characters, tasks=config.tasks)
    yield from share(cleaning__max_bad_share=cleaning.max_bad_share)
    if tokenizer.num_integers is not None:
        yield from at_most(MAX_INTEGERS, tokenizer__num_integers=tokenizer.num_integers)
    yield from at_least(
        1,
        tokenizer__training_documents=tokenizer.training_documents,
        tokenizer__min_count=tokenizer.min_count,
        tokenizer__num_integers=tokenizer.num_integers,
    )
    if tokenizer.path is not None:
        return
    yield from at_least(_SMALLEST_VOCABULARIES[tokenizer.kind], tokenizer__vocab_size=tokenizer.vocab_size)
    is_bert = tokenizer.style == "bert"
    if (tokenizer.kind == "wordpiece" and not is_bert) or (tokenizer.kind == "byte_bpe" and is_bert):
        yield (
            f"tokenizer.style: `{tokenizer.style}` does not go with kind `{tokenizer.kind}`; "
            "`wordpiece` takes `bert`, `byte_bpe` takes `roberta` or `gpt2`."
        )
    if tokenizer.kind == "kmer":
        yield from _kmer_problems(tokenizer)


def _kmer_problems(tokenizer: TokenizerConfig) -> Iterator[str]:
    yield from at_least(1, tokenizer__kmer=tokenizer.kmer)
    letters = tokenizer.kmer_letters
    if len(set(letters)) != len(letters) or any(letter.isspace() for letter in letters):
        yield f"tokenizer.kmer_letters: {letters!r} has a letter twice or white space; give each letter once."
    elif letters and len(letters) ** min(max(tokenizer.kmer, 1), 64) > _MAX_KMERS:
        yield (
            f"tokenizer.kmer: {tokenizer.kmer} letters of {len(letters)} make more than {_MAX_KMERS:,} ids; lower it, "
            "or leave tokenizer.kmer_letters empty to take the observed ones."
        )
