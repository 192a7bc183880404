"""The other strand: complements of a vocabulary, rows that are replaced, and what of them stays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.corpus import TokenizerConfig
from pipeline.corpus.tokenizer import make_tokenizer
from pipeline.data.gather import split_rows
from pipeline.data.reverse_complement import ReverseComplement, complement_table, read_complements
from pipeline.data.row_format import RowKind
from pipeline.data.rows import RowFormat, Rows
from pipeline.data.stream import open_stream
from tests.corpora import NUM_SPECIAL, SPECIAL_IDS, Corpus, random_lengths, write_corpus

LENGTH = 48
LETTERS = "ACGTNRYSWKMBDHV"
IDS = {letter: NUM_SPECIAL + number for number, letter in enumerate(LETTERS)}
VOCAB_SIZE = NUM_SPECIAL + len(LETTERS)
TABLE = complement_table(IDS, VOCAB_SIZE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Documents over the nucleotide letters, with words and sentences at random places."""
    return write_corpus(
        tmp_path_factory.mktemp("strands") / "corpus", random_lengths(0, 3, 30), vocab_size=VOCAB_SIZE, words=True
    )


def planned(corpus: Corpus, kind: RowKind, packing: str, step: int = 0) -> tuple[Rows, RowFormat]:
    stream = open_stream(
        corpus.files,
        kind=kind,
        sequence_length=LENGTH,
        global_batch_size=24,
        packing=packing,
        words=True,
        sentences=True,
    )
    return stream.rows(step), stream.format_of(LENGTH)


def one_row(text: str, ids: dict[str, int], form: RowFormat, end: int = 1) -> Rows:
    """A row of one segment; the end ids may be left out."""
    tokens = np.full((1, form.sequence_length), form.pad_id, np.uint16)
    inside = [*form.begin_ids, *(ids[letter] for letter in text), *form.end_ids[:end]]
    tokens[0, : len(inside)] = inside
    number = np.zeros(1, np.int64)
    zero = number.astype(np.int32)
    return Rows(tokens, number, zero, zero, np.array([len(inside)], np.int32), number, number, number, zero, zero)


def bert_form(length: int = 16) -> RowFormat:
    return RowFormat(length, (2,), (3,), 0, end_only_at_document_end=False)


def gpt_form(length: int = 16) -> RowFormat:
    return RowFormat(length, (), (5,), 0, end_only_at_document_end=True)


def text_of(rows: Rows, ids: dict[str, int]) -> str:
    names = {number: name for name, number in ids.items()} | {0: "", 2: "<", 3: ">", 5: "|", 1: "?"}
    return "".join(names[number] for number in rows.tokens[0].tolist())


@pytest.mark.parametrize(
    ("form", "end", "text", "expected"),
    [
        (bert_form(), 1, "GATTACA", "<TGTAATC>"),
        (bert_form(), 1, "AACCGGTT", "<AACCGGTT>"),  # a palindrome, as restriction sites are
        (bert_form(), 1, "ATGNRYSWKMBDHV", "<BDHVKMWSRYNCAT>"),
        (bert_form(), 1, "A", "<T>"),
        (gpt_form(), 1, "GATTACA", "TGTAATC|"),
        (gpt_form(), 0, "GATTACA", "TGTAATC"),  # the document goes on in another piece
    ],
)
def test_examples_by_hand(form: RowFormat, end: int, text: str, expected: str) -> None:
    rows = one_row(text, IDS, form, end=end)
    seen = ReverseComplement(1.0, 0, TABLE)(rows, form)
    assert text_of(seen, IDS) == expected
    assert text_of(rows, IDS) != expected or text == "AACCGGTT"  # the rows of the stream are not written to


def test_unknown_letters_go_with_the_text() -> None:
    rows = one_row("GA?C", IDS | {"?": SPECIAL_IDS["unk"] or 1}, bert_form())
    assert text_of(ReverseComplement(1.0, 0, TABLE)(rows, bert_form()), IDS) == "<G?TC>"


def test_kmers_are_complemented_in_reverse_and_stand_in_reverse() -> None:
    """``ACG TAC`` is ``ACGTAC``, whose reverse complement ``GTACGT`` is ``GTA CGT``; overlapping ones turn alike."""
    ids = {"".join(kmer): 6 + number for number, kmer in enumerate(product("ACGT", repeat=3))}
    table = complement_table(ids, 70)
    form = bert_form()
    for kmers, expected in (
        (["ACG", "TAC"], ["GTA", "CGT"]),
        (["ACG", "CGT", "GTA", "TAA"], ["TTA", "TAC", "ACG", "CGT"]),  # ACGTAA and TTACGT
    ):
        rows = one_row("", {}, form)
        rows.tokens[0, 1 : len(kmers) + 2] = [*(ids[kmer] for kmer in kmers), 3]
        seen = ReverseComplement(1.0, 0, table)(
            replace(rows, segment_length=np.array([len(kmers) + 2], np.int32)), form
        )
        assert seen.tokens[0, : len(kmers) + 3].tolist() == [2, *(ids[kmer] for kmer in expected), 3, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"A": 6, "C": 7, "G": 8, "U": 9, "N": 10}, {"A": "U", "C": "G", "G": "C", "U": "A", "N": "N"}),
        ({"A": 6, "t": 7, "a": 8, "T": 9, "-": 10}, {"A": "T", "t": "a", "a": "t", "T": "A", "-": "-"}),
    ],
)
def test_rna_lower_case_and_gaps(text: dict[str, int], expected: dict[str, str]) -> None:
    table = complement_table(text, 12)
    assert {token: table[number] for token, number in text.items()} == {
        token: text[other] for token, other in expected.items()
    }
    assert table[:6].tolist() == list(range(6))
    assert table[11] == 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"A": 6, "T": 7, "E": 8}, "the token 'E' of the tokenizer has no complement: 'E' is no letter of DNA or RNA"),
        ({"AC": 6, "GT": 7, "A7": 8}, "the token 'A7' of the tokenizer has no complement: '7' is no letter"),
        ({"A": 6, "T": 7, " ": 8}, "the token ' ' of the tokenizer has no complement"),
        ({"AAC": 6, "GTT": 7, "ACC": 8}, "'GGT', the reverse complement of the token 'ACC', is not in the vocabulary"),
        ({"A": 6, "U": 7, "T": 8}, "the vocabulary has both T and U"),
    ],
)
def test_vocabularies_without_complements_are_refused(text: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=f"data.reverse_complement: {message}"):
        complement_table(text, 9)


DNA = ["GATTACANNACGT" * 5, "CCGGTTAACCAGT" * 3]


def trained(directory: Path, texts: list[str] = DNA, **config: Any) -> tuple[Path, Any]:
    facts = make_tokenizer(TokenizerConfig(**config), lambda: iter(texts), directory / "t", directory / "facts.json")
    return directory / "t/tokenizer.json", facts


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "character", "style": "bert"},
        {"kind": "character", "style": "gpt2"},
        {"kind": "kmer", "style": "roberta", "kmer": 3, "kmer_letters": "ACGTN", "kmer_overlap": False},
        {"kind": "kmer", "style": "bert", "kmer": 2, "kmer_letters": "ACGU", "kmer_overlap": True},
    ],
)
def test_the_map_of_a_tokenizer_turns_the_text_that_it_decodes(tmp_path: Path, config: dict[str, Any]) -> None:
    from tokenizers import Tokenizer

    path, facts = trained(tmp_path, **config)
    table = read_complements(path, facts)
    assert np.array_equal(table[table], np.arange(facts.vocab_size))
    assert np.array_equal(table[facts.all_special_ids], facts.all_special_ids)
    other = "U" if "U" in config.get("kmer_letters", "") else "T"
    text = "GATTACAACGTC".replace("T", other)
    reverse = text[::-1].translate(str.maketrans("ACGTU", f"{other}GCAA"))
    tokenizer = Tokenizer.from_file(str(path))
    if config.get("kmer_overlap"):
        text, reverse = (" ".join(one[at : at + 2] for at in range(len(one) - 1)) for one in (text, reverse))
    ids, expected = (tokenizer.encode(one, add_special_tokens=False).ids for one in (text, reverse))
    assert len(ids) > 3
    assert table[ids][::-1].tolist() == expected


@pytest.mark.parametrize(
    ("texts", "config", "message"),
    [
        (["MKVLEE"], {"kind": "character", "style": "bert"}, "the token 'E' of the tokenizer has no complement"),
        (
            ["AAAC"],
            {"kind": "kmer", "kmer": 2, "style": "bert", "kmer_letters": ""},
            "'TT', the reverse complement of the token 'AA', is",
        ),
        (DNA, {"kind": "byte_bpe", "style": "gpt2", "vocab_size": 300}, "is a BPE of pieces of any length"),
        (["DNA is text"], {"kind": "wordpiece", "style": "bert", "vocab_size": 100}, "is a WordPiece of pieces of any"),
        (["12 3"], {"kind": "integers", "style": "bert", "num_integers": 9}, "the token '0' of the tokenizer has no"),
    ],
)
def test_tokenizers_that_are_not_of_dna_are_refused(
    tmp_path: Path, texts: list[str], config: dict[str, Any], message: str
) -> None:
    path, facts = trained(tmp_path, texts, **config)
    with pytest.raises(UserError, match=f"data.reverse_complement: .*{message}"):
        read_complements(path, facts)


@pytest.mark.parametrize("content", ["", "{}", "[]", json.dumps({"model": None})])
def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path, corpus: Corpus, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"data.reverse_complement: .*tokenizer\.json cannot be read as a tokenizer"):
        read_complements(tmp_path / "tokenizer.json", corpus.manifest)


CASES = [("bert", "best_fit"), ("gpt", "best_fit"), ("bert", "concatenate"), ("gpt", "concatenate")]
OPTIONAL: tuple[Callable[[Rows], NDArray[np.bool_] | None], ...] = (
    lambda rows: rows.word_starts,
    lambda rows: rows.sentence_starts,
)


@pytest.mark.parametrize(("kind", "packing"), CASES)
def test_every_segment_is_turned_and_its_frame_stays(corpus: Corpus, kind: RowKind, packing: str) -> None:
    """Against a slow reading of every segment, by what the documents hold there; words and sentences go with them."""
    documents = [document for shard in corpus.documents["train"] for document in shard]
    rows, form = planned(corpus, kind, packing)
    seen = ReverseComplement(1.0, 1, TABLE)(rows, form)
    assert seen.word_starts is not None
    assert seen.sentence_starts is not None
    assert rows.sentence_starts is not None
    expected = rows.tokens.astype(np.int64)
    begin, turned = len(form.begin_ids), 0
    columns = (rows.segment_row, rows.segment_start, rows.segment_length, rows.document, rows.offset)
    for row, start, size, number, offset in zip(*(column.tolist() for column in columns), strict=True):
        document = documents[number]
        count = min(size - begin - (kind == "bert"), len(document.tokens) - offset)
        first = start + begin
        expected[row, first : first + count] = TABLE[document.tokens[offset : offset + count]][::-1]
        assert document.words is not None
        assert document.sentences is not None
        for marks, begins in (
            (seen.word_starts, set(np.flatnonzero(document.words).tolist()) | {offset}),
            (seen.sentence_starts, set(document.sentences.tolist())),
        ):
            ends = {at for at in begins if offset < at < offset + count}
            found = np.flatnonzero(marks[row, first : first + count]).tolist()
            assert set(found) == {offset + count - at for at in ends} | ({0} if offset in begins else set())
        turned += count
    np.testing.assert_array_equal(seen.tokens, expected)
    assert seen.tokens.dtype == rows.tokens.dtype
    assert turned > 500


@pytest.mark.parametrize(("kind", "packing"), CASES)
def test_twice_is_the_identity(corpus: Corpus, kind: RowKind, packing: str) -> None:
    for probability in (0.4, 1.0):
        augment = ReverseComplement(probability, 1, TABLE)
        rows, form = planned(corpus, kind, packing, step=2)
        once = augment(rows, form)
        twice = augment(once, form)
        assert not np.array_equal(once.tokens, rows.tokens)
        np.testing.assert_array_equal(twice.tokens, rows.tokens)
        for of in OPTIONAL:
            np.testing.assert_array_equal(of(twice), of(rows))
        changed = (once.tokens != rows.tokens).any(1)
        assert not changed[~augment.chosen(rows.row_numbers)].any()


def test_rows_are_replaced_alike_in_any_batch(corpus: Corpus) -> None:
    rows, form = planned(corpus, "bert", "best_fit")
    augment = ReverseComplement(0.5, 3, TABLE)
    whole = augment(rows, form)
    parts = [augment(part, form) for part in split_rows(rows, [1, 7, 16])]
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), whole.tokens)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_shares(probability: float) -> None:
    """Rows in 1,000 groups of 1,000: the count of a group is binomial. Epochs and seeds are independent."""
    augment = ReverseComplement(probability, 5, TABLE)
    chosen = augment.chosen(np.arange(10**6))
    counts = chosen.reshape(1000, 1000).sum(1)
    variance = 1000 * probability * (1 - probability)
    statistic = float(((counts - 1000 * probability) ** 2 / variance).sum())
    assert abs(statistic - 1000) < 5 * math.sqrt(2 * 1000)
    both = 10**6 * probability**2
    later, other = augment.chosen(np.arange(10**6) + 10**6), replace(augment, seed=6).chosen(np.arange(10**6))
    for second in (later, other, np.roll(chosen, 1)):
        assert abs(int((chosen & second).sum()) - both) < 5 * math.sqrt(both)
    assert not replace(augment, probability=0.0).chosen(np.arange(1000)).any()
    assert replace(augment, probability=1.0).chosen(np.arange(1000)).all()


def test_pairs_are_refused(corpus: Corpus) -> None:
    stream = open_stream(corpus.files, kind="bert", sequence_length=LENGTH, global_batch_size=4, packing="pairs_sop")
    with pytest.raises(ValueError, match="a pair has no reverse complement"):
        ReverseComplement(1.0, 0, TABLE)(stream.rows(0), stream.format_of(LENGTH))
