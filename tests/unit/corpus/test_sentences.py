"""Sentence boundaries by rule, and their way from characters to tokens."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.corpus.sentences import sentence_starts, token_starts


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained. ", "We stayed."],
        ["Mr. and Mrs. Bennet came. ", "Dr. J. Smith, e.g., left at 5 p.m. yesterday."],
        ['"Why?" said he. ', '"I do not know!" ', "She left."],
        ["“Is it so?” ", "“It is.” ", "(He was sure.) ", "Then… ", "Nothing."],
        ["See No. 5 and p. 12. ", "No. ", "I said no. ", "Then he went."],
        ["It costs 3.50 now. ", "Version 2.0 is out!\n", "Good."],
        ["A heading\n\n", "The text begins. ", "It ends.\n\n", "Another paragraph"],
        ["今日は晴れ。", "明日は雨？", "そうです。"],
        ["यह वाक्य है। ", "यह दूसरा है।"],
        ["no boundary at all"],
        ["wait... what? ", "Yes."],
        ["It was I. ", "You knew."],
    ],
)
def test_examples(sentences: list[str]) -> None:
    text = "".join(sentences)
    starts = sentence_starts(text)
    assert [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)] == sentences


def test_starts_increase_from_zero_and_never_pass_the_end() -> None:
    generator = np.random.default_rng(0)
    alphabet = [*list("aB.!? \n\n\"'”).。…"), "Mr.", "No. 5"]
    for _ in range(500):
        text = "x" + "".join(generator.choice(alphabet, int(generator.integers(0, 50))).tolist())
        starts = sentence_starts(text)
        assert starts[0] == 0
        assert all(before < after for before, after in itertools.pairwise(starts))
        assert starts[-1] < len(text)


def test_a_sentence_starts_at_the_token_that_holds_its_first_character() -> None:
    #        "It rained. We stayed." with a byte-level tokenizer: the space belongs to the token behind it
    ends = np.array([2, 9, 10, 13, 20, 21])
    assert token_starts([0, 11], ends).tolist() == [0, 3]


def test_sentences_without_a_token_vanish() -> None:
    ends = np.array([2, 5, 9])
    assert token_starts([0, 3, 4, 9, 12], ends).tolist() == [0, 1]
    assert token_starts([0], np.array([0, 0, 4])).tolist() == [0]  # tokens of removed characters at the start
