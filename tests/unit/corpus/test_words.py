"""Words of tokens: as the pre-tokenizer cuts them, whatever the kind of vocabulary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipeline.corpus.encoding import encode_texts
from pipeline.corpus.words import word_starts
from tests.unit.corpus.writing import make_texts

PARTS = ["sea", "Whale", "unbelievable", " ", " ", "\n", "\n\n", ".", "é", "😀", "'s", "12", "  ", "日本", "\t", "x"]
SPACES = "\n\t▁ĠĊĉ"
"""As they stand in text, Unigram and byte-level tokens."""


def random_text(generator: np.random.Generator) -> str:
    """Without white space at its beginning, as clean documents are."""
    return "x" + "".join(generator.choice(PARTS, int(generator.integers(1, 60))).tolist())


def texts() -> list[str]:
    generator = np.random.default_rng(0)
    return [*make_texts(30), *(random_text(generator) for _ in range(300))]


def trained(model: Any, trainer: Any, normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    return trained(
        models.WordPiece(unk_token="[UNK]"), trainer, normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    )


def byte_bpe(**settings: bool) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return trained(models.BPE(), trainer, None, pre_tokenizers.ByteLevel(**settings))


def unigram(pre_tokenizer: Any) -> Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer = trained(models.Unigram(), trainer, normalizers.NFC(), pre_tokenizer)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": wordpiece,
    "gpt2": lambda: byte_bpe(add_prefix_space=False, trim_offsets=False),
    "roberta": lambda: byte_bpe(add_prefix_space=False, trim_offsets=True),
    "prefix": lambda: byte_bpe(add_prefix_space=True, trim_offsets=True),
    "unigram": lambda: unigram(pre_tokenizers.Metaspace()),
}


def slow_starts(tokenizer: Tokenizer, text: str) -> list[bool]:
    """Every pre-token through the model by itself: its first token begins a word, and those with white space ahead."""
    normalized = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    starts: list[bool] = []
    for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized):
        tokens = tokenizer.model.tokenize(word)
        starts += [number == 0 or token.value[0] in SPACES for number, token in enumerate(tokens)]
    return starts


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_pre_tokenizer(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tried = texts()
    found = encode_texts(tokenizer, tried, 1 << 20, sentences=False, words=True)
    for text, encoded in zip(tried, found, strict=True):
        assert encoded.word_starts.tolist() == slow_starts(tokenizer, text), text


def test_wordpiece_continues_words_with_its_mark() -> None:
    tokenizer = wordpiece()
    [encoded] = encode_texts(tokenizer, ["unbelievable seaxx, don't"], 1 << 20, sentences=False, words=True)
    tokens = [tokenizer.id_to_token(number) for number in encoded.tokens.tolist()]
    assert encoded.word_starts.tolist() == [not token.startswith("##") for token in tokens]
    assert 0 < encoded.word_starts.sum() < len(tokens)


@pytest.mark.parametrize("kind", ["unsplit unigram", "no pre-tokenizer", "unsplit bytes"])
def test_without_a_splitting_pre_tokenizer_white_space_tells(kind: str) -> None:
    """Words as SentencePiece's: a token that begins with the mark, but for the mark alone before its word."""
    if kind == "unsplit unigram":
        tokenizer, mark = unigram(pre_tokenizers.Metaspace(split=False)), "▁"
    elif kind == "unsplit bytes":
        tokenizer, mark = byte_bpe(add_prefix_space=False, use_regex=False, trim_offsets=True), "Ġ"
    else:
        normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=200, max_token_length=8, show_progress=False)
        tokenizer, mark = trained(models.BPE(), trainer, normalizer, None), "▁"
    text = "the sea is high and the whale is unbelievable"
    [encoded] = encode_texts(tokenizer, [text], 1 << 20, sentences=False, words=True)
    tokens = [tokenizer.id_to_token(number) for number in encoded.tokens.tolist()]
    expected = [number == 0 or token.startswith(mark) for number, token in enumerate(tokens)]
    assert encoded.word_starts.tolist() == expected, tokens
    assert 2 < sum(expected) < len(tokens)


def test_the_bytes_of_a_character_are_one_word() -> None:
    """Offsets of byte-level tokens: all on one character, the space before it with the first or with none."""
    text = "a 😀b"
    for first in ((1, 3), (2, 3)):
        offsets = np.array([(0, 1), first, (2, 3), (2, 3), (3, 4)], np.int64)
        assert word_starts(text, [0] * 5, offsets).tolist() == [True, True, False, False, False]
    assert word_starts("", [0], np.zeros((1, 2), np.int64)).tolist() == [True]


def test_a_token_of_no_word_is_a_word() -> None:
    offsets = np.array([(0, 1), (1, 2), (2, 3)], np.int64)
    assert word_starts("abc", [0, None, None], offsets).tolist() == [True, True, True]


def test_white_space_is_that_of_python() -> None:
    points = [point for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    text = "".join(f"{chr(point)}x" for point in points if point < 0x4000 or chr(point).isspace())
    offsets = np.array([(number, number + 1) for number in range(1, len(text), 2)], np.int64)
    found = word_starts(text, [0] * len(offsets), offsets)
    assert found[1:].tolist() == [text[begin - 1].isspace() for begin in offsets[1:, 0].tolist()]
