"""Digests: every input counts, ranks do not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.digest import batch_digest, combine_row_digests, row_digests
from pipeline.data.gather import filler_rows, join_rows, split_rows
from pipeline.data.rows import RowFormat, Rows
from pipeline.data.stream import open_stream
from tests.corpora import random_lengths, write_corpus


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    corpus = write_corpus(tmp_path_factory.mktemp("data") / "corpus", random_lengths(0, 3, 25))
    stream = open_stream(
        corpus.files, kind="bert", sequence_length=32, global_batch_size=12, packing="best_fit", open_shards=4
    )
    return stream.rows(4)


def test_a_digest_is_sha256_of_the_documented_bytes(rows: Rows) -> None:
    labels = rows.tokens.astype(np.int64) + 1
    row = 3
    own = rows.segment_row == row
    columns = (rows.document, rows.offset, rows.segment_start, rows.segment_length)
    numbers = [rows.row_numbers[row], own.sum(), *np.concatenate([column[own] for column in columns])]
    expected = hashlib.sha256(np.array([*numbers, *rows.tokens[row], *labels[row]], "<i8").tobytes()).digest()
    assert row_digests(rows, rows.tokens, labels)[row].tobytes() == expected


def test_every_input_changes_the_digest_of_its_row_only(rows: Rows) -> None:
    labels = np.full(rows.tokens.shape, -100)
    digests, combined = batch_digest(rows, rows.tokens, labels)
    segment = int(np.flatnonzero(rows.segment_row == 5)[0])
    changed: list[tuple[Rows, np.ndarray, np.ndarray]] = []
    for name in ("document", "offset", "segment_start", "segment_length"):
        column = getattr(rows, name).copy()
        column[segment] += 1
        changed.append((replace(rows, **{name: column}), rows.tokens, labels))
    for place in range(2):
        cells = [rows.tokens.copy(), labels.copy()]
        cells[place][5, 31] += 1
        changed.append((rows, cells[0], cells[1]))
    for other in changed:
        other_digests, other_combined = batch_digest(*other)
        assert np.flatnonzero((other_digests != digests).any(axis=1)).tolist() == [5]
        assert other_combined != combined


def test_parts_and_order_of_rows_do_not_matter(rows: Rows) -> None:
    labels = np.full(rows.tokens.shape, -100)
    _, expected = batch_digest(rows, rows.tokens, labels)
    for sizes in ([12], [5, 7], [1] * 12):
        parts = split_rows(rows, sizes)[::-1]
        numbers = np.concatenate([part.row_numbers for part in parts])
        digests = np.concatenate([row_digests(part, part.tokens, np.full(part.tokens.shape, -100)) for part in parts])
        assert combine_row_digests(numbers, digests) == expected


def test_filler_rows_are_not_counted(rows: Rows) -> None:
    form = RowFormat(rows.tokens.shape[1], (1,), (2,), 0, end_only_at_document_end=False)
    filled = join_rows([rows, filler_rows(3, form, like=rows)])
    digests, combined = batch_digest(filled, filled.tokens, np.full(filled.tokens.shape, -100))
    expected, expected_combined = batch_digest(rows, rows.tokens, np.full(rows.tokens.shape, -100))
    assert combined == expected_combined
    assert np.array_equal(digests[:-3], expected)
    assert not digests[-3:].any()


def test_the_second_parts_of_pairs_count(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(0, 1, 40))
    stream = open_stream(corpus.files, kind="bert", sequence_length=32, global_batch_size=8, packing="pairs_nsp")
    pairs = stream.rows(0)
    labels = np.full(pairs.tokens.shape, -100)
    expected = row_digests(pairs, pairs.tokens, labels)
    for name in ("second_document", "second_offset", "second_start"):
        column = getattr(pairs, name).copy()
        column[0] += 1
        found = row_digests(replace(pairs, **{name: column}), pairs.tokens, labels)
        assert np.flatnonzero((found != expected).any(axis=1)).tolist() == [0]


def test_integer_types_do_not_matter(rows: Rows) -> None:
    labels = np.full(rows.tokens.shape, -100)
    narrow = (rows.tokens.astype(np.int32), labels.astype(np.int16))
    assert batch_digest(rows, *narrow)[1] == batch_digest(rows, rows.tokens, labels)[1]
