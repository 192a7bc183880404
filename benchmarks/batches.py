"""Batches a second: ours from a corpus's tars to masked batches, the peers' from rows that are packed already.

Ours is timed over three epochs of a stream that was just opened, so opening, reading indexes, planning, verifying
blocks and the first touch of every mapped page are in its time. A peer is timed in the middle of an epoch.

Letters: R rows, S sequence length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.corpus import SHARED, MeasuredCorpus, PackedRows, rows_digest
from benchmarks.engine import (
    BATCH_ROWS,
    BERT_IDS,
    SEQUENCE_LENGTH,
    masked_batches,
    objective_of,
    open_rows,
    rows_in_order,
    steps_an_epoch,
)
from benchmarks.machine import interleaved, medians
from benchmarks.peers.measure import all_rows, seconds_a_batch
from benchmarks.peers.other_process import OtherProcess
from benchmarks.peers.peer import MASK_RATE, Collate, Peer, documented_collate, make_collator, raw_batch, tuned_collate
from benchmarks.record import Goal, Result

VOCABULARY: Final = 30_522
_EPOCHS: Final = 3
_TOKENIZER: Final = SHARED / "tokenizers/bert-base-uncased/tokenizer.json"


@dataclass
class Peers:
    """Those that are installed, and why others are not here."""

    here: dict[str, Peer] = field(default_factory=dict)
    other: OtherProcess | None = None
    missing: dict[str, str] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """End the other process."""
        if self.other is not None:
            self.other.close()


def tokenizer_file() -> Path | None:
    """The tokenizer that the collator is given, if it is there."""
    return _TOKENIZER if _TOKENIZER.is_file() else None


def peer_classes() -> tuple[dict[str, type[Peer]], dict[str, str]]:
    """Peers that can be imported in this environment by class name, and the reasons of the others."""
    from importlib import import_module

    found: dict[str, type[Peer]] = {}
    missing: dict[str, str] = {}
    for module, names in {
        "webdataset": ["WebDatasetRows", "WebDatasetDocuments"],
        "datasets": ["DatasetsMap", "DatasetsIterable"],
        "litdata": ["LitdataTokens"],
    }.items():
        try:
            import_module(module)
        except ImportError as error:
            missing[module] = f"{error}; run `make benchmarks-setup` and use its environment"
            continue
        own = import_module(f"benchmarks.peers.{module}")
        found |= {name: getattr(own, name) for name in names}
    return found, missing


def open_peers(rows: PackedRows, directory: Path) -> Peers:
    """Give every installed peer the rows."""
    classes, missing = peer_classes()
    peers = Peers(missing=missing)
    for name, peer in classes.items():
        peers.here[peer.name] = peer(rows.path, directory / name)
        peers.lacks[peer.name] = peer.lacks
    try:
        peers.other = OtherProcess(rows.path, directory / "mosaicml", tokenizer_file(), VOCABULARY)
    except RuntimeError as error:
        peers.missing[OtherProcess.name] = str(error)
    else:
        from benchmarks.peers.mosaicml import MosaicStreaming

        peers.lacks[MosaicStreaming.name] = MosaicStreaming.lacks
    return peers


def check_peers(peers: Peers, rows: PackedRows, directory: Path) -> None:
    """Every peer delivers our rows, each once an epoch, and its masked batches are of them.

    Raises:
        AssertionError: one does not.
    """
    collator = make_collator(tokenizer_file(), VOCABULARY)
    packed = rows.load()
    for collate in (documented_collate(collator), tuned_collate(collator)):
        _check_masked(collate(list(packed[:BATCH_ROWS])), packed[:BATCH_ROWS])
    for name, peer in peers.here.items():
        found = all_rows(peer)
        if "document a record" in name:
            _check_same_tokens(found, packed)
        else:
            assert rows_digest(found) == rows.digest, f"{name} does not deliver every row once"
    if peers.other is not None:
        found = peers.other.all_rows(directory / "mosaicml-rows.npy")
        assert rows_digest(found) == rows.digest, f"{peers.other.name} does not deliver every row once"


def _check_masked(batch: Mapping[str, Any], expected: np.ndarray) -> None:
    """Shapes, dtypes, the originals under the masks, about 15 % of the maskable tokens predicted."""
    inputs, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    assert inputs.shape == labels.shape == (BATCH_ROWS, SEQUENCE_LENGTH)
    assert inputs.dtype == labels.dtype == np.int64
    assert np.array_equal(np.where(labels == -100, inputs, labels), expected)
    is_special = np.isin(expected, [number for number in BERT_IDS.values() if number is not None])
    assert not (labels != -100)[is_special].any()
    assert 0.14 < (labels != -100).sum() / (~is_special).sum() < 0.16


def _check_same_tokens(found: np.ndarray, packed: np.ndarray) -> None:
    """Equal tokens but for the last rows, which a stream that is cut into whole batches leaves over."""
    short = np.bincount(packed.ravel(), minlength=1 << 16) - np.bincount(found.ravel(), minlength=1 << 16)
    short[BERT_IDS["pad"] or 0] = 0
    assert (short >= 0).all()
    assert short.sum() < (BATCH_ROWS + 8) * SEQUENCE_LENGTH


def check_ours(corpus: MeasuredCorpus, rows: PackedRows) -> None:
    """Our masked batches hold the packed rows, with exactly round(0.15 x maskable) predictions a row.

    Raises:
        AssertionError: they do not.
    """
    stream = open_rows(corpus.directory)
    special = [number for number in BERT_IDS.values() if number is not None]
    originals = []
    for batch in masked_batches(stream, objective_of(stream), steps_an_epoch(stream)):
        inputs, labels = batch.input_ids.numpy(), batch.labels.numpy()
        assert inputs.shape == (BATCH_ROWS, SEQUENCE_LENGTH)
        assert inputs.dtype == np.int64
        original = inputs.copy().ravel()
        positions = batch.prediction_positions.numpy()[labels != -100]
        original[positions] = labels[labels != -100]
        original = original.reshape(inputs.shape)
        counts = np.bincount(positions // SEQUENCE_LENGTH, minlength=BATCH_ROWS)
        maskable = (~np.isin(original, special)).sum(1)
        assert np.array_equal(counts, np.floor(MASK_RATE * maskable + 0.5))
        originals.append(original.astype(np.uint16))
    assert rows_digest(np.concatenate(originals)) == rows.digest


def _ours(corpus: MeasuredCorpus, rows: PackedRows) -> float:
    """Million tokens a second over three epochs, opening included."""
    before = time.perf_counter()
    stream = open_rows(corpus.directory)
    num_steps = _EPOCHS * stream.num_rows // BATCH_ROWS
    for _ in masked_batches(stream, objective_of(stream), num_steps):
        pass
    return num_steps * rows.tokens_a_batch / (time.perf_counter() - before) / 1e6


def _of_peers(peers: Peers, rows: PackedRows, kind: str, batches: int) -> dict[str, Callable[[], float]]:
    collator = make_collator(tokenizer_file(), VOCABULARY)
    collate: Collate = {"documented": documented_collate, "tuned": tuned_collate}[kind](collator)

    def million_a_second(peer: Peer) -> Callable[[], float]:
        return lambda: rows.tokens_a_batch / seconds_a_batch(peer.batches(collate), batches) / 1e6

    contenders = {name: million_a_second(peer) for name, peer in peers.here.items()}
    if (other := peers.other) is not None:
        contenders[other.name] = lambda: rows.tokens_a_batch / other.seconds_a_batch(kind, batches) / 1e6
    return contenders


def measure_masked(
    corpus: MeasuredCorpus, rows: PackedRows, peers: Peers, repetitions: int, batches: int
) -> list[Result]:
    """`masked_batches` with the collator as users call it, and with a hand-tuned call of its masking."""
    results = []
    for kind, name, goal in (
        ("documented", "masked_batches", Goal(ours=60.0, ratio=30.0)),
        ("tuned", "masked_batches, peers with a tuned collate", Goal()),
    ):
        contenders = {"ours": lambda: _ours(corpus, rows)} | _of_peers(peers, rows, kind, batches)
        found = medians(interleaved(contenders, repetitions, name))
        results.append(Result(name, "million tokens/s", "higher", found.pop("ours"), found, goal))
    return results


def measure_short_documents(corpus: MeasuredCorpus, rows: PackedRows, repetitions: int) -> Result:
    """Ours on dictionaries: many short documents a row. A peer that is given packed rows does not feel it."""
    name = "masked_batches, dictionaries (short documents)"
    found = medians(interleaved({"ours": lambda: _ours(corpus, rows)}, repetitions, name))
    return Result(name, "million tokens/s", "higher", found["ours"])


def measure_raw(corpus: MeasuredCorpus, peers: Peers, repetitions: int, batches: int) -> Result:
    """`raw_rows`: int64 rows of documents end to end, nothing masked, against litdata's blocks of tokens."""
    check = open_rows(corpus.directory, "clm", "concatenate")
    total = steps_an_epoch(check)
    tokens = np.concatenate([rows.tokens.ravel() for rows in rows_in_order(check, total)])
    text = int((tokens != BERT_IDS["sep"]).sum() - (tokens == BERT_IDS["pad"]).sum())
    left_over = (check.num_rows - total * BATCH_ROWS + 1) * SEQUENCE_LENGTH
    assert corpus.num_tokens - left_over <= text <= corpus.num_tokens, "not every token was delivered once"

    def ours() -> float:
        before = time.perf_counter()
        stream = open_rows(corpus.directory, "clm", "concatenate")
        for rows in rows_in_order(stream, _EPOCHS * total):
            rows.tokens.astype(np.int64)
        return _EPOCHS * total * BATCH_ROWS * SEQUENCE_LENGTH / (time.perf_counter() - before) / 1e6

    def litdata(peer: Peer) -> float:
        return BATCH_ROWS * SEQUENCE_LENGTH / seconds_a_batch(peer.batches(raw_batch), batches) / 1e6

    contenders = {"ours": ours}
    if "litdata" in peers.here:
        contenders["litdata"] = lambda: litdata(peers.here["litdata"])
    found = medians(interleaved(contenders, repetitions, "raw_rows"))
    return Result("raw_rows", "million tokens/s", "higher", found.pop("ours"), found, Goal(ratio=3.0))
