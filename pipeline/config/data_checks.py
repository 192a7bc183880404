"""Ranges and contradictions of mixtures, stages and exclusions. Each check yields every problem it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipeline.config.hugging_face import max_positions
from pipeline.config.run import CacheConfig, ExclusionConfig, MixtureSourceConfig, RunConfig, StageConfig
from pipeline.config.stages import full_steps, stage_shape, stages_of, warmup_sizes

MIN_SEQUENCE_LENGTH = 8
"""So that a row always holds more than one separator, and S // 8 segments are at least one."""

MAX_SEQUENCE_LENGTH = 65_535
"""Offsets inside a row are kept in 16 bits."""

MAX_GLOBAL_BATCH_SIZE = 2**24
MAX_ROWS = 2**47
"""Of a run: masks are keyed by the number of a row and 16 bits for a place in it, together in 63."""

MAX_WARMUP_SIZES = 1000
MAX_WORKERS = 1000
MAX_PREFETCH_STEPS = 10_000


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
    yield from _within("data.open_shards", config.data.open_shards, 1)
    yield from _within("data.workers", config.data.workers, 0, MAX_WORKERS)
    yield from _within("data.prefetch_steps", config.data.prefetch_steps, 1, MAX_PREFETCH_STEPS)
    if config.data.packing.startswith("pairs") and any(task.name == "clm" for task in config.objective.tasks):
        yield f"data.packing: `{config.data.packing}` makes rows of the BERT kind; choose another for objective `clm`."
    # Each of these counts on the shapes that the one before has checked.
    yield from list(_batch_problems(config)) or list(_warmup_problems(config)) or list(_row_problems(config))


def _within(where: str, value: int, least: int, most: int | None = None) -> Iterator[str]:
    if value < least:
        yield f"{where}: {value} is below {least}."
    if most is not None and value > most:
        yield f"{where}: {value} is above {most}."


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


def _batch_problems(config: RunConfig) -> Iterator[str]:
    yield from _length_problems("data.sequence_length", config.data.sequence_length, config)
    yield from _within("train.steps", config.train.steps, 1, MAX_ROWS)
    stages = config.train.stages
    for number, stage in enumerate(stages):
        yield from _stage_problems(f"train.stages.{number}", stage, number == len(stages) - 1, config)
    yield from _within("train.global_batch_size", config.train.global_batch_size, 1, MAX_GLOBAL_BATCH_SIZE)


def _stage_problems(where: str, stage: StageConfig, is_last: bool, config: RunConfig) -> Iterator[str]:
    given = [name for name in ("steps", "tokens") if getattr(stage, name) is not None]
    if is_last and given:
        yield f"{where}.{given[0]}: the last stage goes on to the end of the run (train.steps); leave its length out."
    if not is_last and len(given) != 1:
        yield f"{where}: give either `steps` or `tokens`, the length of the stage."
    if stage.steps is not None:
        yield from _within(f"{where}.steps", stage.steps, 1, MAX_ROWS)
    if stage.tokens is not None and not (stage.tokens > 0 and math.isfinite(stage.tokens)):
        yield f"{where}.tokens: {stage.tokens} must be a finite number above 0."
    if stage.global_batch_size is not None:
        yield from _within(f"{where}.global_batch_size", stage.global_batch_size, 1, MAX_GLOBAL_BATCH_SIZE)
    if stage.sequence_length is not None:
        yield from _length_problems(f"{where}.sequence_length", stage.sequence_length, config)


def _length_problems(where: str, length: int, config: RunConfig) -> Iterator[str]:
    yield from _within(where, length, MIN_SEQUENCE_LENGTH, MAX_SEQUENCE_LENGTH)
    positions = max_positions(config.model)
    if positions is not None and length > positions:
        yield (
            f"{where}: {length} is longer than the model's positions (model.max_positions: "
            f"{positions}); shorten the one or raise the other."
        )


def _warmup_problems(config: RunConfig) -> Iterator[str]:
    warmup, train = config.train.batch_warmup, config.train
    first = train.stages[0] if train.stages else StageConfig()
    rows, slots = stage_shape(first, config)
    if not (warmup.tokens >= 0 and math.isfinite(warmup.tokens)):
        yield f"train.batch_warmup.tokens: {warmup.tokens} must be a finite number, 0 or more."
        return
    if warmup.tokens == 0:
        return
    if warmup.start < 1 or warmup.increment < 1:
        yield (
            f"train.batch_warmup: start is {warmup.start} and increment {warmup.increment}; both must be at least 1."
        )
        return
    if warmup.start >= rows:
        yield f"train.batch_warmup.start: {warmup.start} is not below the global batch it grows to ({rows})."
        return
    if (num_sizes := len(range(warmup.start, rows, warmup.increment))) > MAX_WARMUP_SIZES:
        yield (
            f"train.batch_warmup.increment: {warmup.increment} makes {num_sizes} sizes on the way to {rows} rows, more "
            f"than {MAX_WARMUP_SIZES}; raise it."
        )
        return
    sizes = list(warmup_sizes(warmup, rows, slots))
    steps = sum(steps for steps, _ in sizes)
    if len(train.stages) > 1 and (full := full_steps(first, sizes, rows, slots)) < 0:
        yield f"train.batch_warmup: takes {steps} steps, {-full} more than the first stage has; shorten it."
    elif steps > train.steps:
        yield f"train.batch_warmup: takes {steps} steps, more than the run (train.steps: {train.steps}); shorten it."


def _row_problems(config: RunConfig) -> Iterator[str]:
    stages = stages_of(config)
    rows = stages.first_row(max(config.train.steps, stages.all[-1].first_step))
    if rows > MAX_ROWS:
        yield (
            f"train.steps: the run and its stages have {rows:.1e} rows; at most {MAX_ROWS:.1e} can be numbered. Lower "
            "train.steps, train.global_batch_size, or the length of a stage."
        )
