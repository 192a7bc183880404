"""What both sides train on: one corpus; ours as the rows that the stream packs, the peers' as the same tokens.

Letters: R rows of a step, S sequence length, D documents, T tokens.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import BERT_IDS, Document, is_written, write_corpus
from pipeline.config.run import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    Family,
    ModelConfig,
    MonitorConfig,
    OptimizerConfig,
    PrecisionName,
    RunConfig,
    RunObjectiveConfig,
    ScheduleConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from pipeline.train.streams import Streams

NEVER: Final = 10**9
LEARNING_RATE: Final = 1e-4
_SYNTHETIC_VERSION: Final = "1"
_FIRST_WORD: Final = max(number for number in BERT_IDS.values() if number is not None) + 1


@dataclass(frozen=True)
class Shape:
    """Size of a model and of its rows. No dropout: with it losses could not be compared."""

    family: Family
    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    sequence_length: int
    initializer_range: float = 0.02

    @property
    def is_causal(self) -> bool:
        return self.family == "gpt2"

    def model_config(self) -> ModelConfig:
        """As it stands in a config file."""
        return ModelConfig(
            family=self.family,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            intermediate_size=4 * self.hidden_size,
            max_positions=self.sequence_length,
            vocab_size=self.vocab_size,
            hidden_dropout=0.0,
            initializer_range=self.initializer_range,
        )


@dataclass(frozen=True)
class Hardware:
    """Where and in which numbers both sides compute."""

    device: str = "cpu"
    precision: PrecisionName = "fp32"
    threads: int = 1


@dataclass(frozen=True)
class Workload:
    """A model, a corpus and R rows a step.

    Args:
        same_rows: documents end to end in every row and attention across them, as `run_mlm` and `run_clm` group text;
            else as the project does by default: best fit, every document by itself.
    """

    shape: Shape
    corpus: Path
    num_rows: int
    hardware: Hardware
    same_rows: bool = False

    def config(self, **train: Any) -> RunConfig:
        """The project's config of this work; ``train`` are further fields of :class:`TrainConfig`."""
        settings: dict[str, Any] = {
            "steps": NEVER,
            "global_batch_size": self.num_rows,
            "micro_batch_size": self.num_rows,
            "strategy": "single",
            "device": self.hardware.device,
            "precision": self.hardware.precision,
            "threads_per_rank": self.hardware.threads,
        }
        return RunConfig(
            data=DataConfig(
                corpus=str(self.corpus),
                sequence_length=self.shape.sequence_length,
                packing="concatenate" if self.same_rows else "best_fit",
                cross_document_attention=self.same_rows,
            ),
            model=self.shape.model_config(),
            objective=RunObjectiveConfig(name="clm" if self.shape.is_causal else "mlm"),
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
            schedule=ScheduleConfig(name="linear", final_ratio=1.0),
            train=TrainConfig(**{**settings, **train}),
            checkpoint=CheckpointConfig(every_steps=NEVER),
            evaluation=EvaluationConfig(every_steps=0),
            monitor=MonitorConfig(wandb="off"),
        )

    def with_rows(self, num_rows: int) -> Workload:
        """The same with another batch."""
        return replace(self, num_rows=num_rows)

    @cached_property
    def streams(self) -> Streams:
        """The data of the run."""
        from pipeline.train.streams import open_streams

        return open_streams(self.config())

    def documents(self, num_steps: int) -> list[NDArray[np.unsignedinteger]]:
        """The segments of our first steps with their special tokens, each (T,): the peers' documents."""
        found = []
        for step in range(num_steps):
            rows = self.streams.train.rows(step)
            for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True):
                found.append(rows.tokens[row, start : start + length])
        return found

    def real_tokens_a_step(self) -> float:
        """Tokens of a step of ours that are no padding."""
        return real_tokens_a_step(self.streams)


def real_tokens_a_step(streams: Streams, num_steps: int = 50) -> float:
    """Tokens of a step that are no padding, mean over the first steps."""
    return sum(int(streams.train.rows(step).segment_length.sum()) for step in range(num_steps)) / num_steps


def workload_to_json(workload: Workload) -> str:
    """For another process: see :func:`workload_from_json`."""
    return json.dumps({**dataclasses.asdict(workload), "corpus": str(workload.corpus)})


def workload_from_json(text: str) -> Workload:
    """What :func:`workload_to_json` wrote."""
    values = json.loads(text)
    shape, hardware = Shape(**values.pop("shape")), Hardware(**values.pop("hardware"))
    return Workload(shape=shape, hardware=hardware, corpus=Path(values.pop("corpus")), **values)


def full_rows(documents: Sequence[NDArray[np.unsignedinteger]], sequence_length: int) -> NDArray[np.unsignedinteger]:
    """Documents end to end, cut every S tokens, the rest left out, (R, S): the grouping of `run_mlm` and `run_clm`."""
    joined = np.concatenate(list(documents))
    whole = len(joined) // sequence_length * sequence_length
    return joined[:whole].reshape(-1, sequence_length)


def synthetic_corpus(directory: Path, vocab_size: int, num_tokens: int, mean_tokens: int) -> Path:
    """A corpus of log-normal document lengths and made-up ids, written unless it is there.

    Ids follow Zipf's law and half of them follow from the one before, so that there is something to learn.
    """
    version = f"synthetic {_SYNTHETIC_VERSION} {vocab_size} {num_tokens} {mean_tokens}"
    if not is_written(directory, version):
        documents = list(_made_up_documents(vocab_size, num_tokens, mean_tokens))
        write_corpus(directory, [documents[first::4] for first in range(4)], vocab_size, b"{}", version)
    return directory


def _made_up_documents(vocab_size: int, num_tokens: int, mean_tokens: int) -> Iterator[Document]:
    random = np.random.default_rng(0)
    num_words = vocab_size - _FIRST_WORD
    ranks = np.arange(1, num_words + 1)
    chances = np.cumsum(1 / ranks)
    follows = random.permutation(num_words)
    number = 0
    while num_tokens > 0:
        length = max(1, int(random.lognormal(np.log(mean_tokens) - 0.5, 1.0)))
        words = np.searchsorted(chances, random.random(length) * chances[-1])
        after = np.flatnonzero(random.random(length - 1) < 0.5) + 1
        words[after] = follows[words[after - 1]]
        yield Document(f"synthetic/{number}", (words + _FIRST_WORD).astype(np.uint16))
        number += 1
        num_tokens -= length
