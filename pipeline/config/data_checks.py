"""Ranges and contradictions of mixtures, stages and exclusions. Each check yields every problem it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipeline.config.run import CacheConfig, ExclusionConfig, MixtureSourceConfig, RunConfig, StageConfig
from pipeline.config.stages import warmup_sizes

MIN_SEQUENCE_LENGTH = 8
MAX_SEQUENCE_LENGTH = 65_535
"""Offsets inside a row are kept in 16 bits."""


def data_problems(config: RunConfig) -> Iterator[str]:
    """Problems of where rows come from, and of their number and length in every step."""
    yield from _corpus_problems(config)
    yield from _cache_problems(config.data.cache)
    for number, source in enumerate(config.data.mixture):
        yield from _source_problems(f"data.mixture.{number}", source)
    for number, exclusion in enumerate(config.data.exclude):
        yield from _exclusion_problems(f"data.exclude.{number}", exclusion)
    if not (math.isfinite(config.data.mixture_exponent) and config.data.mixture_exponent >= 0):
        yield f"data.mixture_exponent: {config.data.mixture_exponent} must be a finite number, 0 or more."
    yield from _length_problems("data.sequence_length", config.data.sequence_length, config)
    if config.data.packing.startswith("pairs") and config.objective.name == "clm":
        yield f"data.packing: `{config.data.packing}` makes rows of the BERT kind; choose another for objective `clm`."
    stages = config.train.stages
    problems = [
        problem
        for number, stage in enumerate(stages)
        for problem in _stage_problems(f"train.stages.{number}", stage, number == len(stages) - 1, config)
    ]
    yield from problems
    if config.train.global_batch_size < 1:
        problems.append(f"train.global_batch_size: {config.train.global_batch_size} is below 1.")
        yield problems[-1]
    if not problems:
        yield from _warmup_problems(config)


def _corpus_problems(config: RunConfig) -> Iterator[str]:
    data = config.data
    if not data.corpus and not data.mixture:
        yield "data.corpus: required; a directory made by `pretrain corpus build` (or `data.mixture`, several of them)."
    if data.corpus and data.mixture:
        yield f"data.corpus: {data.corpus!r} and `data.mixture` exclude each other; name the corpus in the mixture."
    seen: set[str] = set()
    for number, source in enumerate(data.mixture):
        if source.corpus in seen:
            yield f"data.mixture.{number}.corpus: {source.corpus!r} is there twice; give it one weight."
        seen.add(source.corpus)


def _source_problems(where: str, source: MixtureSourceConfig) -> Iterator[str]:
    if not source.corpus:
        yield f"{where}.corpus: required; a directory made by `pretrain corpus build`."
    if source.weight is not None and not (source.weight > 0 and math.isfinite(source.weight)):
        yield f"{where}.weight: {source.weight} must be a finite number above 0; leave a source out to switch it off."
    if source.epochs is not None and source.epochs < 1:
        yield f"{where}.epochs: {source.epochs} is below 1; leave it out to repeat the source."


def _cache_problems(cache: CacheConfig) -> Iterator[str]:
    if not cache.directory:
        yield "data.cache.directory: required; a directory on a disk of every node, e.g. `~/.cache/pretrain`."
    if cache.download_threads < 1:
        yield f"data.cache.download_threads: {cache.download_threads} is below 1."
    numbers = {"gigabytes": cache.gigabytes, "stall_seconds": cache.stall_seconds, "retry_seconds": cache.retry_seconds}
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            yield f"data.cache.{name}: {value} must be a finite number above 0."


def _exclusion_problems(where: str, exclusion: ExclusionConfig) -> Iterator[str]:
    if not exclusion.documents and exclusion.file is None:
        yield f"{where}: names no document; give `documents` or a `file` with ids."
    if exclusion.from_step < 1:
        yield f"{where}.from_step: {exclusion.from_step} is below 1, the first step."


def _stage_problems(where: str, stage: StageConfig, is_last: bool, config: RunConfig) -> Iterator[str]:
    given = [name for name in ("steps", "tokens") if getattr(stage, name) is not None]
    if is_last and given:
        yield f"{where}.{given[0]}: the last stage goes on to the end of the run (train.steps); leave its length out."
    if not is_last and len(given) != 1:
        yield f"{where}: give either `steps` or `tokens`, the length of the stage."
    if stage.steps is not None and stage.steps < 1:
        yield f"{where}.steps: {stage.steps} is below 1."
    if stage.tokens is not None and not (stage.tokens > 0 and math.isfinite(stage.tokens)):
        yield f"{where}.tokens: {stage.tokens} must be a finite number above 0."
    if stage.global_batch_size is not None and stage.global_batch_size < 1:
        yield f"{where}.global_batch_size: {stage.global_batch_size} is below 1."
    if stage.sequence_length is not None:
        yield from _length_problems(f"{where}.sequence_length", stage.sequence_length, config)


def _length_problems(where: str, length: int, config: RunConfig) -> Iterator[str]:
    if length < MIN_SEQUENCE_LENGTH:
        yield f"{where}: {length} is below {MIN_SEQUENCE_LENGTH}."
    if length > MAX_SEQUENCE_LENGTH:
        yield f"{where}: {length} is above {MAX_SEQUENCE_LENGTH}."
    if length > config.model.max_positions:
        yield (
            f"{where}: {length} is longer than the model's positions (model.max_positions: "
            f"{config.model.max_positions}); shorten the one or raise the other."
        )


def _warmup_problems(config: RunConfig) -> Iterator[str]:
    warmup, train = config.train.batch_warmup, config.train
    first = train.stages[0] if train.stages else StageConfig()
    rows = first.global_batch_size or train.global_batch_size
    slots = first.sequence_length or config.data.sequence_length
    if not (warmup.tokens >= 0 and math.isfinite(warmup.tokens)):
        yield f"train.batch_warmup.tokens: {warmup.tokens} must be a finite number, 0 or more."
    if warmup.tokens <= 0:
        return
    if warmup.start < 1 or warmup.increment < 1:
        yield (
            f"train.batch_warmup: start is {warmup.start} and increment {warmup.increment}; both must be at least 1."
        )
        return
    if warmup.start >= rows:
        yield f"train.batch_warmup.start: {warmup.start} is not below the global batch it grows to ({rows})."
        return
    steps = sum(steps for steps, _ in warmup_sizes(warmup, rows, slots))
    if len(train.stages) > 1:
        length = math.ceil((first.tokens or 0) / (rows * slots)) if first.steps is None else first.steps
        if steps > length:
            yield f"train.batch_warmup: takes {steps} steps, more than the first stage's {length}; shorten it."
