"""Each contradiction that a config can hold has its message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config.bad_steps import BadStepsConfig
from pipeline.config.checks import corpus_problems, run_problems
from pipeline.config.corpus import CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.config.run import CacheConfig, DataConfig, RunConfig

GOOD = RunConfig(run_directory="r", data=DataConfig(corpus="c"))
GOOD_CORPUS = CorpusConfig(sources=[SourceConfig(name="a", path="b")])


def with_values(config: Any, **values: Any) -> Any:
    """``with_values(GOOD, train__steps=5)``."""
    for name, value in values.items():
        section, _, key = name.partition("__")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value}) if key else value})
    return config


def test_the_defaults_have_no_problem() -> None:
    assert run_problems(GOOD) == []
    assert corpus_problems(GOOD_CORPUS) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"directory": ""}, "data.cache.directory: required"),
        ({"gigabytes": 0.0}, "data.cache.gigabytes: 0.0 must be a finite number above 0"),
        ({"download_threads": 0}, "data.cache.download_threads: 0 is below 1"),
        ({"stall_seconds": float("inf")}, "data.cache.stall_seconds: inf must be a finite number above 0"),
        ({"retry_seconds": -1.0}, "data.cache.retry_seconds: -1.0 must be a finite number above 0"),
    ],
)
def test_each_problem_of_the_cache_is_named(values: dict[str, Any], message: str) -> None:
    (problem,) = run_problems(with_values(GOOD, data__cache=CacheConfig(**values)))
    assert message in problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run_directory": ""}, "run_directory: required"),
        ({"data__corpus": ""}, "data.corpus: required"),
        ({"seed": 2**70}, "does not fit 64 bits"),
        ({"data__sequence_length": 1024}, "1024 is longer than the model's positions (model.max_positions: 512)"),
        ({"data__sequence_length": 70_000, "model__max_positions": 80_000}, "70000 is above 65535"),
        ({"data__sequence_length": 4}, "data.sequence_length: 4 is below 8"),
        ({"data__workers": -1}, "data.workers: -1 is below 0"),
        ({"model__hidden_size": 100, "model__num_heads": 12}, "100 is not a multiple of model.num_heads (12)"),
        ({"model__hidden_dropout": 1.0}, "model.hidden_dropout: 1.0 is outside [0, 1)"),
        ({"model__extra": {"n_layer": 3}}, "model.extra.n_layer: set `model.num_layers` instead"),
        ({"model__initializer_range": 0.0}, "model.initializer_range: 0.0 must be a finite number above 0"),
        ({"objective__name": "clm"}, "`clm` does not train family `bert`; use `mlm`"),
        ({"model__family": "gpt2"}, "`mlm` does not train family `gpt2`; use `clm`"),
        ({"objective__mask_rate": 0.0}, "objective.mask_rate: 0.0 is outside (0, 1)"),
        ({"objective__mask_token_share": 0.95}, "0.95 + 0.1 is above 1"),
        ({"objective__span_geometric_p": 1.0}, "objective.span_geometric_p: 1.0 is outside (0, 1)"),
        ({"objective__span_max_words": 0}, "objective.span_max_words: 0 is below 1"),
        ({"objective__span_max_words": 10**12}, "objective.span_max_words: 1000000000000 is above 65535"),
        (
            {"model__family": "gpt2", "objective__name": "clm", "objective__masking": "span"},
            "objective.masking: `clm` masks nothing, so `span` has no use",
        ),
        ({"train__steps": 0}, "train.steps: 0 is below 1"),
        ({"train__precision": "fp16", "train__device": "cpu"}, "`fp16` needs CUDA"),
        ({"train__gradient_clip_norm": -1.0}, "train.gradient_clip_norm: -1.0"),
        (
            {"train__hang_timeout_seconds": -1.0},
            "train.hang_timeout_seconds: -1.0 must be a finite number, 0 or more",
        ),
        (
            {"train__slow_timeout_seconds": float("inf")},
            "train.slow_timeout_seconds: inf must be a finite number above 0",
        ),
        (
            {"train__slow_timeout_seconds": 60.0},
            "train.slow_timeout_seconds: 60.0 is below train.hang_timeout_seconds (600.0); checkpoints and",
        ),
        ({"train__zero3_persistence_threshold": -1}, "train.zero3_persistence_threshold: -1 is below 0"),
        ({"train__skip_steps": [3, 0]}, "train.skip_steps: 0 is no step; they count from 1"),
        ({"checkpoint__keep_last": 0}, "checkpoint.keep_last: 0 is below 1"),
        ({"monitor__peak_flops_per_device": 0.0}, "monitor.peak_flops_per_device: 0.0"),
    ],
)
def test_run_problems(values: dict[str, Any], message: str) -> None:
    problems = run_problems(with_values(GOOD, **values))
    assert len(problems) == 1, problems
    assert message in problems[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model__attention_dropout": 0.1, "train__compile": True, "train__compile_mode": "reduce-overhead"},
            "model.attention_dropout: 0.1: flash attention for packed rows has no dropout; 0 is fast, and "
            "model.hidden_dropout stays. The exact operator, which would run, cannot be recorded in a CUDA graph",
        ),
        (
            {"train__precision": "fp32", "train__compile": True, "train__compile_mode": "reduce-overhead"},
            "train.precision: `fp32`: flash attention takes `bf16` and `fp16` only. The exact operator",
        ),
        (
            {"model__num_heads": 64, "train__compile": True, "train__compile_mode": "reduce-overhead"},
            "model.num_heads: 64 heads are 12 wide, and flash attention takes multiples of 8 up to 256. The exact",
        ),
        (
            {"train__activation_checkpointing": "selective", "train__strategy": "zero3"},
            "train.activation_checkpointing: `selective` does not go with `zero3`",
        ),
        ({"train__compile_cache": ""}, "train.compile_cache: required"),
        (
            {"train__compile_mode": "max-autotune"},
            "train.compile_mode: `max-autotune` has no use without `train.compile: true`",
        ),
        (
            {"train__compile": True, "train__compile_mode": "reduce-overhead", "train__device": "cpu"},
            "train.compile_mode: `reduce-overhead` replays CUDA graphs, which a CPU has not",
        ),
        (
            {"train__compile": True, "train__compile_mode": "reduce-overhead", "train__strategy": "zero2"},
            "train.compile_mode: `reduce-overhead` does not go with `zero2`",
        ),
        ({"train__offload_optimizer": True}, "train.offload_optimizer: only DeepSpeed offloads, and the strategy is"),
        (
            {"train__offload_optimizer": True, "train__strategy": "zero1", "train__device": "cpu"},
            "train.offload_optimizer: on a CPU the optimizer state is in the host's memory already",
        ),
    ],
)
def test_problems_of_how_a_step_is_computed(values: dict[str, Any], message: str) -> None:
    (problem,) = run_problems(with_values(GOOD, **values))
    assert message in problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spike_factor": 0.0}, "train.bad_steps.spike_factor: 0.0 must be a finite number above 0"),
        ({"spike_window": 15}, "train.bad_steps.spike_window: 15 is below 16"),
        ({"rollback_after": -1}, "train.bad_steps.rollback_after: -1 is below 0"),
        ({"rollback_steps": 0}, "train.bad_steps.rollback_steps: 0 is below 1"),
    ],
)
def test_each_problem_of_bad_steps_is_named(values: dict[str, Any], message: str) -> None:
    (problem,) = run_problems(with_values(GOOD, train__bad_steps=BadStepsConfig(**values)))
    assert message in problem


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CorpusConfig(), "sources: at least one source is needed"),
        (CorpusConfig(sources=[SourceConfig(path="b")]), "sources.0.name: ''"),
        (CorpusConfig(sources=[SourceConfig(name="a/b", path="b")]), "a short name without `/`"),
        (CorpusConfig(sources=[SourceConfig(name="a", path="b")] * 2), "sources.1.name: 'a' is used twice"),
        (CorpusConfig(sources=[SourceConfig(name="a")]), "sources.0.path: required for source 'a'"),
        (
            replace(GOOD_CORPUS, shards=ShardConfig(validation_share=1.0)),
            "shards.validation_share: 1.0 is outside [0, 1)",
        ),
        (replace(GOOD_CORPUS, shards=ShardConfig(documents=10**9)), "shards.documents: 1000000000 is above 16777216"),
        (replace(GOOD_CORPUS, shards=ShardConfig(tokens=10**10)), "shards.tokens: 10000000000 is above 2147483648"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(vocab_size=20)), "tokenizer.vocab_size: 20 is below 100"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(style="gpt2")), "`gpt2` does not go with kind `wordpiece`"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(kind="byte_bpe")), "`bert` does not go with kind `byte_bpe`"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(min_count=0)), "tokenizer.min_count: 0 is below 1"),
        (CorpusConfig(sources=[SourceConfig("a", path="b", max_symbols=0)]), "sources.0.max_symbols: 0 is below 1"),
        (CorpusConfig(sources=[SourceConfig("a", "fasta", "b")]), "sources.0.kind: to `wordpiece` a sequence"),
        (CorpusConfig(sources=[SourceConfig("a", "integers", "b")]), "`integers` does not go with tokenizer.kind"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(kind="integers")), "`text` does not go with tokenizer.kind"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(num_integers=0)), "tokenizer.num_integers: 0 is below 1"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(num_integers=10**7)), "10000000 is above 4194304"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(kind="kmer", kmer=0)), "tokenizer.kmer: 0 is below 1"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(kind="kmer", kmer=11)), "11 letters of 4 make more than"),
        (replace(GOOD_CORPUS, tokenizer=TokenizerConfig(kind="kmer", kmer_letters="AA")), "has a letter twice"),
    ],
)
def test_corpus_problems(config: CorpusConfig, message: str) -> None:
    problems = corpus_problems(config)
    assert len(problems) == 1, problems
    assert message in problems[0]
