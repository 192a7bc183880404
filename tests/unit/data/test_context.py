"""Documents longer than a row, cut into pieces that begin with the end of the piece before."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.config.run import ObjectiveConfig, Packing
from pipeline.data.best_fit import cut_documents, cuts_of
from pipeline.data.digest import batch_digest
from pipeline.data.packing import PACKINGS
from pipeline.data.pieces import ShardLengths, as_pieces
from pipeline.data.row_format import RowKind, row_format
from pipeline.data.row_tables import count_rows, table_name
from pipeline.data.rows import RowFormat, Rows
from pipeline.data.stream import RowStream, open_stream
from pipeline.objectives.objective import Objective
from pipeline.objectives.predictions import KEPT
from pipeline.objectives.registry import make_objective
from pipeline.train.identity import check_identity
from tests.corpora import SPECIAL_IDS, Corpus, random_lengths, write_corpus

EOS = SPECIAL_IDS["eos"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("context") / "corpus", random_lengths(0, 3, 30), vocab_size=200)


def stream_of(
    corpus: Corpus, packing: str = "best_fit", length: int = 32, context: int = 0, kind: RowKind = "gpt"
) -> RowStream:
    return open_stream(
        corpus.files,
        kind=kind,
        sequence_length=length,
        global_batch_size=12,
        packing=packing,
        seed=1,
        context_tokens=context,
    )


def objective_of(
    corpus: Corpus, packing: Packing, length: int, kind: RowKind = "gpt", cross: bool = False
) -> Objective:
    name: Any = "clm" if kind == "gpt" else "mlm"
    form = row_format(corpus.manifest, kind, length)
    return make_objective(
        ObjectiveConfig(name=name), corpus.manifest, form, 3, packing=packing, cross_document_attention=cross
    )


def epoch_rows(stream: RowStream, epoch: int) -> Rows:
    return stream.rows_numbered(np.arange(epoch * stream.num_rows, (epoch + 1) * stream.num_rows))


FROZEN = {
    ("gpt", "best_fit"): (220, "31b1338a002cd420"),
    ("gpt", "one_document"): (256, "8b6cf9386b43e002"),
    ("gpt", "concatenate"): (210, "139ed12ea817b934"),
    ("bert", "best_fit"): (230, "1ccb39c10914561e"),
    ("bert", "one_document"): (262, "462a6473ad28d603"),
    ("bert", "concatenate"): (227, "4f72af033d3d842e"),
}
"""Rows an epoch, and sha256 of the digests of 40 steps joined, as they were before rows could have a context."""


@pytest.mark.parametrize(("kind", "packing"), FROZEN)
def test_without_context_nothing_has_changed(corpus: Corpus, kind: RowKind, packing: Packing) -> None:
    stream, objective = stream_of(corpus, packing, kind=kind), objective_of(corpus, packing, 32, kind)
    digests = ""
    for step in range(40):
        rows = stream.rows(step)
        assert rows.segment_context is None
        digests += batch_digest(rows, *objective.labels_of(rows))[1]
    assert (stream.num_rows, hashlib.sha256(digests.encode()).hexdigest()[:16]) == FROZEN[kind, packing]


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(("length", "context"), [(32, 1), (32, 8), (17, 5), (64, 48), (9, 7)])
@pytest.mark.parametrize("packing", ["best_fit", "one_document"])
def test_every_token_is_predicted_once_with_its_context(
    corpus: Corpus, packing: Packing, length: int, context: int, cross: bool
) -> None:
    """Every token of a document but its first, and the end of the text; with cross-document attention the first one too
    where it follows another document in its row."""
    documents = [document.tokens for shard in corpus.documents["train"] for document in shard]
    stream, objective = stream_of(corpus, packing, length, context), objective_of(corpus, packing, length, cross=cross)
    places = []
    for epoch in range(2):
        rows = epoch_rows(stream, epoch)
        input_ids, labels = objective.labels_of(rows)
        assert np.array_equal(input_ids, rows.tokens)
        assert rows.segment_context is not None
        predicted: Counter[tuple[int, int]] = Counter()
        counted = 0
        columns = (rows.segment_row, rows.segment_start, rows.segment_length, rows.document, rows.offset)
        for row, start, size, document, offset in zip(*(column.tolist() for column in columns), strict=True):
            text = np.append(documents[document], EOS)[offset : offset + size]
            assert rows.tokens[row, start : start + size].tolist() == text.tolist()
            for slot in range(max(start, 1), start + size):  # the token at `slot` is predicted one place before
                if labels[row, slot - 1] != KEPT:
                    assert labels[row, slot - 1] == rows.tokens[row, slot]
                    predicted[document, offset + slot - start] += 1
                    counted += 1
                    assert offset == 0 or slot - start >= context
        assert counted == int((labels != KEPT).sum())
        first_ones = {(document, 0) for document in range(len(documents))}
        every = {(number, at) for number, tokens in enumerate(documents) for at in range(1, len(tokens) + 1)}
        assert set(predicted) - first_ones == every
        assert set(predicted.values()) == {1}
        assert cross or not first_ones & set(predicted)
        contexts = np.where(rows.offset > 0, context, 0)
        assert np.array_equal(rows.segment_context, contexts)
        assert int(rows.segment_length.sum()) == sum(len(tokens) + 1 for tokens in documents) + int(contexts.sum())
        places.append(sorted(zip(rows.document.tolist(), rows.offset.tolist(), strict=True)))
    assert places[0] != places[1] or packing == "one_document" or length == 9  # cuts move every epoch


def test_cuts_of_random_lengths() -> None:
    """Pieces follow each other with the context between them, end with the document, and are as many under any key."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        cap = int(generator.integers(2, 60))
        context = int(generator.integers(0, cap))
        lengths = generator.integers(1, 400, 20).astype(np.uint32)
        words, num_full = cut_documents(lengths, cap, context, np.uint64(generator.integers(0, 2**63)))
        pieces = as_pieces(words)
        assert (pieces["length"][:num_full] == cap).all()
        for document, total in enumerate(lengths.tolist()):
            own = np.sort(pieces[pieces["document"] == document], order="offset")
            full, rest = cuts_of(total, cap, context)
            assert sorted(own["length"].tolist()) == sorted([cap] * full + [rest] * (rest > 0))
            ends = own["offset"].astype(int) + own["length"]
            assert own["offset"][0] == 0
            assert (own["offset"][1:] == ends[:-1] - context).all()
            assert ends[-1] == total
            assert own["flags"].tolist() == [0] * (len(own) - 1) + [1]
            assert len(own) == 1 if total <= cap else (own["length"] > context).all()


@pytest.mark.parametrize("packing", ["best_fit", "one_document"])
def test_the_number_of_rows_is_that_of_the_plan_for_any_keys(packing: str) -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        length = int(generator.integers(8, 80))
        context = int(generator.integers(1, length - 1))
        form = RowFormat(length, (), (5,), 0, end_only_at_document_end=True, context_tokens=context)
        shard = ShardLengths(generator.integers(1, 300, 50))
        found = PACKINGS[packing]
        plans = [found.plan(shard, form, *generator.integers(0, 2**63, 2).tolist()) for _ in range(2)]
        assert {plan.num_rows for plan in plans} == {found.count_rows(shard, form)}


def test_the_rows_of_ranks_know_their_context(corpus: Corpus) -> None:
    stream = stream_of(corpus, length=17, context=6)
    objective = objective_of(corpus, "best_fit", 17)
    whole = objective.labels_of(stream.rows(3))[1]
    shares = [objective.labels_of(stream.rows(3, rank, 4))[1] for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)
    (batch,) = objective.prepare(stream.rows(3), 1)
    assert batch.num_predictions == int((whole != KEPT).sum())
    assert batch.num_real_tokens == int(stream.rows(3).segment_length.sum())


def test_tables_and_settings_have_the_context_in_their_names(corpus: Corpus) -> None:
    table = corpus.manifest.splits["train"]
    forms = [row_format(corpus.manifest, "gpt", 32, context_tokens=context) for context in (0, 8)]
    names = [table_name("train", table, PACKINGS["best_fit"], form) for form in forms]
    assert names[0].startswith("rows/best_fit-2-32-1.train-")
    assert names[1].startswith("rows/best_fit-2-32-1-8.train-")
    assert stream_of(corpus, context=8).num_rows > stream_of(corpus).num_rows
    counted = count_rows(corpus.directory, "best_fit", "gpt", 32, context_tokens=8)
    assert counted["rows_train"] == stream_of(corpus, context=8).num_rows
    saved, present = ({f"stream.{key}": value for key, value in stream_of(corpus, context=c).settings_before(3).items()}
                      for c in (0, 8))  # fmt: skip
    with pytest.raises(UserError, match=r"stream\.context_tokens: checkpoint 0, now 8 \(data\.context_tokens\)"):
        check_identity(saved, present, "step-3")


@pytest.mark.parametrize("packing", ["concatenate", "pairs", "pairs_nsp", "pairs_sop"])
def test_packings_that_cannot_repeat_tokens_say_so(corpus: Corpus, packing: str) -> None:
    with pytest.raises(UserError, match=f"packing {packing} cannot repeat tokens; set data.packing to best_fit or one"):
        stream_of(corpus, packing, context=8)
    with pytest.raises(UserError, match="cannot repeat tokens"):
        count_rows(corpus.directory, packing, "gpt", 32, context_tokens=8)


def test_rows_that_cannot_have_such_a_context_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is 8: rows of the BERT kind have no context"):
        stream_of(corpus, context=8, kind="bert")
    for context in (31, 32, -1):
        with pytest.raises(UserError, match=rf"data\.context_tokens is {context}; with .* 32 it must be 0 to 30"):
            stream_of(corpus, context=context)
    assert stream_of(corpus, context=30).num_rows > 0
