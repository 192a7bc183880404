"""Special ids are taken off the ends, inside documents are refused or cut at: against a plain reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.corpus.special_ids import IdFacts, id_facts, sentence_starts, strip
from pipeline.corpus.token_source import TokenBatch
from pipeline.corpus.tokenizer import TokenizerFacts
from tests.unit.corpus.foreign_files import write_tokenizer

EOD, PAD, CLS = 9, 0, 1
MARKS = np.isin(np.arange(10), (EOD, PAD, CLS))
FACTS = IdFacts(vocab_size=10, is_mark=MARKS, eod=EOD, unknown=None, begins_word=None)


def batch_of(documents: list[list[int]], sentences: list[int] | None = None) -> TokenBatch:
    borders = np.cumsum([0, *map(len, documents)])
    tokens = np.array([token for document in documents for token in document], np.int64)
    starts = None if sentences is None else np.array(sentences, np.int64)
    return TokenBatch([f"d/{number}" for number in range(len(documents))], tokens, borders, starts)


def cut_slowly(document: list[int]) -> list[list[int]] | None:
    """Pieces of a document between end-of-document ids; None if another special id stands inside."""
    marks = {EOD, PAD, CLS}
    while document and document[0] in marks:
        document = document[1:]
    while document and document[-1] in marks:
        document = document[:-1]
    pieces: list[list[int]] = [[]]
    for token in document:
        if token == EOD:
            pieces.append([])
        elif token in marks:
            return None
        else:
            pieces[-1].append(token)
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("batch_tokens", [3, 1 << 20])
@pytest.mark.parametrize("ids", [[2, EOD], [2, 3, 4, EOD], [2, 3, 4, 5, 6, 7, EOD, PAD, CLS], [2, 3], [EOD, PAD]])
def test_pieces_are_those_of_the_reference(batch_tokens: int, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.corpus.special_ids.BATCH_TOKENS", batch_tokens)
    generator = np.random.default_rng(len(ids))
    for _ in range(300):
        num_documents = int(generator.integers(1, 9))
        check([generator.choice(ids, int(generator.integers(0, 9))).tolist() for _ in range(num_documents)])


def check(documents: list[list[int]]) -> None:
    expected = [cut_slowly(document) for document in documents]
    batch = batch_of(documents)
    if None in expected:
        name = batch.ids[expected.index(None)]
        with pytest.raises(UserError, match=f"Document '{name}' holds the special id [01] at token"):
            strip(batch, FACTS, cuts_at_eod=True)
        return
    pieces = strip(batch, FACTS, cuts_at_eod=True)
    found = [batch.tokens[begin:end].tolist() for begin, end in zip(pieces.begin, pieces.end, strict=True)]
    assert found == [piece for of_document in expected if of_document for piece in of_document]
    assert pieces.document.tolist() == [number for number, found in enumerate(expected) for _ in found or ()]
    assert pieces.num_cuts == sum(max(0, len(found or ()) - 1) for found in expected)
    assert pieces.num_stripped == int(MARKS[batch.tokens].sum())


def test_an_end_of_document_inside_is_refused_where_documents_are_rows() -> None:
    with pytest.raises(UserError) as caught:
        strip(batch_of([[2], [1, 2, 3, 9, 4, 9]]), FACTS, cuts_at_eod=False)
    message = str(caught.value)
    assert "Document 'd/1' holds the special id 9 at token 3, between tokens of text" in message
    assert "add_special_tokens=False" in message


@pytest.mark.parametrize("wrong", [-1, 10, 70_000])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    with pytest.raises(UserError) as caught:
        strip(batch_of([[2, 3], [], [4, 5, wrong]]), FACTS, cuts_at_eod=True)
    message = str(caught.value)
    assert f"Document 'd/2' holds the id {wrong} at token 2; the tokenizer has 10 ids (0 to 9)" in message
    assert "Give the --tokenizer that the source was tokenised with." in message


def test_sentences_of_pieces() -> None:
    batch = batch_of([[1, 2, 3, 9, 9, 4, 5, 6, 9], [2]], sentences=[0, 2, 5, 5, 6, 8, 9])
    pieces = strip(batch, FACTS, cuts_at_eod=True)
    starts = [sentence_starts(batch, int(begin), int(end)) for begin, end in zip(pieces.begin, pieces.end, strict=True)]
    assert [found.tolist() for found in starts if found is not None] == [[0, 1], [0, 1], [0]]


def test_the_facts_of_real_tokenizers(tmp_path: Path) -> None:
    gpt2 = write_tokenizer(tmp_path / "gpt2", "gpt2")
    facts = id_facts(gpt2, tmp_path / "gpt2", words=True)
    end_of_text = gpt2.vocab_size - 1
    assert np.flatnonzero(facts.is_mark).tolist() == [end_of_text]
    assert (facts.eod, facts.unknown, facts.begins_word) == (end_of_text, None, None)
    bert = write_tokenizer(tmp_path / "bert", "bert")
    facts = id_facts(bert, tmp_path / "bert", words=True)
    # [UNK] stands for text.
    assert np.flatnonzero(facts.is_mark).tolist() == [0, 2, 3, 4]
    assert (facts.eod, facts.unknown) == (None, 1)
    assert facts.begins_word is not None
    vocabulary = _vocabulary(tmp_path / "bert")
    assert {token for token, number in vocabulary.items() if not facts.begins_word[number]} == {
        token for token in vocabulary if token.startswith("##")
    }
    assert id_facts(bert, tmp_path / "bert", words=False).begins_word is None


def _vocabulary(directory: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()


def test_an_unknown_id_with_no_other_part_to_play_is_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "gpt2", "gpt2")
    special: dict[str, int | None] = {"unk": 3, "eos": 4, "pad": None}
    facts = id_facts(TokenizerFacts("", 10, special, [3, 4]), tmp_path / "gpt2", words=True)
    assert np.flatnonzero(facts.is_mark).tolist() == [4]
    assert facts.unknown == 3
