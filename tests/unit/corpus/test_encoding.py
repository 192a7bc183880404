"""Texts become the tokens of the whole text, and sentences keep their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.corpus import TokenizerConfig
from pipeline.corpus.cleaning import clean_text
from pipeline.corpus.encoding import encode_texts, piece_characters, pieces_of
from pipeline.corpus.sentences import sentence_starts
from pipeline.corpus.tokenizer import encoder, make_tokenizer
from tests.unit.corpus.writing import make_texts

STYLES = {
    "bert": TokenizerConfig(vocab_size=300),
    "roberta": TokenizerConfig(kind="byte_bpe", style="roberta", vocab_size=500),
    "gpt2": TokenizerConfig(kind="byte_bpe", style="gpt2", vocab_size=500),
}
SENTENCES = "It rained. We stayed at home.\n\nThe sea was high! “Come,” said the captain. He left."


@pytest.fixture(scope="module", params=STYLES)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp(request.param)
    texts = [*make_texts(100), SENTENCES]
    make_tokenizer(STYLES[request.param], lambda: iter(texts), directory / "tokenizer", directory / "facts.json")
    return encoder(directory / "tokenizer")


def random_text(generator: np.random.Generator) -> str:
    alphabet = ["sea", "Whale", " ", "\n", "\n\n", ".", "é", "😀", "'s", "12", "  ", "日本", "\t"]
    return "x" + "".join(generator.choice(alphabet, int(generator.integers(1, 200))).tolist())


def test_pieces_give_the_tokens_of_the_whole_text(backend: Any) -> None:
    generator = np.random.default_rng(0)
    assert piece_characters(backend) < 1 << 20
    for number in range(200):
        text = random_text(generator) if number % 2 else clean_text(random_text(generator)) or "x"
        pieces = pieces_of(text, 5)
        assert "".join(pieces) == text
        [found] = encode_texts(backend, [text], 5, sentences=False, words=True)
        [whole] = encode_texts(backend, [text], 1 << 20, sentences=False, words=True)
        assert found.tokens.tolist() == backend.encode(text, add_special_tokens=False).ids
        np.testing.assert_array_equal(found.word_starts, whole.word_starts)


def test_sentences_start_where_their_text_starts(backend: Any) -> None:
    text = SENTENCES
    [encoded] = encode_texts(backend, [text], 20, sentences=True, words=False)
    tokens, starts = encoded.tokens, encoded.sentence_starts
    assert len(encoded.word_starts) == 0
    characters = sentence_starts(text)
    assert len(starts) == len(characters) == 5
    ends = [*starts[1:], len(tokens)]
    for begin, end, first, last in zip(starts, ends, characters, [*characters[1:], len(text)], strict=True):
        words = backend.decode(tokens[begin:end].tolist())
        assert "".join(words.split()).lower() == "".join(text[first:last].split()).lower()


def test_many_texts_keep_their_order(backend: Any) -> None:
    texts = make_texts(20, seed=3)
    for text, found in zip(texts, encode_texts(backend, texts, 30, sentences=True, words=True), strict=True):
        tokens, starts = found.tokens, found.sentence_starts
        assert tokens.tolist() == backend.encode(text, add_special_tokens=False).ids
        assert len(found.word_starts) == len(tokens)
        assert starts[0] == 0
        assert (np.diff(starts) > 0).all()
        assert starts[-1] < len(tokens)


def test_unknown_pre_tokenizers_are_cut_rarely() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert piece_characters(backend) == 1 << 20
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    assert piece_characters(backend) == 1 << 20


def test_tokenizers_that_change_the_ends_of_a_text_are_cut_rarely() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert piece_characters(backend) == 1 << 20
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert piece_characters(backend) < 1 << 20
    backend.normalizer = normalizers.Strip()
    assert piece_characters(backend) == 1 << 20


def test_a_text_may_have_no_tokens(tmp_path: Path) -> None:
    make_tokenizer(STYLES["bert"], lambda: iter(make_texts(20)), tmp_path / "tokenizer", tmp_path / "facts.json")
    [found] = encode_texts(encoder(tmp_path / "tokenizer"), ["\u200d"], 100, sentences=True, words=True)
    assert len(found.tokens) == len(found.sentence_starts) == len(found.word_starts) == 0
