"""Documents of synthetic languages: each is a pure function of (settings, seed, number of the document).

Pretraining on languages without meaning tells which structure of the data a model learns from: Papadimitriou and
Jurafsky 2020, "Learning Music Helps You Read" (EMNLP; random, Zipfian and nested corpora); Chiang and Lee 2022, "On
the Transferability of Pre-trained Language Models: A Study from Artificial Datasets" (AAAI; uniform, paired, nested
and shuffled ones); Ri and Tsuruoka 2022, "Pretraining with Artificial Language" (ACL; nesting and flat dependencies).

Words are numbers from 0 to V - 1, without special tokens. Letters: D documents, T tokens of a document, V words, R
words to choose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.keyed import hashes, key, permutation
from pipeline.config.synthetic import EVEN_KINDS, SyntheticConfig

DocumentMaker = Callable[[int, int], NDArray[np.int64]]
"""Number (or key) and length of a document -> its words, (T,)."""

_LENGTHS, _CONTENT, _SPLITS = 1, 2, 3
"""What the seed is asked for."""

_WORDS, _PLACES = 1, 2
"""What the key of a document is asked for."""


def document_lengths(config: SyntheticConfig, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of documents: ``length``, or uniform from ``length`` to ``max_length`` (even where tokens come in pairs).

    Args:
        numbers: of the documents, (D,).

    Returns:
        int64 (D,).
    """
    most = config.length if config.max_length is None else config.max_length
    step = 2 if config.kind in EVEN_KINDS else 1
    choices = (most - config.length) // step + 1
    return config.length + step * _below(hashes(key(config.seed, _LENGTHS), numbers), choices)


def split_keys(config: SyntheticConfig) -> NDArray[np.uint64]:
    """The hash of every document that says whether it is held out, (D,)."""
    return hashes(key(config.seed, _SPLITS), np.arange(config.documents))


def document_maker(config: SyntheticConfig) -> DocumentMaker:
    """The function that makes document ``number`` of ``length`` tokens."""
    make = _MAKERS[config.kind](config)

    def make_document(number: int, length: int) -> NDArray[np.int64]:
        return make(key(config.seed, _CONTENT, number), length)

    return make_document


def word_names(config: SyntheticConfig) -> list[str]:
    """What the tokenizer calls the words, (V,): ``w17``; brackets of kind 3 are ``(3`` and ``)3``."""
    if config.kind != "nested":
        return [f"w{word}" for word in range(config.vocab_size)]
    return [f"{bracket}{kind}" for bracket in "()" for kind in range(config.vocab_size // 2)]


def _random(config: SyntheticConfig) -> DocumentMaker:
    """Independent words, all equally likely."""

    def make(document: int, length: int) -> NDArray[np.int64]:
        return _below(hashes(key(document, _WORDS), np.arange(length)), config.vocab_size)

    return make


def _zipf(config: SyntheticConfig) -> DocumentMaker:
    """Independent words, word ``w`` with probability ``(w + 1) ** -exponent / sum``: Zipf's law, by inversion."""
    weights = np.arange(1, config.vocab_size + 1, dtype=np.float64) ** -config.exponent  # V
    bounds = np.cumsum(weights)  # V
    bounds = bounds[:-1] / bounds[-1]  # without the last one, 1: no rounding leads out of the vocabulary

    def make(document: int, length: int) -> NDArray[np.int64]:
        return np.searchsorted(bounds, _units(hashes(key(document, _WORDS), np.arange(length))), side="right")

    return make


def _paired(config: SyntheticConfig) -> DocumentMaker:
    """``length / 2`` different words, all sets of them equally likely, each twice, in random places."""

    def make(document: int, length: int) -> NDArray[np.int64]:
        words = _different_words(key(document, _WORDS), length // 2, config.vocab_size)
        return np.repeat(words, 2)[permutation(key(document, _PLACES), length)]

    return make


def _shuffle(config: SyntheticConfig) -> DocumentMaker:
    """Runs ``start, start + 1, ...`` (modulo V) from random starts, the words of each in random order."""

    def make(document: int, length: int) -> NDArray[np.int64]:
        index = np.arange(length)
        run = index // config.run_length  # T
        starts = _below(hashes(key(document, _WORDS), np.arange(run[-1] + 1)), config.vocab_size)
        order = np.lexsort((hashes(key(document, _PLACES), index), run))  # T
        return (starts[run] + order % config.run_length) % config.vocab_size

    return make


def _nested(config: SyntheticConfig) -> DocumentMaker:
    """Brackets of ``V / 2`` kinds, all equally likely: word ``k`` opens, word ``V / 2 + k`` closes the last open ``k``.

    A bracket must open where none is open; one must close at ``max_depth`` and where the rest of the document only
    just holds what is open; elsewhere one opens with ``open_probability``.
    """
    num_kinds = config.vocab_size // 2

    def make(document: int, length: int) -> NDArray[np.int64]:
        index = np.arange(length)
        opens = (_units(hashes(key(document, _PLACES), index)) < config.open_probability).tolist()
        kinds = _below(hashes(key(document, _WORDS), index), num_kinds).tolist()
        words: list[int] = []
        stack: list[int] = []
        for place in range(length):
            must_close = len(stack) in (config.max_depth, length - place)
            if stack and (must_close or not opens[place]):
                words.append(num_kinds + stack.pop())
            else:
                stack.append(kinds[place])
                words.append(kinds[place])
        return np.array(words, np.int64)

    return make


_MAKERS: Final[dict[str, Callable[[SyntheticConfig], DocumentMaker]]] = {
    "random": _random,
    "zipf": _zipf,
    "paired": _paired,
    "shuffle": _shuffle,
    "nested": _nested,
}


def _different_words(base_key: int, count: int, vocab_size: int) -> NDArray[np.int64]:
    """The first ``count`` different ones of an endless sequence of random words, (R,): a sample without replacement.

    Sorting all words would cost more than the document wherever the vocabulary is large.
    """
    num_draws = 2 * count + 16
    while True:
        draws = _below(hashes(base_key, np.arange(num_draws)), vocab_size)
        firsts = np.unique(draws, return_index=True)[1]
        if len(firsts) >= count:
            return draws[np.sort(firsts)[:count]]
        num_draws *= 2


def _below(hashed: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Integers from 0 to ``bound - 1`` (at most 2**31) from hashes; no share is off by more than 2**-32."""
    return (((hashed >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def _units(hashed: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the high 53 bits of hashes."""
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
