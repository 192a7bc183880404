"""Sentence boundaries by rule: no model, no download, offsets into the text kept.

datatrove's splitters need spaCy or NLTK and their data. What sentence-pair objectives need is much less: boundaries
that are right nearly always and the same everywhere. A boundary stands

- at every empty line;
- after ``. ! ? …`` (with closing quotes and brackets) and white space, unless the next letter is lower case, and,
  after a full stop, unless the word before is an initial (``J. Austen``), an abbreviation (``Mr.``, ``e.g.``), or an
  abbreviation of a number (``No. 5``, ``p. 12``) before a digit;
- after the full stops of Chinese, Japanese and Indic scripts, with or without white space.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

_BOUNDARY = re.compile(
    r"""
    (?P<paragraph>\n[^\S\n]*\n\s*)
    | (?P<stop>[.!?…]+)[\"'”’»)\]\u2019]*\s+
    | [。！？｡।॥۔؟]+[」』”’）\"')\]]*\s*
    """,
    re.VERBOSE,
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘«—-]*\Z")
_OPENING = re.compile(r"[\"'“‘«(\[¿¡—–\-\s]*")
_LONGEST_ABBREVIATION = 24
_ABBREVIATIONS_TEXT = """
    mr mrs ms messrs mme mlle dr prof rev hon st sr jr esq gen col maj capt lieut lt sgt cpl adm gov pres sen rep
    supt mt ft vs viz etc cf al ed eds trans approx dept est inc ltd co corp bros jan feb mar apr jun jul aug sep
    sept oct nov dec e.g i.e a.m p.m ph.d b.a m.a d.c u.s u.k u.n
"""
_ABBREVIATIONS = frozenset(_ABBREVIATIONS_TEXT.split())
_NUMBER_ABBREVIATIONS = frozenset(
    ("no", "nos", "p", "pp", "vol", "vols", "fig", "figs", "ch", "chap", "sec", "art", "eq", "ca", "c", "v")
)


def sentence_starts(text: str) -> list[int]:
    """Character offsets at which sentences start, increasing from 0; one entry for a text without boundaries."""
    starts = [0]
    for match in _BOUNDARY.finditer(text):
        end = match.end()
        if end >= len(text):
            break
        if match["stop"] is None or _ends_a_sentence(text, match.start(), end, match["stop"]):
            starts.append(end)
    return starts


def _ends_a_sentence(text: str, stop: int, following: int, mark: str) -> bool:
    opening = _OPENING.match(text, following)
    after = opening.end() if opening else following
    next_character = text[after : after + 1]
    if next_character.islower():
        return False
    if mark != ".":
        return True
    word = _WORD_BEFORE.search(text, max(0, stop - _LONGEST_ABBREVIATION), stop)
    before = word.group() if word else ""
    if len(before) == 1 and before.isupper() and before != "I":
        return False
    lowered = before.lower()
    return not (lowered in _ABBREVIATIONS or (lowered in _NUMBER_ABBREVIATIONS and next_character.isdigit()))


def token_starts(character_starts: list[int], token_ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sentence starts in characters -> sentence starts in tokens.

    A sentence starts at the first token that ends after the sentence's first character: tokens of byte-level BPE
    begin one character early, with the space before the word.

    Args:
        character_starts: increasing, from 0.
        token_ends: offset behind the last character of every token, not decreasing, (T,) with T >= 1.

    Returns:
        int64, increasing from 0, below T; sentences without any token vanish.
    """
    first = np.searchsorted(token_ends, np.asarray(character_starts, np.int64), side="right")
    first[0] = 0  # tokens of nothing (removed characters) at the very start belong to the first sentence
    return np.unique(first[first < len(token_ends)])
