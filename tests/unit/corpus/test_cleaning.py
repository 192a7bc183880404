"""Cleaning is a pure function of the text."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from pipeline.corpus.cleaning import clean_text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("e\u0301te\u0301", "été"),
        ("e\x00\u0301", "é"),
        ("\ufeffone\x07 two\x9f", "one two"),
        ("a  \t b\u00a0\u3000c", "a b c"),
        ("one\r\ntwo\rthree\u2028four", "one\ntwo\nthree\nfour"),
        ("one \n  two", "one\ntwo"),
        ("one\n \n\t\n\n two", "one\n\ntwo"),
        ("one\u2029two", "one\n\ntwo"),
        ("  \n\n ends \n\n", "ends"),
        (" \x00\n\u200b".replace("\u200b", ""), ""),
        ("می\u200cخواهم 👩\u200d👧", "می\u200cخواهم 👩\u200d👧"),
    ],
)
def test_examples(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_cleaning_twice_changes_nothing_and_leaves_what_it_promises() -> None:
    generator = np.random.default_rng(0)
    alphabet = [*list("ab é \n\n\t\r\x0b\x0c\x85\x00\x1f\x7f\ufeff\u2028\u2029\xa0\u3000\u2000"), "é", "́"]
    for _ in range(500):
        text = "".join(generator.choice(alphabet, int(generator.integers(0, 40))).tolist())
        clean = clean_text(text)
        assert clean_text(clean) == clean
        assert unicodedata.is_normalized("NFC", clean)
        assert clean == clean.strip()
        assert "  " not in clean
        assert "\n\n\n" not in clean
        assert all(unicodedata.category(character) != "Cc" or character == "\n" for character in clean)


def test_paragraphs_stay_paragraphs() -> None:
    paragraphs = ["First line\nsecond line.", "Second paragraph.", "Third."]
    assert clean_text(" \r\n\r\n  ".join(paragraphs)).split("\n\n") == paragraphs
