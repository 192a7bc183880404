"""The one place where the benchmarks touch the engine: corpora written, streams opened, objectives made.

Letters: R rows, S sequence length, G rows of a step (global batch).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.rows import Rows
from pipeline.data.stream import RowStream, open_stream
from pipeline.shards.layout import shard_name, token_dtype
from pipeline.shards.manifest import FORMAT_VERSION, Manifest, ShardTable, write_manifest
from pipeline.shards.writer import ShardWriter

if TYPE_CHECKING:  # torch alone would be more memory than planning needs
    from pipeline.objectives.objective import Objective

SEQUENCE_LENGTH: Final = 512
BATCH_ROWS: Final = 64
STEPS_TOGETHER: Final = 8
"""Steps planned and gathered together, as the loader does."""

BERT_IDS: Final = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103, "bos": None, "eos": 102}
"""Special ids of bert-base-uncased; rows of the GPT kind end their documents with [SEP]."""

ObjectiveName = Literal["mlm", "clm"]


@dataclass(frozen=True)
class Document:
    """A tokenized document."""

    name: str
    tokens: NDArray[np.unsignedinteger]
    """Ids, (T,)."""


def write_corpus(
    directory: Path, shards: Sequence[Sequence[Document]], vocab_size: int, tokenizer: bytes, version: str = ""
) -> None:
    """A corpus with one training shard for each of ``shards``, written as the build writes it."""
    facts = []
    for number, documents in enumerate(shards):
        path = directory / f"{shard_name('train', number)}.tar"
        with ShardWriter(path, token_dtype(vocab_size), block_tokens=1 << 19) as writer:
            for document in documents:
                writer.add(document.name, document.tokens)
            facts.append(writer.close())
    (directory / "tokenizer").mkdir(exist_ok=True)
    (directory / "tokenizer" / "tokenizer.json").write_bytes(tokenizer)
    special = sorted({number for number in BERT_IDS.values() if number is not None})
    manifest = Manifest(
        tokenizer_fingerprint=hashlib.sha256(tokenizer).hexdigest(),
        vocab_size=vocab_size,
        special_ids=BERT_IDS,
        all_special_ids=special,
        splits={"train": ShardTable.from_facts(facts)},
        extra={"version": version},
    )
    write_manifest(directory, manifest)


def is_written(directory: Path, version: str) -> bool:
    """Whether a corpus of this version and of the present format is there."""
    path = directory / "manifest.json"
    if not path.is_file():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return manifest["format_version"] == FORMAT_VERSION and manifest["extra"].get("version") == version


def open_rows(directory: Path, objective: ObjectiveName = "mlm", packing: str = "best_fit", seed: int = 0) -> RowStream:
    """The stream of batches of 64 rows of 512."""
    return open_stream(
        directory,
        kind="bert" if objective == "mlm" else "gpt",
        packing=packing,
        sequence_length=SEQUENCE_LENGTH,
        global_batch_size=BATCH_ROWS,
        seed=seed,
    )


def objective_of(stream: RowStream, name: ObjectiveName = "mlm") -> Objective:
    """Masked or causal language modelling with the default settings."""
    from pipeline.config.run import ObjectiveConfig
    from pipeline.objectives.registry import make_objective

    return make_objective(
        ObjectiveConfig(name=name),
        stream.sources[0].manifest,
        stream.format_of(SEQUENCE_LENGTH),
        seed=0,
        packing=stream.packing.name,
    )


def steps_an_epoch(stream: RowStream) -> int:
    """Whole steps in an epoch."""
    return stream.num_rows // BATCH_ROWS


def groups_of_steps(num_steps: int, first_step: int = 0) -> Iterator[range]:
    """The steps as the loader takes them together."""
    end = first_step + num_steps
    for first in range(first_step, end, STEPS_TOGETHER):
        yield range(first, min(first + STEPS_TOGETHER, end))


def rows_in_order(stream: RowStream, num_steps: int, first_step: int = 0) -> Iterator[Rows]:
    """Rows of the steps in order, those of eight steps at a time."""
    for steps in groups_of_steps(num_steps, first_step):
        yield stream.joined_rows(steps)


def masked_batches(stream: RowStream, objective: Objective, num_steps: int, first_step: int = 0) -> Iterator[Any]:
    """Batches as the model takes them."""
    for steps in groups_of_steps(num_steps, first_step):
        for (batch,) in objective.prepare_steps(stream.joined_rows(steps), 1, steps):
            yield batch
